"""The tables and pictures of one experiment, and how numbers are written in all tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtmm_training.data.files import replacing, write_json
from mtmm_training.pictures import of_runs
from mtmm_training.scoring.texts import folds_of, render, title
from mtmm_training.scoring.votes import shares_of
from mtmm_training.studies.experiments import COMPARED, Experiment, read_experiment, summarise

LOWER_IS_BETTER = ("ECE", "MAE", "RMSE", "JSD", "CE_")


def write_tables(folder: str | Path) -> str:
    """Reads an experiment and writes summary.json, table.md and figures/ into it.

    Returns:
        The Markdown of table.md.
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    summary = summarise(experiment)
    markdown = summary_markdown(summary)
    draw(experiment, summary, folder / "figures")
    write_json(summary, folder / "summary.json")
    write_text(markdown, folder / "table.md")
    return markdown


def write_text(text: str, path: Path) -> None:
    """Writes a file of text, under a temporary name first."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(rows: Sequence[Any] | pd.DataFrame, path: Path) -> None:
    """Writes a table with a header, under a temporary name first; None is an empty cell.

    Args:
        rows: dicts, named tuples, or a table.
        path: the file.
    """
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


# ---- pictures ----------------------------------------------------------------------------------


def draw(experiment: Experiment, summary: Mapping[str, Any], folder: Path) -> None:
    """Draws what there are labels for: fold spread, confusion, reliability, valence and arousal."""
    complete = {
        title(name): list(summary["metrics"][name]["by_fold"].values())
        for name in COMPARED
        if summary["metrics"].get(name, {}).get("n") == len(experiment.runs)
    }
    if complete:
        of_runs.plot_fold_spread(complete, folder / "fold_spread.png", "score on the test split")
    if summary["confusion"] is not None:
        labelled = len(experiment.labelled("UAR"))
        heading = f"{experiment.name}: {folds_of(summary)}, {labelled} labelled test utterances"
        path = folder / "confusion.png"
        of_runs.plot_confusion(summary["confusion"], experiment.emotions, path, heading)
        compared = {
            "before temperature": experiment.probabilities_before,
            "after temperature": experiment.probabilities,
        }
        path = folder / "reliability.png"
        of_runs.plot_reliability(compared, experiment.indices("emotion_label"), path)
        if experiment.votes is not None:
            path, shares = folder / "reliability_votes.png", shares_of(experiment.votes)
            of_runs.plot_reliability(compared, shares, path, accuracy="share of listeners")
    plane = ["valence", "arousal"]
    if set(plane) <= set(experiment.dimensions):
        labels = experiment.rows[[f"{name}_label" for name in plane]].to_numpy(np.float64)
        predictions, limits = experiment.rows[plane], experiment.flags["dimension_range"]
        names = experiment.rows["emotion_label"].fillna("") if experiment.emotions else None
        of_runs.plot_dimensions(labels, predictions, folder / "valence_arousal.png", limits, names)


# ---- how things are written --------------------------------------------------------------------


def listed(numbers: Iterable[int]) -> str:
    """The numbers in order, with commas."""
    return ", ".join(map(str, sorted(numbers)))


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The tables of one experiment; metrics without any labels are left out."""
    metrics, speakers = summary["metrics"], dict(summary["speakers"])
    del speakers["count"]
    return render(
        "summary.md", summary=summary, lower_is_better=LOWER_IS_BETTER,
        shown=[name for name in COMPARED if metrics.get(name, {}).get("n")],
        speakers={name: own for name, own in speakers.items() if own["n"]},
    )  # fmt: skip
