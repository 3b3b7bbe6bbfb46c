"""The paper's ablations in one table; on the embedded corpus if no data is named.

examples:
  mtmm ablation --out out/ablation --jobs 2
  mtmm ablation --out out/iemocap --corpus iemocap --corpus_dir IEMOCAP_full_release
"""

import argparse

from mtmm_training.commands.evaluate import add_run_flags, run_flags
from mtmm_training.commands.flags import declare
from mtmm_training.studies.variants import VARIANTS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The variants, and the flags of an experiment."""
    named = f"only these beside the reference, of {', '.join(VARIANTS)}"
    declare(parser, "ablation", variants={"choices": VARIANTS, "help": named})
    add_run_flags(parser)


def run(options: argparse.Namespace) -> None:
    """Trains what is missing; prints the table."""
    from mtmm_training.studies import ablation
    from mtmm_training.studies.embedded_demo import embedded_settings

    if not hasattr(options, "manifest") and not hasattr(options, "corpus"):
        embedded = embedded_settings(options.out, ablation.EMBEDDED_UTTERANCES)
        recipe = embedded | ablation.EMBEDDED_RECIPE
        options = argparse.Namespace(**recipe | vars(options))
    config, part = run_flags(options)
    ablation.run_ablation(options.out, config, options.variants or list(VARIANTS), part)
