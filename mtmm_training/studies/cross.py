"""Corpora against each other: a model of each, tested on all others and on its own test speakers.

An experiment as those of `protocol`, with a fold for each training corpus: it is trained once, and its
test split is its own test speakers and the whole of every other corpus. Leaving one out adds a fold for
each corpus, trained on all others.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mtmm_training.data.folds import Fold, select
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.recordings import Recordings, shared_excerpts
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures import of_runs
from mtmm_training.scoring import texts
from mtmm_training.scoring.intervals import paired_bootstrap
from mtmm_training.scoring.metrics import by_rows, difference
from mtmm_training.studies import tables
from mtmm_training.studies.experiments import UNFAMILIAR, Experiment, read_experiment
from mtmm_training.studies.protocol import Part, Plan, chosen_folds, run_part
from mtmm_training.training import prepare
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import planned

ALL_BUT = "all but "
RESAMPLES = 2000


def run_cross(
    out: Path,
    config: TrainConfig,
    corpora: Sequence[str],
    part: Part,
    *,
    leave_one_out: bool = False,
) -> None:
    """Trains what is missing; writes and prints the matrix once all is there.

    Args:
        out: the experiment's folder.
        config: the settings of each training; the first fold of its protocol splits each corpus.
        corpora: manifests as NAME=PATH or PATH, see `named`.
        part: the folds, which are the corpora in their order.
        leave_one_out: also train on all corpora but one, and test on that.

    Raises:
        ValueError: a corpus or a setting is not as it should be.
        RuntimeError: a training failed.
    """
    plan = make_plan(out, config, corpora, leave_one_out, part.folds)
    run_part([plan], part, lambda: write_cross(out))


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
        raise ValueError(f"`--corpora`: {', '.join(names)}; give two or more different NAME=PATH.")
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
    manifests, folds_file = [own.manifest for own in found.values()], str(out / "folds.json")
    config = replace(config, manifest=manifests, folds_file=folds_file)  # `run_plans` writes it
    config = replace(config, k=None, improvised_only=False, script_disjoint=False)
    config.check()
    utterances = prepare.read_all(config)
    known = {name for corpus in found.values() for name in corpus.ids}
    utterances = [u for u in utterances if u.utterance_id in known]
    made = make_folds(found, leave_one_out)
    audio = shared_excerpts(utterances, Recordings(prepare.cache_folder(config)))
    for fold in made:  # no speaker and no recording is in two corpora
        Fold.from_splits(fold.name, select(utterances, fold), audio)
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
    # A fold's test speakers may have few of the emotions: of all folds, the one most like the corpus.
    every = data.utterances
    fold = min(data.folds, key=lambda fold: unlikeness(select(every, fold)["test"], every))
    ids = tuple(f"{name}/{u.utterance_id}" for u in every)
    splits = {
        split: tuple(f"{name}/{u.utterance_id}" for u in members)
        for split, members in select(every, fold).items()
    }
    return Corpus(str(copy), ids, splits)


def unlikeness(part: Sequence[Utterance], whole: Sequence[Utterance]) -> float:
    """How far the shares of emotions in a part are from the whole's, from 0 to 2."""
    counts = [Counter(u.emotion for u in own) for own in (part, whole)]
    shares = [{name: count[name] / max(count.total(), 1) for name in counts[1]} for count in counts]
    return sum(abs(shares[0][name] - share) for name, share in shares[1].items())


def make_folds(corpora: Mapping[str, Corpus], leave_one_out: bool) -> list[Fold]:
    """A fold for each training corpus, and with `leave_one_out` for each that is left out."""
    wanted = {}
    for name, own in corpora.items():
        others = [other for known, other in corpora.items() if known != name]
        apart = tuple(i for other in others for i in other.ids)
        wanted[name] = Fold(name, **own.splits | {"test": own.splits["test"] + apart})
        if leave_one_out:
            train = [i for other in others for i in other.splits["train"] + other.splits["test"]]
            validation = [i for other in others for i in other.splits["validation"]]
            wanted[ALL_BUT + name] = Fold(ALL_BUT + name, tuple(train), tuple(validation), own.ids)
    return sorted(wanted.values(), key=lambda fold: fold.name.startswith(ALL_BUT))


# ---- the matrix --------------------------------------------------------------------------------


def write_cross(out: Path) -> str:
    """Reads the trainings and writes cross.csv, cross.md and a figure for each score.

    Returns:
        The Markdown of cross.md.
    """
    experiment = read_experiment(out)
    flags = experiment.flags
    corpora, kind = [Path(path).stem for path in flags["manifest"]], flags["reference"]
    answers = {"no reference": experiment}
    if kind != "none":
        plain = read_experiment(out, "test_without_reference")
        answers = {"no reference": plain, f"reference: {kind}": experiment}
        answers |= {"adapted": read_experiment(out, "test_adapted")} if flags["linear_path"] else {}
    parts = [cells(each, corpora, name) for name, each in answers.items()]
    for name, each in list(answers.items())[1:]:
        called = "adapted, difference" if name == "adapted" else "difference"
        parts.append(cells(each, corpora, called, minus=answers["no reference"]))
    table = pd.concat(parts)
    tables.write_csv(table, out / "cross.csv")
    # The folds of leaving one out are together a line.
    left_out = table["trained_on"] == ALL_BUT + table["tested_on"]
    table = table.assign(line=table["trained_on"].mask(left_out, "all others"))
    matrices, of = {}, table["answers"].unique()
    for score in [name for name in COMPARED if name in table and table[name].notna().any()]:
        shown = of[:1] if score in UNFAMILIAR else of  # a reference changes nothing of it
        matrices[score] = {name: matrix_rows(table, corpora, name, score) for name in shown}
        panels = {name: matrix(table, corpora, name, score) for name in answers if name in shown}
        path = out / "figures" / f"cross_{score}.png"
        of_runs.plot_matrices(panels, path, texts.title(score))
    markdown = texts.render(
        "cross.md", name=experiment.name, corpora=corpora, matrices=matrices, resamples=RESAMPLES
    )
    tables.write_text(markdown, out / "cross.md")
    return markdown


COMPARED = ("UAR", "CCC_valence", "CCC_arousal", "CCC_dominance", *UNFAMILIAR)


def cells(
    experiment: Experiment, corpora: Sequence[str], name: str, minus: Experiment | None = None
) -> pd.DataFrame:
    """A row of cross.csv for each pair of corpora, with scores and their intervals.

    Args:
        experiment: its answers.
        corpora: names, which ids begin with.
        name: how the answers are called.
        minus: other answers for the same utterances, whose scores are subtracted.
    """
    rows = experiment.rows
    found = []
    for (fold, run), corpus in product(experiment.runs.items(), corpora):
        tested = rows[(rows["fold"] == fold) & rows["id"].str.startswith(f"{corpus}/")]
        if tested.empty:
            continue
        cell: dict[str, Any] = {"trained_on": run.results["fold"], "tested_on": corpus}
        cell |= {"answers": name, "utterances": len(tested)}
        cell["speakers"] = tested["speaker"].nunique()
        for score in [name for name in COMPARED if name in experiment.scores]:
            own = tested.index.intersection(experiment.labelled(score))
            value = experiment.scores[score]
            if minus is not None:
                value = difference(value, minus.scores[score])
            speakers = tested["speaker"][own].to_numpy(str)
            if len(own):
                drawn = paired_bootstrap(by_rows(value, own.to_numpy()), speakers, RESAMPLES)
                cell |= {score: drawn.point, f"{score}_low": drawn.low, f"{score}_high": drawn.high}
        found.append(cell)
    return pd.DataFrame(found)


def matrix(table: pd.DataFrame, corpora: Sequence[str], answers: str, column: str) -> pd.DataFrame:
    """A column of what was trained on (rows) and tested on (columns)."""
    own = table[table["answers"] == answers]
    lines = own["line"].unique()
    wide = own.pivot(index="line", columns="tested_on", values=column)
    return wide.reindex(lines, columns=corpora)


def matrix_rows(
    table: pd.DataFrame, corpora: Sequence[str], answers: str, score: str
) -> list[list[str]]:
    """The same as text, a line's name before its cells, with intervals."""
    sign = "+" if answers.endswith("difference") else ""
    value, low, high = (
        matrix(table, corpora, answers, f"{score}{end}").map(texts.number, sign=sign)
        for end in ("", "_low", "_high")
    )
    written = value + (" [" + low + ", " + high + "]").where(low != "–", "")
    return [[line, *row] for line, *row in written.itertuples()]
