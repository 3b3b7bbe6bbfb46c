"""Train on one fold, and test once.

examples:
  mtmm train --manifest my/manifest.csv --out out/mine
  mtmm train --resume out/mine

on several processes or machines: accelerate launch train_accelerate.py, with the same flags.
"""

import argparse

from mtmm_training.commands.flags import Advanced
from mtmm_training.training import config
from mtmm_training.training.ending import WrongUse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All fields of TrainConfig."""
    config.add_flags(parser, advanced=Advanced)


def run(options: argparse.Namespace) -> None:
    """Train, or with --encode_only fill the cache."""
    try:
        config.from_options(options).check()
    except ValueError as error:
        raise WrongUse(str(error).rstrip(".")) from error
    from mtmm_training.training.choice import settled
    from train_accelerate import train_fold

    train_fold(settled(options))
