"""CREMA-D, as in its repository: twelve English sentences in six acted emotions by 91 actors.

Layout: AudioWAV/1001_DFA_ANG_XX.wav (actor, sentence, emotion, level), VideoDemographics.csv. The
label is the emotion that was acted, not what listeners heard.

Source: github.com/CheyneyComputerScience/CREMA-D, README.md for codes and sentences; the totals
were counted in its folder AudioWAV.
"""

import re
from pathlib import Path

from mtmm_training.data.corpora.checks import acted, finish, named_files, read_rows
from mtmm_training.data.corpora.labels import Labels
from mtmm_training.data.utterances import Utterance

LAYOUT = "AudioWAV/1001_DFA_ANG_XX.wav and others"
DIMENSION_RANGE = None

SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}

# Nearly all actors have as many; five lack some.
_COUNTS = {"ANG": 14, "DIS": 14, "FEA": 14, "HAP": 14, "SAD": 14, "NEU": 12}
_SHORT = {"ANG": 13, "DIS": 13, "FEA": 13, "HAP": 13, "SAD": 13, "NEU": 11}
EXPECTED = {f"crema_d_{actor}": _COUNTS for actor in range(1001, 1092)}
EXPECTED |= {f"crema_d_{actor}": _COUNTS | {"NEU": 11} for actor in (1002, 1076)}
EXPECTED |= {f"crema_d_{actor}": _SHORT for actor in (1008, 1009, 1019)}

# One file ends in X.
_NAME = re.compile(
    r"(?P<speaker>\d{4})_(?P<script>"
    + "|".join(SENTENCES)
    + r")_(?P<emotion>[A-Z]{3})_(LO|MD|HI|XX?)"
)


def read(folder: Path, *, labels: Labels = "four", partial: bool = False) -> list[Utterance]:
    """Reads all recordings whose emotion is in the set: 7,442 with "all", 4,900 with "four".

    Args:
        folder: has AudioWAV, and VideoDemographics.csv if genders are wanted.
        labels: a set of `LABELS`, or own labels (ANG, DIS, ...) to emotions.
        partial: whether to go on, and log it, where `EXPECTED` is not met.

    Raises:
        ValueError: a file name cannot be read, or `EXPECTED` is not met.
        FileNotFoundError: there is no audio.
    """
    names = named_files(folder / "AudioWAV", "*", _NAME, LAYOUT)
    people = folder / "VideoDemographics.csv"
    rows = read_rows(people, ("ActorID", "Sex")) if people.is_file() else {}
    genders = {row["ActorID"]: row["Sex"].lower() for row in rows.values()}
    found = acted("crema_d", names, SENTENCES, genders)
    return finish("crema_d", found, labels=labels, expected=EXPECTED, partial=partial)
