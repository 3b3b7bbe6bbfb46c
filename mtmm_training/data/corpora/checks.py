"""What the readers share: finding and decoding files, and the checks that end every reading.

A reader collects utterances whose emotion is still the corpus's own label; `finish` does the rest.
"""

import csv
import io
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora.labels import Labels, emotion_map
from mtmm_training.data.utterances import Utterance, by_id, few

logger = logging.getLogger(__name__)

# Speaker or split -> own label (None where the corpus has no emotions) -> utterances.
Totals = Mapping[str, Mapping[Any, int]]

AUDIO = (".wav", ".flac")
GENDERS = {"F": "female", "M": "male"}
_LISTED = 5


def corpus_folder(folder: str | Path, layout: str) -> Path:
    """Returns the folder as an absolute path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(os.path.abspath(folder))
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path)!r}; give the one with {layout}.")
    return path


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorts, without hidden files such as the "._" twins that macOS leaves beside others."""
    return sorted(path for path in paths if not path.name.startswith("."))


def named_files(
    folder: Path, pattern: str, name: re.Pattern[str], layout: str
) -> dict[Path, re.Match[str]]:
    """Finds the .wav and .flac files below a folder, whose names say what they are.

    Args:
        folder: where to look.
        pattern: as of `Path.glob`.
        name: what every file's name, without its suffix, must match.
        layout: how the corpus lies in its folder, for messages.

    Returns:
        Path -> the match of its name, sorted by name.

    Raises:
        FileNotFoundError: there are none.
        ValueError: one name is there twice, or does not match.
    """
    found = [path for path in visible(folder.glob(pattern)) if path.suffix.lower() in AUDIO]
    if not found:
        raise FileNotFoundError(f"No audio in {str(folder)!r}; give the folder with {layout}.")
    matches = {path: name.fullmatch(path.stem) for path in found}
    counts = Counter(path.stem for path in found)
    refuse(f"{folder}: names that are there twice", [n for n, count in counts.items() if count > 1])
    refuse(
        f"{folder}: names that are not like {layout}", [str(p) for p, m in matches.items() if not m]
    )
    return {path: match for path, match in sorted(matches.items(), key=_by_stem) if match}


def _by_stem(item: tuple[Path, object]) -> str:
    return item[0].stem


def read_text(path: Path) -> str:
    """Decodes UTF-16 or UTF-8, with or without byte order mark, else the Windows code page 1252."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    if content[1:2] == b"\x00":  # UTF-16 without its mark
        return content.decode("utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_rows(path: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reads a CSV file with a header.

    Returns:
        "row 2" (the header is row 1) -> column -> value, stripped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file, a column is missing, or a row has another number of fields than
            the header.
    """
    try:
        records = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be taken apart ({error}).") from error
    header = [name.strip() for name in records[0]] if records else []
    missing = [name for name in columns if name not in header]
    refuse(f"{path}: columns that are missing among {', '.join(header)}", missing)
    rows = {f"row {number}": record for number, record in enumerate(records, start=1) if record}
    uneven = [number for number, record in rows.items() if len(record) != len(header)]
    refuse(f"{path}: rows without {len(header)} fields, as the header has", uneven)
    return {
        number: {name: value.strip() for name, value in zip(header, record, strict=True)}
        for number, record in list(rows.items())[1:]
    }


def utterances_of(
    rows: Mapping[str, Any], make: Callable[[Any], Utterance], what: str
) -> list[Utterance]:
    """Makes an utterance of every row.

    Args:
        rows: name of the row, for messages -> row.
        make: raises ValueError where it cannot.
        what: where the rows are from.

    Raises:
        ValueError: rows are bad; the message lists the first.
    """
    made, problems = [], []
    for name, row in rows.items():
        try:
            made.append(make(row))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    refuse(f"{what}: rows that cannot be read", problems)
    return made


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raises ValueError with the first problems, if there are any."""
    if problems:
        raise ValueError(listing(what, problems))


def listing(what: str, lines: Sequence[str], limit: int = _LISTED) -> str:
    """`what`, and below it the first lines and how many more there are."""
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    more = f"\n  and {len(lines) - limit:,} more" if len(lines) > limit else ""
    return f"{what}:{shown}{more}"


def finish(
    corpus: str,
    found: Iterable[Utterance],
    *,
    labels: Labels | None,
    expected: Totals | None,
    partial: bool,
    by: str = "speaker_id",
) -> list[Utterance]:
    """Leaves out what the label set does not have, checks files and totals, names the emotions.

    Args:
        corpus: its name in `LABELS`.
        found: all of the corpus, with its own labels as emotions.
        labels: as in `emotion_map`; None = the corpus has no emotions.
        expected: totals by own label; None = not checked.
        partial: whether to log and leave out what is missing, instead of raising.
        by: the field whose values are the keys of `expected`.

    Raises:
        ValueError: an own label is unknown, an id is doubled, or the totals are others.
        FileNotFoundError: an audio file is missing.
    """
    emotions: Mapping[Any, str | None] = {None: None}
    known = emotions
    if labels is not None:
        emotions, known = emotion_map(corpus, labels), emotion_map(corpus, "all")
    found = list(by_id(found).values())
    unknown = [f"{u.utterance_id}: {u.emotion!r}" for u in found if u.emotion not in known]
    refuse(f"{corpus}: labels other than {', '.join(map(str, known))}", unknown)
    kept = [u for u in found if u.emotion in emotions]
    left_out = Counter(u.emotion for u in found if u.emotion not in emotions)
    if left_out:
        shown = ", ".join(f"{label} {count:,}" for label, count in sorted(left_out.items()))
        logger.warning(
            "%s: left out %d of %d utterances, whose labels are not in this set: %s",
            corpus, left_out.total(), len(found), shown,
        )  # fmt: skip
    kept = _with_audio_files(corpus, kept, partial)
    if expected is not None:
        _check_totals(corpus, kept, emotions, expected, by, partial)
    silent = [u.utterance_id for u in kept if u.text is None]
    if silent:
        logger.warning("%s: %d utterances have no transcript: %s", corpus, len(silent), few(silent))
    return [replace(u, emotion=emotions[u.emotion]) for u in kept]


def _with_audio_files(corpus: str, utterances: list[Utterance], partial: bool) -> list[Utterance]:
    # A folder is listed once: a network disk answers hundreds of thousands of questions slowly.
    folders = {os.path.dirname(u.audio) for u in utterances if u.audio is not None}
    there = {
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
    }
    missing = [u.audio for u in utterances if u.audio is not None and u.audio not in there]
    if missing:
        message = listing(f"{corpus}: {len(missing):,} audio files are missing", missing)
        _tell(message, FileNotFoundError, partial)
    gone = set(missing)
    return [u for u in utterances if u.audio not in gone]


def _check_totals(
    corpus: str,
    utterances: Sequence[Utterance],
    emotions: Mapping[str | None, str | None],
    expected: Totals,
    by: str,
    partial: bool,
) -> None:
    actual = Counter((getattr(u, by), u.emotion) for u in utterances)
    wanted = Counter(
        {
            (group, label): count
            for group, counts in expected.items()
            for label, count in counts.items()
            if count and label in emotions
        }
    )
    if actual == wanted:
        return
    lines = _unequal("emotion", wanted, actual, lambda key: emotions[key[1]] or "no emotion")
    lines += _unequal(by.removesuffix("_id"), wanted, actual, lambda key: str(key[0]))
    if not lines:  # both margins agree, so only the cells can tell
        lines = _unequal("cell", wanted, actual, lambda key: " ".join(map(str, key)))
    there, total = actual.total(), wanted.total()
    what = f"{corpus}: {there:,} utterances found where the corpus has {total:,}"
    _tell(listing(what, lines, limit=40), ValueError, partial)


def _tell(message: str, error: type[Exception], partial: bool) -> None:
    """Logs what is missing where a part of the corpus is enough, else raises it."""
    if not partial:
        raise error(
            f"{message}\nComplete the corpus, or read what is there: partial=True (--partial)."
        )
    logger.warning("%s\nWhat is there is read.", message)


def _unequal(
    what: str, wanted: Counter[Any], actual: Counter[Any], name: Callable[[Any], str]
) -> list[str]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for side, counter in enumerate((wanted, actual)):
        for key, count in counter.items():
            counts[name(key)][side] += count
    return [
        f"{what} {key}: {there:,} found, {total:,} expected ({there - total:+,})"
        for key, (total, there) in sorted(counts.items())
        if total != there
    ]


def apart_by_split(corpus: str, utterances: Iterable[Utterance], what: str) -> list[Utterance]:
    """Names speakers apart by split, so that a fold accepts splits that share them; warns of it.

    Args:
        corpus: with which the speaker ids begin.
        utterances: each with its split.
        what: what the speaker ids stand for, in plural.
    """
    renamed = []
    splits = defaultdict(set)
    for u in utterances:
        splits[u.speaker_id].add(u.split)
        own = u.speaker_id.removeprefix(f"{corpus}_")
        renamed.append(replace(u, speaker_id=f"{corpus}_{u.split}_{own}"))
    shared = sum(len(names) > 1 for names in splits.values())
    logger.warning(
        "%s: %d of %d %s are in several official splits and now have one speaker id in each; use "
        "these utterances for protocol 'official' only", corpus, shared, len(splits), what,
    )  # fmt: skip
    return renamed
