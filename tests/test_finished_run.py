"""Which utterances a finished run was tested on, whatever became of its data.

Run alone: python -m pytest tests/test_finished_run.py
"""

import dataclasses
import json
from pathlib import Path

import pytest

from mtmm_training.data.folds import make_folds
from mtmm_training.data.manifest import read_manifest
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.run import NEEDED, Run, flags_record

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
    results = dict.fromkeys(NEEDED) | {"config": dataclasses.asdict(flags.resolve())}
    results["splits"] = {"validation": {"utterances": 1}, "test": {"utterances": 4}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    lines = ["id,split,speaker", "b0,validation,b", *(f"{name},test,{name[0]}" for name in TESTED)]
    (tmp_path / "predictions.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("rows", [ROWS, ROWS + ADDED, ROWS[:-2]], ids=["same", "more", "fewer"])
def test_split_stays_the_runs_own(run: Path, rows: list[str]) -> None:
    assert (first_fold(run, rows) == TESTED) == (rows is ROWS)
    assert [utterance.utterance_id for utterance in Run.open(run).test_utterances()] == TESTED


def test_data_is_found_from_another_folder_and_after_a_move(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = run / "project", run / "elsewhere"
    (project / "data").mkdir(parents=True)
    elsewhere.mkdir()
    (run / "manifest.csv").rename(project / "data" / "manifest.csv")
    monkeypatch.chdir(project)
    flags = TrainConfig(manifest=["data/manifest.csv"], modalities=["text"], out="runs/a")
    flags = dataclasses.replace(flags, audio_dir=str(run), k=4, protocol="grouped").resolve()
    record = flags_record(flags)
    assert record["manifest"] == ["../../data/manifest.csv"] and record["audio_dir"] == str(run)
    out = project / "runs" / "a"
    out.mkdir(parents=True)
    results = json.loads((run / "results.json").read_text()) | {"config": record}
    (out / "results.json").write_text(json.dumps(results))
    (run / "predictions.csv").rename(out / "predictions.csv")

    monkeypatch.chdir(elsewhere)
    project.rename(run / "moved")
    tested = Run.open(run / "moved" / "runs" / "a").test_utterances()
    assert [utterance.utterance_id for utterance in tested] == TESTED

    # A record of an earlier version: as it was given, from where training was called.
    results["config"]["manifest"] = ["data/manifest.csv"]
    (run / "moved" / "runs" / "a" / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(run / "moved")
    assert len(Run.open("runs/a").test_utterances()) == 4


@pytest.mark.parametrize("rows", [ROWS[1:], ["a0,yes,happy,b", *ROWS[1:]]], ids=["gone", "renamed"])
def test_changed_test_data_is_refused(run: Path, rows: list[str]) -> None:
    first_fold(run, rows)
    with pytest.raises(ValueError, match="1 of 4 .* 'a0'"):
        Run.open(run).test_utterances()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a,b\n1,2\n",
        "id,split,speaker\na0,test,a\n",
        "id,split,speaker" + 4 * "\na0,test,a",
        "id,split,speaker,valence_label,valence\na0,test,a,3,x\n",
    ],
    ids=["empty", "foreign", "cut off", "doubled", "no number"],
)
def test_damaged_predictions_are_refused(run: Path, content: str) -> None:
    (run / "predictions.csv").write_text(content)
    with pytest.raises(ValueError, match=r"predictions\.csv"):
        Run.open(run).predictions()


def test_predictions_are_rows_of_one_split(run: Path) -> None:
    path = run / "predictions.csv"
    path.write_text("id,split,speaker,emotion_label,emotion,p_sad\n007,validation,NA,,sad,0.5")
    (row,) = Run.open(run).predictions("validation").to_dict("records")
    label = row.pop("emotion_label")
    assert label != label  # absent
    assert row == {
        "id": "007",
        "split": "validation",
        "speaker": "NA",
        "emotion": "sad",
        "p_sad": 0.5,
    }


@pytest.mark.parametrize(
    ("content", "error", "named"),
    [
        (None, FileNotFoundError, "results.json"),
        ('{"config": {}', ValueError, "results.json"),
        ("[1]", ValueError, "results.json"),
        ({"fold": "f1"}, ValueError, "temperature"),
        (dict.fromkeys(NEEDED) | {"config": {"fusion_kind": 1}}, ValueError, "fusion_kind"),
    ],
    ids=["none", "cut off", "list", "keys", "flag"],
)
def test_results_of_another_kind_are_refused(
    tmp_path: Path, content: object, error: type[Exception], named: str
) -> None:
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(error, match=named):
        _ = Run.open(tmp_path).flags
