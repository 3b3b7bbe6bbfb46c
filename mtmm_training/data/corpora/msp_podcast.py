"""MSP-Podcast, as released: turns from podcasts with emotions and dimensions from 1 to 7.

Layout: Labels/labels_consensus.csv (or labels_concensus.csv, as early releases spell it), Audios/
MSP-PODCAST_0001_0008.wav and Transcripts/MSP-PODCAST_0001_0008.txt. The CSV file and the folders
may also lie side by side.

Totals differ between releases and no file names its release, so none are checked; instead every
row must have its audio file. Recordings without a row (Test3, whose labels are withheld) are
counted. The dimensions' scale, 1 to 7, is kept: set the model's `dimension_range` to (1, 7).

Some training turns have no identified speaker. They are left out, and counted, because they may be
by anybody; with `official_split` they stay, with one speaker id per podcast, as the corpus's own
partitions have them.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora.checks import (
    GENDERS,
    corpus_folder,
    finish,
    read_rows,
    read_text,
    refuse,
    utterances_of,
    visible,
)
from mtmm_training.data.corpora.labels import Labels
from mtmm_training.data.utterances import Utterance

logger = logging.getLogger(__name__)

LAYOUT = "Labels/labels_consensus.csv, Audios and Transcripts"
DIMENSION_RANGE = (1.0, 7.0)
EXPECTED = None
TESTS = ("Test1", "Test2", "Test3")
SPLITS = {"Train": "train", "Development": "validation", "Validation": "validation"}

_DIMENSIONS = {"valence": "EmoVal", "arousal": "EmoAct", "dominance": "EmoDom"}
_COLUMNS = ("FileName", "EmoClass", *_DIMENSIONS.values(), "SpkrID", "Gender", "Split_Set")
_UNKNOWN = "unknown"


def read(
    folder: str | Path,
    *,
    labels: Labels = "four",
    test: str = "Test1",
    partial: bool = False,
    official_split: bool = False,
) -> list[Utterance]:
    """Reads the turns whose emotion is in the set; with "all", those without agreement have none.

    Args:
        folder: has Labels, Audios and Transcripts.
        labels: a set of `LABELS`, or own labels (A, H, N, ...) to emotions.
        test: which of the test partitions is the test split; the others are left out, for they
            share speakers with each other.
        partial: whether to leave out, and log, rows whose audio file is missing.
        official_split: whether to keep turns of unidentified speakers; see `read_corpus`.

    Raises:
        ValueError: a row cannot be read, or a file has two rows that differ.
        FileNotFoundError: the labels or an audio file are missing.
    """
    if test not in TESTS:
        raise ValueError(f"`test`={test!r} is not a partition; use one of {', '.join(TESTS)}.")
    root = corpus_folder(folder, LAYOUT)
    rows = _rows(_labels_file(root))
    kept: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    for name, row in rows.items():
        partition = row["Split_Set"]
        nobody = row["SpkrID"].lower() in ("", _UNKNOWN)
        if partition in TESTS and partition != test:
            left_out[f"in {partition}"] += 1
        elif nobody and not official_split:
            left_out["by unidentified speakers"] += 1
        else:
            kept[name] = row
    splits = SPLITS | {test: "test"}
    found = utterances_of(kept, lambda row: _utterance(root, row, splits), "msp_podcast")
    if left_out:
        shown = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
        logger.warning("msp_podcast: left out %s", shown)
    unlabelled = {path.name for path in visible((root / "Audios").glob("*.wav"))} - set(rows)
    if unlabelled:
        logger.warning("msp_podcast: %d recordings have no labels", len(unlabelled))
    return finish("msp_podcast", found, labels=labels, expected=EXPECTED, partial=partial)


def _labels_file(root: Path) -> Path:
    names = ("labels_consensus.csv", "labels_concensus.csv")
    for path in (folder / name for folder in (root / "Labels", root) for name in names):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{str(root)!r} has no labels; give the folder with {LAYOUT}.")


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """Rows by file name; a file may have several rows if they are equal."""
    rows: dict[str, dict[str, str]] = {}
    problems = []
    for number, row in read_rows(path, _COLUMNS).items():
        if rows.setdefault(row["FileName"], row) != row:
            problems.append(f"{number}: {row['FileName']} has another row that differs")
    refuse(f"{path}: contradictions", problems)
    return rows


def _utterance(root: Path, row: dict[str, str], splits: dict[str, str]) -> Utterance:
    stem = row["FileName"].removesuffix(".wav")
    own = stem.removeprefix("MSP-PODCAST_")
    if row["Split_Set"] not in splits:
        raise ValueError(f"partition {row['Split_Set']!r} is not one of {', '.join(splits)}")
    speaker = row["SpkrID"]
    if speaker.lower() in ("", _UNKNOWN):
        speaker = f"{_UNKNOWN}_{own.partition('_')[0]}"  # the podcast's number
    rated: dict[str, Any] = {n: _rating(column, row[column]) for n, column in _DIMENSIONS.items()}
    return Utterance(
        utterance_id=f"msp_podcast_{own}",
        corpus="msp_podcast",
        audio=str(root / "Audios" / row["FileName"]),
        text=_transcript(root / "Transcripts" / f"{stem}.txt"),
        emotion=row["EmoClass"],
        **rated,
        speaker_id=f"msp_podcast_{speaker}",
        split=splits[row["Split_Set"]],
        gender=row["Gender"].lower() if row["Gender"].lower() in GENDERS.values() else None,
    )


def _rating(column: str, value: str) -> float | None:
    if not value:
        return None
    low, high = DIMENSION_RANGE
    if not low <= float(value) <= high:
        raise ValueError(f"{column} {value} is outside {low:g} to {high:g}")
    return float(value)


def _transcript(path: Path) -> str | None:
    return (read_text(path).strip() or None) if path.is_file() else None
