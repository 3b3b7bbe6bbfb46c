"""EmoDB, Berlin: ten German sentences in seven acted emotions by ten actors, first release.

Layout: wav/03a01Fa.wav (speaker, text, initial of the emotion in German, version). The later
release of 816 recordings adds those that listeners did not agree on; it is not this one.

Source: Burkhardt et al., Interspeech 2005, and the database's page for codes, texts and speakers;
the totals were counted in a copy of its file names (535, and by emotion as published).
"""

import re
from pathlib import Path

from mtmm_training.data.corpora.checks import acted, named_files
from mtmm_training.data.corpora.labels import FACTS, totals
from mtmm_training.data.utterances import Utterance

LAYOUT = "wav/03a01Fa.wav and others"

_FACTS = FACTS["emodb"]
EXPECTED = totals("emodb", "emodb_")

_NAME = re.compile(
    rf"(?P<speaker>\d\d)(?P<script>{'|'.join(_FACTS['texts'])})(?P<emotion>[A-Z])[a-z]"
)


def read(folder: Path) -> list[Utterance]:
    """Reads all recordings: 535 with labels "all", 339 with "four".

    Args:
        folder: has the folder wav.

    Raises:
        ValueError: a file name cannot be read, or `EXPECTED` is not met.
        FileNotFoundError: there is no audio.
    """
    names = named_files(folder / "wav", "*", _NAME, LAYOUT)
    speakers = {name["speaker"] for name in names.values()}
    genders = {name: "male" if name in _FACTS["men"] else "female" for name in speakers}
    return acted("emodb", names, genders)
