"""Waveforms and transcripts to the tensors of the exported graph, as the processor makes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

try:
    if not TYPE_CHECKING:
        from .timeline_mtmm import check_pair, clean_transcript
except ImportError:  # a checkout, where the shared files lie at the root
    from timeline_mtmm import check_pair, clean_transcript

LEAST_POWER = 1e-10  # of a band, before the logarithm
LEAST_VARIANCE = 1e-7


class Features:
    """What the processor is for the pipeline.

    Args:
        manifest: The export's.
        arrays: The export's; "mel_filters" (bins, mels) of a log-mel encoder.
        folder: The export, where the tokenizer is.
    """

    def __init__(
        self, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path
    ) -> None:
        self.audio, self.text, self.arrays = manifest["audio"], manifest["text"], arrays
        self.sampling_rate: int = self.audio["sampling_rate"]
        self.min_duration_s: float = self.audio["shortest_s"]
        self.tokenizer = Tokenizer.from_file(str(folder / self.text["file"]))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def longest_audio_s(self) -> float:
        """Longest audio that the model takes at once, seconds."""
        return float(self.audio["longest_s"])

    def __call__(self, waveform: np.ndarray | None, text: str | None) -> dict[str, np.ndarray]:
        """Tensors (1, ...) of what is there.

        Args:
            waveform: (time,), float32, at `sampling_rate`; None = absent.
            text: The transcript; None or blank = absent.

        Raises:
            ValueError: Neither is there; the audio is too short, or the text too long.
        """
        said = clean_transcript(text)
        check_pair(self, waveform, said)
        tensors: dict[str, np.ndarray] = {}
        if waveform is not None:
            is_waveform = self.audio["kind"] == "waveform"
            values, mask = (self._normalised if is_waveform else self._log_mel)(waveform)
            tensors |= {"input_values": values[None], "audio_attention_mask": mask[None]}
        if said is not None:
            ids = np.array(self.tokenizer.encode(said).ids, np.int64)
            most = self.text["max_tokens"]
            if len(ids) > most:
                raise ValueError(f"The text has {len(ids)} tokens; at most {most} are taken.")
            tensors |= {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
        return tensors

    def _normalised(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The waveform, of mean 0 and variance 1 where the encoder wants that, and its mask."""
        if self.audio["normalise"]:
            deviation = np.sqrt(np.var(waveform) + LEAST_VARIANCE)
            waveform = (waveform - np.mean(waveform)) / deviation
        return waveform.astype(np.float32), np.ones(len(waveform), np.int64)

    def _log_mel(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whisper's log-mel spectrum (mels, frames) of its whole window, and the real frames.

        Source: WhisperFeatureExtractor of transformers.
        """
        size, hop, samples = (self.audio[name] for name in ("window", "hop", "samples"))
        padded = np.pad(np.pad(waveform, (0, samples - len(waveform))), size // 2, mode="reflect")
        frames = samples // hop  # the last one is left out
        cut = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:frames]
        hann = np.hanning(size + 1)[:-1]
        power = np.abs(np.fft.rfft(cut * hann)) ** 2
        bands = np.log10(np.maximum(power @ self.arrays["mel_filters"], LEAST_POWER))
        bands = (np.maximum(bands, bands.max() - 8) + 4) / 4
        mask = np.arange(frames) < -(-len(waveform) // hop)
        return bands.T.astype(np.float32), mask.astype(np.int64)
