"""The picture of a corpus or a manifest."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtmm_training.data.utterances import SPLITS, Utterance
from mtmm_training.pictures.style import COLOURS, DPI, save

MANY = 40  # speakers, or groups of any kind, that are summed up instead of listed
HATCHES = ("", "///", "...", "\\\\\\", "xx", "||", "++", "oo")
NO_EMOTION = "no emotion label"


def durations(utterances: Iterable[Utterance]) -> dict[str, float]:
    """Returns utterance id -> seconds, for the utterances that have audio.

    Raises:
        ValueError: a file is no audio, or ends before an utterance begins; the message names it.
        OSError: a file cannot be opened.
    """
    seconds = {}
    for u in utterances:
        if u.audio is not None:
            whole, _ = _audio(u.audio)
            start, end = u.start_s or 0.0, whole if u.end_s is None else min(u.end_s, whole)
            if start > whole:
                raise ValueError(
                    f"Utterance {u.utterance_id!r} begins at {start:g} s, but {u.audio!r} has {whole:g} s; "
                    "check its start and end."
                )
            seconds[u.utterance_id] = end - start
    return seconds


@cache  # the table and the picture both ask, and long files hold many utterances
def _audio(path: str) -> tuple[float, int]:
    """Seconds and sampling rate, from the file's header."""
    try:
        with open(path, "rb") as file:  # or libsndfile calls whatever fails a "System error"
            found = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path!r} is no audio that can be read ({error.error_string}); replace it or leave it out."
        ) from error
    return found.duration, found.samplerate


def _emotion(utterance: Utterance) -> str:
    return utterance.emotion or NO_EMOTION


def _emotions(utterances: Iterable[Utterance]) -> list[str]:
    """The emotions by name, and last what has none."""
    return sorted({_emotion(u) for u in utterances}, key=lambda name: (name == NO_EMOTION, name))


def _ordered(keys: Iterable[str | None]) -> list[str | None]:
    """Splits in their order, everything else by name, and last what is not known."""
    return sorted(
        set(keys),
        key=lambda key: (key is None, SPLITS.index(key) if key in SPLITS else 0, str(key)),
    )


def plot_corpus(utterances: Sequence[Utterance], path: str | Path, name: str) -> None:
    """Draws what the utterances have: emotions, speakers, durations or words, dimensions.

    Args:
        utterances: at least one.
        path: the PNG file to write.
        name: of the corpus, for the heading.
    """
    seconds = durations(utterances)
    panels = [_draw_speakers]
    if any(u.emotion for u in utterances):
        panels.insert(0, _draw_emotions)
    panels.append(_draw_durations if seconds else _draw_words)
    plane = [(u.valence, u.arousal) for u in utterances if None not in (u.valence, u.arousal)]
    if plane:
        panels.append(_draw_plane)
    elif any(u.valence is not None for u in utterances):
        panels.append(_draw_valence)

    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10.4, 4.0 * rows + 0.4), dpi=DPI, layout="constrained")
    figure.suptitle(f"{name}: {len(utterances):,} utterances")
    grid = figure.add_gridspec(rows, 2)
    for i, draw in enumerate(panels):
        last_alone = i == len(panels) - 1 and i % 2 == 0
        axes = figure.add_subplot(grid[i // 2, :] if last_alone else grid[i // 2, i % 2])
        draw(axes, utterances, seconds)
    save(figure, path)


def _draw_emotions(axes: Axes, utterances: Sequence[Utterance], seconds: dict[str, float]) -> None:
    emotions = _emotions(utterances)
    splits = _ordered(u.split for u in utterances)
    cells = Counter((_emotion(u), u.split) for u in utterances)
    bars = [
        (split or "no split", [cells[name, split] for name in emotions], i)
        for i, split in enumerate(splits)
    ]
    _stack(axes, range(len(emotions)), bars, horizontal=True)
    totals = Counter(_emotion(u) for u in utterances)
    for y, name in enumerate(emotions):
        share = totals[name] / len(utterances)
        axes.annotate(
            f"{totals[name]:,} ({share:.0%})", (totals[name], y),
            xytext=(4, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(emotions)), emotions)
    axes.invert_yaxis()
    axes.set_xlim(right=1.45 * max(totals.values()))  # room for the numbers
    axes.set(xlabel="utterances", title="emotions")
    if len(splits) > 1:
        axes.legend(title="split", loc="best")


def _draw_speakers(axes: Axes, utterances: Sequence[Utterance], seconds: dict[str, float]) -> None:
    speakers = sorted({u.speaker_id for u in utterances})
    counts = Counter(u.speaker_id for u in utterances)
    axes.set_title(f"speakers ({len(speakers):,})")
    if len(speakers) > MANY:
        _histogram(axes, [counts[name] for name in speakers], logarithmic=True)
        axes.set(xlabel="utterances of one speaker", ylabel="speakers")
        return
    emotions = _emotions(utterances)
    cells = Counter((u.speaker_id, _emotion(u)) for u in utterances)
    bars = [
        (name, [cells[speaker, name] for speaker in speakers], i) for i, name in enumerate(emotions)
    ]
    _stack(axes, range(len(speakers)), bars)
    # The corpus's name, which all of them begin with, would only take room.
    prefix = f"{utterances[0].corpus}_"
    shown = [name.removeprefix(prefix) for name in speakers]
    axes.set_xticks(range(len(speakers)), shown, rotation=90, fontsize="small")
    axes.set_ylabel("utterances")
    if emotions != [NO_EMOTION]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)


def _stack(
    axes: Axes,
    places: Sequence[int],
    bars: Sequence[tuple[str, list[int], int]],
    *,
    horizontal: bool = False,
) -> None:
    base = np.zeros(len(places))
    for label, heights, i in bars:
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "hatch": HATCHES[i % len(HATCHES)],
            "edgecolor": "white",
            "linewidth": 0.5,
            "label": label,
        }
        if horizontal:
            axes.barh(places, heights, left=base, **style)
        else:
            axes.bar(places, heights, bottom=base, **style)
        base = base + heights


def _draw_durations(axes: Axes, utterances: Sequence[Utterance], seconds: dict[str, float]) -> None:
    values = list(seconds.values())
    _histogram(axes, values)
    axes.axvline(statistics.median(values), color="black", linestyle="--", linewidth=1.5)
    axes.set(xlabel="seconds", ylabel="utterances")
    axes.set_title(f"durations ({sum(values) / 3600:.2f} h; dashed: median)")


def _draw_words(axes: Axes, utterances: Sequence[Utterance], seconds: dict[str, float]) -> None:
    values = [len(u.text.split()) for u in utterances if u.text is not None]
    _histogram(axes, values)
    axes.axvline(statistics.median(values), color="black", linestyle="--", linewidth=1.5)
    axes.set(xlabel="words", ylabel="utterances", title="words in a text (dashed: median)")


def _histogram(axes: Axes, values: Sequence[float], *, logarithmic: bool = False) -> None:
    low, high = min(values), max(values)
    whole = all(float(value).is_integer() for value in values)
    bins: int | list[float]
    if logarithmic and high > 20 * low:
        bins = np.unique(np.geomspace(low, high + 1, 21).round()).tolist()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    elif whole:
        width = int((high - low) // 60) + 1
        bins = np.arange(low - 0.5, high + width, width).tolist()
    else:
        bins = 30
    axes.hist(values, bins, color=COLOURS[0], edgecolor="white", linewidth=0.5)
    axes.grid(axis="y", alpha=0.3)
    if axes.get_yscale() == "log":
        axes.set_ylim(bottom=0.7)  # below 1, or a bar of one would have no height
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_plane(axes: Axes, utterances: Sequence[Utterance], seconds: dict[str, float]) -> None:
    points = np.array(
        [(u.valence, u.arousal) for u in utterances if None not in (u.valence, u.arousal)]
    )
    image = axes.hexbin(*points.T, gridsize=28, mincnt=1, bins="log", cmap="cividis")
    axes.figure.colorbar(image, ax=axes, label="utterances")
    axes.set(xlabel="valence (pleasant →)", ylabel="arousal (excited →)")
    axes.set_title(f"dimensions (n = {len(points):,})")
    axes.set_aspect("equal")


def _draw_valence(axes: Axes, utterances: Sequence[Utterance], seconds: dict[str, float]) -> None:
    _histogram(axes, [u.valence for u in utterances if u.valence is not None])
    axes.set(xlabel="valence (pleasant →)", ylabel="utterances", title="valence")
