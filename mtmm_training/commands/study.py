"""What a trained model does with long recordings, wrong transcripts, explanations."""

import argparse
import math
from pathlib import Path

from mtmm_training.commands.flags import count, folder, refuse, whole
from mtmm_training.commands.parser import Parser

SHORTEST_S = 120.0  # of a recording: it holds two blocks


def add_flags(parser: Parser) -> None:
    """Three studies, each with its flags."""
    hour = parser.add_verb("hour", _hour)
    hour.add_argument("--seconds", type=float, default=3600.0, help="length of the recording")
    errors = parser.add_verb("transcript-errors", _errors)
    errors.add_argument("--rates", type=float, nargs="+", default=[0, 0.1, 0.2, 0.4],
        help="shares of words to get wrong, 0 to 1")  # fmt: skip
    errors.add_argument("--batch_size", type=count, default=16, help="utterances at once")
    check = parser.add_verb("explanation-check", _check)
    check.add_argument(
        "--utterances", type=count, help="at most so many; all of the test split if not given"
    )
    for verb in (hour, errors, check):
        verb.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    for verb, name in ((hour, "hour"), (errors, "transcript_errors")):
        verb.add_argument("--out", type=folder, help=f"folder; {name}/ in --run if not given")
        verb.add_argument("--seed", type=whole, default=0, help="seed of all that is drawn")


def _hour(options: argparse.Namespace) -> None:
    """How well a timeline finds the changes of emotion in an hour of speech.

    examples:
      mtmm study hour --run out/run --seconds 600
    """
    long = SHORTEST_S <= options.seconds < math.inf
    refuse((not long, f"--seconds is {options.seconds:g}; it must be at least {SHORTEST_S:g}"))
    from mtmm_training.studies.hour import run_hour

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
