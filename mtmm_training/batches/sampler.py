"""Batches of similar lengths, dealt out to processes.

What is random here is drawn from (seed, epoch), never from a global generator, so processes and
resumed runs draw the same.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mtmm_training.batches.augment import speed_of
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance, UtteranceError

FRAMES_PER_SECOND = 50  # of HuBERT, wav2vec 2.0, WavLM and Whisper
BUCKET_BATCHES = 200  # batches are cut from chunks of so many batches, sorted by length
LENGTH_JITTER = 0.02  # lengths are blurred by so much first, or the same utterances always meet


def frame_lengths(
    utterances: Sequence[Utterance], recordings: Recordings | None = None
) -> np.ndarray:
    """Length of each utterance in encoder frames: (utterances,).

    Text without audio counts two frames a word, about its number of tokens.

    Args:
        utterances: Variants among them count at their own speed.
        recordings: What is known of the audio files; None = nothing yet.

    Raises:
        UtteranceError: A file is no audio, or ends before the utterance begins.
        OSError: A file cannot be read.
    """
    seconds = durations(utterances, recordings or Recordings())
    lengths = [
        2 * len((utterance.text or "").split())
        if duration_s is None
        else math.ceil(FRAMES_PER_SECOND * (duration_s / speed_of(utterance)))
        for utterance, duration_s in zip(utterances, seconds, strict=True)
    ]
    return np.maximum(np.array(lengths, dtype=np.int64), 1)


def durations(utterances: Sequence[Utterance], recordings: Recordings) -> list[float | None]:
    """Seconds of each utterance's audio, in their order; None without audio.

    Raises:
        UtteranceError: the file is no audio, or ends before the utterance begins.
        OSError: as of `Recordings.of`.
    """
    known = recordings.of(u.audio for u in utterances if u.audio is not None)
    seconds: list[float | None] = []
    for u in utterances:
        if u.audio is None:
            seconds.append(None)
            continue
        whole, start = known[u.audio].duration_s, u.start_s or 0.0
        if whole is None:
            raise UtteranceError(u.utterance_id, f"{u.audio!r} cannot be read as audio.")
        if start > whole:
            problem = f"it begins at {start:g} s, after the end of {u.audio!r}."
            raise UtteranceError(u.utterance_id, problem)
        seconds.append((whole if u.end_s is None else min(u.end_s, whole)) - start)
    return seconds


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
        seed: Decides the order of utterances and batches.
        shuffle: False: from the longest batch to the shortest, every time the same; all variants.
        corpora: (utterances,), the corpus of each; None = one.
        exponent: 0 to 1.
        rank, world_size: This process, and how many there are.

    Raises:
        ValueError: There are fewer utterances than processes.

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
            raise ValueError(f"{self.count} utterances are too few for {world_size} processes.")
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
