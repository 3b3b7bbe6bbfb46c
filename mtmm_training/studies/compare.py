"""Experiments on the same test utterances: their differences, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtmm_training.data.files import write_json
from mtmm_training.data.utterances import DIMENSIONS
from mtmm_training.pictures import of_runs
from mtmm_training.scoring import intervals, metrics, texts
from mtmm_training.studies import tables
from mtmm_training.studies.experiments import (
    COMPARED,
    FOLD_PREFIX,
    Experiment,
    mean_and_sd,
    read_experiment,
    summarise,
)

RESAMPLES = 2000  # of the bootstrap
FEW_SPEAKERS = 10  # up to so many, percentile intervals over speakers are known to be too narrow


@dataclass(frozen=True)
class Difference:
    """One metric of an experiment minus that of the reference, on the same test utterances.

    Args:
        by_fold: "mean", "sd" and "n" of the differences within folds.
        pooled: over all test utterances at once, with the 95 % interval of a bootstrap that draws
            speakers; None where there is none.
        speakers: how many speakers of equal size would weigh as much as those who have labels of
            this metric, see `effective_speakers`.
        reason: why there is no interval.
    """

    by_fold: dict[str, Any]
    pooled: intervals.Interval | None
    speakers: float
    reason: str | None = None


def compare(reference: Experiment, other: Experiment) -> dict[str, Difference]:
    """Pairs two experiments by fold and by utterance: `other` minus `reference`.

    Returns:
        UAR, WAR, the two F1 and the CCC of each dimension, as far as both have that output and
        there are labels of it.

    Raises:
        ValueError: they do not have the same test utterances with the same labels in the same folds.
    """
    if times := len(other.rows) // max(len(reference.rows), 1):
        reference = _together(reference.name, [reference] * times)
    first, second = (e.rows.set_index(["fold", "id"]) for e in (reference, other))
    lone = first.index.symmetric_difference(second.index)
    problem = None
    if set(reference.runs) != set(other.runs):
        problem = f"their folds are {tables.listed(reference.runs)} and {tables.listed(other.runs)}"
    elif len(lone):
        fold, utterance = lone[0]
        problem = f"only one has the test utterance {utterance!r} of fold {fold}"
    else:
        second = second.loc[first.index]  # rows in the reference's order
        problem = _other_label(first, second)
    if problem:
        raise ValueError(f"{reference.name} and {other.name} cannot be paired: {problem}.")
    other = replace(other, rows=second.reset_index())
    return {
        name: _difference(reference, other, name)
        for name in COMPARED
        if name in reference.scores and name in other.scores and len(reference.labelled(name))
    }


def _read(folder: str, split: str) -> Experiment:
    """An experiment, or together those of the folder's own folders where it has no fold itself."""
    here = Path(folder)
    below = [] if any(here.glob(f"{FOLD_PREFIX}*")) else sorted(here.glob("*/folds.json"))
    places = [path.parent for path in below] or [here]
    return _together(here.resolve().name, [read_experiment(place, split) for place in places])


def _together(name: str, found: list[Experiment]) -> Experiment:
    """Experiments on the same test utterances as one, in which each utterance comes several times."""
    if len(found) == 1:
        return found[0]
    rows = [each.rows.assign(id=each.rows["id"] + f" ({i})") for i, each in enumerate(found)]
    return replace(found[0], name=name, rows=pd.concat(rows, ignore_index=True))


def _difference(reference: Experiment, other: Experiment, name: str) -> Difference:
    apart = metrics.difference(other.scores[name], reference.scores[name])
    by_fold = mean_and_sd(list(reference.by("fold", apart).values()))
    # Who has no label says nothing, and would only make the draws differ in size.
    rows = reference.labelled(name)
    speakers = reference.rows["speaker"].to_numpy()[rows]
    effective = intervals.effective_speakers(speakers)
    drawn = intervals.paired_bootstrap(metrics.by_rows(apart, rows), speakers, RESAMPLES)
    return Difference(by_fold, None if drawn.reason else drawn, effective, drawn.reason)


def _other_label(first: pd.DataFrame, second: pd.DataFrame) -> str | None:
    """The first speaker or label in which two tables of the same utterances differ, in words."""
    for column in ("speaker", "emotion_label", *(f"{name}_label" for name in DIMENSIONS)):
        if column not in first or column not in second:
            continue
        a, b = first[column], second[column]
        if pd.api.types.is_numeric_dtype(a):  # as written, with six digits or more
            same = np.isclose(a, b, rtol=1e-4, equal_nan=True)
        else:
            same = ((a == b) | (a.isna() & b.isna())).to_numpy()
        if not same.all():
            fold, utterance = first.index[~same][0]
            values = f"{a[~same].iloc[0]!r} and {b[~same].iloc[0]!r}"
            return f"{column} of utterance {utterance!r} in fold {fold} is {values}"
    return None


# ---- tables ------------------------------------------------------------------------------------


def write_comparison(
    reference: str | Path,
    others: Sequence[str | Path],
    out: Path | None = None,
    corpus: str | None = None,
    split: str = "test",
) -> str:
    """Compares experiments with one of them.

    Args:
        reference: its folder.
        others: folders of experiments with the same folds, or folders of several, such as seeds, which
            are scored together. What answered with references is compared without them, too.
        out: also writes OUT.md, OUT.json, and OUT_NAME.png for each of the others.
        corpus: on the utterances of this corpus alone, see `Experiment.of_corpus`.
        split: "test", or "validation", by which settings are chosen.

    Returns:
        Each experiment minus the reference, as Markdown.
    """
    experiments: dict[str, Experiment] = {}
    for folder in map(str, (reference, *others)):
        experiments[folder] = found = _read(folder, split)
        if split == "test" and found.flags.get("reference", "none") != "none":
            plain = _read(folder, "test_without_reference")
            name = f"{found.name} without references"
            experiments[f"{folder} without references"] = replace(plain, name=name)
    if corpus is not None:
        experiments = {name: each.of_corpus(corpus) for name, each in experiments.items()}
    first = experiments[str(reference)]
    parts: list[str] = []
    content: dict[str, Any] = {"reference": str(reference), "differences": {}}
    for folder in list(experiments)[1:]:
        differences = compare(first, experiments[folder])
        parts.append(comparison_markdown(first, experiments[folder], differences))
        content["differences"][folder] = {n: asdict(d) for n, d in differences.items()}
        if out is not None:
            name = experiments[folder].name
            rows = {texts.title(metric): difference for metric, difference in differences.items()}
            path = out.with_name(f"{out.name}_{name}.png".replace(" ", "_"))
            draw_intervals(rows, path, f"{name} minus {first.name}, 95 % intervals", first.name)
    markdown = "\n".join(parts)
    if out is not None:
        write_json(content, out.with_name(f"{out.name}.json"))
        tables.write_text(markdown, out.with_name(f"{out.name}.md"))
    return markdown


def draw_intervals(
    differences: Mapping[str, Difference | None], path: Path, heading: str, zero: str
) -> None:
    """A forest plot of those differences that have an interval; nothing without any."""
    rows = [
        (name, each.pooled.point, each.pooled.low, each.pooled.high)
        for name, each in differences.items()
        if each is not None and each.pooled is not None
    ]
    if rows:
        of_runs.plot_forest(rows, path, heading, zero)


def comparison_markdown(
    reference: Experiment, other: Experiment, differences: Mapping[str, Difference]
) -> str:
    """Two experiments side by side, metric by metric, with the difference and its interval."""
    return texts.render(
        "comparison.md", reference=reference.name, other=other.name, differences=differences,
        summaries=[summarise(reference), summarise(other)], notes=notes([differences]),
    )  # fmt: skip


def notes(differences: Iterable[Mapping[str, Difference]]) -> dict[str, Any]:
    """What a reader of differences must know: how they came about, and what is missing."""
    every = [(name, own) for by_metric in differences for name, own in by_metric.items()]
    few = [
        f"{texts.title(name)} {own.speakers:.1f}"
        for name, own in every
        if own.pooled is not None and own.speakers <= FEW_SPEAKERS
    ]
    reasons = dict.fromkeys(own.reason for _, own in every if own.reason)
    told = {"few": dict.fromkeys(few), "reasons": reasons, "resamples": RESAMPLES}
    return told | {"few_speakers": FEW_SPEAKERS}
