"""Who is understood worse: gaps between groups of speakers, and the lowest and highest speaker."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_training.data.manifest import column_of
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.intervals import paired_bootstrap
from mtmm_training.scoring.metrics import Score, or_none

RESAMPLES = 2000


def group_values(
    utterances: Sequence[Utterance], columns: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """By column, (utterances,) of text, "" = absent; columns without any value are left out.

    Args:
        utterances: In their order.
        columns: Names of a manifest's columns; None = gender.
    """
    values = {
        name: np.array([column_of(u, name) or "" for u in utterances])
        for name in (["gender"] if columns is None else columns)
    }
    return {name: column for name, column in values.items() if (column != "").any()}


def by_value(scores: Mapping[str, Score], values: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Each score of each value's rows; None without labels. Rows without a value are left out."""
    return {
        value: {n: or_none(score(np.flatnonzero(values == value))) for n, score in scores.items()}
        for value in sorted(set(values.tolist()) - {""})
    }


def gaps(
    scores: Mapping[str, Score], values: np.ndarray, speakers: np.ndarray
) -> dict[str, dict[str, Any]]:
    """How far the best group is above the worst, by score, with a 95 % interval.

    The bootstrap draws speakers within each group; where a speaker is in several, from all. Of more
    than two groups the extremes are chosen by the same rows, so the gap is too large by chance.

    Args:
        scores: By name, of row positions.
        values: (rows,), "" = in no group.
        speakers: (rows,).

    Returns:
        By score "lowest" and "highest" (groups), "gap", "interval" ([low, high]; None where there
        is none) and, without one, "reason"; nothing of a score that fewer than two groups have.
    """
    found: dict[str, dict[str, Any]] = {}
    by_group = by_value(scores, values)
    for name, score in scores.items():
        known = {g: own[name] or 0.0 for g, own in by_group.items() if own[name] is not None}
        if len(known) < 2:
            continue
        lowest = min(known, key=known.__getitem__)
        highest = max(reversed(known), key=known.__getitem__)  # another, if all are equal
        rows = np.flatnonzero((values == lowest) | (values == highest))
        own = values[rows]

        def gap(drawn: np.ndarray, score: Score = score, rows: Any = rows, own: Any = own,
                pair: tuple[str, str] = (highest, lowest)) -> float:  # fmt: skip
            above, below = (score(rows[drawn[own[drawn] == group]]) for group in pair)
            return above - below

        drawn = paired_bootstrap(gap, speakers[rows], RESAMPLES, strata=own)
        interval = {"interval": [drawn.low, drawn.high]}
        lacking = {"interval": None, "reason": drawn.reason}
        told = {"lowest": lowest, "highest": highest, "gap": drawn.point}
        found[name] = told | (lacking if drawn.reason else interval)
    return found


def extremes(scores: Mapping[str, Score], speakers: np.ndarray) -> dict[str, dict[str, Any]]:
    """By score, how many speakers have it, and "lowest" and "highest": their "speaker" and "score"."""
    found = {}
    by_speaker = by_value(scores, speakers)
    for name in scores:
        known = [(own[name], s) for s, own in by_speaker.items() if own[name] is not None]
        if known:
            lowest, highest = ({"speaker": s, "score": v} for v, s in (min(known), max(known)))
            found[name] = {"speakers": len(known), "lowest": lowest, "highest": highest}
    return found
