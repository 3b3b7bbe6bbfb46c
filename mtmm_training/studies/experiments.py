"""Experiments read back: the finished folds of one recipe, and their scores over folds and pooled.

An experiment is a folder with one folder per fold (fold-00, fold-01, ...), each with results.json and
predictions.csv; `evaluate run` and the baselines write it. folds.json beside them, where it is,
says how many folds there should be. All scores come from predictions.csv, in which an output that
was never trained has no column: it is None here, and "–" in every table, never a number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from mtmm_training.data.utterances import DIMENSIONS
from mtmm_training.files import read_json
from mtmm_training.scoring import metrics
from mtmm_training.scoring.metrics import ABSENT_EMOTION

FOLD_PREFIX = "fold-"
EMOTION_SCORES = ("UAR", "WAR", "macro_F1", "weighted_F1", "ECE_before_temperature", "ECE")
DIMENSION_SCORES = {
    "CCC": metrics.concordance_correlation,
    "MAE": metrics.mean_absolute_error,
    "RMSE": metrics.root_mean_squared_error,
}
COMPARED = ("UAR", "WAR", "macro_F1", "weighted_F1", *(f"CCC_{name}" for name in DIMENSIONS))
LOWER_IS_BETTER = ("ECE", "MAE", "RMSE")

Score = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Experiment:
    """The finished folds of one recipe.

    Args:
        name: of the folder.
        runs: results.json by fold, from 0.
        missing: folds without results.
        rows: the test rows of every fold's predictions.csv, with the columns `fold` and
            `temperature` (of that fold) added; columns of outputs that no fold trained are absent.
    """

    name: str
    runs: dict[int, dict[str, Any]]
    missing: list[int]
    rows: pd.DataFrame

    @cached_property
    def emotions(self) -> list[str]:
        """Names of the emotions, in the order of the columns; empty where none was trained."""
        return [name.removeprefix("p_") for name in self.rows.columns if name.startswith("p_")]

    @cached_property
    def dimensions(self) -> list[str]:
        """Names of the dimensions that have predictions."""
        return [name for name in DIMENSIONS if name in self.rows.columns]

    @cached_property
    def emotion_labels(self) -> np.ndarray:
        """(rows,) indices into `emotions`, -100 = absent."""
        return _indices(self.rows["emotion_label"], self.emotions)

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
            labels, emotions = self.emotion_labels, self.emotions
            predicted = _indices(self.rows["emotion"], emotions)
            before, after = self.probabilities_before, self.probabilities
            ece = metrics.expected_calibration_error
            uar = metrics.unweighted_average_recall
            scores = {
                "UAR": lambda rows: uar(labels[rows], predicted[rows], emotions),
                "WAR": lambda rows: metrics.weighted_accuracy(labels[rows], predicted[rows]),
                "macro_F1": lambda rows: metrics.macro_f1(labels[rows], predicted[rows]),
                "weighted_F1": lambda rows: metrics.weighted_f1(labels[rows], predicted[rows]),
                "ECE_before_temperature": lambda rows: ece(before[rows], labels[rows]),
                "ECE": lambda rows: ece(after[rows], labels[rows]),
            }
        for name in self.dimensions:
            for short, function in DIMENSION_SCORES.items():
                scores[f"{short}_{name}"] = self._dimension_score(name, function)
        return scores

    def labelled(self, metric: str) -> np.ndarray:
        """Positions of the rows that have the label which a metric is about."""
        output = "emotion" if metric in EMOTION_SCORES else metric.partition("_")[2]
        return np.flatnonzero(self.rows[f"{output}_label"].notna())

    def _dimension_score(self, name: str, function: Callable[..., float]) -> Score:
        predictions, labels = (self.rows[c].to_numpy(np.float64) for c in (name, f"{name}_label"))
        return lambda rows: function(predictions[rows], labels[rows])

    def by(self, column: str, score: Score) -> dict[Any, float | None]:
        """A score for each value of a column (fold or speaker); None without labels."""
        values = self.rows[column]
        return {
            value: metrics.or_none(score(np.flatnonzero(values == value)))
            for value in sorted(values.unique().tolist())
        }


def fold_folder(folder: Path, fold: int, folds: int) -> Path:
    """Where a fold's run is: two digits, or as many as the last fold needs."""
    return folder / f"{FOLD_PREFIX}{fold:0{max(2, len(str(folds - 1)))}d}"


def read_experiment(folder: str | Path) -> Experiment:
    """Reads the finished folds of an experiment.

    Raises:
        FileNotFoundError: no fold is finished, or a finished one has no predictions.csv.
        ValueError: a file is damaged or of another version, or predictions name an utterance twice.
    """
    folder = Path(folder)
    named = ((p.name.removeprefix(FOLD_PREFIX), p) for p in folder.glob(f"{FOLD_PREFIX}*"))
    folders = {int(number): path for number, path in named if number.isdecimal()}
    finished = {i: p for i, p in sorted(folders.items()) if (p / "results.json").is_file()}
    if not finished:
        raise FileNotFoundError(
            f"{folder} has no finished fold ({FOLD_PREFIX}00/results.json, ...); give the --out of "
            "`python -m mtmm_training.studies.protocol run`."
        )
    planned = len(folders)
    if (folder / "folds.json").is_file():
        planned = len(read_json(folder / "folds.json", "folds")["folds"])
    expected = {*range(planned), *folders}
    needed = ("fold", "config", "splits", "temperature", "wall_time_s")
    runs = {i: read_json(p / "results.json", *needed) for i, p in finished.items()}
    frames = [_test_rows(p, i, runs[i]) for i, p in finished.items()]
    rows = pd.concat(frames, ignore_index=True)
    return Experiment(folder.resolve().name, runs, sorted(expected - set(finished)), rows)


def _test_rows(folder: Path, fold: int, results: Mapping[str, Any]) -> pd.DataFrame:
    path = folder / "predictions.csv"
    again = "move results.json away, and run this fold again"
    # Only an empty field is absent; an utterance, speaker or emotion may be called "NA" or "1".
    names = dict.fromkeys(("id", "split", "speaker", "emotion_label", "emotion"), str)
    try:
        rows = pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])
        numbers = [name for name in rows.columns if _is_number_column(name)]
        rows[numbers] = rows[numbers].apply(pd.to_numeric)
    except ValueError as error:  # of pandas' parser and of the decoder too
        raise ValueError(f"{path} cannot be read ({error}); {again}.") from error
    lacking = [name for name in ("id", "split", "speaker") if name not in rows]
    if lacking:
        raise ValueError(f"{path} has no column {lacking[0]!r}; {again}.")
    rows = rows[rows["split"] == "test"].assign(fold=fold, temperature=results["temperature"])
    if rows["id"].duplicated().any():
        twice = rows["id"][rows["id"].duplicated()].iloc[0]
        raise ValueError(f"{path} has test utterance {twice!r} twice; it must come once.")
    tested = results["splits"].get("test", {}).get("utterances", len(rows))
    if len(rows) != tested:
        raise ValueError(
            f"{path} has {len(rows)} test utterances, results.json beside it says {tested}; {again}."
        )
    return rows


def _is_number_column(name: str) -> bool:
    return name.startswith("p_") or name.removesuffix("_label") in DIMENSIONS


def _indices(names: pd.Series, emotions: Sequence[str]) -> np.ndarray:
    unknown = sorted(set(names.dropna()) - set(emotions))
    if unknown:
        raise ValueError(
            f"predictions.csv has the emotion {unknown[0]!r} but no column p_{unknown[0]}; its "
            f"emotions are {', '.join(emotions)}."
        )
    codes = pd.Categorical(names, categories=emotions).codes.astype(np.int64)
    return np.where(codes < 0, ABSENT_EMOTION, codes)


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
        "recall", pooled; "speakers": the spread of UAR and WAR between speakers; "folds",
        "missing_folds", "utterances" and "wall_time_s" of all folds together.
    """
    everything = np.arange(len(experiment.rows))
    scored = {}
    for name in _metric_names(experiment):
        score = experiment.scores.get(name, lambda rows: np.nan)
        by_fold = experiment.by("fold", score)
        pooled = {"pooled": metrics.or_none(score(everything)), "by_fold": by_fold}
        scored[name] = mean_and_sd(list(by_fold.values())) | pooled
    return {
        "experiment": experiment.name,
        "folds": {fold: run["fold"] for fold, run in experiment.runs.items()},
        "missing_folds": experiment.missing,
        "utterances": len(everything),
        "metrics": scored,
        "emotions": experiment.emotions,
        **_recalls(experiment),
        "speakers": _speaker_spread(experiment),
        "wall_time_s": sum(run["wall_time_s"] for run in experiment.runs.values()),
    }


def _metric_names(experiment: Experiment) -> list[str]:
    """All metrics, those of outputs that were asked for but never trained too."""
    asked = {
        name for run in experiment.runs.values() for name in run["config"].get("dimensions") or []
    }
    dimensions = [name for name in DIMENSIONS if name in asked | set(experiment.dimensions)]
    return [*EMOTION_SCORES, *(f"{s}_{name}" for name in dimensions for s in DIMENSION_SCORES)]


def _recalls(experiment: Experiment) -> dict[str, Any]:
    if not experiment.emotions or not (experiment.emotion_labels != ABSENT_EMOTION).any():
        return {"confusion": None, "recall": None}
    labels = experiment.emotion_labels
    predicted = _indices(experiment.rows["emotion"], experiment.emotions)
    recalls = metrics.recall_per_emotion(labels, predicted, experiment.emotions)
    return {
        "confusion": metrics.confusion(labels, predicted, experiment.emotions).tolist(),
        "recall": dict(zip(experiment.emotions, map(metrics.or_none, recalls), strict=True)),
    }


def _speaker_spread(experiment: Experiment) -> dict[str, Any]:
    spread: dict[str, Any] = {"count": experiment.rows["speaker"].nunique()}
    for name in ("UAR", "WAR"):
        by_speaker = experiment.by("speaker", experiment.scores.get(name, lambda rows: np.nan))
        present = [value for value in by_speaker.values() if value is not None]
        extremes = {"lowest": min(present, default=None), "highest": max(present, default=None)}
        spread[name] = mean_and_sd(present) | extremes | {"by_speaker": by_speaker}
    return spread


def title(metric: str) -> str:
    """A metric's name as tables print it."""
    return metric.replace("_", " ")


def number(value: float | None, sign: str = "") -> str:
    """Three decimals with a true minus sign, or a dash for what has no value."""
    return "–" if value is None else f"{value:{sign}.3f}".replace("-", "−")


def spread(values: Mapping[str, Any], sign: str = "") -> str:
    """Mean ± sd; of one fold the value alone."""
    shown = number(values["mean"], sign)
    return shown if values["sd"] is None else f"{shown} ± {number(values['sd'])}"


def folds_of(summary: Mapping[str, Any]) -> str:
    """How many folds of an experiment are done, and of how many."""
    done, missing = len(summary["folds"]), len(summary["missing_folds"])
    if missing:
        return f"{done} of {done + missing} folds"
    return "1 fold" if done == 1 else f"{done} folds"


def folds_and_utterances(summary: Mapping[str, Any]) -> str:
    """How much an experiment covers, and what it lacks."""
    return f"{folds_of(summary)}, {summary['utterances']} test utterances"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, a line for each row."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _listed(folds: Mapping[int, Any] | Sequence[int]) -> str:
    return ", ".join(map(str, sorted(folds))) or "none"
