"""Answers: when no emotion is named, what listeners would agree on, what is unfamiliar."""

import math
from typing import Any

import pytest
from conftest import noise

from answers_mtmm import Prediction, Span
from configuration_mtmm import MTMMConfig
from pipeline_mtmm import MTMMPipeline

NAN = math.nan


def config(**fields: object) -> MTMMConfig:
    return MTMMConfig.tiny(trained_outputs=("emotion", "valence"), **fields)


def prediction(
    *probabilities: float,
    times: tuple[float, float] | tuple[None, None] = (None, None),
    **more: Any,
) -> Prediction:
    return Prediction(Span(times[0], times[1], [], {}), list(probabilities), [2.0, 3.0], **more)


def test_unsure_answer_names_no_emotion_and_keeps_its_scores() -> None:
    close = prediction(0.33, 0.32, 0.2, 0.15)
    told = Prediction.summary([close], config(), None, 0.5)
    assert told["emotion"] is None and told["unsure"] is True
    assert told["scores"] == {"angry": 0.33, "happy": 0.32, "sad": 0.2, "neutral": 0.15}
    sure = Prediction.summary([close], config(), 1, 0.3)
    assert (sure["emotion"], sure["unsure"], sure["scores"]) == ("angry", False, {"angry": 0.33})


@pytest.mark.parametrize(
    ("own", "given", "emotion"), [(0.5, None, None), (0.5, 0.0, "angry"), (0.0, None, "angry")]
)
def test_models_own_threshold_holds_unless_one_is_given(
    own: float, given: float | None, emotion: str | None
) -> None:
    close = prediction(0.4, 0.3, 0.2, 0.1)
    told = Prediction.summary([close], config(min_confidence=own), None, given)
    assert told["emotion"] == emotion
    assert told.get("unsure") == (True if emotion is None else None)


def test_agreement_is_of_models_that_know_votes() -> None:
    split = prediction(0.6, 0.2, 0.2, 0.0)
    assert "agreement" not in Prediction.summary([split], config(), None, None)
    told = Prediction.summary([split], config(calibrated_on="votes"), 1, 0.7)
    assert told["agreement"] == 0.6 and told["emotion"] is None


def test_spread_stands_beside_its_dimension() -> None:
    spread = prediction(1.0, 0.0, 0.0, 0.0, deviations=[0.4, 0.9])
    told = Prediction.summary([spread], config(rated_dimensions=("valence",)), None, None)
    assert (told["valence"], told["valence_sd"]) == (2.0, 0.4)
    assert "arousal_sd" not in told  # never trained


def test_mean_of_windows_is_unfamiliar_where_most_of_its_time_is() -> None:
    windows = [
        prediction(0.9, 0.1, 0.0, 0.0, times=(0.0, 1.0), distances=[5.0, NAN]),
        prediction(0.5, 0.5, 0.0, 0.0, times=(1.0, 4.0), distances=[0.5, NAN]),
        prediction(0.1, 0.9, 0.0, 0.0, times=(4.0, 5.0), distances=[2.0, NAN]),
    ]
    told = Prediction.summary(windows, config(), None, 0.6)
    assert [entry["unfamiliar"] for entry in told["timeline"]] == [["audio"], [], ["audio"]]
    assert told["unfamiliar"] == []
    assert [entry["unsure"] for entry in told["timeline"]] == [False, True, False]
    assert told["unsure"]  # .5 and .5 over time


def test_pipeline_and_stream_name_no_emotion_below_the_least_confidence(pipe: MTMMPipeline) -> None:
    sound = noise(1.0)
    told = pipe(sound, sampling_rate=16000, min_confidence=0.99)
    assert told["emotion"] is None and told["unsure"] and len(told["scores"]) == 4
    (entry,) = pipe.stream(sound, 16000, min_confidence=0.99)
    assert entry["emotion"] is None and entry["unsure"]
    with pytest.raises(ValueError, match="min_confidence"):
        pipe(sound, sampling_rate=16000, min_confidence=2)
