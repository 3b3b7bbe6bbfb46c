"""How files are written: whole or not at all, and where the disk refuses them, in one sentence.

Whoever is killed leaves no more than a hidden file ending in .tmp, which the next one sweeps away.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FORGOTTEN_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed

_SPACE = "Free some space there, or choose another place, and run the same command again."
_RIGHTS = "Choose a place that you may write to."
_KIND = (
    "There is a file where a folder must be, or the other way round, or a link that leads nowhere; "
    "choose another place."
)
_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EEXIST: _KIND,
    errno.ENOTDIR: _KIND,
    errno.EISDIR: _KIND,
    errno.ELOOP: _KIND,
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Says what to do where the disk refuses what the block writes at `path`.

    Args:
        path: Of a file, or of the folder that the block fills.

    Raises:
        OSError: As the block's own, or in the place of an error of a Rust library, whose types do
            not tell a full disk from other errors; the message names `path` and what to do.
    """
    try:
        yield
    except Exception as error:  # also tokenizers', which has no type of its own
        number = _number(error)
        if number not in _REMEDIES:
            raise
        reason = str(error)
        if number == errno.ENOSPC:
            reason += f"; {_free(Path(path)) / 2**20:,.1f} MiB are free on that disk"
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"{path} could not be written ({reason}). {_REMEDIES[number]}") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` and renames it to `path` if the block succeeds.

    A reader, or a run that is killed, therefore never sees half a file.

    Raises:
        OSError: The disk refuses the file, see [`writing`]; what was at `path` is untouched.
    """
    path = Path(path)
    # Not the process's number: processes of several machines or containers may share the folder.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # read-only by now, which must not hide what went wrong
                temporary.unlink()


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Delete what killed processes left half written; what may still be in work stays.

    Files of the future are of a clock that was set back, and as forgotten as old ones.
    """
    for path in folder.glob(pattern):
        with suppress(OSError):  # finished, or swept by another process; or not ours to delete
            if abs(time.time() - path.stat().st_mtime) > FORGOTTEN_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """A JSON object that a run left, with the keys that are needed of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was written by another version or program.
    """
    again = "move it away, and run the command that wrote it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {again}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object: another program wrote it; {again}.")
    if lacking := [name for name in needed if name not in content]:
        raise ValueError(
            f"{path} lacks {', '.join(lacking)}: another version or program wrote it; {again}."
        )
    return content


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a file of JSON, under a temporary name first; NaN is refused."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(error: Exception) -> int | None:
    """The operating system's number of an error, which libraries in Rust put into the text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _free(path: Path) -> int:
    """Bytes that are free on the disk where `path` is, or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
