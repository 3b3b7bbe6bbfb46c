"""Manifests: tables of utterances as CSV, JSONL or Parquet files."""

import csv
import difflib
import functools
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from mtmm_training.data import hub, sounds
from mtmm_training.data.files import replacing, without_collection
from mtmm_training.data.tables import Row, read_table, renamed
from mtmm_training.data.utterances import (
    DIMENSIONS,
    RATINGS,
    VERBATIM,
    Utterance,
    by_id,
    few,
    leading,
    listing,
)

logger = logging.getLogger(__name__)

# A manifest's columns and the fields of Utterance that they fill.
COLUMNS = {
    "id": "utterance_id", "corpus": "corpus", "audio": "audio", "text": "text",
    "emotion": "emotion", "valence": "valence", "arousal": "arousal", "dominance": "dominance",
    "speaker": "speaker_id", "session": "session_id", "dialogue": "dialogue_id",
    "script": "script_id", "improvised": "improvised", "split": "split", "gender": "gender",
    "start": "start_s", "end": "end_s", "votes": "votes",
    **{name: name for name in RATINGS.values()}, "raters": "raters",
}  # fmt: skip
_AUDIO_FILE = re.compile(r"\.(wav|flac|ogg|opus|mp3|m4a|aiff?)\s*$", re.IGNORECASE)
_OPINIONS = {"votes", *RATINGS.values(), "raters"}
_LABELS = {"emotion", *DIMENSIONS, *_OPINIONS}
_NUMBERS = (*DIMENSIONS, "start", "end")
_NO_TEXT = {*_NUMBERS, *_OPINIONS, "improvised"}
BLOCK = 100  # recordings that are read at once, as datasets writes them
EMPTY = {"nan", "NaN", "NaT", "<NA>", "None"}  # what pandas makes of an empty cell in text
_NO_NUMBER = {"NA", "N/A", "#N/A", "null", "NULL"}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
# "speaker_id" is .82 near to "speaker"; names that mean something else ("uid") are below .81.
_NEAR_MISS = 0.81

UNKNOWN_SPEAKER = "unknown"  # of rows without one, where labels are not read


@without_collection()
def read_manifest(
    path: str | Path,
    *,
    audio_dir: str | Path | None = None,
    dimension_range: Sequence[float] = (1.0, 5.0),
    labelled: bool = True,
    audio_exists: bool = True,
    groups: Sequence[str] = (),
    speakers: bool = True,
    label_map: Mapping[str, str | None] | None = None,
) -> list[Utterance]:
    """Reads a table with one utterance per row and the columns of `COLUMNS`.

    Only `speaker` and one of `audio` and `text` are required. A field is absent that is empty, blank,
    or as pandas writes it then; of text alone the first two, "NA" is a transcript. Rows that are empty
    throughout are skipped. Audio may be a path, above the manifest's folder too, an address, or in the
    table itself, see sounds.py. Ids, speakers and emotions are
    compared letter by letter; speakers that differ by case or Unicode form alone are warned of.
    Votes are a JSON object, ratings and raters JSON lists. Without a column `emotion`, it is the
    emotion with most votes; without one of a dimension, it is the mean of its ratings.

    Args:
        path: a data set as of hub.py, or a file: .csv or .tsv (comma, tab or semicolon, told from the
            header; UTF-8), .jsonl, .parquet.
        audio_dir: what relative audio paths are relative to; the manifest's folder by default.
        dimension_range: lowest and highest legal valence, arousal and dominance.
        labelled: if not, for predictions alone: emotions and dimensions are not read, speakers may be
            missing, and so may audio files, which is seen when each is read.
        audio_exists: refuse labelled rows whose audio file is missing; if not, that is seen when each
            is read.
        groups: further columns to keep, see `column_of`.
        speakers: refuse labelled rows without a speaker; if not, theirs is `UNKNOWN_SPEAKER`.
        label_map: other names for emotions; None = no label.

    Returns:
        Utterances in the order of the rows, with absolute audio paths or addresses. Without an `id`,
        the id is the audio path as written; where that is absent or repeated, `<audio or stem>#<row>`.
        Rows without a `corpus` have the file's stem.

    Raises:
        ValueError: the file cannot be read as what its name says; columns are missing, doubled or
            misspelt; or rows are bad: the first five are listed by number (CSV: the header is row 1;
            JSONL and Parquet: the first record is).
        FileNotFoundError: the manifest or audio files are missing.
    """
    problems: dict[int, str] = {}
    if hub.is_dataset(path):
        columns, rows = hub.read_dataset(str(path), problems, groups)
        base, stem = hub.folder_of(str(path)), hub.name_of(str(path))
    else:
        path = Path(path)
        base, stem = os.path.abspath(path.parent if audio_dir is None else audio_dir), path.stem
        columns, rows = renamed(path, *read_table(path, problems), groups)
    unread = () if labelled else _LABELS
    speakers = speakers and labelled
    if columns or not problems:
        read = [name for name in columns if name not in unread]
        _check_columns(path, [n for n in read if n in COLUMNS or n not in groups], speakers, rows)
    uses: Counter[str] = Counter()
    given = {c: field for c, field in COLUMNS.items() if c in columns and c not in unread}
    absent = dict.fromkeys(("utterance_id", "corpus", "audio", "speaker_id"))
    extra = [name for name in groups if name not in COLUMNS]
    has_opinions = not _OPINIONS.isdisjoint(given)
    utterances: dict[int, Utterance] = {}
    first_use: dict[str, int] = {}
    for number, row in rows.items():
        try:
            values: dict[str, Any] = dict(absent)
            for column, field in given.items():
                values[field] = _parse(column, row.get(column), dimension_range)
            audio = values["audio"]
            if values["utterance_id"] is None:
                of_file = audio is not None and sounds.is_named(audio)
                name = _relative(audio, Path(base)) if of_file else stem
                uses = uses or Counter(str(row.get("audio")) for row in rows.values())
                alone = of_file and uses[audio] == 1
                values["utterance_id"] = (name if alone else f"{name}#{number}").strip()
            if audio is not None:
                values["audio"] = sounds.located(audio, base)
            if not speakers and values["speaker_id"] is None:
                values["speaker_id"] = UNKNOWN_SPEAKER
            values["corpus"] = values["corpus"] or stem
            if label_map:
                _rename_emotions(values, label_map)
            if has_opinions:
                _take_from_votes(values, columns)
            if extra:
                kept = ((n, str(row.get(n) or "").strip()) for n in extra)
                values["groups"] = tuple((name, value) for name, value in kept if value)
            utterances[number] = Utterance(**values)
        except ValueError as error:
            problems[number] = str(error)
            continue
        first = first_use.setdefault(values["utterance_id"], number)
        if first != number:
            problems[number] = f"id {values['utterance_id']!r} is already that of row {first}."
    if problems or not utterances:
        raise ValueError(
            _of_rows(path, "bad rows", problems) if problems else f"{path} has no rows."
        )
    if labelled and audio_exists:
        _refuse_missing(path, utterances)
    if labelled:
        _warn_of_like_speakers(path, utterances.values())
    return list(utterances.values())


def _refuse_missing(path: str | Path, utterances: Mapping[int, Utterance]) -> None:
    exists = functools.cache(sounds.is_there)  # many rows may be parts of one file
    missing = {
        number: f"no file {u.audio!r:.300}"
        for number, u in utterances.items()
        if u.audio is not None and not exists(u.audio)
    }
    if missing:
        listed = _of_rows(path, "rows whose audio file is missing", missing)
        raise FileNotFoundError(f"{listed}\nCorrect the paths, or set `audio_dir` (--audio_dir).")


def _rename_emotions(values: dict[str, Any], names: Mapping[str, str | None]) -> None:
    """Emotions and votes under other names, or without those that are None."""
    emotion, votes = values.get("emotion"), values.get("votes") or {}
    values["emotion"] = emotion and names.get(emotion, emotion)
    kept: dict[str, float] = {}
    for name, count in votes.items():
        if (ours := names.get(name, name)) is not None:
            kept[ours] = kept.get(ours, 0.0) + count
    if votes:
        values["votes"] = kept or None


def _take_from_votes(values: dict[str, Any], columns: Sequence[str]) -> None:
    """Emotion and dimensions of a row whose table has votes and ratings alone."""
    if "emotion" not in columns and values.get("votes") is not None:
        values["emotion"] = leading(values["votes"])
    for mean, ratings in RATINGS.items():
        if mean not in columns and values.get(ratings):
            values[mean] = math.fsum(values[ratings]) / len(values[ratings])


def _of_rows(path: str | Path, what: str, problems: dict[int, str]) -> str:
    lines = [f"row {number}: {problem}" for number, problem in sorted(problems.items())]
    return listing(f"{path}: {len(problems)} {what}", lines)


def read_manifests(paths: Sequence[str | Path], **options: Any) -> list[Utterance]:
    """Reads one manifest or several, whose utterances are used together.

    Of several, ids become `<corpus>/<id>`. Speakers keep their names: one name is one person, in
    whichever manifest, so that no speaker gets into two splits; the log names those that are in
    several manifests. All share one scale of valence, arousal and dominance.

    Args:
        paths: as `read_manifest` takes them.
        options: of `read_manifest`, for all of them.

    Raises:
        ValueError: two utterances have the same id, or a manifest is refused.
        FileNotFoundError: a manifest or audio files are missing.
    """
    tables = [read_manifest(path, **options) for path in paths]
    if len(tables) == 1:
        return tables[0]
    manifests = Counter(name for table in tables for name in {u.speaker_id for u in table})
    shared = sorted(name for name, count in manifests.items() if count > 1)
    if shared:
        logger.warning(
            "speakers of the same name in several manifests are taken for the same people: %d, first "
            "%r; give them other names if they are not", len(shared), shared[0],
        )  # fmt: skip
    together = (u for table in tables for u in table)
    renamed = (replace(u, utterance_id=f"{u.corpus}/{u.utterance_id}") for u in together)
    return list(by_id(renamed).values())


def column_of(utterance: Utterance, column: str) -> str | None:
    """What a manifest's row said in a column: one of `COLUMNS`, or one that was kept as a group."""
    if column not in COLUMNS:
        return dict(utterance.groups).get(column)
    value = getattr(utterance, COLUMNS[column])
    return None if value is None else str(value)


def write_manifest(utterances: Iterable[Utterance], path: str | Path) -> None:
    """Writes what `read_manifest` reads back as equal utterances.

    Audio paths below the manifest's folder are written relative to it, others as absolute. Parquet gets
    the recordings themselves, as datasets writes them; a part of one becomes a recording of its own. The
    file appears under its name only when it is complete.

    Args:
        utterances: with different ids.
        path: ends in .csv or .parquet.

    Raises:
        ValueError: two ids are the same, or the suffix is another one.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"`path`={str(path)!r} must end in one of .csv, .parquet.")
    folder, inside = Path(os.path.abspath(path.parent)), path.suffix == ".parquet"
    rows: list[Row] = []
    columns = list(COLUMNS)
    for utterance in by_id(utterances).values():
        row = {column: getattr(utterance, field) for column, field in COLUMNS.items()}
        row |= dict(utterance.groups)
        for column in _OPINIONS:
            if row[column] is not None:
                row[column] = json.dumps(row[column], ensure_ascii=False)
        columns += [column for column in row if column not in columns]
        audio, part = utterance.audio, (utterance.start_s, utterance.end_s)
        if audio is not None and inside:
            content, suffix = sounds.own_file(audio, *part)
            row["audio"] = {"bytes": content, "path": f"{utterance.utterance_id}{suffix}"}
            row["start"] = row["end"] = None
        elif audio is not None:
            row["audio"] = _relative(sounds.located(audio, os.getcwd()), folder)
        rows.append(row)
    with replacing(path) as temporary:
        if not inside:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)  # None is written as the empty field, a float exactly
            return
        import pyarrow.parquet  # comes with the training extra

        types = dict.fromkeys(_NUMBERS, pyarrow.float64()) | {"improvised": pyarrow.bool_()}
        types["audio"] = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        known = {"info": {"features": {"audio": {"_type": "Audio"}}}}
        fields = [(column, types.get(column, pyarrow.string())) for column in columns]
        schema = pyarrow.schema(fields, {"huggingface": json.dumps(known)})
        table = pyarrow.Table.from_pylist(rows, schema)
        pyarrow.parquet.write_table(table, temporary, row_group_size=BLOCK)


def _relative(audio: str, folder: Path) -> str:
    path = PurePath(audio)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else audio


# ---- rows to utterances ------------------------------------------------------------------------


def _check_columns(
    path: str | Path, columns: list[str], speakers: bool, rows: Mapping[int, Row]
) -> None:
    """Refuses missing, doubled and misspelt columns; says which others are ignored."""
    doubled = [column for column in COLUMNS if columns.count(column) > 1]
    unknown = [column for column in columns if column not in COLUMNS]
    misspelt: dict[str, str] = {}
    for column in unknown:
        name = column.strip().lower()
        near = [known for known, field in COLUMNS.items() if field == name]
        near += difflib.get_close_matches(name, COLUMNS, n=1, cutoff=_NEAR_MISS)
        if near and near[0] not in columns:
            misspelt[column] = near[0]
    first = next(iter(rows.values()), {})
    heard = [column for column in unknown if _AUDIO_FILE.search(str(first.get(column, "")))]
    problem = None
    if doubled:
        problem = f"column {doubled[0]!r} occurs twice"
    elif misspelt:
        wrong, known = next(iter(misspelt.items()))
        problem = f"column {wrong!r} is not known; is {known!r} meant?"
    elif heard and "audio" not in columns:  # a model of the words alone is not what is wanted
        problem = f"column {heard[0]!r} has audio files; call it 'audio'"
    elif (speakers and "speaker" not in columns) or not {"audio", "text"} & set(columns):
        found = few(columns) or "none"
        needed = "the columns 'speaker', and" if speakers else "a column"
        problem = f"needs {needed} 'audio' or 'text'; it has {found}"
        if speakers and {"audio", "text"} & set(columns):
            problem += (
                ". Folds keep speakers apart: without their names one voice may be in training and test, "
                "and scores are too high. --speakers_unknown accepts that"
            )
    if problem:
        ended = problem if problem.endswith("?") else f"{problem}."
        raise ValueError(f"{path}: {ended} Known columns: {', '.join(COLUMNS)}.")
    if unknown:
        logger.warning("%s: ignored columns: %s", path, ", ".join(map(repr, unknown)))


def _parse(column: str, value: Any, dimension_range: Sequence[float]) -> Any:
    """The value as the field of Utterance has it, None where the row has nothing.

    Raises:
        ValueError: it is not of its column's kind, or a dimension is off the scale.
    """
    if isinstance(value, str):
        bare = value.strip()
        is_text = column not in _NO_TEXT
        if not bare or (column != "text" and bare in EMPTY) or (not is_text and bare in _NO_NUMBER):
            return None
        if is_text:
            return value if column in VERBATIM else bare
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    problem = None
    if column in _OPINIONS:
        return _parse_opinions(column, value, dimension_range)
    if column in _NUMBERS:
        try:
            number = float(str(value))  # exact for floats; True is no number
        except ValueError:
            problem = "is not a number such as 3.5"
        else:
            low, high = dimension_range
            if column not in DIMENSIONS or low <= number <= high:
                return number
            problem = f"is outside {low} to {high}, the `dimension_range`"
    elif column == "improvised":
        if (flag := str(value).strip().lower()) in _FLAGS:
            return _FLAGS[flag]
        problem = "is not true or false"
    # Whole numbers are common as ids, and floats in columns of pandas that have an empty cell.
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
        return str(int(value))
    raise ValueError(f"`{column}`={value!r:.80} {problem or 'is not text'}.")


def _parse_opinions(column: str, value: Any, dimension_range: Sequence[float]) -> Any:
    """Votes as a dict of numbers, ratings and raters as tuples; of a Parquet map, its pairs."""
    kind, wanted = (dict, '{"angry": 2}') if column == "votes" else (list, "[3, 4]")
    wanted = '["anna", "ben"]' if column == "raters" else wanted
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        if kind is dict:
            return {str(k): float(n) for k, n in dict(parsed).items() if n is not None}
        if not isinstance(parsed, list):
            raise TypeError(parsed)
        if column == "raters":
            return tuple(str(name) for name in parsed)
        ratings = tuple(float(number) for number in parsed)
    except (ValueError, TypeError):
        raise ValueError(f"`{column}`={value!r:.80} is not JSON such as {wanted}.") from None
    low, high = dimension_range
    if outside := [rating for rating in ratings if not low <= rating <= high]:
        problem = f"is outside {low} to {high}, the `dimension_range`"
        raise ValueError(f"`{column}`={outside[0]!r} {problem}.")
    return ratings


def _warn_of_like_speakers(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Two spellings of one person would be put on both sides of a fold."""
    spellings: dict[str, str] = {}
    for name in dict.fromkeys(u.speaker_id for u in utterances):
        like = spellings.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if like != name:
            logger.warning(
                "%s: speakers %r and %r are spelt alike and taken for different people; give them one "
                "name if they are not", path, like, name,
            )  # fmt: skip
