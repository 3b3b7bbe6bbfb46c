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
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from mtmm_training.data.recordings import Excerpt, Recordings, excerpts
from mtmm_training.data.utterances import SPLITS, Utterance, by_id, few
from mtmm_training.files import read_json, write_json

logger = logging.getLogger(__name__)

Splits = dict[str, list[Utterance]]

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
        splits_of: dict[str, list[str]] = defaultdict(list)
        for split in SPLITS:
            for utterance_id in getattr(self, split):
                splits_of[utterance_id].append(split)
        empty = [split for split in SPLITS if not getattr(self, split)]
        if empty:
            raise ValueError(f"Split {empty[0]} of fold {self.name!r} is empty.")
        twice = [name for name, splits in splits_of.items() if len(splits) > 1]
        if twice:
            where = " and ".join(splits_of[twice[0]])
            raise ValueError(
                f"Utterance {twice[0]!r} is in {where} of fold {self.name!r}; list it once."
            )

    @classmethod
    def from_splits(
        cls,
        name: str,
        train: Sequence[Utterance],
        validation: Sequence[Utterance],
        test: Sequence[Utterance],
        *,
        script_disjoint: bool = False,
        audio: Mapping[str, Excerpt] | None = None,
    ) -> "Fold":
        """Makes a fold whose splits share no speaker, utterance or recording.

        Args:
            name: names the fold.
            train, validation, test: the utterances of each split.
            script_disjoint: whether the splits may share no script either.
            audio: what `excerpts` gives for these utterances (and maybe others); None = read the
                files now.

        Raises:
            ValueError: a split is empty, or something is in two splits that may not be.
        """
        splits = {"train": train, "validation": validation, "test": test}
        if audio is None:
            audio = excerpts([u for members in splits.values() for u in members], Recordings())
        ids = {split: tuple(u.utterance_id for u in members) for split, members in splits.items()}
        fold = cls(name, **ids)
        shared = _shared(splits, "Speaker", lambda u: u.speaker_id) or _shared_audio(splits, audio)
        if script_disjoint:
            shared = shared or _shared(splits, "Script", script_of)
        if shared:
            raise ValueError(f"{shared} of fold {name!r}; it may be in one split only.")
        return fold


def _shared(
    splits: Mapping[str, Sequence[Utterance]], kind: str, key: Callable[[Utterance], str]
) -> str | None:
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
    heard: dict[str, list[Heard]] = defaultdict(list)
    for split, members in splits.items():
        for u in members:
            if u.audio is not None:
                file, start, end = audio[u.utterance_id]
                end = math.inf if end is None else end
                heard[file].append((start, end, split, u.utterance_id))
    for parts in heard.values():
        for (*first, split, name), (*second, other, other_name) in _overlapping(parts):
            both = min(first[1], second[1]) - max(first[0], second[0])
            shorter = min(end - start for start, end in (first, second))
            if split != other and both >= shorter / 2:
                one, another = sorted((split, other), key=SPLITS.index)
                names = _shown({name, other_name})
                return f"One recording under the names {names} is in both {one} and {another}"
    return None


Heard = tuple[float, float, str, str]  # of a recording: start and end in seconds, split, utterance


def _overlapping(parts: Iterable[Heard]) -> Iterator[tuple[Heard, Heard]]:
    """Pairs that share some time."""
    going: list[Heard] = []
    for part in sorted(parts):
        going = [earlier for earlier in going if earlier[1] > part[0]]
        yield from ((earlier, part) for earlier in going)
        going.append(part)


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
        raise ValueError(
            f"Utterance {utterance.utterance_id!r} has neither a script nor a transcript, which "
            "script-disjoint folds need."
        )
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", utterance.text).casefold())
    return " ".join(words) or utterance.text


# ---- protocols ---------------------------------------------------------------------------------
# Each yields a fold's name and its splits; `make_folds` does the checks that they share.


def _leave_out(
    utterances: Sequence[Utterance],
    key: Callable[[Utterance], object],
    validation: Iterable[object],
    test: Iterable[object],
) -> Splits:
    """Splits by key: those named into validation and test, everything else into train."""
    split_of = dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")
    splits: Splits = {split: [] for split in SPLITS}
    for utterance in utterances:
        splits[split_of.get(key(utterance), "train")].append(utterance)
    return splits


def _speaker(utterance: Utterance) -> str:
    return utterance.speaker_id


def _speakers(utterances: Iterable[Utterance]) -> list[str]:
    return sorted({utterance.speaker_id for utterance in utterances})


def _speakers_by_session(utterances: Sequence[Utterance]) -> dict[str, list[str]]:
    sessions: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        if utterance.session_id is not None:
            sessions[utterance.session_id].append(utterance)
    return {session: _speakers(members) for session, members in sorted(sessions.items())}


def speaker_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """Leaves one session out: one of its two speakers tests, the partner validates."""
    for pair in _speakers_by_session(utterances).values():
        for test, validation in (pair, reversed(pair)):
            yield test, _leave_out(utterances, _speaker, [validation], [test])


def session_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """Leaves one session out to test; the next by name validates (the first after the last)."""
    sessions = list(_speakers_by_session(utterances))
    for index, test in enumerate(sessions):
        validation = sessions[(index + 1) % len(sessions)]
        yield test, _leave_out(utterances, lambda u: u.session_id, [validation], [test])


def leave_one_speaker_out_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """Leaves one speaker out to test; the next NEXT_SPEAKERS by name validate, cyclically."""
    speakers = _speakers(utterances)
    for index, test in enumerate(speakers):
        following = speakers[index + 1 :] + speakers[:index]
        yield test, _leave_out(utterances, _speaker, following[:NEXT_SPEAKERS], [test])


def grouped_folds(
    utterances: Sequence[Utterance], *, k: int, seed: int
) -> Iterator[tuple[str, Splits]]:
    """Divides the speakers into `k` groups of about as many utterances each.

    Group i tests in fold i, group i + 1 validates, cyclically. The groups depend on the speakers,
    their numbers of utterances and the seed only.
    """
    counts = Counter(u.speaker_id for u in utterances)
    speakers = sorted(counts)
    random.Random(seed).shuffle(speakers)
    groups: list[list[str]] = [[] for _ in range(k)]
    sizes = [0] * k
    # Largest first into the smallest group; the sort is stable, so the seed decides among equals.
    for speaker in sorted(speakers, key=lambda name: -counts[name]):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(speaker)
        sizes[smallest] += counts[speaker]
    for index, test in enumerate(groups):
        yield f"group_{index}", _leave_out(utterances, _speaker, groups[(index + 1) % k], test)


def official_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """The one fold that the utterances' own `split` gives."""
    yield "official", {split: [u for u in utterances if u.split == split] for split in SPLITS}


PROTOCOLS: dict[str, Callable[..., Iterator[tuple[str, Splits]]]] = {
    "speaker": speaker_folds,
    "session": session_folds,
    "leave_one_speaker_out": leave_one_speaker_out_folds,
    "grouped": grouped_folds,
    "official": official_folds,
}


def _unsuitable(protocol: str, utterances: Sequence[Utterance], k: int | None) -> str | None:
    """Why these utterances have no folds of this protocol, as words; None = they have."""
    speakers, sessions = _speakers(utterances), _speakers_by_session(utterances)
    homes = Counter(speaker for members in sessions.values() for speaker in members)
    unplaced = [u.utterance_id for u in utterances if u.session_id is None]
    unsplit = [u.utterance_id for u in utterances if u.split is None]
    # A speaker of two sessions would be tested twice, in folds of one name.
    several = [speaker for speaker, count in homes.items() if count > 1]
    no_pairs = [session for session, members in sessions.items() if len(members) != 2]
    place = (unplaced, f"needs the session of every utterance; {_shown(unplaced)} has none")
    problems: dict[str, list[tuple[object, str]]] = {
        "speaker": [
            (not sessions, "needs sessions; there are none"),
            place,
            (several, f"needs every speaker in one session; {_shown(several)} is in several"),
            (no_pairs, f"needs two speakers in every session; {_shown(no_pairs)} has others"),
        ],
        "session": [place, (len(sessions) < 3, f"needs 3 sessions; there are {len(sessions)}")],
        "leave_one_speaker_out": [
            (len(speakers) < NEXT_SPEAKERS + 2,
             f"needs {NEXT_SPEAKERS + 2} speakers; there are {len(speakers)}")
        ],
        "grouped": [
            (len(speakers) < 3, f"needs 3 speakers; there are {len(speakers)}"),
            (k is None or not 3 <= k <= len(speakers),
             f"needs `k` from 3 to {len(speakers)}, the number of speakers; it is {k}"),
        ],
        "official": [(unsplit, f"needs the split of every utterance; {_shown(unsplit)} has none")],
    }  # fmt: skip
    if k is not None and protocol != "grouped":
        return f"takes no `k`, which is {k}"
    return next((problem for condition, problem in problems[protocol] if condition), None)


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
    if problem := _unsuitable(protocol, utterances, k):
        raise ValueError(f"Protocol {protocol!r} {problem}.")
    options = {"k": k, "seed": seed} if protocol == "grouped" else {}
    audio = excerpts(utterances, recordings or Recordings())
    folds = []
    for name, splits in PROTOCOLS[protocol](utterances, **options):
        if script_disjoint:
            splits = _drop_shared_scripts(name, splits)
        fold = Fold.from_splits(name, **splits, script_disjoint=script_disjoint, audio=audio)
        folds.append(fold)
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
    unknown = {*validation, *test} - set(known)
    both = set(validation) & set(test)
    if unknown or both:
        problem = "in both validation and test" if both else f"unknown; there are {few(known)}"
        raise ValueError(f"Speaker {_shown(both or unknown)} is {problem}.")
    splits = _leave_out(utterances, _speaker, validation, test)
    audio = excerpts(utterances, recordings or Recordings())
    return Fold.from_splits("+".join(test), *(splits[name] for name in SPLITS), audio=audio)


def _check_utterances(utterances: Sequence[Utterance]) -> None:
    keyed = by_id(utterances)
    unnamed = [name for name, u in keyed.items() if u.speaker_id.lower() == "unknown"]
    if unnamed:
        raise ValueError(
            f"{len(unnamed)} utterances have the speaker 'unknown' ({_shown(unnamed)}), who may be "
            "several people; leave these utterances out."
        )


def _drop_shared_scripts(name: str, splits: Splits) -> Splits:
    kept = dict(splits)
    taken: set[str] = set()
    for split in reversed(SPLITS):
        kept[split] = [u for u in splits[split] if script_of(u) not in taken]
        taken |= {script_of(u) for u in kept[split]}
    dropped = {split: len(splits[split]) - len(kept[split]) for split in ("train", "validation")}
    none_left = [
        split
        for split in dropped
        if any(u.improvised is False for u in splits[split])
        and not any(u.improvised is False for u in kept[split])
    ]
    logger.warning(
        "fold %s: script_disjoint dropped %s of %d scripts%s",
        name,
        dropped,
        len({script_of(u) for members in splits.values() for u in members}),
        f"; no scripted utterance is left in {' and '.join(none_left)}" if none_left else "",
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
        raise ValueError(
            f"Fold {fold.name!r} has {len(missing)} utterances that are not among the "
            f"{len(keyed)} given ({_shown(missing)})."
        )
    return {split: [keyed[name] for name in getattr(fold, split)] for split in SPLITS}


def save_folds(folds: Iterable[Fold], path: str | Path) -> None:
    """Writes folds as JSON, {"folds": [{"name", "train", "validation", "test"}, ...]}, by id."""
    write_json({"folds": [asdict(fold) for fold in folds]}, Path(path))


def load_folds(
    path: str | Path,
    utterances: Sequence[Utterance],
    *,
    script_disjoint: bool = False,
    recordings: Recordings | None = None,
) -> list[Fold]:
    """Reads what `save_folds` wrote, and checks it again as if it were new.

    Args:
        path: the JSON file.
        utterances: those that the folds were made from, or more.
        script_disjoint: whether to check that the splits share no script.
        recordings: as of `make_folds`.

    Raises:
        ValueError: the file is not one of folds, names other utterances, or has a fold that
            `Fold.from_splits` refuses.
    """
    try:
        folds = [
            Fold(entry["name"], **{split: tuple(entry[split]) for split in SPLITS})
            for entry in read_json(Path(path), "folds")["folds"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of folds; it lacks {error}.") from error
    _check_utterances(utterances)
    audio = excerpts(utterances, recordings or Recordings())
    return [
        Fold.from_splits(
            fold.name, **select(utterances, fold), script_disjoint=script_disjoint, audio=audio
        )
        for fold in folds
    ]
