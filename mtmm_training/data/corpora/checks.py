"""What the readers share: finding and decoding files, and the checks that end every reading.

A reader collects utterances whose emotion is still the corpus's own label; `finish` does the rest.
"""

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora.labels import FACTS, Labels, emotion_map, named_votes
from mtmm_training.data.files import walk
from mtmm_training.data.tables import read_delimited
from mtmm_training.data.utterances import OTHER, RATINGS, Utterance, by_id, few, leading, listing

logger = logging.getLogger(__name__)

# Speaker or split -> own label (None where the corpus has no emotions) -> utterances.
Totals = Mapping[str, Mapping[Any, int]]
NO_EMOTIONS: Mapping[Any, str | None] = {None: None}

AUDIO = (".wav", ".flac")
ROUNDING = 0.011  # of a mean of ratings that was rounded to two digits, perhaps twice
GENDERS = {"F": "female", "M": "male"}


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorts, without hidden files such as the "._" twins that macOS leaves beside others."""
    return sorted(path for path in paths if not path.name.startswith("."))


def named_files(
    folder: Path, pattern: str, name: re.Pattern[str], layout: str
) -> dict[Path, re.Match[str]]:
    """Finds the .wav and .flac files below a folder, whose names say what they are.

    Args:
        folder: where to look.
        pattern: as of `Path.glob`, of the files, or of folders that have them somewhere below.
        name: what every file's name, without its suffix, must match.
        layout: how the corpus lies in its folder, for messages.

    Returns:
        Path -> the match of its name, sorted by name.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a name does not match.
    """
    places = visible(folder.glob(pattern))
    below = [file for place in places for file in (walk(place) if place.is_dir() else [place])]
    found = visible(path for path in below if path.suffix.lower() in AUDIO)
    if not found:
        raise FileNotFoundError(f"No audio in {str(folder)!r}; give the folder with {layout}.")
    matches = {path: name.fullmatch(path.stem) for path in found}
    odd = [str(path) for path, match in matches.items() if not match]
    refuse(f"{folder}: names that are not like {layout}", odd)
    by_stem = sorted(matches.items(), key=lambda item: item[0].stem)
    return {path: match for path, match in by_stem if match}


def acted(
    corpus: str,
    files: Mapping[Path, re.Match[str]],
    genders: Mapping[str, str],
    speaker: str = "",
    script: str = "",
) -> list[Utterance]:
    """Makes utterances of files whose names tell all of a corpus of acted sentences.

    Args:
        corpus: with which all ids begin.
        files: as of `named_files`; the names have the groups speaker, script and emotion.
        genders: speaker -> gender, of those whose gender is known.
        speaker, script: what stands between corpus and speaker, or script, in their ids.
    """
    return [
        Utterance(
            utterance_id=f"{corpus}_{path.stem}",
            corpus=corpus,
            audio=str(path),
            text=FACTS[corpus]["texts"][name["script"]],
            emotion=name["emotion"],
            speaker_id=f"{corpus}_{speaker}{name['speaker']}",
            script_id=f"{corpus}_{script}{name['script']}",
            improvised=False,
            gender=genders.get(name["speaker"]),
        )
        for path, name in files.items()
    ]


def rated(given: Iterable[tuple[str, Sequence[float]]]) -> dict[str, Any]:
    """Raters and their ratings as fields of Utterance, without raters who left a dimension open.

    Args:
        given: each rater's name, and valence, arousal and dominance; NaN = left open.
    """
    whole = [(name, values) for name, values in given if not any(map(math.isnan, values))]
    if not whole:
        return {}
    raters, rows = zip(*whole, strict=True)
    return {"raters": raters} | dict(zip(RATINGS.values(), zip(*rows, strict=True), strict=True))


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


def read_rows(
    path: Path, columns: Sequence[str] | Callable[[list[str]], Sequence[str]]
) -> dict[str, dict[str, str]]:
    """Reads a CSV file with a header.

    Args:
        path: the file.
        columns: that it must have; or what tells them from those that it has.

    Returns:
        "row 2" (the header is row 1) -> column -> value, stripped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file, a column is missing, or a row has another number of fields than
            the header.
    """
    problems: dict[int, str] = {}
    header, rows = read_delimited(read_text(path), problems)
    refuse(f"{path}: bad rows", [f"row {number}: {text}" for number, text in problems.items()])
    names = [name.strip() for name in header]
    needed = columns(names) if callable(columns) else columns
    missing = [name for name in needed if name not in names]
    refuse(f"{path}: columns that are missing among {', '.join(names)}", missing)
    return {
        f"row {number}": {name.strip(): value.strip() for name, value in row.items()}
        for number, row in rows.items()
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


def finish(
    corpus: str,
    found: Iterable[Utterance],
    expected: Totals | None,
    *,
    partial: bool,
    labels: Labels | None = None,
    undecided: bool = False,
) -> list[Utterance]:
    """Leaves out what the label set does not have, checks files and totals, names the emotions.

    Args:
        corpus: its name in `LABELS`.
        found: all of the corpus, with its own labels as emotions and in votes; an utterance without
            a majority may have no emotion where it has votes.
        expected: totals by own label; None = not checked.
        partial: whether to log and leave out what is missing, instead of raising.
        labels: as in `emotion_map`; None = the corpus's default.
        undecided: whether to keep, without an emotion, utterances whose label the set does not have
            but which have votes for emotions of the set; the totals do not count them.

    Raises:
        ValueError: an own label is unknown, an id is doubled, or the totals are others.
        FileNotFoundError: an audio file is missing.
    """
    facts, emotions, known = FACTS[corpus], NO_EMOTIONS, NO_EMOTIONS
    if "emotions" in facts:
        chosen = labels or facts.get("labels", "four")
        emotions, known = emotion_map(corpus, chosen), emotion_map(corpus, "all")
    found = list(by_id(found).values())
    unknown = [
        f"{u.utterance_id}: {u.emotion!r}"
        for u in found
        if u.emotion not in known and not (u.emotion is None and u.votes)
    ]
    refuse(f"{corpus}: labels other than {', '.join(map(str, known))}", unknown)
    found = [replace(u, votes=named_votes(u.votes, emotions)) if u.votes else u for u in found]
    heard = {u.utterance_id for u in found if undecided and set(u.votes or ()) - {OTHER}}
    kept = [u for u in found if u.emotion in emotions or u.utterance_id in heard]
    if left_out := Counter(
        str(u.emotion or "no majority")
        for u in found
        if u.emotion not in emotions and u.utterance_id not in heard
    ):
        shown = ", ".join(f"{label} {count:,}" for label, count in sorted(left_out.items()))
        logger.warning(
            "%s: left out %d of %d utterances, whose labels are not in this set: %s",
            corpus, left_out.total(), len(found), shown,
        )  # fmt: skip
    kept, by = _with_audio_files(corpus, kept, partial), facts["totals_by"]
    actual = Counter((getattr(u, by), u.emotion) for u in kept if u.emotion in emotions)
    wanted = Counter[tuple[Any, Any]]()
    for group, counts in (expected or {}).items():
        wanted.update({(group, label): n for label, n in counts.items() if label in emotions})
    if expected is not None and actual != wanted:
        lines = [
            f"{' '.join(filter(None, cell))}: {actual[cell]:,} found, {wanted[cell]:,} expected"
            for cell in sorted(actual | wanted, key=str)
            if actual[cell] != wanted[cell]
        ]
        what = f"{actual.total():,} utterances found where the corpus has {wanted.total():,}"
        tell(listing(f"{corpus}: {what}", lines, limit=40), ValueError, partial)
    silent = [u.utterance_id for u in kept if u.text is None]
    if silent:
        logger.warning("%s: %d utterances have no transcript: %s", corpus, len(silent), few(silent))
    return [replace(u, emotion=emotions.get(u.emotion)) for u in kept]


def tell_differing_opinions(corpus: str, utterances: Sequence[Utterance]) -> None:
    """Logs how many labels are not what most raters said, or not the mean of the ratings."""
    voted = [u for u in utterances if u.votes and u.emotion is not None]
    differing = sum(leading(u.votes or {}) not in (None, u.emotion) for u in voted)
    if differing:
        logger.warning("%s: %d of %d labels are not of most votes", corpus, differing, len(voted))
    for name, ratings in RATINGS.items():
        pairs = [(getattr(u, name), getattr(u, ratings)) for u in utterances]
        rated = [(mean, own) for mean, own in pairs if own and mean is not None]
        off = sum(abs(sum(own) / len(own) - mean) > ROUNDING for mean, own in rated)
        if off:
            logger.warning("%s: %d of %d %ss are no mean of ratings", corpus, off, len(rated), name)


def _with_audio_files(corpus: str, utterances: list[Utterance], partial: bool) -> list[Utterance]:
    # A folder is listed once: a network disk answers hundreds of thousands of questions slowly.
    folders = {os.path.dirname(u.audio) for u in utterances if u.audio is not None}
    there = {
        entry.path for folder in folders if os.path.isdir(folder) for entry in os.scandir(folder)
    }
    missing = [u.audio for u in utterances if u.audio is not None and u.audio not in there]
    if missing:
        message = listing(f"{corpus}: {len(missing):,} audio files are missing", missing)
        tell(message, FileNotFoundError, partial)
    gone = set(missing)
    return [u for u in utterances if u.audio not in gone]


def tell(message: str, error: type[Exception], partial: bool) -> None:
    """Logs what is missing where a part of the corpus is enough, else raises it."""
    if not partial:
        raise error(f"{message}\nComplete it, or read what is there: partial=True (--partial).")
    logger.warning("%s\nWhat is there is read.", message)


def apart_by_split(corpus: str, utterances: Iterable[Utterance], what: str) -> list[Utterance]:
    """Names speakers apart by split, so that a fold accepts splits that share them; warns of it.

    Args:
        corpus: with which the speaker ids begin.
        utterances: each with its split.
        what: what the speaker ids stand for, in plural.
    """
    utterances = list(utterances)
    pairs = {(u.speaker_id, u.split) for u in utterances}
    counts = Counter(speaker for speaker, _ in pairs)
    shared = sum(count > 1 for count in counts.values())
    logger.warning(
        "%s: %d of %d %s are in several official splits and now have one speaker id in each; use "
        "these utterances for protocol 'official' only", corpus, shared, len(counts), what,
    )  # fmt: skip
    return [
        replace(u, speaker_id=f"{corpus}_{u.split}_{u.speaker_id.removeprefix(f'{corpus}_')}")
        for u in utterances
    ]
