"""Experiments: the finished folds of one recipe, and their scores over folds and pooled.

An experiment is a folder with one run per fold (fold-00, fold-01, ...); `mtmm evaluate run` and
`mtmm baselines` write it, and folds.json beside them, which says how many folds there should be. All
scores come from the runs' predictions.csv, in which an output that was never trained has no column.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from mtmm_training.data.files import read_json
from mtmm_training.data.utterances import DIMENSIONS
from mtmm_training.scoring import groups, metrics
from mtmm_training.scoring.metrics import ABSENT_EMOTION, Score
from mtmm_training.scoring.predictions import GROUP
from mtmm_training.scoring.votes import VOTE_SCORES, vote_scores, vote_table
from mtmm_training.training.run import Run, is_finished

FOLD_PREFIX = "fold-"
COMPARED = (
    *("UAR", "WAR", "macro_F1", "weighted_F1", "JSD_votes", "CE_votes"),
    *(f"CCC_{name}" for name in DIMENSIONS),
)
UNFAMILIAR = ("unfamiliar_audio", "unfamiliar_text")  # shares of what is called so


@dataclass(frozen=True)
class Experiment:
    """The finished folds of one recipe.

    Args:
        name: of the folder.
        runs: by fold, from 0.
        missing: folds without results.
        rows: the test predictions of all runs (see `Run.predictions`), with the columns `fold` and
            `temperature` (of that fold) added; columns of outputs that no fold trained are absent.
    """

    name: str
    runs: dict[int, Run]
    missing: list[int]
    rows: pd.DataFrame

    @cached_property
    def flags(self) -> Mapping[str, Any]:
        """The settings that its folds share, as a run's results.json has them."""
        flags: dict[str, Any] = next(iter(self.runs.values())).results["config"]
        return flags

    @cached_property
    def emotions(self) -> list[str]:
        """Names of the emotions, in the order of the columns; empty where none was trained."""
        return [name.removeprefix("p_") for name in self.rows.columns if name.startswith("p_")]

    @cached_property
    def dimensions(self) -> list[str]:
        """Names of the dimensions that have predictions."""
        return [name for name in DIMENSIONS if name in self.rows.columns]

    @cached_property
    def votes(self) -> np.ndarray | None:
        """(rows, emotions), how many listeners heard each, NaN = none; None without any."""
        if "votes" not in self.rows or not self.emotions:
            return None
        said = (json.loads(own) if isinstance(own, str) else None for own in self.rows["votes"])
        return vote_table(said, self.emotions)

    def indices(self, column: str) -> np.ndarray:
        """(rows,) indices into `emotions`, -100 = absent, of "emotion_label" or "emotion"."""
        codes = pd.Categorical(self.rows[column], categories=self.emotions).codes.astype(np.int64)
        return np.where(codes < 0, ABSENT_EMOTION, codes)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(rows, emotions), after each fold's temperature, as the model gives them."""
        return self.rows[[f"p_{name}" for name in self.emotions]].to_numpy(np.float64)

    @cached_property
    def probabilities_before(self) -> np.ndarray:
        """(rows, emotions) as they were without temperature: p^T, normalised."""
        with np.errstate(divide="ignore"):  # a probability that was rounded to 0 stays 0
            logits = np.log(self.probabilities) * self.rows["temperature"].to_numpy()[:, None]
        return softmax(logits, axis=1)

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Every metric as a function of row positions, repeats allowed; NaN without labels."""
        scores: dict[str, Score] = {}
        if self.emotions:
            labels, after = self.indices("emotion_label"), self.probabilities
            scores = metrics.emotion_scores(labels, self.indices("emotion"), after, self.emotions)
            error = metrics.expected_calibration_error
            before = metrics.by_rows(error, self.probabilities_before, labels)
            scores |= {"ECE_before_temperature": before, "ECE": scores.pop("ECE")}
            scores |= vote_scores(after, self.votes)
        for name in [name for name in UNFAMILIAR if name in self.rows]:
            flags = self.rows[name].to_numpy(np.float64)  # NaN: the modality is absent
            scores[name] = metrics.by_rows(lambda own: float(pd.Series(own).mean()), flags)
        predictions = self.rows[self.dimensions].to_numpy(np.float64)
        rated = self.rows[[f"{name}_label" for name in self.dimensions]].to_numpy(np.float64)
        return scores | metrics.dimension_scores(predictions, rated, self.dimensions)

    def labelled(self, metric: str) -> np.ndarray:
        """Positions of the rows that have the label, or votes, which a metric is about."""
        if metric in VOTE_SCORES and self.votes is not None:
            return np.flatnonzero(~np.isnan(self.votes[:, 0]))
        column = metric if metric in UNFAMILIAR else f"{metrics.output_of(metric)}_label"
        return np.flatnonzero(self.rows[column].notna())

    def by(self, column: str, score: Score) -> dict[Any, float | None]:
        """A score for each value of a column (fold or speaker); None without labels."""
        values = self.rows[column]
        return {
            value: metrics.or_none(score(np.flatnonzero(values == value)))
            for value in sorted(values.unique().tolist())
        }

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """By column, such as gender, each row's value; "" = none."""
        return {
            name.removeprefix(GROUP): self.rows[name].fillna("").to_numpy(str)
            for name in self.rows
            if name.startswith(GROUP)
        }

    def of_groups(self) -> dict[str, dict[str, Any]]:
        """By column, "values": utterances, speakers and scores of each; "gaps", see `groups.gaps`."""
        scores = metrics.headline(self.scores)
        speakers = self.rows["speaker"].to_numpy(str)
        found = {}
        for column, values in self.groups.items():
            shown: dict[str, dict[str, Any]] = {}
            for value, scored in groups.by_value(scores, values).items():
                own = speakers[values == value]
                shown[value] = {"utterances": len(own), "speakers": len(set(own))} | scored
            found[column] = {"values": shown, "gaps": groups.gaps(scores, values, speakers)}
        return found

    def of_corpus(self, corpus: str) -> "Experiment":
        """The same on the test utterances of one corpus, if it was of several manifests.

        Their ids lose the corpus, so that it can be paired with an experiment of that corpus alone.

        Raises:
            ValueError: no test utterance is of this corpus.
        """
        if len(self.flags.get("manifest") or []) < 2:
            return self
        rows = self.rows[self.rows["id"].str.startswith(f"{corpus}/")]
        if rows.empty:
            raise ValueError(f"{self.name} has no test utterances of the corpus {corpus!r}.")
        ids = rows["id"].str.removeprefix(f"{corpus}/")
        rows = rows.assign(id=ids).reset_index(drop=True)
        return replace(self, name=f"{self.name}_on_{corpus}", rows=rows)


def read_experiment(folder: str | Path, split: str = "test") -> Experiment:
    """Reads the finished folds of an experiment.

    Args:
        folder: of the experiment.
        split: "test_without_reference" for the same answers without references, or "validation".

    Raises:
        FileNotFoundError: no fold is finished, or a finished one has no predictions.csv.
        ValueError: a file is damaged or of another version.
    """
    folder = Path(folder)
    named = ((path.name.removeprefix(FOLD_PREFIX), path) for path in folder.glob("fold-*"))
    folders = {int(number): path for number, path in sorted(named) if number.isdecimal()}
    runs = {fold: Run.open(path) for fold, path in folders.items() if is_finished(path)}
    if not runs:
        raise FileNotFoundError(f"{folder} has no finished fold; give an experiment's --out.")
    planned = len(folders)
    if (folder / "folds.json").is_file():
        planned = len(read_json(folder / "folds.json", "folds")["folds"])
    missing = sorted({*range(planned), *folders} - set(runs))
    rows = [
        run.predictions(split).assign(fold=fold, temperature=run.results["temperature"])
        for fold, run in runs.items()
    ]
    name = folder.resolve().name + ("_on_validation" if split == "validation" else "")
    return Experiment(name, runs, missing, pd.concat(rows, ignore_index=True))


def mean_and_sd(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation (n − 1) of what is not None, and of how many that is."""
    present = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "sd": float(np.std(present, ddof=1)) if len(present) > 1 else None,
        "n": len(present),
    }


def summarise(experiment: Experiment) -> dict[str, Any]:
    """All scores of an experiment in plain numbers, ready for JSON; None without labels.

    Returns:
        "metrics": by metric "mean", "sd" and "n" over the folds that have labels, "by_fold", and
        "pooled" over all test rows at once; "confusion" (rows are labels, columns predictions) and
        "recall", pooled; "speakers": the spread of UAR, WAR and CCC between speakers; "groups", see
        `Experiment.of_groups`; "listener_ceiling" and "raters_spread" (see `scoring.votes`), means over
        folds; "folds", "missing_folds", "utterances" and "wall_time_s" of all folds together.
    """
    everything = np.arange(len(experiment.rows))
    scored = {}
    for name, score in experiment.scores.items():
        by_fold = experiment.by("fold", score)
        pooled = {"pooled": metrics.or_none(score(everything)), "by_fold": by_fold}
        scored[name] = mean_and_sd(list(by_fold.values())) | pooled
    confusion, recall = None, None
    emotions = experiment.emotions
    if emotions and len(experiment.labelled("UAR")):
        answers = experiment.indices("emotion_label"), experiment.indices("emotion")
        confusion = metrics.confusion(*answers, emotions).tolist()
        recalls = metrics.recall_per_emotion(*answers, emotions)
        recall = dict(zip(emotions, map(metrics.or_none, recalls), strict=True))
    speakers: dict[str, Any] = {"count": experiment.rows["speaker"].nunique()}
    for name in ("UAR", "WAR", *(f"CCC_{name}" for name in experiment.dimensions)):
        by_speaker = experiment.by("speaker", experiment.scores.get(name, lambda rows: np.nan))
        present = [value for value in by_speaker.values() if value is not None]
        extremes = {"lowest": min(present, default=None), "highest": max(present, default=None)}
        speakers[name] = mean_and_sd(present) | extremes | {"by_speaker": by_speaker}
    runs = {fold: run.results for fold, run in experiment.runs.items()}
    names = ("listener_ceiling", "raters_spread")
    told = [{name: run.get(name, {}) for name in names} for run in runs.values()]
    return {
        "experiment": experiment.name,
        "folds": {fold: results["fold"] for fold, results in runs.items()},
        "missing_folds": experiment.missing,
        "utterances": len(everything),
        "metrics": scored,
        "emotions": emotions,
        "confusion": confusion,
        "recall": recall,
        "speakers": speakers,
        "groups": experiment.of_groups(),
        **_mean_by_name(told),
        "wall_time_s": sum(results["wall_time_s"] for results in runs.values()),
    }


def _mean_by_name(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over folds of each number, also of those in dicts; None and absent ones are left out."""
    names = dict.fromkeys(name for fold in folds for name in fold)
    found: dict[str, Any] = {}
    for name in names:
        values = [fold[name] for fold in folds if fold.get(name) is not None]
        if any(isinstance(value, Mapping) for value in values):
            found[name] = _mean_by_name(values)
        else:
            found[name] = float(np.mean(values)) if values else None
    return found
