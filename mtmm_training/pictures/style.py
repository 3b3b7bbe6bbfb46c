"""What all pictures share: colours, markers, resolution, and how a file is written."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtmm_training.files import replacing

DPI = 160
# Okabe and Ito, "Color Universal Design", 2008; yellow is left out, it vanishes on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One marker more than colours, so that colour and marker do not repeat together before 56.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
GREY = "0.45"


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Makes a figure of that many inches with one panel."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG file, under a temporary name first: a reader never sees half a picture."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI)
