"""Channels that carry nothing or cancel each other, and audio without a signal."""

from typing import Any

import numpy as np
import pytest
from conftest import RATE, encoded

from audio_mtmm import open_recording
from mtmm_training.commands.predict_output import describe
from pipeline_mtmm import MTMMPipeline
from reading_mtmm import open_stream
from waveforms_mtmm import has_signal, to_mono

RNG = np.random.default_rng(1)
SPEECH = RNG.uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
OTHER = RNG.uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
DITHER = RNG.integers(-1, 2, len(SPEECH)) / 32768

DEAD = {
    "digital silence": 0 * SPEECH,
    "a constant": 0 * SPEECH + 0.3,
    "dither": DITHER,
    "hum far below": SPEECH / 500,
    "the same inverted": -SPEECH,
    "inverted and half as loud": -SPEECH / 2,
    "inverted from the middle on": np.where(np.arange(len(SPEECH)) < RATE, SPEECH, -SPEECH),
}


def wav(*channels: np.ndarray) -> bytes:
    return encoded(np.stack(channels, 1), subtype="FLOAT")


@pytest.mark.parametrize("name", DEAD)
def test_second_channel_that_carries_nothing_changes_nothing(name: str, pipe: MTMMPipeline) -> None:
    """In a file, an array and a stream alike."""
    both = np.stack([SPEECH, DEAD[name]], axis=1).astype(np.float32)
    assert np.abs(to_mono(both) - SPEECH).max() < 1e-6
    assert np.abs(to_mono(both.T) - SPEECH).max() < 1e-6
    assert np.abs(open_recording(wav(*both.T)).whole(RATE) - SPEECH).max() < 1e-6
    answer, alone = pipe(wav(*both.T)), pipe(wav(SPEECH))
    assert answer["scores"] == pytest.approx(alone["scores"], abs=1e-5)
    if "from the middle" not in name:  # of which a stream knows nothing at its beginning
        stream = open_stream(iter(np.split(both, 30)), RATE)
        assert np.abs(stream.whole(RATE) - SPEECH).max() < 1e-6


def test_five_dead_channels_leave_the_level() -> None:
    six = np.stack([0 * SPEECH, 0 * SPEECH, SPEECH, *[DITHER] * 3], axis=1)
    assert np.abs(to_mono(six) - SPEECH).max() < 1e-6


def test_channels_that_carry_something_are_averaged_as_ever() -> None:
    both = np.stack([SPEECH, OTHER], axis=1)
    assert np.array_equal(to_mono(both), both.mean(axis=1, dtype=np.float64).astype(np.float32))
    rare = np.zeros_like(SPEECH)
    rare[:1600] = OTHER[:1600]  # somebody who says one word in a call
    both = np.stack([SPEECH, rare], axis=1)
    assert np.allclose(to_mono(both), both.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("number, waveform", enumerate((SPEECH, OTHER)))
def test_a_channel_is_chosen(number: int, waveform: np.ndarray, pipe: MTMMPipeline) -> None:
    wanted = pipe(wav(waveform))["scores"]
    call: Any
    for call in (wav(SPEECH, OTHER), {"array": np.stack([SPEECH, OTHER]), "sampling_rate": RATE}):
        assert pipe(call, channel=number)["scores"] == pytest.approx(wanted, abs=1e-5)
    entry = next(pipe.stream(iter([np.stack([SPEECH, OTHER], 1)]), RATE, channel=number))
    assert entry["scores"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("channel", [2, -1, True, "left"])
def test_no_such_channel(channel: Any, pipe: MTMMPipeline) -> None:
    with pytest.raises(ValueError, match="channel"):
        pipe(wav(SPEECH, OTHER), channel=channel)


# ---- no signal -----------------------------------------------------------------------------------

NOTHING = {
    "digital silence": 0 * SPEECH,
    "a constant": 0 * SPEECH + 0.7,
    "dither": DITHER.astype(np.float32),
    "a click": np.eye(1, len(SPEECH), 999, dtype=np.float32)[0],
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_no_signal_gets_no_emotion(name: str, rate: int, pipe: MTMMPipeline) -> None:
    answer = pipe({"array": NOTHING[name], "sampling_rate": rate})
    assert answer["no_signal"] and answer["emotion"] is None and answer["scores"] == {}
    assert answer["valence"] is None and answer["missing"] == ["audio", "text"]
    assert describe(answer, pipe.model.config).startswith("no signal")
    said = pipe({"audio": NOTHING[name], "text": "we won"}, sampling_rate=rate)
    assert said["no_signal"] and said["scores"] == pipe({"text": "we won"})["scores"]


STEPS = RNG.integers(-1, 2, len(SPEECH))
IDLE = {  # the least that a coding can say, beside nothing
    "8 bits": encoded(STEPS / 128, subtype="PCM_U8"),
    "A-law": encoded(STEPS / 4096, subtype="ALAW"),
    "µ-law": encoded(STEPS / 4096, subtype="ULAW", rate=8000),
    "silence in GSM": encoded(0 * SPEECH, subtype="GSM610", rate=8000),
    "whole numbers of 8 bits": {"array": STEPS.astype(np.int8), "sampling_rate": RATE},
}


@pytest.mark.parametrize("name", IDLE)
def test_idle_noise_of_coarse_codings_is_no_signal(name: str, pipe: MTMMPipeline) -> None:
    assert pipe(IDLE[name])["emotion"] is None
    quiet = encoded(SPEECH / 10, subtype="PCM_U8"), encoded(SPEECH / 300, subtype="ULAW")
    assert not any("no_signal" in pipe(audio) for audio in quiet)


def test_quiet_speech_is_a_signal() -> None:
    assert has_signal(SPEECH / 1000) and has_signal(SPEECH[:500])


def test_silent_windows_take_no_part_in_the_mean(pipe: MTMMPipeline) -> None:
    call = np.concatenate([0 * SPEECH, SPEECH, 0 * SPEECH])
    answer = pipe(call, sampling_rate=RATE, window_s=3.0, batch_size=2, embedding=True)
    first, heard, _ = answer["timeline"]
    assert first["emotion"] is None and first["no_signal"] and "no_signal" not in heard
    assert answer["scores"] == pytest.approx(heard["scores"]) and "no_signal" not in answer
    assert first["embedding"]["fused"] is None
    assert answer["embedding"]["fused"] == pytest.approx(heard["embedding"]["fused"])
    silent = pipe(0 * call, sampling_rate=RATE, window_s=3.0, embedding=True)
    assert silent["no_signal"] and set(silent["embedding"].values()) == {None}


def test_silence_among_others(pipe: MTMMPipeline) -> None:
    rows = [{"audio": x, "sampling_rate": RATE} for x in (SPEECH, 0 * SPEECH, OTHER)]
    found = pipe(rows, batch_size=3)
    assert [row["emotion"] is None for row in found] == [False, True, False]
    assert found[2]["scores"] == pytest.approx(pipe(rows[2])["scores"], abs=1e-5)
