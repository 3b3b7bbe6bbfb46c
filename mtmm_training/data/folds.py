"""Folds: assignments of speakers to train, validation and test, and the protocols that make them.

A fold in which a speaker, an utterance or a recording is in two splits cannot be constructed.
Nothing here looks at labels.
"""

import logging
import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from pathlib import Path
from typing import Any

from mtmm_training.data.files import read_json, without_collection
from mtmm_training.data.recordings import Excerpt, Recordings, shared_excerpts
from mtmm_training.data.utterances import SPLITS, Utterance, by_id, few

logger = logging.getLogger(__name__)
_speaker = attrgetter("speaker_id")

# Which speakers test and validate in each fold; everyone else trains.
PROTOCOLS = {
    "speaker": "one of the two speakers of a session tests, the partner validates",
    "session": "one session tests, the next by name validates (the first after the last)",
    "leave_one_speaker_out": "one speaker tests, the next two by name validate, cyclically",
    "grouped": "one of `k` groups of speakers, of about as many utterances, tests, the next validates",
    "official": "one fold: each utterance's own `split`",
}
Splits = dict[str, list[Utterance]]
Key = Callable[[Utterance], Any]

# Two, because corpora that number their speakers often alternate women and men (RAVDESS does).
NEXT_SPEAKERS = 2


@dataclass(frozen=True, slots=True)
class Fold:
    """One assignment of utterances to three splits, by id; make it with `Fold.from_splits`.

    Args:
        name: names the fold in file names and tables.
        train, validation, test: utterance ids, none of them twice, at least one in each.

    Raises:
        ValueError: a split is empty or an id occurs twice.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        empty = [split for split in SPLITS if not getattr(self, split)]
        names = [name for split in SPLITS for name in getattr(self, split)]
        repeated = len(set(names)) < len(names)
        twice = [n for n, count in Counter(names).items() if count > 1] if repeated else []
        if empty or twice:
            problem = f"split {empty[0]} is empty" if empty else f"{twice[0]!r} is in it twice"
            raise ValueError(f"Fold {self.name!r} cannot be: {problem}.")

    @classmethod
    def from_splits(
        cls,
        name: str,
        splits: Mapping[str, Sequence[Utterance]],
        audio: Mapping[str, Excerpt],
        script_disjoint: bool = False,
    ) -> "Fold":
        """Makes a fold whose splits share no speaker, utterance or recording.

        Args:
            name: names the fold.
            splits: the utterances of "train", "validation" and "test".
            audio: what `shared_excerpts` gives for these utterances, and maybe others.
            script_disjoint: whether the splits may share no script either.

        Raises:
            ValueError: a split is empty, or something is in two splits that may not be.
        """
        ids = {split: tuple(u.utterance_id for u in members) for split, members in splits.items()}
        fold = cls(name, **ids)
        shared = _shared(splits, "Speaker", _speaker) or _shared_audio(splits, audio)
        if script_disjoint:
            shared = shared or _shared(splits, "Script", script_of)
        if shared:
            raise ValueError(f"{shared} of fold {name!r}; it may be in one split only.")
        return fold


def _shared(splits: Mapping[str, Sequence[Utterance]], kind: str, key: Key) -> str | None:
    """What two splits have in common, as words; None = nothing."""
    keys = {split: {key(u) for u in members} for split, members in splits.items()}
    for one, other in combinations(SPLITS, 2):
        if both := keys[one] & keys[other]:
            return f"{kind} {_shown(both)} is in both {one} and {other}"
    return None


def _shared_audio(
    splits: Mapping[str, Sequence[Utterance]], audio: Mapping[str, Excerpt]
) -> str | None:
    """Two splits hear the same: half or more of the shorter of two excerpts of a recording.

    Less is let through: where people talk at once, their parts of a dialogue overlap.
    """
    heard: dict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    for split, members in splits.items():
        for u in members if audio else ():
            if u.utterance_id in audio:
                file, start, end = audio[u.utterance_id]
                heard[file].append((start, math.inf if end is None else end, split, u.utterance_id))
    for parts in heard.values():
        going: list[tuple[float, float, str, str]] = []  # those that end after the part begins
        for start, end, split, name in sorted(parts):
            going = [earlier for earlier in going if earlier[1] > start]
            for first, last, other, other_name in going:
                shorter = min(end - start, last - first)
                if split != other and min(end, last) - start >= shorter / 2:
                    one, another = sorted((split, other), key=SPLITS.index)
                    names = _shown({name, other_name})
                    return f"One recording under the names {names} is in both {one} and {another}"
            going.append((start, end, split, name))
    return None


def _shown(names: Iterable[str]) -> str:
    return few([repr(name) for name in sorted(names)])


def script_of(utterance: Utterance) -> str:
    """Returns what tells its words from others': the script's id, or the normalised transcript.

    Normalised means NFKC, case-folded, words only; a transcript without any word stays as it is.

    Raises:
        ValueError: the utterance has neither.
    """
    if utterance.script_id is not None:
        return utterance.script_id
    if utterance.text is None:
        name = utterance.utterance_id
        raise ValueError(f"Script-disjoint folds need a script or a transcript; {name!r} has none.")
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", utterance.text).casefold())
    return " ".join(words) or utterance.text


# ---- protocols ---------------------------------------------------------------------------------


def _leave_out(
    utterances: Sequence[Utterance], key: Key, validation: Iterable[object], test: Iterable[object]
) -> Splits:
    """Splits by key: those named into validation and test, everything else into train."""
    split_of = dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")
    splits: Splits = {split: [] for split in SPLITS}
    for utterance in utterances:
        splits[split_of.get(key(utterance), "train")].append(utterance)
    return splits


def _speakers(utterances: Iterable[Utterance]) -> list[str]:
    return sorted(set(map(_speaker, utterances)))


def _splits_of(
    protocol: str,
    utterances: Sequence[Utterance],
    sessions: Mapping[str, Sequence[str]],
    k: int | None,
    seed: int,
) -> Iterator[tuple[str, Splits]]:
    """Each fold's name and splits, as the protocol makes them; `make_folds` checks them."""
    speakers = _speakers(utterances)
    if protocol == "speaker":
        for pair in sessions.values():
            for test, validation in (pair, reversed(pair)):
                yield test, _leave_out(utterances, _speaker, [validation], [test])
    elif protocol == "session":
        names = list(sessions)
        for test, validation in zip(names, names[1:] + names[:1], strict=True):
            yield test, _leave_out(utterances, attrgetter("session_id"), [validation], [test])
    elif protocol == "leave_one_speaker_out":
        for index, test in enumerate(speakers):
            following = speakers[index + 1 :] + speakers[:index]
            yield test, _leave_out(utterances, _speaker, following[:NEXT_SPEAKERS], [test])
    elif protocol == "official":
        yield protocol, {split: [u for u in utterances if u.split == split] for split in SPLITS}
    else:
        counts = Counter(map(_speaker, utterances))
        random.Random(seed).shuffle(speakers)
        groups: list[list[str]] = [[] for _ in range(k or 0)]
        sizes = [0] * len(groups)
        # Largest first into the smallest group; the sort is stable, so the seed decides among equals.
        for speaker in sorted(speakers, key=lambda name: -counts[name]):
            smallest = sizes.index(min(sizes))
            groups[smallest].append(speaker)
            sizes[smallest] += counts[speaker]
        for index, group in enumerate(groups):
            following = groups[(index + 1) % len(groups)]
            yield f"group_{index}", _leave_out(utterances, _speaker, following, group)


@without_collection()
def make_folds(
    utterances: Sequence[Utterance],
    protocol: str,
    *,
    k: int | None = None,
    seed: int = 0,
    improvised_only: bool = False,
    script_disjoint: bool = False,
    recordings: Recordings | None = None,
) -> list[Fold]:
    """Makes the folds of a protocol.

    Args:
        utterances: with different ids and known speakers.
        protocol: one of `PROTOCOLS`.
        k: number of folds, for "grouped" only.
        seed: decides the groups of "grouped"; the other protocols have no chance in them.
        improvised_only: whether to leave out what is not known to be improvised.
        script_disjoint: whether to drop from train and validation the scripts of test, and from
            train those of validation (see `script_of`).
        recordings: what is known of the audio files; None = nothing yet.

    Raises:
        ValueError: the protocol is unknown or does not suit the utterances, or a split of a fold
            would be empty or share what it may not share.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol`={protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}.")
    _check_utterances(utterances)
    if improvised_only:
        kept = [u for u in utterances if u.improvised is True]
        logger.warning("improvised_only keeps %d of %d utterances", len(kept), len(utterances))
        utterances = kept
    members_of: dict[str, set[str]] = defaultdict(set)
    for u in utterances:
        if u.session_id is not None:
            members_of[u.session_id].add(u.speaker_id)
    sessions = {session: sorted(members) for session, members in sorted(members_of.items())}
    homes = Counter(speaker for members in sessions.values() for speaker in members)
    # A speaker of two sessions would be tested twice, in folds of one name.
    several = [speaker for speaker, count in homes.items() if count > 1]
    no_pairs = [session for session, members in sessions.items() if len(members) != 2]
    field = {"speaker": "session_id", "session": "session_id", "official": "split"}.get(protocol)
    lacking = [u.utterance_id for u in utterances if field and getattr(u, field) is None]
    checks = [
        (lacking, f"needs `{field}` of every utterance; {_shown(lacking)} has none"),
        (protocol == "speaker" and several, f"{_shown(several)} is in several sessions"),
        (protocol == "speaker" and no_pairs, f"session {_shown(no_pairs)} has not two speakers"),
        (
            (k is None) is (protocol == "grouped"),
            f"`k` is {k}; only 'grouped' has it, and needs it",
        ),
    ]
    if problem := next((text for wrong, text in checks if wrong), None):
        raise ValueError(f"Protocol {protocol!r} is not possible: {problem}.")
    audio = shared_excerpts(utterances, recordings or Recordings())
    folds = []
    for name, splits in _splits_of(protocol, utterances, sessions, k, seed):
        if script_disjoint:
            splits = _drop_shared_scripts(name, splits)
        folds.append(Fold.from_splits(name, splits, audio, script_disjoint))
    if not folds:
        raise ValueError(f"Protocol {protocol!r} makes no folds of {len(utterances)} utterances.")
    return folds


def fold_from_speakers(
    utterances: Sequence[Utterance],
    validation_speakers: Iterable[str],
    test_speakers: Iterable[str],
    *,
    recordings: Recordings | None = None,
) -> Fold:
    """Makes the fold with these validation and test speakers; everyone else trains.

    Args:
        utterances: with different ids and known speakers.
        validation_speakers, test_speakers: their ids.
        recordings: as of `make_folds`.

    Returns:
        The fold, named after its test speakers, joined with "+".

    Raises:
        ValueError: a speaker is unknown or in both lists, or a split would be empty.
    """
    _check_utterances(utterances)
    validation, test = list(validation_speakers), list(test_speakers)
    known = _speakers(utterances)
    wrong = ({*validation, *test} - set(known)) or (set(validation) & set(test))
    if wrong:
        raise ValueError(f"Speaker {_shown(wrong)} must be one of {few(known)}, and in one split.")
    splits = _leave_out(utterances, _speaker, validation, test)
    audio = shared_excerpts(utterances, recordings or Recordings())
    return Fold.from_splits("+".join(test), splits, audio)


def _check_utterances(utterances: Sequence[Utterance]) -> None:
    keyed = by_id(utterances)
    unnamed = [name for name, u in keyed.items() if u.speaker_id.lower() == "unknown"]
    if unnamed:
        shown = f"{len(unnamed)} utterances ({_shown(unnamed)})"
        raise ValueError(f"{shown} have the speaker 'unknown', who may be several; leave them out.")


def _drop_shared_scripts(name: str, splits: Splits) -> Splits:
    kept = dict(splits)
    taken: set[str] = set()
    for split in reversed(SPLITS):
        kept[split] = [u for u in splits[split] if script_of(u) not in taken]
        taken |= {script_of(u) for u in kept[split]}
    dropped = {split: len(splits[split]) - len(kept[split]) for split in ("train", "validation")}
    scripted = sum(u.improvised is False for u in kept["train"])
    logger.warning(
        "fold %s: script_disjoint dropped %s; %d scripted utterances train", name, dropped, scripted
    )
    return kept


# ---- folds and files ---------------------------------------------------------------------------


def select(utterances: Iterable[Utterance], fold: Fold) -> Splits:
    """Returns the fold's utterances, keyed "train", "validation" and "test", in the fold's order.

    Raises:
        ValueError: the fold names utterances that are not there.
    """
    keyed = by_id(utterances)
    missing = [name for split in SPLITS for name in getattr(fold, split) if name not in keyed]
    if missing:
        raise ValueError(f"Fold {fold.name!r} lacks {len(missing)} utterances: {_shown(missing)}.")
    return {split: [keyed[name] for name in getattr(fold, split)] for split in SPLITS}


def load_folds(
    path: str | Path,
    utterances: Sequence[Utterance],
    *,
    script_disjoint: bool = False,
    recordings: Recordings | None = None,
) -> list[Fold]:
    """Reads a file of folds, and checks them as if they were new.

    Args:
        path: a JSON file, {"folds": [{"name", "train", "validation", "test"}, ...]}, by id.
        utterances: those that the folds were made from, or more.
        script_disjoint: whether to check that the splits share no script.
        recordings: as of `make_folds`.

    Raises:
        ValueError: the file is not one of folds, names other utterances, or has a fold that
            `Fold.from_splits` refuses.
    """
    try:
        folds = [Fold(**entry) for entry in read_json(Path(path), "folds")["folds"]]
    except TypeError as error:
        raise ValueError(f"{path} is not a file of folds ({error}).") from error
    _check_utterances(utterances)
    audio = shared_excerpts(utterances, recordings or Recordings())
    return [Fold.from_splits(f.name, select(utterances, f), audio, script_disjoint) for f in folds]
