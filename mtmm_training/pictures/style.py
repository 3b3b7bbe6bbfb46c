"""How all pictures look, and how one is written: for print, and for colour-blind readers.

Where colours differ, markers, hatches or line styles differ too. Nothing here touches matplotlib's
global state.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtmm_training.data.files import replacing
from mtmm_training.pictures.palette import BLACK, COLOURS, DIMENSIONS, GREY, looks

DPI = 160
# One marker more than colours, so that colour and marker do not repeat together before 56.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and line of the series with that number: a run, a variant, a split."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def emotion_styles(emotions: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each emotion's points, by name."""
    return {
        name: {"color": look.colour, "marker": look.marker, "linestyle": ""}
        for name, look in looks(emotions).items()
    }


def dimension_style(name: str) -> dict[str, Any]:
    """Colour and line of a dimension's curve."""
    colour, line = DIMENSIONS.get(name, (BLACK, "-."))
    return {"color": colour, "linestyle": line}


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """Makes a figure of that many inches, and one panel or an array of them.

    Args:
        width, height: inches.
        grid: of `Figure.subplots`, such as `nrows`; one panel without.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(**grid)


def prepare_plane(axes: Axes, dimension_range: Sequence[float]) -> None:
    """Labels a valence–arousal plane, and marks the middle of the scale."""
    low, high = dimension_range
    for line in (axes.axhline, axes.axvline):
        line((low + high) / 2, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel(f"valence ({low:g} to {high:g}, pleasant →)")
    axes.set_ylabel(f"arousal ({low:g} to {high:g}, excited →)")
    axes.set_box_aspect(1)


def scale_limits(
    values: Sequence[np.ndarray], dimension_range: Sequence[float]
) -> tuple[float, float]:
    """Of an axis: the whole scale, and more where a value leaves it."""
    drawn = np.concatenate([*map(np.ravel, values), np.asarray(dimension_range)])
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def below(figure: Figure, axes: Axes, columns: int) -> None:
    """Puts the legend of a panel below all panels, where it covers nothing."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False,
        handletextpad=0.4, columnspacing=1.2, markerscale=0.75,
    )  # fmt: skip


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG file and a PDF beside it, so that a reader never sees half a picture.

    Args:
        figure: is drawn once for each file.
        path: of the PNG file; the PDF has the same name with another suffix.
    """
    path = Path(path)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI)
    # Letters stay letters in the PDF, and the same picture gives the same bytes on every day.
    with replacing(path.with_suffix(".pdf")) as unfinished:
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(unfinished, format="pdf", metadata={"CreationDate": None})
