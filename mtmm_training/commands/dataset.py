"""Write utterances as a data set of the Hub: Parquet with the recordings inside.

examples:
  mtmm dataset save out/ravdess --corpus ravdess --corpus_dir RAVDESS
  mtmm dataset push someone/calls --manifest calls.csv --licence cc-by-4.0 --private
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import Advanced, declare, refuse
from mtmm_training.data.corpora import CORPORA
from mtmm_training.training import config as settings

DATA = (
    "manifest audio_dir label_map speakers_unknown corpus corpus_dir corpus_options dimension_range"
)


def add_flags(parser: Any) -> None:
    """The verbs, each with where to, what of, and the licence."""
    for name, run, target in (("save", _save, "FOLDER"), ("push", _push, "OWNER/NAME")):
        verb = parser.add_verb(name, run)
        declare(verb, "dataset", target={"metavar": target})
        settings.add_flags(verb, only=DATA.split(), advanced=Advanced)


def _save(options: argparse.Namespace) -> None:
    """Write it into a folder."""
    _write(options, Path(options.target))


def _push(options: argparse.Namespace) -> None:
    """Write it and upload it."""
    from mtmm_training.publishing.dataset import push_dataset

    with tempfile.TemporaryDirectory() as folder:
        _write(options, Path(folder))
        print(push_dataset(Path(folder), options.target, options.private).commit_url)


def _write(options: argparse.Namespace, folder: Path) -> None:
    config = settings.from_options(options)
    named = [config.manifest is not None, config.corpus is not None]
    own = CORPORA[config.corpus].get("licence") if config.corpus else None
    licence = options.licence or own
    refuse(
        (sum(named) != 1, "give one of --manifest, --dataset and --corpus"),
        (config.corpus and not own,
         f"the licence of {config.corpus} does not allow to pass it on"),
        (not licence, "give --licence, under which the data may be passed on"),
    )  # fmt: skip
    from mtmm_training.publishing.dataset import save_dataset
    from mtmm_training.training.prepare import read_named

    utterances = read_named(config.resolve(), audio_exists=True)
    name = Path(options.target).name
    save_dataset(utterances, folder, name, str(licence))
    print(f"{name}: {len(utterances):,} utterances under {licence}")
