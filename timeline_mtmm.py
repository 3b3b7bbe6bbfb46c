"""Transcripts with times, and the mean over time.

Uploaded to the Hub beside the weights.
"""

import math
from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np


class TimedText(NamedTuple):
    """Words that are said from one time to another, seconds."""

    start_s: float
    end_s: float
    text: str | None


class Transcript:
    """Words in the order of their middles; a word belongs to the stretch that holds its middle."""

    def __init__(self, words: list[TimedText]) -> None:
        middles = [(word.start_s + word.end_s) / 2 for word in words]
        order = sorted(range(len(words)), key=middles.__getitem__)
        self.middles = [middles[i] for i in order]
        self.texts = [(words[i].text or "").strip() for i in order]

    def last_s(self) -> float:
        """Middle of the last word; 0 if there is none."""
        return self.middles[-1] if self.middles else 0.0

    def between(self, start_s: float, end_s: float) -> str:
        """The words whose middles lie from `start_s` up to `end_s`, with spaces between them."""
        first, last = bisect_left(self.middles, start_s), bisect_left(self.middles, end_s)
        return " ".join(text for text in self.texts[first:last] if text)


def _shares_of_time(spans: list[tuple[float, float]]) -> np.ndarray:
    """Weights that sum to 1: each instant counts once, shared by the spans that overlap there."""
    starts, ends = np.array(spans).T
    edges = np.unique(spans)
    hearing = np.searchsorted(np.sort(starts), edges[:-1], "right") - np.searchsorted(
        np.sort(ends), edges[:-1], "right"
    )
    seconds = np.concatenate([[0.0], np.cumsum(np.diff(edges) / np.maximum(hearing, 1))])
    shares = seconds[np.searchsorted(edges, ends)] - seconds[np.searchsorted(edges, starts)]
    return shares / shares.sum()


def _timed(name: str, inputs: dict[str, Any]) -> list[TimedText] | None:
    """The list of timed texts under this key, checked."""
    items = inputs.get(name)
    if items is None:
        return None
    if not isinstance(items, (list, tuple)) or not (items or name == "words"):
        raise ValueError(f'"{name}" is {items!r}; {_TIMED_FORMS[name]}.')
    texts = []
    for number, item in enumerate(items):
        try:
            start_s, end_s = item.get("timestamp") or (item["start"], item["end"])
            if name == "words" and end_s is None:  # a recogniser's last word
                end_s = start_s
            text = item.get("text") if name == "segments" else item["text"]
            allowed = 0 <= start_s <= end_s < math.inf and (name == "words" or start_s < end_s)
            allowed = allowed and (isinstance(text, str) or (text is None and name == "segments"))
            times = float(start_s), float(end_s)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            allowed = False
        if not allowed:
            raise ValueError(f'"{name}" has {item!r} at place {number}; {_TIMED_FORMS[name]}.')
        texts.append(TimedText(*times, text))
    return texts


_TIMED_FORMS = {
    "words": 'give a list of {"text": ..., "start": s, "end": s} or {"text": ..., "timestamp": (s, s)}, '
    "in seconds from the beginning",
    "segments": 'give a list of at least one {"start": s, "end": s}, in seconds, the end after the start, '
    'with or without "text"',
}
