"""What each corpus calls its emotions, and what they are called here.

In a set, an own label that has an emotion is that emotion; one that has None has no emotion label
but stays for the other tasks; one that is not there is left out. Set "all" has every own label.
"""

from collections.abc import Mapping


def _emotions(pairs: str) -> dict[str, str | None]:
    """Own label -> emotion, from "ang=angry xxx="; nothing behind the sign is no emotion."""
    split = (pair.split("=") for pair in pairs.split())
    return {own: emotion or None for own, emotion in split}


# corpus -> name of the set -> own label -> emotion
LABELS: dict[str, dict[str, dict[str, str | None]]] = {
    "iemocap": {
        "four": _emotions("ang=angry hap=happy exc=happy neu=neutral sad=sad"),
        # xxx: no majority among the raters
        "all": _emotions(
            "ang=angry hap=happy exc=excited neu=neutral sad=sad fru=frustrated sur=surprised "
            "fea=fearful dis=disgusted oth= xxx="
        ),
    },
    "msp_podcast": {
        "four": _emotions("A=angry H=happy N=neutral S=sad"),
        # O: other, X: no agreement
        "all": _emotions(
            "A=angry H=happy N=neutral S=sad U=surprised F=fearful D=disgusted C=contemptuous O= X="
        ),
    },
    "meld": {
        "four": _emotions("anger=angry joy=happy neutral=neutral sadness=sad"),
        # MELD's own names, as in its published results.
        "all": _emotions(
            "anger=anger disgust=disgust fear=fear joy=joy neutral=neutral sadness=sadness "
            "surprise=surprise"
        ),
    },
    "crema_d": {
        "four": _emotions("ANG=angry HAP=happy NEU=neutral SAD=sad"),
        "all": _emotions("ANG=angry HAP=happy NEU=neutral SAD=sad DIS=disgusted FEA=fearful"),
    },
    "ravdess": {
        "four": _emotions("01=neutral 02=neutral 03=happy 04=sad 05=angry"),
        "all": _emotions(
            "01=neutral 02=calm 03=happy 04=sad 05=angry 06=fearful 07=disgusted 08=surprised"
        ),
    },
    "emodb": {  # initials of the German words
        "four": _emotions("W=angry F=happy N=neutral T=sad"),
        "all": _emotions("W=angry F=happy N=neutral T=sad L=bored E=disgusted A=fearful"),
    },
    "esd": {
        "four": _emotions("Angry=angry Happy=happy Neutral=neutral Sad=sad"),
        "all": _emotions("Angry=angry Happy=happy Neutral=neutral Sad=sad Surprise=surprised"),
    },
}

Labels = str | Mapping[str, str | None]


def emotion_map(corpus: str, labels: Labels) -> Mapping[str, str | None]:
    """Returns own label -> emotion for a named set, or `labels` itself if it is a mapping.

    Raises:
        ValueError: the set is unknown, or the mapping has a label that the corpus does not.
    """
    sets = LABELS[corpus]
    unknown = [] if isinstance(labels, str) else sorted(set(labels) - set(sets["all"]))
    if unknown or (isinstance(labels, str) and labels not in sets):
        raise ValueError(
            f"`labels`={labels!r} is not possible for {corpus}; use one of {', '.join(sets)}, or a mapping "
            f"to emotions from its own labels, {', '.join(sets['all'])}."
        )
    return sets[labels] if isinstance(labels, str) else labels
