"""What is in a corpus or a manifest: a table of counts, and a picture of the same.

mtmm inspect --corpus iemocap --corpus_dir IEMOCAP_full_release --out out/iemocap
mtmm inspect --manifest my_corpus/manifest.csv
"""

import argparse
import json
import logging
import math
import statistics
import sys
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

from mtmm_training.commands.flags import folder
from mtmm_training.data.corpora import CORPORA, CORPUS_FLAGS, read_corpus
from mtmm_training.data.corpora.labels import LABELS
from mtmm_training.data.folds import doubled_recordings, recording_digests, script_of
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.utterances import DIMENSIONS, SPLITS, Utterance
from mtmm_training.files import replacing
from mtmm_training.pictures.figures import COLOURS, DPI, save

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


def table(utterances: Sequence[Utterance], name: str) -> str:
    """Describes utterances in plain text.

    Args:
        utterances: at least one.
        name: of the corpus, for the heading.
    """
    seconds = durations(utterances)
    speakers = {u.speaker_id for u in utterances}
    lines = [f"{name}: {len(utterances):,} utterances, {len(speakers):,} speakers", ""]
    lines += _facts(utterances, seconds)
    groups: dict[str, list[str | None]] = {
        "split": [u.split for u in utterances],
        "session": [u.session_id for u in utterances],
        "gender": [u.gender for u in utterances],
        "speaker": [u.speaker_id for u in utterances],
    }
    emotions = _emotions(utterances)
    for what, keys in groups.items():
        if any(key is not None for key in keys):
            lines += ["", *_cross_table(what, keys, [_emotion(u) for u in utterances], emotions)]
    return "\n".join(lines)


def _facts(utterances: Sequence[Utterance], seconds: dict[str, float]) -> list[str]:
    facts = []
    if seconds:
        low, middle, high = (f(seconds.values()) for f in (min, statistics.median, max))
        facts.append(
            ("audio", f"{len(seconds):,} utterances, {sum(seconds.values()) / 3600:.2f} h; each "
             f"{low:.1f} to {high:.1f} s, median {middle:.1f} s")
        )  # fmt: skip
        rates = Counter(_audio(u.audio)[1] for u in utterances if u.audio)
        facts.append(
            ("sampling rate", ", ".join(f"{rate:,} Hz {n:,}" for rate, n in rates.items()))
        )
        facts.append(("one recording, several ids", _doubled(utterances)))
    texts = [u.text for u in utterances if u.text is not None]
    if texts:
        words = [len(text.split()) for text in texts]
        facts.append(
            ("text", f"{len(texts):,} utterances, {len(set(texts)):,} different; "
             f"{min(words)} to {max(words)} words, median {statistics.median(words):g}")
        )  # fmt: skip
    scripts = {script_of(u) for u in utterances if u.script_id or u.text}
    facts.append(("scripts", f"{len(scripts):,} (script ids, or different texts without one)"))
    improvised = Counter(u.improvised for u in utterances)
    if improvised[True]:
        flags = {True: "yes", False: "no", None: "not known"}
        shown = ", ".join(f"{improvised[flag]:,} {word}" for flag, word in flags.items())
        facts.append(("improvised", shown))
    for name in DIMENSIONS:
        values = [getattr(u, name) for u in utterances if getattr(u, name) is not None]
        if values:
            facts.append(
                (name, f"{len(values):,} utterances, {min(values):g} to {max(values):g}, mean "
                 f"{statistics.fmean(values):.2f}, sd {statistics.pstdev(values):.2f}")
            )  # fmt: skip
    width = max(len(name) for name, _ in facts)
    return [f"{name:{width}}  {value}" for name, value in facts]


def _doubled(utterances: Sequence[Utterance]) -> str:
    doubled = doubled_recordings(recording_digests(utterances))
    shown = "; ".join(" = ".join(ids) for ids in doubled[:3])
    return f"{len(doubled)}{': ' if doubled else ''}{shown}{' ...' if len(doubled) > 3 else ''}"


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


def _cross_table(
    what: str, keys: Sequence[str | None], emotions: Sequence[str], columns: Sequence[str]
) -> list[str]:
    counts = Counter(keys)
    cells = Counter(zip(keys, emotions, strict=True))
    if len(counts) > MANY:
        sizes = sorted(counts.values())
        largest = ", ".join(f"{key} {count:,}" for key, count in counts.most_common(5))
        rows = [
            [f"{what} ({len(counts):,})", "utterances each"],
            ["", f"{sizes[0]:,} to {sizes[-1]:,}, median {statistics.median(sizes):g}"],
            ["", f"most: {largest}"],
        ]
        return [f"{first:24}  {second}" for first, second in rows]
    wide = [name for name in columns if name != NO_EMOTION or len(columns) > 1]
    rows = [[what, "all", *wide]]
    for key in _ordered(counts):
        per_emotion = [f"{cells[key, name]:,}" for name in wide]
        rows.append(["not known" if key is None else key, f"{counts[key]:,}", *per_emotion])
    if len(counts) > 1:
        totals = Counter(emotions)
        rows.append(["all", f"{len(keys):,}", *(f"{totals[name]:,}" for name in wide)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


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


NO_OPTIONS = CORPUS_FLAGS | {"official_split": "--official_split"}


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text} is not JSON ({error}); put it in single quotes, which keep its double quotes from "
            """the shell, such as '{"NAME": "VALUE"}'"""
        ) from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return content


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    contents = "\n".join(f"  {name:12} {reader.contents}" for name, reader in CORPORA.items())
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.commands.inspect_corpus",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Lists what a corpus has: counts by emotion, speaker, split and session, hours,"
        "\nranges of the labels, transcripts, and recordings that are there twice.",
        epilog=f"corpora, as their makers distribute them:\n{contents}\n\nexamples:\n"
        "  --corpus iemocap --corpus_dir IEMOCAP_full_release --out out/iemocap\n"
        "  --corpus crema_d --corpus_dir CREMA-D --labels all\n"
        "  --manifest my_corpus/manifest.csv   (columns: speaker, audio or text, emotion, ...)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", choices=CORPORA, metavar="NAME", help="one of those below")
    source.add_argument("--manifest", metavar="FILE", help="a .csv, .tsv, .jsonl or .parquet table")
    parser.add_argument("--corpus_dir", metavar="DIR", help="what the corpus was unpacked into")
    parser.add_argument(
        "--labels", choices=("four", "all"),
        help="four: angry, happy, neutral, sad, and nothing else is read; all: every emotion that "
        "the corpus has. Without it, all for meld and four for the others",
    )  # fmt: skip
    parser.add_argument(
        "--partial", action="store_true",
        help="go on, with a warning, where the corpus is not complete",
    )  # fmt: skip
    parser.add_argument(
        "--corpus_options", type=_json_object, default={}, metavar="JSON",
        help="""other options of the corpus's reader, such as '{"audio_dir": "MELD/wav"}'""",
    )  # fmt: skip
    parser.add_argument(
        "--dimension_range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="the scale of the manifest's valence, arousal and dominance; 1 5 if not given",
    )  # fmt: skip
    parser.add_argument(
        "--official_split", action="store_true",
        help="read for the corpus's own split, as protocol official does",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", type=folder,
        help="also write the table and a picture there, as <name>.txt and <name>.png",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    if (arguments.corpus is None) != (arguments.corpus_dir is None):
        parser.error("--corpus and --corpus_dir go together: the corpus's name and its folder")
    of_corpus = ("labels", "partial", "official_split", "corpus_options")
    if arguments.manifest and any(getattr(arguments, name) for name in of_corpus):
        parser.error(
            f"{', '.join('--' + name for name in of_corpus)} are for --corpus, not --manifest"
        )
    for name, flag in NO_OPTIONS.items():
        if name in arguments.corpus_options:
            parser.error(f"--corpus_options cannot have {name!r}: give {flag}")
    if arguments.corpus and arguments.dimension_range:
        parser.error("--dimension_range is for --manifest: a corpus has its own")
    low, high = arguments.dimension_range or (1.0, 5.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        parser.error(
            f"--dimension_range is {low:g} {high:g}; it must be two finite numbers, the lower one first"
        )
    if arguments.labels and arguments.corpus not in LABELS:
        parser.error(f"--labels is not possible: {arguments.corpus} has no emotion labels")
    arguments.dimension_range = (low, high)
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    arguments = _arguments(words)
    try:
        if arguments.manifest:
            name = Path(arguments.manifest).resolve().parent.name
            utterances = read_manifest(
                arguments.manifest, dimension_range=arguments.dimension_range
            )
        else:
            name = arguments.corpus
            options = {"partial": arguments.partial} | arguments.corpus_options
            options |= {"labels": arguments.labels} if arguments.labels else {}
            utterances = read_corpus(
                name,
                arguments.corpus_dir,
                official_split=arguments.official_split,
                **options,
            )
        listed = table(utterances, name)
        print(listed)
        if arguments.out is not None:
            with replacing(arguments.out / f"{name}.txt") as temporary:
                temporary.write_text(listed + "\n", encoding="utf-8")
            plot_corpus(utterances, arguments.out / f"{name}.png", name)
            print(f"\nwrote {arguments.out / name}.txt and .png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
