"""Extreme inputs in half precision: what comes out is finite, or it is said why not."""

from functools import cache
from typing import Any

import pytest
import torch
from conftest import TRAINED, WHISPER, MakeModel, audio, noise
from torch import Tensor

from configuration_mtmm import MTMMConfig
from fusion_mtmm import eager_attention_forward
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

HALVES = [torch.float16, torch.bfloat16]
TINY = MTMMConfig.tiny()
BERT = TINY.encoder_config("text").to_dict() | {"model_type": "bert"}
BERT |= {"max_position_embeddings": 512, "type_vocab_size": 2}
FAMILIES = {
    "hubert-deberta": {},
    "wavlm-bert": {
        "audio_config": TINY.encoder_config("audio").to_dict() | {"model_type": "wavlm"},
        "text_config": BERT,
    },
    "whisper-bert": {"audio_config": WHISPER, "text_config": BERT},
}


@cache
def sounds(log_mel: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Waveforms (1, time), or log-mel spectra (1, mels, frames), and masks."""
    time = 100 if log_mel else 8000
    shape = (1, 20, time) if log_mel else (1, time)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    square = torch.where(torch.arange(time) % 40 < 20, 1.0, -1.0).expand(shape)
    spike = torch.zeros(shape)
    spike[..., time // 2] = 800.0  # one click in 40 s of silence, normalised to a variance of 1
    whole = torch.ones(1, time, dtype=torch.long)
    # The least that makes a frame: the waveform encoders' receptive field, two log-mel frames.
    least = (torch.arange(time) < (2 if log_mel else 400)).long()[None]
    values = {"silence": 0 * noise, "denormals": 1e-40 * noise, "square": square, "spike": spike}
    values |= {"loud": 1e4 * square, "loud noise": 1e4 * noise / noise.abs().max()}
    return {name: (value, whole) for name, value in values.items()} | {"one frame": (noise, least)}


def tokens(longest: int) -> dict[str, tuple[Tensor, Tensor]]:
    ids = torch.randint(3, 100, (1, longest), generator=torch.Generator().manual_seed(0))
    whole = torch.ones_like(ids)
    return {
        "one token": (ids[:, :1], whole[:, :1]),
        "longest": (ids, whole),
        "all the same": (torch.full_like(ids, 7), whole),
        "masked but one": (ids, (torch.arange(longest) < 1).long()[None]),
    }


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("wiring", ["crossed", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision_stays_finite(
    make_model: MakeModel, family: str, wiring: str, dtype: torch.dtype
) -> None:
    model = make_model(bridge_wiring=wiring, **FAMILIES[family]).to(dtype)  # type: ignore[arg-type]  # its decorator hides `self` from mypy
    spoken = sounds(log_mel="whisper" in family)
    written = tokens(512)
    pairs: list[tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]] = []
    pairs += [(spoken[name], None) for name in spoken]
    pairs += [(None, written[name]) for name in written]
    pairs += [(spoken[name], written["one token"]) for name in spoken]
    pairs += [(spoken["one frame"], written[name]) for name in written]
    low, high = model.config.dimension_range
    for sound, words in pairs:
        inputs: dict[str, Tensor] = {}
        if sound is not None:
            inputs |= {"input_values": sound[0], "audio_attention_mask": sound[1]}
        if words is not None:
            inputs |= {"input_ids": words[0], "attention_mask": words[1]}
        output = model(**inputs)
        for numbers in (output.emotion_logits, output.fused_state, output.bridge_states):
            assert numbers.isfinite().all(), inputs
        assert ((output.dimensions >= low) & (output.dimensions <= high)).all()


def test_eager_scores_do_not_overflow_before_they_are_scaled() -> None:
    """As SDPA, which scales first: 40 · 40 · 64 is beyond float16, an eighth of it is not."""
    query, value = torch.full((1, 1, 3, 64), 40.0).half(), torch.randn(1, 1, 3, 64).half()
    output, weights = eager_attention_forward(
        torch.nn.Module(), query, query, value, None, 64**-0.5
    )
    assert torch.allclose(weights, torch.full_like(weights, 1 / 3), atol=1e-3)
    sdpa = torch.nn.functional.scaled_dot_product_attention(query, query, value)
    torch.testing.assert_close(output, sdpa.transpose(1, 2), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [-1e30, -60000.0, 60000.0, 1e30])
@pytest.mark.parametrize("limits", [(1.0, 5.0), (0.0, 0.5), (-1e6, 1e6)])
@torch.no_grad()
def test_dimensions_reach_the_ends_of_their_range_and_no_further(
    make_model: MakeModel, size: float, limits: tuple[float, float]
) -> None:
    model = make_model(dimension_range=limits)
    model.dimension_head.projection.bias.fill_(size)
    dimensions = model(input_ids=torch.tensor([[1, 5, 2]])).dimensions
    assert (dimensions == (limits[0] if size < 0 else limits[1])).all()


# ---- the pipeline --------------------------------------------------------------------------------


def utterance() -> dict[str, Any]:
    return {"audio": audio(noise(0.25)), "text": "so happy"}


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e3, 1e30])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_probabilities_stand_extreme_temperatures_and_logits(
    make_model: MakeModel, tiny_processor: MTMMProcessor, temperature: float, size: float
) -> None:
    model = make_model(trained_outputs=TRAINED, temperature=temperature)
    with torch.no_grad():
        model.emotion_head.projection.weight.mul_(size)
    result = MTMMPipeline(model=model, processor=tiny_processor)(utterance())
    assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-6)
    assert result["emotion"] == next(iter(result["scores"]))


@pytest.mark.parametrize("head", ["emotion_head", "dimension_head"])
def test_overflow_is_refused_with_its_reason(
    make_model: MakeModel, tiny_processor: MTMMProcessor, head: str
) -> None:
    model = make_model(trained_outputs=TRAINED)
    with torch.no_grad():
        getattr(model, head).dense.weight.fill_(6e4)
        getattr(model, head).projection.weight.normal_(std=1e4)
    pipe = MTMMPipeline(model=model.half(), processor=tiny_processor)
    with pytest.raises(ValueError, match="not finite.*float16.*float32"):
        pipe(utterance())
