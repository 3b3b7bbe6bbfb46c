"""Run alone: python -m pytest tests/test_augment.py"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mtmm_training.batches.augment import CHANGES, add_variants, augment, speed_of
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.masking import mask_frames
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.utterances import Utterance
from processing_mtmm import MTMMProcessor
from waveforms_mtmm import MAX_AMPLITUDE

RATE = 16000
WINDOW_S = 6.0
PROCESSOR: Any = SimpleNamespace(
    sampling_rate=RATE, min_duration_s=0.025, longest_audio_s=lambda: WINDOW_S
)


def utterance(name: str, **fields: Any) -> Utterance:
    defaults: dict[str, Any] = {"corpus": "c", "speaker_id": "s", "text": "yes"}
    defaults["audio"] = f"{name}.wav"
    return Utterance(utterance_id=name, **(defaults | fields))


def changed(waveform: np.ndarray, rate: int = RATE, **changes: float) -> np.ndarray:
    return augment(waveform, rate, json.dumps(changes), PROCESSOR)


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * RATE / len(waveform))


def level_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64))))


# ---- what is drawn -------------------------------------------------------------------------------


def test_variants_stand_behind_the_originals() -> None:
    utterances = [utterance("a"), utterance("b", audio=None), utterance("c")]
    original, *variants = add_variants(utterances, ["speed", "noise"], 3, seed=0)
    assert original == utterances and len(variants) == 3
    for variant in variants:
        assert [u.utterance_id for u in variant] == ["a", "b", "c"]
        assert variant[1] == utterances[1]  # it has no recording
    drawn = [u.augmentation for variant in variants for u in variant if u.audio]
    assert len(set(drawn)) == 6
    assert add_variants(utterances, [], 3, seed=0) == [utterances]


def test_strengths_fill_their_ranges() -> None:
    utterances = [utterance(str(i)) for i in range(400)]
    variant = add_variants(utterances, list(CHANGES), 1, 0)[1]
    drawn = [json.loads(str(u.augmentation)) for u in variant]
    for name, (low, high) in CHANGES.items():
        values = [changes[name] for changes in drawn]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    assert len({changes["noise_seed"] for changes in drawn}) == 400


def test_draw_depends_on_seed_and_utterance_alone() -> None:
    def drawn(
        names: str, seed: int = 0, changes: tuple[str, ...] = ("speed", "noise")
    ) -> dict[str, dict[str, Any]]:
        variant = add_variants([utterance(name) for name in names], changes, 2, seed)[2]
        return {u.utterance_id: json.loads(str(u.augmentation)) for u in variant}

    assert drawn("abc")["b"] == drawn("b")["b"]
    assert drawn("b", seed=1)["b"] != drawn("b")["b"]
    assert drawn("b", changes=("speed",))["b"]["speed"] == drawn("b")["b"]["speed"]


# ---- what is heard -------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.9, 1.0731, 1.1])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    waveform = changed(tone(440.0), speed=speed)
    assert len(waveform) == round(RATE / speed) and waveform.dtype == np.float32
    assert loudest_hertz(waveform) == pytest.approx(440 * speed, abs=1.5)
    assert speed_of(utterance("a", augmentation=json.dumps({"speed": speed}))) == speed
    assert speed_of(utterance("a")) == 1.0


@pytest.mark.parametrize("ratio", [15.0, 30.0])
def test_noise_has_the_drawn_ratio_and_its_own_seed(ratio: float) -> None:
    clean = tone(300.0)
    noisy = changed(clean, noise=ratio, noise_seed=1)
    assert level_db(clean) - level_db(noisy - clean) == pytest.approx(ratio, abs=0.01)
    assert np.array_equal(noisy, changed(clean, noise=ratio, noise_seed=1))
    assert not np.allclose(noisy, changed(clean, noise=ratio, noise_seed=2))
    power = np.abs(np.fft.rfft(noisy - clean)) ** 2
    octaves = [power[low : 2 * low].sum() for low in (100, 400, 1600)]
    assert max(octaves) < 1.5 * min(octaves)  # pink: the same power in every octave


def test_lowpass_takes_what_is_above() -> None:
    both = tone(1000.0) + tone(5000.0)
    heard = changed(both, lowpass=3400.0)
    assert len(heard) == RATE
    middle = slice(1000, -1000)
    assert np.abs(heard - tone(1000.0))[middle].max() < 0.01
    assert np.abs(changed(both, lowpass=7000.0) - both)[middle].max() < 0.01


def test_gain_is_in_decibels() -> None:
    assert level_db(changed(tone(200.0), gain=-6.0)) == pytest.approx(level_db(tone(200.0)) - 6.0)


def test_other_rates_and_channels_become_the_encoders() -> None:
    stereo = np.stack([tone(440.0, rate=44100)] * 2, axis=1)
    heard = changed(stereo, rate=44100, gain=0.0)
    assert heard.shape == (RATE,)
    assert np.abs(heard - tone(440.0))[500:-500].max() < 0.01


@pytest.mark.parametrize(
    ("seconds", "speed", "expected_s"),
    [
        (5.0, 0.9, 5.0 / 0.9),
        (5.9, 0.9, WINDOW_S),  # only so slow that it still fits
        (WINDOW_S, 0.9, WINDOW_S),
        (7.0, 0.9, 7.0),  # too long as it is: left so, for the processor to refuse
        (0.026, 1.1, 0.025),
        (0.02, 1.1, 0.02),
    ],
)
def test_speed_stays_within_the_encoders_limits(
    seconds: float, speed: float, expected_s: float
) -> None:
    waveform = np.zeros(round(seconds * RATE))
    waveform[-80:] = tone(400.0, 80 / RATE)  # the end, which must not be cut off
    heard = changed(waveform, speed=speed)
    assert len(heard) == round(expected_s * RATE)
    assert np.abs(heard[-80:]).max() > 0.3


ALL = {"speed": 1.1, "noise": 15.0, "noise_seed": 1, "lowpass": 3400.0, "gain": 6.0}


@pytest.mark.parametrize(("samples", "rate"), [(1, RATE), (399, RATE), (1, 48000), (2, 96000)])
def test_what_is_too_short_stays_for_the_processor_to_refuse(samples: int, rate: int) -> None:
    heard = changed(np.full(samples, 0.5, np.float32), rate=rate, **ALL)
    assert len(heard) == round(samples * RATE / rate)


@pytest.mark.parametrize("change", [{"gain": 6.0}, {"noise": 15.0, "noise_seed": 1}, ALL])
def test_changes_leave_a_loud_recording_in_the_limits(change: dict[str, Any]) -> None:
    loud = np.where(np.arange(RATE) % 40 < 20, 1.0, -1.0) * MAX_AMPLITUDE
    heard = changed(loud, **change)
    assert np.abs(heard).max() <= MAX_AMPLITUDE and np.abs(heard).max() > 0.9 * MAX_AMPLITUDE


# ---- from utterance to batch ---------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path) -> list[Utterance]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, rng.normal(0, 0.1, 4000 + 900 * number), RATE, subtype="FLOAT")
        made.append(utterance(f"u{number}", audio=str(path)))
    return made


def test_collator_changes_the_waveform_in_workers_too(
    recordings: list[Utterance], tiny_processor: MTMMProcessor
) -> None:
    variants = add_variants(recordings, list(CHANGES), 2, seed=3)
    rows = [u for variant in variants for u in variant]
    collate = RawInputs(tiny_processor, (), ())
    dataset = to_dataset(rows)
    batches = LengthBatches(frame_lengths(rows), 5, shuffle=False)
    loaded = [
        dict(zip(indices, batch["input_values"], strict=True))
        for indices, batch in zip(
            batches, make_loader(dataset, batches, collate, workers=2), strict=True
        )
    ]
    for indexed in loaded:
        for index, values in indexed.items():
            waveform, rate = soundfile.read(rows[index].audio, dtype="float32")
            changes = rows[index].augmentation
            if changes is not None:
                waveform = augment(waveform, rate, changes, tiny_processor)
            expected = tiny_processor(audio=waveform, sampling_rate=RATE)["input_values"][0]
            assert torch.equal(values[: len(expected)], expected)
            assert not values[len(expected) :].any()
    assert sum(map(len, loaded)) == 12


def test_lengths_are_those_of_the_variant(recordings: list[Utterance]) -> None:
    seconds = np.array([(4000 + 900 * number) / RATE for number in range(4)])
    for speed in (0.9, 1.1):
        told = json.dumps({"speed": speed})
        varied = [utterance(u.utterance_id, audio=u.audio, augmentation=told) for u in recordings]
        assert frame_lengths(varied).tolist() == np.ceil(50 * seconds / speed).tolist()


# ---- gaps in states ------------------------------------------------------------------------------


def states_batch(names: list[str], lengths: list[int], layers: int = 3) -> dict[str, Any]:
    shape = (len(names), layers, max(lengths), 4)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return {
        "utterance_ids": list(names),
        "acoustic_states": torch.ones(shape, dtype=torch.float16) * mask[:, None, :, None],
        "acoustic_attention_mask": mask.clone(),
    }


def test_masked_frames_are_a_share_of_each_utterance() -> None:
    batch = states_batch(["a", "b", "c"], [100, 40, 0])
    mask_frames(batch, 0.25, seed=0, epoch=0)
    visible = batch["acoustic_states"].any(-1)
    assert visible.sum(-1).tolist() == [[75] * 3, [30] * 3, [0] * 3]
    assert (visible == visible[:, :1]).all(), "layers of one position part"
    assert batch["acoustic_attention_mask"].sum(-1).tolist() == [100, 40, 0]


def test_masked_frames_follow_from_seed_epoch_and_utterance() -> None:
    def hidden(names: list[str], seed: int = 0, epoch: int = 0) -> list[torch.Tensor]:
        batch = states_batch(names, [60] * len(names))
        mask_frames(batch, 0.3, seed=seed, epoch=epoch)
        return list(batch["acoustic_states"])

    a, b = hidden(["a", "b"])
    assert torch.equal(hidden(["b"])[0], b) and not torch.equal(a, b)
    assert not torch.equal(hidden(["b"], epoch=1)[0], b)
    assert not torch.equal(hidden(["b"], seed=1)[0], b)


def test_nothing_is_masked_without_states_or_share() -> None:
    batch = states_batch(["a"], [9])
    mask_frames(batch, 0.0, seed=0, epoch=0)
    assert batch["acoustic_states"].all()
    mask_frames({"utterance_ids": ["a"]}, 0.5, seed=0, epoch=0)
