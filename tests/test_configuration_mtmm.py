"""Presets, refusals and round trips of MTMMConfig."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel


@pytest.mark.parametrize("preset", [MTMMConfig.paper, MTMMConfig.tiny, MTMMConfig])
def test_presets_normalise_layers_as_published(preset: Callable[[], MTMMConfig]) -> None:
    config = preset()
    audio, text = config.encoder_config("audio"), config.encoder_config("text")
    assert audio.model_type == "hubert"
    assert audio.feat_extract_norm == "layer"
    assert audio.do_stable_layer_norm
    assert not audio.apply_spec_augment
    assert audio.layerdrop == 0
    assert text.model_type == "deberta-v2"
    assert text.relative_attention
    assert text.norm_rel_ebd == "layer_norm"
    assert text.type_vocab_size == 0


def test_paper_encoders_have_published_sizes() -> None:
    config = MTMMConfig.paper()
    with torch.device("meta"):
        model = MTMMModel(config)
    millions = [
        round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1)
        for encoder in (model.audio_model, model.text_model)
    ]
    assert millions == [315.4, 434.0]
    assert (config.num_bridge_tokens, config.hidden_size) == (30, 1024)
    assert config.id2label is not None
    assert list(config.id2label.values()) == ["angry", "happy", "sad", "neutral"]
    assert config.dimension_names == ("valence", "arousal")
    assert config.dimension_range == (1.0, 5.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_layers", "first"),
        ("bridge_wiring", "cross"),
        ("audio_layers", (0, 1)),  # "last" mixes none
        ("acoustic_stride", 0),
        ("audio_window_s", 0),
        ("hidden_size", 0),
        ("hidden_size", "32"),
        ("num_attention_heads", 5),  # no divisor of 32
        ("num_interaction_layers", 0),
        ("num_bridge_tokens", 0),
        ("hidden_dropout", "0.1"),
        ("use_refinement", "yes"),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("id2label", {0: "angry"}),
        ("id2label", {0: "angry", 2: "sad"}),
        ("id2label", {0: "angry", 1: "angry"}),
        ("label2id", {"angry": 1, "happy": 0, "sad": 2, "neutral": 3}),
        ("dimension_names", ()),
        ("dimension_names", ("valence", "valence")),
        ("dimension_names", ("scores",)),
        ("dimension_range", (5, 1)),
        ("dimension_range", (0.0, float("inf"))),
        ("dimension_loss_weights", (0.5,)),
        ("dimension_loss_weights", (0.5, -0.1)),
        ("emotion_loss_weight", -0.1),
        ("emotion_loss_weight", float("nan")),
        ("format_version", 2),
    ],
)
def test_config_refuses_illegal_value(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(StrictDataclassError, match=field):
        MTMMConfig.tiny(**{field: value})
    MTMMConfig.tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(StrictDataclassError, match=field):
        MTMMConfig.from_pretrained(tmp_path)


def test_config_refuses_loss_without_weight() -> None:
    with pytest.raises(StrictDataclassError, match="emotion_loss_weight=0"):
        MTMMConfig.tiny(emotion_loss_weight=0.0, dimension_loss_weights=(0.0, 0.0))


@pytest.mark.parametrize("layers", [[], [-1, 1], [1, 3]])
def test_layers_that_are_not_there_are_refused(layers: list[int]) -> None:
    with pytest.raises(StrictDataclassError, match="text_layers"):
        MTMMConfig.tiny(encoder_layers="weighted", text_layers=layers)


def test_model_checks_config_again() -> None:
    config = MTMMConfig.tiny()
    config.temperature = -1.0
    with pytest.raises(StrictDataclassError, match="temperature=-1"):
        MTMMModel(config)


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "{}", None])
def test_config_of_no_mtmm_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}.*model_type"):
        MTMMConfig.from_pretrained(tmp_path)


def test_config_refuses_misspelt_argument() -> None:
    with pytest.raises(ValueError, match="`use_bridge_token`.*`use_bridge_tokens`"):
        MTMMConfig.tiny(use_bridge_token=True)


def test_config_keeps_attributes_that_others_set(tmp_path: Path) -> None:
    """Other libraries do, also by names that are nearly ours."""
    config = MTMMConfig.tiny()
    config.layer_norm_epsilon = 0.25
    config.quantization_note = "int4"
    MTMMModel(config).save_pretrained(tmp_path)
    for again in (MTMMModel.from_pretrained(tmp_path).config, MTMMConfig(**config.to_dict())):
        assert again.layer_norm_epsilon == 0.25 and again.quantization_note == "int4"
        assert again.layer_norm_eps == 1e-5


CHANGED = {
    "bridge_wiring": "direct",
    "encoder_layers": "weighted",
    "audio_layers": (0, 2),
    "acoustic_stride": 5,
    "id2label": {0: "calm", 1: "afraid", 2: "disgusted"},
    "dimension_names": ("valence", "arousal", "dominance"),
    "dimension_range": (-1.0, 1.0),
    "dimension_loss_weights": (0.2, 0.3, 0.1),
    "label_smoothing": 0.1,
    "temperature": 1.7,
    "freeze_text_encoder": False,
    "trained_outputs": ("emotion", "dominance"),
}


@pytest.mark.parametrize("overrides", [{}, CHANGED])
def test_config_round_trips(tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = MTMMConfig.tiny(**overrides)
    config.save_pretrained(tmp_path)
    for again in (MTMMConfig.from_pretrained(tmp_path), MTMMConfig.from_dict(config.to_dict())):
        for name in MTMMConfig.__annotations__:
            if name not in ("audio_config", "text_config"):
                assert getattr(again, name) == getattr(config, name), name
        for modality in ("audio", "text"):
            ours, its = config.encoder_config(modality), again.encoder_config(modality)
            assert its.to_dict() == ours.to_dict()
        assert config.id2label is not None
        assert again.label2id == {name: i for i, name in config.id2label.items()}


def test_emotions_are_in_the_order_of_their_indices() -> None:
    sorted_as_text = {str(i): f"e{i}" for i in sorted(range(12), key=str)}
    assert MTMMConfig.tiny(id2label=sorted_as_text).emotion_names == tuple(
        f"e{i}" for i in range(12)
    )


@pytest.mark.parametrize(("count", "first"), [(2, "LABEL_0"), (4, "angry"), (7, "LABEL_0")])
def test_num_labels_makes_names(tmp_path: Path, count: int, first: str) -> None:
    config = MTMMConfig.tiny(num_labels=count)
    MTMMConfig.tiny().save_pretrained(tmp_path)
    for made in (config, MTMMConfig.from_pretrained(tmp_path, num_labels=count)):
        names: Any = made.id2label
        assert made.label2id is not None
        assert made.num_labels == len(names) == len(made.label2id) == count
        assert names[0] == first
    assert MTMMModel(config).emotion_head.projection.out_features == count


@pytest.mark.parametrize("keys", [int, str])
def test_loading_renames_emotions_both_ways(tmp_path: Path, keys: type) -> None:
    MTMMConfig.tiny().save_pretrained(tmp_path)
    names = {0: "calm", 1: "afraid"}
    config = MTMMConfig.from_pretrained(tmp_path, id2label={keys(i): n for i, n in names.items()})
    assert config.id2label == names and config.label2id == {"calm": 0, "afraid": 1}
    config.validate()


def test_loading_overrides_one_nested_field(tmp_path: Path) -> None:
    MTMMConfig.tiny().save_pretrained(tmp_path)
    config = MTMMConfig.from_pretrained(tmp_path, text_config={"num_hidden_layers": 1})
    assert config.encoder_config("text").num_hidden_layers == 1
    assert config.encoder_config("text").hidden_size == 32
