"""python -m pytest tests/test_segments.py -q"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mtmm_training.data import segments
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
    monkeypatch.setattr(segments, "silero_vad", fake)


def recording(path: Path, *loud: tuple[float, float]) -> Path:
    """Ten seconds, silent but for these stretches."""
    waveform = np.zeros(10 * RATE, np.float32)
    for start, end in loud:
        waveform[round(start * RATE) : round(end * RATE)] = 0.8
    soundfile.write(path, waveform, RATE)
    return path


@pytest.mark.parametrize(
    "loud", [[], [(1.0, 2.5)], [(0.0, 1.0), (3.0, 4.5), (8.0, 10.0)]], ids=["none", "one", "ends"]
)
def test_segments_are_the_loud_stretches(
    loud: list[tuple[float, float]], loud_is_speech: None, tmp_path: Path
) -> None:
    found = speech_segments(recording(tmp_path / "a.wav", *loud))
    assert len(found) == len(loud)
    for segment, (start, end) in zip(found, loud, strict=True):
        assert 0 <= segment["start"] and segment["end"] <= 10
        assert segment["start"] == pytest.approx(start, abs=0.05)
        assert segment["end"] == pytest.approx(end, abs=0.05)


def test_segments_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "silero_vad", None)
    with pytest.raises(ImportError, match="silero-vad"):
        speech_segments("a.wav")


def test_segments_of_real_detector_leave_silence_out(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad", reason="silero-vad is not installed; pip install silero-vad")
    assert "silero_vad" in sys.modules
    assert speech_segments(recording(tmp_path / "a.wav")) == []
