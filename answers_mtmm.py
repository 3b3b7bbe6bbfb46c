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
        shown: What the result has beside the numbers: "text", "transcribed", "explanation".
        used: {"reference": ...} where one was used, for the result of the whole input.
    """

    start_s: float | None
    end_s: float | None
    missing: list[str]
    shown: dict[str, Any]
    used: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prediction:
    """The model's answer: a probability per emotion, a value per dimension."""

    span: Span
    probabilities: list[float]
    dimensions: list[float]

    def entry(self, config: Any, top_k: int | None = None) -> dict[str, Any]:
        """One entry of the timeline; as `summary`."""
        return {
            "start": self.span.start_s,
            "end": self.span.end_s,
            **_named(config, self.probabilities, self.dimensions, top_k),
            "missing": self.span.missing,
            **self.span.shown,
        }

    @staticmethod
    def summary(predictions: "list[Prediction]", config: Any, top_k: int | None) -> dict[str, Any]:
        """The pipeline's result for one input.

        Args:
            predictions: One of the whole input, or one of each window.
            config: The model's configuration.
            top_k: How many of the scores to show; None = all.
        """
        spans = [prediction.span for prediction in predictions]
        probabilities, dimensions = predictions[0].probabilities, predictions[0].dimensions
        shown = spans[0].shown
        if spans[0].start_s is not None:
            weights = time_weights([(span.start_s or 0.0, span.end_s or 0.0) for span in spans])
            probabilities = (weights @ [p.probabilities for p in predictions]).tolist()
            dimensions = (weights @ [p.dimensions for p in predictions]).tolist()
            shown = {"timeline": [prediction.entry(config, top_k) for prediction in predictions]}
        return {
            **_named(config, probabilities, dimensions, top_k),
            "missing": [m for m in MODALITIES if all(m in span.missing for span in spans)],
            "untrained": [n for n in config.output_names if n not in config.trained_outputs],
            **spans[0].used,
            **shown,
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


__all__ = ["Prediction", "Span"]
