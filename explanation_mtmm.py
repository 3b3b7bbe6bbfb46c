"""What an answer came from: places in time and words, and what is left without them.

Uploaded to the Hub beside the weights.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

# What the model is given of each modality: its input and its mask.
FEATURES = {
    "audio": ("input_values", "audio_attention_mask"),
    "text": ("input_ids", "attention_mask"),
}


class Word(NamedTuple):
    """A word of a transcript: from which character to which, and the places of its tokens."""

    text: str
    start_char: int
    end_char: int
    tokens: list[int]


@dataclass
class Places:
    """What an explanation looks at, one by one.

    Args:
        of: The output that is explained.
        edges: Of the stretches of time, positions in `audio_attention_mask`; none without audio.
        times: The same in seconds from the recording's beginning.
        words: In their order; none without text.
    """

    of: str
    edges: list[int]
    times: list[float]
    words: list[Word]

    def described(
        self, modalities: Iterable[Any], time: Iterable[Any], words: Iterable[Any]
    ) -> dict[str, Any]:
        """One number for each modality, stretch and word, by name."""
        stretches = zip(pairwise(self.times), time, strict=True)
        return {
            "modalities": dict(zip(FEATURES, modalities, strict=True)),
            "time": [{"start": s, "end": e, "share": share} for (s, e), share in stretches],
            "words": [
                {"text": w.text, "start_char": w.start_char, "end_char": w.end_char, "share": share}
                for w, share in zip(self.words, words, strict=True)
            ],
        }


def _without(features: dict[str, Tensor], modality: str) -> dict[str, Tensor]:
    return {name: value for name, value in features.items() if name not in FEATURES[modality]}


def _silenced(features: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """The audio silent between two positions of its mask."""
    values = features["input_values"].clone()
    log_mel = values.dim() == 3
    values[..., start:end] = values.min() if log_mel else 0.0
    return features | {"input_values": values}


def _without_tokens(features: dict[str, Tensor], tokens: list[int]) -> dict[str, Tensor]:
    """Fewer tokens; without any, the text is absent."""
    kept = [i for i in range(features["input_ids"].shape[1]) if i not in tokens]
    if not kept:
        return _without(features, "text")
    return features | {name: features[name][:, kept] for name in FEATURES["text"]}


def _rank_correlation(shares: np.ndarray, falls: Sequence[float | None]) -> float | None:
    """Spearman's, between shares and sizes of falls; None of fewer than 3, or where all are alike."""
    if len(falls) < 3:
        return None
    x, y = (
        ranks - ranks.mean()
        for ranks in (_ranks(shares), _ranks(np.abs(np.array(falls, dtype=float))))
    )
    size = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / size if size else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the lowest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
