"""Many predictions as Parquet parts, made by any number of processes that share a folder alone.

Part number i has the inputs from i times the size on. Each process takes every so many-th part, writes
it under a temporary name and renames it: a part that is there is whole. A run that was killed goes on
with the parts that are missing, and whichever process finds the last one in place checks them all.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from mtmm_training.commands.predict_inputs import Input
from mtmm_training.commands.predict_output import result_row
from mtmm_training.data import sounds
from mtmm_training.data.files import replacing, sweep
from mtmm_training.data.record import keep_record
from mtmm_training.data.utterances import few
from mtmm_training.training.ending import tell

# Behind the folder's name, beside it: polars stands nothing but Parquet in it.
RUN_FILE = ".run.json"
AGAIN = "delete it and run the same command again"

Predict = Callable[[Sequence[Input]], Iterator[tuple[Input, dict[str, Any]]]]


@dataclass(frozen=True)
class Parts:
    """Predictions of many inputs in one folder: `size` of them to a part, in their order.

    Args:
        folder: Seen by all processes.
        inputs: All of them, the same in every process.
        size: Inputs to a part; the last may have fewer.
        settings: What the results depend on, beside the inputs: JSON values by name.
    """

    folder: Path
    inputs: Sequence[Input]
    size: int
    settings: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-len(self.inputs) // self.size)

    @property
    def record_file(self) -> Path:
        """Where the run's record is; that of an older run is in the folder."""
        older, folder = self.folder / "_run.json", self.folder.absolute()
        return older if older.exists() else folder.with_name(f"{folder.name}{RUN_FILE}")

    def path(self, number: int) -> Path:
        """The file of a part; names sort as numbers do."""
        width = max(5, len(str(self.count)))
        return self.folder / f"part-{number:0{width}}-of-{self.count:0{width}}.parquet"

    def of(self, number: int) -> Sequence[Input]:
        """The inputs of a part."""
        return self.inputs[number * self.size : (number + 1) * self.size]

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[int]:
        """The numbers of the parts that are not there: all, or those of process i of n."""
        mine = range(share[0], self.count, share[1])
        return [number for number in mine if not self.path(number).exists()]

    @cached_property  # each part that is written asks again
    def record(self) -> dict[str, Any]:
        """What makes this run this run."""
        digest = hashlib.sha256()
        for one in self.inputs:
            digest.update(json.dumps(asdict(one), sort_keys=True).encode() + b"\n")
        own = {"utterances": len(self.inputs), "part_size": self.size, "inputs": digest.hexdigest()}
        return dict(self.settings) | own

    def write(self, number: int, rows: list[dict[str, Any]], columns: Mapping[str, type]) -> None:
        """Write a part as Parquet, with the first one the run's record.

        Not before: a run that never got so far, for options that are wrong, leaves its folder free.

        Raises:
            ValueError: Another run was first.
        """
        import pyarrow.parquet

        keep_record(self.record_file, self.record)
        # The same columns for every part, also where all values of one are absent.
        kinds = {str: pyarrow.string(), float: pyarrow.float64()}
        cells = [(name, kinds[kind]) for name, kind in columns.items()]
        times = [("start", kinds[float]), ("end", kinds[float])]
        timeline = ("timeline", pyarrow.list_(pyarrow.struct([*times, *cells])))
        schema = pyarrow.schema([("id", kinds[str]), *cells, timeline, ("error", kinds[str])])
        with replacing(self.path(number)) as temporary:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary)

    def check(self) -> list[str]:
        """Reads every part back: all inputs, once, in order, and none older than its recordings.

        Returns:
            The inputs that failed, each with its part.

        Raises:
            ValueError: A part is not what it should be.
        """
        import pyarrow.parquet

        failed, outdated = [], []
        for number in range(self.count):
            path, inputs = self.path(number), self.of(number)
            try:
                table = pyarrow.parquet.read_table(path, columns=["id", "error"])
            except (ValueError, OSError) as error:  # pyarrow's own are among these
                raise ValueError(f"{path} cannot be read ({error}); {AGAIN}.") from error
            if table["id"].to_pylist() != [one.name for one in inputs]:
                raise ValueError(f"{path} has other inputs than part {number}; {AGAIN}.")
            errors = table["error"].to_pylist()
            failed += [f"{o.name} ({path.name})" for o, e in zip(inputs, errors, strict=True) if e]
            if any(_is_newer(one, path) for one in inputs):
                outdated.append(path.name)
        sweep(self.folder)
        if outdated:
            raise ValueError(
                f"Recordings are newer than {few(outdated)} of {self.folder}; delete these parts, run again."
            )
        return failed


def predict_parts(
    parts: Parts,
    load: Callable[[], tuple[Mapping[str, type], Predict]],
    *,
    share: tuple[int, int] = (0, 1),
    advance: Callable[[int], Any] = lambda count: None,
) -> int:
    """Makes this process's parts, as far as they are missing; checks all, if they are all there.

    Args:
        parts: What is to be made.
        load: Gives the columns of a result, and what predicts inputs; called only where a part is
            missing.
        share: Number of this process, from 0, and how many there are; it need not be the same
            number of processes that began the run.
        advance: Is given the number of inputs done since the last time.

    Returns:
        How many inputs failed: of all if this process was the last, else of those that it did.

    Raises:
        ValueError: The folder belongs to another run, a part is damaged or older than its
            recordings, the options are wrong, or an input failed where that is to end the run.
    """
    import pyarrow.parquet  # noqa: F401  before any work: it comes with the training extra

    if not any(parts.folder.glob("*.parquet")):  # the folder was deleted, or never filled
        parts.record_file.unlink(missing_ok=True)
    elif parts.record_file.exists():
        keep_record(parts.record_file, parts.record)
    else:
        raise ValueError(
            f"{parts.folder} holds Parquet files but has no {parts.record_file.name}; choose another --out."
        )
    mine, failed = parts.missing(share), 0
    if mine:
        columns, predict = load()
        in_time = {"start": float, "end": float, **columns}
        # All at once: what reads ahead of the model does not stop at the end of a part.
        answers = predict([one for number in mine for one in parts.of(number)])
    for number in mine:
        rows = []
        for one, result in islice(answers, len(parts.of(number))):
            timeline = [result_row(entry, in_time) for entry in result.get("timeline", ())]
            own = {"id": one.name, "timeline": timeline or None, "error": result.get("error")}
            rows.append(own | result_row(result, columns))
            if "error" in result:
                failed += 1
            advance(1)
        parts.write(number, rows, columns)
    if missing := parts.missing():
        tell(f"This share is done; {len(missing)} of {parts.count} parts are left to others.")
        return failed
    names = parts.check()
    again = f": {few(names)}; to try them anew, delete their parts and run again" if names else ""
    tell(
        f"{parts.folder}: {len(parts.inputs)} utterances in {parts.count} parts, complete and in order; "
        f"{len(names)} failed{again}."
    )
    return len(names)


def _is_newer(one: Input, part: Path) -> bool:
    """Whether the input's file was written after the part; a URL or a missing file was not."""
    try:
        return os.stat(sounds.file_of(one.audio or "") or "").st_mtime > part.stat().st_mtime
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False
