"""EmoBank: English sentences, written not spoken, with valence, arousal and dominance from 1 to 5.

Layout: emobank.csv, and if single ratings are wanted individual_reader_ratings.csv and
individual_writer_ratings.csv: what raters felt as readers, or thought that the writer felt. The
labels are means over the raters of both, without ratings of 1, 1, 1 (only so do the means agree,
which is checked): these are left out. Sentences of those files that have no label are, too.

Nobody speaks here; the speaker is the document, the id without the two offsets at its end (and for
headlines and tweets the whole id), so that no fold has one document on two sides. The official
splits do share documents (125 of 1,327); `official_split` names them apart.

Source of the totals: the corpus's own files (8,062, 1,000 and 1,000 sentences; 53,055 ratings of
readers and 53,118 of writers, of 10,548 sentences).
"""

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora import checks
from mtmm_training.data.corpora.labels import FACTS
from mtmm_training.data.utterances import DIMENSIONS, Utterance

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
EXPECTED = {"train": {None: 8062}, "validation": {None: 1000}, "test": {None: 1000}}

RATINGS = {"reader": 53055, "writer": 53118}  # perspective -> rows of its file
_NO_SENTENCE = (1.0, 1.0, 1.0)
_COLUMNS = ("id", "split", "V", "A", "D", "text")
_OFFSETS = re.compile(r"_\d+_\d+$")  # from which letter to which the sentence goes


def read(folder: Path, *, partial: bool = False) -> list[Utterance]:
    """Reads all 10,062 sentences, with single ratings where their files are.

    Args:
        folder: has emobank.csv.
        partial: whether to go on, and log it, where sentences or ratings are missing.

    Raises:
        ValueError: a row cannot be read, ratings have another mean than the labels, or the totals are
            not met.
        FileNotFoundError: there is no emobank.csv, or one of the files of ratings alone.
    """
    path = folder / "emobank.csv"
    ratings = _ratings(folder, partial)
    return checks.utterances_of(
        checks.read_rows(path, _COLUMNS),
        lambda row: _utterance(row, ratings.get(row["id"])),
        str(path),
    )


def _ratings(folder: Path, partial: bool) -> dict[str, dict[str, Any]]:
    """Sentence -> its ratings and raters, as fields of Utterance; none where there are no files."""
    files = {name: folder / f"individual_{name}_ratings.csv" for name in RATINGS}
    if not any(path.is_file() for path in files.values()):
        checks.logger.warning("emobank: no single ratings in %s; labels are means alone", folder)
        return {}
    rated: dict[str, list[tuple[str, tuple[float, ...]]]] = defaultdict(list)
    for perspective, path in files.items():
        rows = checks.read_rows(path, ("id", *"VAD"))
        if len(rows) != RATINGS[perspective]:
            what = f"emobank: {path.name} has {len(rows):,} ratings of {RATINGS[perspective]:,}"
            checks.tell(what, ValueError, partial)
        for row in rows.values():
            values = tuple(float(row[column]) for column in "VAD")
            if values != _NO_SENTENCE:
                rated[row["id"]].append((perspective, values))
    return {name: checks.rated(given) for name, given in rated.items()}


def _utterance(row: dict[str, str], rated: dict[str, Any] | None) -> Utterance:
    if row["split"] not in SPLITS:
        raise ValueError(f"split {row['split']!r} is not one of {', '.join(SPLITS)}")
    valence, arousal, dominance = (float(row[column]) for column in "VAD")
    low, high = FACTS["emobank"]["dimension_range"]
    if min(valence, arousal, dominance) < low or max(valence, arousal, dominance) > high:
        raise ValueError(f"a rating is outside {low:g} to {high:g}")
    for name, mean in zip(DIMENSIONS, (valence, arousal, dominance), strict=True):
        single = rated[f"{name}_ratings"] if rated else (mean,)
        if abs(math.fsum(single) / len(single) - mean) > checks.ROUNDING:
            raise ValueError(f"its {name} is {mean:g}, which is not the mean of {single}")
    return Utterance(
        **(rated or {}),
        utterance_id=f"emobank_{row['id']}",
        corpus="emobank",
        text=row["text"] or None,
        valence=valence,
        arousal=arousal,
        dominance=dominance,
        speaker_id=f"emobank_{_OFFSETS.sub('', row['id'])}",
        split=SPLITS[row["split"]],
    )
