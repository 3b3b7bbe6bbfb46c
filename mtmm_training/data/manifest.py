"""Manifests: tables of utterances as CSV, JSONL or Parquet files."""

import csv
import difflib
import io
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from mtmm_training.data.utterances import DIMENSIONS, VERBATIM, Utterance, by_id, few
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
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_LISTED = 5
# "speaker_id" is .82 near to "speaker"; names that mean something else ("uid") are below .81.
_NEAR_MISS = 0.81


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
    columns, rows = _read_table(path, problems)
    if not labelled:
        columns, rows = _without_labels(columns, rows)
    if columns or not problems:
        _check_columns(path, columns)
    base = Path(os.path.abspath(path.parent if audio_dir is None else audio_dir))
    uses = Counter(str(row.get("audio")) for row in rows.values())
    utterances: dict[int, Utterance] = {}
    first_use: dict[str, int] = {}
    for number, row in rows.items():
        try:
            values = _parse_row(row, dimension_range)
            if values["utterance_id"] is None:
                values["utterance_id"] = _id(values["audio"], number, uses, path.stem, base)
            if values["audio"] is not None:
                values["audio"] = os.path.abspath(base / values["audio"])
            values["corpus"] = values["corpus"] or corpus or path.stem
            utterance = Utterance(**values)
        except ValueError as error:
            problems[number] = str(error)
            continue
        first = first_use.setdefault(utterance.utterance_id, number)
        if first != number:
            problems[number] = f"id {utterance.utterance_id!r} is already that of row {first}."
        utterances[number] = utterance
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


# ---- files to rows -----------------------------------------------------------------------------
# A reader returns the columns and the rows by number; rows that it cannot take apart go into
# `problems`.

Row = dict[str, Any]
Table = tuple[list[str], dict[int, Row]]


def _read_table(path: Path, problems: dict[int, str]) -> Table:
    readers = {
        ".csv": _read_delimited,
        ".tsv": _read_delimited,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"`path`={str(path)!r} must end in one of {', '.join(readers)}.")
    try:
        return readers[path.suffix.lower()](path, problems)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error


def _read_delimited(path: Path, problems: dict[int, str]) -> Table:
    text = path.read_bytes().decode("utf-8-sig")
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
                    f"the number of fields is {len(record)}, in the header {len(columns)}; separate "
                    f"them by {delimiter!r}, and put fields that contain it in double quotes."
                )
    except csv.Error as error:
        problems[number + 1] = f"cannot be taken apart ({error}); check its double quotes."
    return columns, rows


def _read_jsonl(path: Path, problems: dict[int, str]) -> Table:
    rows: dict[int, Row] = {}
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems[number] = f"is not JSON ({error}); give one object per line."
            continue
        if isinstance(row, dict):
            rows[number] = row
        else:
            problems[number] = f"is {line.strip()!r:.60}; give one JSON object per line."
    return list(dict.fromkeys(column for row in rows.values() for column in row)), rows


def _read_parquet(path: Path, problems: dict[int, str]) -> Table:
    import pyarrow.parquet  # comes with the training extra

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        return table.column_names, dict(enumerate(table.to_pylist(), start=1))
    except (pyarrow.ArrowException, ValueError) as error:  # which do not say which file
        raise ValueError(f"{path} cannot be read as Parquet ({error}).") from error


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
    unknown = [column for column in columns if column not in COLUMNS]
    meant = {column: _meant_column(column) for column in unknown}
    misspelt = [column for column, known in meant.items() if known and known not in columns]
    problem = None
    if doubled:
        problem = f"column {doubled[0]!r} occurs twice"
    elif misspelt:
        problem = f"column {misspelt[0]!r} is not known; is {meant[misspelt[0]]!r} meant?"
    elif "speaker" not in columns or not {"audio", "text"} & set(columns):
        found = few(columns) or "none"
        problem = f"needs the columns 'speaker', and 'audio' or 'text'; it has {found}"
    if problem:
        raise ValueError(f"{path}: {problem}. Known columns: {', '.join(COLUMNS)}.")
    if unknown:
        logger.warning("%s: ignored columns: %s", path, ", ".join(map(repr, unknown)))


def _meant_column(column: str) -> str | None:
    name = column.strip().lower()
    for known, field in COLUMNS.items():
        if name == field:
            return known
    return next(iter(difflib.get_close_matches(name, COLUMNS, n=1, cutoff=_NEAR_MISS)), None)


# ---- rows to utterances ------------------------------------------------------------------------


def _parse_row(row: Row, dimension_range: Sequence[float]) -> dict[str, Any]:
    """Returns Utterance's fields, None where the row has nothing.

    Raises:
        ValueError: a value is not of its column's kind, or a dimension is off the scale.
    """
    values = {field: _parse(column, row.get(column)) for column, field in COLUMNS.items()}
    low, high = dimension_range
    for name in DIMENSIONS:
        if values[name] is not None and not low <= values[name] <= high:
            raise ValueError(
                f"`{name}`={row[name]!r} is outside {low} to {high}; correct it, or set "
                "`dimension_range` to the scale of the labels."
            )
    return values


def _parse(column: str, value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if column in _NUMBER_COLUMNS:
            return float(str(value))  # exact for floats; True is no number
        if column == "improvised":
            return _FLAGS[str(value).strip().lower()]
    except (ValueError, KeyError) as error:
        wanted = "true or false" if column == "improvised" else "a number such as 3.5"
        raise ValueError(f"`{column}`={value!r} is not {wanted}.") from error
    # Whole numbers are common as ids; 7.0 or a nested value is more likely a mistake.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"`{column}`={value!r} is not text; give a string.")
    return value if column in VERBATIM else value.strip()


def _id(audio: str | None, number: int, uses: Counter[str], stem: str, base: Path) -> str:
    """What an utterance without an id is called: its audio's path, and the row if others have it."""
    name = stem if audio is None else _relative(audio, base)
    return (name if audio is not None and uses[audio] == 1 else f"{name}#{number}").strip()


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
    lines = [f"\n  row {number}: {problems[number]}" for number in sorted(problems)[:_LISTED]]
    more = f"\n  and {len(problems) - len(lines)} more" if len(lines) < len(problems) else ""
    return f"{path}: {len(problems)} {what}:{''.join(lines)}{more}"


# ---- rows to files -----------------------------------------------------------------------------


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
