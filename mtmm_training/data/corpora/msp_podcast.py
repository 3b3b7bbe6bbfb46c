"""MSP-Podcast, as released: turns from podcasts with emotions and dimensions from 1 to 7.

Layout: Labels/labels_consensus.csv (or labels_concensus.csv, as early releases spell it), Audios/
MSP-PODCAST_0001_0008.wav and Transcripts/MSP-PODCAST_0001_0008.txt. The CSV file and the folders
may also lie side by side, and so may labels_detailed.csv, which has the votes of single annotators.

Totals differ between releases and no file names its release, so none are checked; instead every
row must have its audio file. Recordings without a row (Test3, whose labels are withheld) are
counted. The dimensions' scale, 1 to 7, is kept: set the model's `dimension_range` to (1, 7).

Some training turns have no identified speaker. They are left out, and counted, because they may be
by anybody; with `official_split` they stay, with one speaker id per podcast, as the corpus's own
partitions have them.

labels_detailed.csv has three layouts. Release 1.6: one row for each annotator of a recording, with the
columns FileName, Workers, EmoClass_Major, EmoClass_Second, EmoAct, EmoVal, EmoDom. 1.7 to 1.12:
FileName and one column of strings such as
"WORKER0000013; Happy; Happy,Concerned; A:6.0; V:5.0; D:5.0;". 2.0: as 1.6, with WorkerID. Source: the
corpus's readme files, and how public code reads these tables; the releases themselves were not to be
had.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtmm_training.data.corpora import checks
from mtmm_training.data.corpora.labels import FACTS, own_label
from mtmm_training.data.utterances import Utterance

EXPECTED = None
TESTS = ("Test1", "Test2", "Test3")
SPLITS = {"Train": "train", "Development": "validation", "Validation": "validation"}

_DIMENSIONS = {"valence": "EmoVal", "arousal": "EmoAct", "dominance": "EmoDom"}
_COLUMNS = ("FileName", "EmoClass", *_DIMENSIONS.values(), "SpkrID", "Gender", "Split_Set")
_UNKNOWN = "unknown"

DETAILS = "labels_detailed.csv"
_ANSWERS = ("EmoClass_Major", "EmoClass_Second")
_WORKERS = ("Workers", "WorkerID")
_STRING = "EmoDetail"
_KNOWN = {"FileName", _STRING, *_WORKERS, *_ANSWERS, *_DIMENSIONS.values()}
_DETAIL = re.compile(
    r"(?P<Workers>[^;]+?)\s*;\s*(?P<EmoClass_Major>[^;]*?)\s*;\s*(?P<EmoClass_Second>.*?)\s*;?"
    r"\s*A:\s*(?P<EmoAct>[^;]*?)\s*;\s*V:\s*(?P<EmoVal>[^;]*?)\s*;"
    r"\s*D:\s*(?P<EmoDom>[^;]*?)\s*;?"
)


def read(
    folder: Path, *, test: str = "Test1", official_split: bool = False, secondary: float = 0.0
) -> list[Utterance]:
    """Reads the turns; with labels "all", those without agreement have no emotion.

    Args:
        folder: has Labels, Audios and Transcripts.
        test: which of the test partitions is the test split; the others are left out, for they
            share speakers with each other.
        official_split: whether to keep turns of unidentified speakers; see `read_corpus`.
        secondary: weight of an annotator's further emotions in the votes, 0 to 1.

    Raises:
        ValueError: a row cannot be read, or a file has two rows that differ.
        FileNotFoundError: the labels or an audio file are missing.
    """
    if test not in TESTS:
        raise ValueError(f"`test`={test!r} is not a partition; use one of {', '.join(TESTS)}.")
    spellings = ("labels_consensus.csv", "labels_concensus.csv")
    places = [place / name for place in (folder / "Labels", folder) for name in spellings]
    table = next((path for path in places if path.is_file()), places[0])
    rows = checks.read_rows(table, _COLUMNS)
    # A file may have several rows if they are equal.
    distinct = {tuple(row.values()): number for number, row in rows.items()}
    kept: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    for name in distinct.values():
        row = rows[name]
        partition = row["Split_Set"]
        nobody = row["SpkrID"].lower() in ("", _UNKNOWN)
        if partition in TESTS and partition != test:
            left_out[f"in {partition}"] += 1
        elif nobody and not official_split:
            left_out["by unidentified speakers"] += 1
        else:
            kept[name] = row
    splits = SPLITS | {test: "test"}
    details = table.with_name(DETAILS)
    opinions = read_details(details, secondary) if details.is_file() else {}
    found = checks.utterances_of(
        kept,
        lambda row: _utterance(folder, row, splits, opinions.get(row["FileName"], {})),
        "msp_podcast",
    )
    if silent := sum(u.votes is None for u in found):
        checks.logger.warning("msp_podcast: %d of %d turns have no votes", silent, len(found))
    checks.tell_differing_opinions("msp_podcast", found)
    if left_out:
        shown = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
        checks.logger.warning("msp_podcast: left out %s", shown)
    audio = {path.name for path in checks.visible((folder / "Audios").glob("*.wav"))}
    unlabelled = audio - {row["FileName"] for row in rows.values()}
    if unlabelled:
        checks.logger.warning("msp_podcast: %d recordings have no labels", len(unlabelled))
    return found


def _utterance(
    folder: Path, row: dict[str, str], splits: dict[str, str], opinions: dict[str, Any]
) -> Utterance:
    stem = row["FileName"].removesuffix(".wav")
    own = stem.removeprefix("MSP-PODCAST_")
    if row["Split_Set"] not in splits:
        raise ValueError(f"partition {row['Split_Set']!r} is not one of {', '.join(splits)}")
    speaker = row["SpkrID"]
    if speaker.lower() in ("", _UNKNOWN):
        speaker = f"{_UNKNOWN}_{own.partition('_')[0]}"  # the podcast's number
    rated: dict[str, Any] = {
        name: _number(row[column]) if row[column] else None for name, column in _DIMENSIONS.items()
    }
    transcript = folder / "Transcripts" / f"{stem}.txt"
    return Utterance(
        utterance_id=f"msp_podcast_{own}",
        corpus="msp_podcast",
        audio=str(folder / "Audios" / row["FileName"]),
        text=(checks.read_text(transcript).strip() or None) if transcript.is_file() else None,
        emotion=row["EmoClass"],
        **rated,
        **opinions,
        speaker_id=f"msp_podcast_{speaker}",
        split=splits[row["Split_Set"]],
        gender=row["Gender"].lower() if row["Gender"].lower() in checks.GENDERS.values() else None,
    )


# ---- single annotations -------------------------------------------------------------------------


class Annotation(NamedTuple):
    """What one annotator said of one recording; NaN = did not rate."""

    worker: str
    major: str
    second: tuple[str, ...]
    ratings: tuple[float, ...]  # valence, arousal, dominance


def read_details(path: Path, secondary: float) -> dict[str, dict[str, Any]]:
    """Recording -> votes for own labels, ratings and raters, as fields of Utterance.

    Args:
        path: the table.
        secondary: how much each further emotion that an annotator names counts, beside 1 for the main
            one; an emotion that is named as both counts once.

    Raises:
        ValueError: a column is not known or missing, or a row cannot be read.
    """

    def needed(names: list[str]) -> Sequence[str]:
        unknown = [name for name in names if name not in _KNOWN]
        checks.refuse(f"{path}: columns of none of the known layouts", unknown)
        if _STRING in names:
            return "FileName", _STRING
        worker = next((name for name in _WORKERS if name in names), _WORKERS[0])
        return "FileName", worker, *_ANSWERS, *_DIMENSIONS.values()

    annotations: dict[str, dict[str, Annotation]] = defaultdict(dict)
    bad = []
    for number, row in checks.read_rows(path, needed).items():
        try:
            said = _annotation(row)
            earlier = annotations[row["FileName"]].setdefault(said.worker, said)
            if repr(earlier) != repr(said):  # equal rows are one; by repr, for NaN is not NaN
                raise ValueError(f"{said.worker} annotates {row['FileName']} twice, differently")
        except ValueError as error:
            bad.append(f"{number}: {error}")
    checks.refuse(f"{path}: rows that cannot be read", bad)
    return {name: _opinions(list(given.values()), secondary) for name, given in annotations.items()}


def _annotation(row: dict[str, str]) -> Annotation:
    if _STRING in row:
        match = _DETAIL.fullmatch(row[_STRING].strip())
        if match is None:
            raise ValueError(f"{row[_STRING]!r} is not like 'W1; Happy; Sad; A:6; V:5; D:5;'")
        row = match.groupdict()
    worker = next(row[name] for name in _WORKERS if name in row)
    major, second = (row[name] for name in _ANSWERS)
    others = tuple(part.strip() for part in second.split(",") if part.strip())
    return Annotation(worker, major, others, tuple(_number(row[c]) for c in _DIMENSIONS.values()))


def _number(text: str) -> float:
    number, (low, high) = float(text or "nan"), FACTS["msp_podcast"]["dimension_range"]
    if not (math.isnan(number) or low <= number <= high):
        raise ValueError(f"a rating of {number:g} is outside {low:g} to {high:g}")
    return number


def _opinions(given: list[Annotation], secondary: float) -> dict[str, Any]:
    votes: Counter[str] = Counter()
    for said in given:
        main = own_label("msp_podcast", said.major) if said.major else None
        others = {own_label("msp_podcast", answer) for answer in said.second} - {main}
        weights = dict.fromkeys(sorted(others), secondary) if secondary else {}
        votes.update(weights | ({main: 1.0} if main else {}))
    return {"votes": dict(votes) or None} | checks.rated((s.worker, s.ratings) for s in given)
