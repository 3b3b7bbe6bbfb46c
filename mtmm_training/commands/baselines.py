"""Linear models on pooled encoder states, in the folds of training.

examples:
  mtmm baselines --out out/layer3 --layers 3 --manifest my/manifest.csv --protocol speaker
  mtmm baselines --out out/gemaps --features egemaps --modalities audio --manifest my/manifest.csv
"""

import argparse

from mtmm_training.commands.flags import Advanced, declare, refuse
from mtmm_training.training import config as settings

SHARED = (
    "seed manifest audio_dir label_map speakers_unknown on_error corpus corpus_dir corpus_options "
    "emotions dimensions dimension_range modalities protocol k folds_file script_disjoint "
    "improvised_only class_weights audio_encoder text_encoder cache_dir cache_dtype batch_size workers "
    "reference group_by"
).split()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The features' flags, and those of training that mean the same here."""
    declare(parser, "baselines")
    settings.add_flags(parser, only=SHARED, advanced=Advanced)


def run(options: argparse.Namespace) -> None:
    """Fits what is missing."""
    options.out = str(options.out)
    config, layers = settings.from_options(options), options.layers
    numbers = all(layer.isdecimal() for layer in layers)
    refuse(
        (not numbers and layers not in (["best"], ["last"]),
         f"--layers is {' '.join(layers)!r}; it must be best, last, or numbers from 0"),
        (options.features == "egemaps" and config.modalities != ["audio"],
         "--features egemaps needs --modalities audio"),
        (options.features == "egemaps" and config.reference != "none",
         "--reference is of encoders' states; it goes with --features encoders"),
    )  # fmt: skip
    from mtmm_training.studies.baselines import Baseline, run_baseline
    from mtmm_training.training.choice import settled

    config = settled(options, preset=False)
    baseline = Baseline(options.features, tuple(layers), options.pooling)
    run_baseline(config, baseline, options.folds)
