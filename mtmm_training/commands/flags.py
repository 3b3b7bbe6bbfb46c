"""What the modules of commands are made of: flags, their types, and refusals; light to import."""

import argparse
import json
from pathlib import Path
from typing import Any

from mtmm_training.data import hub
from mtmm_training.data.files import facts_beside
from mtmm_training.training.ending import WrongUse

FLAGS = facts_beside(__file__, "flags.toml")


class Advanced(str):
    """The help of a flag that only --help-all shows."""


def declare(
    parser: argparse.ArgumentParser, *sections: str, **more: dict[str, Any]
) -> dict[str, Any]:
    """Gives a parser the flags of flags.toml.

    Args:
        parser: The verb's; gets them.
        sections: Tables of the file, in their order in the help.
        more: By flag, what `add_argument` takes and only the program knows.

    Returns:
        The groups by their titles.
    """
    groups: dict[str, Any] = {"flags": parser}
    for title, flags in [group for section in sections for group in FLAGS[section].items()]:
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        exclusive = group.add_mutually_exclusive_group()
        for flag, said in flags.items():
            options = said | more.get(flag.lstrip("-"), {})
            if options.pop("of_hub", False):
                hub.add_flags(group.add_argument, Advanced)
                continue
            if isinstance(options.get("metavar"), list):  # a name for each value
                options["metavar"] = tuple(options["metavar"])
            if "type" in options:
                options["type"] = TYPES[options["type"]]
            if options.pop("seldom", False):
                options["help"] = Advanced(options["help"])
            place = exclusive if options.pop("either", False) else group
            place.add_argument(flag, **options)
    return groups


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
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N, for process I of N, from 0/N")
    return int(part), int(parts)


def folder(text: str) -> Path:
    """A folder's name; an empty one would be the current folder, which nobody means to fill."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of a folder, such as out/ours")
    return Path(text)


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return value


def json_object(text: str) -> dict[str, Any]:
    """As the text says; argparse names this function and the flag where it says something else."""
    return {**json.loads(text)}


def model(text: str) -> str:
    """The folder of a model, also where a run's is named; else the text, which may be an id on the Hub."""
    inner = Path(text, "model")
    plain = Path(text, "config.json").exists() or not (inner / "config.json").exists()
    return text if plain else str(inner)


KNOWN: tuple[Any, ...] = (
    model,
    int,
    float,
    Path,
    whole,
    count,
    channel,
    share,
    folder,
    seconds,
    json_object,
)
TYPES = {kind.__name__: kind for kind in KNOWN}
