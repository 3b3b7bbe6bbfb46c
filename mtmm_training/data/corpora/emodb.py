"""EmoDB, Berlin: ten German sentences in seven acted emotions by ten actors, first release.

Layout: wav/03a01Fa.wav (speaker, text, initial of the emotion in German, version). The later
release of 816 recordings adds those that listeners did not agree on; it is not this one.

Source: Burkhardt et al., Interspeech 2005, and the database's page for codes, texts and speakers;
the totals were counted in a copy of its file names (535, and by emotion as published).
"""

import re
from pathlib import Path

from mtmm_training.data.corpora.checks import acted, finish, named_files
from mtmm_training.data.corpora.labels import FACTS, Labels, totals
from mtmm_training.data.utterances import Utterance

LAYOUT = "wav/03a01Fa.wav and others"
DIMENSION_RANGE = None

_FACTS = FACTS["emodb"]
EXPECTED = totals("emodb", "emodb_")

_NAME = re.compile(
    rf"(?P<speaker>\d\d)(?P<script>{'|'.join(_FACTS['texts'])})(?P<emotion>[A-Z])[a-z]"
)


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
    speakers = {name["speaker"] for name in names.values()}
    genders = {name: "male" if name in _FACTS["men"] else "female" for name in speakers}
    found = acted("emodb", names, genders)
    return finish("emodb", found, labels=labels, expected=EXPECTED, partial=partial)
