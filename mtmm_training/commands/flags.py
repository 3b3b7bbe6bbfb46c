"""What the modules of commands are made of: types of flags, marks, and refusals; light to import."""

import argparse
from pathlib import Path

from mtmm_training.training.ending import WrongUse


class Advanced(str):
    """The help of a flag that only --help-all shows."""


def refuse(*problems: tuple[object, str]) -> None:
    """Raises WrongUse with the first text whose condition is true."""
    for wrong, text in problems:
        if wrong:
            raise WrongUse(text)


def whole(text: str, least: int = 0) -> int:
    """A whole number of at least 0, or of at least another one."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, least=1)


def channel(text: str) -> int | str:
    """The number of a channel, from 0, or "each"."""
    return text if text == "each" else whole(text)


def share(text: str) -> tuple[int, int]:
    """ "1/4" as (1, 4)."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share; machine or process I of N is I/N, from 0/N to N-1/N"
        )
    return int(part), int(parts)


def folder(text: str) -> Path:
    """A folder's name; an empty one would be the current folder, which nobody means to fill."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of a folder, such as out/ours")
    return Path(text)
