"""python -m pytest tests/test_metrics.py -q"""

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from configuration_mtmm import MTMMConfig
from mtmm_training.scoring import metrics
from mtmm_training.scoring.intervals import (
    Interval,
    effective_speakers,
    paired_bootstrap,
)
from mtmm_training.scoring.predictions import Predictions

EMOTIONS = ["angry", "happy", "neutral", "sad"]
DIMENSIONS = ["valence", "arousal"]
NAN = float("nan")


def some_split(utterances: int = 200, seed: int = 0) -> dict[str, Any]:
    """Makes arguments of `Predictions`, about a tenth of the labels absent."""
    generator = np.random.default_rng(seed)
    emotion_labels = generator.integers(0, 4, utterances)
    emotion_logits = generator.normal(size=(utterances, 4)) + 1.5 * np.eye(4)[emotion_labels]
    dimension_labels = generator.uniform(1, 5, (utterances, 2))
    dimensions = dimension_labels + generator.normal(0, 1, (utterances, 2))
    emotion_labels[generator.random(utterances) < 0.1] = -100
    dimension_labels[generator.random((utterances, 2)) < 0.1] = NAN
    return {
        "emotion_labels": emotion_labels,
        "emotion_logits": emotion_logits,
        "dimension_labels": dimension_labels,
        "dimensions": dimensions,
    }


def metrics_of(split: dict[str, Any], temperature: float = 1.0) -> dict[str, Any]:
    """Those of a whole split."""
    config = MTMMConfig(id2label=dict(enumerate(EMOTIONS)), dimension_names=DIMENSIONS)
    ids = [str(i) for i in range(len(split["emotion_labels"]))]
    return Predictions(ids, **split).metrics(config, temperature)


def direct_ccc(x: list[float], y: list[float]) -> float:
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / n
    variance_x = sum((a - mean_x) ** 2 for a in x) / n
    variance_y = sum((b - mean_y) ** 2 for b in y) / n
    return 2 * covariance / (variance_x + variance_y + (mean_x - mean_y) ** 2)


# Emotions


def test_emotion_scores_match_direct_formulas() -> None:
    labels, predictions = [0, 0, 0, 1, 1, 2, 2, 2, 2, -100], [0, 0, 1, 1, 3, 2, 2, 0, 2, 1]
    counts = [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 3, 0], [0, 0, 0, 0]]
    assert metrics.confusion(labels, predictions, EMOTIONS).tolist() == counts
    uar = metrics.unweighted_average_recall(labels, predictions, EMOTIONS)
    assert uar == pytest.approx((2 / 3 + 1 / 2 + 3 / 4) / 3, abs=1e-12)  # sad has no label
    assert metrics.weighted_accuracy(labels, predictions) == pytest.approx(6 / 9, abs=1e-12)
    f1 = (2 * 2 / (3 + 3) + 2 * 1 / (2 + 2) + 2 * 3 / (4 + 3)) / 3
    assert metrics.f1(labels, predictions, "macro") == pytest.approx(f1, abs=1e-12)
    weighted = (3 * 2 * 2 / (3 + 3) + 2 * 2 * 1 / (2 + 2) + 4 * 2 * 3 / (4 + 3)) / 9
    assert metrics.f1(labels, predictions, "weighted") == pytest.approx(weighted, abs=1e-12)


@pytest.mark.parametrize("wrong", [4, -1, 7])
def test_index_of_no_emotion_is_refused(wrong: int) -> None:
    for labels, predictions in (([0, wrong], [0, 1]), ([0, 1], [0, wrong])):
        with pytest.raises(ValueError, match=f"^{wrong} "):
            metrics.confusion(labels, predictions, EMOTIONS)


# Dimensions


def test_dimension_scores_match_direct_formulas() -> None:
    generator = np.random.default_rng(2)
    labels = generator.uniform(1, 5, 50)
    predictions = labels * 0.6 + 1 + generator.normal(0, 0.5, 50)
    with_absent = np.where(np.arange(50) % 5 == 0, NAN, labels)
    kept = np.arange(50) % 5 != 0
    x, y = predictions[kept].tolist(), labels[kept].tolist()
    n = len(x)
    ccc = metrics.concordance_correlation(predictions, with_absent)
    assert ccc == pytest.approx(direct_ccc(x, y), abs=1e-12)
    mae = sum(abs(a - b) for a, b in zip(x, y, strict=True)) / n
    assert metrics.mean_absolute_error(predictions, with_absent) == pytest.approx(mae, abs=1e-12)
    rmse = (sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / n) ** 0.5
    assert metrics.root_mean_squared_error(predictions, with_absent) == pytest.approx(rmse)


@pytest.mark.parametrize(
    ("predictions", "ccc"),
    [
        ([1, 2, 3, 4, 5], 1.0),
        ([5, 4, 3, 2, 1], -1.0),
        ([3, 3, 3, 3, 3], 0.0),
        ([2, 3, 4, 5, 6], 2 * 2 / (2 + 2 + 1)),  # correlates perfectly, yet is off by one
    ],
)
def test_ccc_of_known_predictions(predictions: list[float], ccc: float) -> None:
    found = metrics.concordance_correlation(predictions, [1, 2, 3, 4, 5])
    assert found == pytest.approx(ccc, abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([], []), ([2.0], [3.0]), ([2.0, 3.0], [NAN, 3.0]), ([0.1] * 11, [0.1] * 11)],
)
def test_undefined_ccc_is_nan(predictions: list[float], labels: list[float]) -> None:
    assert np.isnan(metrics.concordance_correlation(predictions, labels))


@pytest.mark.parametrize("size", [1e-200, 1e-5, 1e200])
@pytest.mark.filterwarnings("error")
def test_ccc_does_not_depend_on_the_scale(size: float) -> None:
    predictions, labels = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    expected = metrics.concordance_correlation(predictions, labels)
    scaled = metrics.concordance_correlation(size * predictions, size * labels)
    assert scaled == pytest.approx(expected, rel=1e-12)


def test_diverged_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 predictions"):
        metrics.concordance_correlation([NAN, 2.0, NAN], [1.0, 2.0, NAN])


# Calibration


def test_calibration_error_matches_direct_formula() -> None:
    generator = np.random.default_rng(4)
    probabilities = generator.dirichlet([0.5] * 4, 300)
    labels = generator.integers(0, 4, 300)
    error = 0.0
    for b in range(15):
        chosen = [
            i for i in range(300) if b / 15 < max(probabilities[i]) <= (b + 1) / 15
        ]  # fmt: skip
        if chosen:
            accuracy = sum(probabilities[i].argmax() == labels[i] for i in chosen) / len(chosen)
            confidence = sum(max(probabilities[i]) for i in chosen) / len(chosen)
            error += len(chosen) / 300 * abs(accuracy - confidence)
    found = metrics.expected_calibration_error(probabilities, labels)
    assert found == pytest.approx(error, abs=1e-12)


def test_calibration_leaves_absent_labels_out() -> None:
    probabilities = np.eye(4)[[0, 0]]
    assert metrics.expected_calibration_error(probabilities, [0, -100]) == 0
    assert np.isnan(metrics.expected_calibration_error(probabilities, [-100, -100]))
    assert metrics.calibration_bins(probabilities, [0, -100], bins=5).counts.tolist() == [
        0, 0, 0, 0, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_recovers_known_scale(scale: float) -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 1.5, (20000, 4))
    cumulated = softmax(logits, axis=1).cumsum(axis=1)
    labels = (generator.random((20000, 1)) > cumulated).sum(axis=1).clip(max=3)
    temperature = metrics.fit_temperature(logits * scale, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    before = metrics.expected_calibration_error(softmax(logits * scale, axis=1), labels)
    after = metrics.expected_calibration_error(
        softmax(logits * scale / temperature, axis=1), labels
    )
    assert after < 0.02 and after <= before + 0.005


@pytest.mark.parametrize("logits", [np.zeros((4, 4)), 3e38 * np.eye(4)], ids=["equal", "certain"])
def test_temperature_that_changes_no_likelihood_is_one(logits: np.ndarray) -> None:
    assert metrics.fit_temperature(logits, np.arange(4)) == 1
    assert metrics.fit_temperature(np.eye(4), [-100] * 4) == 1
    certain = metrics.fit_temperature(np.eye(4), np.arange(4))
    assert certain == pytest.approx(metrics.TEMPERATURE_BOUNDS[0], rel=0.01)


# A whole split


def test_metrics_of_a_split_agree_with_single_functions() -> None:
    split = some_split()
    found = metrics_of(split)
    labels, logits = split["emotion_labels"], split["emotion_logits"]
    predictions = logits.argmax(axis=1)
    present = labels != -100
    assert found["utterances"] == 200
    assert found["emotion_labels"] == present.sum() < 200
    uar = sklearn_metrics.balanced_accuracy_score(labels[present], predictions[present])
    assert found["UAR"] == pytest.approx(uar, abs=1e-12)
    assert found["WAR"] == pytest.approx((labels == predictions)[present].mean(), abs=1e-12)
    assert np.mean(list(found["recall"].values())) == pytest.approx(found["UAR"], abs=1e-12)
    assert np.sum(found["confusion"]) == found["emotion_labels"]
    for i, name in enumerate(DIMENSIONS):
        pair = split["dimensions"][:, i], split["dimension_labels"][:, i]
        assert found["CCC"][name] == metrics.concordance_correlation(*pair)
        assert found["MAE"][name] == metrics.mean_absolute_error(*pair)
        assert found["RMSE"][name] == metrics.root_mean_squared_error(*pair)
        assert found["labels"][name] == (~np.isnan(pair[1])).sum() < 200


def test_temperature_changes_only_calibration() -> None:
    split = some_split()
    cold, warm = metrics_of(split), metrics_of(split, temperature=3.0)
    assert cold.pop("ECE") != warm.pop("ECE")
    assert cold == warm


def test_absent_task_is_none_in_json() -> None:
    split = some_split()
    split["emotion_labels"][:] = -100
    split["dimension_labels"][:, 0] = NAN
    found = json.loads(json.dumps(metrics_of(split), allow_nan=False))
    assert found["emotion_labels"] == found["labels"]["valence"] == 0
    assert [found[name] for name in ("UAR", "WAR", "weighted_F1", "ECE", "confusion")] == [None] * 5
    assert found["recall"] == dict.fromkeys(EMOTIONS)
    for score in ("CCC", "MAE", "RMSE"):
        assert found[score]["valence"] is None
        assert found[score]["arousal"] is not None


def test_empty_split_gives_none() -> None:
    split = {name: column[:0] for name, column in some_split().items()}
    found = metrics_of(split)
    assert found["utterances"] == 0 and found["UAR"] is None and found["CCC"]["valence"] is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"emotion_logits": np.full((200, 4), NAN)}, "800 of 800 emotion logits"),
        ({"dimensions": np.full((200, 2), np.inf)}, "predictions"),
        ({"emotion_labels": np.full(200, 9)}, "9"),
    ],
)
def test_wrong_split_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        metrics_of(some_split() | changed)


# Selection


def test_selection_averages_what_has_labels() -> None:
    scores = {"UAR": 0.6, "WAR": 0.7, "macro_F1": 0.5, "CCC": {"valence": 0.2, "arousal": None}}
    assert metrics.selection_score(scores) == pytest.approx((0.6 + 0.2) / 2)
    assert metrics.selection_score(scores | {"UAR": None}) == pytest.approx(0.2)
    assert metrics.selection_score(scores, "WAR") == 0.7
    assert metrics.selection_score(scores, "last") == metrics.selection_score(scores, "mean")
    assert metrics.selection_score(scores, "CCC_valence") == 0.2
    unlabelled = {"UAR": None, "CCC": {"valence": None}}
    assert metrics.selection_score(unlabelled, "last") is None


@pytest.mark.parametrize("select_by", ["CCC_arousal", "mean", "uar"])
def test_selection_refuses_what_is_missing(select_by: str) -> None:
    scores = {"UAR": None, "WAR": None, "macro_F1": None, "CCC": {"arousal": None}}
    with pytest.raises(ValueError, match=f"'{select_by}'"):
        metrics.selection_score(scores, select_by)


# Bootstrap


def test_interval_is_clustered_by_speaker() -> None:
    generator = np.random.default_rng(7)
    speakers = np.repeat([f"speaker {i}" for i in range(20)], 30)
    values = np.repeat(generator.normal(0, 1, 20), 30) + generator.normal(0, 0.1, 600)
    clustered = paired_bootstrap(lambda i: values[i].mean(), speakers, resamples=1000)
    alone = paired_bootstrap(lambda i: values[i].mean(), np.arange(600), resamples=1000)
    assert clustered.point == alone.point == values.mean()
    assert clustered.low < clustered.point < clustered.high
    width = clustered.high - clustered.low
    assert width > 3 * (alone.high - alone.low)
    of_means = values.reshape(20, 30).mean(axis=1).std() / 20**0.5  # sd of the speakers' mean
    assert width == pytest.approx(2 * 1.96 * of_means, rel=0.15)


def test_pairing_narrows_difference() -> None:
    generator = np.random.default_rng(9)
    speakers = np.repeat(np.arange(24), 20)
    hard = np.repeat(generator.normal(0, 1, 24), 20)  # shared by both variants
    first, second = hard + 0.2 + generator.normal(0, 0.3, 480), hard
    difference = paired_bootstrap(lambda i: first[i].mean() - second[i].mean(), speakers)
    single = paired_bootstrap(lambda i: first[i].mean(), speakers)
    assert 0 < difference.low < 0.2 < difference.high
    assert difference.high - difference.low < 0.2 * (single.high - single.low)


def test_bootstrap_draws_whole_speakers() -> None:
    speakers = np.array(["b", "a", "a", "c", "b", "a"])

    def check(drawn: np.ndarray) -> float:
        counts = np.bincount(drawn, minlength=6)
        for speaker in "abc":
            assert len(set(counts[speakers == speaker])) == 1
        return 0.0

    assert paired_bootstrap(check, speakers, resamples=20) == Interval(0, 0, 0)
    values = np.random.default_rng(10).normal(size=6)
    first, again, other = (
        paired_bootstrap(lambda i: values[i].mean(), speakers, 50, seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_bootstrap_refuses_too_little() -> None:
    alone = paired_bootstrap(lambda i: 0.5, ["a", "a"])
    assert alone.point == 0.5 and np.isnan([alone.low, alone.high]).all() and alone.reason
    unlabelled = paired_bootstrap(lambda i: NAN, ["a", "b"], resamples=10)
    assert "10 of 10" in str(unlabelled.reason) and np.isnan(unlabelled.point)


def test_effective_speakers_weigh_as_many_equal_ones() -> None:
    assert effective_speakers(np.repeat(["a", "b", "c"], 5)) == pytest.approx(3)
    assert effective_speakers(["a"] * 3 + ["b"]) == pytest.approx(16 / 10)
    assert effective_speakers([]) == 0
