"""Train three models on an embedded corpus, compare them, predict with one.

examples:
  mtmm demo out/demo
"""

import argparse

from mtmm_training.commands.flags import declare


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where everything goes."""
    declare(parser, "demo")


def run(options: argparse.Namespace) -> None:
    """Makes, trains, compares and predicts."""
    from mtmm_training.studies.embedded_demo import run_demo

    run_demo(options.folder)
