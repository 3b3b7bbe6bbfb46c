"""The tables and pictures of one experiment, and how numbers are written in all tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtmm_training.data.files import replacing, write_json
from mtmm_training.pictures import of_runs
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
        heading = (
            f"{experiment.name}: {folds_of(summary)}, {labelled} test utterances with an emotion"
        )
        path = folder / "confusion.png"
        of_runs.plot_confusion(summary["confusion"], experiment.emotions, path, heading)
        compared = {
            "before temperature": experiment.probabilities_before,
            "after temperature": experiment.probabilities,
        }
        path = folder / "reliability.png"
        of_runs.plot_reliability(compared, experiment.emotion_labels, path)
        if experiment.votes is not None:
            path, shares = folder / "reliability_votes.png", shares_of(experiment.votes)
            of_runs.plot_reliability(compared, shares, path, accuracy="share of listeners")
    plane = ["valence", "arousal"]
    if set(plane) <= set(experiment.dimensions):
        labels = experiment.rows[[f"{name}_label" for name in plane]].to_numpy(np.float64)
        if np.isnan(labels).any(axis=1).all():
            return
        limits = next(iter(experiment.runs.values())).results["config"]["dimension_range"]
        names = None
        if experiment.emotions:
            given = experiment.rows["emotion_label"]
            names = [name if isinstance(name, str) else None for name in given]
        predictions = experiment.rows[plane].to_numpy(np.float64)
        path = folder / "valence_arousal.png"
        of_runs.plot_dimensions(labels, predictions, path, tuple(limits), names)


# ---- how things are written --------------------------------------------------------------------


def title(metric: str) -> str:
    """A metric's name as tables print it."""
    return metric.replace("_", " ")


def number(value: float | None, sign: str = "") -> str:
    """Three decimals with a true minus sign, or a dash for what has no value: None, or NaN."""
    return "–" if value is None or value != value else f"{value:{sign}.3f}".replace("-", "−")


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


def incomplete(summary: Mapping[str, Any]) -> list[str]:
    """The sentence about folds that are missing, if any are."""
    missing = summary["missing_folds"]
    return [f"**Incomplete: folds {listed(missing)} are missing.**\n"] if missing else []


def listed(numbers: Iterable[int]) -> str:
    """The numbers in order, with commas."""
    return ", ".join(map(str, sorted(numbers)))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, a line for each row."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# ---- one experiment ----------------------------------------------------------------------------


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The tables of one experiment; metrics without any labels are left out."""
    speakers = summary["speakers"]
    with_labels = {name: values for name, values in summary["metrics"].items() if values["n"]}
    rows = []
    for name, values in with_labels.items():
        lower = " (lower is better)" if name.startswith(LOWER_IS_BETTER) else ""
        some = f" (n = {values['n']})" if values["n"] < len(summary["folds"]) else ""
        rows.append([title(name) + lower, spread(values) + some, number(values["pooled"])])
    ceiling = summary["listener_ceiling"]
    for name in ("UAR", "WAR", "JSD_votes"):
        if ceiling.get(name) is not None:
            rows.append(
                [f"{title(name)} of one listener against the others", number(ceiling[name]), ""]
            )
    for name, value in ceiling.get("CCC", {}).items():
        rows.append([f"CCC {name} of one rater against the others", number(value), ""])
    for name, found in summary["raters_spread"].items():
        what = f"correlation of the spread of {name} with its raters'"
        rows.append([what, number(found["correlation"]), ""])
    for name, value in summary["unfamiliar"].items():
        rows.append([f"share of unfamiliar {name}", number(value), ""])
    shown = [name for name in COMPARED if name in with_labels]
    folds = [
        [f"{fold} ({name})", *(number(with_labels[m]["by_fold"][fold]) for m in shown)]
        for fold, name in summary["folds"].items()
    ]
    parts = [
        f"# {summary['experiment']}\n",
        *incomplete(summary),
        f"{folds_of(summary)}, {summary['utterances']} test utterances of {speakers['count']} "
        f"speakers, {summary['wall_time_s']:.0f} s of training and test in all.\n",
        markdown_table(["metric", "mean ± sd over folds", "pooled over utterances"], rows),
        markdown_table(["fold", *map(title, shown)], folds),
    ]
    spreads = [
        f"{title(name)} {spread(own)} ({number(own['lowest'])} to {number(own['highest'])})"
        for name, own in speakers.items()
        if name != "count" and own["n"]
    ]
    if spreads:
        parts.append(f"Between speakers (mean ± sd, lowest to highest): {'; '.join(spreads)}.\n")
    for column, group in summary["groups"].items():
        parts += group_parts(column, group["values"], group["gaps"])
    if summary["confusion"] is not None:
        parts.append(confusion_table(summary["emotions"], summary["confusion"], summary["recall"]))
    return "\n".join(parts)


def confusion_table(
    emotions: Sequence[str], confusion: Sequence[Sequence[int]], recall: Mapping[str, float | None]
) -> str:
    """How often each emotion was taken for which, in Markdown, and its recall."""
    cells = [
        [name, *map(str, counts), number(recall[name])]
        for name, counts in zip(emotions, confusion, strict=True)
    ]
    return markdown_table(["labelled \\ predicted", *emotions, "recall"], cells)


def group_parts(
    column: str, values: Mapping[str, Mapping[str, Any]], gaps: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A table of the groups of a column, pooled over utterances, and their gaps.

    Args:
        column: such as gender.
        values: by group, counts and scores.
        gaps: by score, as of `groups.gaps`.
    """
    rows = [
        [group, *(str(n) if isinstance(n, int) else number(n) for n in own.values())]
        for group, own in values.items()
    ]
    table = markdown_table([column, *map(title, next(iter(values.values())))], rows)
    apart = [f"{title(name)} {gap_words(gap)}" for name, gap in gaps.items()]
    return [table] + ([f"Gaps by {column}: {'; '.join(apart)}.\n"] if apart else [])


def gap_words(gap: Mapping[str, Any]) -> str:
    """A gap between groups with its interval, such as ".050 [.010, .090] (male above female)"."""
    interval = gap["interval"] and f" [{', '.join(number(value) for value in gap['interval'])}]"
    return f"{number(gap['gap'])}{interval or ''} ({gap['highest']} above {gap['lowest']})"
