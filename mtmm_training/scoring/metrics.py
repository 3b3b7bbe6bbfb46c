"""Scores of predictions against labels, in float64, each over a whole split at once.

Emotions are class indices with -100 for an absent label; dimensions are on the labels' scale with
NaN for an absent label. Absent labels are left out everywhere. A score that has no value (no
labels, or a zero denominator) is NaN where a function returns one number, None in the dicts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn import metrics as sklearn_metrics

ABSENT_EMOTION = -100
TEMPERATURE_BOUNDS = (0.05, 20.0)

Score = Callable[[np.ndarray], float]  # of row positions, repeats allowed


def confusion(labels: ArrayLike, predictions: ArrayLike, emotions: Sequence[str]) -> np.ndarray:
    """Counts utterances by labelled and predicted emotion.

    Args:
        labels: (utterances,) indices into `emotions`, -100 = absent.
        predictions: (utterances,) indices into `emotions`.
        emotions: names in the order of their index.

    Returns:
        (emotions, emotions) integers; rows are labels, columns predictions.

    Raises:
        ValueError: an index is outside `emotions`; it would count in another cell.
    """
    labels, predictions = _with_emotion(labels, predictions)
    n = len(emotions)
    indices = np.concatenate([labels, predictions])
    outside = indices[(indices < 0) | (indices >= n)]
    if outside.size:
        raise ValueError(f"{outside[0]} is no index into the {n} emotions {', '.join(emotions)}.")
    # Not sklearn's confusion_matrix: its input checks take 1 ms, and a bootstrap calls this
    # thousands of times.
    return np.bincount(labels * n + predictions, minlength=n * n).reshape(n, n)


def recall_per_emotion(
    labels: ArrayLike, predictions: ArrayLike, emotions: Sequence[str]
) -> np.ndarray:
    """Gives each emotion's recall, (emotions,) in 0..1; NaN where the emotion has no labels."""
    counts = confusion(labels, predictions, emotions)
    labelled = counts.sum(axis=1)
    return np.where(labelled > 0, counts.diagonal() / np.maximum(labelled, 1), np.nan)


def unweighted_average_recall(
    labels: ArrayLike, predictions: ArrayLike, emotions: Sequence[str]
) -> float:
    """Averages the recall over the emotions that occur in the labels (UAR).

    An emotion without labels is left out of the mean rather than counted as 0, as in
    scikit-learn's `balanced_accuracy_score`: a fold whose speaker never was angry is not punished.

    Args:
        labels: (utterances,) indices into `emotions`, -100 = absent.
        predictions: (utterances,) indices into `emotions`.
        emotions: names in the order of their index.

    Returns:
        0..1, or NaN without labels.
    """
    recalls = recall_per_emotion(labels, predictions, emotions)
    recalls = recalls[~np.isnan(recalls)]
    return float(recalls.mean()) if recalls.size else np.nan


def weighted_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Gives the share of labelled utterances that are right (WAR, accuracy): 0..1 or NaN.

    Recall weighted by how often each emotion occurs is accuracy, hence the field's name for it.
    """
    labels, predictions = _with_emotion(labels, predictions)
    return float(sklearn_metrics.accuracy_score(labels, predictions)) if labels.size else np.nan


def top2_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The share of labelled utterances whose emotion is among the two most probable: 0..1, or NaN."""
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    there = labels != ABSENT_EMOTION
    two = np.argsort(-probabilities[there], axis=1, kind="stable")[:, :2]
    return float((two == labels[there, None]).any(1).mean()) if there.any() else np.nan


def f1(labels: ArrayLike, predictions: ArrayLike, average: str) -> float:
    """Averages F1 over the emotions that occur in the labels: 0..1, or NaN without labels.

    Args:
        labels: (utterances,) emotion indices, -100 = absent.
        predictions: (utterances,) emotion indices.
        average: "macro", or "weighted" by how often each emotion is in the labels, which is what is
            usually reported for MELD.
    """
    labels, predictions = _with_emotion(labels, predictions)
    if not labels.size:
        return np.nan
    options = {"labels": np.unique(labels), "average": average, "zero_division": 0.0}
    return float(sklearn_metrics.f1_score(labels, predictions, **options))


def concordance_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Lin's concordance correlation coefficient (CCC) with population moments.

    2·cov(x, y) / (var x + var y + (mean x − mean y)²)

    Args:
        predictions: (utterances,) one dimension, on the labels' scale.
        labels: (utterances,) the same dimension, NaN = absent.

    Returns:
        -1..1. NaN with fewer than two labels, or where all labels and predictions are one same
        number, which is when the denominator is zero.

    Raises:
        ValueError: a labelled utterance's prediction is not finite.

    Source:
        Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 1989.
    """
    x, y = _with_dimension(predictions, labels)
    together = np.concatenate([x, y])
    # Equality of all values rather than of the denominator with 0: a mean of equal numbers may be
    # off by a rounding error, and the quotient of two such errors would look like a score.
    if x.size < 2 or together.min() == together.max():
        return np.nan
    # A common factor and a common shift change nothing. A power of two keeps squares from overflow
    # and underflow; the shift keeps means of constants, and of near numbers, exact.
    x, y = np.ldexp((x, y), -np.frexp(np.abs(together).max())[1])
    x, y = x - y[0], y - y[0]
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def mean_absolute_error(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Gives the MAE of one dimension on the labels' scale; NaN labels are left out."""
    x, y = _with_dimension(predictions, labels)
    return float(sklearn_metrics.mean_absolute_error(y, x)) if x.size else np.nan


def root_mean_squared_error(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Gives the RMSE of one dimension on the labels' scale; NaN labels are left out."""
    x, y = _with_dimension(predictions, labels)
    return float(sklearn_metrics.root_mean_squared_error(y, x)) if x.size else np.nan


DIMENSION_SCORES = {
    "CCC": concordance_correlation,
    "MAE": mean_absolute_error,
    "RMSE": root_mean_squared_error,
}


@dataclass(frozen=True)
class CalibrationBins:
    """Utterances grouped by the probability of the predicted emotion, each field (bins,).

    `confidence` and `accuracy` are means within the bin in 0..1, NaN in an empty one.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration_bins(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> CalibrationBins:
    """Groups labelled utterances into equal-width bins of their highest probability.

    Args:
        probabilities: (utterances, emotions) in 0..1, rows summing to 1.
        labels: (utterances,) emotion indices, -100 = absent; or (utterances, emotions) shares of
            listeners, NaN = absent: the accuracy is the share that heard the predicted emotion.
        bins: how many; bin b holds b/bins < probability <= (b+1)/bins.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    shares, probabilities = with_shares(labels, probabilities)
    top = probabilities.max(axis=1)
    right = shares[np.arange(len(top)), probabilities.argmax(axis=1)]
    index = np.searchsorted(np.arange(1, bins) / bins, top)
    counts = np.bincount(index, minlength=bins)
    divisor = np.where(counts > 0, counts, np.nan)
    return CalibrationBins(
        counts=counts,
        confidence=np.bincount(index, weights=top, minlength=bins) / divisor,
        accuracy=np.bincount(index, weights=right, minlength=bins) / divisor,
    )


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """Averages |accuracy − confidence| over the bins, weighted by their counts (ECE).

    Args:
        probabilities: (utterances, emotions) in 0..1, rows summing to 1.
        labels: as of `calibration_bins`.
        bins: number of equal-width bins of the highest probability.

    Returns:
        0 (calibrated) .. 1, or NaN without labels.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    grouped = calibration_bins(probabilities, labels, bins)
    if not grouped.counts.any():
        return np.nan
    gaps = np.nan_to_num(np.abs(grouped.accuracy - grouped.confidence))
    return float(np.average(gaps, weights=grouped.counts))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Finds the temperature that logits are to be divided by, on a validation split.

    The one that minimises the negative log likelihood, which has a single minimum over the log
    temperature, within 0.05..20: without bounds a split without errors would send it to 0. Where
    none is better than 1, because there are no labels, or all logits are equal or all are certain,
    it is 1.

    Args:
        logits: (utterances, emotions).
        labels: as of `calibration_bins`; shares of listeners give the cross-entropy to them.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    shares, logits = with_shares(labels, np.asarray(logits, dtype=np.float64))
    if not shares.size:
        return 1.0

    def negative_log_likelihood(log_temperature: float) -> float:
        return -(shares * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1).mean()

    bounds = tuple(np.log(TEMPERATURE_BOUNDS))
    found = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded")
    return float(np.exp(found.x)) if found.fun < negative_log_likelihood(0.0) else 1.0


def by_rows(function: Callable[..., float], *columns: np.ndarray) -> Score:
    """A function of whole columns as one of some of their rows."""
    return lambda rows: function(*(column[rows] for column in columns))


def difference(one: Score, other: Score) -> Score:
    """One score minus another, of the same rows."""
    return lambda rows: one(rows) - other(rows)


def emotion_scores(
    labels: np.ndarray, answers: np.ndarray, probabilities: np.ndarray, emotions: Sequence[str]
) -> dict[str, Score]:
    """UAR, WAR, top2, the two F1 and ECE of answers (rows,), whose probabilities are (rows, emotions)."""
    recall = partial(unweighted_average_recall, emotions=emotions)
    return {
        "UAR": by_rows(recall, labels, answers),
        "WAR": by_rows(weighted_accuracy, labels, answers),
        "top2": by_rows(top2_accuracy, probabilities, labels),
        "macro_F1": by_rows(partial(f1, average="macro"), labels, answers),
        "weighted_F1": by_rows(partial(f1, average="weighted"), labels, answers),
        "ECE": by_rows(expected_calibration_error, probabilities, labels),
    }


def dimension_scores(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, Score]:
    """CCC_NAME, MAE_NAME and RMSE_NAME of each column."""
    return {
        f"{kind}_{name}": by_rows(function, *columns)
        for name, *columns in zip(names, predictions.T, labels.T, strict=True)
        for kind, function in DIMENSION_SCORES.items()
    }


def headline(scores: Mapping[str, Score]) -> dict[str, Score]:
    """UAR and each CCC of these."""
    return {n: score for n, score in scores.items() if n == "UAR" or n.startswith("CCC_")}


def output_of(score: str) -> str:
    """The output that a score is of: a dimension's name, or "emotion"."""
    kind, _, name = score.partition("_")
    return name if kind in DIMENSION_SCORES else "emotion"


def selection_score(metrics: dict[str, Any], select_by: str = "mean") -> float | None:
    """Reads from a split's metrics the number, higher is better, that the best epoch is chosen by.

    Args:
        metrics: as `Predictions.metrics` gives them.
        select_by: "mean" (of UAR and of every CCC that has a value), "UAR", "WAR", "macro_F1" or
            "CCC_" followed by a dimension's name; "last", which chooses nothing, reads the mean, and
            None where there are no labels.

    Raises:
        ValueError: if `select_by` is unknown, or has no value because labels are absent.
    """
    ccc = {f"CCC_{name}": value for name, value in metrics["CCC"].items()}
    averaged = [value for value in (metrics.get("UAR"), *ccc.values()) if value is not None]
    mean = float(np.mean(averaged)) if averaged else None
    single = {name: metrics.get(name) for name in ("UAR", "WAR", "macro_F1")}
    scores = {"last": mean, "mean": mean} | single | ccc
    if select_by not in scores:
        raise ValueError(f"`select_by` is {select_by!r}; it must be one of {', '.join(scores)}.")
    score = scores[select_by]
    if score is None and select_by != "last":
        raise ValueError(f"`select_by` is {select_by!r}, for which this split has too few labels.")
    return score


def _with_emotion(labels: ArrayLike, outputs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Utterances with an emotion label, and their `outputs`, which has utterances first."""
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    present = labels != ABSENT_EMOTION
    return labels[present].astype(int), outputs[present]


def with_shares(labels: ArrayLike, outputs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Utterances with a label, as (utterances, emotions) shares of listeners, and their `outputs`.

    Args:
        labels: as of `calibration_bins`; a label is all of the listeners.
        outputs: (utterances, ...).
    """
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    if labels.ndim == 1:
        labels, outputs = _with_emotion(labels, outputs)
        return np.eye(outputs.shape[1])[labels], outputs
    present = ~np.isnan(labels[:, 0])
    return labels[present], outputs[present]


def _with_dimension(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Utterances with a label of one dimension, in float64."""
    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    present = ~np.isnan(labels)
    check_finite("predictions", predictions[present])
    return predictions[present], labels[present]


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises ValueError for a NaN or an infinite number among these values."""
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(f"{wrong} of {values.size} {name} are not finite: the model diverged.")


def or_none(value: float) -> float | None:
    """The value, or None for NaN, which JSON has no word for."""
    return None if np.isnan(value) else float(value)
