"""What each corpus calls its emotions, and what they are called here.

In a set, an own label that has an emotion is that emotion; one that has None has no emotion label
but stays for the other tasks; one that is not there is left out. Set "all" has every own label.

Votes go the same way: those for own labels of one emotion are merged, and those for a label that has
no emotion in the set are kept as "other". So an utterance whose majority is left out may still have
votes for emotions of the set; readers keep it where `undecided` says so.
"""

from collections import Counter
from collections.abc import Mapping

from mtmm_training.data.utterances import OTHER


def _emotions(pairs: str) -> dict[str, str | None]:
    """Own label -> emotion, from "ang=angry xxx="; nothing behind the sign is no emotion."""
    split = (pair.split("=") for pair in pairs.split())
    return {own: emotion or None for own, emotion in split}


def _answers(pairs: str) -> dict[str, str]:
    return {answer: own for answer, own in _emotions(pairs).items() if own is not None}


def _sets(every: str, four: str = "") -> dict[str, dict[str, str | None]]:
    """Both sets: "four" has those of `every` that are one of the four emotions, and `four`."""
    all_ = _emotions(every)
    kept = {own: name for own, name in all_.items() if name in ("angry", "happy", "neutral", "sad")}
    return {"four": kept | _emotions(four), "all": all_}


# corpus -> name of the set -> own label -> emotion
LABELS = {
    # xxx: no majority among the raters
    "iemocap": _sets(
        "ang=angry hap=happy exc=excited neu=neutral sad=sad fru=frustrated sur=surprised "
        "fea=fearful dis=disgusted oth= xxx=",
        four="exc=happy",
    ),
    # O: other, X: no agreement
    "msp_podcast": _sets(
        "A=angry H=happy N=neutral S=sad U=surprised F=fearful D=disgusted C=contemptuous O= X="
    ),
    # MELD's own names, as in its published results.
    "meld": _sets(
        "anger=anger disgust=disgust fear=fear joy=joy neutral=neutral sadness=sadness "
        "surprise=surprise",
        four="anger=angry joy=happy sadness=sad",
    ),
    "crema_d": _sets("ANG=angry HAP=happy NEU=neutral SAD=sad DIS=disgusted FEA=fearful"),
    "ravdess": _sets(
        "01=neutral 02=calm 03=happy 04=sad 05=angry 06=fearful 07=disgusted 08=surprised",
        four="02=neutral",
    ),
    # initials of the German words
    "emodb": _sets("W=angry F=happy N=neutral T=sad L=bored E=disgusted A=fearful"),
    "esd": _sets("Angry=angry Happy=happy Neutral=neutral Sad=sad Surprise=surprised"),
}

# corpus -> what a rater's answer says -> own label
VOTES = {
    "iemocap": _answers(
        "Anger=ang Happiness=hap Excited=exc Neutral=neu Sadness=sad Frustration=fru Surprise=sur "
        "Fear=fea Disgust=dis Other=oth"
    ),
    # From Amused on these are secondary emotions alone.
    "msp_podcast": _answers(
        "Angry=A Happy=H Neutral=N Sad=S Surprise=U Surprised=U Fear=F Disgust=D Contempt=C Other=O "
        "Amused=O Excited=O Annoyed=O Frustrated=O Depressed=O Disappointed=O Concerned=O Confused=O"
    ),
    "crema_d": _answers("A=ANG D=DIS F=FEA H=HAP N=NEU S=SAD"),
}

Labels = str | Mapping[str, str | None]


def emotion_map(corpus: str, labels: Labels) -> Mapping[str, str | None]:
    """Returns own label -> emotion for a named set, or `labels` itself if it is a mapping.

    Raises:
        ValueError: the set is unknown, or the mapping has a label that the corpus does not.
    """
    sets = LABELS[corpus]
    if isinstance(labels, str) and labels in sets:
        return sets[labels]
    if isinstance(labels, str) or set(labels) - set(sets["all"]):
        raise ValueError(
            f"`labels`={labels!r} is none of {corpus}'s sets {', '.join(sets)}, nor a mapping from "
            f"its own labels {', '.join(sets['all'])}."
        )
    return labels


def own_label(corpus: str, answer: str) -> str:
    """The own label that a rater's answer stands for; "Other (tense)" and the like are "Other".

    Raises:
        ValueError: the answer is none of `VOTES`.
    """
    answers = VOTES[corpus]
    if answer.startswith("Other"):
        answer = "Other"
    if answer not in answers:
        raise ValueError(f"a rater's answer is {answer!r}, and not one of {', '.join(answers)}")
    return answers[answer]


def named_votes(
    votes: Mapping[str, float] | None, emotions: Mapping[str, str | None]
) -> dict[str, float] | None:
    """Votes for own labels as votes for emotions, merged, the rest as "other"."""
    if not votes:
        return None
    named: Counter[str] = Counter()
    for own, count in votes.items():
        named[emotions.get(own) or OTHER] += count  # type: ignore[assignment]  # weights too
    return dict(named)
