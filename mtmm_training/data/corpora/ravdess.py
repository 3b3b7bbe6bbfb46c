"""RAVDESS, the speech recordings: two English sentences in eight acted emotions by 24 actors.

Layout: Actor_01/03-01-06-01-02-01-12.wav and others, in folders of any depth and name; .flac does
as well. The name's numbers are modality (03 = audio alone), channel (01 = speech, 02 = song),
emotion, intensity, statement, repetition and actor (odd = male).

Source: Livingstone and Russo, PLoS ONE 2018: 1,440 files, 60 of each actor, 4 neutral and 8 of
every other emotion.
"""

import re
from pathlib import Path

from mtmm_training.data.corpora.checks import acted, logger, named_files
from mtmm_training.data.corpora.labels import LABELS
from mtmm_training.data.utterances import Utterance

LAYOUT = "Actor_01/03-01-06-01-02-01-12.wav and others"

_GENDERS = {f"{actor:02}": "male" if actor % 2 else "female" for actor in range(1, 25)}
_COUNTS = dict.fromkeys(LABELS["ravdess"]["all"], 8) | {"01": 4}
EXPECTED = {f"ravdess_actor_{actor}": _COUNTS for actor in _GENDERS}

_NAME = re.compile(
    r"03-(?P<channel>0[12])-(?P<emotion>\d\d)-0[12]-(?P<script>0[12])-0[12]-(?P<speaker>\d\d)"
)


def read(folder: Path) -> list[Utterance]:
    """Reads the speech: 1,440 recordings with labels "all", 864 with "four".

    With "four", calm counts as neutral. Songs are left out, and counted in a warning.

    Args:
        folder: has the actors' folders.

    Raises:
        ValueError: a file name cannot be read, a file is there twice, or `EXPECTED` is not met.
        FileNotFoundError: there is no audio.
    """
    names = named_files(folder, "*", _NAME, LAYOUT)
    speech = {path: name for path, name in names.items() if name["channel"] == "01"}
    if len(speech) < len(names):
        logger.warning("ravdess: left out %d songs", len(names) - len(speech))
    return acted("ravdess", speech, _GENDERS, speaker="actor_", script="statement_")
