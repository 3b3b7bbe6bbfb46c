"""What values of command-line flags must be: types for argparse, light to import."""

import argparse
from pathlib import Path


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def folder(text: str) -> Path:
    """A folder's name; an empty one would be the current folder, which nobody means to fill."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of a folder, such as out/ours")
    return Path(text)
