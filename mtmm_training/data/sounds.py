"""Where an utterance's audio is: a file, an address, or a cell of a table; and its bytes.

A cell is written FILE#COLUMN[ROW], such as train.parquet#audio[17]; rows are counted from 1. It has the
bytes of a file, alone or as datasets writes them, {"bytes", "path"}, or {"array", "sampling_rate"}.
"""

import base64
import io
import json
import os
import re
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mtmm_training.data.files import as_spelt

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")
# What fsspec, which comes with datasets, opens beside paths.
_ADDRESS = re.compile(r"(https?|data|hf|s3|gs|zip|tar|gzip):", re.IGNORECASE)
_CELL = re.compile(r"(.+)#([^#]+)\[(\d+)\]", re.DOTALL)
_one_reads = Lock()  # neighbours lie in one block, which each thread would read for itself


def cell(table: str, column: str, row: int) -> str:
    """The address of a cell."""
    return f"{table}#{column}[{row}]"


def is_address(audio: str) -> bool:
    """Whether it is no file here, but somewhere else, or in the text itself."""
    return ":" in audio and _ADDRESS.match(audio) is not None


def _cell_of(audio: str) -> re.Match[str] | None:
    return _CELL.fullmatch(audio) if audio[-1:] == "]" else None


def is_named(audio: str) -> bool:
    """Whether this is a path or an address, which says what it is; no cell, and no data: address."""
    return not _cell_of(audio) and audio[:5].lower() != "data:"


def is_plain(audio: str) -> bool:
    """Whether `load_audio` takes it as it is: a path, or an http(s) or data: address."""
    return not _cell_of(audio) and (
        not is_address(audio) or audio.lower().startswith(("http", "data:"))
    )


def file_of(audio: str) -> str | None:
    """The file here that has it, of a cell its table; None = it is somewhere else."""
    found = _cell_of(audio)
    place = found[1] if found else audio
    return None if is_address(place) else place


def is_there(audio: str) -> bool:
    """Whether its file, or its table's, is here; of what is elsewhere, that is seen when it is read."""
    file = file_of(audio)
    return file is None or os.path.isfile(file)


def located(audio: str, folder: str) -> str:
    """What a table in this folder, or at this address, says of audio, wherever it is read from."""
    if audio[:5].lower() == "file:":
        from urllib.request import url2pathname  # here: flags are read without it

        return url2pathname(urlsplit(audio).path)
    if is_address(audio):
        return audio
    if is_address(folder):
        return f"{folder}/{audio}"
    return as_spelt(os.path.abspath(os.path.join(folder, audio)))


def source(audio: str) -> str | bytes:
    """The path of audio in a file, and the bytes of all other, as those of a file.

    Raises:
        OSError: It cannot be had.
        ValueError: A cell has no audio.
    """
    if found := _cell_of(audio):
        table, column, row = found[1], found[2], int(found[3])
        with _one_reads:
            value, rate = _value(table, column, row)
        try:
            return _as_bytes(value, rate, table)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{audio} has no audio ({error}).") from error
    return _remote(audio) if is_address(audio) else audio


def waveform(
    audio: str, start_s: float | None = None, end_s: float | None = None
) -> "tuple[np.ndarray, int]":
    """As `load_audio`, of audio wherever it is."""
    from audio_mtmm import load_audio  # here, as below: flags are read without NumPy

    return load_audio(source(audio), start_s, end_s)


def own_file(audio: str, start_s: float | None, end_s: float | None) -> tuple[bytes, str]:
    """The bytes of a file with this alone, and its suffix; a part is encoded anew, as FLAC."""
    if start_s is None and end_s is None:
        found = source(audio)
        suffix = os.path.splitext(audio)[1] if is_named(audio) else ""
        return (found if isinstance(found, bytes) else Path(found).read_bytes()), suffix
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, *waveform(audio, start_s, end_s), format="FLAC", subtype="PCM_24")
    return file.getvalue(), ".flac"


@lru_cache(maxsize=2)  # several utterances may be parts of one
def _remote(address: str) -> bytes:
    if address.lower().startswith(("http", "data:")):
        from audio_mtmm import fetch

        return fetch(address)
    with opened(address) as file:
        return file.read()


def opened(place: str) -> IO[bytes]:
    """A file here or at an address."""
    if not is_address(place):
        return open(place, "rb")
    import fsspec  # type: ignore[import-untyped]

    return fsspec.open(place).open()


def _as_bytes(value: Any, rate: Any, table: str) -> str | bytes:
    import soundfile

    from audio_mtmm import samples_of
    from waveforms_mtmm import check_rate, to_mono

    if isinstance(value, Mapping) and isinstance(value.get("bytes"), str):  # in JSON
        return base64.b64decode(value["bytes"], validate=True)
    value, rate = samples_of(value, rate)
    if value is None:
        raise ValueError("the cell is empty")
    if isinstance(value, str):
        return source(located(value, os.path.dirname(table)))
    if isinstance(value, bytes):
        return value
    file = io.BytesIO()  # .au, since libsndfile writes the time into a .wav of floats
    soundfile.write(file, to_mono(value), check_rate(rate), format="AU", subtype="FLOAT")
    return file.getvalue()


def _value(table: str, column: str, row: int) -> tuple[Any, Any]:
    """What is in a cell, and the row's sampling rate where it has one of its own."""
    if not table.lower().endswith(".parquet"):  # .jsonl
        with opened(table) as file:
            file.seek(_ends(table)[row - 1])
            found = json.loads(file.readline())
        return found[column], found.get("sampling_rate")
    group, at = _position(table, row)
    rows = _group(table, group, column, os.getpid()).slice(at, 1)
    rate = rows["sampling_rate"].to_pylist()[0] if "sampling_rate" in rows.column_names else None
    return rows[column].to_numpy()[0], rate  # lists of the column's type: it tells their scale


def _position(table: str, row: int) -> tuple[int, int]:
    """The row group of a row, and its place in it."""
    # Of this process: one that was forked must not read through its parent's connections.
    ends = _group_ends(table, os.getpid())
    group = bisect_left(ends, row)
    return group, row - 1 - (ends[group - 1] if group else 0)


def block_of(audio: str) -> str | None:
    """What is read with it, as a name: the row group of a cell of Parquet; None of others."""
    found = _cell_of(audio)
    if found is None or not found[1].lower().endswith(".parquet"):
        return None
    return f"{found[1]}#{_position(found[1], int(found[3]))[0]}"


@lru_cache(maxsize=256)
def _group_ends(table: str, process: int) -> list[int]:
    meta = parquet(table, process).metadata
    return [*accumulate(meta.row_group(i).num_rows for i in range(meta.num_row_groups))]


@lru_cache(maxsize=4)
def _ends(path: str) -> list[int]:
    """Where each line ends, in bytes; 0 before the first."""
    with opened(path) as file:
        return [*accumulate(map(len, file), initial=0)]


@lru_cache(maxsize=4)
def parquet(place: str, process: int) -> Any:
    """A `pyarrow.parquet.ParquetFile` of this process, here or at an address."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(
        opened(place) if is_address(place) else place, memory_map=not is_address(place)
    )


@lru_cache(maxsize=2)
def _group(place: str, group: int, column: str, process: int) -> Any:
    file = parquet(place, process)
    columns = [name for name in (column, "sampling_rate") if name in file.schema_arrow.names]
    return file.read_row_group(group, columns=columns)
