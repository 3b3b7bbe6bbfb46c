"""The picture of a corpus or a manifest: emotions, speakers, durations or words, dimensions."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mtmm_training.data.utterances import SPLITS
from mtmm_training.pictures.palette import COLOURS, GREY, Look, looks
from mtmm_training.pictures.style import DPI, save

MANY = 40  # speakers, or groups of any kind, that are summed up instead of listed
NO_EMOTION = "no emotion label"
SPLIT_HATCHES = dict(zip(SPLITS, ("", "///", "..."), strict=True))


def plot_corpus(frame: pd.DataFrame, path: str | Path, name: str) -> None:
    """Draws what a corpus has.

    Args:
        frame: one row per utterance with columns "emotion" (`NO_EMOTION` where absent), "speaker",
            "split", "seconds", "words", "valence" and "arousal"; absent values are None or NaN.
        path: the PNG file to write.
        name: of the corpus, for the heading.
    """
    panels = [_draw_speakers]
    if (frame["emotion"] != NO_EMOTION).any():
        panels.insert(0, _draw_emotions)
    if frame["seconds"].notna().any():
        title = f"durations ({frame['seconds'].sum() / 3600:.2f} h; dashed: median)"
        panels.append(partial(_draw_amounts, column="seconds", title=title))
    else:
        title = "words in a text (dashed: median)"
        panels.append(partial(_draw_amounts, column="words", title=title))
    if frame[["valence", "arousal"]].notna().all(axis=1).any():
        panels.append(_draw_plane)
    elif frame["valence"].notna().any():
        panels.append(partial(_draw_amounts, column="valence", title="valence (dashed: median)"))

    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10.4, 4.0 * rows + 0.4), dpi=DPI, layout="constrained")
    figure.suptitle(f"{name}: {len(frame):,} utterances")
    grid = figure.add_gridspec(rows, 2)
    for i, draw in enumerate(panels):
        last_alone = i == len(panels) - 1 and i % 2 == 0
        axes = figure.add_subplot(grid[i // 2, :] if last_alone else grid[i // 2, i % 2])
        draw(axes, frame)
    save(figure, path)


def by_name(names: Iterable[str], last: str) -> list[str]:
    """Sorted, and one of them last."""
    return sorted(names, key=lambda name: (name == last, name))


def _looks(emotions: Iterable[str]) -> dict[str, Look]:
    found = looks(name for name in emotions if name != NO_EMOTION)
    return found | {NO_EMOTION: Look("white", ".", "")}


def _draw_emotions(axes: Axes, frame: pd.DataFrame) -> None:
    """A bar for each emotion in its colour, in parts that are hatched by split."""
    splits = [split for split in SPLITS if (frame["split"] == split).any()]
    counts = pd.crosstab(frame["emotion"], frame["split"].fillna("no split"))
    emotions = by_name(counts.index, NO_EMOTION)
    counts = counts.reindex(index=emotions, columns=[*splits, *counts.columns.difference(splits)])
    colours = [_looks(emotions)[name].colour for name in emotions]
    base = np.zeros(len(emotions))
    for split in counts:
        axes.barh(
            range(len(emotions)), counts[split], left=base, color=colours, linewidth=0.5,
            hatch=SPLIT_HATCHES.get(split), edgecolor="black" if NO_EMOTION in emotions else "white",
        )  # fmt: skip
        base += counts[split].to_numpy()
    for y, total in enumerate(base):
        axes.text(total, y, f" {total:,.0f} ({total / len(frame):.0%})", va="center")
    axes.set_yticks(range(len(emotions)), emotions)
    axes.invert_yaxis()
    axes.set_xlim(right=1.45 * base.max())  # room for the numbers
    axes.set(xlabel="utterances", title="emotions")
    if len(counts.columns) > 1:
        marks = [
            Patch(facecolor=GREY, edgecolor="white", hatch=SPLIT_HATCHES.get(split), label=split)
            for split in counts
        ]
        axes.legend(
            handles=marks, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False
        )


def _draw_speakers(axes: Axes, frame: pd.DataFrame) -> None:
    counts = pd.crosstab(frame["speaker"], frame["emotion"])
    axes.set_title(f"speakers ({len(counts):,})")
    if len(counts) > MANY:
        _histogram(axes, counts.sum(axis=1), logarithmic=True)
        axes.set(xlabel="utterances of one speaker", ylabel="speakers")
        return
    emotions = by_name(counts, NO_EMOTION)
    base = np.zeros(len(counts))
    for name in emotions:
        look = _looks(emotions)[name]
        axes.bar(
            range(len(counts)), counts[name], bottom=base, color=look.colour, hatch=look.hatch,
            edgecolor="black" if name == NO_EMOTION else "white", linewidth=0.5, label=name,
        )  # fmt: skip
        base += counts[name].to_numpy()
    # What all names begin with, such as the corpus's own, would only take room.
    prefixes = {name.rpartition("_")[0] for name in counts.index}
    prefix = f"{prefixes.pop()}_" if len(prefixes) == 1 else ""
    shown = [name.removeprefix(prefix) for name in counts.index]
    axes.set_xticks(range(len(counts)), shown, rotation=90, fontsize="small")
    axes.set_ylabel("utterances")
    if emotions != [NO_EMOTION]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)


def _draw_amounts(axes: Axes, frame: pd.DataFrame, column: str, title: str) -> None:
    values = frame[column].dropna()
    _histogram(axes, values)
    axes.axvline(values.median(), color="black", linestyle="--", linewidth=1.5)
    axes.set(xlabel=column, ylabel="utterances", title=title)


def _histogram(axes: Axes, values: pd.Series, *, logarithmic: bool = False) -> None:
    low, high = values.min(), values.max()
    bins: Any = 30
    if logarithmic and high > 20 * low:
        bins = np.unique(np.geomspace(low, high + 1, 21).round())
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    elif (values % 1 == 0).all():
        width = (high - low) // 60 + 1
        bins = np.arange(low - 0.5, high + width, width)
    axes.hist(values, bins, color=COLOURS[0], edgecolor="white", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
    if axes.get_yscale() == "log":
        axes.set_ylim(bottom=0.7)  # below 1, or a bar of one would have no height
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_plane(axes: Axes, frame: pd.DataFrame) -> None:
    points = frame[["valence", "arousal"]].dropna()
    image = axes.hexbin(*points.to_numpy().T, gridsize=28, mincnt=1, bins="log", cmap="cividis")
    axes.figure.colorbar(image, ax=axes, label="utterances")
    axes.set(xlabel="valence (pleasant →)", ylabel="arousal (excited →)")
    axes.set_title(f"dimensions (n = {len(points):,})")
    axes.set_box_aspect(1)
