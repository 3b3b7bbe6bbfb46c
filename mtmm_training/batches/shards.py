"""States on disk: shards, each written once, and batches of what they hold."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mtmm_training.data.files import file_digest, replacing
from mtmm_training.data.utterances import few


class StateShards:
    """States of one encoder in safetensors files, each written once and named by its checksum.

    Args:
        folder: Where the files are; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Path] = {}  # key -> the shard that has it
        self._indexed: set[Path] = set()
        self._open: dict[Path, Any] = {}

    def refresh(self) -> None:
        """Indexes the shards that came since the last time, by their headers.

        A shard has its name once it is whole, so its bytes are not read again; `verify` does.

        Raises:
            ValueError: A shard cannot be read.
        """
        new = sorted(set(self.folder.glob("*.safetensors")) - self._indexed)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, keys in zip(new, pool.map(_keys, new), strict=True):
                self.entries |= dict.fromkeys(keys, path)
                self._indexed.add(path)

    def verify(self) -> None:
        """Reads every shard and compares it with the checksum that is its name.

        Raises:
            ValueError: Shards are damaged; the message names them.
        """
        paths = sorted(self.folder.glob("*.safetensors"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(file_digest, paths))
        damaged = [p.name for p, digest in zip(paths, digests, strict=True) if digest != p.stem]
        if damaged:
            raise ValueError(f"Shards of {self.folder} are damaged: {few(damaged)}. Delete them.")

    def __getitem__(self, key: str) -> Tensor:
        """(frames, width), or (layers, frames, width): a view of the memory-mapped file.

        Raises:
            ValueError: The shard is gone, or cannot be read any more.
        """
        path = self.entries[key]
        with _reading(path):
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            return self._open[path].get_tensor(key)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a spawned worker opens the files itself

    def write(self, states: dict[str, Tensor]) -> None:
        """Writes a shard under a temporary name and renames it.

        Raises:
            OSError: Among others, the disk is full.
        """
        content = save(states)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        self.entries |= dict.fromkeys(states, path)
        self._indexed.add(path)


def _keys(path: Path) -> list[str]:
    with _reading(path), safe_open(path, framework="pt") as shard:
        return list(shard.keys())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says what to do where a shard cannot be read."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Delete this shard of the cache."
        ) from error


def pad_states(entries: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """States of different lengths as one batch, zeros behind them, and its mask of booleans.

    Args:
        entries: (time, width) or (layers, time, width); None = absent. At least one is there.

    Returns:
        (batch[, layers], time, width) and (batch, time).
    """
    lengths = [0 if entry is None else entry.shape[-2] for entry in entries]
    first = next(entry for entry in entries if entry is not None)
    shape = (len(entries), *first.shape[:-2], max(lengths), first.shape[-1])
    states = first.new_empty(shape)  # every number is written once, below
    for row, entry, length in zip(states, entries, lengths, strict=True):
        if entry is not None:
            row[..., :length, :] = entry
        row[..., length:, :] = 0
    return states, torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
