"""ESD, the English half: 350 sentences in five acted emotions by ten speakers, 0011 to 0020.

Layout: 0011/0011.txt (name, text, emotion, between tabs; in several encodings) and
0011/Angry/<split>/0011_000351.wav with the splits train, evaluation and test, or without them.
The Mandarin speakers, 0001 to 0010, are left out. A recording's number tells its sentence: the
five emotions follow each other in steps of 350.

The official splits share all speakers and no sentence; see `official_split`.

Source: Zhou et al., Speech Communication 2022, and ReadMe.txt for the speakers' genders.
"""

import re
from pathlib import Path

from mtmm_training.data.corpora.checks import logger, named_files, read_text
from mtmm_training.data.corpora.labels import FACTS, LABELS
from mtmm_training.data.utterances import Utterance

LAYOUT = "0011/Angry/train/0011_000401.wav and others"

SPEAKERS = [f"00{number}" for number in range(11, 21)]
SENTENCES = 350
EXPECTED = {f"esd_{name}": dict.fromkeys(LABELS["esd"]["all"], SENTENCES) for name in SPEAKERS}
SPLITS = {"train": "train", "evaluation": "validation", "test": "test"}

_NAME = re.compile(r"(\d{4})_(\d{6})")
_LINE = re.compile(r"(\d{4}_\d{6})\s+(.*\S)\s+(?:" + "|".join(LABELS["esd"]["all"]) + r")")


def read(folder: Path) -> list[Utterance]:
    """Reads the recordings: 17,500 with labels "all", 14,000 with "four".

    Args:
        folder: has the speakers' folders.

    Raises:
        ValueError: a file name cannot be read, or `EXPECTED` is not met.
        FileNotFoundError: there is no audio.
    """
    files = named_files(folder, "[0-9]*/*/", _NAME, LAYOUT)
    english = [path for path, name in files.items() if name[1] in SPEAKERS]
    if len(english) < len(files):
        logger.warning("esd: left out %d Mandarin recordings", len(files) - len(english))
    words: dict[str, str] = {}
    for speaker in SPEAKERS:
        listed = folder / speaker / f"{speaker}.txt"
        lines = read_text(listed).splitlines() if listed.is_file() else []
        matches = [_LINE.fullmatch(line.strip()) for line in lines]
        words |= {match[1]: match[2] for match in matches if match}
    return [_utterance(folder, path, words.get(path.stem)) for path in english]


def _utterance(root: Path, path: Path, text: str | None) -> Utterance:
    speaker, number = path.stem.split("_")
    _, emotion, *deeper = path.relative_to(root).parts[:-1]
    sentence = (int(number) - 1) % SENTENCES + 1
    return Utterance(
        utterance_id=f"esd_{path.stem}",
        corpus="esd",
        audio=str(path),
        text=text,
        emotion=emotion,
        speaker_id=f"esd_{speaker}",
        script_id=f"esd_{sentence:03}",
        improvised=False,
        split=SPLITS.get(deeper[0]) if deeper else None,
        gender="male" if speaker in FACTS["esd"]["men"] else "female",
    )
