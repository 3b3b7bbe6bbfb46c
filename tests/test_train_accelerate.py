"""Whole runs of the training script, in processes of their own, on a few generated utterances.

Run alone: python -m pytest tests/test_train_accelerate.py
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtmm_training.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.utterances import read_manifest, write_manifest
from train_accelerate import main

ROOT = Path(__file__).parents[1]
MODEL_CONFIG = {
    "freeze_audio_encoder": False,
    "freeze_text_encoder": False,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_bridge_tokens": 4,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_corpus(folder / "corpus", utterances=50)
    write_encoders(folder / "encoders")
    return folder


def command(work: Path, out: str, *flags: str, **model_config: object) -> list[str]:
    fields = json.dumps(MODEL_CONFIG | model_config)
    return [
        str(ROOT / "train_accelerate.py"),
        *("--manifest", str(work / "corpus" / "manifest.csv"), "--out", str(work / out)),
        *("--audio_encoder", str(work / "encoders" / "audio")),
        *("--text_encoder", str(work / "encoders" / "text"), "--model_config", fields),
        *("--protocol", "session", "--fold", "4", "--epochs", "2", "--batch_size", "6"),
        *("--learning_rate", "1e-3", "--encoder_learning_rate", "1e-3", "--tracker", "none"),
        *flags,
    ]


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(arguments: list[str], expect: int = 0, **environment: str) -> str:
    process = start(arguments, **environment)
    output = process.communicate()[0]
    assert process.returncode == expect, output
    return output


@pytest.fixture(scope="module")
def finished(work: Path) -> Path:
    run(command(work, "finished", "--workers", "2", "--checkpoint_steps", "2"))
    return work / "finished"


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "model" / "model.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_run_leaves_everything_in_its_folder(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert len(results["epochs"]) == 2 and results["best_epoch"] in (1, 2)
    assert results["test"]["utterances"] == 10 and results["select_by"] == "mean"
    assert results["model_config"]["trained_outputs"] == ["emotion", "valence", "arousal"]
    speakers = [
        set(results["splits"][name]["speakers"]) for name in ("train", "validation", "test")
    ]
    assert not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])
    for name in ("curves", "confusion", "valence_arousal"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 5000
    rows = (finished / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 10 + 10 and rows[0].startswith(
        "id,split,speaker,emotion_label,emotion,"
    )
    assert not (finished / "checkpoints").exists()


def test_predictions_come_again_from_the_saved_model(finished: Path, work: Path) -> None:
    import csv

    from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor

    model = MTMMModel.from_pretrained(finished / "model")
    pipe = MTMMPipeline(model=model, processor=MTMMProcessor.from_pretrained(finished / "model"))
    utterances = {u.utterance_id: u for u in read_manifest(work / "corpus" / "manifest.csv")}
    with open(finished / "predictions.csv", newline="") as file:
        for row in list(csv.DictReader(file))[:4]:
            utterance = utterances[row["id"]]
            output = pipe({"audio": utterance.audio, "text": utterance.text})
            assert output["emotion"] == row["emotion"]
            assert output["valence"] == pytest.approx(float(row["valence"]), abs=1e-5)
            assert output["scores"]["sad"] == pytest.approx(float(row["p_sad"]), abs=1e-5)


def test_killed_run_ends_with_the_weights_of_one_never_killed(work: Path, finished: Path) -> None:
    flags = ("--workers", "2", "--checkpoint_steps", "2")
    process = start(command(work, "killed", *flags))
    wait_for(work / "killed" / "checkpoints" / "step-000000004", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (work / "killed" / "results.json").exists()
    output = run(command(work, "killed", *flags, "--resume", "True"))
    assert "resumed from" in output
    assert largest_difference(finished, work / "killed") == 0.0
    kept, again = (
        json.loads((work / name / "results.json").read_text()) for name in ("finished", "killed")
    )
    assert kept["epochs"] == again["epochs"] and kept["test"] == again["test"]


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def test_stopped_run_writes_a_checkpoint_and_says_how_to_go_on(work: Path) -> None:
    flags = ("--epochs", "50", "--checkpoint_steps", "1")
    process = start(command(work, "stopped", *flags))
    wait_for(work / "stopped" / "checkpoints" / "step-000000001", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 1
    assert "SIGTERM: stopped after step" in output and "--resume" in output
    refused = run(command(work, "stopped", *flags), expect=1)
    assert "holds an unfinished run" in refused
    changed = (*flags, "--resume", "True", "--learning_rate", "0.5")
    refused = run(command(work, "stopped", *changed), expect=1)
    assert "learning_rate was 0.001, now is 0.5" in refused


def test_two_processes_train_as_one(work: Path) -> None:
    """The same global batch, dropout 0, modality masking on, the default learning rate."""
    no_dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0}
    for part in ("audio", "text"):
        config = json.loads((work / "encoders" / part / "config.json").read_text())
        assert part == "text" or config["dropout"] == 0.0
    frozen = {"freeze_audio_encoder": True, "freeze_text_encoder": True}
    flags = ("--epochs", "2", "--learning_rate", "3e-4")
    alone = command(work, "alone", *flags, "--batch_size", "6", **no_dropout, **frozen)
    run(alone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pair = command(work, "pair", *flags, "--batch_size", "3", **no_dropout, **frozen)
    processes = [
        start(
            pair,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert largest_difference(work / "alone", work / "pair") <= 1e-5
    one, two = (json.loads((work / n / "results.json").read_text()) for n in ("alone", "pair"))
    assert two["processes"] == 2
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-5)


def test_partial_labels_and_modalities_train_and_are_named(work: Path) -> None:
    import dataclasses

    utterances = [
        dataclasses.replace(
            utterance,
            emotion=utterance.emotion if number % 2 else None,
            arousal=None,
            valence=utterance.valence if number % 3 else None,
            audio=utterance.audio if number % 5 else None,
            text=utterance.text if number % 5 != 1 else None,
        )
        for number, utterance in enumerate(read_manifest(work / "corpus" / "manifest.csv"))
    ]
    write_manifest(utterances, work / "partial.jsonl")
    output = run(
        command(work, "partial", "--manifest", str(work / "partial.jsonl"), "--accumulation", "2")
    )
    assert "no labels, so not trained: arousal" in output
    results = json.loads((work / "partial" / "results.json").read_text())
    assert results["model_config"]["trained_outputs"] == ["emotion", "valence"]
    assert results["test"]["CCC"]["arousal"] is None
    assert "arousal" not in (work / "partial" / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fold", "9"), "`--fold 9` does not exist: there are 5"),
        (("--epochs", "0"), "`--epochs` is 0; it must be a whole number of at least 1"),
        (("--test_speakers", "Ses01F"), "given together with --test_speakers"),
        (
            ("--emotions", "angry", "sad"),
            r"emotions that the model would not predict: happy \(\d+\), neutral",
        ),
        (("--dimensions", "valance"), "valance"),
        (("--select_by", "UAP"), "`select_by='UAP'` is not a selection metric"),
        (("--corpus", "iemocap", "--corpus_dir", "x"), "`--manifest`"),
        (("--model_config", "[]"), "a JSON object"),
        (("--model_config", '{"bridge_wiring": "both"}'), "must be one of 'crossed', 'direct'"),
        (("--model_config", '{"dimension_range": [1, 7]}'), "without dimension_range"),
        (("--out", "finished"), "holds a finished run"),
    ],
)
def test_wrong_flags_are_refused_before_training(
    work: Path, finished: Path, flags: tuple, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    with pytest.raises(ValueError, match=message):
        main([*command(work, "refused")[1:], *flags])


def test_refusal_is_one_sentence_and_a_nonzero_exit(work: Path) -> None:
    output = run([*command(work, "refused"), "--epochs", "0"], expect=1)
    assert output.strip().splitlines()[-1].startswith("error: `--epochs` is 0")
