"""A device never waits for its host: nothing here reads a tensor's value, or breaks a compiled graph.

Tensors on the device "meta" have no values, so whatever reads one fails.
Run alone: python -m pytest tests/test_device.py
"""

from typing import Any

import pytest
import torch
from conftest import MakeModel
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import DebertaV2Config, DebertaV2Model

from configuration_mtmm import MTMMConfig
from fast_mtmm import use_fast_ways
from modeling_mtmm import MTMMModel
from mtmm_training.training.faults import gradient_norms, trained_parts

VARIANTS: list[dict[str, Any]] = [
    {},
    {"encoder_layers": "weighted", "bridge_wiring": "direct", "reference": "speaker"},
    {"use_bridge_tokens": False},
]
LABELS = {"emotion_labels": torch.tensor([1, -100, 0]), "dimension_labels": torch.full((3, 2), 2.0)}
VOTES = {"emotion_votes": torch.tensor([[3.0, 1, 0, 0]] * 3), "dimension_labels": torch.ones(3, 2)}


def states_of(model: MTMMModel) -> dict[str, Tensor]:
    """Encoder states of three utterances, the second without audio, the third without words."""
    given = {}
    for modality, prefix, time in (("audio", "acoustic", 20), ("text", "linguistic", 7)):
        layers = len(model.config.mixed_layers(modality))
        width = model.config.encoder_config(modality).hidden_size
        given[f"{prefix}_states"] = torch.randn(3, *([layers] if layers else []), time, width)
        mask = torch.ones(3, time, dtype=torch.bool)
        mask[1 if modality == "audio" else 2] = False
        given[f"{prefix}_attention_mask"] = mask
    return given


def raw() -> dict[str, Tensor]:
    return {
        "input_values": torch.randn(3, 4000),
        "audio_attention_mask": torch.ones(3, 4000, dtype=torch.long),
        "input_ids": torch.randint(3, 100, (3, 9)),
        "attention_mask": torch.ones(3, 9, dtype=torch.long),
    }


@pytest.mark.parametrize("labels", [LABELS, VOTES], ids=["labels", "votes"])
@pytest.mark.parametrize("overrides", VARIANTS)
def test_training_step_reads_no_value(overrides: dict[str, Any], labels: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        model = MTMMModel(MTMMConfig.tiny(**overrides))
    given = {name: tensor.to("meta") for name, tensor in (states_of(model) | labels).items()}
    model.eval()
    assert model(**given).emotion_logits.shape == (3, 4)
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(**given, class_weights=torch.ones(4, device="meta")).loss.backward()
    parts = trained_parts(model)
    norm = get_total_norm(list(gradient_norms(parts).values()))
    clip_grads_with_norm_([p for part in parts.values() for p in part], 1.0, norm)
    optimiser.step()


@pytest.mark.parametrize(
    ("training", "cached"), [(False, True), (True, True), (False, False), (True, False)]
)
def test_forward_and_loss_are_one_graph(
    make_model: MakeModel, training: bool, cached: bool
) -> None:
    """From states, and from raw inputs with frozen encoders; without dropout, to compare."""
    model = make_model(hidden_dropout=0.0, attention_dropout=0.0, head_dropout=0.0)
    model.train(training)
    given = (states_of(model) if cached else raw()) | LABELS
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert float(compiled(**given).loss) == pytest.approx(float(model(**given).loss), abs=1e-5)


# ---- DeBERTa's attention -------------------------------------------------------------------------


def deberta() -> tuple[DebertaV2Model, DebertaV2Model]:
    """transformers' own, and the same weights with the faster attention; both without dropout."""
    fields: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
        "vocab_size": 100, "relative_attention": True, "position_buckets": 8,
        "max_relative_positions": -1, "max_position_embeddings": 64, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        "type_vocab_size": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    config = DebertaV2Config(**fields)
    torch.manual_seed(0)
    plain = DebertaV2Model(config)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)  # so large that position and content matter
    fast = DebertaV2Model(config)
    fast.load_state_dict(plain.state_dict())
    use_fast_ways(fast)
    return plain, fast


@pytest.mark.parametrize("tokens", [1, 2, 15, 40])
def test_fast_attention_is_transformers_own(tokens: int) -> None:
    """In states and gradients; 40 tokens have more distances than the table has buckets."""
    plain, fast = deberta()
    ids = torch.randint(0, 100, (3, tokens), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(tokens) < torch.tensor([[tokens], [tokens // 2 + 1], [1]])).long()
    states = [model(ids, attention_mask=mask).last_hidden_state for model in (plain, fast)]
    assert float(states[0].std()) > 0.1
    torch.testing.assert_close(states[1], states[0], atol=2e-5, rtol=0)
    for own in states:
        (own * mask[..., None]).square().mean().backward()
    for (name, theirs), ours in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None), name
        if theirs.grad is not None and ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_fast_attention_gives_weights_when_asked() -> None:
    plain, fast = deberta()
    ids = torch.arange(6)[None]
    for theirs, ours in zip(
        plain(ids, output_attentions=True).attentions,
        fast(ids, output_attentions=True).attentions,
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("frozen", [True, False], ids=["from states", "everything"])
def test_bf16_trains_like_float32(frozen: bool) -> None:
    """Losses within 2 % and the direction of the whole gradient within 8 degrees."""
    names = ("hidden_dropout", "attention_dropout", "head_dropout")
    fields: dict[str, Any] = dict.fromkeys(names, 0.0)
    fields |= {f"freeze_{name}_encoder": frozen for name in ("audio", "text")}
    torch.manual_seed(0)
    model = MTMMModel(MTMMConfig.tiny(**fields)).train()
    model.audio_model.config.layerdrop = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    given = (states_of(model) if frozen else raw()) | LABELS
    losses, gradients = [], []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(**given).loss
        loss.backward()
        losses.append(loss.item())
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
