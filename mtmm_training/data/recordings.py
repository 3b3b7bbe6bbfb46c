"""Recordings: the identity, length and sampling rate of audio files, from one reading of each.

    recordings = Recordings("cache")  # the folder of the cache of encoder states
    recordings.of(["a.wav"])["a.wav"].duration_s

What is read is remembered in the folder, for all processes that share it: each folds' process, each
process of a launch. A file counts as unchanged while its path, size and time of change are the same, and
as long as the object lives that has seen it; what is at an address while that is the same.
"""

import hashlib
import io
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from tqdm.auto import tqdm

import audio_mtmm
from mtmm_training.data import sounds
from mtmm_training.data.utterances import Utterance, few

logger = logging.getLogger(__name__)

INDEX = "recordings.jsonl"
_AT_ONCE = 500  # files that are read before what is known of them is written down

Key = tuple[str, int, int]  # absolute path, bytes, time of change in nanoseconds
# Of a recording: its digest, start and end in seconds; equal excerpts have the same sound.
Excerpt = tuple[str, float, float | None]


class AudioFile(NamedTuple):
    """An audio file.

    Args:
        digest: SHA-256 of its bytes, in hexadecimal digits.
        duration_s: seconds; None = it cannot be decoded.
        sampling_rate: Hz; None as well then.
    """

    digest: str
    duration_s: float | None
    sampling_rate: int | None


class Recordings:
    """What is known of audio files; a file is read when it is first asked for.

    Args:
        folder: where what is read is remembered, made if need be; None = in this object alone.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._index = None if folder is None else Path(folder, INDEX)
        self._known: dict[Key, AudioFile] = {}
        # By path as given: a disk in the network answers half a million questions slowly.
        self._found: dict[str, AudioFile] = {}
        self._seen = 0  # bytes of the index that are in `_known`

    def of(self, paths: Iterable[str]) -> dict[str, AudioFile]:
        """The recordings at these paths, by path.

        Raises:
            FileNotFoundError: there is no file at a path.
            OSError: a file cannot be read.
        """
        wanted = dict.fromkeys(paths)
        keys = {path: _key(path) for path in wanted if path not in self._found}
        if not self._known.keys() >= set(keys.values()):
            # Processes that start together would all read the same files: one does, the others wait.
            with self._open_index() as index:
                # A read-only folder, a file system without locks, or Windows.
                with suppress(OSError, ImportError):
                    import fcntl

                    fcntl.lockf(index, fcntl.LOCK_EX)  # released when the file is closed
                self._learn(index)
                self._read(
                    [key for key in dict.fromkeys(keys.values()) if key not in self._known], index
                )
        self._found |= {path: self._known[key] for path, key in keys.items()}
        return {path: self._found[path] for path in wanted}

    def _open_index(self) -> IO[bytes]:
        if self._index is None:
            return io.BytesIO()
        try:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            return self._index.open("a+b", buffering=0)  # unbuffered: one write, one append
        except OSError:  # of another user, or on a read-only disk: what is known helps all the same
            return self._index.open("rb") if self._index.exists() else io.BytesIO()

    def _learn(self, index: IO[bytes]) -> None:
        """Takes over what other processes wrote since the last time."""
        index.seek(self._seen)
        content = index.read()
        self._seen += len(content)
        for line in content.decode("utf-8", errors="replace").split("\n"):
            # A process that was killed leaves half a line; what it stood for is read again.
            try:
                path, size, changed, *facts = json.loads(line)
                self._known[path, size, changed] = AudioFile(*facts)
            except (ValueError, TypeError):
                continue

    def _read(self, keys: Sequence[Key], index: IO[bytes]) -> None:
        """Reads files and appends what they are to the index."""
        bar = tqdm(total=len(keys), desc="reading recordings", disable=None, leave=False, delay=1)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                lines = []
                for key, recording in zip(part, pool.map(_read, part), strict=True):
                    self._known[key] = recording
                    if recording.duration_s is not None:  # another libsndfile may read it
                        lines.append(json.dumps([*key, *recording]))
                    bar.update()
                try:
                    if lines:  # the first line end closes what a killed process may have left
                        index.write("\n".join(["", *lines, ""]).encode())
                except OSError as error:
                    logger.warning("%s cannot be written (%s)", self._index, error)


def _key(audio: str) -> Key:
    if (file := sounds.file_of(audio)) is None:
        return audio, 0, 0
    found = os.stat(file)
    return os.path.abspath(audio), found.st_size, found.st_mtime_ns


def _read(key: Key) -> AudioFile:
    content = sounds.source(key[0])
    with open(content, "rb") if isinstance(content, str) else io.BytesIO(content) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)  # the header is in memory now
        try:
            sound = audio_mtmm.AudioFile(file)
            return AudioFile(digest, sound.frames / sound.sampling_rate, sound.sampling_rate)
        except ValueError:
            return AudioFile(digest, None, None)


def excerpts(utterances: Sequence[Utterance], recordings: Recordings) -> dict[str, Excerpt]:
    """Identifies each utterance's audio by content, and logs sounds that several utterances have.

    Returns:
        Utterance id -> excerpt, for the utterances that have audio.

    Raises:
        OSError: as of `Recordings.of`.
    """
    known = recordings.of(u.audio for u in utterances if u.audio is not None)
    found: dict[str, Excerpt] = {}
    for u in utterances:
        if u.audio is not None:
            recording = known[u.audio]
            # None and 0 both mean the file's beginning.
            start, end = u.start_s or 0.0, u.end_s
            if start and end is None:  # how much another excerpt shares with it depends on its end
                end = recording.duration_s
            found[u.utterance_id] = (recording.digest, start, end)
    if twins := doubled(found):
        logger.warning(
            "%d recordings occur under several names, first %s",
            len(twins), few([repr(name) for name in sorted(twins[0])]),
        )  # fmt: skip
    return found


def shared_excerpts(utterances: Sequence[Utterance], recordings: Recordings) -> dict[str, Excerpt]:
    """Of `excerpts` those of recordings that several utterances have: few, as a rule."""
    found = excerpts(utterances, recordings)
    parts_of = Counter(digest for digest, _, _ in found.values())
    return {name: part for name, part in found.items() if parts_of[part[0]] > 1}


def doubled(found: Mapping[str, Excerpt]) -> list[tuple[str, ...]]:
    """For each excerpt that several utterances have, their ids."""
    names: dict[Excerpt, list[str]] = defaultdict(list)
    for utterance_id, excerpt in found.items():
        names[excerpt].append(utterance_id)
    return [tuple(ids) for ids in names.values() if len(ids) > 1]
