"""The settings of a run: their flags, their records, and which values are refused.

Run alone: python -m pytest tests/test_train_config.py
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configuration_mtmm import MTMMConfig
from mtmm_training.batches.augment import CHANGES
from mtmm_training.batches.masking import RMM_FLOOR
from mtmm_training.data.manifest import write_manifest
from mtmm_training.data.utterances import Utterance
from mtmm_training.studies.protocol import training_flags
from mtmm_training.training import config as settings
from mtmm_training.training.choice import protocol_of, settled
from mtmm_training.training.config import TrainConfig, documented, parse, parse_options


def test_every_field_has_a_flag_with_a_help_text() -> None:
    groups = documented()
    described = [name for helps in groups.values() for name in helps]
    assert described == [field.name for field in dataclasses.fields(TrainConfig)]
    assert all(len(text) > 10 for helps in groups.values() for text in helps.values())
    assert set(settings.CHOICES) | settings.ADVANCED <= set(described)


def test_names_and_limits_are_those_of_the_batches() -> None:
    assert settings.CHOICES["augment"] == tuple(CHANGES)
    assert settings.LOWEST_MASKING == RMM_FLOOR


def test_flags_are_read_without_torch() -> None:
    code = (
        "import sys; from mtmm_training.commands import train, encode; "
        "from mtmm_training.training.config import parse; parse(['--epochs', '3']).check; "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_flags_become_values_of_the_fields_types() -> None:
    flags = "--manifest a.csv b.csv --dimension_range 1 7 --k 3 --learning_rate 1e-4 --compile"
    config = parse([*flags.split(), "--gradient_checkpointing", "False"])
    assert config == TrainConfig(
        manifest=["a.csv", "b.csv"],
        dimension_range=[1.0, 7.0],
        k=3,
        learning_rate=1e-4,
        compile=True,
    )


@pytest.mark.parametrize("flags", [["--epoch", "3"], ["--augment", "loud"], ["--compile", "maybe"]])
def test_words_that_are_no_flags_are_wrong_usage(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(flags)
    assert left.value.code == 2


def test_flags_of_the_launcher_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert (parse([]).accumulation, parse([]).mixed_precision) == (4, "bf16")
    own = parse(["--accumulation", "2", "--mixed_precision", "no"])
    assert (own.accumulation, own.mixed_precision) == (2, "no")


def test_resuming_a_folder_takes_its_flags(tmp_path: Path) -> None:
    begun = TrainConfig(manifest=["m.csv"], epochs=7, out="elsewhere")
    record: dict[str, Any] = {"epochs": 7, "flags": dataclasses.asdict(begun)}
    (tmp_path / settings.SETTINGS_FILE).write_text(json.dumps(record))
    resumed = parse(["--resume", str(tmp_path), "--workers", "3"])
    assert resumed == dataclasses.replace(begun, out=str(tmp_path), resume=True, workers=3)
    # Relative places begin in the run's folder, so that the same run is resumed from anywhere.
    (tmp_path / "m.csv").touch()
    record["flags"]["manifest"] = ["m.csv"]
    (tmp_path / settings.SETTINGS_FILE).write_text(json.dumps(record))
    assert parse(["--resume", str(tmp_path)]).manifest == [str(tmp_path / "m.csv")]
    assert parse(["--out", "x", "--resume"]) == parse(["--out", "x", "--resume", "True"])
    with pytest.raises(FileNotFoundError):
        parse(["--resume", str(tmp_path / "nothing")])


def test_records_of_earlier_versions_are_read() -> None:
    old = dataclasses.asdict(TrainConfig(epochs=3)) | {"rmm_text_share": 0.6, "lora_alpha": 16.0}
    assert TrainConfig.from_record(old) == TrainConfig(epochs=3)


WRONG: list[dict[str, Any]] = [  # of each the first flag is named
    *({name: 0} for name in ("epochs", "batch_size", "accumulation", "keep_checkpoints")),
    *({name: 0} for name in ("augment_variants", "patience", "frame_budget", "learning_rate")),
    *({name: -1} for name in ("fold", "workers", "checkpoint_steps", "lora_rank", "seed")),
    *({name: float("inf")} for name in ("clip_norm", "learning_rate", "weight_decay")),
    *({name: float("nan")} for name in ("weight_decay", "mask_frames", "corpus_exponent")),
    *({"dimension_range": limits} for limits in ([5.0], [1.0, 5.0, 9.0], [5.0, 1.0], [1.0, 1.0])),
    *({"dimension_range": limits} for limits in ([float("nan"), 5.0], [1.0, float("inf")])),
    *({"emotions": names} for names in ([""], ["sad", "angry", "sad"], [" sad"])),
    *({"model_config": text} for text in ("[]", "{a:1}", '{"dimension_range": [1, 7]}')),
    *({"corpus_options": text} for text in ("[]", "{a:1}", '{"a": 1}')),
    {"out": ""},
    {"manifest": None},
    {"manifest": ["m.csv"], "corpus": "ravdess", "corpus_dir": "x"},
    {"corpus_dir": "x"},
    {"audio_dir": "x", "manifest": None, "corpus": "ravdess", "corpus_dir": "x"},
    {"corpus": "nobody's", "corpus_dir": "x", "manifest": None},
    {"dimensions": ["valance"]},
    {"validation_speakers": [], "test_speakers": ["a"]},
    {"folds_file": "f.json", "validation_speakers": ["a"], "test_speakers": ["b"]},
    {"script_disjoint": True, "validation_speakers": ["a"], "test_speakers": ["b"]},
    {"improvised_only": True, "folds_file": "f.json"},
    {"k": 3, "folds_file": "f.json"},
    {"patience": 2, "select_by": "last"},
    {"mask_frames": 1.5},
    {"mask_frames": 0.1, "modalities": ["text"]},
    {"augment": ["speed"], "modalities": ["text"]},
    {"corpus_exponent": 0.5, "class_weights": "balanced"},
    {"rmm_start": 0.05},
    {"audio_encoder": "x", "model": "y"},
    {"encode_only": True, "cache_dir": "off"},
    {"unfreeze_text_layers": 1, "lora_rank": 2},
    {"unfreeze_audio_layers": 1, "modalities": ["text"]},
    {"model_config": '{"freeze_audio_encoder": false}', "lora_rank": 2},
]


@pytest.mark.parametrize("flags", WRONG, ids=str)
def test_wrong_settings_are_refused_by_name(flags: dict[str, Any]) -> None:
    name, value = next(iter(flags.items()))
    with pytest.raises(ValueError) as raised:
        TrainConfig(**{"manifest": ["m.csv"]} | flags).check()
    assert str(raised.value).startswith(f"`--{name}` is {value!r}; it must be ")


def test_good_settings_are_allowed() -> None:
    TrainConfig(manifest=["m.csv"]).check()
    TrainConfig(corpus="esd", corpus_dir="x", corpus_options='{"labels": "all"}').check()


@pytest.mark.parametrize(
    "flags",
    [
        {"emotions": ["sad", "happy", "neutral", "angry"]},
        {"dimensions": ["valence"]},
        {"dimension_range": [1.0, 7.0]},
    ],
)
def test_model_keeps_its_outputs(tmp_path: Path, flags: dict[str, Any]) -> None:
    MTMMConfig.tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"`--{next(iter(flags))}`"):
        TrainConfig(model=str(tmp_path), **flags).resolve()
    own: dict[str, Any] = {
        "emotions": ["angry", "happy", "sad", "neutral"],
        "dimensions": ["arousal", "valence"],
    }
    assert TrainConfig(model=str(tmp_path), **own).resolve().dimensions == ["valence", "arousal"]


def test_small_preset_fills_what_is_not_given() -> None:
    flags = ["--preset", "small", "--epochs", "20", "--model_config", '{"hidden_size": 64}']
    config = parse(flags)
    assert (config.epochs, config.weight_decay, config.augment) == (20, 1.0, ["speed", "noise"])
    fields = json.loads(config.model_config)
    assert (fields["hidden_size"], fields["acoustic_stride"]) == (64, 25)
    assert parse([*flags, "--augment"]).augment == []
    of_text = parse(["--preset", "small", "--modalities", "text"])
    assert (of_text.epochs, of_text.augment) == (30, [])
    assert parse(["--preset", "small", "--model", "x"]).model_config == "{}"
    # As a fold's own process is told, with flags that are the defaults of another preset.
    for given in (config, of_text, TrainConfig(modalities=["audio"]), TrainConfig(model="x")):
        assert parse(training_flags(given)) == given
    assert parse(["--preset", "paper"]) == TrainConfig()


def row(speaker: int, **more: Any) -> Utterance:
    return Utterance(
        utterance_id=f"{speaker}{more}", corpus="c", text="a", speaker_id=str(speaker), **more
    )


def test_protocol_follows_from_the_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["train", "train", "validation", "test"]
    official = [row(i, split=split) for i, split in enumerate(splits)]
    assert protocol_of(official, None)[:2] == ("official", None)
    shared = [*official, row(0, split="test")]
    assert protocol_of(shared, None)[:2] == ("grouped", 4)
    pairs = [row(i, session_id=str(i // 2)) for i in range(6)]
    assert protocol_of(pairs, None)[:2] == ("speaker", None)
    assert protocol_of(pairs, 3)[:2] == ("grouped", 3)
    assert protocol_of([*pairs, row(7, session_id="0")], None)[:2] == ("session", None)
    with pytest.raises(ValueError, match="there are 2"):
        protocol_of([row(0), row(1)], None)
    write_manifest([row(i) for i in range(7)], tmp_path / "m.csv")
    given = parse_options(["--manifest", str(tmp_path / "m.csv"), "--epochs", "3"])
    config = settled(given)
    assert (config.protocol, config.k, config.preset, config.epochs) == ("grouped", 5, "small", 3)
    assert config.linear_path
    assert capsys.readouterr().out.startswith("--protocol grouped --k 5: no session")
    for flags in (["--cache_dir", "off"], ["--linear_path", "False"], ["--preset", "small"]):
        given = parse_options(["--manifest", str(tmp_path / "m.csv"), *flags])
        assert not settled(given).linear_path
    voted = [row(i, emotion=None, votes={"angry": 2.0}) for i in range(7)]
    write_manifest(voted, tmp_path / "v.csv")
    assert not settled(parse_options(["--manifest", str(tmp_path / "v.csv")])).linear_path


def test_run_that_never_began_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no {tmp_path}/settings.json"):
        parse(["--resume", str(tmp_path)])
