"""What each corpus calls its emotions, and what they are called here.

In a set, an own label that has an emotion is that emotion; one that has None has no emotion label
but stays for the other tasks; one that is not there is left out. Set "all" has every own label.
"""

from collections.abc import Mapping


def _emotions(pairs: str) -> dict[str, str | None]:
    """Own label -> emotion, from "ang=angry xxx="; nothing behind the sign is no emotion."""
    split = (pair.split("=") for pair in pairs.split())
    return {own: emotion or None for own, emotion in split}


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
