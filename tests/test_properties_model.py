"""Processor and model: what holds for whatever they are given."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import RATE, MakeModel
from hypothesis import given
from strategies import FEW, MANY, transcripts

from modeling_mtmm import MTMMModel
from processing_mtmm import MTMMProcessor

# ---- what is drawn -------------------------------------------------------------------------------

seeds = st.integers(0, 2**16)
letters = st.text("abcdefghijklmnopqrstuvwxyz .,?!'", min_size=1, max_size=40).filter(str.strip)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Waveforms of any type, shape and size, good and bad."""
    dtype = draw(
        st.sampled_from("float16 float32 float64 int8 uint8 int16 int32 int64 bool".split())
    )
    time, channels = draw(st.integers(0, 3000)), draw(st.integers(0, 40))
    shape = draw(st.sampled_from([(time,), (time, channels), (channels, time), (1, time, 1), ()]))
    values = np.random.default_rng(draw(seeds)).uniform(-1, 1, shape)
    size = draw(st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 8.0, 9.0, 1e30]))
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            values = (size * values).astype(dtype)
        if values.size and draw(st.integers(0, 5)) == 0:
            values.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        return values
    return (100 * values).astype(dtype)


rates = st.sampled_from(
    [1, 4000, 8000, 11025, 12345, 16000, 44100, 48000, 192000, 0, -1, None, 1.5]
)


def waveform(samples: int, seed: int, rate: int = RATE) -> dict[str, Any]:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)
    return {"array": noise, "sampling_rate": rate}


heard = st.builds(waveform, st.integers(600, 5000), seeds, st.sampled_from([8000, 16000, 22050]))
# Audio, text, or both of one utterance.
inputs = st.one_of(
    st.tuples(heard, letters), st.tuples(heard, st.none()), st.tuples(st.none(), letters)
)


# ---- processor and collator ----------------------------------------------------------------------


@MANY
@given(arrays(), rates, st.one_of(st.none(), transcripts, st.just("a" * 100)))
def test_processor_gives_finite_tensors_or_says_why_not(
    tiny_processor: MTMMProcessor, array: np.ndarray, rate: Any, text: str | None
) -> None:
    try:
        features = tiny_processor(audio={"array": array, "sampling_rate": rate}, text=text)
    except (ValueError, TypeError):  # InputError, or an option that is wrong
        return
    for value, mask in (("input_values", "audio_attention_mask"), ("input_ids", "attention_mask")):
        if value in features:
            assert (
                features[value].isfinite().all() and features[mask].shape == features[value].shape
            )
            assert (features[mask] == 1).all()
    assert ("input_ids" in features) == (text is not None)


# ---- model and pipeline --------------------------------------------------------------------------


@torch.no_grad()
def predict(
    model: MTMMModel, processor: MTMMProcessor, items: list[tuple[Any, ...]]
) -> torch.Tensor:
    audio, text = zip(*items, strict=True)
    output = model(**processor(audio=list(audio), text=list(text)))
    return torch.cat([output.emotion_logits, output.dimensions, output.fused_state], dim=-1)


@pytest.mark.parametrize("wiring", ["crossed", "direct"])
@FEW
@given(st.lists(inputs, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_batch_changes_no_utterance(
    make_model: MakeModel, tiny_processor: MTMMProcessor, wiring: str, items: list[Any], random: Any
) -> None:
    """Padding, order, and the company it is in, which may lack other modalities."""
    model = make_model(bridge_wiring=wiring)
    alone = torch.cat([predict(model, tiny_processor, [item]) for item in items])
    assert alone.isfinite().all()
    order = random.sample(range(len(items)), len(items))
    together = predict(model, tiny_processor, [items[i] for i in order])
    torch.testing.assert_close(together, alone[order], atol=1e-5, rtol=0)
