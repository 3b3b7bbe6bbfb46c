"""A finished model on a labelled table: scores with intervals, confusion, calibration, groups."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from configuration_mtmm import MTMMConfig
from mtmm_training.commands.predict_inputs import Input
from mtmm_training.commands.predict_work import load_pipeline, pipeline_options, predict_each
from mtmm_training.data.files import write_json
from mtmm_training.data.manifest import UNKNOWN_SPEAKER, read_manifest
from mtmm_training.data.utterances import DIMENSIONS, RATINGS, Utterance, few
from mtmm_training.pictures import of_runs
from mtmm_training.scoring import metrics
from mtmm_training.scoring.intervals import effective_speakers, paired_bootstrap
from mtmm_training.scoring.predictions import Predictions, scores_by_group, write_predictions
from mtmm_training.scoring.texts import render
from mtmm_training.studies.tables import write_text
from mtmm_training.training.ending import tell
from mtmm_training.training.prepare import speakers_behind
from mtmm_training.training.regressions import label_columns
from mtmm_training.training.report import draw_test

NOT_SHOWN = ("top2", "MAE_", "RMSE_")


def score_model(given: argparse.Namespace) -> str:
    """Predicts the table's rows, writes into --out, and returns the tables as Markdown.

    Raises:
        ValueError: The table or the model cannot be used, or nothing in it can be scored.
    """
    pipe = load_pipeline(given)
    config = pipe.model.config
    rows = read_rows(given, config)
    if heard := speakers_behind(given.model) & {u.speaker_id for u in rows}:
        tell(f"The model was trained or selected on {few(sorted(heard))}: scores are too high")
    inputs = [Input.of(u, speakers=True) for u in rows]
    options = pipeline_options(given, pipe, inputs)
    answers, failed = [], {}
    for one, answer in predict_each(pipe, inputs, options):
        answers.append(answer)
        if "error" in answer:
            failed[one.name] = answer["error"]
    rows = [u for u in rows if u.utterance_id not in failed]
    if not rows:
        raise ValueError(f"No row of {given.manifest} can be predicted.")
    answers = [answer for answer in answers if "error" not in answer]
    predictions = to_predictions(rows, answers, config)
    found = scores_of(predictions, rows, config, given.group_by)
    found |= {"model": given.model, "manifest": given.manifest, "failed": failed}
    shown = metrics.headline(found["intervals"])
    groups = {
        column: {
            group: {"utterances": own["utterances"]} | {name: _of(own, name) for name in shown}
            for group, own in values.items()
        }
        for column, values in found["by_group"].items()
    }
    text = render("scores.md", found=found, emotions=config.emotion_names, groups=groups)
    if given.out is None:
        return text
    path, figures = given.out / "predictions.csv", given.out / "figures"
    write_predictions(path, {"test": predictions}, rows, config, given.group_by)
    heading = f"{len(rows)} utterances of {Path(given.manifest).name}"
    draw_test(figures, config, found["metrics"], predictions, heading)
    if (predictions.emotion_labels != metrics.ABSENT_EMOTION).any():
        shares = {"this table": softmax(predictions.emotion_logits / config.temperature, axis=1)}
        of_runs.plot_reliability(shares, predictions.emotion_labels, figures / "reliability.png")
    write_text(text, given.out / "table.md")
    write_json(found, given.out / "scores.json")
    return text


def read_rows(given: argparse.Namespace, config: MTMMConfig) -> list[Utterance]:
    """The table's rows with labels that the model has, dimensions on the model's scale."""
    low, high = config.dimension_range
    scale = given.dimension_range or (low, high)
    rows = read_manifest(
        given.manifest, audio_dir=given.audio_dir, dimension_range=scale, audio_exists=False,
        groups=given.group_by or (), speakers=False,
    )  # fmt: skip
    if all(u.speaker_id == UNKNOWN_SPEAKER for u in rows):
        tell("no column speaker: intervals are over utterances, too narrow where people repeat")
        rows = [replace(u, speaker_id=u.utterance_id) for u in rows]
    factor = (high - low) / (scale[1] - scale[0])
    known = [name for name in DIMENSIONS if name in config.trained_outputs]
    names = config.emotion_names if "emotion" in config.trained_outputs else ()
    other = Counter(u.emotion for u in rows if u.emotion not in (None, *names))
    if other:
        listed = ", ".join(f"{name} ({count})" for name, count in other.most_common())
        tell(f"not scored, the model knows {', '.join(names) or 'no emotions'} alone: {listed}")
    kept = []
    for u in rows:
        values = {n: getattr(u, n) for n in known}
        moved: dict[str, Any] = dict.fromkeys((*DIMENSIONS, *RATINGS.values(), "raters", "votes"))
        moved |= {n: low + (v - scale[0]) * factor for n, v in values.items() if v is not None}
        kept.append(replace(u, emotion=u.emotion if u.emotion in names else None, **moved))
    if not any(u.emotion or any(getattr(u, n) is not None for n in known) for u in kept):
        raise ValueError(f"{given.manifest} has no label of {', '.join(config.trained_outputs)}.")
    return kept


def to_predictions(
    rows: Sequence[Utterance], answers: Sequence[Mapping[str, Any]], config: MTMMConfig
) -> Predictions:
    """The pipeline's answers; logits are times the temperature, so that it divides them again."""
    names = list(config.emotion_names)
    shares = np.array([[a.get("scores", {}).get(n, 1.0) for n in names] for a in answers])
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(shares), -700.0) * config.temperature
    dimensions = np.array([[a.get(n, 0.0) for n in config.dimension_names] for a in answers])
    labels = label_columns(names, config.dimension_names, rows)
    ids, emotions = [u.utterance_id for u in rows], labels.pop("emotion")
    return Predictions(ids, logits, dimensions, emotions, np.stack([*labels.values()], axis=1))


def scores_of(
    predictions: Predictions,
    rows: Sequence[Utterance],
    config: MTMMConfig,
    group_by: Sequence[str] | None,
) -> dict[str, Any]:
    """Metrics, their intervals over speakers, and those of groups, as scores.json has them."""
    speakers = np.array([u.speaker_id for u in rows])
    intervals = {}
    for name, score in predictions.scores(config).items():
        if name.startswith(NOT_SHOWN):
            continue
        column = name.partition("CCC_")[2]
        known = predictions.emotion_labels != metrics.ABSENT_EMOTION
        if column:
            rated = predictions.dimension_labels[:, config.dimension_names.index(column)]
            known = ~np.isnan(rated)
        at = np.flatnonzero(known)
        if len(at):
            drawn = paired_bootstrap(metrics.by_rows(score, at), speakers[at])
            intervals[name] = [metrics.or_none(v) for v in (drawn.point, drawn.low, drawn.high)]
    return {
        "utterances": len(rows),
        "speakers": len(set(speakers)),
        "effective_speakers": effective_speakers(speakers),
        "metrics": predictions.metrics(config, config.temperature),
        "intervals": intervals,
        **scores_by_group(predictions, rows, config, group_by),
    }


def _of(own: Mapping[str, Any], name: str) -> float | None:
    kind, _, column = name.partition("_")
    return own[kind][column] if column else own[kind]
