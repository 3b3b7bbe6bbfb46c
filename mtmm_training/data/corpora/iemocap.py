"""IEMOCAP, as released: dyadic acted dialogues in five sessions of a woman and a man each.

Layout: Session1 to Session5, and in each dialog/EmoEvaluation/<dialogue>.txt (labels),
dialog/transcriptions/<dialogue>.txt and sentences/wav/<dialogue>/<utterance>.wav.

The speaker is the session and the letter before the turn's number: Ses01F_impro01_M000 is spoken
by Ses01M. (The letter after the session says who wore the markers.) The label is the majority's,
from the line that heads each turn's ratings; the lines below it are the single raters': C-E2 and the
like name emotions, A-E3 and the like rate dimensions. Who names several has a part of a vote for
each. C-F1, A-M1 and the like are what the actors say of themselves: no votes, but the groups
"self_report", "self_valence", "self_arousal" and "self_dominance". Scripted turns have the scene as
script_id, without a part's letter (script01_1b repeats script01_1); improvised ones have none.
Every session plays all seven scenes, so script-disjoint folds train on improvised turns alone.

Source of the totals: 5,531 by class as in the usual protocol (paper.md, Antoniou et al. 2023); the
counts by speaker and label were counted in github.com/tae898/multimodal-datasets,
IEMOCAP/emotions.json, 10,039 turns with the release's labels, and agree with the former.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora import checks
from mtmm_training.data.corpora.labels import FACTS, own_label, totals
from mtmm_training.data.utterances import DIMENSIONS, Utterance

EXPECTED = totals("iemocap")

_TURN = re.compile(r"(?P<session>Ses\d\d)[FM]_(?P<scene>\w+)_(?P<gender>[FM])\d+")
# [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5000, 2.5000, 2.5000]
_HEAD = re.compile(r"\[[\d. ]+-[\d. ]+\]\s+(\S+)\s+(\w+)\s+\[([\d.]+), *([\d.]+), *([\d.]+)\]")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
_WORDS = re.compile(r"\s*(Ses\w+)\s*(?:\[[^\]]*\]\s*:?|:)(.*)")

# C-E2:<tab>Neutral; Sadness;<tab>(tired)
_CHOICE = re.compile(r"C-(E|F|M)(\d+):\s*([^()]*?)\s*(?:\(.*)?")
# A-E3:<tab>val 3; act 2; dom  2;<tab>()
_SCORES = re.compile(
    r"A-(E|F|M)(\d+):\s*val\s*(\d*)\s*;\s*act\s*(\d*)\s*;\s*dom\s*(\d*)\s*;?\s*(?:\(.*)?"
)

# Own label, then valence, arousal and dominance.
Rating = tuple[str, tuple[float, ...]]


def read(folder: Path) -> list[Utterance]:
    """Reads the turns; labels "four" give the usual 5,531.

    With "all", happy and excited stay apart, and turns without a majority have no emotion.

    Args:
        folder: has Session1 to Session5.

    Raises:
        ValueError: a line cannot be read, a turn has two ratings that differ, or `EXPECTED` is
            not met.
        FileNotFoundError: a folder or an audio file is missing.
    """
    sessions = checks.visible(path for path in folder.glob("Session*") if path.is_dir())
    found = [utterance for session in sessions for utterance in _session(session)]
    checks.tell_differing_opinions("iemocap", found)
    return found


def _session(folder: Path) -> Iterator[Utterance]:
    opinions: dict[str, dict[str, Any]] = {}
    ratings = _ratings(folder, opinions)
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
            **opinions[name],
            speaker_id=turn["session"] + turn["gender"],
            session_id=turn["session"],
            dialogue_id=dialogue,
            script_id=None if improvised else scene.rstrip("abcdefgh"),
            improvised=improvised,
            gender=checks.GENDERS[turn["gender"]],
        )


def _ratings(folder: Path, opinions: dict[str, dict[str, Any]]) -> dict[str, Rating]:
    """Reads the evaluation files: the heads, and into `opinions` the single raters' lines below."""
    ratings: dict[str, Rating] = {}
    lines: dict[str, list[str]] = {}
    problems = []
    # Deeper folders hold each rater's own files.
    for path in _text_files(folder / "dialog" / "EmoEvaluation"):
        below: list[str] = []
        for number, line in enumerate(checks.read_text(path).splitlines(), start=1):
            if re.match(r"\s*[CA]-", line):
                below.append(line.strip())
            if not line.lstrip().startswith("["):
                continue
            below = []  # the list that the lines to come are put into
            head = _HEAD.fullmatch(line.strip())
            if head is None or _TURN.fullmatch(head[1]) is None:
                problems.append(f"{path}, line {number}: {line.strip()!r}")
                continue
            name, label, *dimensions = head.groups()
            rating = (label, tuple(map(float, dimensions)))
            # Some turns are rated twice, and equally: the first ratings are kept.
            if name not in lines:
                lines[name] = below
            if ratings.setdefault(name, rating) != rating:
                problems.append(f"{path}, line {number}: {name} is {rating}, was {ratings[name]}")
    for name, below in lines.items():
        try:
            opinions[name] = _opinions(below)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    checks.refuse("iemocap: ratings that cannot be read or contradict others", problems)
    low, high = FACTS["iemocap"]["dimension_range"]
    outside = [name for name, (_, d) in ratings.items() if not low <= min(d) <= max(d) <= high]
    if outside:
        checks.logger.warning("iemocap: kept %d ratings in %s off the scale", len(outside), folder)
    return ratings


def _opinions(lines: list[str]) -> dict[str, Any]:
    """Votes, ratings, raters and self-reports of a turn, as fields of Utterance.

    Raises:
        ValueError: a line cannot be read, or names an emotion that is not known.
    """
    votes: Counter[str] = Counter()
    rated: dict[str, tuple[float, ...]] = {}
    groups: dict[str, str] = {}
    for line in lines:
        choice, scores = _CHOICE.fullmatch(line), _SCORES.fullmatch(line)
        if choice:
            answers = [answer.strip() for answer in choice[3].split(";") if answer.strip()]
            own = [own_label("iemocap", answer.removesuffix(" state")) for answer in answers]
            if choice[1] != "E" and own:
                groups["self_report"] = " ".join(own)
            elif choice[1] == "E":
                for label in own:
                    votes[label] += 1 / len(own)  # type: ignore[assignment]  # parts of votes
        elif scores:
            values = tuple(float(text or "nan") for text in scores.groups()[2:])
            if scores[1] == "E":
                rated[f"E{scores[2]}"] = values
            else:
                named = zip(DIMENSIONS, values, strict=True)
                groups |= {f"self_{name}": f"{value:g}" for name, value in named if value > 0}
        else:
            raise ValueError(f"{line!r} is no rater's line")
    return {"groups": tuple(groups.items()), "votes": dict(votes) or None} | checks.rated(
        rated.items()
    )


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
        checks.logger.warning(
            "iemocap: %d turns in %s have several transcripts; the first is kept", differing, folder
        )
    return words


def _text_files(folder: Path) -> list[Path]:
    return checks.visible(path for path in folder.iterdir() if path.suffix == ".txt")
