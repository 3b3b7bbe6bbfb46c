"""EmoBank: English sentences, written not spoken, with valence, arousal and dominance from 1 to 5.

Layout: emobank.csv. The labels are means over several raters.

Nobody speaks here; the speaker is the document, the id without the two offsets at its end (and for
headlines and tweets the whole id), so that no fold has one document on two sides. The official
splits do share documents (125 of 1,327); `official_split` names them apart.

Source of the totals: the corpus's own file (8,062, 1,000 and 1,000 sentences).
"""

import re
from pathlib import Path

from mtmm_training.data.corpora import checks
from mtmm_training.data.utterances import Utterance

DIMENSION_RANGE = (1.0, 5.0)
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
EXPECTED = {"train": {None: 8062}, "validation": {None: 1000}, "test": {None: 1000}}

_COLUMNS = ("id", "split", "V", "A", "D", "text")
_OFFSETS = re.compile(r"_\d+_\d+$")  # from which letter to which the sentence goes


def read(folder: Path, *, partial: bool = False, official_split: bool = False) -> list[Utterance]:
    """Reads all 10,062 sentences.

    Args:
        folder: has emobank.csv.
        partial: whether to go on, and log it, where sentences are missing.
        official_split: see `read_corpus`.

    Raises:
        ValueError: a row cannot be read, or `EXPECTED` is not met.
        FileNotFoundError: there is no emobank.csv.
    """
    path = folder / "emobank.csv"
    found = checks.utterances_of(checks.read_rows(path, _COLUMNS), _utterance, str(path))
    kept = checks.finish(
        "emobank", found, labels=None, expected=EXPECTED, partial=partial, by="split"
    )
    return checks.apart_by_split("emobank", kept, "documents") if official_split else kept


def _utterance(row: dict[str, str]) -> Utterance:
    if row["split"] not in SPLITS:
        raise ValueError(f"split {row['split']!r} is not one of {', '.join(SPLITS)}")
    valence, arousal, dominance = (float(row[column]) for column in "VAD")
    low, high = DIMENSION_RANGE
    if min(valence, arousal, dominance) < low or max(valence, arousal, dominance) > high:
        raise ValueError(f"a rating is outside {low:g} to {high:g}")
    return Utterance(
        utterance_id=f"emobank_{row['id']}",
        corpus="emobank",
        text=row["text"] or None,
        valence=valence,
        arousal=arousal,
        dominance=dominance,
        speaker_id=f"emobank_{_OFFSETS.sub('', row['id'])}",
        split=SPLITS[row["split"]],
    )
