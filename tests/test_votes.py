"""Scores against votes, the ceiling of one listener, calibration to votes."""

import math
from typing import Any

import numpy as np
import pytest

from configuration_mtmm import MTMMConfig
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.metrics import (
    expected_calibration_error,
    fit_temperature,
    top2_accuracy,
)
from mtmm_training.scoring.predictions import Predictions, calibrate
from mtmm_training.scoring.votes import (
    jensen_shannon,
    listener_ceiling,
    soft_cross_entropy,
    vote_scores,
    vote_table,
)

EMOTIONS = ("angry", "happy", "sad", "neutral")
NONE = [math.nan] * 4


def utterance(name: str, **fields: object) -> Utterance:
    return Utterance(utterance_id=name, corpus="c", text="x", speaker_id="s", **fields)  # type: ignore[arg-type]


def test_votes_of_other_emotions_are_left_out() -> None:
    said = [{"angry": 2.0, "sad": 1.0, "other": 3.0}, {"other": 2.0}, None]
    np.testing.assert_array_equal(vote_table(said, EMOTIONS), [[2, 0, 1, 0], NONE, NONE])


def test_divergence_and_cross_entropy() -> None:
    votes = np.array([[1.0, 0, 0, 0], [2, 2, 0, 0], NONE])
    shares = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    # Of (1, 0) and (1/2, 1/2), whose mean is (3/4, 1/4), in bits.
    apart = (-math.log2(0.75) + 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)) / 2
    assert jensen_shannon(shares, votes) == pytest.approx(apart / 2)
    assert soft_cross_entropy(shares, votes) == pytest.approx(math.log(2))
    found = {name: score(np.array([0, 2])) for name, score in vote_scores(shares, votes).items()}
    assert found["JSD_votes"] == pytest.approx(apart) and found["CE_votes"] > 0
    assert math.isnan(vote_scores(shares, votes)["JSD_votes"](np.array([2])))
    assert vote_scores(shares, None) == {}


def test_calibration_error_to_votes_is_zero_where_shares_are_met() -> None:
    probabilities = np.array([[0.6, 0.4, 0, 0]] * 5)
    assert expected_calibration_error(probabilities, probabilities) == pytest.approx(0)
    labels = np.array([0, 0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.2)


def test_two_highest_hold_the_label_or_not() -> None:
    probabilities = [[0.4, 0.3, 0.2, 0.1]] * 4
    assert top2_accuracy(probabilities, [0, 1, 2, -100]) == pytest.approx(2 / 3)


def test_temperature_is_fitted_to_votes_and_said() -> None:
    logits = np.log([[0.96, 0.04 / 3, 0.04 / 3, 0.04 / 3]] * 6) * 2
    votes = np.array([[96.0, 4 / 3, 4 / 3, 4 / 3]] * 6)
    assert fit_temperature(logits, votes / votes.sum(1, keepdims=True)) == pytest.approx(2, 1e-3)
    config: Any = MTMMConfig.tiny(trained_outputs=("emotion",))
    nothing = np.full((6, 2), math.nan)
    ids = [str(i) for i in range(6)]
    rows = Predictions(ids, logits, np.zeros((6, 2)), np.full(6, -100), nothing, votes)
    assert calibrate(config, rows) == pytest.approx(2, 1e-3)
    assert config.calibrated_on == "votes"
    assert rows.at(np.array([0, 2])).metrics(config, 2.0)["ECE_votes"] == pytest.approx(0, abs=1e-6)
    plain = Predictions(ids, logits, np.zeros((6, 2)), np.zeros(6, int), nothing)
    calibrate(config, plain)
    assert config.calibrated_on == "labels"


def test_one_listener_against_the_others() -> None:
    heard = [
        utterance("a", votes={"angry": 3.0}),  # each agrees with two
        utterance("b", votes={"angry": 2.0, "sad": 1.0}),  # 2/3 undecided, one is wrong
        utterance("c", votes={"sad": 2.0}),
        utterance("d", votes={"sad": 1.0}, valence_ratings=(1.0, 3.0)),
        utterance("e", valence_ratings=(2.0, 4.0)),
    ]
    found = listener_ceiling(heard, EMOTIONS)
    assert found["recall"] == {
        "angry": pytest.approx(0.75), "happy": None, "sad": 1.0, "neutral": None,
    }  # fmt: skip
    assert found["UAR"] == pytest.approx(0.875)
    assert found["WAR"] == pytest.approx(2 / (2 + 1 / 3))
    # Pairs (1, 3), (3, 1), (2, 4), (4, 2): covariance −.75, variances 1.25.
    assert found["CCC"] == {"valence": pytest.approx(-0.6)}
    assert listener_ceiling([utterance("f", emotion="sad")], EMOTIONS) == {}
