"""The pipeline's answers: the model's numbers by name, and the mean of windows over time.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MODALITIES = ("audio", "text")


@dataclass
class Span:
    """A whole input, or what lies between two times in it.

    Args:
        start_s, end_s: Seconds from the recording's beginning; None of a whole input.
        missing: Modalities that are not there.
        shown: What the result has beside the numbers: "text", "transcribed", "explanation", and
            "no_signal" where the audio has none.
        used: For the result of the whole input: {"reference": ...} where one was used, and
            "untimed_text" where a transcript without times went to every window, "mended": how many words
            and segments had times that could not be.
        speaker: Who speaks in it, where it is a part of an input in which several do.
    """

    start_s: float | None
    end_s: float | None
    missing: list[str]
    shown: dict[str, Any]
    used: dict[str, Any] = field(default_factory=dict)
    speaker: str | None = None

    @classmethod
    def of(cls, part: Any, missing: list[str]) -> "Span":
        """That of a part of an input, a `Part`; it shows what was said in a window with times."""
        shown = {"no_signal": True} if part.silent else {}
        if part.times is not None and part.text and not part.untimed:
            shown["text"] = part.text
        used: dict[str, Any] = {"untimed_text": True} if part.untimed else {}
        if part.mended:
            used["mended"] = part.mended
        start_s, end_s = part.times or (None, None)
        return cls(start_s, end_s, missing, shown, used, part.speaker if part.times else None)

    @property
    def seconds(self) -> float:
        """Its length; 0 of a whole input."""
        return (self.end_s or 0.0) - (self.start_s or 0.0)


@dataclass
class Prediction:
    """The model's answer.

    Args:
        span: Where in the input it is of.
        probabilities: (emotions,); empty, as `dimensions`, where the audio has no signal and there is
            no text: the model was not asked.
        dimensions: (dimensions,).
        deviations: (dimensions,), the spread of listeners' ratings; None where none was learned.
        distances: (modalities,), above 1 is unfamiliar; None where the model cannot tell.
        embedding: "fused", "audio" and "text", (hidden,) each, NaN of what is absent; None where none
            was asked for.
    """

    span: Span
    probabilities: list[float]
    dimensions: list[float]
    deviations: list[float] | None = None
    distances: list[float] | None = None
    embedding: dict[str, list[float]] | None = None

    def entry(
        self, config: Any, top_k: int | None = None, min_confidence: float | None = None
    ) -> dict[str, Any]:
        """One entry of the timeline; as `summary`."""
        return {
            "start": self.span.start_s,
            "end": self.span.end_s,
            **({"speaker": self.span.speaker} if self.span.speaker is not None else {}),
            **self._named(config, top_k, min_confidence),
            "missing": self.span.missing,
            **self._unfamiliar(),
            **self._embedding(),
            **self.span.shown,
        }

    @staticmethod
    def summary(
        predictions: "list[Prediction]",
        config: Any,
        top_k: int | None,
        min_confidence: float | None,
    ) -> dict[str, Any]:
        """The pipeline's result for one input.

        Args:
            predictions: One of the whole input, or one of each window.
            config: The model's configuration.
            top_k: How many of the scores to show; None = all.
            min_confidence: Below it no emotion is named; None = the configuration's.
        """
        spans = [prediction.span for prediction in predictions]
        whole, shown = predictions[0], spans[0].shown
        if spans[0].start_s is not None:
            whole = _mean(predictions)
            entries = [p.entry(config, top_k, min_confidence) for p in predictions]
            shown = {"no_signal": True} if all("no_signal" in s.shown for s in spans) else {}
            shown["timeline"] = entries
            by: dict[str, list[Prediction]] = {}
            for one in predictions:
                if one.span.speaker is not None:
                    by.setdefault(one.span.speaker, []).append(one)
            if by:  # totals of each, over the time in which they speak
                shown["speakers"] = {
                    speaker: {"seconds": round(sum(p.span.seconds for p in own), 3)}
                    | _mean(own)._named(config, top_k, min_confidence)
                    for speaker, own in by.items()
                }
        return {
            **whole._named(config, top_k, min_confidence),
            "missing": [m for m in MODALITIES if all(m in span.missing for span in spans)],
            "untrained": [n for n in config.output_names if n not in config.trained_outputs],
            **whole._unfamiliar(),
            **whole._embedding(),
            **spans[0].used,
            **shown,
        }

    def _named(
        self, config: Any, top_k: int | None, min_confidence: float | None
    ) -> dict[str, Any]:
        """The outputs that were trained, by name."""
        if not self.probabilities:
            names = [n for n in config.dimension_names if n in config.trained_outputs]
            return {"emotion": None, "scores": {}} | dict.fromkeys(names)
        named: dict[str, Any] = {}
        if "emotion" in config.trained_outputs:
            scores = {config.id2label[i]: share for i, share in enumerate(self.probabilities)}
            ranked = sorted(scores.items(), key=lambda item: -item[1])
            emotion, highest = ranked[0]
            least = config.min_confidence if min_confidence is None else min_confidence
            unsure = highest < least
            named = {"emotion": None if unsure else emotion, "scores": dict(ranked[:top_k])}
            if least:
                named["unsure"] = unsure
            if config.calibrated_on == "votes":
                named["agreement"] = highest
        for number, name in enumerate(config.dimension_names):
            if name in config.trained_outputs:
                named[name] = self.dimensions[number]
                if self.deviations is not None and name in config.rated_dimensions:
                    named[f"{name}_sd"] = self.deviations[number]
        return named

    def _unfamiliar(self) -> dict[str, Any]:
        """The modalities that are far from what training had; NaN stands for one that is absent."""
        if self.distances is None:
            return {}
        pairs = zip(MODALITIES, self.distances, strict=True)
        return {"unfamiliar": [name for name, distance in pairs if distance > 1]}

    def _embedding(self) -> dict[str, Any]:
        """The embeddings, None in the place of an absent modality's."""
        if self.embedding is None:
            return {}
        pairs = self.embedding.items()
        return {"embedding": {name: None if row[0] != row[0] else row for name, row in pairs}}


def _mean(predictions: list[Prediction]) -> Prediction:
    """The mean over time; of distances the median, so that most of the time decides."""
    whole_span = predictions[0].span
    predictions = [p for p in predictions if p.probabilities] or predictions[:1]
    spans = [prediction.span for prediction in predictions]
    weights = time_weights([(span.start_s or 0.0, span.end_s or 0.0) for span in spans])

    def mean(name: str) -> list[float] | None:
        rows = [getattr(prediction, name) for prediction in predictions]
        return None if rows[0] is None else (weights @ rows).tolist()

    distances = None
    if predictions[0].distances is not None:
        columns = zip(*(p.distances or () for p in predictions), strict=True)
        distances = [_median(np.array(column), weights) for column in columns]
    probabilities, dimensions = mean("probabilities") or [], mean("dimensions") or []
    embedding = None
    if predictions[0].embedding is not None:
        rows = [prediction.embedding or {} for prediction in predictions]
        embedding = {name: _mean_of_known([r[name] for r in rows], weights) for name in rows[0]}
    return Prediction(
        whole_span, probabilities, dimensions, mean("deviations"), distances, embedding
    )


def _mean_of_known(rows: Sequence[Sequence[float]], weights: np.ndarray) -> list[float]:
    """The mean of rows without NaN; NaN without any."""
    values = np.array(rows)
    own = np.where(np.isnan(values[:, 0]), 0.0, weights)
    with np.errstate(invalid="ignore"):
        return (own @ np.nan_to_num(values) / own.sum()).tolist()


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted median of what is no NaN; NaN without any."""
    there = np.flatnonzero(~np.isnan(values))
    order = there[np.argsort(values[there])]
    if not len(order):
        return float("nan")
    passed = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(passed, passed[-1] / 2)]])


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
