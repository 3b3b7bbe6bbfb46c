"""`mtmm score`: a finished model on a labelled table.

Run alone: python -m pytest tests/test_score.py -q
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from small_runs import results_of, train, words

from mtmm_training.commands.cli import main
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.training.run import Run


@pytest.fixture(scope="module")
def run(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.open(train(words(embedded, tmp_path_factory.mktemp("runs") / "run")))


def test_scores_are_those_of_the_test_split(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = run.test_utterances()
    write_manifest(utterances, tmp_path / "test.csv")
    out = tmp_path / "scores"
    assert main(["score", str(run.folder), str(tmp_path / "test.csv"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    expected = results_of(run.folder)["test"]
    for name in ("UAR", "WAR", "confusion", "recall", "labels"):
        assert scores["metrics"][name] == expected[name], name
    assert scores["metrics"]["ECE"] == pytest.approx(expected["ECE"], abs=2e-3)  # float16 states
    assert scores["metrics"]["CCC"] == pytest.approx(expected["CCC"], abs=2e-3)
    assert f"| UAR | {expected['UAR']:.3f} |" in printed
    assert scores["intervals"]["UAR"][0] == expected["UAR"] and scores["failed"] == {}
    assert {p.name for p in out.iterdir()} == {
        "figures", "predictions.csv", "scores.json", "table.md",
    }  # fmt: skip


def test_other_tables_are_scored_on_what_the_model_knows(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = run.test_utterances()
    ratings: dict[str, Any] = {"valence_ratings": None, "arousal_ratings": None, "raters": None}
    rows = [replace(u, valence=(u.valence or 1) / 4 - 0.25, arousal=None, **ratings) for u in read]
    rows[0] = replace(rows[0], emotion="bored")
    write_manifest(rows, tmp_path / "own.csv")
    table = pandas.read_csv(tmp_path / "own.csv", dtype=str).drop(columns="speaker")
    table.loc[1, "audio"] = "missing.wav"
    table.to_csv(tmp_path / "own.csv", index=False)
    flags = ["--dimension_range", "0", "1", "--out", str(tmp_path / "own")]
    assert main(["score", str(run.folder), str(tmp_path / "own.csv"), *flags]) == 0
    scores = json.loads((tmp_path / "own" / "scores.json").read_text())
    assert scores["speakers"] == scores["utterances"] == len(rows) - 1
    assert scores["metrics"]["emotion_labels"] == len(rows) - 2
    assert scores["metrics"]["labels"] == {"valence": len(rows) - 1, "arousal": 0}
    assert list(scores["failed"]) == [read[1].utterance_id]
    told = capsys.readouterr().err
    assert "bored (1)" in told and "no column speaker" in told


def test_scores_of_trained_speakers_are_said_to_be_too_high(
    run: Run, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = embedded / "corpus" / "manifest.csv"
    heard = set(run.results["splits"]["train"]["speakers"])
    rows = [u for u in read_manifest(manifest) if u.speaker_id in heard][:2]
    write_manifest([replace(u, emotion="bored") for u in rows], tmp_path / "m.csv")
    assert main(["score", str(run.folder), str(tmp_path / "m.csv")]) == 0
    assert "was trained or selected on" in capsys.readouterr().err


def test_call_of_two_speakers_is_followed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "call", "--run", str(run.folder), "--out", str(tmp_path / "call")]) == 0
    table = pandas.read_csv(tmp_path / "call" / "call.csv")
    assert table["channels"].tolist() == ["apart", "mixed"] and (table["speaker right"] == 1).all()
    truth = json.loads((tmp_path / "call" / "truth.json").read_text())["turns"]
    answer = json.loads((tmp_path / "call" / "mixed_none.json").read_text())
    assert {e["speaker"] for e in answer["timeline"]} == {one["speaker"] for one in truth}
    assert set(answer["speakers"]) == {one["speaker"] for one in truth}
    assert (tmp_path / "call" / "apart_none.png").is_file()
    assert "speaker right" in capsys.readouterr().out
