"""Whole runs of the training script, in processes of their own, on a few generated utterances.

Run alone: python -m pytest tests/test_train_accelerate.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate.utils import DistributedType
from conftest import two_processes
from safetensors.torch import load_file

from configuration_mtmm import MTMMConfig
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.folds import save_folds
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance
from mtmm_training.training.checkpoints import StopSignal
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import check_augmentation, check_device, check_launch
from mtmm_training.training.model import planned
from mtmm_training.training.prepare import (
    check_fold,
    check_scale,
    choose_fold,
    folds_of,
    read_utterances,
    speakers_behind,
    trained_outputs,
)
from processing_mtmm import MTMMProcessor
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


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
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


# All that is drawn at random: dropout, modality masking, variants of recordings made in workers.
RANDOM = (
    *("--workers", "2", "--checkpoint_steps", "2"),
    *("--augment", "speed", "noise", "lowpass", "--augment_variants", "2"),
)


@pytest.fixture(scope="module")
def finished(work: Path) -> Path:
    run(command(work, "finished", *RANDOM))
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


def test_last_epoch_is_kept_where_nothing_is_chosen(work: Path) -> None:
    run(command(work, "last", "--epochs", "4", "--select_by", "last"))
    results = json.loads((work / "last" / "results.json").read_text())
    assert results["best_epoch"] == len(results["epochs"]) == 4
    assert (
        results["test"]["utterances"] == 10 and (work / "last" / "figures" / "curves.png").is_file()
    )


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
    process = start(command(work, "killed", *RANDOM))
    wait_for(work / "killed" / "checkpoints" / "step-000000004", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (work / "killed" / "results.json").exists()
    output = run(command(work, "killed", *RANDOM, "--resume", "True"))
    assert "resumed from" in output
    assert largest_difference(finished, work / "killed") == 0.0
    kept, again = (
        json.loads((work / name / "results.json").read_text()) for name in ("finished", "killed")
    )
    assert kept["epochs"] == again["epochs"] and kept["test"] == again["test"]


def wait_for(checkpoint: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Until it is there, or a later one: few are kept, so it may be gone before it is seen."""
    deadline = time.monotonic() + seconds
    while not any(found.name >= checkpoint.name for found in checkpoint.parent.glob("step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{checkpoint} did not come"
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


def test_full_disk_stops_with_the_last_checkpoint_intact(work: Path) -> None:
    """A limit on the size of files, set on the running process, is to it as a full disk."""
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit another process")
    flags = ("--epochs", "50", "--checkpoint_steps", "1")
    process = start(command(work, "full", *flags))
    folder = work / "full" / "checkpoints"
    wait_for(folder / "step-000000001", process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    output = process.communicate()[0]
    last = output.strip().splitlines()[-1]
    assert process.returncode == 1 and last.startswith("error: "), output
    assert "could not be written" in last and "run the same command with --resume" in last
    newest = max(folder.glob("step-*"))
    process = start(command(work, "full", *flags, "--resume", "True"))
    wait_for(folder / f"step-{int(newest.name.split('-')[1]) + 1:09d}", process)
    process.kill()
    assert f"resumed from {newest}" in process.communicate()[0]


# ---- from the cache, of two corpora ----------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(work: Path) -> list[str]:
    """Flags of a run on speech with emotions and text with dimensions, with all that is random."""
    import dataclasses

    speech, text = [], []
    absent: dict[str, Any]
    for number, utterance in enumerate(read_manifest(work / "corpus" / "manifest.csv")):
        split = {"Ses01": "test", "Ses02": "validation"}.get(str(utterance.session_id), "train")
        if number % 3:
            absent = {"valence": None, "arousal": None, "corpus": "speech"}
            speech.append(dataclasses.replace(utterance, split=split, **absent))
        else:
            absent = {"audio": None, "emotion": None, "corpus": "text"}
            absent |= {"speaker_id": f"{split} writers"}
            text.append(dataclasses.replace(utterance, split=split, **absent))
    write_manifest(speech, work / "speech.csv")
    write_manifest(text, work / "text.csv")
    frozen = {"freeze_audio_encoder": True, "freeze_text_encoder": True}
    flags = command(work, "mixed", *RANDOM, **frozen)[1:]
    flags += ["--manifest", str(work / "speech.csv"), str(work / "text.csv")]
    flags += ["--protocol", "official", "--fold", "0", "--corpus_exponent", "0.5"]
    return [
        *flags,
        "--epochs",
        "3",
        "--mask_frames",
        "0.2",
        "--cache_dir",
        str(work / "mixed-cache"),
    ]


@pytest.fixture(scope="module")
def encoded(mixed: list[str]) -> str:
    """What filling the cache beforehand prints."""
    return run([str(ROOT / "train_accelerate.py"), *mixed, "--encode_only", "True"])


def test_encoding_only_fills_the_cache_and_trains_nothing(
    work: Path, mixed: list[str], encoded: str
) -> None:
    # Recordings of the training split have two variants each; text alone has none.
    recordings = {split: 0 for split in ("train", "validation", "test")}
    for utterance in read_manifest(work / "speech.csv"):
        recordings[str(utterance.split)] += 1
    audio = sum(recordings.values()) + 2 * recordings["train"]
    assert f": {audio} audio inputs, {audio} encoded now" in encoded
    assert "cache in float16: emotion logits differ" in encoded and "fold" not in encoded
    assert not (work / "mixed").exists()
    with pytest.raises(ValueError, match="`--encode_only` is True; it must be False without"):
        main([*mixed, "--encode_only", "True", "--cache_dir", "off"])


def test_stopped_cached_run_of_two_corpora_goes_on_exactly(
    work: Path,
    mixed: list[str],
    encoded: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(mixed)
    printed = capsys.readouterr().out
    assert " audio inputs, 0 encoded now" in printed and " text inputs, 0 encoded now" in printed
    steps = iter([False] * 6)
    monkeypatch.setattr(StopSignal, "requested", lambda *_: next(steps, True))
    again = [*mixed, "--out", str(work / "mixed-stopped")]
    with pytest.raises(SystemExit, match="stopped after step 7"):
        main(again)
    monkeypatch.undo()
    main([*again, "--resume", "True"])
    assert largest_difference(work / "mixed", work / "mixed-stopped") == 0.0
    one, two = (
        json.loads((work / name / "results.json").read_text())
        for name in ("mixed", "mixed-stopped")
    )
    assert one["epochs"] == two["epochs"] and one["test"] == two["test"]


def test_results_tell_corpora_apart(work: Path, mixed: list[str]) -> None:
    if not (work / "mixed" / "results.json").exists():
        main(mixed)
    results = json.loads((work / "mixed" / "results.json").read_text())
    for name, split in results["splits"].items():
        assert sum(split["corpora"].values()) == split["utterances"], name
        assert split["with_audio"] == split["corpora"]["speech"]
    parts = results["by_corpus"]
    assert {name: part["utterances"] for name, part in parts.items()} == (
        results["splits"]["test"]["corpora"]
    )
    assert parts["text"]["UAR"] is None and parts["speech"]["CCC"]["valence"] is None
    assert parts["speech"]["UAR"] == results["test"]["UAR"]
    assert parts["text"]["CCC"] == results["test"]["CCC"]
    rows = (work / "mixed" / "predictions.csv").read_text()
    assert "speech/" in rows and "text/" in rows


# ---- what is trained -------------------------------------------------------------------------


def test_outputs_without_weight_are_not_trained() -> None:
    utterances = [
        Utterance(utterance_id="a", corpus="c", speaker_id="s", text="x", emotion="sad"),
        Utterance(utterance_id="b", corpus="c", speaker_id="s", text="x", arousal=2.0),
    ]
    config = MTMMConfig.tiny()
    assert trained_outputs(config, utterances) == ("emotion", "arousal")
    config.emotion_loss_weight = 0.0
    assert trained_outputs(config, utterances) == ("arousal",)
    config.dimension_loss_weights = (0.5, 0.0)
    with pytest.raises(ValueError, match="no label that counts in the loss.* are 0.0, 0.5, 0.0"):
        trained_outputs(config, utterances)


def test_output_without_weight_is_left_out_everywhere(work: Path) -> None:
    frozen = {"freeze_audio_encoder": True, "freeze_text_encoder": True}
    flags = command(work, "dimensions", emotion_loss_weight=0, **frozen)[1:]
    with pytest.raises(ValueError, match="`select_by='UAR'` has no value"):
        main([*flags, "--select_by", "UAR"])
    main(flags)
    results = json.loads((work / "dimensions" / "results.json").read_text())
    assert results["model_config"]["trained_outputs"] == ["valence", "arousal"]
    assert results["test"]["UAR"] is None and results["temperature"] == 1.0
    for epoch in results["epochs"]:
        cccs = list(epoch["validation"]["CCC"].values())
        assert epoch["score"] == pytest.approx(sum(cccs) / 2)
    assert "emotion" not in (work / "dimensions" / "predictions.csv").read_text()


def test_gain_that_the_extractor_undoes_is_refused(tiny_processor: MTMMProcessor) -> None:
    with pytest.raises(ValueError, match="gain would change nothing. Leave gain out"):
        check_augmentation(TrainConfig(augment=["speed", "gain"]), tiny_processor)
    check_augmentation(TrainConfig(augment=["speed"]), tiny_processor)


def test_folds_are_those_that_a_fold_is_chosen_from(work: Path) -> None:
    manifest = [str(work / "corpus" / "manifest.csv")]
    config = TrainConfig(manifest=manifest, protocol="session", fold=3)
    utterances = read_manifest(manifest[0])
    folds = folds_of(config, utterances)
    assert [fold.name for fold in folds] == [f"Ses0{n}" for n in range(1, 6)]
    assert choose_fold(config, utterances) == folds[3]
    named = TrainConfig(validation_speakers=["Ses01F"], test_speakers=["Ses02M"])
    assert [fold.name for fold in folds_of(named, utterances)] == ["Ses02M"]


def test_folds_of_scripts_and_of_improvised_utterances(tmp_path: Path) -> None:
    utterances = [
        Utterance(
            utterance_id=f"{speaker}{n}",
            corpus="c",
            text="Yes!" if n == 3 else f"{speaker} {n}",
            speaker_id=speaker,
            improvised=n > 0,
        )
        for speaker in "abcd"
        for n in range(4)
    ]

    def sizes(**flags: Any) -> list[int]:
        config = TrainConfig(protocol="leave_one_speaker_out", **flags)
        fold = choose_fold(config, utterances)
        return [len(split) for split in (fold.train, fold.validation, fold.test)]

    assert sizes() == [4, 8, 4]
    assert sizes(improvised_only=True) == [3, 6, 3]
    assert sizes(script_disjoint=True) == [3, 6, 4]
    assert sizes(script_disjoint=True, improvised_only=True) == [2, 4, 3]
    save_folds(folds_of(TrainConfig(protocol="leave_one_speaker_out"), utterances), tmp_path / "f")
    with pytest.raises(ValueError, match="Script 'yes' is in both train and"):
        sizes(folds_file=str(tmp_path / "f"), script_disjoint=True)


def test_script_disjoint_folds_are_those_of_the_corpus_whatever_the_model_sees(
    tmp_path: Path,
) -> None:
    lines = ["id,audio,text,speaker,emotion"]
    for number in range(12):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 800), 16000)
        lines.append(f"u{number},{path.name},words {number % 10},s{number // 3},sad")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    folds = []
    for modalities in (["audio", "text"], ["audio"]):
        config = TrainConfig(
            manifest=[str(tmp_path / "m.csv")],
            protocol="leave_one_speaker_out",
            script_disjoint=True,
            modalities=modalities,
        ).resolve()
        utterances = read_utterances(config)
        assert all((u.text is None) == (modalities == ["audio"]) for u in utterances)
        folds.append(folds_of(config, utterances))
    assert folds[0] == folds[1]


def test_corpus_on_another_scale_than_the_model_is_refused(tmp_path: Path) -> None:
    MTMMConfig.tiny().save_pretrained(tmp_path)
    flags: dict[str, Any] = {"corpus": "msp_podcast", "corpus_dir": "x"}
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"model": str(tmp_path)}, "Begin with encoders, or convert"),
        ({"dimension_range": [1.0, 5.0]}, "Give --dimension_range 1 7"),
    ]
    for wrong, remedy in wrongs:
        config = TrainConfig(**flags, **wrong).resolve()
        message = f"msp_podcast are rated from 1 to 7, the model's go from 1 to 5. {remedy}"
        with pytest.raises(ValueError, match=message):
            check_scale(config, ("emotion", "valence"))
        check_scale(config, ("emotion",))
    check_scale(TrainConfig(**flags).resolve(), ("valence",))


def test_model_is_not_tested_on_who_trained_it(work: Path, finished: Path, tmp_path: Path) -> None:
    model = str(finished / "model")
    splits = json.loads((finished / "results.json").read_text())["splits"]
    utterances = read_manifest(work / "corpus" / "manifest.csv")
    spoken = {
        split: [u for u in utterances if u.speaker_id in splits[split]["speakers"]]
        for split in splits
    }
    later = tmp_path / "later"  # a run that went on from it, on other speakers
    later.mkdir()
    others = {"splits": dict.fromkeys(splits, {"speakers": ["x"]}), "config": {"model": model}}
    (later / "results.json").write_text(json.dumps(others))
    shutil.copytree(finished / "model", later / "model")
    for last in (model, str(later / "model")):
        config = TrainConfig(model=last).resolve()
        known = planned(config)
        check_fold(config, known, spoken)
        for seen in ("train", "validation"):
            speaker = splits[seen]["speakers"][0]
            message = f"trained or selected on .*{speaker}.* of the test"
            with pytest.raises(ValueError, match=message):
                check_fold(config, known, spoken | {"test": spoken[seen]})
    (later / "results.json").write_text('{"splits": ["of", "another", "program"]}')
    assert speakers_behind(str(later / "model")) == set()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"emotions": ["sad", "happy", "neutral", "angry"]}, "`--emotions` is .*, which predicts"),
        ({"dimensions": ["valence"]}, r"`--dimensions` is \['valence'\]; it must be left out"),
        ({"dimension_range": [1.0, 7.0]}, "`--dimension_range` is .*, and valence, arousal from 1"),
    ],
)
def test_model_keeps_its_outputs(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    MTMMConfig.tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        TrainConfig(model=str(tmp_path), **flags).resolve()
    own: dict[str, Any] = {
        "emotions": ["angry", "happy", "sad", "neutral"],
        "dimensions": ["arousal", "valence"],
    }
    assert TrainConfig(model=str(tmp_path), **own).resolve().dimensions == ["valence", "arousal"]


def test_precision_of_the_launcher_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="launcher says mixed precision bf16, .* is 'no'"):
        check_device(TrainConfig())
    check_device(TrainConfig(mixed_precision="bf16"))


def test_split_smaller_than_the_launch_is_refused_before_training() -> None:
    counts = {
        name: {"utterances": n, "with_audio": 0, "with_text": n, "dimensions": {}}
        for name, n in (("train", 9), ("validation", 2), ("test", 1))
    }
    processes = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU)
    with pytest.raises(ValueError, match="The test split has 1 utterances, which cannot be dealt"):
        check_launch(TrainConfig(), processes, counts)


def test_data_without_labels_can_be_encoded(work: Path, tmp_path: Path) -> None:
    utterances = read_manifest(work / "corpus" / "manifest.csv")[:30:3]
    bare = [replace(u, emotion=None, valence=None, arousal=None) for u in utterances]
    write_manifest(bare, tmp_path / "bare.csv")
    frozen = json.dumps(MODEL_CONFIG | {"freeze_audio_encoder": True, "freeze_text_encoder": True})
    flags = ["--manifest", str(tmp_path / "bare.csv"), "--encode_only", "True"]
    flags += ["--protocol", "grouped", "--k", "3", "--cache_dir", str(tmp_path / "cache")]
    main([*command(work, "encoded")[1:], *flags, "--model_config", frozen])
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_two_processes_train_as_one(work: Path) -> None:
    """The same global batch, dropout 0, masking and variants on, the default learning rate."""
    no_dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0}
    for part in ("audio", "text"):
        config = json.loads((work / "encoders" / part / "config.json").read_text())
        assert part == "text" or config["dropout"] == 0.0
    frozen = {"freeze_audio_encoder": True, "freeze_text_encoder": True}
    flags = (
        "--epochs",
        "2",
        "--learning_rate",
        "3e-4",
        "--augment",
        "speed",
        "--mask_frames",
        ".2",
    )
    alone = command(work, "alone", *flags, "--batch_size", "6", **no_dropout, **frozen)
    run(alone)
    pair = command(work, "pair", *flags, "--batch_size", "3", **no_dropout, **frozen)
    processes = [start(pair, **environment) for environment in two_processes()]
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
    assert "not trained (no labels, or weight 0 in the loss): arousal" in output
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
        (("--select_by", "last", "--patience", "2"), "must be left out with --select_by last"),
        (("--corpus", "iemocap", "--corpus_dir", "x"), "`--manifest`"),
        (("--model_config", "[]"), "a JSON object"),
        (("--model_config", '{"bridge_wiring": "both"}'), "must be one of 'crossed', 'direct'"),
        (("--model_config", '{"dimension_range": [1, 7]}'), "without dimension_range"),
        (("--augment", "speed", "--modalities", "text"), r"`--augment` is \['speed'\]; it must be"),
        (("--augment_variants", "0"), "a whole number of at least 1"),
        (("--mask_frames", "1.5"), "from 0 to 1"),
        (("--mask_frames", "0.1"), "there is no cache: it is off, or an encoder trains"),
        (("--corpus_exponent", "2"), "from 0 to 1"),
        (
            ("--script_disjoint", "True", "--validation_speakers", "a", "--test_speakers", "b"),
            "`--script_disjoint` is True; it must be False with --test_speakers",
        ),
        (
            ("--improvised_only", "True", "--folds_file", "folds.json"),
            "`--improvised_only` is True; it must be False with .* --folds_file",
        ),
        (
            ("--folds_file", "f.json", "--validation_speakers", "a", "--test_speakers", "b"),
            "`--folds_file` is 'f.json'; it must be left out with --test_speakers",
        ),
        (("--k", "3", "--folds_file", "f.json"), "`--k` is 3; it must be left out with"),
        (("--corpus_dir", "x"), "`--corpus_dir` is 'x'; it must be given with --corpus, and only"),
        (("--clip_norm", "inf"), "`--clip_norm` is inf; it must be a finite number above 0"),
        (("--learning_rate", "inf"), "`--learning_rate` is inf; it must be a finite number"),
        (("--weight_decay", "-1"), "`--weight_decay` is -1.0; it must be a finite number from 0"),
        (("--weight_decay", "nan"), "`--weight_decay` is nan; it must be a finite number from 0"),
        (("--seed", "-1"), "`--seed` is -1; it must be a whole number from 0"),
        (("--rmm_start", "0.05"), "`--rmm_start` is 0.05; it must be 0 or from 0.1 on"),
        (
            ("--corpus_exponent", "0.5", "--class_weights", "balanced"),
            "`--corpus_exponent` is 0.5; it must be 1 with --class_weights",
        ),
        (("--model", "out/run/none/"), "`--model` is 'out/run/none/'; it must be a folder that"),
        (("--audio_encoder", "/nowhere"), "`--audio_encoder` is '/nowhere'; it must be a folder"),
        (
            ("--model", "finished/model"),
            "`--audio_encoder` is .*; it must be left out with --model",
        ),
        (("--cache_dir", "off", "--cache_dtype", "float32"), "left out with --cache_dir off"),
        (("--augment_variants", "9"), "`--augment_variants` is 9; it must be left out without"),
        (("--lora_dropout", "0.5"), "`--lora_dropout` is 0.5; it must be left out without"),
        (("--tracker", "wandb"), "`--tracker` is 'wandb', which is not installed"),
        (("--batch_size", "1"), "`--batch_size` is 1; it must be 2 or more where dimensions"),
        (("--out", "finished"), "holds a finished run"),
        (("--out", ""), "`--out` is ''; it must be the name of a folder"),
        (("--workers", "-1"), "`--workers` is -1; it must be a whole number from 0"),
        (
            ("--checkpoint_steps", "-1"),
            "`--checkpoint_steps` is -1; it must be a whole number from 0",
        ),
        (
            ("--patience", "0"),
            "`--patience` is 0; it must be a whole number of at least 1, or left",
        ),
        (
            ("--patience", "-1"),
            "`--patience` is -1; it must be a whole number of at least 1, or left",
        ),
        (("--frame_budget", "0"), "`--frame_budget` is 0; it must be .* at least 1, or left out"),
        (
            ("--emotions", ""),
            r"`--emotions` is \[''\]; it must be different names, none of them blank",
        ),
        (("--emotions", "sad", "angry", "sad"), "`--emotions` is .*; it must be different names"),
        (("--corpus_options", "[]"), r"`--corpus_options` is '\[\]'; it must be a JSON object"),
        (
            ("--corpus_options", "{a:1}"),
            r"`--corpus_options` .* JSON object in single quotes.*char 1",
        ),
        (("--corpus_options", '{"a": 1}'), "`--corpus_options` .* left out without --corpus"),
        (("--model_config", "{a:1}"), r"`--model_config` .* JSON object in single quotes.*char 1"),
        *(
            (
                ("--dimension_range", *limits.split()),
                "`--dimension_range` .* two finite numbers, the",
            )
            for limits in ("5", "1 5 9", "5 1", "1 1", "nan 5", "1 inf")
        ),
    ],
)
def test_wrong_flags_are_refused_before_training(
    work: Path,
    finished: Path,
    flags: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(work)
    with pytest.raises(ValueError, match=message):
        main([*command(work, "refused")[1:], *flags])


@pytest.mark.parametrize("option", ["name", "folder", "official_split"])
def test_options_that_are_flags_are_refused(option: str) -> None:
    options = json.dumps({option: "x"})
    config = TrainConfig(corpus="esd", corpus_dir="x", corpus_options=options)
    with pytest.raises(ValueError, match=f"`--corpus_options` .* without {option}: give --"):
        config.check()
    TrainConfig(corpus="esd", corpus_dir="x", corpus_options='{"labels": "all"}').check()


def test_refusal_is_one_sentence_and_a_nonzero_exit(work: Path) -> None:
    output = run([*command(work, "refused"), "--epochs", "0"], expect=1)
    assert output.strip().splitlines()[-1].startswith("error: `--epochs` is 0")
