"""Whole protocols: what is run, in which processes, and what goes on where it was stopped.

Run alone: python -m pytest tests/test_protocol.py -q
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import fake_training
import pytest
from small_runs import Run, main_without_pictures, wait_for

import train_accelerate
from mtmm_training.commands.cli import main
from mtmm_training.studies.protocol import Plan, make_plan, run_plans, uses_cache
from mtmm_training.training.config import TrainConfig


@pytest.fixture
def corpus(embedded: Path) -> Path:
    return embedded


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment's folder; folds of `run_plans` are trained by fake_training.py."""
    monkeypatch.setattr(train_accelerate, "main", fake_training.main)
    monkeypatch.delenv("OMP_NUM_THREADS")
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def plan(out: Path, corpus: Path, folds: list[int] | None = None, **flags: Any) -> Plan:
    given = {"protocol": "session", "cache_dir": "off"} | flags
    manifest = [str(corpus / "corpus" / "manifest.csv")]
    return make_plan(out, TrainConfig(manifest=manifest, **given), folds)


def calls(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


def test_finished_folds_are_never_run_again(fake: Path, corpus: Path) -> None:
    run_plans([plan(fake, corpus, folds=[1, 3])], jobs=1)
    assert [call["fold"] for call in calls(fake)] == [1, 3]
    run_plans([plan(fake, corpus)], jobs=1)
    assert [call["fold"] for call in calls(fake)] == [1, 3, 0, 2, 4]
    folds = json.loads((fake / "folds.json").read_text())["folds"]
    assert len(folds) == 5 and folds[0]["name"] == "Ses01"
    assert {path.name for path in fake.glob("fold-*")} == {f"fold-{i:02d}" for i in range(5)}


def test_failed_fold_gives_its_own_message(fake: Path, corpus: Path) -> None:
    (fake / "fail").touch()
    (fake / "hang").touch()
    run_plans([plan(fake, corpus, folds=[2])], jobs=1)
    message = r"fold 1 of 5 \(Ses02\) .*no such encoder\nneither here"
    with pytest.raises(RuntimeError, match=message) as refused:
        run_plans([plan(fake, corpus)], jobs=2)
    log = fake / "fold-01" / "log.txt"
    assert str(log) in str(refused.value) and "some warning" in log.read_text()
    assert (fake / "fold-02" / "results.json").exists()  # the others' results stay
    assert sorted(call["fold"] for call in calls(fake)) == [0, 1, 2]  # and no more was begun

    for name in ("fail", "hang"):
        (fake / name).unlink()
    run_plans([plan(fake, corpus)], jobs=1)
    resumed = {call["fold"]: call["flags"].get("--resume") for call in calls(fake)[3:]}
    # Fold 0 ran beside the one that failed, and was asked to stop: it goes on from a checkpoint.
    assert resumed == {0: "True", 1: None, 3: None, 4: None}


def test_jobs_share_the_cores(fake: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    run_plans([plan(fake, corpus)], jobs=3)
    assert {call["threads"] for call in calls(fake)} == {2}


def test_cache_is_filled_before_folds_run_at_once(fake: Path, corpus: Path) -> None:
    run_plans([plan(fake, corpus, cache_dir=str(fake / "c"))], jobs=2)
    first, *others = calls(fake)
    assert first["flags"]["--encode_only"] == "True"
    assert all("--encode_only" not in call["flags"] for call in others)


@pytest.mark.parametrize(
    ("flags", "cached"),
    [
        ({}, True),
        ({"cache_dir": "off"}, False),
        ({"lora_rank": 4}, False),
        ({"unfreeze_text_layers": 1}, False),
        ({"model_config": '{"freeze_audio_encoder": false}'}, False),
        ({"model_config": '{"freeze_audio_encoder": false}', "modalities": ["text"]}, True),
    ],
)
def test_cache_is_for_frozen_encoders(flags: dict[str, Any], cached: bool) -> None:
    assert uses_cache(TrainConfig(manifest=["x.csv"], **flags)) == cached


def test_recordings_are_read_once_for_all_folds(corpus: Path, tmp_path: Path) -> None:
    made = plan(tmp_path / "out", corpus, cache_dir=None)
    known = (tmp_path / "out" / "cache" / "recordings.jsonl").read_text().split()
    paths = [word for word in known if ".wav" in word]
    assert len(paths) == len(set(paths)) == len(made.utterances)


def test_share_takes_every_nth_fold(corpus: Path) -> None:
    whole = plan(Path("unused"), corpus)
    assert [whole.of_share((i, 2)).chosen for i in range(2)] == [[0, 2, 4], [1, 3]]


def test_changed_flags_and_folds_are_refused_by_name(fake: Path, corpus: Path) -> None:
    run_plans([plan(fake, corpus, folds=[0])], jobs=1)
    run_plans([plan(fake, corpus, folds=[0], workers=0, checkpoint_steps=5)], jobs=2)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.0003, now is 0\.5"):
        run_plans([plan(fake, corpus, learning_rate=0.5)], jobs=1)
    manifest = corpus / "corpus" / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    try:
        manifest.write_text("".join(lines[:-1]))  # one utterance fewer, of the last session
        with pytest.raises(ValueError, match=r"begun with other settings: .*folds\.0\.train"):
            run_plans([plan(fake, corpus)], jobs=1)
        manifest.write_text("".join(lines).replace(",angry,", ",sad,"))
        with pytest.raises(ValueError, match="begun with other settings: data was"):
            run_plans([plan(fake, corpus)], jobs=1)
    finally:
        manifest.write_text("".join(lines))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"folds": [5]}, "5"),
        ({"epochs": 0}, "epochs"),
        ({"select_by": "CCC_dominance"}, "CCC_dominance"),
        ({"select_by": "UAR", "model_config": '{"emotion_loss_weight": 0}'}, "UAR"),
    ],
)
def test_plan_refuses_what_a_fold_would(corpus: Path, flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        plan(Path("unused"), corpus, **flags)


# ---- in earnest --------------------------------------------------------------------------------

MODEL_CONFIG = {
    "freeze_audio_encoder": False,
    "freeze_text_encoder": False,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_bridge_tokens": 4,
}


def test_stopped_run_goes_on_and_ends_in_tables(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", "run", "--out", str(out)]
    command += ["--folds", "0", "4", "--manifest", str(corpus / "corpus" / "manifest.csv")]
    command += ["--protocol", "session", "--audio_encoder", str(corpus / "encoders" / "audio")]
    command += ["--text_encoder", str(corpus / "encoders" / "text"), "--tracker", "none"]
    command += ["--model_config", json.dumps(MODEL_CONFIG), "--epochs", "2", "--batch_size", "6"]
    command += ["--checkpoint_steps", "2", "--learning_rate", "1e-3", "--workers", "0"]
    process = Run(main, command)
    wait_for(out / "fold-00" / "checkpoints" / "step-000000002", process)
    process.send(signal.SIGTERM)
    process.output()
    assert process.exitcode != 0 and not (out / "summary.json").exists()
    unfinished = not (out / "fold-00" / "results.json").exists()

    monkeypatch.setattr(train_accelerate, "main", main_without_pictures)
    assert main([*command, "--jobs", "2"]) == 0
    output = capsys.readouterr().out
    if unfinished:
        assert "resumed from" in (out / "fold-00" / "log.txt").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["folds"] == {"0": "Ses01", "4": "Ses05"}
    assert summary["missing_folds"] == [1, 2, 3] and "folds 1, 2, 3" in output
    for fold in ("0", "4"):  # scores from predictions.csv are those that the run itself saw
        results = json.loads((out / f"fold-0{fold}" / "results.json").read_text())
        found = {name: summary["metrics"][name]["by_fold"][fold] for name in summary["metrics"]}
        for name in ("UAR", "WAR", "macro_F1", "weighted_F1", "ECE"):
            assert found[name] == pytest.approx(results["test"][name], abs=1e-4)
        before = results["test_ECE_before_temperature"]
        assert found["ECE_before_temperature"] == pytest.approx(before, abs=1e-4)
        assert found["CCC_valence"] == pytest.approx(results["test"]["CCC"]["valence"], abs=1e-4)
    # These encoders train: of the recordings only what they are is kept, no states.
    assert not any(path.is_dir() for path in (out / "cache").iterdir())
