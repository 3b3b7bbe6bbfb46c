"""The predicted spread of raters against what the raters of each utterance did."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_training.data.utterances import RATINGS, Utterance
from mtmm_training.scoring.intervals import interval_if_any
from mtmm_training.scoring.metrics import by_rows, or_none

RESAMPLES = 1000


def spread_scores(
    predicted: Mapping[str, np.ndarray], utterances: Sequence[Utterance]
) -> dict[str, dict[str, Any]]:
    """By dimension, Pearson's correlation of predicted and observed standard deviations.

    The observed one is the sample's (n − 1) of an utterance's ratings, of which there are few: their
    chance alone keeps the correlation below 1.

    Args:
        predicted: By dimension, (utterances,) on the labels' scale.
        utterances: In the same order; those with one rating or none are left out.

    Returns:
        "correlation", "low" and "high" of its 95 % interval over speakers (None without one),
        "predicted" and "observed", the means of both, and "utterances", how many count.
    """
    found = {}
    for name, deviations in predicted.items():
        ratings = [getattr(u, RATINGS[name]) or () for u in utterances]
        rows = np.array([i for i, own in enumerate(ratings) if len(own) > 1], dtype=int)
        if len(rows) < 2:
            continue
        own = deviations[rows]
        observed = np.array([np.std(ratings[i], ddof=1) for i in rows])
        speakers = np.array([utterances[i].speaker_id for i in rows])
        interval = interval_if_any(by_rows(_pearson, own, observed), speakers, RESAMPLES)
        found[name] = {
            "correlation": or_none(interval.point),
            "low": or_none(interval.low),
            "high": or_none(interval.high),
            "predicted": float(own.mean()),
            "observed": float(observed.mean()),
            "utterances": len(rows),
        }
    return found


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Between −1 and 1; NaN where one of them is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])
