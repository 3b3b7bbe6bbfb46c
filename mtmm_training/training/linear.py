"""The linear path of a fold's model: regressions on pooled states, and how they share with the fusion.

The regressions are those of the baselines, fitted on the same rows: layers, pooling and strength are
chosen by inner folds over the speakers of train and validation, the fit is on both. The fusion has
trained on the training split alone. How much it counts beside the regression is judged on the
validation split, whose rows the regression predicts by models that did not see their speaker: unless
the fusion makes them clearly better, the answer is the regression's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import CachedStates
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.metrics import fit_temperature
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.regressions import (
    UNSEEN,
    Splits,
    Task,
    inner_splits,
    label_columns,
    matching_line,
)
from pooled_mtmm import as_logits, pool
from reference_mtmm import standardise

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the fusion in the answer, beside none
RESAMPLES = 500
CLEARLY = 0.84  # of the resamples in which the fusion must be better: one standard error


@dataclass(frozen=True)
class Pooled:
    """A modality's mean and deviation of every layer, standardised over the rows to fit.

    Args:
        layers: Their numbers; one, 0, where the model takes the last layer alone.
        values: (utterances, layers, 2, width): mean, deviation; zeros where the modality is absent.
        center, scale: (layers, 2, width), what was subtracted and then divided by.
    """

    layers: tuple[int, ...]
    values: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    def columns(self, chosen: dict[str, Any], of: np.ndarray) -> np.ndarray:
        """What the linear path pools, of `values`, `center` or `scale`: means, then deviations."""
        places = [self.layers.index(layer) for layer in chosen["layers"]]
        kinds = 2 if chosen["deviation"] else 1
        parts = [of[..., places, kind, :] for kind in range(kinds)]
        flat = [part.reshape(*of.shape[:-3], -1) for part in parts]
        return np.concatenate(flat, axis=-1)


# ---- pooled states ------------------------------------------------------------------------------


def pool_states(
    model: MTMMModel, states: CachedStates, utterances: Sequence[Utterance], fitted: np.ndarray
) -> dict[str, Pooled]:
    """By modality, the pooled states of all utterances; nothing of one that none of them has.

    Args:
        model: Says which layers there are, and how acoustic states are standardised.
        states: The cache's.
        utterances: All that are pooled.
        fitted: Rows whose mean and deviation standardise all.
    """
    found = {}
    for modality in ("audio", "text"):
        layers = model.config.mixed_layers(modality) or (0,)
        rows: list[Any] = []
        for utterance in utterances:
            own = states.of(modality, utterance)
            if own is None:
                rows.append(None)
                continue
            one = own[None].float()
            if modality == "audio" and model.config.reference != "none":
                fusion = model.fusion
                one = standardise(one, fusion.reference_mean, fusion.reference_deviation)
            mask = torch.ones(1, one.shape[-2], dtype=torch.bool)
            both = pool(one, mask, slice(None), True)
            rows.append(both.reshape(2, len(layers), -1).transpose(0, 1).numpy())
        there = np.array([row is not None for row in rows])
        if not there[fitted].any():
            continue
        shape = next(row.shape for row in rows if row is not None)
        values = np.stack([np.zeros(shape, np.float32) if row is None else row for row in rows])
        known = fitted[there[fitted]]
        scaler = StandardScaler().fit(values[known].reshape(len(known), -1))
        values[there] = scaler.transform(values[there].reshape(there.sum(), -1)).reshape(-1, *shape)
        center, scale = scaler.mean_.reshape(shape), scaler.scale_.reshape(shape)
        found[modality] = Pooled(layers, values, center, scale)
    return found


# ---- which layers -------------------------------------------------------------------------------


def choose_pooling(
    pooled: dict[str, Pooled], tasks: Sequence[Task], inner: Splits
) -> dict[str, dict[str, Any]]:
    """By modality, the layers to pool and whether their deviation too, by ridge in inner folds.

    The best single layer first, then the windows of three around it, then the deviation: a step is
    taken where it is better.
    """
    chosen = {}
    for modality, own in pooled.items():

        def score(layers: tuple[int, ...], deviation: bool, own: Pooled = own) -> float:
            candidate = {"layers": list(layers), "deviation": deviation}
            return ridge_score(own.columns(candidate, own.values), tasks, inner)

        singles = {(layer,): score((layer,), False) for layer in own.layers}
        best = max(singles, key=lambda layers: singles[layers])
        place = own.layers.index(best[0])
        windows = [own.layers[start : start + 3] for start in range(place - 2, place + 1)]
        scores = {
            (layers, deviation): score(layers, deviation)
            for layers in (best, *(w for w in windows if len(w) == 3))
            for deviation in (False, True)
        }
        layers, deviation = max(scores, key=lambda candidate: scores[candidate])
        chosen[modality] = {"layers": list(layers), "deviation": deviation}
    return chosen


def ridge_score(inputs: np.ndarray, tasks: Sequence[Task], inner: Splits) -> float:
    """The best mean over the outputs, over strengths, of ridge regression's score in inner folds."""
    factors = np.array([1e-2, 1e-1, 1.0, 10.0, 100.0])
    totals = np.zeros(len(factors))
    for task in tasks:
        known = task.known
        for fitted, scored in inner:
            fitted, scored = fitted[known[fitted]], scored[known[scored]]
            labels = task.labels[fitted]
            wanted = np.eye(len(task.emotions))[labels] if task.is_emotion else labels[:, None]
            center = wanted.mean(0)
            values, vectors = np.linalg.eigh(inputs[fitted] @ inputs[fitted].T)
            turned = vectors.T @ (wanted - center)
            across = inputs[scored] @ inputs[fitted].T @ vectors
            for number, strength in enumerate(factors * max(values.mean(), 1e-12)):
                predicted = across @ (turned / (values[:, None].clip(0) + strength))
                predicted = predicted if task.is_emotion else predicted[:, 0] + center[0]
                totals[number] += task.score(predicted, scored)
    return float(np.nan_to_num(totals, nan=-np.inf).max())


# ---- the regressions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A regression of one output.

    Args:
        weight: (classes or 1, inputs).
        bias: (classes or 1,).
        predicted: (utterances, classes) logits, or (utterances,) values; those of the rows to score in
            an inner fold are by the model that was fitted on the others.
        strength: C or alpha.
    """

    weight: np.ndarray
    bias: np.ndarray
    predicted: np.ndarray
    strength: float


def fit_output(task: Task, inputs: np.ndarray, inner: Splits) -> Fitted:
    """Choose the strength in inner folds, and fit on the rows that these are fitted on."""
    known = task.known
    every = np.unique(np.concatenate([fitted for fitted, _ in inner]))
    every = every[known[every]]
    # Turned so that there are no more inputs than rows: the penalty is the same for both.
    _, _, turn = np.linalg.svd(inputs[every], full_matrices=False)
    turned = inputs @ turn.T
    best: tuple[float, float, dict[int, np.ndarray]] | None = None
    for strength in task.strengths:
        scores: list[float] = []
        predicted: dict[int, np.ndarray] = {}
        for fitted, scored in inner:
            fitted, known_scored = fitted[known[fitted]], scored[known[scored]]
            weight, bias = _fit(task, turned, fitted, strength)
            out = turned[scored] @ weight.T + bias
            predicted |= dict(zip(scored, out, strict=True))
            where = np.isin(scored, known_scored)
            ready = out[where] if task.is_emotion else out[where, 0]
            scores.append(task.score(ready, known_scored))
        mean = float(np.nanmean(scores))
        if best is None or mean > best[0]:
            best = mean, strength, predicted
    assert best is not None  # the grids are not empty
    weight, bias = _fit(task, turned, every, best[1])
    everything = turned @ weight.T + bias
    for row, own in best[2].items():
        everything[row] = own
    if not task.is_emotion:
        seen = np.array([row for row in best[2] if known[row]])
        offset, slope = matching_line(task.labels[seen], everything[seen, 0])
        values = slope * everything[:, 0] + offset
        return Fitted(slope * weight @ turn, slope * bias + offset, values, best[1])
    return Fitted(weight @ turn, bias, everything, best[1])


def _fit(
    task: Task, inputs: np.ndarray, rows: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes or 1, inputs) and bias; an emotion without labels is far below the others."""
    model = task.model(strength).fit(inputs[rows], task.labels[rows])
    if not task.is_emotion:
        return model.coef_[None], np.array([model.intercept_])
    found, offsets = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives the second one's advantage
        found, offsets = np.concatenate([-found, found]) / 2, np.array([-1, 1]) * offsets / 2
    weight = np.zeros((len(task.emotions), inputs.shape[1]))
    bias = np.full(len(task.emotions), -UNSEEN)
    weight[model.classes_], bias[model.classes_] = found, offsets
    return weight, bias


# ---- regression and fusion ----------------------------------------------------------------------


def inner_folds(config: TrainConfig, splits: dict[str, list[Utterance]]) -> Splits:
    """Where the path's layers and strengths are chosen: rows of "train", then of "validation".

    Raises:
        ValueError: There is nobody to choose by.
    """
    both = splits["train"] + splits["validation"]
    train, rest = np.split(np.arange(len(both)), [len(splits["train"])])
    inner = inner_splits(config, train, rest, np.array([u.speaker_id for u in both]))
    if not inner:
        raise ValueError("`--linear_path` needs two speakers or more to choose its layers by.")
    return inner


def add_linear_path(
    config: TrainConfig,
    model: MTMMModel,
    splits: dict[str, list[Utterance]],
    states: CachedStates,
    validation: Predictions,
) -> tuple[Predictions, dict[str, Any]]:
    """Fit the linear path of a model that has trained, and how much its fusion counts beside it.

    Args:
        config: The run's.
        model: Gets the path; the last maps of its heads are scaled.
        splits: "train" and "validation" are read.
        states: Cached states of these.
        validation: The model's predictions so far, in the order of the split.

    Returns:
        Predictions of the validation split, and what was chosen: the layers that are pooled, and of
        each output the strength and the fusion's share.

    Raises:
        ValueError: There are too few speakers or labels to choose by.
    """
    utterances = splits["train"] + splits["validation"]
    rest = np.arange(len(splits["train"]), len(utterances))
    inner = inner_folds(config, splits)
    fitted = np.unique(np.concatenate([rows for rows, _ in inner]))
    pooled = pool_states(model, states, utterances, fitted)
    labels = label_columns(config.emotions, config.dimensions, utterances)
    balanced = config.class_weights == "balanced"
    tasks = [
        Task(name, labels[name], config.emotions, balanced) for name in model.config.trained_outputs
    ]
    chosen = choose_pooling(pooled, tasks, inner)
    columns = {name: own.columns(chosen[name], own.values) for name, own in pooled.items()}
    inputs = np.concatenate(list(columns.values()), axis=1)
    path: Any = model.add_linear_path(chosen)
    for name, own in pooled.items():
        center = own.columns(chosen[name], own.center)
        getattr(path, f"{name}_center").copy_(torch.from_numpy(center))
    scales = {name: own.columns(chosen[name], own.scale) for name, own in pooled.items()}
    logits, dimensions = validation.emotion_logits.copy(), validation.dimensions.copy()
    told: dict[str, Any] = {"pooled": chosen}
    for task in tasks:
        found = fit_output(task, inputs, inner)
        if task.is_emotion:
            first = 0
            mixed, share, factors = mix_logits(task, found.predicted[rest], logits, rest)
            logits = mixed
            _scale(model.emotion_head, slice(None), factors[1])
            weight, bias = found.weight * factors[0], found.bias * factors[0]
        else:
            number = config.dimensions.index(task.output)
            first = len(config.emotions) + number
            own_values = dimensions[:, number]
            mixed, share = mix_values(task, found.predicted[rest], own_values, rest, config)
            dimensions[:, number] = mixed
            _scale(model.dimension_head, slice(number, number + 1), share)
            path.dimension_shares[number] = 1 - share
            weight, bias = found.weight, found.bias
        rows = slice(first, first + len(bias))
        path.bias[rows] = torch.from_numpy(bias).float()
        start = 0
        for name, scale in scales.items():
            part = weight[:, start : start + len(scale)] / scale
            getattr(path, f"{name}_weight")[rows] = torch.from_numpy(part).float()
            start += len(scale)
        told[task.output] = {"strength": found.strength, "fusion": share}
    return replace(validation, emotion_logits=logits, dimensions=dimensions), told


def mix_logits(
    task: Task, regression: np.ndarray, fusion: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, float, tuple[float, float]]:
    """The validation split's logits, the fusion's share, and the factors of the two."""
    labels, known = task.labels[rows], task.known[rows]
    first, second = (fit_temperature(own[known], labels[known]) for own in (regression, fusion))
    mixed, share = mix(task, regression / first, fusion / second, rows)
    return mixed, share, ((1 - share) / first, share / second)


def mix_values(
    task: Task, regression: np.ndarray, fusion: np.ndarray, rows: np.ndarray, config: TrainConfig
) -> tuple[np.ndarray, float]:
    """The validation split's values of a dimension, and the fusion's share; mixed as logits."""
    low, high = config.dimension_range
    both = [torch.from_numpy(np.asarray(own, np.float64)) for own in (regression, fusion)]
    first, second = (as_logits(own, (low, high)).numpy() for own in both)
    return mix(task, first, second, rows, lambda mixed: low + (high - low) / (1 + np.exp(-mixed)))


def mix(
    task: Task,
    regression: np.ndarray,
    fusion: np.ndarray,
    rows: np.ndarray,
    answers: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> tuple[np.ndarray, float]:
    """The validation split's answers, made of the sum of the two, and the fusion's share in it."""

    def mixed(share: float) -> np.ndarray:
        return answers((1 - share) * regression + share * fusion)

    known = np.flatnonzero(task.known[rows])
    share = fusion_share(lambda w, picked: task.score(mixed(w)[picked], rows[picked]), known)
    return mixed(share), share


def fusion_share(score: Callable[[float, np.ndarray], float], known: np.ndarray) -> float:
    """The share of the fusion that scores best, if that is clearly better than none."""
    if not len(known):
        return 0.0
    share = max(SHARES, key=lambda w: score(w, known))
    draw = np.random.default_rng(0)
    better = 0
    for _ in range(RESAMPLES):
        picked = draw.choice(known, len(known))
        better += score(share, picked) > score(0.0, picked)
    return share if better >= CLEARLY * RESAMPLES else 0.0


def _scale(head: Any, rows: slice, factor: float) -> None:
    """What the head adds to these outputs, times a factor."""
    with torch.no_grad():
        head.projection.weight[rows] *= factor
        head.projection.bias[rows] *= factor
