"""IEMOCAP, as released: dyadic acted dialogues in five sessions of a woman and a man each.

Layout: Session1 to Session5, and in each dialog/EmoEvaluation/<dialogue>.txt (labels),
dialog/transcriptions/<dialogue>.txt and sentences/wav/<dialogue>/<utterance>.wav.

The speaker is the session and the letter before the turn's number: Ses01F_impro01_M000 is spoken
by Ses01M. (The letter after the session says who wore the markers.) The label is the majority's,
from the line that heads each turn's ratings. Scripted turns have the scene as script_id, without a
part's letter (script01_1b repeats script01_1); improvised ones have none, the words were their own.
Every session plays all seven scenes, so script-disjoint folds train on improvised turns alone.

Source of the totals: 5,531 by class as in the usual protocol (paper.md, Antoniou et al. 2023); the
counts by speaker and label were counted in github.com/tae898/multimodal-datasets,
IEMOCAP/emotions.json, 10,039 turns with the release's labels, and agree with the former.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora import checks
from mtmm_training.data.corpora.labels import Labels
from mtmm_training.data.utterances import DIMENSIONS, Utterance

logger = logging.getLogger(__name__)

DIMENSION_RANGE = (1.0, 5.0)

_LABELS = ("ang", "hap", "exc", "sad", "neu", "fru", "sur", "fea", "dis", "oth", "xxx")
EXPECTED = {
    speaker: dict(zip(_LABELS, counts, strict=True))
    for speaker, counts in {
        "Ses01F": (147, 69, 63, 78, 171, 107, 15, 5, 0, 0, 218),
        "Ses01M": (82, 66, 80, 116, 213, 173, 10, 7, 1, 1, 197),
        "Ses02F": (67, 70, 96, 113, 135, 165, 8, 5, 0, 1, 199),
        "Ses02M": (70, 47, 114, 84, 227, 160, 9, 4, 0, 0, 237),
        "Ses03F": (92, 80, 48, 172, 130, 199, 15, 2, 0, 0, 310),
        "Ses03M": (148, 55, 103, 133, 190, 183, 13, 0, 1, 0, 262),
        "Ses04F": (205, 31, 154, 62, 76, 188, 11, 2, 0, 0, 258),
        "Ses04M": (122, 34, 84, 81, 182, 293, 8, 5, 0, 1, 306),
        "Ses05F": (78, 77, 82, 132, 221, 161, 7, 8, 0, 0, 267),
        "Ses05M": (92, 66, 217, 113, 163, 220, 11, 2, 0, 0, 253),
    }.items()
}

_TURN = re.compile(r"(?P<session>Ses\d\d)[FM]_(?P<scene>\w+)_(?P<gender>[FM])\d+")
# [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5000, 2.5000, 2.5000]
_HEAD = re.compile(r"\[[\d. ]+-[\d. ]+\]\s+(\S+)\s+(\w+)\s+\[([\d.]+), *([\d.]+), *([\d.]+)\]")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
_WORDS = re.compile(r"\s*(Ses\w+)\s*(?:\[[^\]]*\]\s*:?|:)(.*)")

# Own label, then valence, arousal and dominance.
Rating = tuple[str, tuple[float, ...]]


def read(folder: Path, *, labels: Labels = "four", partial: bool = False) -> list[Utterance]:
    """Reads the turns whose majority label is in the set; "four" gives the usual 5,531.

    With "all", happy and excited stay apart, and turns without a majority have no emotion.

    Args:
        folder: has Session1 to Session5.
        labels: a set of `LABELS`, or own labels (ang, hap, ...) to emotions.
        partial: whether to go on, and log it, where turns or audio files are missing.

    Raises:
        ValueError: a line cannot be read, a turn has two ratings that differ, or `EXPECTED` is
            not met.
        FileNotFoundError: a folder or an audio file is missing.
    """
    sessions = checks.visible(path for path in folder.glob("Session*") if path.is_dir())
    found = [utterance for session in sessions for utterance in _session(session)]
    return checks.finish("iemocap", found, labels=labels, expected=EXPECTED, partial=partial)


def _session(folder: Path) -> Iterator[Utterance]:
    ratings = _ratings(folder)
    words = _transcripts(folder)
    for name, (label, dimensions) in ratings.items():
        turn = _TURN.fullmatch(name)
        assert turn is not None, name  # _ratings lets no other through
        rated: dict[str, Any] = dict(zip(DIMENSIONS, dimensions, strict=True))
        scene = turn["scene"]
        improvised = scene.startswith("impro")
        dialogue = name.rpartition("_")[0]
        yield Utterance(
            utterance_id=name,
            corpus="iemocap",
            audio=str(folder / "sentences" / "wav" / dialogue / f"{name}.wav"),
            text=words.get(name),
            emotion=label,
            **rated,
            speaker_id=turn["session"] + turn["gender"],
            session_id=turn["session"],
            dialogue_id=dialogue,
            script_id=None if improvised else scene.rstrip("abcdefgh"),
            improvised=improvised,
            gender=checks.GENDERS[turn["gender"]],
        )


def _ratings(folder: Path) -> dict[str, Rating]:
    """Reads the heads of the evaluation files; single raters' lines have other beginnings."""
    ratings: dict[str, Rating] = {}
    problems = []
    # Deeper folders hold each rater's own files.
    for path in _text_files(folder / "dialog" / "EmoEvaluation"):
        for number, line in enumerate(checks.read_text(path).splitlines(), start=1):
            if not line.lstrip().startswith("["):
                continue
            head = _HEAD.fullmatch(line.strip())
            if head is None or _TURN.fullmatch(head[1]) is None:
                problems.append(f"{path}, line {number}: {line.strip()!r}")
                continue
            name, label, *dimensions = head.groups()
            rating = (label, tuple(map(float, dimensions)))
            # Some turns are rated twice, and equally.
            if ratings.setdefault(name, rating) != rating:
                problems.append(
                    f"{path}, line {number}: {name} is {rating}, before it was {ratings[name]}"
                )
    checks.refuse("iemocap: ratings that cannot be read or contradict others", problems)
    low, high = DIMENSION_RANGE
    outside = [name for name, (_, d) in ratings.items() if not low <= min(d) <= max(d) <= high]
    if outside:
        logger.warning(
            "iemocap: %d ratings in %s leave the scale, 1 to 5, and are kept", len(outside), folder
        )
    return ratings


def _transcripts(folder: Path) -> dict[str, str]:
    words: dict[str, str] = {}
    differing = 0
    for path in _text_files(folder / "dialog" / "transcriptions"):
        for line in checks.read_text(path).splitlines():
            # Lines without a turn's name are what the other person said meanwhile.
            match = _WORDS.fullmatch(line)
            if match and match[2].strip():
                spoken = match[2].strip()
                differing += words.setdefault(match[1], spoken) != spoken
    if differing:
        logger.warning(
            "iemocap: %d turns in %s have several transcripts; the first is kept", differing, folder
        )
    return words


def _text_files(folder: Path) -> list[Path]:
    return checks.visible(path for path in folder.iterdir() if path.suffix == ".txt")
