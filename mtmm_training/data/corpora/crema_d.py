"""CREMA-D, as in its repository: twelve English sentences in six acted emotions by 91 actors.

Layout: AudioWAV/1001_DFA_ANG_XX.wav (actor, sentence, emotion, level), VideoDemographics.csv and
processedResults/tabulatedVotes.csv. The label is the emotion that was acted; `heard` makes it what
most listeners heard, and none where two emotions lead (644 recordings).

The votes are those of the presentation without a picture, whose rows have an index that begins with
1. One recording's name ends in X (1040_ITH_SAD_X.wav), in the votes in XX.

Source: github.com/CheyneyComputerScience/CREMA-D, README.md for codes and sentences; the totals
were counted in its folder AudioWAV and in its votes: 7,442 recordings, 68,568 votes.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mtmm_training.data.corpora.checks import acted, finish, logger, named_files, read_rows, tell
from mtmm_training.data.corpora.labels import FACTS
from mtmm_training.data.utterances import Utterance, leading

LAYOUT = "AudioWAV/1001_DFA_ANG_XX.wav and others"

# Nearly all actors have as many; five lack some.
_COUNTS = {"ANG": 14, "DIS": 14, "FEA": 14, "HAP": 14, "SAD": 14, "NEU": 12}
_SHORT = {"ANG": 13, "DIS": 13, "FEA": 13, "HAP": 13, "SAD": 13, "NEU": 11}
EXPECTED = {f"crema_d_{actor}": _COUNTS for actor in range(1001, 1092)}
EXPECTED |= {f"crema_d_{actor}": _COUNTS | {"NEU": 11} for actor in (1002, 1076)}
EXPECTED |= {f"crema_d_{actor}": _SHORT for actor in (1008, 1009, 1019)}

VOTES_FILE = "processedResults/tabulatedVotes.csv"
VOTED, TOTAL_VOTES = 7442, 68568

# One file ends in X.
_SCRIPT = rf"(?P<script>{'|'.join(FACTS['crema_d']['texts'])})"
_NAME = re.compile(rf"(?P<speaker>\d{{4}})_{_SCRIPT}_(?P<emotion>[A-Z]{{3}})_(LO|MD|HI|XX?)")


def read(folder: Path, *, partial: bool = False, heard: bool = False) -> list[Utterance]:
    """Reads all recordings: 7,442 with labels "all", 4,900 with "four".

    Args:
        folder: has AudioWAV, VideoDemographics.csv if genders are wanted, and the votes if these are.
        partial: whether to go on, and log it, where `EXPECTED` is not met.
        heard: whether the label is what most listeners heard, not what was acted.

    Raises:
        ValueError: a file name cannot be read, or `EXPECTED` is not met.
        FileNotFoundError: there is no audio, or with `heard` no file of votes.
    """
    names = named_files(folder / "AudioWAV", "*", _NAME, LAYOUT)
    people = folder / "VideoDemographics.csv"
    rows = read_rows(people, ("ActorID", "Sex")) if people.is_file() else {}
    genders = {row["ActorID"]: row["Sex"].lower() for row in rows.values()}
    found = acted("crema_d", names, genders)
    if heard or (folder / VOTES_FILE).is_file():
        votes = _votes(folder / VOTES_FILE, partial)
        found = [replace(u, votes=votes.get(_voted_name(u))) for u in found]
    else:
        logger.warning("crema_d: no votes in %s; labels are what was acted", folder / VOTES_FILE)
    if heard:
        finish("crema_d", found, EXPECTED, labels="all", partial=partial)  # of what was acted
        found = [replace(u, emotion=leading(u.votes)) for u in found if u.votes]
    return found


def _voted_name(utterance: Utterance) -> str:
    name = utterance.utterance_id.removeprefix("crema_d_")
    return f"{name}X" if name.endswith("_X") else name


def _votes(path: Path, partial: bool) -> dict[str, Mapping[str, float]]:
    """Recording -> own label -> how many listeners heard it.

    Raises:
        ValueError: the table is not as published.
        FileNotFoundError: there is none.
    """
    found: dict[str, Mapping[str, float]] = {}
    answers = FACTS["crema_d"]["votes"]
    for number, row in read_rows(path, ("", "fileName", "numResponses", *answers)).items():
        if not row[""].startswith("1"):
            continue
        counts = {own: float(row[letter]) for letter, own in answers.items()}
        if sum(counts.values()) != float(row["numResponses"]) or row["fileName"] in found:
            raise ValueError(f"{path} {number}: votes of {row['fileName']} are doubled or missing.")
        found[row["fileName"]] = {own: count for own, count in counts.items() if count}
    total = sum(sum(votes.values()) for votes in found.values())
    if (len(found), total) != (VOTED, TOTAL_VOTES):
        what = f"{total:,.0f} votes for {len(found):,} recordings, of {TOTAL_VOTES:,} for {VOTED:,}"
        tell(f"crema_d: {path.name} has {what}", ValueError, partial)
    return found
