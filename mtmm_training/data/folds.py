"""Folds: assignments of speakers to train, validation and test, and the protocols that make them.

A fold in which a speaker, an utterance or a recording is in two splits cannot be constructed.
Nothing here looks at labels.
"""

import hashlib
import json
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
from typing import Any

import soundfile

from mtmm_training.data.utterances import SPLITS, Utterance, by_id, digest, few
from mtmm_training.files import read_json, replacing

logger = logging.getLogger(__name__)

# SHA-256 of the audio file's content, start and end in seconds.
Recording = tuple[str, float, float | None]
Stretch = tuple[float, float, str, str]  # of a recording: start, end, split, utterance id
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
        for split in SPLITS:
            ids = getattr(self, split)
            if not ids:
                raise ValueError(f"Split {split} of fold {self.name!r} is empty; fill all three.")
            doubled = [name for name, count in Counter(ids).items() if count > 1]
            if doubled:
                raise ValueError(
                    f"Utterance {_shown(doubled)} occurs more than once in {split} of fold "
                    f"{self.name!r}; list every utterance once."
                )
        ids = {split: {name: name for name in getattr(self, split)} for split in SPLITS}
        _refuse_overlap(self.name, "Utterance", ids)

    @classmethod
    def from_splits(
        cls,
        name: str,
        train: Sequence[Utterance],
        validation: Sequence[Utterance],
        test: Sequence[Utterance],
        *,
        script_disjoint: bool = False,
        recordings: Mapping[str, Recording] | None = None,
    ) -> "Fold":
        """Makes a fold whose splits share no speaker, utterance or recording.

        Args:
            name: names the fold.
            train, validation, test: the utterances of each split.
            script_disjoint: whether the splits may share no script either.
            recordings: what `recording_digests` gives for these utterances (and maybe others), so
                that several folds hash the audio once; None = hash it now.

        Raises:
            ValueError: a split is empty, or something is in two splits that may not be.
        """
        splits = {"train": train, "validation": validation, "test": test}
        if recordings is None:
            recordings = recording_digests([u for split in splits.values() for u in split])
        _refuse_overlap(name, "Speaker", _keys(splits, lambda u: u.speaker_id))
        ids = {split: tuple(u.utterance_id for u in members) for split, members in splits.items()}
        fold = cls(name, **ids)
        _refuse_shared_audio(name, splits, recordings)
        if script_disjoint:
            _refuse_overlap(name, "Script", _keys(splits, script_of))
        return fold


def _keys(
    splits: Mapping[str, Iterable[Utterance]], key: Callable[[Utterance], str]
) -> dict[str, dict[object, str]]:
    return {split: {key(u): key(u) for u in members} for split, members in splits.items()}


def _refuse_overlap(fold: str, kind: str, keys: Mapping[str, Mapping[Any, str]]) -> None:
    """Raises where two splits share a key; `keys` has each split's keys and how to show them."""
    for first, second in combinations(SPLITS, 2):
        shared = keys[first].keys() & keys[second].keys()
        if shared:
            names = {keys[split][key] for split in (first, second) for key in shared}
            raise ValueError(
                f"{kind} {_shown(names)} is in both {first} and {second} of fold {fold!r}; "
                "it may be in one split only. Move or drop it."
            )


def _refuse_shared_audio(
    fold: str, splits: Mapping[str, Sequence[Utterance]], recordings: Mapping[str, Recording]
) -> None:
    """Raises where two splits hear the same: half or more of the shorter of two stretches.

    Less is let through: where people talk at once, their stretches of a dialogue overlap.
    """
    heard: dict[str, list[Stretch]] = defaultdict(list)
    for split, members in splits.items():
        for u in members:
            if u.audio is not None:
                digest, start, end = recordings[u.utterance_id]
                heard[digest].append(
                    (start, math.inf if end is None else end, split, u.utterance_id)
                )
    for stretches in heard.values():
        for (*first, split, name), (*second, other, other_name) in _overlapping(stretches):
            shared = min(first[1], second[1]) - max(first[0], second[0])
            shorter = min(end - start for start, end in (first, second))
            if split != other and shared >= shorter / 2:
                one, another = sorted((split, other), key=SPLITS.index)
                raise ValueError(
                    f"One recording under the names {_shown({name, other_name})} is in both {one} and "
                    f"{another} of fold {fold!r}; it may be in one split only. Move or drop it."
                )


def _overlapping(stretches: Iterable[Stretch]) -> Iterator[tuple[Stretch, Stretch]]:
    """Pairs of (start, end, ...) that share some time."""
    going: list[Stretch] = []
    for stretch in sorted(stretches):
        going = [earlier for earlier in going if earlier[1] > stretch[0]]
        yield from ((earlier, stretch) for earlier in going)
        going.append(stretch)


def _shown(names: Iterable[str]) -> str:
    return few([repr(name) for name in sorted(names)])


def recording_digests(utterances: Sequence[Utterance]) -> dict[str, Recording]:
    """Identifies each utterance's audio by content, and logs recordings with several names.

    Returns:
        Utterance id -> recording, for the utterances that have audio. Equal recordings are the
        same stretch of files with the same bytes, whatever their names.

    Raises:
        FileNotFoundError: an audio file is missing.
    """
    digests: dict[str, str] = {}
    recordings: dict[str, Recording] = {}
    for utterance in utterances:
        path = utterance.audio
        if path is None:
            continue
        if path not in digests:
            with open(path, "rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        # None and 0 both mean the file's beginning.
        start, end = utterance.start_s or 0.0, utterance.end_s
        if start and end is None:  # how much of it another stretch shares depends on its length
            end = _duration(path)
        recordings[utterance.utterance_id] = (digests[path], start, end)
    doubled = doubled_recordings(recordings)
    if doubled:
        logger.warning(
            "%d recordings occur under several names, first %s", len(doubled), _shown(doubled[0])
        )
    return recordings


def _duration(path: str) -> float | None:
    """Seconds, from the file's header; None of a damaged file, which whoever decodes it will name."""
    try:
        with open(path, "rb") as file:  # soundfile itself opens no path that is not UTF-8
            return float(soundfile.info(file).duration)
    except soundfile.LibsndfileError:
        return None


def doubled_recordings(recordings: Mapping[str, Recording]) -> list[tuple[str, ...]]:
    """Returns, for each recording that occurs under several ids, those ids."""
    names: dict[Recording, list[str]] = defaultdict(list)
    for utterance_id, recording in recordings.items():
        names[recording].append(utterance_id)
    return [tuple(ids) for ids in names.values() if len(ids) > 1]


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
            f"Utterance {utterance.utterance_id!r} has neither a script nor a transcript; "
            "script-disjoint folds need one of them for every utterance."
        )
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", utterance.text).casefold())
    return " ".join(words) or utterance.text


# Protocols. Each yields a fold's name and its splits; `make_folds` does the checks that they share.


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


def _by_session(utterances: Sequence[Utterance], protocol: str) -> dict[str, list[Utterance]]:
    sessions: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        if utterance.session_id is None:
            raise ValueError(
                f"Protocol {protocol!r} needs the session of every utterance, "
                f"{utterance.utterance_id!r} has none; use 'leave_one_speaker_out' or 'grouped'."
            )
        sessions[utterance.session_id].append(utterance)
    return dict(sorted(sessions.items()))


def speaker_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """Leaves one session out: one of its two speakers tests, the partner validates."""
    sessions = _by_session(utterances, "speaker")
    homes = Counter(speaker for members in sessions.values() for speaker in _speakers(members))
    several = [speaker for speaker, count in homes.items() if count > 1]
    if several:  # would be tested once for each, in folds of one name
        raise ValueError(
            f"Protocol 'speaker' needs every speaker in one session, {_shown(several)} is in several; "
            "use 'leave_one_speaker_out' or 'grouped'."
        )
    for session, members in sessions.items():
        pair = _speakers(members)
        if len(pair) != 2:
            raise ValueError(
                f"Protocol 'speaker' needs two speakers in every session, session {session!r} has "
                f"{len(pair)}; use 'session', 'leave_one_speaker_out' or 'grouped'."
            )
        for test, validation in (pair, reversed(pair)):
            yield test, _leave_out(utterances, _speaker, [validation], [test])


def session_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """Leaves one session out to test; the next by name validates (the first after the last)."""
    sessions = list(_by_session(utterances, "session"))
    _check_count("session", sessions, 3, "sessions")
    for index, test in enumerate(sessions):
        validation = sessions[(index + 1) % len(sessions)]
        yield test, _leave_out(utterances, lambda u: u.session_id, [validation], [test])


def leave_one_speaker_out_folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, Splits]]:
    """Leaves one speaker out to test; the next NEXT_SPEAKERS by name validate, cyclically."""
    speakers = _speakers(utterances)
    _check_count("leave_one_speaker_out", speakers, NEXT_SPEAKERS + 2, "speakers")
    for index, test in enumerate(speakers):
        following = speakers[index + 1 :] + speakers[:index]
        yield test, _leave_out(utterances, _speaker, following[:NEXT_SPEAKERS], [test])


def grouped_folds(
    utterances: Sequence[Utterance], *, k: int | None, seed: int
) -> Iterator[tuple[str, Splits]]:
    """Divides the speakers into `k` groups of about as many utterances each.

    Group i tests in fold i, group i + 1 validates, cyclically. The groups depend on the speakers,
    their numbers of utterances and the seed only.
    """
    counts = Counter(u.speaker_id for u in utterances)
    _check_count("grouped", sorted(counts), 3, "speakers")
    if k is None or not 3 <= k <= len(counts):
        raise ValueError(
            f"`k`={k!r} is not possible; protocol 'grouped' takes 3 to {len(counts)} folds here, "
            "the number of speakers."
        )
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
    without = [u.utterance_id for u in utterances if u.split is None]
    if without:
        raise ValueError(
            f"Protocol 'official' needs the split of every utterance, {len(without)} of "
            f"{len(utterances)} have none ({_shown(without)}); fill them or use another protocol."
        )
    yield "official", {split: [u for u in utterances if u.split == split] for split in SPLITS}


def _check_count(protocol: str, names: Sequence[str], least: int, what: str) -> None:
    if len(names) < least:
        raise ValueError(
            f"Protocol {protocol!r} needs at least {least} {what}, there are {len(names)} "
            f"({_shown(names)}); add some, or name speakers by --validation_speakers and --test_speakers "
            "(`fold_from_speakers`)."
        )


PROTOCOLS: dict[str, Callable[..., Iterator[tuple[str, Splits]]]] = {
    "speaker": speaker_folds,
    "session": session_folds,
    "leave_one_speaker_out": leave_one_speaker_out_folds,
    "grouped": grouped_folds,
    "official": official_folds,
}


def make_folds(
    utterances: Sequence[Utterance],
    protocol: str,
    *,
    k: int | None = None,
    seed: int = 0,
    improvised_only: bool = False,
    script_disjoint: bool = False,
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

    Raises:
        ValueError: the protocol is unknown or does not suit the utterances, or a split of a fold
            would be empty or share what it may not share.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol`={protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}.")
    if k is not None and protocol != "grouped":
        raise ValueError(f"`k`={k} is for protocol 'grouped' only; leave it out of {protocol!r}.")
    _check_utterances(utterances)
    if improvised_only:
        utterances = _improvised(utterances)
    options = {"k": k, "seed": seed} if protocol == "grouped" else {}
    recordings = recording_digests(utterances)
    folds = []
    for name, splits in PROTOCOLS[protocol](utterances, **options):
        if script_disjoint:
            splits = _drop_shared_scripts(name, splits)
        fold = Fold.from_splits(
            name, **splits, script_disjoint=script_disjoint, recordings=recordings
        )
        folds.append(fold)
    return folds


def fold_from_speakers(
    utterances: Sequence[Utterance],
    validation_speakers: Iterable[str],
    test_speakers: Iterable[str],
) -> Fold:
    """Makes the fold with these validation and test speakers; everyone else trains.

    Returns:
        The fold, named after its test speakers, joined with "+".

    Raises:
        ValueError: a speaker is unknown or in both lists, or a split would be empty.
    """
    _check_utterances(utterances)
    validation, test = list(validation_speakers), list(test_speakers)
    known = _speakers(utterances)
    unknown = {*validation, *test} - set(known)
    if unknown:
        raise ValueError(
            f"Speaker {_shown(unknown)} is unknown; the speakers are {', '.join(known)}."
        )
    both = set(validation) & set(test)
    if both:
        raise ValueError(f"Speaker {_shown(both)} is in both validation and test; choose one.")
    splits = _leave_out(utterances, _speaker, validation, test)
    return Fold.from_splits("+".join(test), *(splits[name] for name in SPLITS))


def _check_utterances(utterances: Sequence[Utterance]) -> None:
    keyed = by_id(utterances)
    if not keyed:
        raise ValueError("There are no utterances; folds need some for each of their three splits.")
    unnamed = [name for name, u in keyed.items() if u.speaker_id.lower() == "unknown"]
    if unnamed:
        raise ValueError(
            f"{len(unnamed)} utterances have the speaker 'unknown' ({_shown(unnamed)}), who may be "
            "several people and in any split; leave these utterances out."
        )


def _improvised(utterances: Sequence[Utterance]) -> list[Utterance]:
    kept = [u for u in utterances if u.improvised is True]
    if not kept:
        raise ValueError(
            "`improvised_only` needs utterances with improvised=True, there are none; give the "
            "manifest a column `improvised` or leave the option out."
        )
    logger.warning("improvised_only keeps %d of %d utterances", len(kept), len(utterances))
    return kept


def _drop_shared_scripts(name: str, splits: Splits) -> Splits:
    kept = dict(splits)
    taken: set[str] = set()
    for split in reversed(SPLITS):
        kept[split] = [u for u in splits[split] if script_of(u) not in taken]
        taken |= {script_of(u) for u in kept[split]}
        if splits[split] and not kept[split]:
            holders = " or ".join(SPLITS[SPLITS.index(split) + 1 :])
            scripts = {script_of(u) for members in splits.values() for u in members}
            raise ValueError(
                f"`script_disjoint` leaves {split} of fold {name!r} empty: {holders} has all "
                f"of its scripts, there are {len(scripts)} in all ({_shown(scripts)}). Use "
                "script_disjoint=False or a corpus with more scripts."
            )
    dropped = {split: len(splits[split]) - len(kept[split]) for split in ("train", "validation")}
    none_left = [
        split
        for split in dropped
        if any(u.improvised is False for u in splits[split])
        and not any(u.improvised is False for u in kept[split])
    ]
    logger.warning(
        "fold %s: script_disjoint dropped %s%s",
        name,
        dropped,
        f"; no scripted utterance is left in {' and '.join(none_left)}" if none_left else "",
    )
    return kept


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
            f"{len(keyed)} given ({_shown(missing)}); give those that the fold was made from."
        )
    return {split: [keyed[name] for name in getattr(fold, split)] for split in SPLITS}


def save_folds(folds: Iterable[Fold], path: str | Path) -> None:
    """Writes folds as JSON, {"folds": [{"name", "train", "validation", "test"}, ...]}, by id."""
    _save({"folds": [asdict(fold) for fold in folds]}, path)


def _save(content: Mapping[str, Any], path: str | Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def keep_folds(folds: Sequence[Fold], utterances: Sequence[Utterance], path: str | Path) -> None:
    """Writes what results are of, or checks that the file says the same.

    Args:
        folds: all of the protocol.
        utterances: those that the folds were made from.
        path: the file, which `load_folds` reads too.

    Raises:
        ValueError: the file has other folds or was of other labels or transcripts, or is damaged.
    """
    path = Path(path)
    data = digest(utterances)
    if not path.exists():
        _save({"data": data, "folds": [asdict(fold) for fold in folds]}, path)
        return
    kept = read_json(path, "data", "folds")
    old = kept["folds"]
    now = json.loads(json.dumps([asdict(fold) for fold in folds]))
    if len(old) != len(now):
        refuse_change(path.parent, "number of folds", len(old), len(now))
    for index, (before, after) in enumerate(zip(old, now, strict=True)):
        if before != after:
            part = next(part for part in after if before.get(part) != after[part])
            names = (
                f"{f['name']!r} with {len(f['test'])} test utterances" for f in (before, after)
            )
            refuse_change(path.parent, f"fold {index} (its {part})", *names)
    if kept["data"] != data:
        refuse_change(path.parent, "digest of labels and transcripts", kept["data"], data)


def refuse_change(out: Path, name: str, old: Any, new: Any) -> None:
    """Raises ValueError: results in `out` are of something else than what would be added to them."""
    raise ValueError(
        f"{out} was begun with other settings: {name} was {old}, now is {new}. Choose another --out, "
        "or delete it."
    )


def load_folds(
    path: str | Path, utterances: Sequence[Utterance], *, script_disjoint: bool = False
) -> list[Fold]:
    """Reads what `save_folds` wrote, and checks it again as if it were new.

    Args:
        path: the JSON file.
        utterances: those that the folds were made from, or more.
        script_disjoint: whether to check that the splits share no script.

    Raises:
        ValueError: the file is not one of folds, names other utterances, or has a fold that
            `Fold.from_splits` refuses.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        folds = [
            Fold(entry["name"], **{split: tuple(entry[split]) for split in SPLITS})
            for entry in content["folds"]
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of folds ({error!r}); write one with `save_folds`."
        ) from error
    _check_utterances(utterances)
    recordings = recording_digests(utterances)
    return [
        Fold.from_splits(
            fold.name,
            **select(utterances, fold),
            script_disjoint=script_disjoint,
            recordings=recordings,
        )
        for fold in folds
    ]
