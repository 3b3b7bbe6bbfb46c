"""Manifests: tables of utterances as CSV, JSONL or Parquet files."""

import csv
import difflib
import io
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from mtmm_training.data.utterances import DIMENSIONS, Utterance, by_id
from mtmm_training.files import replacing

logger = logging.getLogger(__name__)

# A manifest's columns and the fields of Utterance that they fill.
COLUMNS = {
    "id": "utterance_id",
    "corpus": "corpus",
    "audio": "audio",
    "text": "text",
    "emotion": "emotion",
    "valence": "valence",
    "arousal": "arousal",
    "dominance": "dominance",
    "speaker": "speaker_id",
    "session": "session_id",
    "dialogue": "dialogue_id",
    "script": "script_id",
    "improvised": "improvised",
    "split": "split",
    "gender": "gender",
    "start": "start_s",
    "end": "end_s",
}
_NUMBER_COLUMNS = (*DIMENSIONS, "start", "end")
_VERBATIM_COLUMNS = ("audio", "text")
_LISTED = 5
# "speaker_id" is .82 near to "speaker"; names that mean something else ("uid") are below .81.
_NEAR_MISS = 0.81
# float() would also take "1_000", "nan" and full-width digits.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_manifest(
    path: str | Path,
    *,
    audio_dir: str | Path | None = None,
    corpus: str | None = None,
    dimension_range: Sequence[float] = (1.0, 5.0),
    labelled: bool = True,
    audio_exists: bool = True,
) -> list[Utterance]:
    """Reads a table with one utterance per row and the columns of `COLUMNS`.

    Only `speaker` and one of `audio` and `text` are required. Only an empty (or blank) field is
    absent: "NA" is a transcript. Rows that are empty throughout are skipped. Audio may lie anywhere,
    above the manifest's folder too: a manifest is its user's own. Ids, speakers and emotions are
    compared letter by letter; speakers that differ by case or Unicode form alone are warned of.

    Args:
        path: .csv or .tsv (comma, tab or semicolon, told from the header; UTF-8), .jsonl, .parquet.
        audio_dir: what relative audio paths are relative to; the manifest's folder by default.
        corpus: name for rows without one in column `corpus`; the file's stem by default.
        dimension_range: lowest and highest legal valence, arousal and dominance.
        labelled: if not, for predictions alone: emotions and dimensions are not read, speakers may be
            missing, and so may audio files, which is seen when each is read.
        audio_exists: refuse labelled rows whose audio file is missing; if not, that is seen when each
            is read.

    Returns:
        Utterances in the order of the rows, with absolute audio paths. Without an `id`, the id is
        the audio path as written; where that is absent or repeated, `<audio or stem>#<row>`.

    Raises:
        ValueError: the file cannot be read as what its name says; columns are missing, doubled or
            misspelt; or rows are bad: the first five are listed by number (CSV: the header is row 1;
            JSONL and Parquet: the first record is).
        FileNotFoundError: the manifest or audio files are missing.
    """
    path = Path(path)
    problems: dict[int, str] = {}
    columns, rows = _reader(path)(path, problems)
    if not columns:
        empty = f"{path} is empty; it needs utterances with 'speaker' and 'audio' or 'text'."
        raise ValueError(_listing(path, "bad rows", problems) if problems else empty)
    if not labelled:
        columns, rows = _without_labels(columns, rows)
    _check_columns(path, columns)
    parsed = {}
    for number, row in rows.items():
        try:
            parsed[number] = _parse_row(row, dimension_range)
        except ValueError as error:
            problems[number] = str(error)
    base = Path(os.path.abspath(path.parent if audio_dir is None else audio_dir))
    _fill_ids(parsed, path.stem, base)
    utterances = _make_utterances(parsed, corpus or path.stem, base, problems)
    if problems:
        raise ValueError(_listing(path, "bad rows", problems))
    if not utterances:
        raise ValueError(f"{path} has no rows; a manifest needs at least one utterance.")
    if labelled and audio_exists:
        _check_audio_exists(path, utterances)
    if labelled:
        _warn_of_like_speakers(path, utterances.values())
    return list(utterances.values())


def read_manifests(
    paths: Sequence[str | Path],
    *,
    audio_dir: str | Path | None = None,
    dimension_range: Sequence[float] = (1.0, 5.0),
    audio_exists: bool = True,
) -> list[Utterance]:
    """Reads one manifest or several, whose utterances are used together.

    Of several, ids become `<corpus>/<id>`. Speakers keep their names: one name is one person, in
    whichever manifest, so that no speaker gets into two splits; the log names those that are in
    several manifests. All share one scale of valence, arousal and dominance.

    Args:
        paths: as `read_manifest` takes them.
        audio_dir, dimension_range, audio_exists: as of `read_manifest`, for all of them.

    Raises:
        ValueError: two utterances have the same id, or a manifest is refused.
        FileNotFoundError: a manifest or audio files are missing.
    """
    tables = [
        read_manifest(
            path, audio_dir=audio_dir, dimension_range=dimension_range, audio_exists=audio_exists
        )
        for path in paths
    ]
    if len(tables) == 1:
        return tables[0]
    manifests = Counter(name for table in tables for name in {u.speaker_id for u in table})
    shared = sorted(name for name, count in manifests.items() if count > 1)
    if shared:
        logger.warning(
            "speakers of the same name in several manifests are taken for the same people: %d, first "
            "%r; give them other names if they are not",
            len(shared),
            shared[0],
        )
    together = [
        replace(u, utterance_id=f"{u.corpus}/{u.utterance_id}") for table in tables for u in table
    ]
    return list(by_id(together).values())


def write_manifest(utterances: Iterable[Utterance], path: str | Path) -> None:
    """Writes what `read_manifest` reads back as equal utterances.

    Audio paths below the manifest's folder are written relative to it, others as absolute. The
    file appears under its name only when it is complete.

    Args:
        utterances: with different ids.
        path: ends in .csv, .jsonl or .parquet.

    Raises:
        ValueError: two ids are the same, or the suffix is another one.
    """
    path = Path(path)
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ValueError(f"`path`={str(path)!r} must end in one of {', '.join(writers)}.")
    folder = Path(os.path.abspath(path.parent))
    rows = []
    for utterance in by_id(utterances).values():
        row = {column: getattr(utterance, field) for column, field in COLUMNS.items()}
        if utterance.audio is not None:
            row["audio"] = _relative(os.path.abspath(utterance.audio), folder)
        rows.append(row)
    with replacing(path) as temporary:
        writers[path.suffix](rows, temporary)


# Files to rows. A reader returns the columns and the rows by number; rows that it cannot take apart
# go into `problems`.

Row = dict[str, Any]
Table = tuple[list[str], dict[int, Row]]


def _reader(path: Path) -> Callable[[Path, dict[int, str]], Table]:
    readers = {
        ".csv": _read_delimited,
        ".tsv": _read_delimited,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"`path`={str(path)!r} must end in one of {', '.join(readers)}; save the table so."
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no manifest at {str(path)!r}; check the path.")
    if not path.is_file():  # a directory, or a pipe that would be waited for
        raise ValueError(f"`path`={str(path)!r} is a folder or a pipe; give a manifest's file.")
    return readers[path.suffix.lower()]


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
    if "\0" in text:
        raise ValueError(f"{path} has NUL bytes, as UTF-16 and damaged files do; save it as UTF-8.")
    return text


def _read_delimited(path: Path, problems: dict[int, str]) -> Table:
    text = _read_text(path)
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(",\t;", key=header.count)
    # newline="" keeps the line ends inside quoted fields; strict refuses an unclosed quote, which
    # would otherwise swallow the rest of the file.
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: dict[int, Row] = {}
    number = 0
    try:
        for number, record in enumerate(records, start=1):
            if not any(field.strip() for field in record):
                continue
            if not columns:
                columns = record
            elif len(record) == len(columns):
                rows[number] = dict(zip(columns, record, strict=True))
            else:
                problems[number] = (
                    f"has {len(record)} {'field' if len(record) == 1 else 'fields'}, the header has "
                    f"{len(columns)}; separate fields by {delimiter!r}, and put fields that contain it "
                    "in double quotes."
                )
    except csv.Error as error:
        problems[number + 1] = f"cannot be taken apart ({error}); check its double quotes."
    return columns, rows


def _read_jsonl(path: Path, problems: dict[int, str]) -> Table:
    rows: dict[int, Row] = {}
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            problems[number] = f"is not JSON ({error}); give one object per line."
            continue
        if isinstance(row, dict):
            rows[number] = row
        else:
            problems[number] = f"is {line.strip()!r}; give one JSON object per line."
    return list(dict.fromkeys(column for row in rows.values() for column in row)), rows


def _unique_keys(pairs: list[tuple[str, object]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} occurs twice")
    return row


def _read_parquet(path: Path, problems: dict[int, str]) -> Table:
    import pyarrow.parquet  # comes with the training extra

    with path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file).read()
            return table.column_names, dict(enumerate(table.to_pylist(), start=1))
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as Parquet ({str(error).strip()}); write it again."
            ) from error


def _without_labels(columns: list[str], rows: dict[int, Row]) -> Table:
    """The table without emotions and dimensions, and with some speaker in every row."""
    kept = [name for name in columns if name not in ("emotion", "speaker", *DIMENSIONS)]
    bare = {
        number: {name: row.get(name) for name in kept}
        | {"speaker": row.get("speaker") or "unknown"}
        for number, row in rows.items()
    }
    return [*kept, "speaker"], bare


def _check_columns(path: Path, columns: list[str]) -> None:
    """Refuses missing, doubled and misspelt columns; says which others are ignored."""
    doubled = [column for column in COLUMNS if columns.count(column) > 1]
    if doubled:
        raise ValueError(f"{path}: column {doubled[0]!r} occurs twice; keep one of the two.")
    unknown = [column for column in columns if column not in COLUMNS]
    for column in unknown:
        meant = _meant_column(column)
        if meant is not None and meant not in columns:
            raise ValueError(
                f"{path}: column {column!r} is not known; rename it to {meant!r} if that is meant. "
                f"Known columns: {', '.join(COLUMNS)}."
            )
    if "speaker" not in columns or not {"audio", "text"} & set(columns):
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or '(none)'}; a manifest needs 'speaker' "
            "and at least one of 'audio' and 'text'."
        )
    if unknown:
        logger.warning("%s: ignored columns: %s", path, ", ".join(map(repr, unknown)))


def _meant_column(column: str) -> str | None:
    name = column.strip().lower()
    for known, field in COLUMNS.items():
        if name == field:
            return known
    return next(iter(difflib.get_close_matches(name, COLUMNS, n=1, cutoff=_NEAR_MISS)), None)


# Rows to utterances.


def _parse_row(row: Row, dimension_range: Sequence[float]) -> dict[str, Any]:
    """Returns Utterance's fields, None where the row has nothing."""
    values: dict[str, Any] = {}
    for column, field in COLUMNS.items():
        value = row.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            values[field] = None
        elif column in _NUMBER_COLUMNS:
            values[field] = _number(column, value)
        elif column == "improvised":
            values[field] = _flag(column, value)
        else:
            values[field] = _string(column, value)
    low, high = dimension_range
    for name in DIMENSIONS:
        if values[name] is not None and not low <= values[name] <= high:
            raise ValueError(
                f"`{name}`={row[name]!r} is outside {low} to {high}; correct it, or set "
                "`dimension_range` to the scale of the labels."
            )
    if values["speaker_id"] is None:
        raise ValueError("`speaker` is empty; every utterance needs a speaker.")
    return values


def _number(column: str, value: object) -> float:
    text = str(value).strip()  # exact for floats
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    raise ValueError(
        f"`{column}`={value!r} is not a finite number; write it with a decimal point, like 3.5, or "
        "leave it empty."
    )


def _flag(column: str, value: object) -> bool:
    flags = {"true": True, "1": True, "false": False, "0": False}
    name = str(value).strip().lower()
    if name not in flags:
        raise ValueError(f"`{column}`={value!r} is not a flag; use true or false (1 or 0).")
    return flags[name]


def _string(column: str, value: object) -> str:
    # Whole numbers are common as ids; 7.0 or a nested value is more likely a mistake.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"`{column}`={value!r} is not text; give a string.")
    return value if column in _VERBATIM_COLUMNS else value.strip()


def _fill_ids(parsed: dict[int, dict[str, Any]], stem: str, base: Path) -> None:
    uses = Counter(values["audio"] for values in parsed.values())
    for number, values in parsed.items():
        if values["utterance_id"] is not None:
            continue
        audio = values["audio"]
        name = stem if audio is None else _relative(audio, base)
        unique = audio is not None and uses[audio] == 1
        values["utterance_id"] = (name if unique else f"{name}#{number}").strip()


def _make_utterances(
    parsed: dict[int, dict[str, Any]], corpus: str, base: Path, problems: dict[int, str]
) -> dict[int, Utterance]:
    utterances: dict[int, Utterance] = {}
    first_use: dict[str, int] = {}
    for number, values in parsed.items():
        first = first_use.setdefault(values["utterance_id"], number)
        if first != number:
            problems[number] = (
                f"id {values['utterance_id']!r} is already that of row {first}; ids must be unique."
            )
            continue
        if values["audio"] is not None:
            values["audio"] = os.path.abspath(base / values["audio"])
        values["corpus"] = values["corpus"] or corpus
        try:
            utterances[number] = Utterance(**values)
        except ValueError as error:
            problems[number] = str(error)
    return utterances


def _warn_of_like_speakers(path: Path, utterances: Iterable[Utterance]) -> None:
    """Two spellings of one person would be put on both sides of a fold."""
    spellings: dict[str, str] = {}
    for name in dict.fromkeys(u.speaker_id for u in utterances):
        like = spellings.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if like != name:
            logger.warning(
                "%s: speakers %r and %r are spelt alike and taken for different people; give them one "
                "name if they are not", path, like, name,
            )  # fmt: skip


def _check_audio_exists(path: Path, utterances: dict[int, Utterance]) -> None:
    exists = {u.audio: os.path.isfile(u.audio) for u in utterances.values() if u.audio is not None}
    missing = {
        number: f"no file {utterance.audio!r}"
        for number, utterance in utterances.items()
        if utterance.audio is not None and not exists[utterance.audio]
    }
    if missing:
        listing = _listing(path, "rows whose audio file is missing", missing)
        raise FileNotFoundError(f"{listing}\nCorrect the paths, or set `audio_dir` (--audio_dir).")


def _listing(path: Path, what: str, problems: dict[int, str]) -> str:
    numbers = sorted(problems)[:_LISTED]
    lines = [f"\n  row {number}: {problems[number]}" for number in numbers]
    if len(problems) == 1:
        what = what.replace("rows", "row", 1)
    first = f", the first {len(lines)}" if len(lines) < len(problems) else ""
    return f"{path}: {len(problems)} {what}{first}:{''.join(lines)}"


# Rows to files.


def _relative(audio: str, folder: Path) -> str:
    path = PurePath(audio)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else audio


def _write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)  # None is written as the empty field, a float exactly


def _write_jsonl(rows: list[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            present = {column: value for column, value in row.items() if value is not None}
            file.write(json.dumps(present, ensure_ascii=False) + "\n")


def _write_parquet(rows: list[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    types = dict.fromkeys(_NUMBER_COLUMNS, pyarrow.float64()) | {"improvised": pyarrow.bool_()}
    schema = pyarrow.schema([(column, types.get(column, pyarrow.string())) for column in COLUMNS])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
