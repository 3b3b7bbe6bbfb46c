"""MTMMModel behaves as a class of transformers' own; what test_modeling_mtmm.py does not already ask."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel, load_with_info
from safetensors.torch import load_file
from transformers import set_seed

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel

VARIANTS = [
    {},
    {"encoder_layers": "weighted"},
    {"bridge_wiring": "direct"},
    {"use_bridge_tokens": False, "use_refinement": False},
]


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_values": torch.randn(2, 4000, generator=generator),
        "audio_attention_mask": (torch.arange(4000) < torch.tensor([[4000], [2500]])).long(),
        "input_ids": torch.randint(3, 100, (2, 9), generator=generator),
        "attention_mask": (torch.arange(9) < torch.tensor([[9], [5]])).long(),
    }


def logits(model: MTMMModel, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(**inputs, **more)
    return torch.cat([output.emotion_logits, output.dimensions], dim=1)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", VARIANTS)
def test_model_builds_on_meta_device(overrides: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = MTMMModel(MTMMConfig.tiny(**overrides))
    real = {name for name, tensor in model.state_dict().items() if not tensor.is_meta}
    assert real <= {"audio_model.masked_spec_embed"}  # HubertModel's own, made past the device
    # A tensor that is neither parameter nor buffer would stay empty after loading.
    loose = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert loose == []


@pytest.mark.parametrize("overrides", VARIANTS)
def test_save_and_load_keep_every_key(
    make_model: MakeModel,
    tmp_path: Path,
    overrides: dict[str, Any],
    inputs: dict[str, torch.Tensor],
) -> None:
    model = make_model(**overrides)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    loaded, info = load_with_info(tmp_path)
    assert [keys for keys in info.values() if keys] == []
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    assert torch.equal(logits(loaded.eval(), inputs), logits(model, inputs))


def test_embeddings_are_the_text_encoders(
    make_model: MakeModel, tmp_path: Path, inputs: dict[str, torch.Tensor]
) -> None:
    model = make_model()
    before = logits(model, inputs)
    grown = model.resize_token_embeddings(140)
    assert grown.weight.shape[0] == 140 == model.config.encoder_config("text").vocab_size
    assert model.get_input_embeddings() is model.text_model.get_input_embeddings()
    assert torch.equal(logits(model, inputs), before)
    new_token = inputs | {"input_ids": torch.full_like(inputs["input_ids"], 139)}
    assert not torch.allclose(logits(model, new_token), before)
    model.save_pretrained(tmp_path)
    loaded = MTMMModel.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, new_token), logits(model, new_token))


# ---- forward -------------------------------------------------------------------------------------


def test_forward_is_deterministic(make_model: MakeModel, inputs: dict[str, torch.Tensor]) -> None:
    model = make_model()
    assert torch.equal(logits(model, inputs), logits(model, inputs))
    model.train()
    dropped = []
    for seed in (0, 0, 1):
        set_seed(seed)
        dropped.append(logits(model, inputs))
    assert torch.equal(dropped[0], dropped[1]) and not torch.equal(dropped[0], dropped[2])


def test_config_asks_for_states_and_tuples(
    make_model: MakeModel, inputs: dict[str, torch.Tensor]
) -> None:
    model = make_model()
    model.set_attn_implementation("eager")  # which config.output_attentions asks for
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.acoustic_bridge_attentions is None
    model.config.output_hidden_states = model.config.output_attentions = True
    asked = model(**inputs)
    assert len(asked.hidden_states) == 2 and len(asked.acoustic_bridge_attentions) == 1
    refused = model(**inputs, output_hidden_states=False, output_attentions=False)
    assert refused.hidden_states is None and refused.acoustic_bridge_attentions is None
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len([v for v in asked.values() if v is not None])
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


# ---- graphs --------------------------------------------------------------------------------------


def test_first_compile_is_one_graph(make_model: MakeModel, inputs: dict[str, torch.Tensor]) -> None:
    """With weighted layers, states and attentions at once: each alone once broke the graph."""
    model = make_model(encoder_layers="weighted")
    asked = {"output_hidden_states": True, "output_attentions": True}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        output, expected = compiled(**inputs, **asked), model(**inputs, **asked)
    assert output.keys() == expected.keys()
    for name, value in expected.items():
        values = value if isinstance(value, tuple) else (value,)
        others = output[name] if isinstance(value, tuple) else (output[name],)
        for ours, theirs in zip(others, values, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


# ---- configuration and processor -----------------------------------------------------------------


def test_configs_share_no_state() -> None:
    one, other = MTMMConfig.tiny(), MTMMConfig.tiny()
    one.custom_pipelines["speech-emotion-recognition"]["pt"] = "changed"
    one.auto_map["AutoModel"] = "changed"
    one.encoder_config("audio").hidden_size = 1
    assert other.to_dict() == MTMMConfig.tiny().to_dict()
