"""Fill the cache of encoder states for all folds (flags of train).

examples:
  mtmm encode --manifest my/manifest.csv --protocol grouped --k 5 --cache_dir out/cache
"""

import argparse

from mtmm_training.commands import train

add_flags = train.add_flags


def run(options: argparse.Namespace) -> None:
    """Encode; train nothing."""
    options.encode_only = True
    train.run(options)
