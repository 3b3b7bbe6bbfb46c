"""How files are written: whole or not at all.

A process that is killed leaves no more than a hidden file ending in .tmp, which a later one deletes.
"""

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import tomllib
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FORGOTTEN_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed

# What says that a place cannot be written to, rather than that what is written is wrong.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST}
_REFUSALS |= {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}


def as_spelt(path: str) -> str:
    """The path as the disk spells it, where there is nothing at the path as it is given.

    A letter and its accent are one character in some names (NFC) and two in others (NFD), such as
    those of files from macOS.
    """
    if not path.isascii() and not os.path.exists(path):
        forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
        return next((other for other in forms if os.path.exists(other)), path)
    return path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Names the place where the disk refuses what the block writes there.

    Args:
        path: the file, or the folder that the block fills.

    Raises:
        OSError: as the block's own, or in the place of an error of a Rust library, whose types do
            not tell a full disk from other errors; the message names `path`.
    """
    try:
        yield
    except Exception as error:  # also tokenizers', which has no type of its own
        # Libraries in Rust put the operating system's number into the text alone.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        if number not in _REFUSALS:
            raise
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"{path} could not be written ({error}).") from error


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


def walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder by name, also behind links, but not round in circles; no hidden ones."""
    here = folder.resolve()
    for path in sorted(folder.iterdir()) if here not in above else ():
        if path.is_dir() and not path.name.startswith("."):
            yield from walk(path, above | {here})
        elif not path.name.startswith("."):
            yield path


@contextmanager
def without_collection() -> Iterator[None]:
    """Lets Python look for no garbage while many lasting objects are made, which takes it much of the time.

    They are not looked at later either.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Deletes what killed processes left half written; what may still be in work stays.

    A file from the future was written before a clock was set back: it is deleted as old ones are.
    """
    for path in folder.glob(pattern):
        with suppress(OSError):  # finished, or swept by another process; or not ours to delete
            if abs(time.time() - path.stat().st_mtime) > FORGOTTEN_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def appearing(out: Path, mark: str) -> Iterator[Path]:
    """Gives `out`'s name in a folder beside it; puts what is there in the place of an older one.

    Args:
        out: a folder, or a file.
        mark: a file that an older folder has.

    Raises:
        FileExistsError: `out` is a folder of something else.
        OSError: the disk refuses it; what is there is untouched.
    """
    if out.is_dir() and not (out / mark).is_file() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and has no {mark}; choose another folder.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent, f".{out.name}.*.tmp")
        with tempfile.TemporaryDirectory(".tmp", f".{out.name}.", out.parent) as temporary:
            staged = Path(temporary, out.name)
            yield staged
            if out.is_dir():  # a folder cannot be renamed onto another
                os.replace(out, Path(temporary, "older"))
            os.replace(staged, out)


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """Reads a JSON object that a run left, with the keys that are needed of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was written by another version or program.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        told = f"There is no {path}: it was never written, or it lies elsewhere."
        raise FileNotFoundError(told) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict) or not content.keys() >= set(needed):
        wanted = ", ".join(needed) or "a JSON object"
        raise ValueError(f"{path} needs {wanted}: another program or version wrote it.")
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file of ours."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def facts_beside(module: str, name: str) -> dict[str, Any]:
    """Reads the TOML file of this name beside a module, whose `__file__` is given."""
    return read_toml(Path(module).with_name(name))


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes a file of JSON, under a temporary name first; NaN is refused."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
