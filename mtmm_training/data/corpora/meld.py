"""MELD: lines of the television series Friends, with seven emotions and three sentiments.

Layout: train_sent_emo.csv, dev_sent_emo.csv and test_sent_emo.csv; the audio, if you extracted it
from the videos, as <split>/dia12_utt7.wav with the splits train, dev and test.

The official splits share their main speakers (Joey, Ross, ...) and many minor ones. Speakers are
named by person, so that no fold can have one on two sides; `official_split` names them apart.
A role is its actor ("Joey/Drake" is Joey); "Ross and Rachel" and "All" stay as speakers of their
own, and so does "Woman", who may be several people.

Source of the totals: the corpus's own files (9,989, 1,109 and 2,610 lines).
"""

import os
from pathlib import Path

from mtmm_training.data.corpora import checks
from mtmm_training.data.corpora.labels import totals
from mtmm_training.data.utterances import Utterance

# Lines whose videos are missing or unreadable in the distribution: read as text alone.
SILENT = {"train_dia125_utt3", "dev_dia110_utt7"}
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
VALENCES = {"negative": 1.0, "neutral": 3.0, "positive": 5.0}
EXPECTED = totals("meld")

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
# Some copies have the typographic marks of code page 1252 as control characters.
_CONTROLS = {code: bytes([code]).decode("cp1252", errors="ignore") for code in range(0x80, 0xA0)}


def read(
    folder: Path,
    *,
    sentiment_as_valence: bool = False,
    audio_dir: str | Path | None = None,
    partial: bool = False,
) -> list[Utterance]:
    """Reads all 13,708 lines; labels "all" are MELD's own names, "four" those that others have too.

    Args:
        folder: has the three CSV files.
        sentiment_as_valence: whether negative, neutral, positive become valence 1, 3, 5.
        audio_dir: has the folders train, dev and test; None = text only.
        partial: whether to go on, and log it, where lines or audio files are missing.

    Raises:
        ValueError: a sentiment is unknown, or `EXPECTED` is not met.
        FileNotFoundError: a file is missing.
    """
    audio = None if audio_dir is None else Path(os.path.abspath(audio_dir))
    rows: dict[str, dict[str, str]] = {}
    for split in SPLITS:
        path = folder / f"{split}_sent_emo.csv"
        if partial and not path.is_file():
            continue  # its lines are missing from the totals, which are logged
        for number, row in checks.read_rows(path, _COLUMNS).items():
            rows[f"{path}, {number}"] = row | {"split": split}
    return checks.utterances_of(
        rows, lambda row: _utterance(row, audio, sentiment_as_valence), "meld"
    )


def _utterance(row: dict[str, str], audio: Path | None, with_valence: bool) -> Utterance:
    split = row["split"]
    if row["Sentiment"] not in VALENCES:
        raise ValueError(f"sentiment {row['Sentiment']!r} is not one of {', '.join(VALENCES)}")
    name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
    path = None if audio is None else audio / split / f"{name}.wav"
    if path is not None and f"{split}_{name}" in SILENT and not path.exists():
        checks.logger.warning("meld: %s has no readable video; its text alone is read", path)
        path = None
    person = _clean(row["Speaker"]).partition("/")[0].strip()
    return Utterance(
        utterance_id=f"meld_{split}_{name}",
        corpus="meld",
        audio=None if path is None else str(path),
        text=_clean(row["Utterance"]) or None,
        emotion=row["Emotion"],
        valence=VALENCES[row["Sentiment"]] if with_valence else None,
        speaker_id=f"meld_{person}",
        dialogue_id=f"meld_{split}_dia{row['Dialogue_ID']}",
        improvised=False,
        split=SPLITS[split],
    )


def _clean(text: str) -> str:
    """Restores typographic marks that were decoded wrongly once."""
    if "â€" in text:  # UTF-8 that was read as code page 1252
        try:
            text = text.encode("cp1252").decode("utf-8")
        except UnicodeError:
            pass  # only a part of it was; the rest would be lost
    return text.translate(_CONTROLS).strip()
