"""python -m pytest tests/test_segments.py -q"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mtmm_training.data.segments import FRAME, RATE, speech_segments


class LoudIsSpeech:
    """A detector with silero-vad's interface that takes what is loud for speech, and notes its frames."""

    def __init__(self, model: Any, threshold: float, **options: Any) -> None:
        self.threshold, self.samples, self.speaks = threshold, 0, False

    def __call__(self, frame: torch.Tensor) -> dict[str, int] | None:
        assert frame.shape == (FRAME,)
        start, self.samples = self.samples, self.samples + FRAME
        loud = float(frame.abs().max()) > self.threshold
        if loud == self.speaks:
            return None
        self.speaks = loud
        return {"start": start - 160} if loud else {"end": start + 160}


@pytest.fixture
def loud_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(VADIterator=LoudIsSpeech, load_silero_vad=lambda: None)
    monkeypatch.setitem(sys.modules, "silero_vad", fake)


def recording(path: Path, *loud: tuple[float, float]) -> Path:
    """Ten seconds, silent but for these parts."""
    waveform = np.zeros(10 * RATE, np.float32)
    for start, end in loud:
        waveform[round(start * RATE) : round(end * RATE)] = 0.8
    soundfile.write(path, waveform, RATE)
    return path


@pytest.mark.parametrize(
    "loud", [[], [(1.0, 2.5)], [(0.0, 1.0), (3.0, 4.5), (8.0, 10.0)]], ids=["none", "one", "ends"]
)
def test_segments_are_the_loud_parts(
    loud: list[tuple[float, float]], loud_is_speech: None, tmp_path: Path
) -> None:
    found = speech_segments(recording(tmp_path / "a.wav", *loud))
    assert len(found) == len(loud)
    for segment, (start, end) in zip(found, loud, strict=True):
        assert 0 <= segment["start"] and segment["end"] <= 10
        assert segment["start"] == pytest.approx(start, abs=0.05)
        assert segment["end"] == pytest.approx(end, abs=0.05)


def test_segments_without_the_package_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ImportError, match="silero_vad"):
        speech_segments("a.wav")


def test_real_detector_finds_speech_between_silences(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("silero_vad", reason="silero-vad is not installed; pip install silero-vad")
    speech, rate = soundfile.read(next((real_data / "ravdess4" / "audio").rglob("*.flac")))
    silence = np.zeros(2 * rate)
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.concatenate([silence, speech, silence, speech, silence]), rate)
    first, second = speech_segments(path)
    length_s = len(speech) / rate
    assert 2 < first["start"] < first["end"] < 2 + length_s
    assert second["start"] - first["start"] == pytest.approx(2 + length_s, abs=0.1)
    soundfile.write(path, silence, rate)
    assert speech_segments(path) == []
