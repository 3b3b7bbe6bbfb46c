"""Score a finished model on a labelled table; nothing is trained.

examples:
  mtmm score out/mine other/manifest.csv
  mtmm score someone/mtmm calls.csv --dimension_range 0 1 --group_by gender language --out out/calls

The table is a manifest, as for training. Without the column speaker each utterance counts as a
speaker of its own. Emotions that the model does not know are left out of its scores, and counted.
"""

import argparse

from mtmm_training.commands.flags import declare, refuse
from mtmm_training.data import hub


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The model, the table, and where the scores go."""
    declare(parser, "score", "machine")


def run(options: argparse.Namespace) -> None:
    """Predicts every row, and prints the scores."""
    places = [*filter(None, [options.manifest]), *hub.places_of(options)]
    refuse((len(places) != 1, "give MANIFEST, or --dataset with one data set"))
    options.manifest = places[0]
    from mtmm_training.commands.score_work import score_model

    print(score_model(options))
