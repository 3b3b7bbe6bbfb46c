"""Corpora against each other: a model of each, tested on all others and on its own test speakers.

An experiment as those of `protocol`, with a fold for each training corpus: it is trained once, and its
test split is its own test speakers and the whole of every other corpus. Leaving one out adds a fold for
each corpus, trained on all others.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_training.data.folds import Fold, select
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.recordings import Recordings, excerpts
from mtmm_training.pictures import of_runs
from mtmm_training.scoring.groups import Score
from mtmm_training.scoring.intervals import Interval, interval_if_any
from mtmm_training.studies import tables
from mtmm_training.studies.experiments import Experiment, read_experiment
from mtmm_training.studies.protocol import Plan, chosen_folds, run_plans
from mtmm_training.training import prepare
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import planned

ALL_BUT = "all but "
RESAMPLES = 2000


def run_cross(
    out: Path,
    config: TrainConfig,
    corpora: Sequence[str],
    *,
    leave_one_out: bool = False,
    folds: Collection[int] | None = None,
    share: tuple[int, int] = (0, 1),
    jobs: int = 1,
) -> None:
    """Trains what is missing; writes and prints the matrix once all is there.

    Args:
        out: the experiment's folder.
        config: the settings of each training; the first fold of its protocol splits each corpus.
        corpora: manifests as NAME=PATH or PATH, see `named`.
        leave_one_out: also train on all corpora but one, and test on that.
        folds, share, jobs: as of `run_protocol`; the folds are the corpora in their order.

    Raises:
        ValueError: a corpus or a setting is not as it should be.
        RuntimeError: a training failed.
    """
    plan = make_plan(out, config, corpora, leave_one_out, folds)
    run_plans([plan.of_share(share)], jobs)
    if missing := plan.unfinished():
        left = ", ".join(plan.folds[index].name for index in missing)
        print(f"This share is done; not trained yet: {left}. The same command goes on.")
    else:
        print("\n" + write_cross(out))


def named(corpora: Sequence[str]) -> dict[str, Path]:
    """Manifests by the corpora's names.

    Args:
        corpora: NAME=PATH, or PATH, whose name is the file's without its ending, or the folder's
            where several files have one name.

    Raises:
        ValueError: there are fewer than two, or two of one name, or a name has a slash in it.
    """
    given = [text.rpartition("=") for text in corpora]
    paths = [Path(path).resolve() for _, _, path in given]
    stems = [path.stem for path in paths]
    names = [
        name or (path.stem if stems.count(path.stem) == 1 else path.parent.name)
        for (name, _, _), path in zip(given, paths, strict=True)
    ]
    if len(set(names)) < max(len(names), 2) or any("/" in name for name in names):
        raise ValueError(
            f"`--corpora` are called {', '.join(names)}; give two or more different ones, as NAME=PATH."
        )
    return dict(zip(names, paths, strict=True))


# ---- folds -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """A corpus by itself.

    Args:
        manifest: the copy in the experiment's folder.
        ids: of all utterances that can be used, as they are called beside other corpora.
        splits: ids of its own fold.
    """

    manifest: str
    ids: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]


def make_plan(
    out: Path,
    config: TrainConfig,
    corpora: Sequence[str],
    leave_one_out: bool = False,
    folds: Collection[int] | None = None,
) -> Plan:
    """Copies the manifests into the experiment's folder, and makes the folds; see `run_cross`."""
    paths = named(corpora)
    if leave_one_out and len(paths) < 3:
        raise ValueError("`--leave_one_out` needs three corpora or more.")
    config = replace(config, out=str(out / "fold"), manifest=[str(path) for path in paths.values()])
    config.check()
    config = config.resolve()
    found = {name: read_corpus(out, config, name, path) for name, path in paths.items()}
    config = replace(
        config,
        manifest=[corpus.manifest for corpus in found.values()],
        folds_file=str(out / "folds.json"),  # `run_plans` writes it
        k=None,
        improvised_only=False,
        script_disjoint=False,
    )
    config.check()
    utterances = prepare.read_all(config)
    known = {name for corpus in found.values() for name in corpus.ids}
    utterances = [u for u in utterances if u.utterance_id in known]
    made = make_folds(found, leave_one_out)
    audio = excerpts(utterances, Recordings(prepare.cache_folder(config)))
    for fold in made:  # no speaker and no recording is in two corpora
        splits = select(utterances, fold)
        Fold.from_splits(
            fold.name, splits["train"], splits["validation"], splits["test"], audio=audio
        )
    chosen = chosen_folds(made, folds)
    for index in chosen:
        prepare.check_fold(config, planned(config), select(utterances, made[index]))
    return Plan(out, config, utterances, made, chosen)


def read_corpus(out: Path, config: TrainConfig, name: str, path: Path) -> Corpus:
    """Reads a manifest, and writes one of the same utterances under the corpus's name."""
    scale, groups = tuple(config.dimension_range), config.group_by or ()
    utterances = read_manifest(
        path, dimension_range=scale, audio_exists=config.on_error == "stop", groups=groups
    )
    copy = out / "corpora" / f"{name}.csv"
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_manifest([replace(u, corpus=name) for u in utterances], copy)
    # A column that only another corpus has is no mistake here.
    try:
        data = prepare.read_data(replace(config, manifest=[str(copy)], group_by=None))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    fold = data.folds[0]
    ids = tuple(f"{name}/{u.utterance_id}" for u in data.utterances)
    splits = {
        split: tuple(f"{name}/{u.utterance_id}" for u in members)
        for split, members in select(data.utterances, fold).items()
    }
    return Corpus(str(copy), ids, splits)


def make_folds(corpora: Mapping[str, Corpus], leave_one_out: bool) -> list[Fold]:
    """A fold for each training corpus, and with `leave_one_out` for each that is left out."""
    wanted = {}
    for name, own in corpora.items():
        others = [other for other in corpora if other != name]
        apart = tuple(i for other in others for i in corpora[other].ids)
        wanted[name] = Fold(name, **own.splits | {"test": own.splits["test"] + apart})
        if leave_one_out:
            train = [own for other in others for own in _training(corpora[other])]
            validation = [i for other in others for i in corpora[other].splits["validation"]]
            wanted[ALL_BUT + name] = Fold(ALL_BUT + name, tuple(train), tuple(validation), own.ids)
    return sorted(wanted.values(), key=lambda fold: fold.name.startswith(ALL_BUT))


def _training(corpus: Corpus) -> tuple[str, ...]:
    """What trains of a corpus that is not tested on."""
    return corpus.splits["train"] + corpus.splits["test"]


# ---- the matrix --------------------------------------------------------------------------------


def write_cross(out: Path) -> str:
    """Reads the trainings and writes cross.csv, cross.md and a figure for each score.

    Returns:
        The Markdown of cross.md.
    """
    experiment = read_experiment(out)
    flags = next(iter(experiment.runs.values())).results["config"]
    corpora, kind = [Path(path).stem for path in flags["manifest"]], flags["reference"]
    answers = {"no reference": experiment}
    if kind != "none":
        plain = read_experiment(out, "test_without_reference")
        answers = {"no reference": plain, f"reference: {kind}": experiment}
    rows = [row for name, each in answers.items() for row in cells(each, corpora, name)]
    if kind != "none":
        rows += cells(experiment, corpora, "difference", minus=answers["no reference"])
    tables.write_csv(rows, out / "cross.csv")
    parts = [f"# {experiment.name}\n"]
    scores = [n for n in COMPARED if any(row.get(n) is not None for row in rows)]
    for score in scores:
        parts += matrix_markdown(rows, corpora, score)
        panels = {name: matrix(rows, corpora, name, score)[1] for name in answers}
        trained = matrix(rows, corpora, "no reference", score)[0]
        path = out / "figures" / f"cross_{score}.png"
        of_runs.plot_matrices(panels, trained, corpora, path, tables.title(score))
    parts.append(
        "Rows: what it was trained on; columns: what it was tested on, on the diagonal speakers of its "
        f"own that it has not heard. Brackets: 95 % intervals of {RESAMPLES} draws of speakers. UAR is "
        "over the emotions that occur in the tested corpus. A reference is made of the tested corpus's "
        "own recordings, without labels.\n"
    )
    markdown = "\n".join(parts)
    tables.write_text(markdown, out / "cross.md")
    return markdown


COMPARED = ("UAR", "CCC_valence", "CCC_arousal", "CCC_dominance")


def cells(
    experiment: Experiment, corpora: Sequence[str], name: str, minus: Experiment | None = None
) -> list[dict[str, Any]]:
    """A row of cross.csv for each pair of corpora, with scores and their intervals.

    Args:
        experiment: its answers.
        corpora: names, which ids begin with.
        name: how the answers are called.
        minus: other answers for the same utterances, whose scores are subtracted.
    """
    speakers, ids = (experiment.rows[column].to_numpy(str) for column in ("speaker", "id"))
    folds = experiment.rows["fold"].to_numpy()
    found = []
    for fold, run in experiment.runs.items():
        for corpus in corpora:
            rows = np.flatnonzero((folds == fold) & np.char.startswith(ids, f"{corpus}/"))
            if not len(rows):
                continue
            cell: dict[str, Any] = {"trained_on": run.results["fold"], "tested_on": corpus}
            cell |= {"answers": name, "utterances": len(rows)}
            cell["speakers"] = len(set(speakers[rows]))
            for score in set(COMPARED) & set(experiment.scores):
                own = rows[np.isin(rows, experiment.labelled(score))]
                other = None if minus is None else minus.scores[score]
                point = interval(experiment.scores[score], other, own, speakers[own])
                shown = (
                    (None, None, None) if point is None else (point.point, point.low, point.high)
                )
                names = (score, f"{score}_low", f"{score}_high")
                cell |= {n: v if v == v else None for n, v in zip(names, shown, strict=True)}
            found.append(cell)
    return found


def interval(
    score: Score, other: Score | None, rows: np.ndarray, speakers: np.ndarray
) -> Interval | None:
    """A score of some rows, or its difference to another, with NaN bounds where there are none."""

    def value(drawn: np.ndarray) -> float:
        return score(rows[drawn]) - (0.0 if other is None else other(rows[drawn]))

    if not len(rows):
        return None
    return interval_if_any(value, speakers, RESAMPLES)


def matrix(
    rows: Sequence[Mapping[str, Any]], corpora: Sequence[str], answers: str, score: str
) -> tuple[list[str], np.ndarray]:
    """What was trained on, the folds of leaving one out together, and (trained, tested) scores."""
    own = [row for row in rows if row["answers"] == answers]
    names = [line_of(row) for row in own]
    lines = list(dict.fromkeys(names))
    values = np.full((len(lines), len(corpora)), np.nan)
    for name, row in zip(names, own, strict=True):
        if row.get(score) is not None:
            values[lines.index(name), corpora.index(row["tested_on"])] = row[score]
    return lines, values


def line_of(row: Mapping[str, Any]) -> str:
    """The line of the matrix that a cell is in."""
    trained: str = row["trained_on"]
    return "all others" if trained == ALL_BUT + row["tested_on"] else trained


def matrix_markdown(
    rows: Sequence[Mapping[str, Any]], corpora: Sequence[str], score: str
) -> list[str]:
    """The matrices of a score, with intervals."""
    parts = []
    for answers in dict.fromkeys(row["answers"] for row in rows):
        sign = "+" if answers == "difference" else ""
        own = [row for row in rows if row["answers"] == answers]
        written: dict[str, dict[str, str]] = {}
        for row in own:
            bounds = [row.get(f"{score}_{end}") for end in ("low", "high")]
            text = tables.number(row.get(score), sign)
            if None not in bounds:
                text += f" [{', '.join(tables.number(bound, sign) for bound in bounds)}]"
            written.setdefault(line_of(row), {})[row["tested_on"]] = text
        lines = [[name, *(cells.get(c, "–") for c in corpora)] for name, cells in written.items()]
        header = ["trained on \\ tested on", *corpora]
        parts += [f"## {tables.title(score)}, {answers}\n", tables.markdown_table(header, lines)]
    return parts
