"""python -m pytest tests/test_figures.py -q"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from mtmm_training.pictures import of_runs, palette, style

EMOTIONS = ["angry", "happy", "neutral", "sad"]
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.uniform(1, 5, (30, 2))
PREDICTIONS = LABELS + GENERATOR.normal(0, 0.3, (30, 2))
PROBABILITIES = GENERATOR.dirichlet([1] * 4, 50)
EMOTION_LABELS = GENERATOR.integers(0, 4, 50)


def an_epoch(number: int, loss: float | None = 0.5, uar: float | None = 0.6) -> dict[str, Any]:
    validation = {"loss": loss, "UAR": uar, "WAR": uar, "CCC": {"valence": uar, "arousal": None}}
    return {"epoch": number, "train": {"loss": loss}, "validation": validation}


ROWS = [("a", 0.1, 0.02, 0.2), ("b", -0.05, -0.2, 0.1)]
DRAWN = {
    "confusion": lambda path: of_runs.plot_confusion(np.diag([5, 0, 3, 2]), EMOTIONS, path, "a"),
    "dimensions by emotion": lambda path: of_runs.plot_dimensions(
        LABELS, PREDICTIONS, path, (1, 5), ["sad", None, "happy"] * 10
    ),
    "one utterance": lambda path: of_runs.plot_dimensions(
        [[3.0, 3.0], [np.nan, 2.0]], [[3.0, 3.0], [3.0, 3.0]], path, (1, 5)
    ),
    "curves": lambda path: of_runs.plot_curves([an_epoch(0), an_epoch(1, None, 0.7)], path),
    "spread": lambda path: of_runs.plot_fold_spread({"a": [0.5, 0.6], "b": [0.4]}, path, "UAR"),
    "reliability": lambda path: of_runs.plot_reliability(
        {"before": PROBABILITIES}, EMOTION_LABELS, path
    ),
    "forest": lambda path: of_runs.plot_forest(ROWS, path, "UAR", "reference"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_a_png_and_a_pdf_always_the_same(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "made" / "figure.png", tmp_path / "again" / "figure.png"
    for path in (first, second):
        DRAWN[name](path)
        assert {file.name for file in path.parent.iterdir()} == {"figure.png", "figure.pdf"}
    assert imread(first)[..., :3].std() > 0.01
    assert first.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    for suffix in (".png", ".pdf"):
        contents = {path.with_suffix(suffix).read_bytes() for path in (first, second)}
        assert len(contents) == 1


def test_failed_write_keeps_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def break_off(figure: Figure, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", break_off)
    with pytest.raises(OSError, match="disk full"):
        DRAWN["forest"](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_leave_pyplot_unloaded() -> None:
    code = (
        "import sys, mtmm_training.pictures.of_runs; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figure of the next picture, instead of a file."""
    kept: dict[str, Figure] = {}
    monkeypatch.setattr(style, "save", lambda figure, path: kept.update({str(path): figure}))
    return kept


def test_emotions_have_the_palettes_colours(drawn: dict[str, Figure]) -> None:
    DRAWN["dimensions by emotion"]("figure")
    means = {str(line.get_label()): line.get_color() for line in drawn["figure"].axes[0].lines}
    for name in ("sad", "happy"):
        assert to_hex(means[name]).upper() == palette.EMOTIONS[name].colour


def test_intervals_of_accuracy_are_wilsons(drawn: dict[str, Figure]) -> None:
    """Of 10 utterances at confidence .8 eight are right: 95 % from .4902 to .9433."""
    of_runs.plot_reliability({"a": [[0.8, 0.2]] * 10}, [0] * 8 + [1] * 2, "figure")
    bars: Any = drawn["figure"].axes[0].containers[0]
    ((low, high),) = (segment[:, 1] for segment in bars.lines[2][0].get_segments())
    assert (low, high) == pytest.approx((0.49016, 0.94331), abs=1e-5)


def test_forest_fills_what_is_apart_from_zero(drawn: dict[str, Figure]) -> None:
    DRAWN["forest"]("figure")
    axes = drawn["figure"].axes[0]
    lines: Any = axes.lines
    zero, _, first, _, second = lines
    assert list(zero.get_xdata()) == [0, 0]
    assert (first.get_xdata()[0], second.get_xdata()[0]) == (0.1, -0.05)
    assert first.get_markerfacecolor() == palette.COLOURS[0]
    assert second.get_markerfacecolor() == "white"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert axes.texts[1].get_text() == "−0.050 [−0.200, +0.100]"


def test_curves_mark_the_epoch_that_was_kept(drawn: dict[str, Figure]) -> None:
    of_runs.plot_curves([an_epoch(3), an_epoch(4, uar=0.7), an_epoch(5, uar=0.7)], "figure")
    left, right = drawn["figure"].axes
    kept: Any = left.lines[0].get_xdata()
    assert list(kept) == [4, 4]  # of equals the first
    assert "best epoch 4: mean 0.700" in right.get_title()


def test_diverged_predictions_are_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        of_runs.plot_dimensions(LABELS, LABELS * np.nan, tmp_path / "figure.png", (1, 5))
    assert not list(tmp_path.iterdir())
