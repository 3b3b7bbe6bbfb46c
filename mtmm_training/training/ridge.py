"""Ridge regressions in closed form, and how the linear path's layers and penalties are chosen by them.

An emotion is regressed as one output for each name, 1 where it is the label and 0 elsewhere, and all
emotions count the same, or a frequent one would hide what lies between it and others. On pooled states of
a small corpus that recognises more than logistic regression does, and takes one solution instead of an
iteration. Choices are made by squared errors of speakers that were left out: UAR and CCC of a few speakers
are too noisy to tell layers or penalties apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve
from scipy.special import log_softmax, softmax

from mtmm_training.scoring.metrics import fit_temperature
from mtmm_training.training.regressions import UNSEEN, Splits, Task, matching_line
from reference_mtmm import believed

# Times the mean squared length of a row of inputs.
PENALTIES = tuple(10.0 ** np.arange(-1.5, 2.1, 0.25))
# Utterances by which layers and penalties are chosen: more take minutes and tell little.
MOST = 1024
# How many utterances' worth of nobody's a reference counts against; the last is never.
STRENGTHS = (2.0, 4.0, 8.0, 32.0, 1e6)
SKEWS = (0.1, 0.2, 0.3, 0.4, 0.5)  # see `believed`
FEW = 8  # recordings, as users give them

Line = tuple[np.ndarray, np.ndarray]  # weight (inputs, outputs), bias (outputs,)


@dataclass(frozen=True)
class Fitted:
    """A regression of one task.

    Args:
        weight: (inputs, names or 1).
        bias: (names or 1,).
        predicted: (utterances, names) calibrated logits, or (utterances,) values; those of the rows
            to score in an inner fold are by the regression that was fitted on the others.
        penalty: One of `PENALTIES`.
        heat: What an emotion's scores were divided by.
    """

    weight: np.ndarray
    bias: np.ndarray
    predicted: np.ndarray
    penalty: float
    heat: float = 1.0


def ridges(
    inputs: np.ndarray, wanted: np.ndarray, counts: np.ndarray, penalties: Sequence[float]
) -> list[Line]:
    """The regressions of `wanted` on `inputs`, one for each penalty.

    Args:
        inputs: (rows, inputs).
        wanted: (rows, outputs).
        counts: (rows,), how much each row counts.
        penalties: In mean squared lengths of a row around the mean.
    """
    share, wanted = (counts / counts.sum()).astype(inputs.dtype), wanted.astype(inputs.dtype)
    center, offset = share @ inputs, share @ wanted
    root = np.sqrt(share * len(share))[:, None]
    rows, outputs = root * (inputs - center), root * (wanted - offset)
    dual = len(rows) <= rows.shape[1]  # the smaller of two systems of equations, with one solution
    gram, known = (rows @ rows.T, outputs) if dual else (rows.T @ rows, rows.T @ outputs)
    unit = max(float((rows**2).sum()) / len(rows), 1e-12)
    found = []
    for penalty in penalties:
        diagonal = np.eye(len(gram), dtype=gram.dtype) * float(penalty * unit)
        solved = solve(gram + diagonal, known, assume_a="pos", overwrite_a=True)
        weight = rows.T @ solved if dual else solved
        found.append((weight, offset - center @ weight))
    return found


def out_of_fold(
    task: Task, inputs: np.ndarray, inner: Splits, penalties: Sequence[float] = PENALTIES
) -> tuple[np.ndarray, np.ndarray]:
    """The error of each penalty in the inner folds, and its predictions.

    Returns:
        (penalties,), squared errors as a share of what the mean's would be, and (penalties, utterances,
        outputs), NaN for rows that no inner fold scores.
    """
    wanted, counts = outputs_of(task)
    predicted = np.full((len(penalties), *wanted.shape), np.nan)
    for fitted, scored in inner:
        lines = fit_lines(task, inputs, fitted, penalties)
        for number, (weight, bias) in enumerate(lines):
            predicted[number, scored] = inputs[scored] @ weight + bias
    rows = task.known & ~np.isnan(predicted[0]).any(1)
    counts, wanted = counts[rows, None], wanted[rows]
    apart = wanted - (counts * wanted).sum(0) / counts.sum()
    errors = (counts * (predicted[:, rows] - wanted) ** 2).sum((1, 2))
    return errors / max((counts * apart**2).sum(), 1e-12), predicted


def outputs_of(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """What is regressed (utterances, outputs), and how much each utterance counts."""
    if not task.is_emotion:
        return task.labels[:, None], np.ones(len(task.labels))
    labels = np.where(task.known, task.labels, 0)
    number = np.bincount(labels[task.known], minlength=len(task.emotions))
    return np.eye(len(number))[labels], 1 / number.clip(1)[labels]


def fit_lines(
    task: Task, inputs: np.ndarray, rows: np.ndarray, penalties: Sequence[float]
) -> list[Line]:
    """The regressions of a task on those of the rows that have a label, and on their variants.

    Below the inputs of all utterances those of their variants may follow, once or several times.
    """
    rows = rows[task.known[rows]]
    wanted, counts = outputs_of(task)
    every = (rows + len(wanted) * np.arange(len(inputs) // len(wanted))[:, None]).ravel()
    same = every % len(wanted)
    lines = ridges(inputs[every], wanted[same], counts[same], penalties)
    # An emotion that no row has is far below the others.
    seen = wanted[rows].any(0) | (not task.is_emotion)
    return [(weight, np.where(seen, bias, -UNSEEN)) for weight, bias in lines]


def fit_task(
    task: Task, inputs: np.ndarray, inner: Splits, penalties: Sequence[float] = PENALTIES
) -> Fitted:
    """Choose the penalty in inner folds, and fit on all the rows that these are fitted on."""
    some = fewer(inner) if len(penalties) > 1 else inner
    errors, tried = out_of_fold(task, inputs, some, penalties)
    best = int(errors.argmin())
    penalty, predicted = penalties[best], tried[best]
    if some is not inner:
        (predicted,) = out_of_fold(task, inputs, inner, [penalty])[1]
    every = np.unique(np.concatenate([fitted for fitted, _ in inner]))
    ((weight, bias),) = fit_lines(task, inputs, every, [penalty])
    held = ~np.isnan(predicted).any(1)
    answers = np.where(held[:, None], predicted, inputs[: len(held)] @ weight + bias)
    seen = held & task.known
    if not task.is_emotion:
        offset, slope = matching_line(task.labels[seen], answers[seen, 0])
        return Fitted(
            slope * weight, slope * bias + offset, slope * answers[:, 0] + offset, penalty
        )
    heat = fit_temperature(answers[seen], task.labels[seen])
    often = np.bincount(task.labels[seen], minlength=len(bias)).clip(1)
    usual = np.zeros(len(bias)) if task.balanced else np.log(often / often.mean())
    return Fitted(weight / heat, bias / heat + usual, answers / heat + usual, penalty, heat)


def speaker_trust(
    task: Task, inputs: np.ndarray, means: np.ndarray, inner: Splits, found: Fitted, who: np.ndarray
) -> tuple[float, float]:
    """How much a reference of a speaker's few recordings is to count, by speakers that were left out.

    Each is answered with references of recordings at random, and of one emotion alone: both occur.

    Args:
        task: The emotion.
        inputs: (utterances, inputs).
        means: (inputs,) of booleans: which a speaker's reference moves.
        inner: As of `inner_splits`.
        found: The task's regression.
        who: (utterances,), their speakers.

    Returns:
        The one of `STRENGTHS` and the one of `SKEWS` with the least loss together. A strength is in
        utterances; the last stands for no reference.
    """
    wanted, draw = outputs_of(task)[0], np.random.default_rng(0)
    losses = np.zeros((len(STRENGTHS), len(SKEWS)))
    for fitted, scored in inner:
        ((weight, bias),) = fit_lines(task, inputs, fitted, [found.penalty])
        known = fitted[task.known[fitted]]
        counts = wanted[known].sum(0)
        moving = weight[means] / found.heat
        expected = wanted[known].T @ inputs[known][:, means] / counts.clip(1)[:, None] @ moving
        for speaker in np.unique(who[scored]):
            own = scored[(who[scored] == speaker) & task.known[scored]]
            logits = (inputs[own] @ weight + bias) / found.heat
            labels, moved = task.labels[own], inputs[own][:, means] @ moving
            names = np.unique(labels)
            for name in (None, *names):
                few = draw.permutation(len(own) if name is None else np.flatnonzero(labels == name))
                few, part = few[:FEW], 1.0 if name is None else 1 / len(names)
                heard = softmax(logits[few], axis=1).mean(0)
                moods = [believed(heard, counts / counts.sum(), skew=skew) for skew in SKEWS]
                shifts = moved[few].mean(0) - np.stack(moods) @ expected  # (skews, emotions)
                shares = len(few) / (len(few) + np.array(STRENGTHS))
                answers = logits - (shares[:, None, None] * shifts)[:, :, None]
                losses -= part * (log_softmax(answers, axis=-1) * wanted[own]).sum((2, 3))
    best = np.unravel_index(losses.argmin(), losses.shape)
    return STRENGTHS[int(best[0])], SKEWS[int(best[1])]


def fewer(inner: Splits) -> Splits:
    """The inner folds of at most `MOST` utterances, drawn at random."""
    every = np.unique(np.concatenate([rows for pair in inner for rows in pair]))
    if len(every) <= MOST:
        return inner
    drawn = np.random.default_rng(0).choice(every, MOST, replace=False)
    return [(a[np.isin(a, drawn)], b[np.isin(b, drawn)]) for a, b in inner]
