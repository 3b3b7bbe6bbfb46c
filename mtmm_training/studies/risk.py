"""How often a model errs where it is sure: risk over coverage, and the least confidence for an error rate.

The confidence of an answer is its highest score. Of a least confidence, coverage is the share of
utterances that are answered, and risk the share of those answers that are wrong. It is chosen on the
validation split; what it does for speakers that it was not chosen by, the test split says.

Source: Geifman & El-Yaniv 2017, arXiv 1705.08500.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mtmm_training.data.files import read_json, write_json
from mtmm_training.pictures.of_runs import plot_risk
from mtmm_training.scoring.intervals import paired_bootstrap
from mtmm_training.scoring.metrics import by_rows
from mtmm_training.scoring.texts import number, render
from mtmm_training.studies.experiments import read_experiment
from mtmm_training.studies.tables import write_csv
from mtmm_training.training.run import Run, is_finished

RESAMPLES = 2000


def answered(run: Run, split: str, corpus: str | None = None) -> pd.DataFrame:
    """A run's answers for labelled utterances: "confidence", whether it is "right", and "speaker".

    Raises:
        ValueError: It has no emotions, or no labels of them, or nothing of the corpus.
    """
    rows = run.predictions(split)
    if corpus is not None:
        rows = rows[rows["id"].str.startswith(f"{corpus}/")]
    shares = [name for name in rows if name.startswith("p_")]
    rows = rows[rows["emotion_label"].notna()] if shares else rows[:0]
    if rows.empty:
        raise ValueError(f"{run.folder} has no labelled emotions in its {split} split.")
    right = rows["emotion"] == rows["emotion_label"]
    return rows[["speaker"]].assign(confidence=rows[shares].max(axis=1), right=right)


def curve(rows: pd.DataFrame) -> pd.DataFrame:
    """ "min_confidence", "coverage" and "risk" of every least confidence, from the surest on."""
    rows = rows.sort_values("confidence", ascending=False)
    count = np.arange(1, len(rows) + 1)
    columns = {"min_confidence": rows["confidence"], "coverage": count / len(rows)}
    points = pd.DataFrame(columns | {"risk": (~rows["right"]).cumsum() / count})
    # Equal ones are answered together.
    return points.drop_duplicates("min_confidence", keep="last").reset_index(drop=True)


def least_for(rows: pd.DataFrame, error: float) -> float:
    """The least confidence that answers most utterances with at most this risk; infinite if none."""
    points = curve(rows)
    return float(points["min_confidence"].where(points["risk"] <= error, np.inf).min())


def risk_of(right: np.ndarray, sure: np.ndarray) -> float:
    """The share of wrong answers among those that are sure; NaN where none is."""
    return float((~right[sure]).mean()) if sure.any() else np.nan


def risk_study(
    folders: Sequence[Path], out: Path, error: float, save: bool = False, corpus: str | None = None
) -> str:
    """Draw risk over coverage of runs or experiments, and choose the least confidence of each run.

    Args:
        folders: of finished runs, or of experiments, whose folds are then taken together.
        out: gets risk.csv, with every point of the curves, and risk.png.
        error: the wanted share of wrong answers, 0 to 1.
        save: whether each run's model gets its `min_confidence`.
        corpus: the one of several manifests whose test utterances count; None = all.

    Returns:
        A table in Markdown.

    Raises:
        ValueError: as `answered`; a model would get no least confidence that is enough.
    """
    table, points, curves, marks = [], [], {}, {}
    for folder in folders:
        name = folder.resolve().name
        single = is_finished(folder)
        runs = [Run.open(folder)] if single else list(read_experiment(folder).runs.values())
        of = {"validation": None, "test": corpus}
        splits = {split: [answered(run, split, own) for run in runs] for split, own in of.items()}
        least = [least_for(own, error) for own in splits["validation"]]
        if save:
            _save(runs, least, error)
        limits = [number(limit) for limit in sorted(least) if np.isfinite(limit)] or ["–"]
        cells = [name, " to ".join(dict.fromkeys((limits[0], limits[-1])))]
        for split, parts in splits.items():
            sure = [own.assign(sure=own["confidence"] >= limit)
                    for own, limit in zip(parts, least, strict=True)]  # fmt: skip
            rows = pd.concat(sure, ignore_index=True)
            points.append(curve(rows).assign(name=name, split=split))
            curves[f"{name}, {split}"] = points[-1]["coverage"], points[-1]["risk"]
            columns = rows["right"].to_numpy(bool), rows["sure"].to_numpy(bool)
            mark = float(columns[1].mean()), risk_of(*columns)
            cells += map(number, mark)
        # What follows is of the test split.
        speakers = rows["speaker"].to_numpy(str)
        interval = paired_bootstrap(by_rows(risk_of, *columns), speakers, RESAMPLES)
        if np.isfinite(interval.low):
            cells[-1] += f" [{number(interval.low)}, {number(interval.high)}]"
        cells += [number(float((~columns[0]).mean())), number(float(points[-1]["risk"].mean()))]
        table.append(cells)
        marks[f"{name}, test"] = mark
    names = ["name", "split", "min_confidence", "coverage", "risk"]
    write_csv(pd.concat(points)[names], out / "risk.csv")
    plot_risk(curves, marks, out / "risk.png", error)
    return render("risk.md", rows=table)


def _save(runs: Sequence[Run], least: Sequence[float], error: float) -> None:
    for run, limit in zip(runs, least, strict=True):
        if not np.isfinite(limit):
            raise ValueError(f"{run.folder} always errs more than {error:g}; raise --error.")
        path = run.folder / "model" / "config.json"
        write_json(read_json(path) | {"min_confidence": limit}, path)
