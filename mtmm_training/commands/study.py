"""What a trained model does with long recordings, transcripts, references."""

import argparse
import math

from mtmm_training.commands.flags import declare, refuse
from mtmm_training.commands.parser import Parser

SHORTEST_S = 120.0  # of a recording: it holds two blocks


def add_flags(parser: Parser) -> None:
    """Five studies, each with its flags."""
    drawn = {"hour": _hour, "transcript-errors": _errors, "references": _references, "call": _call}
    for name, run in drawn.items():
        place = f"folder; {name.replace('-', '_')}/ in --run if not given"
        declare(parser.add_verb(name, run), name, "study", "drawn", out={"help": place})
    declare(parser.add_verb("explanation-check", _check), "explanation-check", "study")


def _hour(options: argparse.Namespace) -> None:
    """How well a timeline finds the changes of emotion in an hour of speech.

    examples:
      mtmm study hour --run out/run --seconds 600
    """
    long = SHORTEST_S <= options.seconds < math.inf
    refuse((not long, f"--seconds is {options.seconds:g}; it must be at least {SHORTEST_S:g}"))
    from mtmm_training.studies.composed import run_hour

    run_hour(options.run, options.out or options.run / "hour", options.seconds, options.seed)


def _errors(options: argparse.Namespace) -> None:
    """The test split at several word error rates.

    examples:
      mtmm study transcript-errors --run out/run --rates 0 0.1 0.2 0.4
    """
    outside = [rate for rate in options.rates if not 0 <= rate <= 1]
    refuse((outside, f"--rates is {options.rates}; each must be from 0 to 1"))
    from mtmm_training.studies.transcript_errors import measure_errors

    out = options.out or options.run / "transcript_errors"
    measure_errors(
        options.run, out, options.rates, seed=options.seed, batch_size=options.batch_size
    )


def _check(options: argparse.Namespace) -> None:
    """Whether explanations point at what was planted, on the embedded corpus.

    examples:
      mtmm study explanation-check --run out/demo/fused --utterances 100
    """
    from mtmm_training.studies.explanation_check import check_explanations

    check_explanations(options.run, options.utterances)


def _call(options: argparse.Namespace) -> None:
    """A call of two test speakers, by channel and by turn, without and with their own references.

    examples:
      mtmm study call --run out/run
    """
    from mtmm_training.studies.composed import study_call

    out = options.out or options.run / "call"
    table = study_call(options.run, out, options.seed)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"the call, its timelines and their pictures are in {out}")


def _references(options: argparse.Namespace) -> None:
    """How many unlabelled recordings of a speaker help, and of which emotions.

    --run may be an experiment's folder, or one that holds several: all folds are scored together.

    examples:
      mtmm study references --run out/ravdess4/ours
    """
    from mtmm_training.studies.reference_curve import reference_curve

    out = options.out or options.run / "references"
    table = reference_curve(options.run, out, options.cache_dir, options.seed)
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep="all"))
    print(f"the table and its figure are in {out}")
