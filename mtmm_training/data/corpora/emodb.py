"""EmoDB, Berlin: ten German sentences in seven acted emotions by ten actors, first release.

Layout: wav/03a01Fa.wav (speaker, text, initial of the emotion in German, version). The later
release of 816 recordings adds those that listeners did not agree on; it is not this one.

Source: Burkhardt et al., Interspeech 2005, and the database's page for codes, texts and speakers;
the totals were counted in a copy of its file names (535, and by emotion as published).
"""

import re
from pathlib import Path

from mtmm_training.data.corpora.checks import acted, finish, named_files
from mtmm_training.data.corpora.labels import Labels
from mtmm_training.data.utterances import Utterance

LAYOUT = "wav/03a01Fa.wav and others"
DIMENSION_RANGE = None

TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_GENDERS = dict.fromkeys(("03", "10", "11", "12", "15"), "male")
_GENDERS |= dict.fromkeys(("08", "09", "13", "14", "16"), "female")

EXPECTED = {
    f"emodb_{speaker}": dict(zip("WLEAFTN", counts, strict=True))
    for speaker, counts in {
        "03": (14, 5, 1, 4, 7, 7, 11),
        "08": (12, 10, 0, 6, 11, 9, 10),
        "09": (13, 4, 8, 1, 4, 4, 9),
        "10": (10, 8, 1, 8, 4, 3, 4),
        "11": (11, 8, 2, 10, 8, 7, 9),
        "12": (12, 5, 2, 6, 2, 4, 4),
        "13": (12, 10, 8, 7, 10, 5, 9),
        "14": (16, 8, 8, 12, 8, 10, 7),
        "15": (13, 9, 5, 8, 6, 4, 11),
        "16": (14, 14, 11, 7, 11, 9, 5),
    }.items()
}

_NAME = re.compile(rf"(?P<speaker>\d\d)(?P<script>{'|'.join(TEXTS)})(?P<emotion>[A-Z])[a-z]")


def read(folder: Path, *, labels: Labels = "four", partial: bool = False) -> list[Utterance]:
    """Reads all recordings whose emotion is in the set: 535 with "all", 339 with "four".

    Args:
        folder: has the folder wav.
        labels: a set of `LABELS`, or own labels (W, L, E, A, F, T, N) to emotions.
        partial: whether to go on, and log it, where `EXPECTED` is not met.

    Raises:
        ValueError: a file name cannot be read, or `EXPECTED` is not met.
        FileNotFoundError: there is no audio.
    """
    names = named_files(folder / "wav", "*", _NAME, LAYOUT)
    found = acted("emodb", names, TEXTS, _GENDERS)
    return finish("emodb", found, labels=labels, expected=EXPECTED, partial=partial)
