"""python -m pytest tests/test_figures.py -q"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from mtmm_training.pictures import of_runs
from mtmm_training.pictures.style import DPI

EMOTIONS = ["angry", "happy", "neutral", "sad"]
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.uniform(1, 5, (30, 2))
PREDICTIONS = LABELS + GENERATOR.normal(0, 0.3, (30, 2))
PROBABILITIES = GENERATOR.dirichlet([1] * 4, 50)
EMOTION_LABELS = GENERATOR.integers(0, 4, 50)


def an_epoch(number: int, loss: float | None = 0.5, uar: float | None = 0.6) -> dict[str, Any]:
    validation = {"loss": loss, "UAR": uar, "WAR": uar, "CCC": {"valence": uar, "arousal": None}}
    return {"epoch": number, "train": {"loss": loss}, "validation": validation}


# Each case: how to draw, and the width and height in inches.
DRAWN = {
    "confusion": (
        lambda path: of_runs.plot_confusion(np.eye(4, dtype=int) * 9, EMOTIONS, path, "test"),
        (5.9, 5.0),
    ),
    "dimensions": (
        lambda path: of_runs.plot_dimensions(LABELS, PREDICTIONS, path, (1, 5)),
        (9.6, 5.8),
    ),
    "dimensions by emotion": (
        lambda path: of_runs.plot_dimensions(
            LABELS, PREDICTIONS, path, (1, 5), ["sad", None, "happy"] * 10
        ),
        (9.6, 5.8),
    ),
    "curves": (
        lambda path: of_runs.plot_curves([an_epoch(0), an_epoch(1, None, 0.7)], path),
        (9.6, 4.2),
    ),
    "spread": (
        lambda path: of_runs.plot_fold_spread({"a": [0.5, 0.6], "b": [0.4]}, path, "UAR"),
        (4.5, 4.6),
    ),
    "reliability": (
        lambda path: of_runs.plot_reliability({"before": PROBABILITIES}, EMOTION_LABELS, path),
        (5.4, 6.4),
    ),
    "ablation": (
        lambda path: of_runs.plot_ablation([("a", 0.5, 0.4, 0.6), ("b", 1, 1, 1)], path, "UAR"),
        (8.0, 2.14),
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_one_whole_png(name: str, tmp_path: Path) -> None:
    draw, (width, height) = DRAWN[name]
    path = tmp_path / "made" / "figure.png"
    draw(path)
    picture = imread(path)  # (height, width, channels), 0..1
    assert picture.shape[:2] == (round(height * DPI), round(width * DPI))
    assert picture[..., :3].std() > 0.01
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("name", DRAWN)
def test_same_data_gives_same_bytes(name: str, tmp_path: Path) -> None:
    draw, _ = DRAWN[name]
    draw(tmp_path / "first.png")
    draw(str(tmp_path / "second.png"))
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_failed_write_keeps_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def break_off(figure: Figure, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", break_off)
    with pytest.raises(OSError, match="disk full"):
        of_runs.plot_ablation([("a", 0.5, 0.4, 0.6)], path, "UAR")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_leave_pyplot_unloaded() -> None:
    code = (
        "import sys, mtmm_training.pictures.of_runs; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_confusion_row_without_labels_is_drawn(tmp_path: Path) -> None:
    counts = np.diag([5, 0, 3, 2])
    of_runs.plot_confusion(counts, EMOTIONS, tmp_path / "figure.png", "no happy label")
    assert (tmp_path / "figure.png").stat().st_size


def test_dimensions_of_one_utterance_are_drawn(tmp_path: Path) -> None:
    labels = np.array([[3.0, 3.0], [np.nan, 2.0]])
    of_runs.plot_dimensions(labels, labels[[0, 0]], tmp_path / "figure.png", (1, 5))
    assert (tmp_path / "figure.png").stat().st_size


ABSENT: Any = None  # where a number or an array is due


def refused(**cases: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*case, id=name.replace("_", " ")) for name, case in cases.items()]


@pytest.mark.parametrize(
    ("draw", "message"),
    refused(
        confusion_empty=(
            lambda path: of_runs.plot_confusion(np.zeros((4, 4)), EMOTIONS, path, ""),
            "counts no utterance",
        ),
        confusion_absent=(
            lambda path: of_runs.plot_confusion(ABSENT, EMOTIONS, path, ""),
            r"shape \(\); 4 emotions need \(4, 4\)",
        ),
        dimensions_unlabelled=(
            lambda path: of_runs.plot_dimensions(LABELS * np.nan, LABELS, path, (1, 5)),
            "no utterance with both",
        ),
        dimensions_of_three=(
            lambda path: of_runs.plot_dimensions(np.ones((2, 3)), np.ones((2, 3)), path, (1, 5)),
            r"both need \(utterances, 2\)",
        ),
        dimensions_emotions_short=(
            lambda path: of_runs.plot_dimensions(LABELS, LABELS, path, (1, 5), ["sad"]),
            "1 names for 30 utterances",
        ),
        dimensions_diverged=(
            lambda path: of_runs.plot_dimensions(LABELS, LABELS * np.nan, path, (1, 5)),
            "NaN or infinite",
        ),
        curves_empty=(lambda path: of_runs.plot_curves([], path), "at least one epoch"),
        curves_without_loss=(
            lambda path: of_runs.plot_curves([an_epoch(0, None)], path),
            "no loss",
        ),
        curves_unlabelled=(
            lambda path: of_runs.plot_curves([an_epoch(0, uar=None)], path),
            "no labels",
        ),
        spread_empty=(lambda path: of_runs.plot_fold_spread({}, path, "UAR"), "is empty"),
        spread_without_folds=(
            lambda path: of_runs.plot_fold_spread({"a": []}, path, "UAR"),
            "variant 'a' has 0 folds without UAR among 0",
        ),
        spread_lacking_fold=(
            lambda path: of_runs.plot_fold_spread({"a": [0.5, ABSENT]}, path, "UAR"),
            "variant 'a' has 1 folds without UAR among 2",
        ),
        reliability_empty=(lambda path: of_runs.plot_reliability({}, [0], path), "is empty"),
        reliability_unlabelled=(
            lambda path: of_runs.plot_reliability({"a": PROBABILITIES}, [-100] * 50, path),
            "no emotion label",
        ),
        ablation_empty=(lambda path: of_runs.plot_ablation([], path, "UAR"), "reference variant"),
        ablation_lacking=(
            lambda path: of_runs.plot_ablation([("a", 0.5, ABSENT, 0.6)], path, "UAR"),
            "row 'a' lacks a number",
        ),
    ),
)
def test_figure_says_what_is_missing(
    draw: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
