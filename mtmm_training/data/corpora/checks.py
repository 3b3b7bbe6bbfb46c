"""What the readers share: finding and decoding files, and the checks that end every reading.

A reader collects utterances whose emotion is still the corpus's own label; `finish` does the rest.
"""

import csv
import io
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora.labels import Labels, emotion_map
from mtmm_training.data.utterances import Utterance, by_id

logger = logging.getLogger(__name__)

# Speaker or split -> own label (None where the corpus has no emotions) -> utterances.
Totals = Mapping[str, Mapping[Any, int]]

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


def audio_files(folder: Path, pattern: str, layout: str) -> dict[str, Path]:
    """Finds the .wav and .flac files below a folder.

    Returns:
        Name without suffix -> path, sorted by name.

    Raises:
        FileNotFoundError: there are none, or what is there are stand-ins of git-lfs.
        ValueError: one name is there twice.
    """
    files: dict[str, Path] = {}
    for path in visible(folder.glob(pattern)):
        if path.suffix.lower() not in (".wav", ".flac"):
            continue
        if path.stem in files:
            raise ValueError(f"{path.stem!r} is there twice, {files[path.stem]} and {path}.")
        files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"No audio in {str(folder)!r}; give the folder with {layout}.")
    first = next(iter(files.values()))
    with first.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise FileNotFoundError(
                f"{first} only stands for a file that git-lfs has not fetched; run `git lfs pull`."
            )
    return dict(sorted(files.items()))


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


def read_rows(path: Path, columns: Sequence[str]) -> dict[int, dict[str, str]]:
    """Reads a CSV file with a header.

    Returns:
        Row number, the header being row 1, -> column -> value, stripped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file, a column is missing, or a row has another number of fields than
            the header.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {str(path)!r}; the corpus is not complete without.")
    try:
        records = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be taken apart ({error}); unpack it again.") from error
    header = [name.strip() for name in records[0]] if records else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(header)}.")
    rows = {}
    for number, record in enumerate(records[1:], start=2):
        if record and len(record) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(record)} fields, the header {len(header)}."
            )
        if record:
            rows[number] = {name: value.strip() for name, value in zip(header, record, strict=True)}
    return rows


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
    refuse(
        f"{corpus}: labels that it should not have; it has {', '.join(map(str, known))}", unknown
    )
    kept = [u for u in found if u.emotion in emotions]
    if len(kept) < len(found):
        left_out = Counter(u.emotion for u in found if u.emotion not in emotions)
        shown = ", ".join(f"{label} {count:,}" for label, count in sorted(left_out.items()))
        logger.warning(
            "%s: left out %d of %d utterances, whose labels are not in this set: %s",
            corpus, len(found) - len(kept), len(found), shown,
        )  # fmt: skip
    kept = _with_audio_files(corpus, kept, partial)
    if expected is not None:
        _check_totals(corpus, kept, emotions, expected, by, partial)
    silent = [u.utterance_id for u in kept if u.text is None]
    if silent:
        logger.warning(
            "%s: %d utterances have no transcript, first %s", corpus, len(silent), silent[0]
        )
    return [replace(u, emotion=emotions[u.emotion]) for u in kept]


def _with_audio_files(corpus: str, utterances: list[Utterance], partial: bool) -> list[Utterance]:
    folders = {os.path.dirname(u.audio) for u in utterances if u.audio is not None}
    files = {name: set(os.listdir(name)) if os.path.isdir(name) else set() for name in folders}
    missing = [
        u.audio
        for u in utterances
        if u.audio is not None and os.path.basename(u.audio) not in files[os.path.dirname(u.audio)]
    ]
    if not missing:
        return utterances
    message = listing(f"{corpus}: {len(missing):,} audio files are missing", missing)
    if not partial:
        raise FileNotFoundError(
            f"{message}\nComplete the corpus, or leave them out with partial=True (--partial)."
        )
    logger.warning("%s\nTheir utterances are left out.", message)
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
    total, there = sum(wanted.values()), sum(actual.values())
    message = listing(
        f"{corpus}: {there:,} utterances found where the corpus has {total:,}", lines, limit=40
    )
    if not partial:
        raise ValueError(
            f"{message}\nComplete the corpus, or read what is there with partial=True (--partial)."
        )
    logger.warning("%s", message)


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
