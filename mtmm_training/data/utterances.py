"""The `Utterance` record: everything a corpus says about one utterance.

It is checked here, once, when the record is made.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

SPLITS = ("train", "validation", "test")
DIMENSIONS = ("valence", "arousal", "dominance")
RATINGS = {name: f"{name}_ratings" for name in DIMENSIONS}  # the fields of single ratings
OTHER = "other"  # in `votes`: what listeners said that the model does not predict

VERBATIM = ("audio", "text")  # fields whose white space is part of them
_NAMES = ("utterance_id", "corpus", "speaker_id")
_LISTED = 5
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class UtteranceError(ValueError):
    """One utterance cannot be used.

    Args:
        utterance_id: which.
        problem: what is wrong with it, as a sentence.
    """

    def __init__(self, utterance_id: str, problem: str) -> None:
        super().__init__(utterance_id, problem)
        self.utterance_id, self.problem = utterance_id, problem

    def __str__(self) -> str:
        return f"Utterance {self.utterance_id}: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """What one speaker said, labelled, as audio, transcript or both.

    Args:
        utterance_id: unique within everything that is used together.
        corpus: name of the source.
        audio: path of the audio file, or an address as of sounds.py; None = no audio.
        text: transcript; None = none (never a blank string).
        emotion: categorical label; None = not labelled, or no majority of the listeners.
        valence, arousal, dominance: on the corpus's own scale; None = not labelled.
        votes: emotion -> how many listeners heard it, or their weight; "other" is what they heard
            of emotions that have no name here. None = only the label is known.
        valence_ratings, arousal_ratings, dominance_ratings: what each rater said, on the scale of
            the means; None = only the mean is known.
        raters: who gave the ratings, in their order; None = not known.
        speaker_id: who speaks; folds keep speakers apart by it.
        session_id: recording day or sitting.
        dialogue_id: conversation.
        script_id: what was read or acted from; the same script_id means the same words, or
            words of the same scene.
        improvised: whether the words were the speaker's own; None = not known.
        split: the corpus's official split, "train", "validation" or "test".
        gender: as the corpus gives it.
        start_s, end_s: the part of the audio file in seconds; None = its beginning, its end.
        augmentation: what is done to the waveform in training, see augment.py; None = nothing. No
            column of a manifest.
        groups: further columns of a manifest by which scores are told apart, as (column, value);
            results do not depend on them.

    Raises:
        ValueError: a string is blank or padded with spaces, audio and text are both absent, a
            number is not finite, the part of the audio is empty, the split is not one of the three,
            or votes or ratings are empty, negative (votes), or fewer or more than the raters.
    """

    utterance_id: str
    corpus: str
    audio: str | None = None
    text: str | None = None
    emotion: str | None = None
    valence: float | None = None
    arousal: float | None = None
    dominance: float | None = None
    speaker_id: str
    session_id: str | None = None
    dialogue_id: str | None = None
    script_id: str | None = None
    improvised: bool | None = None
    split: str | None = None
    gender: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    augmentation: str | None = None
    groups: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # not in `digest`
    # In `digest` only where they are given, so that of other data is as it was before.
    votes: Mapping[str, float] | None = field(default=None, repr=False, hash=False)
    valence_ratings: tuple[float, ...] | None = field(default=None, repr=False)
    arousal_ratings: tuple[float, ...] | None = field(default=None, repr=False)
    dominance_ratings: tuple[float, ...] | None = field(default=None, repr=False)
    raters: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if found := next(self._problems(), None):
            field, problem = found
            value = getattr(self, field)
            named = f"{self.utterance_id!r:.200}"
            raise ValueError(f"`{field}`={value!r:.200} {problem} (utterance {named}).")

    def _problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with which field."""
        for name, value in zip(_FIELDS, _values_of(self), strict=True):
            if value is None:  # as most are
                continue
            if isinstance(value, str):
                stripped = value.strip()
                if not stripped:
                    yield name, "is blank; give None where it may be absent"
                elif not value.isprintable() and _UNWRITABLE.search(value):
                    yield name, "has a NUL or half a surrogate pair, which no text file holds"
                elif value != stripped and name not in VERBATIM:
                    yield name, "has white space around it"
            elif isinstance(value, float) and not math.isfinite(value):
                yield name, "is not a finite number"
        for name in _NAMES:
            if not isinstance(getattr(self, name), str):
                yield name, "is not a name"
        if self.audio is None and self.text is None:
            yield "text", "is absent, and so is `audio`; give at least one of the two"
        if self.split is not None and self.split not in SPLITS:
            yield "split", f"is not a split; use one of {', '.join(SPLITS)}"
        start = self.start_s or 0.0
        if start < 0:
            yield "start_s", "is negative"
        if self.end_s is not None and self.end_s <= start:
            yield "end_s", f"is not after the start, {start} s"
        if _opinions_of(self) != (None, None, None, None):
            yield from self._opinion_problems()

    def _opinion_problems(self) -> Iterator[tuple[str, str]]:
        if self.votes is not None:
            counts = list(self.votes.values())
            if not all(0 <= count < math.inf for count in counts) or not sum(counts) > 0:
                yield "votes", "are no counts of votes; give finite numbers from 0, some above it"
            if any(name != name.strip() or not name for name in self.votes):
                yield "votes", "have a name that is blank or has white space around it"
        for name in RATINGS.values():
            ratings = getattr(self, name)
            if ratings is None:
                continue
            if not ratings or not all(math.isfinite(rating) for rating in ratings):
                yield name, "are no ratings; give one finite number or more"
            if self.raters is not None and len(ratings) != len(self.raters):
                yield name, f"are {len(ratings)} ratings of {len(self.raters)} raters"


_FIELDS = [each.name for each in fields(Utterance)]
_values_of = attrgetter(*_FIELDS)
_opinions_of = attrgetter("votes", *RATINGS.values())


def without_fields(utterance: Utterance, names: Iterable[str]) -> Utterance:
    """The utterance with these fields absent; itself where they are."""
    absent: dict[str, Any] = {n: None for n in names if getattr(utterance, n) is not None}
    return replace(utterance, **absent) if absent else utterance


def leading(votes: Mapping[str, float]) -> str | None:
    """The emotion that more listeners heard than any other; None where two lead, or "other" does."""
    most = max(votes.values())
    leaders = [name for name, count in votes.items() if count == most]
    return leaders[0] if len(leaders) == 1 and leaders[0] != OTHER else None


def few(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are, for a message."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def listing(what: str, lines: Sequence[str], limit: int = _LISTED) -> str:
    """`what`, and below it the first lines and how many more there are, for a message."""
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    more = f"\n  and {len(lines) - limit:,} more" if len(lines) > limit else ""
    return f"{what}:{shown}{more}"


def digest(utterances: Iterable[Utterance]) -> str:
    """What results depend on beside the recordings' content, in 16 hexadecimal digits.

    That is every field but the recordings' paths, which may move, in the order of the utterances.
    """
    hashed = hashlib.sha256()
    for utterance in utterances:
        anywhere = copy(utterance)  # not `replace`, which would check it anew
        object.__setattr__(anywhere, "audio", utterance.audio and "recording")
        hashed.update(repr(anywhere).encode())
        if utterance.votes:
            hashed.update(repr(sorted(utterance.votes.items())).encode())
        for name in RATINGS.values():
            if getattr(utterance, name) is not None:
                hashed.update(f"{name}{getattr(utterance, name)}".encode())
    return hashed.hexdigest()[:16]


def by_id(utterances: Iterable[Utterance]) -> dict[str, Utterance]:
    """Returns the utterances keyed by id, in their order.

    Raises:
        ValueError: two utterances have the same id.
    """
    utterances = list(utterances)
    keyed = {utterance.utterance_id: utterance for utterance in utterances}
    if len(keyed) < len(utterances):
        counts = Counter(utterance.utterance_id for utterance in utterances)
        doubled = few([repr(name) for name, count in counts.items() if count > 1])
        raise ValueError(f"Utterance ids occur more than once: {doubled}; name the corpora apart.")
    return keyed
