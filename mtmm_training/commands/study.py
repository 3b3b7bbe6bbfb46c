"""`mtmm study`: what a trained model does in other conditions, on its own test split."""

import argparse
import math
from pathlib import Path

from mtmm_training.commands.flags import Verb, count, folder, refuse, whole

SUMMARY = "what a trained model does with long recordings, wrong transcripts, explanations"
SHORTEST_S = 120.0  # of a recording: it holds two blocks


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")


def _add_hour_flags(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--out", type=folder, help="folder; hour/ in --run if not given")
    parser.add_argument("--seconds", type=float, default=3600.0, help="length of the recording")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the recording's order")


def _hour(options: argparse.Namespace) -> None:
    seconds = options.seconds
    wrong = not SHORTEST_S <= seconds < math.inf
    refuse((wrong, f"--seconds is {seconds:g}; it must be finite and at least {SHORTEST_S:g}"))
    from mtmm_training.studies.hour import run_hour

    run_hour(options.run, options.out or options.run / "hour", seconds, options.seed)


def _add_errors_flags(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--out", type=folder, help="folder; transcript_errors/ in --run if not given"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0, 0.1, 0.2, 0.4],
        help="shares of words to get wrong, 0 to 1",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole, default=0, help="seed of places, kinds and words of errors"
    )
    parser.add_argument("--batch_size", type=count, default=16, help="utterances at once")


def _errors(options: argparse.Namespace) -> None:
    outside = [rate for rate in options.rates if not 0 <= rate <= 1]
    refuse((bool(outside), f"--rates is {options.rates}; each must be from 0 to 1"))
    from mtmm_training.studies.transcript_errors import measure_errors

    out = options.out or options.run / "transcript_errors"
    measure_errors(
        options.run, out, options.rates, seed=options.seed, batch_size=options.batch_size
    )


def _add_check_flags(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--utterances", type=count, help="at most so many; all of the test split if not given"
    )


def _check(options: argparse.Namespace) -> None:
    from mtmm_training.studies.explanation_check import check_explanations

    check_explanations(options.run, options.utterances)


VERBS = {
    "hour": Verb(
        "how well a timeline finds the changes of emotion in an hour of speech",
        _add_hour_flags,
        _hour,
        "examples:\n  mtmm study hour --run out/run --seconds 600\n",
    ),
    "transcript-errors": Verb(
        "the test split at several word error rates",
        _add_errors_flags,
        _errors,
        "examples:\n  mtmm study transcript-errors --run out/run --rates 0 0.1 0.2 0.4\n",
    ),
    "explanation-check": Verb(
        "whether explanations point at what was planted, on the embedded corpus",
        _add_check_flags,
        _check,
        "examples:\n  mtmm study explanation-check --run out/demo/fused --utterances 100\n",
    ),
}
