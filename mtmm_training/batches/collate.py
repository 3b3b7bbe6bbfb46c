"""Utterances to batches: dataset, batches by length, decoding and collation, random modality masking.

Everything random here is drawn from (seed, epoch, utterance id), never from a global generator, so
workers, processes and resumed runs draw the same.
"""

import math
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Audio, Dataset
from torch.utils.data import DataLoader, Sampler

from modeling_mtmm import ABSENT_EMOTION
from mtmm_training.batches.augment import augment, speed_of
from mtmm_training.data.utterances import DIMENSIONS, Utterance
from processing_mtmm import MTMMProcessor

FRAMES_PER_SECOND = 50  # of HuBERT, wav2vec 2.0, WavLM and Whisper
BUCKET_BATCHES = 200  # batches are cut from chunks of so many batches, sorted by length
LENGTH_JITTER = 0.02  # lengths are blurred by so much first, or the same utterances always meet
RMM_FLOOR = 0.1  # a lower probability of random modality masking counts as none
READING_S = 600.0  # a worker that takes longer over a batch waits for a disk that does not answer

MASKS = {
    "audio": ("audio_attention_mask", "acoustic_attention_mask"),
    "text": ("attention_mask", "linguistic_attention_mask"),
}


def is_of_worker(error: Exception) -> bool:
    """Whether a process that reads audio was killed: torch raises it wherever this one is just then."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def to_dataset(utterances: Sequence[Utterance]) -> Dataset:
    """Utterances as a `datasets.Dataset`; audio stays undecoded until a worker collates it."""
    columns = ["utterance_id", "audio", "text", "emotion", *DIMENSIONS]
    columns += ["start_s", "end_s", "augmentation"]
    rows = [{name: getattr(utterance, name) for name in columns} for utterance in utterances]
    dataset = Dataset.from_list(rows)
    if any(utterance.audio is not None for utterance in utterances):
        dataset = dataset.cast_column("audio", Audio(decode=False))
    return dataset


def frame_lengths(utterances: Sequence[Utterance]) -> np.ndarray:
    """Length of each utterance in encoder frames, from the audio file's header: (utterances,).

    Text without audio counts two frames a word, about its number of tokens.

    Raises:
        ValueError: A header cannot be read; the message names the utterance.
    """
    durations: dict[str, float] = {}
    lengths = []
    for utterance in utterances:
        if utterance.audio is None:
            lengths.append(2 * len((utterance.text or "").split()))
            continue
        if utterance.audio not in durations:  # one recording may hold many utterances
            durations[utterance.audio] = _duration(utterance)
        duration_s = durations[utterance.audio]
        end_s = duration_s if utterance.end_s is None else min(utterance.end_s, duration_s)
        duration_s = (end_s - (utterance.start_s or 0.0)) / speed_of(utterance)
        lengths.append(math.ceil(FRAMES_PER_SECOND * duration_s))
    return np.maximum(np.array(lengths, dtype=np.int64), 1)


def _duration(utterance: Utterance) -> float:
    try:
        return soundfile.info(utterance.audio).duration
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(
            f"Utterance {utterance.utterance_id}: {utterance.audio!r} cannot be read as audio ({error}). "
            "Repair the file, or leave the utterance out."
        ) from error


class LengthBatches(Sampler[list[int]]):
    """Batches of similar lengths, the same on every process, of which each takes its own share.

    A global batch holds `batch_size` utterances for each process, or fewer where `frame_budget`
    closes it earlier. It is formed by all processes alike and then dealt out, so every utterance is
    seen exactly once an epoch and all processes make the same number of steps, which accelerate's
    own sharding does not promise for batches of different sizes.

    Of several corpora, an epoch still has as many draws as there are utterances, but a corpus of n
    gets a share of them in proportion to n ** `exponent`: 1 leaves every utterance its one turn, 0
    gives every corpus as much. A corpus goes round its utterances, and on in the next epoch from
    where it stopped.

    Args:
        lengths: (utterances,), in frames; or (variants, utterances): every utterance goes from
            variant to variant, each time that it is drawn, and variant v of utterance u is index
            v * utterances + u.
        batch_size: Utterances per process and batch, at most.
        frame_budget: Frames per process and batch, padding included, at most; None = no budget. An
            utterance longer than the budget is a batch of its own on its process.
        seed: Of the order of utterances and batches.
        shuffle: False: from the longest batch to the shortest, every time the same; all variants.
        corpora: (utterances,), the corpus of each; None = one.
        exponent: 0 to 1.
        rank, world_size: This process, and how many there are.

    Raises:
        ValueError: Fewer utterances than processes, a size below 1, or an exponent out of range.

    Source: shares in proportion to n ** exponent: Arivazhagan et al. 2019, section 3.2, where the
    exponent is 1/T.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        frame_budget: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        corpora: Sequence[str] | None = None,
        exponent: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        table = np.atleast_2d(lengths)
        self.variants, self.count = table.shape
        self.lengths = table.reshape(-1)  # by index
        if self.count < world_size:
            raise ValueError(
                f"{self.count} utterances cannot be dealt out to {world_size} processes; each "
                "needs at least one. Start fewer processes."
            )
        if batch_size < 1 or (frame_budget is not None and frame_budget < 1):
            raise ValueError(
                f"`batch_size={batch_size}` and `frame_budget={frame_budget}` must be at least 1."
            )
        if not 0 <= exponent <= 1:
            raise ValueError(f"`exponent={exponent}` must be from 0 to 1.")
        self.batch_size, self.frame_budget = batch_size, frame_budget
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_batch = 0, 0
        generator = np.random.default_rng([seed, 0, 1])  # no epoch has three numbers
        self._first_variants = generator.integers(self.variants, size=(self.count,))
        names = np.array(["one"] * self.count if corpora is None else corpora)
        self._circles: list[np.ndarray] = [
            generator.permutation(np.flatnonzero(names == name)) for name in np.unique(names)
        ]
        self._draws = share_out(self.count, [len(circle) ** exponent for circle in self._circles])
        self._batches: tuple[int, list[np.ndarray]] | None = None  # of the epoch they were made for

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, from 0, that the next iteration is in, and the batch it begins with."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return len(self.global_batches())

    def lengths_of(self, epochs: int) -> list[int]:
        """Number of batches in each of so many epochs; with a frame budget they differ."""
        if self.frame_budget is None:
            return [len(self)] * epochs
        return [len(self._make_batches(epoch)) for epoch in range(epochs)]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches()[self.first_batch :]:
            yield batch[self.rank :: self.world_size].tolist()

    def global_batches(self) -> list[np.ndarray]:
        """This epoch's batches of utterance indices, before they are dealt out."""
        if self._batches is None or self._batches[0] != self.epoch:
            self._batches = (self.epoch, self._make_batches(self.epoch))
        return self._batches[1]

    def padding_share(self) -> float:
        """Share of padding in this epoch's frames over all processes, 0 to 1."""
        real = padded = 0
        for batch in self.global_batches():
            for rank in range(self.world_size):
                lengths = self.lengths[batch[rank :: self.world_size]]
                real += int(lengths.sum())
                padded += int(lengths.max()) * len(lengths)
        return 1 - real / padded

    def _make_batches(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return self._cut(order)
        drawn = self._drawn(epoch)
        order = generator.permutation(self.count)
        jitter = generator.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, self.count)
        blurred = self.lengths[drawn] * jitter
        chunk = BUCKET_BATCHES * self.batch_size * self.world_size
        batches = []
        for start in range(0, self.count, chunk):
            part = order[start : start + chunk]
            batches += self._cut(drawn[part[np.argsort(-blurred[part])]])
        return self._mend_small([batches[i] for i in generator.permutation(len(batches))])

    def _drawn(self, epoch: int) -> np.ndarray:
        """The indices that an epoch shows, in ascending order: (utterances,)."""
        indices = []
        for circle, draws in zip(self._circles, self._draws, strict=True):
            rounds, places = np.divmod(np.arange(epoch * draws, (epoch + 1) * draws), len(circle))
            utterances = circle[places]
            variants = (self._first_variants[utterances] + rounds) % self.variants
            indices.append(variants * self.count + utterances)
        return np.sort(np.concatenate(indices))

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Consecutive global batches from indices sorted, more or less, from long to short."""
        batches, start = [], 0
        while start < len(order):
            size = self.batch_size
            if self.frame_budget is not None:
                longest = int(self.lengths[order[start : start + size * self.world_size]].max())
                size = min(size, max(self.frame_budget // longest, 1))
            batches.append(order[start : start + size * self.world_size])
            start += size * self.world_size
        return self._mend_small(batches)

    def _mend_small(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """No global batch has fewer utterances than there are processes: small ones join another."""
        whole = [batch for batch in batches if len(batch) >= self.world_size]
        small = [batch for batch in batches if len(batch) < self.world_size]
        if small and whole:
            whole[-1] = np.concatenate([whole[-1], *small])
            return whole
        return batches


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to `total`: the largest remainders."""
    exact = total * np.asarray(weights) / np.sum(weights)
    shares = np.floor(exact + 1e-9).astype(int)  # a share that is whole stays so despite rounding
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares.tolist()


class RawInputs:
    """Collates rows of [`to_dataset`] into raw inputs of the model, with labels.

    Args:
        processor: Of the model.
        emotions: Emotion names, in the order of `config.id2label`.
        dimension_names: In the order of `config.dimension_names`.
    """

    def __init__(
        self, processor: MTMMProcessor, emotions: Sequence[str], dimension_names: Sequence[str]
    ) -> None:
        self.processor = processor
        self.emotions = {name: index for index, name in enumerate(emotions)}
        self.dimension_names = tuple(dimension_names)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Model inputs, `emotion_labels`, `dimension_labels`, and `utterance_ids` (list of str)."""
        audio = [self._named_audio(row) for row in rows]
        text = [row["text"] for row in rows]
        try:
            inputs = dict(self.processor(audio=audio, text=text))
        except (ValueError, TypeError) as error:
            ids = ", ".join(row["utterance_id"] for row in rows)
            raise ValueError(f"{error} The batch holds, from 0: {ids}.") from error
        return inputs | self.labels(rows)

    def problems(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """What is wrong with those rows that cannot be collated, by utterance id."""
        found = {}
        for row in rows:
            try:
                self.processor(audio=[self._audio(row)], text=[row["text"]])
            except (ValueError, TypeError, OSError) as error:
                found[row["utterance_id"]] = str(error)
        return found

    def labels(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Labels of rows as tensors: −100 and NaN where absent."""
        emotions = [self.emotions.get(row["emotion"], ABSENT_EMOTION) for row in rows]
        dimensions = [
            [math.nan if row[name] is None else row[name] for name in self.dimension_names]
            for row in rows
        ]
        return {
            "emotion_labels": torch.tensor(emotions),
            "dimension_labels": torch.tensor(dimensions, dtype=torch.float32),
            "utterance_ids": [row["utterance_id"] for row in rows],
        }

    def _named_audio(self, row: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self._audio(row)
        except (ValueError, OSError) as error:
            raise ValueError(f"Utterance {row['utterance_id']}: {error}") from error

    def _audio(self, row: dict[str, Any]) -> dict[str, Any] | None:
        if row["audio"] is None:
            return None
        source = row["audio"]["bytes"] or row["audio"]["path"]
        array, rate = self.processor.load_audio(source, row["start_s"], row["end_s"])
        if row["augmentation"] is not None:
            array = augment(array, rate, row["augmentation"], self.processor)
            rate = self.processor.sampling_rate
        return {"array": array, "sampling_rate": rate}


class Loader(DataLoader[Any]):
    """A DataLoader whose errors are those of its collator, or name the utterances that do not come."""

    batch_sampler: Any  # of `make_loader`; torch knows it only as something to iterate over

    def __iter__(self) -> Any:
        batches = super().__iter__()
        for indices in self.batch_sampler:
            try:
                batch = next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                if not self.num_workers:
                    raise
                # Errors of reading are returned: these are of the channel that a batch comes through.
                if not isinstance(error, RuntimeError) or "ancdata" in str(error):
                    raise RuntimeError(
                        f"DataLoader worker ended while it handed over a batch: {error}"
                    ) from error
                if "timed out" not in str(error):
                    raise
                ids = ", ".join(self.dataset[index]["utterance_id"] for index in indices)
                raise OSError(
                    f"A process that reads audio has been waiting for {self.timeout:g} s over {ids}. Does "
                    "the disk or network share with their recordings answer? When it does, run the same "
                    "command again."
                ) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch


def make_loader(
    dataset: Any, batches: Iterable[list[int]], collate: Callable[..., Any], *, workers: int = 0
) -> Loader:
    """A loader whose workers decode and resample ahead of the step.

    Raises:
        ValueError, TypeError, OSError: While it is read: as the collator, or a worker waits for a
            recording longer than `READING_S`; without workers there is nobody to notice that.
        RuntimeError: While it is read: a worker was killed.
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


class _Returning:
    """A collator that returns its errors: raised in a worker, they would come as a traceback."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self.collate = collate

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


def rmm_probability(epoch: int, epochs: int, start: float = 0.8) -> float:
    """Probability that an utterance loses a modality: a cosine from `start` to 0, cut at `RMM_FLOOR`.

    Args:
        epoch: From 0.
        epochs: How many are planned.
        start: In the first epoch, 0 to 1; 0 switches the masking off.

    Source: the paper's random modality masking; p(e) = start·(1 + cos(π·e/(E − 1)))/2.
    """
    progress = epoch / (epochs - 1) if epochs > 1 else 0.0
    probability = start * (1 + math.cos(math.pi * progress)) / 2
    return probability if probability >= RMM_FLOOR else 0.0


def mask_modalities(
    batch: dict[str, Any],
    probability: float,
    *,
    seed: int,
    epoch: int,
    text_share: float = 0.6,
    per_batch: bool = False,
) -> None:
    """Random modality masking, in place: an utterance that has both modalities may lose one.

    Args:
        batch: Of a collator; the mask row of a lost modality becomes zero.
        probability: That an utterance loses one, 0 to 1.
        seed, epoch: With the utterance id they decide what is drawn.
        text_share: Probability that it is the text that is lost, not the audio.
        per_batch: Draw once for the whole batch, by its first utterance.

    Source: the paper; shares from a re-implementation; the draw per utterance is ours.
    """
    found = {modality: [n for n in MASKS[modality] if n in batch] for modality in MASKS}
    if probability == 0.0 or not all(found.values()):
        return
    names = {modality: present[0] for modality, present in found.items()}
    ids = batch["utterance_ids"]
    masks = {modality: batch[name] for modality, name in names.items()}
    both = (masks["audio"] != 0).any(-1) & (masks["text"] != 0).any(-1)
    for row, utterance_id in enumerate(ids):
        draw = random.Random(f"{seed}/{epoch}/{ids[0] if per_batch else utterance_id}")
        loses, loses_text = draw.random() < probability, draw.random() < text_share
        if loses and both[row]:
            masks["text" if loses_text else "audio"][row] = 0
