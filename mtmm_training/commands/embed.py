"""Write embeddings of recordings and transcripts into a table, for your own classifier.

examples:
  mtmm embed recordings --model M --out embeddings.parquet
  mtmm embed my/manifest.csv --model M --reference speaker --out embeddings.parquet
  mtmm embed talk.mp3 --model M --window_s 3 --timeline --out talk.parquet

columns: id, start and end in seconds, and lists of numbers: fused (what the model's heads read),
audio and text (the mean of a modality's refined states over time; empty where it is absent).
numpy.stack(pandas.read_parquet("embeddings.parquet")["fused"]) is an array (rows, width).

exit status: as of predict.
"""

import argparse

from mtmm_training.commands.flags import declare, refuse
from mtmm_training.commands.predict import check_inputs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The inputs, the model, how recordings are cut, and the table."""
    declare(parser, "inputs", "machine", "compared", "transcript", "windows", "embed")


def run(given: argparse.Namespace) -> int:
    """Predicts, and keeps the states; the exit status is 1 where an input failed."""
    refuse(
        (given.out.suffix != ".parquet", f"--out {given.out} must end in .parquet"),
        ("-" in given.inputs, "- goes with mtmm predict"),
    )
    check_inputs(given)
    from mtmm_training.commands import embed_work

    return embed_work.write_embeddings(given)
