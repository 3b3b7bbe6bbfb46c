"""What a finished run was trained and tested with, found again from its results.json."""

from dataclasses import fields
from pathlib import Path

from mtmm_training.folds import select
from mtmm_training.publish import read_results
from mtmm_training.train_config import TrainConfig
from mtmm_training.utterances import Utterance
from train_accelerate import choose_fold, read_utterances


def read_flags(run: str | Path) -> TrainConfig:
    """The flags of a run.

    Raises:
        FileNotFoundError, ValueError: The folder has no results.json, or another program's or
            version's.
    """
    flags = read_results(run)["config"]
    unknown = sorted(set(flags) - {field.name for field in fields(TrainConfig)})
    if unknown:
        raise ValueError(
            f"{run}/results.json has the flag {unknown[0]!r}, which this version does not know; use the "
            "version that trained it, or train again."
        )
    return TrainConfig(**flags)


def read_test_split(run: str | Path) -> list[Utterance]:
    """The utterances that a run was tested on.

    Raises:
        FileNotFoundError, ValueError: As `read_flags`; or the data is not where it was.
    """
    flags = read_flags(run)
    utterances = read_utterances(flags)
    test = select(utterances, choose_fold(flags, utterances))["test"]
    if not test:
        raise ValueError(f"The fold of {run} has no test utterances; give another run.")
    return test
