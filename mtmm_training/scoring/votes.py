"""Scores against what listeners said, what one reaches against the others, and the spread of raters.

Votes are (utterances, emotions), how many listeners heard each; rows of NaN have none. Votes for emotions
that the model does not predict ("other") are left out, as in training. Probabilities are expected shares
of the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import jensenshannon

from mtmm_training.data.utterances import RATINGS, Utterance
from mtmm_training.scoring.intervals import paired_bootstrap
from mtmm_training.scoring.metrics import (
    Score,
    by_rows,
    concordance_correlation,
    expected_calibration_error,
    or_none,
    with_shares,
)

RESAMPLES = 1000  # of the spread's correlation


def vote_table(votes: Iterable[Mapping[str, float] | None], emotions: Sequence[str]) -> np.ndarray:
    """Votes by name as (utterances, emotions); NaN without any for one of the emotions."""
    rows = [[(own or {}).get(name, 0.0) for name in emotions] for own in votes]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(emotions))
    return np.where(table.sum(1, keepdims=True) > 0, table, np.nan)


def shares_of(votes: np.ndarray) -> np.ndarray:
    """Votes as shares that sum to 1."""
    return votes / votes.sum(1, keepdims=True)


def jensen_shannon(probabilities: ArrayLike, votes: np.ndarray) -> float:
    """The mean divergence of probabilities and shares of votes, in bits: 0 (the same) to 1, or NaN.

    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    votes, probabilities = with_shares(votes, probabilities)
    if not len(votes):
        return np.nan
    distances = jensenshannon(probabilities, shares_of(votes), base=2, axis=1)
    return float(np.mean(np.nan_to_num(distances) ** 2))  # NaN: a root of a rounding error below 0


def soft_cross_entropy(probabilities: ArrayLike, votes: np.ndarray) -> float:
    """The mean of −Σ share · log probability, in nats; NaN without votes."""
    votes, probabilities = with_shares(votes, probabilities)
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return float(-(shares_of(votes) * logs).sum(1).mean()) if len(votes) else np.nan


VOTE_SCORES = {
    "JSD_votes": jensen_shannon,
    "CE_votes": soft_cross_entropy,
    "ECE_votes": lambda probabilities, votes: expected_calibration_error(
        probabilities, shares_of(votes)
    ),
}


def vote_scores(probabilities: np.ndarray, votes: np.ndarray | None) -> dict[str, Score]:
    """Each of these as a function of row positions; {} without votes."""
    if votes is None:
        return {}
    return {name: by_rows(score, probabilities, votes) for name, score in VOTE_SCORES.items()}


# ---- one listener against the others ------------------------------------------------------------


def listener_ceiling(utterances: Sequence[Utterance], emotions: Sequence[str]) -> dict[str, Any]:
    """What one listener reaches against the others, where each is left out in turn.

    A vote is right where the others' leading emotion is the same; where they lead with two, nothing is
    counted. An utterance's votes count as one utterance together. A rating is paired with the mean of
    the others'.

    Returns:
        "UAR", "WAR", "recall" (by emotion) and "JSD_votes" of utterances with two votes or more;
        "CCC", by dimension. Nothing of what has no votes or ratings.
    """
    found: dict[str, Any] = {}
    votes = vote_table((u.votes for u in utterances), emotions)
    votes = votes[votes.sum(1) >= 2]
    if len(votes):
        found |= _of_votes(votes, emotions)
    concordance = {}
    for name, ratings in RATINGS.items():
        several = [own for u in utterances if len(own := getattr(u, ratings) or ()) > 1]
        pairs = [(own[i], (sum(own) - own[i]) / (len(own) - 1)) for own in several
                 for i in range(len(own))]  # fmt: skip
        if pairs:
            concordance[name] = or_none(concordance_correlation(*np.transpose(pairs)))
    return found | ({"CCC": concordance} if concordance else {})


def _of_votes(votes: np.ndarray, emotions: Sequence[str]) -> dict[str, Any]:
    counts, divergences = np.zeros((len(emotions), len(emotions))), []
    for row in votes:
        for heard in np.flatnonzero(row):
            others = row.copy()
            others[heard] = max(others[heard] - 1, 0.0)
            share = row[heard] / row.sum()
            one = np.eye(len(emotions))[[heard]]
            divergences.append((jensen_shannon(one, others[None]), share))
            leading = np.flatnonzero(others == others.max())
            if len(leading) == 1:
                counts[leading[0], heard] += share
    labelled, right = counts.sum(1), counts.diagonal()
    recall = np.where(labelled > 0, right / np.maximum(labelled, 1e-300), np.nan)
    known = recall[~np.isnan(recall)]
    values, weights = np.transpose(divergences)
    return {
        "UAR": or_none(known.mean() if len(known) else np.nan),
        "WAR": or_none(right.sum() / labelled.sum() if labelled.any() else np.nan),
        "recall": dict(zip(emotions, map(or_none, recall), strict=True)),
        "JSD_votes": float(np.average(values, weights=weights)),
    }


# ---- the spread of raters -----------------------------------------------------------------------


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
        interval = paired_bootstrap(by_rows(_pearson, own, observed), speakers, RESAMPLES)
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
