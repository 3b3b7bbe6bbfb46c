"""The tables and pictures of one experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_training.files import replacing, write_json
from mtmm_training.pictures import figures
from mtmm_training.studies.experiments import (
    COMPARED,
    LOWER_IS_BETTER,
    Experiment,
    _listed,
    folds_and_utterances,
    folds_of,
    markdown_table,
    number,
    read_experiment,
    spread,
    summarise,
    title,
)


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
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    return markdown


def draw(experiment: Experiment, summary: Mapping[str, Any], folder: Path) -> None:
    """Draws what there are labels for: fold spread, confusion, reliability, valence and arousal."""
    complete = {
        title(name): list(summary["metrics"][name]["by_fold"].values())
        for name in COMPARED
        if summary["metrics"].get(name, {}).get("n") == len(experiment.runs)
    }
    if complete:
        figures.plot_fold_spread(complete, folder / "fold_spread.png", "score on the test split")
    if summary["confusion"] is not None:
        labelled = int(np.sum(summary["confusion"]))
        heading = (
            f"{experiment.name}: {folds_of(summary)}, {labelled} test utterances with an emotion"
        )
        path = folder / "confusion.png"
        figures.plot_confusion(summary["confusion"], experiment.emotions, path, heading)
        compared = {"before": experiment.probabilities_before, "after": experiment.probabilities}
        compared = {f"{when} temperature": table for when, table in compared.items()}
        path = folder / "reliability.png"
        figures.plot_reliability(compared, experiment.emotion_labels, path)
    _draw_plane(experiment, folder / "valence_arousal.png")


def _draw_plane(experiment: Experiment, path: Path) -> None:
    plane = ["valence", "arousal"]
    if not set(plane) <= set(experiment.dimensions):
        return
    labels = experiment.rows[[f"{name}_label" for name in plane]].to_numpy(np.float64)
    if np.isnan(labels).any(axis=1).all():
        return
    low, high = next(iter(experiment.runs.values()))["config"]["dimension_range"]
    names = None
    if experiment.emotions:
        names = [name if isinstance(name, str) else None for name in experiment.rows.emotion_label]
    predictions = experiment.rows[plane].to_numpy(np.float64)
    figures.plot_dimensions(labels, predictions, path, (low, high), names)


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The tables of one experiment."""
    speakers = summary["speakers"]
    parts = [f"# {summary['experiment']}\n"]
    if summary["missing_folds"]:
        parts.append(f"**Incomplete: folds {_listed(summary['missing_folds'])} are missing.**\n")
    parts.append(
        f"{folds_and_utterances(summary)} of {speakers['count']} speakers, "
        f"{summary['wall_time_s']:.0f} s of training and test in all.\n"
    )
    rows = []
    for name, values in summary["metrics"].items():
        lower = " (lower is better)" if name.startswith(LOWER_IS_BETTER) else ""
        some = f" (n = {values['n']})" if 0 < values["n"] < len(summary["folds"]) else ""
        rows.append([title(name) + lower, spread(values) + some, number(values["pooled"])])
    header = ["metric", "mean ± sd over folds", "pooled over utterances"]
    parts.append(markdown_table(header, rows))
    shown = [name for name in COMPARED if summary["metrics"].get(name, {}).get("n")]
    rows = [
        [f"{fold} ({name})", *(number(summary["metrics"][m]["by_fold"][fold]) for m in shown)]
        for fold, name in summary["folds"].items()
    ]
    parts.append(markdown_table(["fold", *map(title, shown)], rows))
    if summary["confusion"] is not None:
        parts += [_speakers_line(speakers), _confusion_table(summary)]
    return "\n".join(parts)


def _speakers_line(speakers: Mapping[str, Any]) -> str:
    spreads = [
        f"{name} {spread(speakers[name])} ({number(speakers[name]['lowest'])} to "
        f"{number(speakers[name]['highest'])})"
        for name in ("UAR", "WAR")
    ]
    return f"Between speakers (mean ± sd, lowest to highest): {'; '.join(spreads)}.\n"


def _confusion_table(summary: Mapping[str, Any]) -> str:
    emotions = summary["emotions"]
    rows = [
        [name, *map(str, counts), number(summary["recall"][name])]
        for name, counts in zip(emotions, summary["confusion"], strict=True)
    ]
    return markdown_table(["labelled \\ predicted", *emotions, "recall"], rows)
