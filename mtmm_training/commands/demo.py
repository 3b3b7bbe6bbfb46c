"""Train three models on an embedded corpus, compare them, predict with one.

examples:
  mtmm demo out/demo
"""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where everything goes."""
    add = parser.add_argument
    add("folder", type=Path, help="gets the corpus, the three runs and the saved models")


def run(options: argparse.Namespace) -> None:
    """Makes, trains, compares and predicts."""
    from mtmm_training.studies.embedded_demo import run_demo

    run_demo(options.folder)
