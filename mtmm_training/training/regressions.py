"""Linear models of one output, chosen and fitted inside a fold, on one vector per utterance.

Layer and regularisation are chosen by cross-validation over the speakers of train and validation
together: the two or so of a validation split are too few to choose by, and too good to waste. In the
one fold of protocol official, the choice is made on its validation split, the fit on train alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.metrics import (
    ABSENT_EMOTION,
    concordance_correlation,
    unweighted_average_recall,
)
from mtmm_training.training.config import TrainConfig

# For inputs with mean 0 and variance 1; C is the inverse of a strength, alpha a strength.
EMOTION_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
DIMENSION_GRID = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
INNER_FOLDS = 5
UNSEEN = 30.0  # so far below the lowest logit is that of an emotion without training labels

Splits = list[tuple[np.ndarray, np.ndarray]]  # rows to fit on, rows to score


@dataclass(frozen=True)
class Features:
    """What a modality says of each utterance as a whole.

    Args:
        values: (utterances, layers, width), float32; NaN for an utterance without the modality.
        layers: The number of each layer: 0 = the input of the encoder's first one.
        frames: (utterances,), how many states were pooled; needed for references alone.
    """

    values: np.ndarray
    layers: tuple[int, ...]
    frames: np.ndarray | None = None

    def of(self, layers: Sequence[int]) -> np.ndarray:
        """The layers' vectors side by side: (utterances, layers · width)."""
        columns = [self.layers.index(layer) for layer in layers]
        return self.values[:, columns].reshape(len(self.values), -1)

    def candidates(self, wanted: Sequence[str]) -> list[tuple[int, ...]]:
        """The sets of layers to choose from: "best", "last", or numbers.

        Raises:
            ValueError: There is no such layer.
        """
        if wanted == ["best"]:
            return [(layer,) for layer in self.layers]
        chosen = self.layers[-1:] if wanted == ["last"] else tuple(map(int, wanted))
        if not set(chosen) <= set(self.layers):
            raise ValueError(f"`--layers` is {' '.join(wanted)!r}; there are {self.layers}.")
        return [chosen]


@dataclass(frozen=True)
class Task:
    """An output and how it is learned.

    Args:
        output: "emotion", or a dimension's name.
        labels: (utterances,) indices into `emotions`, or values on the labels' scale.
        emotions: Names in the order of their index.
        balanced: Whether rare emotions count more.
        svm: Whether emotions get a linear SVM instead of a logistic regression.
    """

    output: str
    labels: np.ndarray
    emotions: Sequence[str]
    balanced: bool = False
    svm: bool = False

    @property
    def is_emotion(self) -> bool:
        """Whether the output is the emotion."""
        return self.output == "emotion"

    @property
    def known(self) -> np.ndarray:
        """(utterances,) of booleans: which have a label."""
        return self.labels != ABSENT_EMOTION if self.is_emotion else ~np.isnan(self.labels)

    def score(self, predicted: np.ndarray, rows: np.ndarray) -> float:
        """UAR of logits (rows, emotions), or CCC of values (rows,); NaN without labels."""
        if self.is_emotion:
            answers = predicted.argmax(axis=1)
            return unweighted_average_recall(self.labels[rows], answers, self.emotions)
        return concordance_correlation(predicted, self.labels[rows])

    @property
    def strengths(self) -> tuple[float, ...]:
        """Those of regularisation to choose from: C, or alpha."""
        return EMOTION_GRID if self.is_emotion else DIMENSION_GRID

    def model(self, strength: float = 1.0) -> Any:
        """The linear model, not yet fitted."""
        weights = "balanced" if self.balanced else None
        if not self.is_emotion:
            return Ridge(alpha=strength)
        if self.svm:
            return LinearSVC(C=strength, class_weight=weights)
        return LogisticRegression(C=strength, class_weight=weights, max_iter=2000)

    def search(self, inner: Splits) -> GridSearchCV:
        """The linear model, its strengths, and what they are chosen by."""
        grid = {"model__C" if self.is_emotion else "model__alpha": self.strengths}
        scorer = make_scorer(concordance_correlation)
        if self.is_emotion:
            scorer = make_scorer(unweighted_average_recall, emotions=self.emotions)
        # An absent modality is NaN, and becomes the mean of the rows to fit on: it says nothing.
        impute = SimpleImputer(keep_empty_features=True)
        steps = [("impute", impute), ("scale", StandardScaler()), ("model", self.model())]
        return GridSearchCV(
            Pipeline(steps), grid, scoring=scorer, cv=inner, refit=False, error_score="raise"
        )


def inner_splits(
    config: TrainConfig, train: np.ndarray, validation: np.ndarray, speakers: np.ndarray
) -> Splits:
    """Where layer and regularisation are chosen: pairs of rows to fit on and rows to score.

    Args:
        config: The settings: in a corpus's official split the choice is made on its validation
            split, and the fit is on train alone.
        train, validation: Rows of the labelled utterances of these splits.
        speakers: (utterances,).

    Returns:
        The pairs; none where there is nobody to score but who was fitted on.
    """
    if config.protocol == "official" and config.folds_file is None:
        return [(train, validation)] if len(validation) else []
    known = np.concatenate([train, validation])
    present = len(set(speakers[known]))
    if present < 2:
        return []
    folds = GroupKFold(min(INNER_FOLDS, present)).split(known, groups=speakers[known])
    return [(known[fitted], known[scored]) for fitted, scored in folds]


@dataclass(frozen=True)
class Regression:
    """A fitted output.

    Args:
        task: The output.
        layers: What was chosen, by modality.
        models: One that is fitted on all, then those of the inner folds.
        number: (utterances,), which of these predicts an utterance: none that was fitted on it, but
            the first on its own rows.
        line: Offset and slope that a dimension's predictions get.
    """

    task: Task
    layers: dict[str, tuple[int, ...]]
    models: list[Pipeline]
    number: np.ndarray
    line: tuple[float, float] = (0.0, 1.0)

    def predict(self, features: dict[str, Features], rows: np.ndarray) -> np.ndarray:
        """Logits (rows, emotions), or the dimension (rows,).

        Args:
            features: Those of all utterances, as the fit saw them or standardised by references.
            rows: Which utterances.
        """
        inputs = side_by_side(features, self.layers)[rows]
        count, emotions = len(rows), len(self.task.emotions)
        predicted = np.zeros((count, emotions) if self.task.is_emotion else count)
        for number in np.unique(self.number[rows]):
            own = self.number[rows] == number
            model = self.models[number]
            if self.task.is_emotion:
                predicted[own] = emotion_logits(model, inputs[own], emotions)
            else:
                predicted[own] = self.line[0] + self.line[1] * model.predict(inputs[own])
        return predicted


def side_by_side(features: dict[str, Features], layers: dict[str, tuple[int, ...]]) -> np.ndarray:
    """(utterances, inputs): the chosen layers of all modalities."""
    return np.concatenate([features[name].of(layers[name]) for name in layers], axis=1)


def fit_regression(
    task: Task, features: dict[str, Features], layers: Sequence[str], inner: Splits
) -> tuple[Regression, dict[str, Any]]:
    """Choose and fit the model of an output, looking at the rows of `inner` alone.

    With two modalities each one's layer is chosen alone, then both are put side by side.

    Args:
        task: The output.
        features: By modality, of all utterances.
        layers: As of [`Features.candidates`].
        inner: As of [`inner_splits`]. Their rows to score are predicted by the model of their pair,
            all others by one that is fitted on the rows to fit of all pairs.

    Returns:
        The model, and what was chosen.

    Raises:
        ValueError: The labels are too few to choose by.
    """
    labels = task.labels
    too_few = ValueError(
        f"{task.output} has too few labels to choose layer and regularisation by; use folds with more "
        f"labelled utterances, or leave {task.output} out."
    )
    least = 2 if task.is_emotion else 1  # different labels
    if not inner or any(len(np.unique(labels[fitted])) < least for fitted, _ in inner):
        raise too_few

    def search(inputs: np.ndarray) -> GridSearchCV:
        found = task.search(inner).fit(inputs, labels)
        if not np.isfinite(found.best_score_):
            raise too_few
        return found

    chosen = {}
    for modality, block in features.items():
        candidates = block.candidates(layers)
        if len(candidates) > 1:
            scores = [search(block.of(candidate)).best_score_ for candidate in candidates]
            candidates = [candidates[int(np.argmax(scores))]]
        chosen[modality] = candidates[0]
    inputs = side_by_side(features, chosen)
    found = search(inputs)
    best = found.estimator.set_params(**found.best_params_)
    every = np.unique(np.concatenate([fitted for fitted, _ in inner]))
    parts = [every, *(fitted for fitted, _ in inner)]
    models = [clone(best).fit(inputs[part], labels[part]) for part in parts]
    number = np.zeros(len(labels), int)
    for index, (_, scored) in enumerate(inner, start=1):
        number[scored] = index
    regression = Regression(task, chosen, models, number)
    if not task.is_emotion:
        seen = np.flatnonzero(number)
        line = matching_line(labels[seen], regression.predict(features, seen))
        regression = replace(regression, line=line)
    strength = {name.removeprefix("model__"): value for name, value in found.best_params_.items()}
    return regression, {"layers": chosen, **strength, "inner_score": found.best_score_}


def matching_line(labels: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Offset and slope that give predictions the mean and deviation of the labels.

    Ridge regression shrinks its predictions towards their mean, which CCC punishes.
    """
    # Of NumPy's type: a Python number would leave predictions in their own, lower precision.
    slope = labels.std() / predicted.std() if np.ptp(predicted) else np.float64(1.0)
    return labels.mean() - slope * predicted.mean(), slope


def emotion_logits(model: Pipeline, inputs: np.ndarray, emotions: int) -> np.ndarray:
    """(utterances, emotions): decision values, whose softmax is the logistic regression's probability.

    An SVM's are distances from its planes; their softmax is no calibrated probability.
    """
    decisions = model.decision_function(inputs)
    if decisions.ndim == 1:  # two emotions: the second one's advantage
        decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
    logits = np.tile(decisions.min(axis=1, keepdims=True) - UNSEEN, emotions)
    logits[:, model.classes_] = decisions
    return logits


def label_columns(
    emotions: Sequence[str], dimensions: Sequence[str], utterances: Sequence[Utterance]
) -> dict[str, np.ndarray]:
    """By output, (utterances,): −100 and NaN where absent."""
    number: dict[str | None, int] = {name: i for i, name in enumerate(emotions)}
    return {"emotion": np.array([number.get(u.emotion, ABSENT_EMOTION) for u in utterances])} | {
        name: np.array([getattr(u, name) for u in utterances], dtype=np.float64)  # None is NaN
        for name in dimensions
    }
