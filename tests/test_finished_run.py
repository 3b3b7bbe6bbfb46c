"""Which utterances a finished run was tested on, whatever became of its data.

Run alone: python -m pytest tests/test_finished_run.py
"""

import dataclasses
import json
from pathlib import Path

import pytest

from mtmm_training.data.folds import make_folds
from mtmm_training.data.utterances import read_manifest
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.run import read_test_split

ROWS = [f"{speaker}{number},yes,happy,{speaker}" for speaker in "abcdefgh" for number in range(2)]
ADDED = [f"i{number},no,sad,i" for number in range(12)]
TESTED = ["a0", "a1", "e0", "e1"]


def first_fold(folder: Path, rows: list[str]) -> list[str]:
    """Writes a manifest of these rows; returns the test ids that its folds would have now."""
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(["id,text,emotion,speaker", *rows]))
    return list(make_folds(read_manifest(manifest), "grouped", k=4)[0].test)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on the first of four grouped folds."""
    assert first_fold(tmp_path, ROWS) == TESTED
    manifest = str(tmp_path / "manifest.csv")
    flags = TrainConfig(manifest=[manifest], modalities=["text"], protocol="grouped", k=4)
    results = {"config": dataclasses.asdict(flags.resolve()), "model_config": {}, "splits": {}}
    (tmp_path / "results.json").write_text(json.dumps(results | {"test": {}, "wall_time_s": 0.0}))
    lines = ["id,split,speaker", "b0,validation,b", *(f"{name},test,{name[0]}" for name in TESTED)]
    (tmp_path / "predictions.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("rows", [ROWS, ROWS + ADDED, ROWS[:-2]], ids=["same", "more", "fewer"])
def test_split_stays_the_runs_own(run: Path, rows: list[str]) -> None:
    assert (first_fold(run, rows) == TESTED) == (rows is ROWS)
    assert [utterance.utterance_id for utterance in read_test_split(run)] == TESTED


@pytest.mark.parametrize("rows", [ROWS[1:], ["a0,yes,happy,b", *ROWS[1:]]], ids=["gone", "renamed"])
def test_changed_test_data_is_refused(run: Path, rows: list[str]) -> None:
    first_fold(run, rows)
    with pytest.raises(ValueError, match="data has changed since .* 1 of its 4 .* such as 'a0'"):
        read_test_split(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no predictions.csv"), ("a,b\n1,2\n", "has no test utterances")],
)
def test_run_without_test_predictions_is_refused(
    run: Path, content: str | None, message: str
) -> None:
    (run / "predictions.csv").unlink()
    if content is not None:
        (run / "predictions.csv").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_test_split(run)
