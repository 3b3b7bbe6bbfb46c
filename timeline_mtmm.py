"""Inputs of the pipeline and their transcripts with times; answers to windows, put together in time.

Uploaded to the Hub beside the weights.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MODALITIES = ("audio", "text")
AUDIO_KEYS = {"array", "raw", "bytes", "path"}  # a dict with one of these is audio
UTTERANCE_KEYS = {"audio", "text", "words", "segments"}
INPUT_FORMS = (
    "a path or URL, the bytes of an audio file, an array together with `sampling_rate`, "
    '{"array": waveform, "sampling_rate": Hz}, or {"audio": any of these, "text": transcript} with '
    'either key alone; a transcript with times is "words" or "segments"'
)
TIMED_FORMS = {
    "words": 'a list of {"text": ..., "start": s, "end": s} or {"text": ..., "timestamp": (s, s)}',
    "segments": 'a list of at least one {"start": s, "end": s}, the end after the start',
}
LATE_S = 1.0  # recognisers' times may lie so far behind the end of the audio


class TimedText(NamedTuple):
    """What is said from one time to another, seconds."""

    start_s: float
    end_s: float
    text: str | None


class Transcript:
    """Words in the order of their middles; a word belongs to the window that holds its middle."""

    def __init__(self, words: Sequence[TimedText]) -> None:
        middles = [(word.start_s + word.end_s) / 2 for word in words]
        order = sorted(range(len(words)), key=middles.__getitem__)
        self.middles = [middles[i] for i in order]
        self.texts = [(words[i].text or "").strip() for i in order]
        self.last_s = self.middles[-1] if words else 0.0

    def between(self, start_s: float, end_s: float) -> str:
        """The words whose middles lie from `start_s` up to `end_s`, with spaces between them."""
        first, last = bisect_left(self.middles, start_s), bisect_left(self.middles, end_s)
        return " ".join(text for text in self.texts[first:last] if text)


class Part(NamedTuple):
    """Of an input: a waveform (time,), its text, and its start and end, seconds.

    Each may be None: the times are those of the whole input then.
    """

    waveform: np.ndarray | None
    text: str | None
    times: tuple[float, float] | None


@dataclass
class Given:
    """One input of the pipeline, taken apart."""

    audio: Any = None
    sampling_rate: int | None = None
    text: str | None = None
    transcript: Transcript | None = None  # with times
    segments: list[TimedText] | None = None

    def texts(self) -> Iterator[Part]:
        """The parts of an input without audio."""
        if self.segments is None:
            yield Part(None, self.text, None)
        for start_s, end_s, text in self.segments or []:
            yield Part(None, text, (start_s, end_s))

    def cut(self, recording: Any, windows: Any, whole_s: float) -> Iterator[Part]:
        """The parts of an input with audio, while it is read.

        Args:
            recording: The audio, a `Recording`.
            windows: How it is cut, `Windows`.
            whole_s: What lasts no longer, and has no segments, stays whole.

        Raises:
            ValueError: The transcript does not belong to the recording, or has no times.
        """
        duration_s, transcript = recording.duration_s, self.transcript
        ends_s = math.inf if duration_s is None else duration_s
        if transcript is not None and transcript.last_s > ends_s + LATE_S:
            raise ValueError(
                f"The transcript has words at {transcript.last_s:g} s, and the recording lasts "
                f"{ends_s:.3f} s; is it of another recording?"
            )
        if ends_s <= whole_s and self.segments is None:
            text = self.text if transcript is None else transcript.between(0, math.inf)
            yield Part(recording.whole(windows.sampling_rate), text, None)
            return
        if self.segments and duration_s is None:
            raise ValueError('A stream is cut into windows; "segments" need a whole recording.')
        if self.text is not None and ends_s > windows.window_s:
            raise ValueError(
                f"The recording is cut into windows of {windows.window_s:g} s, but its transcript has no "
                'times; give "words" or "segments" instead of "text", or a `transcriber`.'
            )
        segments: list[Any] = [segment[:2] for segment in self.segments or []]
        for segment in segments or [(0.0, None)]:
            for start_s, end_s, waveform in windows.cut(recording, *segment):
                text = self.text
                if transcript is not None:
                    # Words behind the recording's end are the last window's.
                    is_last = ends_s - end_s < windows.shortest_s
                    text = transcript.between(start_s, math.inf if is_last else end_s)
                yield Part(waveform, text, (start_s, end_s))


def parse_input(given: Any, sampling_rate: int | None = None) -> Given:
    """Take one input of the pipeline apart.

    Args:
        given: In any of the forms that `MTMMPipeline` names.
        sampling_rate: Of an array that comes without its own, Hz.

    Raises:
        ValueError: Unknown keys, a transcript in two forms, times that are none.
    """
    if not isinstance(given, Mapping) or AUDIO_KEYS & set(given):
        return Given(given, sampling_rate)
    fields = dict(given)  # datasets gives rows whose values are made when they are asked for
    keys = set(fields)
    if not keys & UTTERANCE_KEYS or keys - UTTERANCE_KEYS - {"sampling_rate"}:
        raise ValueError(f"An utterance has the keys {sorted(map(str, keys))}; give {INPUT_FORMS}.")
    text = fields.get("text")
    if isinstance(text, str) and not text.strip():
        text = None
    words, segments = parse_timed("words", fields), parse_timed("segments", fields)
    if text is not None and (words is not None or segments is not None):
        raise ValueError('An utterance has "text" and a transcript with times; give one.')
    audio, rate = fields.get("audio"), fields.get("sampling_rate", sampling_rate)
    if words is not None and audio is None:
        raise ValueError('"words" have times in a recording, and there is none; give "text".')
    if words is None:  # what the segments say, if anything
        words = [segment for segment in segments or [] if segment.text is not None] or None
    return Given(audio, rate, text, None if words is None else Transcript(words), segments)


def parse_timed(name: str, fields: Mapping[str, Any]) -> list[TimedText] | None:
    """The "words" or "segments" of an input, None where it has none.

    Raises:
        ValueError: No list of texts with times, in seconds from the beginning.
    """
    items = fields.get(name)
    if items is None:
        return None
    is_list = isinstance(items, (list, tuple)) and (items or name == "words")
    texts = []
    for item in items if is_list else [items]:
        text = _timed_text(name, item)
        if text is None:
            raise ValueError(f'"{name}" has {item!r:.200}; it must be {TIMED_FORMS[name]}.')
        texts.append(text)
    return texts


def _timed_text(name: str, item: Any) -> TimedText | None:
    """One word or segment; None if it is none."""
    try:
        start_s, end_s = item.get("timestamp") or (item["start"], item["end"])
        if name == "words":
            end_s = start_s if end_s is None else end_s  # a recogniser's last word
            allowed = start_s <= end_s and isinstance(item["text"], str)
        else:
            allowed = start_s < end_s and isinstance(item.get("text"), (str, type(None)))
        if not (allowed and 0 <= start_s and end_s < math.inf):
            return None
        return TimedText(float(start_s), float(end_s), item.get("text"))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


# ---- answers -------------------------------------------------------------------------------------


@dataclass
class Span:
    """A whole input, or what lies between two times in it.

    Args:
        start_s, end_s: Seconds from the recording's beginning; None of a whole input.
        missing: Modalities that are not there.
        shown: What the result has beside the numbers: "text", "transcribed", "explanation".
    """

    start_s: float | None
    end_s: float | None
    missing: list[str]
    shown: dict[str, Any]


@dataclass
class Prediction:
    """The model's answer: a probability per emotion, a value per dimension."""

    span: Span
    probabilities: list[float]
    dimensions: list[float]


def summarise(config: Any, predictions: list[Prediction], top_k: int | None) -> dict[str, Any]:
    """The pipeline's result for one input.

    Args:
        config: Of the model.
        predictions: Of the whole input, or of all its windows.
        top_k: How many of the scores to show; None = all.
    """
    spans = [prediction.span for prediction in predictions]
    probabilities, dimensions = predictions[0].probabilities, predictions[0].dimensions
    shown = spans[0].shown
    if spans[0].start_s is not None:
        weights = time_weights([(span.start_s or 0.0, span.end_s or 0.0) for span in spans])
        probabilities = (weights @ [p.probabilities for p in predictions]).tolist()
        dimensions = (weights @ [p.dimensions for p in predictions]).tolist()
        shown = {"timeline": [entry(config, prediction, top_k) for prediction in predictions]}
    return {
        **_named(config, probabilities, dimensions, top_k),
        "missing": [m for m in MODALITIES if all(m in span.missing for span in spans)],
        "untrained": [n for n in config.output_names if n not in config.trained_outputs],
        **shown,
    }


def entry(config: Any, prediction: Prediction, top_k: int | None = None) -> dict[str, Any]:
    """One entry of the timeline; as `summarise`."""
    span = prediction.span
    return {
        "start": span.start_s,
        "end": span.end_s,
        **_named(config, prediction.probabilities, prediction.dimensions, top_k),
        "missing": span.missing,
        **span.shown,
    }


def _named(
    config: Any, probabilities: list[float], dimensions: list[float], top_k: int | None
) -> dict[str, Any]:
    """The outputs that were trained, by name."""
    named: dict[str, Any] = {}
    if "emotion" in config.trained_outputs:
        scores = {config.id2label[i]: share for i, share in enumerate(probabilities)}
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        named = {"emotion": ranked[0][0], "scores": dict(ranked[:top_k])}
    values = zip(config.dimension_names, dimensions, strict=True)
    return named | {name: value for name, value in values if name in config.trained_outputs}


def time_weights(spans: Sequence[tuple[float, float]]) -> np.ndarray:
    """Weights of spans that sum to 1: each instant counts once, shared by the spans that overlap there."""
    starts, ends = np.array(spans).T
    edges = np.unique(spans)
    begun = np.searchsorted(np.sort(starts), edges[:-1], "right")
    ended = np.searchsorted(np.sort(ends), edges[:-1], "right")
    share_s = np.diff(edges) / np.maximum(begun - ended, 1)  # of each span that is there
    seconds = np.concatenate([[0.0], np.cumsum(share_s)])
    weights = seconds[np.searchsorted(edges, ends)] - seconds[np.searchsorted(edges, starts)]
    return weights / weights.sum()


__all__ = ["Part", "Prediction", "Span", "entry", "parse_input", "summarise"]
