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
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from linear_mtmm import as_logits, pool
from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import CachedStates
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.metrics import (
    ABSENT_EMOTION,
    concordance_correlation,
    fit_temperature,
    unweighted_average_recall,
)
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.regressions import (
    DIMENSION_GRID,
    EMOTION_GRID,
    Splits,
    inner_splits,
    label_columns,
)
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


@dataclass(frozen=True)
class Target:
    """An output to predict: labels and how predictions of it are scored.

    Args:
        name: "emotion" or a dimension's name.
        labels: (utterances,).
        classes: How many emotions; 0 of a dimension.
        balanced: Whether rare emotions count more.
    """

    name: str
    labels: np.ndarray
    classes: int
    balanced: bool

    @property
    def known(self) -> np.ndarray:
        """(utterances,) of booleans: which have a label."""
        return self.labels != ABSENT_EMOTION if self.classes else ~np.isnan(self.labels)

    def score(self, predicted: np.ndarray, rows: np.ndarray) -> float:
        """UAR of logits, or CCC."""
        if self.classes:
            names = list(map(str, range(self.classes)))
            return float(
                unweighted_average_recall(self.labels[rows], predicted.argmax(1), names) or 0.0
            )
        return float(concordance_correlation(predicted, self.labels[rows]))


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
            both = pool(one, mask, list(range(len(layers))), True)
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
    pooled: dict[str, Pooled], targets: Sequence[Target], inner: Splits
) -> dict[str, dict[str, Any]]:
    """By modality, the layers to pool and whether their deviation too, by ridge in inner folds.

    The best single layer first, then the windows of three around it, then the deviation: a step is
    taken where it is better.
    """
    chosen = {}
    for modality, own in pooled.items():

        def score(layers: tuple[int, ...], deviation: bool, own: Pooled = own) -> float:
            candidate = {"layers": list(layers), "deviation": deviation}
            return ridge_score(own.columns(candidate, own.values), targets, inner)

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


def ridge_score(inputs: np.ndarray, targets: Sequence[Target], inner: Splits) -> float:
    """The best mean over the outputs, over strengths, of ridge regression's score in inner folds."""
    factors = np.array([1e-2, 1e-1, 1.0, 10.0, 100.0])
    totals = np.zeros(len(factors))
    for target in targets:
        known = target.known
        for fitted, scored in inner:
            fitted, scored = fitted[known[fitted]], scored[known[scored]]
            labels = target.labels[fitted]
            wanted = np.eye(target.classes)[labels] if target.classes else labels[:, None]
            center = wanted.mean(0)
            values, vectors = np.linalg.eigh(inputs[fitted] @ inputs[fitted].T)
            turned = vectors.T @ (wanted - center)
            across = inputs[scored] @ inputs[fitted].T @ vectors
            for number, strength in enumerate(factors * max(values.mean(), 1e-12)):
                predicted = across @ (turned / (values[:, None].clip(0) + strength))
                predicted = predicted if target.classes else predicted[:, 0] + center[0]
                totals[number] += target.score(predicted, scored)
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


def fit_output(target: Target, inputs: np.ndarray, inner: Splits) -> Fitted:
    """Choose the strength in inner folds, and fit on the rows that these are fitted on."""
    known = target.known
    every = np.unique(np.concatenate([fitted for fitted, _ in inner]))
    every = every[known[every]]
    # Turned so that there are no more inputs than rows: the penalty is the same for both.
    _, _, turn = np.linalg.svd(inputs[every], full_matrices=False)
    turned = inputs @ turn.T
    best: tuple[float, float, dict[int, np.ndarray]] | None = None
    for strength in EMOTION_GRID if target.classes else DIMENSION_GRID:
        scores: list[float] = []
        predicted: dict[int, np.ndarray] = {}
        for fitted, scored in inner:
            fitted, known_scored = fitted[known[fitted]], scored[known[scored]]
            weight, bias = _fit(target, turned, fitted, strength)
            out = turned[scored] @ weight.T + bias
            predicted |= dict(zip(scored, out, strict=True))
            where = np.isin(scored, known_scored)
            ready = out[where] if target.classes else out[where, 0]
            scores.append(target.score(ready, known_scored))
        mean = float(np.nanmean(scores))
        if best is None or mean > best[0]:
            best = mean, strength, predicted
    assert best is not None  # the grids are not empty
    weight, bias = _fit(target, turned, every, best[1])
    everything = turned @ weight.T + bias
    for row, own in best[2].items():
        everything[row] = own
    if not target.classes:
        seen = np.array([row for row in best[2] if known[row]])
        labels, shown = target.labels[seen], everything[seen, 0]
        # Ridge shrinks its predictions towards their mean, which CCC punishes: they get the mean
        # and deviation of the labels.
        slope = float(labels.std() / shown.std()) if np.ptp(shown) else 1.0
        offset = float(labels.mean() - slope * shown.mean())
        values = slope * everything[:, 0] + offset
        return Fitted(slope * weight @ turn, slope * bias + offset, values, best[1])
    return Fitted(weight @ turn, bias, everything, best[1])


UNSEEN = -30.0


def _fit(
    target: Target, inputs: np.ndarray, rows: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes or 1, inputs) and bias; an emotion without labels is far below the others."""
    labels = target.labels[rows]
    if not target.classes:
        ridge = Ridge(alpha=strength).fit(inputs[rows], labels)
        return ridge.coef_[None], np.array([ridge.intercept_])
    weights = "balanced" if target.balanced else None
    model = LogisticRegression(C=strength, class_weight=weights, max_iter=2000)
    model.fit(inputs[rows], labels)
    found, offsets = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives the second one's advantage
        found, offsets = np.concatenate([-found, found]) / 2, np.array([-1, 1]) * offsets / 2
    weight = np.zeros((target.classes, inputs.shape[1]))
    bias = np.full(target.classes, UNSEEN)
    weight[model.classes_], bias[model.classes_] = found, offsets
    return weight, bias


# ---- regression and fusion ----------------------------------------------------------------------


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
    train, rest = np.split(np.arange(len(utterances)), [len(splits["train"])])
    speakers = np.array([u.speaker_id for u in utterances])
    official = config.protocol == "official" and config.folds_file is None
    inner = inner_splits(train, rest, speakers, official=official)
    if not inner:
        raise ValueError("`--linear_path` needs two speakers or more to choose its layers by.")
    fitted = np.unique(np.concatenate([rows for rows, _ in inner]))
    pooled = pool_states(model, states, utterances, fitted)
    targets = make_targets(config, model.config.trained_outputs, utterances)
    chosen = choose_pooling(pooled, targets, inner)
    columns = {name: own.columns(chosen[name], own.values) for name, own in pooled.items()}
    inputs = np.concatenate(list(columns.values()), axis=1)
    path: Any = model.add_linear_path(chosen)
    for name, own in pooled.items():
        center = own.columns(chosen[name], own.center)
        getattr(path, f"{name}_center").copy_(torch.from_numpy(center))
    scales = {name: own.columns(chosen[name], own.scale) for name, own in pooled.items()}
    logits, dimensions = validation.emotion_logits.copy(), validation.dimensions.copy()
    told: dict[str, Any] = {"pooled": chosen}
    for target in targets:
        found = fit_output(target, inputs, inner)
        if target.classes:
            first = 0
            mixed, share, factors = mix_logits(target, found.predicted[rest], logits, rest)
            logits = mixed
            _scale(model.emotion_head, slice(None), factors[1])
            weight, bias = found.weight * factors[0], found.bias * factors[0]
        else:
            number = config.dimensions.index(target.name)
            first = len(config.emotions) + number
            own_values = dimensions[:, number]
            mixed, share = mix_values(target, found.predicted[rest], own_values, rest, config)
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
        told[target.name] = {"strength": found.strength, "fusion": share}
    return replace(validation, emotion_logits=logits, dimensions=dimensions), told


def make_targets(
    config: TrainConfig, outputs: Sequence[str], utterances: Sequence[Utterance]
) -> list[Target]:
    """The outputs that are trained, with their labels."""
    labels = label_columns(config, utterances)
    balanced = config.class_weights == "balanced"
    return [
        Target(name, labels[name], len(config.emotions) * (name == "emotion"), balanced)
        for name in outputs
    ]


def mix_logits(
    target: Target, regression: np.ndarray, fusion: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, float, tuple[float, float]]:
    """The validation split's logits, the fusion's share, and the factors of the two."""
    labels = target.labels[rows]
    known = target.known[rows]
    temperatures = [
        fit_temperature(logits[known], labels[known]) for logits in (regression, fusion)
    ]
    a, b = regression / temperatures[0], fusion / temperatures[1]
    share = fusion_share(
        lambda w, picked: target.score(((1 - w) * a + w * b)[picked], rows[picked]),
        np.flatnonzero(known),
    )
    factors = (1 - share) / temperatures[0], share / temperatures[1]
    return (1 - share) * a + share * b, share, factors


def mix_values(
    target: Target,
    regression: np.ndarray,
    fusion: np.ndarray,
    rows: np.ndarray,
    config: TrainConfig,
) -> tuple[np.ndarray, float]:
    """The validation split's values of a dimension, and the fusion's share; mixed as logits."""
    low, high = config.dimension_range
    both = [torch.from_numpy(np.asarray(v, np.float64)) for v in (regression, fusion)]
    a, b = (as_logits(values, (low, high)).numpy() for values in both)

    def values(w: float) -> np.ndarray:
        return low + (high - low) / (1 + np.exp(-((1 - w) * a + w * b)))

    known = np.flatnonzero(target.known[rows])
    share = fusion_share(lambda w, picked: target.score(values(w)[picked], rows[picked]), known)
    return values(share), share


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
