"""Whole runs of training: what they leave, how they go on, what trains, and which are refused.

Run alone: python -m pytest tests/test_train_accelerate.py
"""

import csv
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import two_processes
from small_runs import (
    NO_DROPOUT,
    RANDOM,
    TRAINED,
    Run,
    assert_same_run,
    largest_difference,
    results_of,
    start,
    train,
    wait_for,
    words,
)

import train_accelerate
from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor
from mtmm_training.data.files import write_json
from mtmm_training.data.folds import Fold
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import SPLITS, Utterance
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import Stopped, StopSignal
from mtmm_training.training.model import planned
from mtmm_training.training.prepare import (
    check_fold,
    check_scale,
    read_data,
    speakers_behind,
    trained_outputs,
)

# ---- encoders that train, from raw inputs ------------------------------------------------------

RAW = (*RANDOM, "--workers", "1")  # variants are made in workers


@pytest.fixture(scope="session")
def finished(embedded: Path) -> Path:
    """A run as a user starts it."""
    out = embedded / "finished"
    Run(train_accelerate.main, words(embedded, out, *RAW, **TRAINED)).finish()
    return out


def test_run_leaves_everything_in_its_folder(finished: Path) -> None:
    results = results_of(finished)
    assert len(results["epochs"]) == 2 and results["best_epoch"] in (1, 2)
    assert results["test"]["utterances"] == 10 and results["select_by"] == "mean"
    assert results["model_config"]["trained_outputs"] == ["emotion", "valence", "arousal"]
    speakers = Counter(s for split in SPLITS for s in results["splits"][split]["speakers"])
    assert set(speakers.values()) == {1}, "no speaker is in two splits"
    known = results["unfamiliar"]
    assert known["stated"] == 0.05 and known["validation"] == {"audio": 0.0, "text": 0.0}
    assert results["model_config"]["calibrated_on"] == "votes" and results["test"]["votes"] == 10
    assert 0 < results["test"]["JSD_votes"] < 1 and results["listener_ceiling"]["UAR"] > 0.5
    for name in ("curves", "confusion", "valence_arousal"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 5000
    with open(finished / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 + 10 and {"emotion", "p_sad", "valence"} <= rows[0].keys()
    for name, share in known["test"].items():
        flags = [float(row[f"unfamiliar_{name}"]) for row in rows if row["split"] == "test"]
        assert sum(flags) / 10 == pytest.approx(share)
    assert not (finished / "checkpoints").exists()


def test_predictions_come_again_from_the_saved_model(finished: Path, embedded: Path) -> None:
    model = MTMMModel.from_pretrained(finished / "model")
    pipe = MTMMPipeline(model=model, processor=MTMMProcessor.from_pretrained(finished / "model"))
    utterances = {u.utterance_id: u for u in read_manifest(embedded / "corpus" / "manifest.csv")}
    with open(finished / "predictions.csv", newline="") as file:
        for row in list(csv.DictReader(file))[:4]:
            utterance = utterances[row["id"]]
            output = pipe({"audio": utterance.audio, "text": utterance.text})
            assert output["emotion"] == row["emotion"]
            assert output["valence"] == pytest.approx(float(row["valence"]), abs=1e-5)
            assert output["agreement"] == max(output["scores"].values())
            assert output["scores"]["sad"] == pytest.approx(float(row["p_sad"]), abs=1e-5)


def test_killed_run_ends_with_the_weights_of_one_never_killed(
    embedded: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = start(words(embedded, out, *RAW, **TRAINED))
    wait_for(out / "checkpoints" / "step-000000004", process)
    process.send(signal.SIGKILL)
    process.output()
    assert not (out / "results.json").exists()
    moved = out.rename(tmp_path / "moved")
    train(["--resume", str(moved)])  # all flags are those of the run
    assert_same_run(finished, moved)
    assert results_of(moved)["config"] == results_of(finished)["config"] | {
        "out": str(moved),
        "resume": True,
    }


def test_stopped_run_exits_with_130_and_refuses_other_settings(
    embedded: Path, tmp_path: Path
) -> None:
    flags = words(embedded, tmp_path / "out", "--epochs", "50", "--checkpoint_steps", "1")
    process = start(flags)
    wait_for(tmp_path / "out" / "checkpoints" / "step-000000001", process)
    process.send(signal.SIGTERM)
    output = process.finish(status=130)
    assert "SIGTERM: stopped after step" in output and "--resume" in output
    with pytest.raises(ValueError, match="unfinished run"):
        train(flags)
    with pytest.raises(ValueError, match=r"learning_rate was 0.001, now is 0.5"):
        train([*flags, "--resume", "True", "--learning_rate", "0.5"])


def test_full_disk_stops_with_the_last_checkpoint_intact(embedded: Path, tmp_path: Path) -> None:
    """A limit on the size of files, set on the running process, is to it as a full disk."""
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit another process")
    flags = words(embedded, tmp_path / "out", "--epochs", "50", "--checkpoint_steps", "1")
    process = start(flags)
    folder = tmp_path / "out" / "checkpoints"
    wait_for(folder / "step-000000001", process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    last = process.finish(status=1).strip().splitlines()[-1]
    assert last.startswith("error: ") and "could not be written" in last and "--resume" in last
    newest = max(folder.glob("step-*"))
    process = start([*flags, "--resume"])
    wait_for(folder / f"step-{int(newest.name.split('-')[1]) + 1:09d}", process)
    process.send(signal.SIGKILL)
    assert f"resumed from {newest}" in process.output()


# ---- frozen encoders, from the cache, of two corpora -------------------------------------------


@pytest.fixture(scope="session")
def mixed(embedded: Path) -> list[str]:
    """Flags of a run on speech with emotions and text with dimensions, with all that is random."""
    speech, text = [], []
    absent: dict[str, Any]
    for number, utterance in enumerate(read_manifest(embedded / "corpus" / "manifest.csv")):
        split = {"Ses01": "test", "Ses02": "validation"}.get(str(utterance.session_id), "train")
        if number % 3:
            absent = {"valence": None, "arousal": None, "corpus": "speech"}
            speech.append(replace(utterance, split=split, **absent))
        else:
            absent = {"audio": None, "emotion": None, "corpus": "text"}
            absent |= {"speaker_id": f"{split} writers"}
            text.append(replace(utterance, split=split, **absent))
    write_manifest(speech, embedded / "speech.csv")
    write_manifest(text, embedded / "text.csv")
    manifests = ("--manifest", str(embedded / "speech.csv"), str(embedded / "text.csv"))
    flags = words(embedded, embedded / "mixed", *RANDOM, *manifests)
    flags += ["--protocol", "official", "--fold", "0", "--corpus_exponent", "0.5", "--epochs", "3"]
    return [*flags, "--mask_frames", "0.2", "--cache_dir", str(embedded / "mixed-cache")]


@pytest.fixture(scope="session")
def mixed_run(mixed: list[str], embedded: Path) -> dict[str, Any]:
    """What filling the cache beforehand prints, and then the run."""
    encoded = start([*mixed, "--encode_only", "True"]).finish()
    assert not (embedded / "mixed").exists()
    return {"encoded": encoded, "printed": start(mixed).finish(), "out": embedded / "mixed"}


def test_encoding_only_fills_the_cache_and_trains_nothing(
    embedded: Path, mixed_run: dict[str, Any]
) -> None:
    # Recordings of the training split have two variants each; text alone has none.
    recordings = Counter(u.split for u in read_manifest(embedded / "speech.csv"))
    audio = sum(recordings.values()) + 2 * recordings["train"]
    assert f": {audio} audio inputs, {audio} encoded now" in mixed_run["encoded"]
    assert "fold" not in mixed_run["encoded"]
    assert " audio inputs, 0 encoded now" in mixed_run["printed"]


def test_stopped_cached_run_of_two_corpora_goes_on_exactly(
    tmp_path: Path, mixed: list[str], mixed_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter([False] * 6)
    monkeypatch.setattr(StopSignal, "requested", lambda *_: next(steps, True))
    again = [*mixed, "--out", str(tmp_path / "again")]
    with pytest.raises(Stopped, match="stopped after step 7"):
        train(again)
    monkeypatch.undo()
    train([*again, "--resume", "True"])
    assert_same_run(mixed_run["out"], tmp_path / "again")


def test_results_tell_corpora_apart(mixed_run: dict[str, Any]) -> None:
    results = results_of(mixed_run["out"])
    for name, split in results["splits"].items():
        assert sum(split["corpora"].values()) == split["utterances"], name
        assert split["with_audio"] == split["corpora"]["speech"]
    parts = results["by_corpus"]
    tested = results["splits"]["test"]["corpora"]
    assert {name: part["utterances"] for name, part in parts.items()} == tested
    assert parts["text"]["UAR"] is None and parts["speech"]["CCC"]["valence"] is None
    assert parts["speech"]["UAR"] == results["test"]["UAR"]
    assert parts["text"]["CCC"] == results["test"]["CCC"]
    rows = (mixed_run["out"] / "predictions.csv").read_text()
    assert "speech/" in rows and "text/" in rows


def test_last_epoch_is_kept_where_nothing_is_chosen(embedded: Path, tmp_path: Path) -> None:
    run = train(words(embedded, tmp_path / "last", "--epochs", "4", "--select_by", "last"))
    assert results_of(run)["best_epoch"] == len(results_of(run)["epochs"]) == 4


def test_two_processes_train_as_one(embedded: Path, tmp_path: Path) -> None:
    """The same global batch, dropout 0, masking and variants on, the default learning rate."""
    flags = ("--learning_rate", "3e-4", "--augment", "speed", "--mask_frames", ".2")
    alone = words(embedded, tmp_path / "alone", *flags, "--batch_size", "6", **NO_DROPOUT)
    train(alone)
    pair = words(embedded, tmp_path / "pair", *flags, "--batch_size", "3", **NO_DROPOUT)
    processes = [start(pair, **environment) for environment in two_processes()]
    for process in processes:
        process.finish()
    assert largest_difference(tmp_path / "alone", tmp_path / "pair") <= 1e-5
    one, two = results_of(tmp_path / "alone"), results_of(tmp_path / "pair")
    assert two["processes"] == 2
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-5)


def test_data_without_labels_can_be_encoded(embedded: Path, tmp_path: Path) -> None:
    utterances = read_manifest(embedded / "corpus" / "manifest.csv")[:30:3]
    bare = [replace(u, emotion=None, valence=None, arousal=None) for u in utterances]
    write_manifest(bare, tmp_path / "bare.csv")
    flags = ["--manifest", str(tmp_path / "bare.csv"), "--encode_only", "True"]
    flags += ["--protocol", "grouped", "--k", "3", "--cache_dir", str(tmp_path / "cache")]
    train(words(embedded, tmp_path / "out", *flags))
    assert list((tmp_path / "cache").rglob("*.safetensors"))


# ---- what is trained ---------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="0.0, .valence.: 0.5"):
        trained_outputs(config, utterances)


def test_output_without_weight_is_left_out_everywhere(embedded: Path, tmp_path: Path) -> None:
    flags = words(embedded, tmp_path / "out", emotion_loss_weight=0)
    with pytest.raises(ValueError, match="select_by"):
        train([*flags, "--select_by", "UAR"])
    results = results_of(train(flags))
    assert results["model_config"]["trained_outputs"] == ["valence", "arousal"]
    assert results["test"]["UAR"] is None and results["temperature"] == 1.0
    for epoch in results["epochs"]:
        cccs = list(epoch["validation"]["CCC"].values())
        assert epoch["score"] == pytest.approx(sum(cccs) / 2)
    assert "emotion" not in (tmp_path / "out" / "predictions.csv").read_text()


def test_partial_labels_and_modalities_train_and_are_named(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = [
        replace(
            utterance,
            emotion=utterance.emotion if number % 2 else None,
            arousal=None,
            valence=utterance.valence if number % 3 else None,
            audio=utterance.audio if number % 5 else None,
            text=utterance.text if number % 5 != 1 else None,
        )
        for number, utterance in enumerate(read_manifest(embedded / "corpus" / "manifest.csv"))
    ]
    write_manifest(utterances, tmp_path / "partial.csv")
    flags = ("--manifest", str(tmp_path / "partial.csv"), "--accumulation", "2")
    results = results_of(train(words(embedded, tmp_path / "out", *flags, **TRAINED)))
    (line,) = [n for n in capsys.readouterr().out.splitlines() if n.startswith("not trained")]
    assert line.endswith(": arousal")
    assert results["model_config"]["trained_outputs"] == ["emotion", "valence"]
    assert results["test"]["CCC"]["arousal"] is None
    assert "arousal" not in (tmp_path / "out" / "predictions.csv").read_text()


# ---- folds -------------------------------------------------------------------------------------


def test_folds_are_those_of_the_flags(embedded: Path) -> None:
    def names(**flags: Any) -> list[str]:
        manifest = [str(embedded / "corpus" / "manifest.csv")]
        config = TrainConfig(manifest=manifest, cache_dir="off", **flags).resolve()
        return [fold.name for fold in read_data(config).folds]

    assert names(protocol="session") == [f"Ses0{n}" for n in range(1, 6)]
    assert names(validation_speakers=["Ses01F"], test_speakers=["Ses02M"]) == ["Ses02M"]


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

    write_manifest(utterances, tmp_path / "m.csv")

    def folds_of(**flags: Any) -> list[Fold]:
        manifest = [str(tmp_path / "m.csv")]
        config = TrainConfig(manifest=manifest, protocol="leave_one_speaker_out", **flags)
        return read_data(config.resolve()).folds

    def sizes(**flags: Any) -> list[int]:
        fold = folds_of(**flags)[0]
        return [len(split) for split in (fold.train, fold.validation, fold.test)]

    assert sizes() == [4, 8, 4]
    assert sizes(improvised_only=True) == [3, 6, 3]
    assert sizes(script_disjoint=True) == [3, 6, 4]
    assert sizes(script_disjoint=True, improvised_only=True) == [2, 4, 3]
    write_json({"folds": [asdict(fold) for fold in folds_of()]}, tmp_path / "f")
    with pytest.raises(ValueError, match="'yes'"):
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
        data = read_data(config)
        assert all((u.text is None) == (modalities == ["audio"]) for u in data.utterances)
        folds.append(data.folds)
    assert folds[0] == folds[1]


# ---- what is refused before training -----------------------------------------------------------


def test_corpus_on_another_scale_than_the_model_is_refused(tmp_path: Path) -> None:
    MTMMConfig.tiny().save_pretrained(tmp_path)
    flags: dict[str, Any] = {"corpus": "msp_podcast", "corpus_dir": "x"}
    wrongs: list[dict[str, Any]] = [{"model": str(tmp_path)}, {"dimension_range": [1.0, 5.0]}]
    for wrong in wrongs:
        config = TrainConfig(**flags, **wrong).resolve()
        with pytest.raises(ValueError, match="rated in .1.0, 7.0."):
            check_scale(config, ("emotion", "valence"))
        check_scale(config, ("emotion",))
    check_scale(TrainConfig(**flags).resolve(), ("valence",))


def test_model_is_not_tested_on_who_trained_it(
    embedded: Path, finished: Path, tmp_path: Path
) -> None:
    model = str(finished / "model")
    splits = results_of(finished)["splits"]
    utterances = read_manifest(embedded / "corpus" / "manifest.csv")
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
            with pytest.raises(ValueError, match=splits[seen]["speakers"][0]):
                check_fold(config, known, spoken | {"test": spoken[seen]})
    (later / "results.json").write_text('{"splits": ["of", "another", "program"]}')
    assert speakers_behind(str(later / "model")) == set()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--emotions", "angry", "sad"), r"happy \(\d+\), neutral"),
        (("--fold", "9"), "`--fold 9`"),
        (("--select_by", "UAP"), "select_by.*UAP"),
        (("--model_config", '{"bridge_wiring": "both"}'), "bridge_wiring"),
        (("--mask_frames", "0.1", "--cache_dir", "off"), "`--mask_frames` is 0.1"),
        (("--tracker", "wandb"), "`--tracker` is 'wandb'"),
        (("--batch_size", "1"), "`--batch_size` is 1"),
        (("--out", "finished"), "finished run"),
    ],
)
def test_run_that_cannot_be_is_refused_before_training(
    embedded: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "results.json").touch()
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(ValueError, match=message):
            train(words(embedded, tmp_path / "refused", *flags))
    finally:
        os.chdir(before)


def test_refusal_is_one_sentence_and_a_nonzero_exit(embedded: Path, tmp_path: Path) -> None:
    output = start(words(embedded, tmp_path, "--epochs", "0")).finish(status=1)
    assert output.strip().splitlines()[-1].startswith("error: `--epochs` is 0")
