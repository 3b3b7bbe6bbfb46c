"""Intervals of scores by a bootstrap over speakers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value on all utterances, and the 95 % interval around it.

    Args:
        point: the value; NaN without labels.
        low: NaN where there is no interval, as `high`.
        high: the upper end.
        reason: why there is no interval.
    """

    point: float
    low: float = np.nan
    high: float = np.nan
    reason: str | None = None


def paired_bootstrap(
    metric: Callable[[np.ndarray], float],
    speakers: Sequence[str] | np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> Interval:
    """Gives the 95 % percentile interval of a metric, if there is one, resampling whole speakers.

    Utterances of one speaker are not independent, so speakers are drawn with replacement and bring
    all their utterances along. Two variants are compared in pairs: `metric` scores both on the same
    utterances and returns the difference. With few speakers (under about ten) percentile intervals
    are known to be too narrow.

    Args:
        metric: takes utterance indices (drawn,), with repeats; returns a metric or a difference.
        speakers: (utterances,) who speaks, over the pooled test utterances.
        resamples: how many draws.
        seed: the same seed gives the same interval, and pairs the draws of different metrics.
        strata: (utterances,), groups of speakers, each of which keeps its number of speakers in a
            draw; without effect where a speaker is in several.

    Returns:
        The interval; none of fewer than two speakers, nor where `metric` is undefined on a draw.

    Source:
        Percentile interval: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13.
        Clusters: Field and Welsh, "Bootstrapping clustered data", JRSS B 2007. In pairs and by
        speaker: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
        evaluation", ICASSP 2004.
    """
    names, owner = np.unique(np.asarray(speakers), return_inverse=True)
    point = float(metric(np.arange(len(owner))))
    if len(names) < 2:
        reason = f"an interval over speakers needs at least 2, there are {len(names)}."
        return Interval(point, reason=reason)
    utterances = [np.flatnonzero(owner == speaker) for speaker in range(len(names))]
    apart = [np.arange(len(names))]
    if strata is not None and all(len(set(strata[rows])) == 1 for rows in utterances):
        homes = np.array([strata[rows[0]] for rows in utterances])
        apart = [np.flatnonzero(homes == stratum) for stratum in np.unique(homes)]
        if min(map(len, apart)) < 2:
            reason = "an interval over speakers needs at least 2 in each group."
            return Interval(point, reason=reason)
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for i in range(resamples):
        drawn = np.concatenate([own[generator.integers(len(own), size=len(own))] for own in apart])
        draws[i] = metric(np.concatenate([utterances[speaker] for speaker in drawn]))
    undefined = int(np.isnan(draws).sum())
    if undefined or np.isnan(point):
        where = f"on {undefined} of {resamples} draws of speakers"
        return Interval(point, reason=f"{where} the score has no value; too few have labels.")
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(point, float(low), float(high))


def effective_speakers(speakers: Sequence[str] | np.ndarray) -> float:
    """How many speakers with equally many utterances would weigh as much as these (0 of none).

    Args:
        speakers: (utterances,) who speaks.

    Source:
        Effective sample size: Kish, "Survey Sampling", 1965.
    """
    sizes = np.unique(np.asarray(speakers), return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / np.square(sizes).sum()) if sizes.size else 0.0
