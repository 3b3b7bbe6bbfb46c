"""What a trained model does with long recordings, transcripts, references."""

import argparse
import math
from pathlib import Path

from mtmm_training.commands.flags import count, folder, refuse, whole
from mtmm_training.commands.parser import Parser

SHORTEST_S = 120.0  # of a recording: it holds two blocks


def add_flags(parser: Parser) -> None:
    """Five studies, each with its flags."""
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
    curve = parser.add_verb("references", _references)
    curve.add_argument("--cache_dir", type=folder, help="folder of the kept states; the run's own")
    call = parser.add_verb("call", _call)
    for verb in (hour, errors, check, curve, call):
        verb.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    named = (hour, "hour"), (errors, "transcript_errors"), (curve, "references"), (call, "call")
    for verb, name in named:
        verb.add_argument("--out", type=folder, help=f"folder; {name}/ in --run if not given")
        verb.add_argument("--seed", type=whole, default=0, help="seed of all that is drawn")


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

    --run may be an experiment's folder: its folds are scored together.

    examples:
      mtmm study references --run out/ravdess4/ours
    """
    from mtmm_training.studies.reference_curve import reference_curve

    out = options.out or options.run / "references"
    table = reference_curve(options.run, out, options.cache_dir, options.seed)
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep="all"))
    print(f"the table and its figure are in {out}")
