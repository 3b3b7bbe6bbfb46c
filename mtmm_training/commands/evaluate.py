"""Run a whole protocol, put its folds into a table, compare experiments."""

import argparse
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import Advanced, count, folder, refuse, share
from mtmm_training.commands.parser import Parser
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.config import add_flags as add_train_flags

OF_ONE_CORPUS = (  # `cross` gives them to each training
    "manifest", "audio_dir", "corpus", "corpus_dir", "corpus_options", "folds_file",
    "validation_speakers", "test_speakers",
)  # fmt: skip
OF_ONE_FOLD = ("out", "fold", "resume", "encode_only")  # a protocol gives them to each fold


def add_flags(parser: Parser) -> None:
    """Five verbs, each with its flags."""
    add_run_flags(parser.add_verb("run", _run))
    cross = parser.add_verb("cross", _cross)
    add = cross.add_argument_group("corpora").add_argument
    add("--corpora", nargs="+", required=True, metavar="NAME=MANIFEST",
        help="two manifests or more; without NAME the file's or folder's name is the corpus's")  # fmt: skip
    add("--leave_one_out", action="store_true",
        help="also train on all corpora but one, and test on that")  # fmt: skip
    add_run_flags(cross, without=OF_ONE_CORPUS)
    add = parser.add_verb("table", _table).add_argument
    add("folder", type=Path,
        help="an experiment's --out; gets summary.json, table.md and figures/")  # fmt: skip
    add = parser.add_verb("compare", _compare).add_argument
    add("reference", type=Path, help="folder of an experiment")
    add("others", type=Path, nargs="*", help="folders of experiments with the same folds; what answered "
        "with references is compared without them, too")  # fmt: skip
    add("--out", type=folder, metavar="NAME",
        help="also write NAME.md, NAME.json and a figure for each of the others")  # fmt: skip
    add("--corpus", help="on the test utterances of this corpus alone, of several manifests")
    add = parser.add_verb("risk", _risk).add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="finished runs or experiments")
    add("--error", type=float, default=0.1, metavar="R", help="wanted share of wrong answers")
    add(
        "--out",
        type=folder,
        help="gets risk.csv and risk.png; risk/ in the first FOLDER if not given",
    )
    add("--save", action="store_true",
        help="write each run's least confidence into its model, whose pipeline then names no emotion "
        "below it")  # fmt: skip


def add_run_flags(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """The flags of a command that runs experiments: its own, and training's but some."""
    add = parser.add_argument_group("experiment").add_argument
    add("--out", type=folder, required=True, help="folder of all results")
    add("--folds", type=int, nargs="+", metavar="I", help="only these, from 0")
    add("--fold", type=int, nargs="+", dest="folds", help=argparse.SUPPRESS)
    add("--share", type=share, default="0/1", metavar="I/N",
        help="only folds whose number divided by N leaves I: machine I of N")  # fmt: skip
    add("--jobs", type=count, default=1, metavar="N", help="folds at once")
    names = [field.name for field in fields(TrainConfig)]
    names = [name for name in names if name not in (*OF_ONE_FOLD, *without)]
    add_train_flags(parser, only=names, advanced=Advanced)


def run_flags(
    options: argparse.Namespace, *, preset: bool = False
) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of each fold, and which folds run here, from `add_run_flags`.

    The protocol, and with `preset` the preset too, follow from the data where they are not given.
    """
    if options.jobs > 1 and not hasattr(options, "workers"):
        options.workers = 0  # a core for decoding would be one that another fold uses
    given = {name: value for name, value in vars(options).items() if name not in OF_ONE_FOLD}
    which = {name: given[name] for name in ("folds", "share", "jobs")}
    from mtmm_training.training.choice import settled  # reads recordings

    return settled(argparse.Namespace(**given), preset=preset), which


def _run(options: argparse.Namespace) -> None:
    """Train and test all folds of a protocol, or those that are still missing.

    examples:
      mtmm evaluate run --out out/ours --manifest my/manifest.csv --protocol speaker --jobs 2
    """
    from mtmm_training.studies.protocol import run_protocol

    config, which = run_flags(options, preset=True)
    run_protocol(options.out, config, **which)


def _cross(options: argparse.Namespace) -> None:
    """Train on each corpus, and test on each other and on its own test speakers.

    Without --protocol each corpus is split into five groups of speakers: one tests, one validates.

    examples:
      mtmm evaluate cross --corpora en/ravdess.csv ur/urdu.csv --out out/cross --reference speaker
    """
    from mtmm_training.studies.cross import run_cross

    if not hasattr(options, "protocol"):
        options.protocol, options.k = "grouped", getattr(options, "k", 5)
    config, which = run_flags(options)
    run_cross(options.out, config, options.corpora, leave_one_out=options.leave_one_out, **which)


def _table(options: argparse.Namespace) -> None:
    """Put the folds of an experiment together."""
    from mtmm_training.studies.tables import write_tables

    print(write_tables(options.folder))


def _compare(options: argparse.Namespace) -> None:
    """Differences of experiments, with intervals."""
    from mtmm_training.studies.compare import write_comparison

    print(write_comparison(options.reference, options.others, options.out, options.corpus))


def _risk(options: argparse.Namespace) -> None:
    """How often answers are wrong that are sure, and the least confidence for an error rate.

    The least confidence is chosen on the validation split of each run, and tried on its test split.

    examples:
      mtmm evaluate risk out/ours --error 0.1
      mtmm evaluate risk out/votes out/majority --out out/risk
    """
    refuse(
        (not 0 <= options.error < 1, f"--error is {options.error:g}; it must be from 0 to below 1")
    )
    from mtmm_training.studies.risk import risk_study

    out = options.out or options.folders[0] / "risk"
    print(risk_study(options.folders, out, options.error, save=options.save), end="")
    print(f"the curves are in {out}")
