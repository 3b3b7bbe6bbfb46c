"""`mtmm ablation`: the paper's ablations, one experiment per variant, in the same folds."""

import argparse

from mtmm_training.commands.evaluate import add_run_flags, run_flags
from mtmm_training.studies.variants import VARIANTS

SUMMARY = "the paper's ablations: variants in the same folds, in one table"
EPILOG = """\
examples:
  mtmm ablation --out out/ablation --jobs 2
  mtmm ablation --out out/iemocap --corpus iemocap --corpus_dir IEMOCAP_full_release

All settings are those of the first variant, the reference. Without --manifest and --corpus it runs on
the embedded corpus.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The variants, and the flags of an experiment."""
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=None, metavar="NAME",
        help=f"only these beside the reference, of {', '.join(VARIANTS)}; all if not given",
    )  # fmt: skip
    add_run_flags(parser)


def run(options: argparse.Namespace) -> None:
    """Trains what is missing; prints the table."""
    from mtmm_training.studies.ablation import embedded_settings, run_ablation

    if not hasattr(options, "manifest") and not hasattr(options, "corpus"):
        given = vars(options)
        options = argparse.Namespace(**embedded_settings(options.out) | given)
    config, which = run_flags(options)
    run_ablation(options.out, config, options.variants or list(VARIANTS), **which)
