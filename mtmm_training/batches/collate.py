"""Utterances to batches of raw inputs: dataset, decoding and collation, and the loader that does it."""

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader

from loss_mtmm import ABSENT_EMOTION
from mtmm_training.batches.augment import augment
from mtmm_training.batches.opinions import Opinions
from mtmm_training.data.sounds import waveform
from mtmm_training.data.utterances import DIMENSIONS, RATINGS, Utterance, UtteranceError, listing
from processing_mtmm import MTMMProcessor

READING_S = 600.0  # a worker that takes longer over a batch waits for a disk that does not answer


def is_of_worker(error: Exception) -> bool:
    """Whether a process that reads audio was killed: torch raises it wherever this one is just then."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def to_dataset(utterances: Sequence[Utterance]) -> Dataset:
    """Utterances as a `datasets.Dataset`; audio stays undecoded until a worker collates it."""
    columns = ["utterance_id", "audio", "text", "emotion", *DIMENSIONS]
    columns += ["start_s", "end_s", "augmentation"]
    said = ("votes", *RATINGS.values())
    columns += [name for name in said if any(getattr(u, name) for u in utterances)]
    rows = [{name: getattr(utterance, name) for name in columns} for utterance in utterances]
    return Dataset.from_list(rows)


class RawInputs:
    """Collates rows of [`to_dataset`] into raw inputs of the model, with labels.

    Args:
        processor: The model's.
        emotions: Emotion names, in the order of `config.id2label`.
        dimension_names: In the order of `config.dimension_names`.
        opinions: How votes and ratings count; None = labels alone are given.
    """

    def __init__(
        self,
        processor: MTMMProcessor,
        emotions: Sequence[str],
        dimension_names: Sequence[str],
        opinions: Opinions | None = None,
    ) -> None:
        self.processor = processor
        self.emotions = {name: index for index, name in enumerate(emotions)}
        self.dimension_names = tuple(dimension_names)
        self.opinions = opinions

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Model inputs, `emotion_labels`, `dimension_labels`, and `utterance_ids` (list of str).

        Raises:
            UtteranceError: An utterance cannot be read or processed.
        """
        audio = [self._audio(row) for row in rows]
        try:
            inputs = dict(self.processor(audio=audio, text=[row["text"] for row in rows]))
        except (ValueError, TypeError) as error:
            for utterance_id, problem in self.problems(rows).items():
                raise UtteranceError(utterance_id, problem) from error
            raise  # each alone is well
        return inputs | self.labels(rows)

    def problems(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """What is wrong with those rows that cannot be collated, by utterance id."""
        found = {}
        for row in rows:
            try:
                self.processor(audio=[self._audio(row)], text=[row["text"]])
            except (ValueError, TypeError) as error:
                found[row["utterance_id"]] = getattr(error, "problem", str(error))
        return found

    def labels(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Labels of rows as tensors: −100 and NaN where absent; votes and ratings if they count."""
        emotions = [self.emotions.get(row["emotion"], ABSENT_EMOTION) for row in rows]
        dimensions = [
            [math.nan if row[name] is None else row[name] for name in self.dimension_names]
            for row in rows
        ]
        labels = {
            "emotion_labels": torch.tensor(emotions),
            "dimension_labels": torch.tensor(dimensions, dtype=torch.float32),
            "utterance_ids": [row["utterance_id"] for row in rows],
        }
        if self.opinions is None:
            return labels
        return labels | self.opinions.tensors(rows, self.emotions, self.dimension_names)

    def _audio(self, row: dict[str, Any]) -> dict[str, Any] | None:
        if row["audio"] is None:
            return None
        try:
            array, rate = waveform(row["audio"], row["start_s"], row["end_s"])
        except (ValueError, OSError) as error:
            raise UtteranceError(row["utterance_id"], str(error)) from error
        if row["augmentation"] is not None:
            array = augment(array, rate, row["augmentation"], self.processor)
            rate = self.processor.sampling_rate
        return {"array": array, "sampling_rate": rate}


def find_bad(
    utterances: Sequence[Utterance], processor: MTMMProcessor, workers: int
) -> dict[str, str]:
    """What is wrong with the utterances that cannot be used, by id: each is read once.

    Every process reads its share and gets the answer about all.
    """
    state = PartialState()
    mine = utterances[state.process_index :: state.num_processes]
    batches = list(groups_of(16, range(len(mine))))
    collate = RawInputs(processor, (), ()).problems
    loader = make_loader(to_dataset(mine), batches, collate, workers=workers)
    found = dict(gather_object([item for problems in loader for item in problems.items()]))
    return {u.utterance_id: found[u.utterance_id] for u in utterances if u.utterance_id in found}


def unusable(bad: dict[str, str], utterances: Sequence[Utterance]) -> str:
    """The first utterances that cannot be used, and how many there are, for a message."""
    what = f"{len(bad)} of {len(utterances)} utterances cannot be used"
    return listing(what, [": ".join(item) for item in bad.items()])


class Loader(DataLoader[Any]):
    """A DataLoader whose errors are those of its collator, not the traceback of a worker."""

    batch_sampler: Any  # of `make_loader`; torch knows it only as something to iterate over

    def __iter__(self) -> Any:
        batches = super().__iter__()
        if not self.num_workers:
            yield from batches
            return
        for _ in self.batch_sampler:
            try:
                batch = next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                # Errors of reading are returned: these are of the channel that a batch comes through.
                if isinstance(error, RuntimeError) and "ancdata" not in str(error):
                    raise
                problem = f"DataLoader worker ended while it handed over a batch: {error}"
                raise RuntimeError(problem) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch


def make_loader(
    dataset: Any, batches: Iterable[list[int]], collate: Callable[..., Any], *, workers: int = 0
) -> Loader:
    """A loader whose workers decode and resample ahead of the step.

    Raises:
        ValueError, TypeError, OSError: While it is read: as the collator.
        RuntimeError: While it is read: a worker was killed, or waits for a recording longer than
            `READING_S`; without workers there is nobody to notice that.
    """
    return Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=_Returning(collate) if workers else collate,
        num_workers=workers,
        timeout=READING_S if workers else 0,
        pin_memory=torch.cuda.is_available(),
        # Else every new iterator draws a seed from the global generator, and dropout would depend on
        # how often a run was resumed.
        generator=torch.Generator(),
        worker_init_fn=_begin_worker if workers else None,
    )


def groups_of(size: int, items: Iterable[Any]) -> Iterator[list[Any]]:
    """Consecutive lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


@dataclass
class _Returning:
    """A collator that returns its errors: raised in a worker, they would come as a traceback."""

    collate: Callable[..., Any]

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        try:
            return self.collate(rows)
        except (ValueError, TypeError, OSError) as error:
            return error


def _begin_worker(worker: int) -> None:
    # Each worker decodes one utterance at a time; threads of its own would only compete.
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal; when to stop is for the main one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
