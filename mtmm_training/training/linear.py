"""The linear path of a fold's model: regressions on pooled states, and how they share with the fusion.

The regressions see the rows that the baselines' see: layers, pooling and penalty are chosen by inner
folds over the speakers of train and validation, the fit is on both. The first also sees the variants that
augmentation makes of these rows, as the fusion does. The fusion has trained on the training split alone.
How much it counts beside the regression is judged on the validation split, whose rows the regression
predicts by models that did not see their speaker: unless the fusion makes them clearly better, the answer
is the regression's.

What tells speakers of one corpus apart best does not hold in another one, and folds of one corpus cannot
show it. So there is a second regression, of few means and with a strong penalty. It is for a domain that is
further from the training data than any of its speakers, and for recordings that are well beyond what the
model calls unfamiliar; the fusion is silent there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from modeling_mtmm import MTMMModel
from mtmm_training.batches.augment import add_variants
from mtmm_training.batches.cache import CachedStates
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.metrics import fit_temperature
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.regressions import Splits, Task, inner_splits, label_columns
from mtmm_training.training.ridge import fewer, fit_task, out_of_fold, speaker_trust
from pooled_mtmm import STIFF, as_logits, pool
from reference_mtmm import standardise

WIDTHS = (1, 3, 5)  # numbers of neighbouring layers to try
DEVIATION = 0.5  # how far deviations count beside means
EXPLAINED = 0.01  # of the squares, by a modality that is used
ROWS = 20_000  # of variants at most, beside the utterances themselves: a large corpus needs none
AWAY_WIDTH = 3  # layers of the second regression
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the fusion in the answer, beside none
RESAMPLES = 1000
# The fusion must be better by a standard error. Utterances of a speaker are alike, so of fewer speakers
# than these it must be so by two, with several shares in mind as if each had been tried by itself.
MANY = 10


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
        kinds = range(2 if chosen["deviation"] else 1)
        flat = [of[..., places, kind, :].reshape(*of.shape[:-3], -1) for kind in kinds]
        return np.concatenate(flat, axis=-1)

    def middle(self) -> list[int]:
        """The layers of the second regression: those in the middle, whatever one corpus prefers."""
        start = max((len(self.layers) - AWAY_WIDTH) // 2, 0)
        return list(self.layers[start : start + AWAY_WIDTH])

    def among(self, pooled: dict[str, Any], layers: Sequence[int], deviation: bool) -> np.ndarray:
        """Which columns of what is pooled are of these layers: booleans."""
        shape = 1 + pooled["deviation"], len(pooled["layers"]), self.values.shape[-1]
        where = np.zeros(shape, bool)
        where[: 1 + deviation, np.isin(pooled["layers"], layers)] = True
        return where.ravel()


# ---- pooled states ------------------------------------------------------------------------------


def pool_states(
    model: MTMMModel,
    states: CachedStates,
    utterances: Sequence[Utterance],
    by: np.ndarray | dict[str, Pooled],
) -> dict[str, Pooled]:
    """By modality, the pooled states of all utterances; nothing of one that none of them has.

    Args:
        model: Says which layers there are, and how acoustic states are standardised.
        states: The cache's.
        utterances: All that are pooled.
        by: Rows whose mean and deviation standardise all, or what was pooled by such rows.
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
        if modality not in by if isinstance(by, dict) else not there[by].any():
            continue
        shape = next(row.shape for row in rows if row is not None)
        values = np.stack([np.zeros(shape, np.float32) if row is None else row for row in rows])
        if isinstance(by, dict):
            center, scale = by[modality].center, by[modality].scale
        else:
            known = by[there[by]]
            scaler = StandardScaler().fit(values[known].reshape(len(known), -1))
            center, scale = scaler.mean_.reshape(shape), scaler.scale_.reshape(shape)
            scale[:, 1] /= DEVIATION
        values[there] = (values[there] - center) / scale
        found[modality] = Pooled(layers, values, center, scale)
    return found


# ---- which layers -------------------------------------------------------------------------------


def choose_pooling(
    pooled: dict[str, Pooled], tasks: Sequence[Task], inner: Splits
) -> dict[str, dict[str, Any]]:
    """By modality, the layers to pool and whether their deviation too, by ridge in inner folds.

    Of the best layer's mean, with its neighbours' and with theirs, and each with the deviation, that
    is taken which leaves the least of all outputs unexplained. A modality that explains next to nothing
    is left out beside a better one.
    """
    chosen, errors, inner = {}, {}, fewer(inner)
    for modality, own in pooled.items():

        def error(layers: Sequence[int], deviation: bool = False, own: Pooled = own) -> float:
            inputs = own.columns({"layers": layers, "deviation": deviation}, own.values)
            return sum(out_of_fold(task, inputs, inner)[0].min() for task in tasks)

        place, count = int(np.argmin([error([layer]) for layer in own.layers])), len(own.layers)
        starts = {width: min(max(place - width // 2, 0), count - width) for width in WIDTHS}
        spans = [own.layers[at : at + width] for width, at in starts.items() if width <= count]
        candidates = [(span, deviation) for span in spans for deviation in (False, True)]
        layers, deviation = min(candidates, key=lambda candidate: error(*candidate))
        chosen[modality] = {"layers": list(layers), "deviation": deviation}
        errors[modality] = error(layers, deviation) / len(tasks)
    least = max(1 - EXPLAINED, min(errors.values()))
    return {name: own for name, own in chosen.items() if errors[name] <= least}


def side_by_side(
    pooled: dict[str, Pooled], chosen: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], np.ndarray, np.ndarray, np.ndarray]:
    """What is pooled for both regressions, their inputs, and which of these a speaker's reference moves.

    Returns:
        As of `choose_pooling`, with the middle layers too; (utterances, inputs) twice, with zeros for
        what a regression does not see; and (inputs,) of booleans.
    """
    pools, all_inputs, parts = {}, [], []
    for name, own in pooled.items():
        layers, deviation = chosen[name]["layers"], chosen[name]["deviation"]
        both = {"layers": sorted({*layers, *own.middle()}), "deviation": deviation}
        pools[name] = both
        all_inputs.append(own.columns(both, own.values))
        many, few = own.among(both, layers, deviation), own.among(both, own.middle(), False)
        moved = own.among(both, layers if name == "audio" else [], False)
        parts.append(np.stack([many, few, moved]))
    inputs = np.concatenate(all_inputs, axis=1)
    many, few, moved = np.concatenate(parts, axis=1)
    return pools, inputs * many, inputs * few, moved


# ---- regression and fusion ----------------------------------------------------------------------


def inner_folds(config: TrainConfig, splits: dict[str, list[Utterance]]) -> Splits:
    """Where the path's layers and penalties are chosen: rows of "train", then of "validation".

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
        each output the penalty and the fusion's share.

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
    outputs = model.config.trained_outputs
    tasks = [Task(name, labels[name], config.emotions, balanced) for name in outputs]
    parts = [rows for pair in inner for rows in pair]
    tasks = [task for task in tasks if all(task.known[rows].any() for rows in parts)]
    who = np.array([u.speaker_id for u in utterances])
    if not tasks:  # such as votes without a majority
        return validation, {}
    chosen = choose_pooling(pooled, tasks, inner)
    pooled = {name: pooled[name] for name in chosen}
    pools, many, few, means = side_by_side(pooled, chosen)
    changed = add_variants(utterances, config.augment, config.augment_variants, config.seed)
    copies = [
        side_by_side(pool_states(model, states, copy, pooled), chosen)[1]
        for copy in changed[1 : 1 + ROWS // len(utterances)]
        if "audio" in chosen
    ]
    many = np.concatenate([many, *copies])
    path: Any = model.add_linear_path(pools)
    for name, own in pooled.items():
        center = own.columns(pools[name], own.center)
        getattr(path, f"{name}_center").copy_(torch.from_numpy(center))
    scales = {name: own.columns(pools[name], own.scale) for name, own in pooled.items()}
    logits, dimensions = validation.emotion_logits.copy(), validation.dimensions.copy()
    told: dict[str, Any] = {"pooled": chosen}
    for task in tasks:
        found = fit_task(task, many, inner)
        away = fit_task(task, few, inner, [STIFF])
        first, share, home = 0, 0.0, 1.0
        if task.is_emotion:
            logits, share, heat = mix(task, found.predicted, logits, rest, config, who)
            model.emotion_head.scale(share / heat)
            home = 1 - share
            if "audio" in chosen:
                trust = speaker_trust(task, many, means, inner, found, who)
                told["speaker_strength"], model.config.reference_skew = trust
        else:
            number = config.dimensions.index(task.output)
            first = len(config.emotions) + number
            fused = dimensions[:, number]
            dimensions[:, number], share, _ = mix(task, found.predicted, fused, rest, config, who)
            model.dimension_head.scale(share, slice(number, number + 1))
            path.dimension_shares[number] = 1 - share
        for line, factor, start in ((found, home, first), (away, 1.0, first + len(path.bias) // 2)):
            rows = slice(start, start + len(line.bias))
            path.bias[rows] = torch.from_numpy(factor * line.bias).float()
            weights = np.split(line.weight, np.cumsum([*map(len, scales.values())])[:-1])
            for (name, scale), weight in zip(scales.items(), weights, strict=True):
                part = torch.from_numpy(factor * weight.T / scale).float()
                getattr(path, f"{name}_weight")[rows] = part
                if line is away and name == "audio":  # a place's mean state is at zero, not there
                    path.bias[rows] += path.audio_weight[rows] @ path.audio_center
        told[task.output] = {"penalty": found.penalty, "fusion": share}
    return replace(validation, emotion_logits=logits, dimensions=dimensions), told


def mix(
    task: Task, regression: np.ndarray, fusion: np.ndarray, rows: np.ndarray,
    config: TrainConfig, who: np.ndarray,
) -> tuple[np.ndarray, float, float]:  # fmt: skip
    """The answers for the validation split's rows, of regression and fusion together.

    Args:
        task: The output.
        regression: (utterances, emotions), or (utterances,), of train and validation.
        fusion: The same of the validation split.
        rows: (rows,), which utterances the validation split has.
        config: The run's.
        who: (utterances,), their speakers.

    Returns:
        Logits (rows, emotions), or values (rows,), which are mixed as logits; the fusion's share; and
        what its own logits are divided by first.
    """
    known, heat, regression = np.flatnonzero(task.known[rows]), 1.0, regression[rows]
    low, high = config.dimension_range
    if task.is_emotion:
        heat = fit_temperature(fusion[known], task.labels[rows][known])
        fusion = fusion / heat
    else:
        values = (torch.from_numpy(np.asarray(own, np.float64)) for own in (regression, fusion))
        regression, fusion = (as_logits(own, (low, high)).numpy() for own in values)

    def mixed(share: float) -> np.ndarray:
        both = (1 - share) * regression + share * fusion
        return both if task.is_emotion else low + (high - low) / (1 + np.exp(-both))

    share = fusion_share(lambda w, own: task.score(mixed(w)[own], rows[own]), known, who[rows])
    return mixed(share), share, heat


def fusion_share(score: Callable[[float, Any], float], known: np.ndarray, who: np.ndarray) -> float:
    """The share of the fusion that scores best, if that is clearly better than none.

    Args:
        score: Takes a share and the numbers of utterances, and gives their UAR, from 0 to 1, or CCC.
        known: The numbers of the utterances that have a label.
        who: (utterances,), their speakers.
    """
    if not len(known):
        return 0.0
    share = max(SHARES, key=lambda w: score(w, known))
    draw = np.random.default_rng(0)
    drawn = (draw.choice(known, len(known)) for _ in range(RESAMPLES))
    better = sum(score(share, picked) > score(0.0, picked) for picked in drawn)
    chance = 0.16 if len(np.unique(who[known])) >= MANY else 0.025 / len(SHARES)
    return share if better >= (1 - chance) * RESAMPLES else 0.0
