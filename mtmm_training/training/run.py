"""What a finished run was trained and tested with, found again from what it wrote."""

import csv
from dataclasses import fields
from pathlib import Path

from mtmm_training.data.utterances import Utterance, by_id
from mtmm_training.publishing.publish import read_results
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.prepare import read_all


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
    """The utterances that a run was tested on, as predictions.csv names them.

    Not those of its fold made anew: speakers who came or went since would make another one.

    Raises:
        FileNotFoundError, ValueError: As `read_flags`; or the data is not where it was, or changed.
    """
    known = by_id(read_all(read_flags(run)))
    tested = _read_tested(Path(run))
    changed = [
        name
        for name, speaker in tested.items()
        if name not in known or known[name].speaker_id != speaker
    ]
    if changed:
        raise ValueError(
            f"The data has changed since {run} was trained: {len(changed)} of its {len(tested)} test "
            f"utterances are gone or another speaker's, such as {changed[0]!r}. Give them back, or train "
            "again."
        )
    return [known[name] for name in tested]


def _read_tested(run: Path) -> dict[str, str]:
    """The speaker of each test utterance, by id, in their order."""
    path = run / "predictions.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no predictions.csv, which names its test utterances; give the folder of a "
            "finished run."
        )
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("split") == "test"]
    if not rows:
        raise ValueError(f"{path} has no test utterances; give another run.")
    return {row["id"]: row["speaker"] for row in rows}
