"""Score a finished model on a labelled table; nothing is trained.

examples:
  mtmm score out/mine other/manifest.csv
  mtmm score someone/mtmm calls.csv --dimension_range 0 1 --group_by gender language --out out/calls

The table is a manifest, as for training. Without the column speaker each utterance counts as a
speaker of its own. Emotions that the model does not know are left out of its scores, and counted.
"""

import argparse

from mtmm_training.commands.flags import Advanced, folder, refuse
from mtmm_training.commands.predict import add_machine_flags, find_model
from mtmm_training.data import hub


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The model, the table, and where the scores go."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a model or run, or an id on the Hub")
    add("manifest", metavar="MANIFEST", nargs="?", help="a .csv, .tsv, .jsonl or .parquet table")
    add = parser.add_argument_group("table").add_argument
    hub.add_flags(add, Advanced)
    add("--audio_dir", help="where its relative audio paths begin; its folder if not given")
    add("--dimension_range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="the scale of its valence, arousal and dominance; the model's if not given")  # fmt: skip
    add("--group_by", nargs="+", metavar="COLUMN", help="tell scores apart by these (gender)")
    add = parser.add_argument_group("model").add_argument
    add("--reference", nargs="+", metavar="WHAT", help="as of mtmm predict")
    add_machine_flags(add)
    add = parser.add_argument_group("output").add_argument
    add("--out", type=folder, metavar="FOLDER",
        help="gets scores.json, predictions.csv, table.md and figures/")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Predicts every row, and prints the scores."""
    places = [*filter(None, [options.manifest]), *hub.places_of(options)]
    refuse((len(places) != 1, "give MANIFEST, or --dataset with one data set"))
    options.manifest = places[0]
    find_model(options)
    from mtmm_training.commands.score_work import score_model

    print(score_model(options))
