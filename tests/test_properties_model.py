"""Processor, collators, model and pipeline: what holds for whatever they are given."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from strategies import FEW, MANY, SOME, transcripts

from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import INPUTS, STATES, FeatureCache
from mtmm_training.batches.collate import RawInputs, to_dataset
from mtmm_training.data.utterances import Utterance
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

RATE = 16000
MakeModel = Callable[..., MTMMModel]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> MTMMModel:
    return make_model(trained_outputs=("emotion", "valence", "arousal"))


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
    except (ValueError, TypeError) as error:
        assert str(error)
        return
    for value, mask in (("input_values", "audio_attention_mask"), ("input_ids", "attention_mask")):
        if value in features:
            assert (
                features[value].isfinite().all() and features[mask].shape == features[value].shape
            )
            assert (features[mask] == 1).all()
    assert ("input_ids" in features) == (text is not None)


@SOME
@given(
    st.lists(st.tuples(st.integers(50, 3000), st.floats(0.05, 0.2)), min_size=1, max_size=5),
    st.sampled_from([8000, 11025, 22050, 44100, 48000, 96000]),
)
def test_sampling_rate_changes_little(
    tiny_processor: MTMMProcessor, model: MTMMModel, tones: list[Any], rate: int
) -> None:
    """Of sound below 3 kHz, that rises and falls softly: what every one of these rates can hold."""

    def sound(rate: int) -> dict[str, Any]:
        time = np.arange(rate // 2) / rate
        swell = np.sin(np.pi * time / 0.5) ** 2
        array = swell * sum(a * np.sin(2 * np.pi * hertz * time) for hertz, a in tones)
        return {"array": array.astype(np.float32), "sampling_rate": rate}

    values = tiny_processor(audio=sound(RATE))["input_values"]
    resampled = tiny_processor(audio=sound(rate))["input_values"][:, : values.shape[1]]
    difference = (resampled - values[:, : resampled.shape[1]]).abs().max()
    assert abs(resampled.shape[1] - values.shape[1]) <= 1
    assert difference < 1e-3  # of a waveform with variance 1
    with torch.no_grad():
        outputs = [model(input_values=v).emotion_logits for v in (values, resampled)]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-2


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


@FEW
@given(st.lists(inputs, min_size=2, max_size=5), st.integers(2, 4))
def test_pipeline_answers_as_for_each_alone(
    model: MTMMModel, tiny_processor: MTMMProcessor, items: list[Any], batch_size: int
) -> None:
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    given = [
        {name: value for name, value in zip(("audio", "text"), item, strict=True) if value}
        for item in items
    ]
    low, high = model.config.dimension_range
    for one, result in zip(given, pipe(given, batch_size=batch_size), strict=True):
        expected = pipe(one)
        assert result["missing"] == [name for name in ("audio", "text") if name not in one]
        assert result["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-5)
        for name in ("valence", "arousal"):
            assert low <= result[name] <= high
            assert result[name] == pytest.approx(expected[name], abs=1e-5)


# ---- collator and cache --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@FEW
@given(st.lists(inputs, min_size=1, max_size=4))
def test_cache_returns_what_was_encoded(
    model: MTMMModel, tiny_processor: MTMMProcessor, dtype: str, items: list[Any]
) -> None:
    eps = float(torch.finfo(getattr(torch, dtype)).eps)
    with TemporaryDirectory() as folder, torch.no_grad():
        utterances = []
        for number, (audio, text) in enumerate(items):
            path = Path(folder, f"{number}.wav") if audio else None
            if audio:
                soundfile.write(path, audio["array"], audio["sampling_rate"], subtype="FLOAT")
            utterances.append(
                Utterance(
                    utterance_id=f"u{number}",
                    corpus="c",
                    speaker_id="s",
                    text=text,
                    audio=str(path) if path else None,
                )
            )
        cache = FeatureCache.open(Path(folder, "cache"), model, tiny_processor, dtype=dtype)
        cache.encode(utterances, batch_size=1)
        rows = list(to_dataset(utterances))
        cached = cache.collator(utterances, ["happy"], ["valence"])(rows)
        raw = RawInputs(tiny_processor, ["happy"], ["valence"])
        collated = raw(rows)
        assert all(collated[v].isfinite().all() for v, _ in INPUTS.values() if v in collated)
        for modality, name in STATES.items():
            assert (f"{name}_states" in cached) == (INPUTS[modality][0] in collated)
            for i, row in enumerate(rows):
                if row[modality] is None:
                    assert f"{name}_states" not in cached or not cached[f"{name}_states"][i].any()
                    continue
                own = raw([row])
                encode = model.encode_audio if modality == "audio" else model.encode_text
                states = encode(*(own[field] for field in INPUTS[modality]))[0][0]
                kept = cached[f"{name}_states"][i][cached[f"{name}_attention_mask"][i]]
                assert torch.equal(kept, states.to(kept.dtype))  # which rounds to the nearest
                torch.testing.assert_close(kept.float(), states, rtol=eps, atol=1e-7)
