"""How often a model errs where it is sure: risk over coverage, and the least confidence for an error rate.

The confidence of an answer is its highest score. Of a least confidence, coverage is the share of
utterances that are answered, and risk the share of those answers that are wrong. It is chosen on the
validation split; what it does for speakers that it was not chosen by, the test split says.

Source: Geifman & El-Yaniv 2017, arXiv 1705.08500.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtmm_training.data.files import read_json, write_json
from mtmm_training.pictures.of_runs import plot_risk
from mtmm_training.scoring.intervals import interval_if_any
from mtmm_training.studies.experiments import read_experiment
from mtmm_training.studies.tables import markdown_table, number, write_csv
from mtmm_training.training.run import Run, is_finished

RESAMPLES = 2000


@dataclass(frozen=True)
class Answered:
    """Labelled utterances: how sure the answer is, whether it is right, and who speaks: (rows,) each."""

    confidence: np.ndarray
    right: np.ndarray
    speakers: np.ndarray

    @classmethod
    def of(cls, run: Run, split: str) -> "Answered":
        """A run's answers for a split.

        Raises:
            ValueError: It has no emotions, or no labels of them.
        """
        rows = run.predictions(split)
        shares = [name for name in rows if name.startswith("p_")]
        rows = rows[rows["emotion_label"].notna()] if shares else rows[:0]
        if rows.empty:
            raise ValueError(f"{run.folder} has no labelled emotions in its {split} split.")
        right = (rows["emotion"] == rows["emotion_label"]).to_numpy()
        return cls(rows[shares].to_numpy(float).max(1), right, rows["speaker"].to_numpy(str))

    @classmethod
    def joined(cls, parts: "Sequence[Answered]") -> "Answered":
        """Those of several runs."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def curve(self) -> pd.DataFrame:
        """ "min_confidence", "coverage" and "risk" of every least confidence, from the surest on."""
        order = np.argsort(-self.confidence, kind="stable")
        confidence, count = self.confidence[order], np.arange(1, len(order) + 1)
        risk = np.cumsum(~self.right[order]) / count
        last = np.append(confidence[1:] < confidence[:-1], True)  # equal ones are answered together
        columns = {"min_confidence": confidence, "coverage": count / len(order), "risk": risk}
        return pd.DataFrame(columns)[last].reset_index(drop=True)

    def least_for(self, error: float) -> float:
        """The least confidence that answers most utterances with at most this risk; above 1 if none."""
        curve = self.curve()
        allowed = curve[curve["risk"] <= error]
        return float(allowed["min_confidence"].iloc[-1]) if len(allowed) else np.inf


def risk_study(folders: Sequence[Path], out: Path, error: float, *, save: bool = False) -> str:
    """Draw risk over coverage of runs or experiments, and choose the least confidence of each run.

    Args:
        folders: of finished runs, or of experiments, whose folds are then taken together.
        out: gets risk.csv, with every point of the curves, and risk.png.
        error: the wanted share of wrong answers, 0 to 1.
        save: whether each run's model gets its `min_confidence`.

    Returns:
        A table in Markdown.

    Raises:
        ValueError: as `Answered.of`; a model would get no least confidence that is enough.
    """
    table, points, curves, marks = [], [], {}, {}
    for folder in folders:
        name = folder.resolve().name
        single = is_finished(folder)
        runs = [Run.open(folder)] if single else list(read_experiment(folder).runs.values())
        validation, test = ([Answered.of(run, split) for run in runs]
                            for split in ("validation", "test"))  # fmt: skip
        least = [own.least_for(error) for own in validation]
        if save:
            _save(runs, least, error)
        for split, parts in (("validation", validation), ("test", test)):
            curve = Answered.joined(parts).curve()
            points.append(curve.assign(name=name, split=split))
            curves[f"{name}, {split}"] = curve["coverage"], curve["risk"]
        row, mark = _row(name, validation, test, least)
        table.append(row)
        marks[f"{name}, test"] = mark
    columns = ["name", "split", "min_confidence", "coverage", "risk"]
    write_csv(pd.concat(points)[columns], out / "risk.csv")
    plot_risk(curves, marks, out / "risk.png", error)
    header = ["", "min_confidence", "validation coverage", "risk", "test coverage"]
    header += ["risk [95 % interval]", "risk of all", "area under the test curve"]
    return markdown_table(header, table)


def _row(
    name: str, validation: Sequence[Answered], test: Sequence[Answered], least: Sequence[float]
) -> tuple[list[str], tuple[float, float]]:
    """A line of the table, and coverage and risk of the test split."""

    def answered(parts: Sequence[Answered]) -> tuple[Answered, np.ndarray]:
        kept = [own.confidence >= limit for own, limit in zip(parts, least, strict=True)]
        return Answered.joined(parts), np.concatenate(kept)

    def risk(rows: np.ndarray, own: Answered, kept: np.ndarray) -> float:
        sure = rows[kept[rows]]
        return float((~own.right[sure]).mean()) if len(sure) else np.nan

    cells: list[str] = []
    point: Any = None
    for parts in (validation, test):
        own, kept = answered(parts)
        everything = np.arange(len(kept))
        point = float(kept.mean()), risk(everything, own, kept)
        cells += [number(point[0]), number(point[1])]
    own, kept = answered(test)
    interval = interval_if_any(lambda rows: risk(rows, own, kept), own.speakers, RESAMPLES)
    if np.isfinite(interval.low):
        cells[-1] += f" [{number(interval.low)}, {number(interval.high)}]"
    finite = [limit for limit in least if np.isfinite(limit)]
    limits = [number(min(finite)), number(max(finite))] if finite else ["–"]
    whole = float((~own.right).mean())
    row = [name, " to ".join(dict.fromkeys(limits)), *cells, number(whole)]
    return [*row, number(float(own.curve()["risk"].mean()))], point


def _save(runs: Sequence[Run], least: Sequence[float], error: float) -> None:
    for run, limit in zip(runs, least, strict=True):
        if not np.isfinite(limit):
            raise ValueError(
                f"No least confidence gives {run.folder} an error of {error:g} on its validation split; "
                "give a higher --error."
            )
        path = run.folder / "model" / "config.json"
        write_json(read_json(path) | {"min_confidence": limit}, path)
