"""Tables as rows: CSV, JSON lines, Parquet and Arrow files, as they are written by their tools."""

import csv
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtmm_training.data import sounds

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Table = tuple[list[str], dict[int, Row]]  # columns, and rows by number
# What other tables call them; a lower-case name that is here is read as the column it stands for.
ALIASES = {
    "audio": "path file file_name filename file_path filepath wav audio_path audio_file audio_filepath "
    "audio_file_name",
    "text": "transcript transcription sentence utterance",
    "emotion": "label emotion_label",
    "speaker": "speaker_id spk_id client_id",
}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(place: str | Path, problems: dict[int, str]) -> Table:
    """Reads a table; of audio in its cells the addresses, see sounds.py.

    Args:
        place: a path or address that ends in one of `SUFFIXES`.
        problems: gets what is wrong with rows that cannot be taken apart, by number.

    Raises:
        ValueError: the file cannot be read as what its name says.
    """
    suffix = Path(place).suffix.lower()
    place = str(place) if sounds.is_address(str(place)) else os.path.abspath(place)
    if suffix not in SUFFIXES:
        raise ValueError(f"`path`={place!r} must end in one of {', '.join(SUFFIXES)}.")
    try:
        if suffix == ".parquet":
            return read_parquet(place)
        with sounds.opened(place) as file:
            text = file.read().decode("utf-8-sig")
        return (_read_jsonl if suffix == ".jsonl" else read_delimited)(text, problems, place)
    except ValueError as error:  # of libraries, which do not say which file
        raise ValueError(f"{place} cannot be read as {suffix} ({error}).") from error


def renamed(path: object, columns: list[str], rows: dict[int, Row], kept: Sequence[str]) -> Table:
    """The table with the columns of `ALIASES` under our names, but for those that are kept; says which.

    Raises:
        ValueError: two columns may be the same one.
    """
    ours: dict[str, str] = {}
    for name, others in ALIASES.items():
        free = [column for column in columns if column not in kept]
        found = [column for column in free if column.strip().lower() in others.split()]
        if name in columns or not found:
            continue
        if len(found) > 1:
            raise ValueError(
                f"{path}: columns {' and '.join(map(repr, found))} may each be {name!r}; call one so."
            )
        ours[found[0]] = name
        if path is not None:
            logger.warning("%s: column %r is read as %r", path, found[0], name)
    if not ours:
        return columns, rows
    rows = {n: {ours.get(name, name): v for name, v in row.items()} for n, row in rows.items()}
    return [ours.get(column, column) for column in columns], rows


def read_delimited(text: str, problems: dict[int, str], place: str = "") -> Table:
    """Takes apart CSV, whose delimiter (comma, tab or semicolon) the header tells.

    Args:
        text, place: the file's.
        problems: gets what is wrong with a row, by its number; the header is row 1.

    Returns:
        The columns, and row number -> column -> value. Rows without any value are left out.
    """
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(",\t;", key=header.count)
    # newline="" keeps the line ends inside quoted fields; strict refuses an unclosed quote, which
    # would otherwise swallow the rest of the file.
    records: Iterator[list[str]] = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True
    )
    if delimiter == "\t":
        lines = [line.split("\t") for line in re.split(r"\r?\n|\r", text)]
        if len({len(line) for line in lines if any(line)}) == 1:
            # Tools that write tabs seldom quote, and a lone quote would swallow the rows up to the next.
            records = iter([[unquoted(field) for field in line] for line in lines])
    columns: list[str] = []
    rows: dict[int, Row] = {}
    number = 0
    try:
        for number, record in enumerate(records, start=1):
            if not any(map(str.strip, record)):
                continue
            if not columns:
                columns = record
            elif len(record) == len(columns):
                rows[number] = dict(zip(columns, record, strict=True))
            else:
                problems[number] = (
                    f"the number of fields is {len(record)}, in the header {len(columns)}; put fields "
                    f"that contain {delimiter!r} in double quotes."
                )
    except csv.Error as error:
        problems[number + 1] = f"cannot be taken apart ({error}); check its double quotes."
    return columns, rows


def unquoted(field: str) -> str:
    """A field of tab-separated text, whose quotes are its own unless they are as CSV's."""
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_quoted else field


def _read_jsonl(text: str, problems: dict[int, str], place: str) -> Table:
    rows: dict[int, Row] = {}
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems[number] = f"is not JSON ({error}); give one object per line."
            continue
        if isinstance(row, dict):
            for name, value in row.items():
                inside = {"array", "bytes", "path"} & set(value if isinstance(value, dict) else ())
                is_list = name == "audio" and isinstance(value, list)
                if inside or (is_list and not any(isinstance(item, str) for item in value[:1])):
                    row[name] = sounds.cell(place, name, number)
            rows[number] = row
        else:
            problems[number] = f"is {line.strip()!r:.60}; give one JSON object per line."
    return list(dict.fromkeys(column for row in rows.values() for column in row)), rows


def read_parquet(place: str) -> Table:
    """Reads a Parquet file, here or at an address, whose rows are numbered from 1.

    Audio itself is not read. Of datasets' features, class labels become their names, and a column of
    audio, where it is the only one, is called so. Without a column `id`, audio's own names are the
    ids, if they differ.
    """
    from pyarrow import types  # comes with the training extra

    file = sounds.parquet(place, os.getpid())
    schema = file.schema_arrow
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    inner = {
        field.name: {f.name: str(f.type) for f in field.type} if types.is_struct(field.type) else {}
        for field in schema
    }
    if twice := [name for name in inner if schema.names.count(name) > 1]:
        raise ValueError(f"column {twice[0]!r} occurs twice")
    heard = [name for name in inner if {"bytes", "array"} & inner[name].keys()]
    kind = str(schema.field("audio").type) if "audio" in inner and not inner["audio"] else ""
    if "binary" in kind or "list" in kind:
        heard.append("audio")
    read = [name for name in inner if name not in heard]
    read += [f"{name}.path" for name in heard if "path" in inner[name]]
    columns = file.read(columns=read).to_pydict()
    for name, feature in described.get("info", {}).get("features", {}).items():
        if feature.get("_type") == "ClassLabel" and name in columns:
            names = dict(enumerate(feature["names"]))  # without -1, which is no label
            columns[name] = [names.get(number) for number in columns[name]]
    for name in heard:
        there = columns.pop(name, None)
        if there is None:  # without paths, only the sounds themselves say which cells are empty
            groups = (file.read_row_group(i, [name]) for i in range(file.num_row_groups))
            there = [{} if v else None for g in groups for v in g[name].is_valid().to_pylist()]
        paths = [(value or {}).get("path") for value in there]
        if "id" not in columns and len(heard) == 1 and len({*paths, None}) == len(paths) + 1:
            columns["id"] = paths
        own = "audio" if len(heard) == 1 and "audio" not in columns else name
        columns[own] = [
            None if value is None else sounds.cell(place, name, row)
            for row, value in enumerate(there, start=1)
        ]
    rows = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    return list(columns), dict(enumerate(rows, start=1))
