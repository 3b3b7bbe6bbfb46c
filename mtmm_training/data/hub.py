"""Data sets of the Hub, and folders that datasets reads, in the place of a manifest.

dataset:OWNER/NAME@REVISION?config=NAME&split=NAME names one, several splits with commas; all but the
name may be left out. Tables and recordings are read where they are, and nothing is kept here.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlencode

from mtmm_training.data import sounds
from mtmm_training.data.tables import SUFFIXES, Row, Table, read_table, renamed

PREFIX = "dataset:"
SPLIT_NAMES = {"train": "train", "test": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def add_flags(add: Callable[..., Any], advanced: Callable[[str], str]) -> None:
    """--dataset and what goes with it, to a parser or a group of one; marks help that is seldom needed."""
    unset = argparse.SUPPRESS
    add("--dataset", nargs="+", default=unset, metavar="PLACE",
        help="data sets, OWNER/NAME[@REVISION] of the Hub or folders, as manifests")  # fmt: skip
    config, split = "of the data set, if it has several", "with commas; all if not given"
    add("--dataset_config", default=unset, metavar="NAME", help=advanced(config))
    add("--dataset_split", default=unset, metavar="NAMES", help=advanced(split))


def places_of(options: argparse.Namespace) -> list[str]:
    """What the flags of `add_flags` say, in the place of manifests."""
    said = {"config": "dataset_config", "split": "dataset_split"}
    more = urlencode(
        {k: getattr(options, flag) for k, flag in said.items() if hasattr(options, flag)}
    )
    names = getattr(options, "dataset", [])
    names = [os.path.abspath(name) if os.path.isdir(name) else name for name in names]
    return [f"{PREFIX}{name}{'?' if more else ''}{more}" for name in names]


def is_dataset(place: object) -> bool:
    """Whether this names a data set, no file."""
    return str(place).startswith(PREFIX)


def _parts(place: str) -> tuple[str, str | None, dict[str, str]]:
    """Name, revision, and what follows them."""
    name, _, more = place.removeprefix(PREFIX).partition("?")
    name, at, revision = (name, "", "") if os.path.isdir(name) else name.partition("@")
    return name, revision or None, {key: values[0] for key, values in parse_qs(more).items()}


@lru_cache(maxsize=8)
def _builder(place: str) -> Any:
    from datasets import load_dataset_builder  # comes with the training extra

    name, revision, more = _parts(place)
    return load_dataset_builder(name, more.get("config"), revision=revision)


def pinned(place: str) -> str:
    """The same data set at the commit that its revision stands for now; a manifest as it is."""
    if not is_dataset(place) or os.path.isdir(_parts(place)[0]):
        return place
    name, _, more = _parts(place)
    return f"{PREFIX}{name}@{_builder(place).hash}{'?' if more else ''}{urlencode(more)}"


def described(places: Sequence[str]) -> list[dict[str, Any]]:
    """What results.json says of the data sets among these: id, revision, config, splits, fingerprint."""
    found = []
    for place in filter(is_dataset, places):
        (name, revision, _), builder = _parts(place), _builder(place)
        known = {"config": builder.config.name, "splits": list(_files(place))}
        found.append({"id": name, "revision": revision} | known | {"fingerprint": builder.hash})
    return found


def _files(place: str) -> dict[str, list[str]]:
    """The files of each split that is named; of all, if none is."""
    found = (_builder(place).config.data_files or {}).items()
    files = {str(split): list(map(str, names)) for split, names in found}
    wanted = _parts(place)[2].get("split", ",".join(files)).split(",")
    if missing := [split for split in wanted if split not in files]:
        raise ValueError(
            f"{place} has no split {missing[0]!r}; it has {', '.join(files) or 'none'}."
        )
    return {split: files[split] for split in wanted}


def folder_of(place: str) -> str:
    """Where its files begin: a folder, or an address."""
    return str(_builder(place).base_path)


def name_of(place: str) -> str:
    """Without its owner."""
    return os.path.basename(_parts(place)[0])


def read_dataset(place: str, problems: dict[int, str], kept: Sequence[str] = ()) -> Table:
    """Reads the tables of a data set; without any, the recordings themselves, by folders of emotions.

    Args:
        place: as of this module.
        problems: as of `read_table`.
        kept: columns that keep their names.

    Returns:
        As `read_table`, with the split's name where there are several. Audio is located.

    Raises:
        ValueError: there is no such split, or nothing in it that can be read.
        OSError: it cannot be had.
    """
    files, features = _files(place), _builder(place).info.features or {}
    columns, rows = dict[str, None](), list[Row]()
    for split, names in files.items():
        first, tables = len(rows), [name for name in names if name.lower().endswith(SUFFIXES)]
        for table in tables:
            bad: dict[int, str] = {}
            own, numbered = read_table(table, bad)
            problems |= {len(rows) + n: f"{table}: {problem}" for n, problem in bad.items()}
            _name_classes(numbered.values(), features)
            # Said once: a data set may have thousands of tables.
            own, numbered = renamed(None if rows else table, own, numbered, kept)
            for row in numbered.values():
                if row.get("audio"):
                    row["audio"] = sounds.located(str(row["audio"]), os.path.dirname(table))
            columns |= dict.fromkeys(own)
            rows += numbered.values()
        heard = [] if tables else [n for n in names if n.lower().endswith(sounds.SUFFIXES)]
        folders = [os.path.basename(os.path.dirname(name)) for name in heard]
        several = len(set(folders)) > 1
        for name, folder in zip(heard, folders, strict=True):
            rows.append({"audio": name} | ({"emotion": folder} if several else {}))
            columns |= dict.fromkeys(rows[-1])
        for row in rows[first:] if len(files) > 1 else ():
            if row.get("split") is None:
                row["split"] = SPLIT_NAMES.get(split.lower())
                columns["split"] = None
    if not rows and not problems:
        ends = sorted({os.path.splitext(name)[1] for names in files.values() for name in names})
        raise ValueError(f"{place} has files of {', '.join(ends)}, and no tables or recordings.")
    counts = Counter(row.get("id") for row in rows)
    for row in rows:
        if (
            row.get("id") is not None and counts[row["id"]] > 1
        ):  # files of one name in several splits
            row["id"] = f"{row.get('split')}/{row['id']}"
    return list(columns), dict(enumerate(rows, start=1))


def _name_classes(rows: Iterable[Row], features: Mapping[str, Any]) -> None:
    """Class labels by their names: a number, of Parquet a name already."""
    for name, feature in features.items():
        if type(feature).__name__ == "ClassLabel":
            names = {str(i): label for i, label in enumerate(feature.names)}
            for row in rows:
                label = row.get(name)
                row[name] = label if label in feature.names else names.get(str(label))
