"""MSP-Podcast's single annotations, labels_detailed.csv, in the three layouts of its releases.

1.6: one row for each annotator of a recording, with the columns FileName, Workers, EmoClass_Major,
EmoClass_Second, EmoAct, EmoVal, EmoDom. 1.7 to 1.12: FileName and one column of strings such as
"WORKER0000013; Happy; Happy,Concerned; A:6.0; V:5.0; D:5.0;". 2.0: as 1.6, with WorkerID.

Source: the corpus's readme files, and how public code reads these tables; the releases themselves
were not to be had.
"""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from mtmm_training.data.corpora import checks
from mtmm_training.data.corpora.labels import own_label
from mtmm_training.data.tables import read_delimited
from mtmm_training.data.utterances import RATINGS

NAME = "labels_detailed.csv"
_ANSWERS = ("EmoClass_Major", "EmoClass_Second")
_SCALES = {"valence": "EmoVal", "arousal": "EmoAct", "dominance": "EmoDom"}
_WORKERS = ("Workers", "WorkerID")
_STRING = "EmoDetail"
_COLUMNS = {"FileName", _STRING, *_WORKERS, *_ANSWERS, *_SCALES.values()}
_DETAIL = re.compile(
    r"(?P<worker>[^;]+?)\s*;\s*(?P<major>[^;]*?)\s*;\s*(?P<second>.*?)\s*;?"
    r"\s*A:\s*(?P<arousal>[^;]*?)\s*;\s*V:\s*(?P<valence>[^;]*?)\s*;"
    r"\s*D:\s*(?P<dominance>[^;]*?)\s*;?"
)


class Annotation(NamedTuple):
    """What one annotator said of one recording; NaN = did not rate."""

    worker: str
    major: str
    second: tuple[str, ...]
    ratings: dict[str, float]  # by dimension


def read_details(path: Path, secondary: float) -> dict[str, dict[str, Any]]:
    """Recording -> votes for own labels, ratings and raters, as fields of Utterance.

    Args:
        path: the table.
        secondary: how much each further emotion that an annotator names counts, beside 1 for the main
            one; an emotion that is named as both counts once.

    Raises:
        ValueError: a column is not known or missing, or a row cannot be read.
    """
    problems: dict[int, str] = {}
    header, _ = read_delimited(checks.read_text(path), problems)
    unknown = [name for name in header if name.strip() not in _COLUMNS]
    checks.refuse(f"{path}: columns of none of the known layouts", unknown)
    worker = next((name for name in _WORKERS if name in map(str.strip, header)), _WORKERS[0])
    needed = ("FileName", worker, *_ANSWERS, *_SCALES.values())
    if _STRING in map(str.strip, header):
        needed = ("FileName", _STRING)
    annotations: dict[str, dict[str, Annotation]] = defaultdict(dict)
    bad = []
    for number, row in checks.read_rows(path, needed).items():
        try:
            said = _of_string(row[_STRING]) if _STRING in row else _of_columns(row, worker)
            earlier = annotations[row["FileName"]].setdefault(said.worker, said)
            if repr(earlier) != repr(said):  # equal rows are one; by repr, for NaN is not NaN
                raise ValueError(
                    f"{said.worker} annotates {row['FileName']} twice, and differently"
                )
        except ValueError as error:
            bad.append(f"{number}: {error}")
    checks.refuse(f"{path}: rows that cannot be read", bad)
    return {name: _fields(list(given.values()), secondary) for name, given in annotations.items()}


def _of_columns(row: dict[str, str], worker: str) -> Annotation:
    ratings = {name: _number(row[column]) for name, column in _SCALES.items()}
    return Annotation(row[worker], row[_ANSWERS[0]], _several(row[_ANSWERS[1]]), ratings)


def _of_string(text: str) -> Annotation:
    match = _DETAIL.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not like 'WORKER1; Happy; Happy,Concerned; A:6.0; V:5.0; D:5.0;'"
        )
    ratings = {name: _number(match[name]) for name in _SCALES}
    return Annotation(match["worker"], match["major"], _several(match["second"]), ratings)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(text: str) -> float:
    number = float(text or "nan")
    if not (math.isnan(number) or 1 <= number <= 7):
        raise ValueError(f"a rating of {number:g} is outside 1 to 7")
    return number


def _fields(given: list[Annotation], secondary: float) -> dict[str, Any]:
    votes: Counter[str] = Counter()
    for said in given:
        main = own_label("msp_podcast", said.major) if said.major else None
        others = {own_label("msp_podcast", answer) for answer in said.second} - {main}
        weights = dict.fromkeys(sorted(others), secondary) if secondary else {}
        votes.update(weights | ({main: 1.0} if main else {}))
    fields: dict[str, Any] = {"votes": dict(votes)} if votes else {}
    rated = [said for said in given if not any(map(math.isnan, said.ratings.values()))]
    if rated:
        fields["raters"] = tuple(said.worker for said in rated)
        fields |= {own: tuple(said.ratings[n] for said in rated) for n, own in RATINGS.items()}
    return fields
