"""Run a whole protocol, put its folds into a table, compare experiments."""

import argparse
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from mtmm_training.commands.flags import Advanced, declare, refuse
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
    declare(cross, "cross")
    add_run_flags(cross, without=OF_ONE_CORPUS)
    for name, run in (("table", _table), ("compare", _compare), ("risk", _risk)):
        declare(parser.add_verb(name, run), name)


def add_run_flags(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """The flags of a command that runs experiments: its own, and training's but some."""
    declare(parser, "experiment", fold={"help": argparse.SUPPRESS})
    names = [field.name for field in fields(TrainConfig)]
    names = [name for name in names if name not in (*OF_ONE_FOLD, *without)]
    add_train_flags(parser, only=names, advanced=Advanced)


def run_flags(options: argparse.Namespace, *, preset: bool = False) -> tuple[TrainConfig, Any]:
    """The settings of each fold, and which folds run here, from `add_run_flags`.

    The protocol, and with `preset` the preset too, follow from the data where they are not given.
    """
    if options.jobs > 1 and not hasattr(options, "workers"):
        options.workers = 0  # a core for decoding would be one that another fold uses
    given = {name: value for name, value in vars(options).items() if name not in OF_ONE_FOLD}
    from mtmm_training.studies.protocol import Part
    from mtmm_training.training.choice import settled  # reads recordings

    part = Part(options.folds, options.share, options.jobs)
    return settled(argparse.Namespace(**given), preset=preset), part


def _run(options: argparse.Namespace) -> None:
    """Train and test all folds of a protocol, or those that are still missing.

    examples:
      mtmm evaluate run --out out/ours --manifest my/manifest.csv --protocol speaker --jobs 2
    """
    from mtmm_training.studies.protocol import run_protocol

    run_protocol(options.out, *run_flags(options, preset=True))


def _cross(options: argparse.Namespace) -> None:
    """Train on each corpus, and test on each other and on its own test speakers.

    Without --protocol each corpus is split into five groups of speakers: one tests, one validates.

    examples:
      mtmm evaluate cross --corpora en/ravdess.csv ur/urdu.csv --out out/cross --reference speaker
    """
    from mtmm_training.studies.cross import run_cross

    if not hasattr(options, "protocol"):
        options.protocol, options.k = "grouped", getattr(options, "k", 5)
    config, part = run_flags(options)
    run_cross(options.out, config, options.corpora, part, leave_one_out=options.leave_one_out)


def _table(options: argparse.Namespace) -> None:
    """Put the folds of an experiment together."""
    from mtmm_training.studies.tables import write_tables

    print(write_tables(options.folder))


def _compare(options: argparse.Namespace) -> None:
    """Differences of experiments, with intervals."""
    from mtmm_training.studies.compare import write_comparison

    how = options.out, options.corpus, options.split
    print(write_comparison(options.reference, options.others, *how))


def _risk(options: argparse.Namespace) -> None:
    """How often answers are wrong that are sure, and the least confidence for an error rate.

    The least confidence is chosen on the validation split of each run, and tried on its test split.

    examples:
      mtmm evaluate risk out/ours --error 0.1
      mtmm evaluate risk out/votes out/majority --out out/risk
    """
    refuse((not 0 <= options.error < 1, f"--error {options.error:g} must be from 0 to below 1"))
    from mtmm_training.studies.risk import risk_study

    out = options.out or options.folders[0] / "risk"
    print(risk_study(options.folders, out, options.error, options.save, options.corpus), end="")
    print(f"the curves are in {out}")
