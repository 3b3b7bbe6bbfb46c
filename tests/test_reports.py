"""Public reports of other projects, rebuilt as small inputs; docs/reports.md has their addresses."""

from typing import Any

import numpy as np
import pytest
from conftest import RATE, encoded

from audio_mtmm import load_audio, open_recording
from pipeline_mtmm import MTMMPipeline
from waveforms_mtmm import to_mono

RNG = np.random.default_rng(0)
SPEECH = RNG.uniform(-0.5, 0.5, 4 * RATE).astype(np.float32)


def damaged(form: str, first: int, count: int) -> bytes:
    data = bytearray(encoded(SPEECH, form))
    data[first : first + count] = np.random.default_rng(1).bytes(count)
    return bytes(data)


def timeline(pipe: MTMMPipeline, *segments: tuple[float, float, str]) -> list[Any]:
    given = [{"start": start, "end": end, "text": text} for start, end, text in segments]
    answer = pipe({"audio": SPEECH, "segments": given}, sampling_rate=RATE)
    return [(entry["start"], entry["end"], entry["text"]) for entry in answer["timeline"]]


def test_segment_without_length(pipe: MTMMPipeline) -> None:
    """docling 3006"""
    found = timeline(pipe, (0, 2, "so"), (2, 2, "you"), (2, 4, "won"))
    assert found == [(0.0, 2.0, "so you"), (2.0, 4.0, "won")]


def test_last_end_behind_the_audio(pipe: MTMMPipeline) -> None:
    """faster-whisper 1334"""
    assert timeline(pipe, (0, 2, "so"), (2, 4.02, "won"))[-1] == (2.0, 4.0, "won")


def test_end_that_nobody_knows_is_minus_one(pipe: MTMMPipeline) -> None:
    """sherpa-onnx 2945, with a start at the audio's end beside it"""
    found = timeline(pipe, (0, 1, "so"), (1, -1.0, "you"), (2, 3.99, "won"), (4.0, -1.0, "it"))
    assert [one[:2] for one in found[:2]] == [(0.0, 1.0), (1.0, 2.0)]
    assert found[-1][2] == "won it"


def test_stereo_with_channels_last() -> None:
    """transformers 47886: the mean over time left two numbers."""
    assert np.allclose(to_mono(np.stack([SPEECH, SPEECH], axis=1)), SPEECH, atol=1e-7)


@pytest.mark.parametrize("second", [-SPEECH, 0 * SPEECH])
def test_stereo_that_is_silent_or_opposite(second: np.ndarray) -> None:
    """macparakeet 953, BCR 943"""
    recording = open_recording(encoded(np.stack([SPEECH, second], axis=1)))
    assert np.allclose(recording.whole(RATE), SPEECH, atol=1e-4)


def test_five_seconds_at_another_rate(pipe: MTMMPipeline) -> None:
    """pyannote-audio 1969: shorter than the window"""
    waveform = RNG.uniform(-0.5, 0.5, 118080).astype(np.float32)
    answer = pipe({"array": waveform, "sampling_rate": 22050}, window_s=10.0)
    assert answer["timeline"][0]["end"] == pytest.approx(118080 / 22050, abs=1e-3)


def test_mp3_with_a_damaged_beginning() -> None:
    """silero-vad 777: other decoders end there."""
    assert len(load_audio(damaged("MP3", 300, 220))[0]) == len(SPEECH)


def test_ogg_damaged_in_the_middle() -> None:
    """torchcodec 731: no number for what cannot be heard, and how far it could"""
    data = encoded(SPEECH, "OGG")
    with pytest.raises(ValueError, match=r"cut off after \d\.\d+ s"):
        load_audio(damaged("OGG", len(data) // 2, 60))


def test_more_scores_than_labels(pipe: MTMMPipeline) -> None:
    """transformers 35736"""
    assert len(pipe(SPEECH, sampling_rate=RATE, top_k=10)["scores"]) == 4


def test_wav_without_its_last_byte_or_with_a_wrong_size() -> None:
    """hound 100, picoTracker 1262"""
    data = encoded(SPEECH, "WAV")
    assert len(load_audio(data[:-1])[0]) == len(SPEECH) - 1
    for size in (0, 36, 99999, 2**32 - 1):
        assert len(load_audio(data[:4] + size.to_bytes(4, "little") + data[8:])[0]) == len(SPEECH)


def test_flac_that_is_cut_in_a_frame() -> None:
    """subwave 1670"""
    with pytest.raises(ValueError, match="cannot be decoded|cut off"):
        load_audio(encoded(SPEECH, "FLAC")[:50000])


def test_rf64_with_more_behind_its_data() -> None:
    """NAudio 1231"""
    data = encoded(SPEECH, "RF64") + b"LIST" + (5000).to_bytes(4, "little") + bytes(range(250)) * 20
    assert len(load_audio(data)[0]) == len(SPEECH)
