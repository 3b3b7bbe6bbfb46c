"""Two experiments on the same test utterances: their differences, with intervals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtmm_training.data.utterances import DIMENSIONS
from mtmm_training.scoring.intervals import Interval, paired_bootstrap
from mtmm_training.studies.experiments import (
    COMPARED,
    Experiment,
    _listed,
    folds_and_utterances,
    markdown_table,
    mean_and_sd,
    number,
    spread,
    summarise,
    title,
)

RESAMPLES = 2000  # of the bootstrap
FEW_SPEAKERS = 10  # up to so many, percentile intervals over speakers are known to be too narrow


@dataclass(frozen=True)
class Difference:
    """One metric of an experiment minus that of the reference, on the same test utterances.

    Args:
        by_fold: "mean", "sd" and "n" of the differences within folds.
        pooled: over all test utterances at once, with the 95 % interval of a bootstrap that draws
            speakers; None where there is none.
        speakers: so many of equal size would weigh as much as those who have labels of this metric
            (Kish's effective sample size).
        reason: why there is no interval.
    """

    by_fold: dict[str, Any]
    pooled: Interval | None
    speakers: float
    reason: str | None = None


def compare(reference: Experiment, other: Experiment) -> dict[str, Difference]:
    """Pairs two experiments by fold and by utterance: `other` minus `reference`.

    Returns:
        UAR, WAR, the two F1 and the CCC of each dimension, as far as both have that output.

    Raises:
        ValueError: they do not have the same test utterances with the same labels in the same folds.
    """
    other = _aligned(reference, other)
    return {
        name: _difference(reference, other, name)
        for name in COMPARED
        if name in reference.scores and name in other.scores
    }


def _difference(reference: Experiment, other: Experiment, name: str) -> Difference:
    def difference(rows: np.ndarray) -> float:
        return other.scores[name](rows) - reference.scores[name](rows)

    by_fold = mean_and_sd(list(reference.by("fold", difference).values()))
    # Who has no label says nothing, and would only make the draws differ in size.
    rows = reference.labelled(name)
    speakers = reference.rows["speaker"].iloc[rows]
    sizes = speakers.value_counts().to_numpy(np.float64)
    effective = float(sizes.sum() ** 2 / np.square(sizes).sum()) if len(rows) else 0.0
    try:
        interval = paired_bootstrap(
            lambda drawn: difference(rows[drawn]), speakers.to_numpy(), RESAMPLES
        )
    except ValueError as error:  # too few speakers or labels for any interval
        return Difference(by_fold, None, effective, str(error))
    return Difference(by_fold, interval, effective)


def _aligned(reference: Experiment, other: Experiment) -> Experiment:
    """`other` with its rows in the order of the reference's, if they are about the same."""
    pair = f"{reference.name} and {other.name}"
    if set(reference.runs) != set(other.runs):
        raise ValueError(
            f"{pair} cannot be paired: the first has the folds {_listed(reference.runs)}, the second "
            f"{_listed(other.runs)}. Run the missing ones."
        )
    first, second = (e.rows.set_index(["fold", "id"]) for e in (reference, other))
    lone = first.index.symmetric_difference(second.index)
    if len(lone):
        fold, utterance = lone[0]
        raise ValueError(
            f"{pair} cannot be paired: {len(lone)} test utterances are in one only, such as "
            f"{utterance!r} of fold {fold}. Give both the same corpus, protocol and seed, or one "
            "--folds_file."
        )
    second = second.loc[first.index]
    for column in ("speaker", "emotion_label", *(f"{name}_label" for name in DIMENSIONS)):
        if column in first and column in second:
            _refuse_other_labels(pair, first[column], second[column])
    return Experiment(other.name, other.runs, other.missing, second.reset_index())


def _refuse_other_labels(pair: str, first: pd.Series, second: pd.Series) -> None:
    if pd.api.types.is_numeric_dtype(first):  # as written, with six digits or more
        same = np.isclose(first, second, rtol=1e-4, equal_nan=True)
    else:
        same = ((first == second) | (first.isna() & second.isna())).to_numpy()
    if not same.all():
        (fold, utterance), a, b = first.index[~same][0], first[~same].iloc[0], second[~same].iloc[0]
        raise ValueError(
            f"{pair} cannot be paired: {first.name} of utterance {utterance!r} in fold {fold} is "
            f"{a!r} in the first and {b!r} in the second. Make both from the same labels."
        )


def gain(difference: Difference | None) -> str:
    """The pooled difference with its interval; without an interval nothing."""
    if difference is None or difference.pooled is None:
        return "–"
    interval = difference.pooled
    bounds = f"{number(interval.low, '+')}, {number(interval.high, '+')}"
    return f"{number(interval.point, '+')} [{bounds}]"


def comparison_markdown(
    reference: Experiment, other: Experiment, differences: Mapping[str, Difference]
) -> str:
    """Two experiments side by side, metric by metric, with the difference and its interval."""
    a, b = summarise(reference), summarise(other)
    rows = []
    for name, difference in differences.items():
        by_fold = "–"
        if difference.pooled is not None:
            by_fold = f"{spread(difference.by_fold, '+')} (n = {difference.by_fold['n']})"
        values = [spread(summary["metrics"][name]) for summary in (a, b)]
        rows.append([title(name), *values, by_fold, gain(difference)])
    header = ["metric", reference.name, other.name, "difference by fold"]
    header += ["difference pooled [95 % interval]"]
    parts = [f"## {other.name} minus {reference.name}\n", markdown_table(header, rows)]
    return "\n".join([*parts, *notes(a, {other.name: differences})])


def notes(
    reference: Mapping[str, Any], differences: Mapping[str, Mapping[str, Difference]]
) -> list[str]:
    """What a reader of differences must know: coverage, how they came about, what is missing."""
    speakers = reference["speakers"]["count"]
    lines = [
        f"{folds_and_utterances(reference)} of {speakers} speakers. Mean ± sd over folds; intervals "
        f"are percentiles of {RESAMPLES} paired draws of speakers with all their utterances; they say "
        "nothing of another training seed."
    ]
    if reference["missing_folds"]:
        lines.append(f"**Incomplete: folds {_listed(reference['missing_folds'])} are missing.**")
    few = {
        f"{title(name)} {difference.speakers:.1f}": None
        for by_metric in differences.values()
        for name, difference in by_metric.items()
        if difference.pooled is not None and difference.speakers <= FEW_SPEAKERS
    }
    if few:
        lines.append(
            f"Of {FEW_SPEAKERS} speakers or fewer such intervals are too narrow. By their labelled "
            f"utterances the speakers weigh as much as this many equal ones: {', '.join(few)}."
        )
    reasons = {d.reason: None for ds in differences.values() for d in ds.values() if d.reason}
    lines += [f"Differences without an interval are not shown: {reason}" for reason in reasons]
    return [line + "\n" for line in lines]


def as_json(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """Differences by metric, as plain dicts and numbers."""
    return {name: asdict(difference) for name, difference in differences.items()}
