"""`mtmm demo`: the whole path on the embedded corpus, in minutes."""

import argparse
from pathlib import Path

SUMMARY = "train three models on an embedded corpus, compare them, predict with one"
EPILOG = "examples:\n  mtmm demo out/demo\n"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where everything goes."""
    parser.add_argument(
        "folder", type=Path, help="gets the corpus, the three runs and the saved models"
    )


def run(options: argparse.Namespace) -> None:
    """Makes, trains, compares and predicts."""
    from mtmm_training.studies.embedded_demo import run_demo

    run_demo(options.folder)
