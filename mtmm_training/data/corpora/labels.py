"""What each corpus calls its emotions, and what they are called here.

In a set, an own label that has an emotion is that emotion; one that has None has no emotion label
but stays for the other tasks; one that is not there is left out. Set "all" has every own label.
"""

from collections.abc import Mapping

# corpus -> name of the set -> own label -> emotion
LABELS: dict[str, dict[str, dict[str, str | None]]] = {
    "iemocap": {
        "four": {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"},
        "all": {
            "ang": "angry",
            "hap": "happy",
            "exc": "excited",
            "neu": "neutral",
            "sad": "sad",
            "fru": "frustrated",
            "sur": "surprised",
            "fea": "fearful",
            "dis": "disgusted",
            "oth": None,
            "xxx": None,  # no majority among the raters
        },
    },
    "msp_podcast": {
        "four": {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"},
        "all": {
            "A": "angry",
            "H": "happy",
            "N": "neutral",
            "S": "sad",
            "U": "surprised",
            "F": "fearful",
            "D": "disgusted",
            "C": "contemptuous",
            "O": None,  # other
            "X": None,  # no agreement
        },
    },
    "meld": {
        "four": {"anger": "angry", "joy": "happy", "neutral": "neutral", "sadness": "sad"},
        # MELD's own names, as in its published results.
        "all": {
            name: name
            for name in ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
        },
    },
    "crema_d": {
        "four": {"ANG": "angry", "HAP": "happy", "NEU": "neutral", "SAD": "sad"},
        "all": {
            "ANG": "angry",
            "HAP": "happy",
            "NEU": "neutral",
            "SAD": "sad",
            "DIS": "disgusted",
            "FEA": "fearful",
        },
    },
    "ravdess": {
        "four": {"01": "neutral", "02": "neutral", "03": "happy", "04": "sad", "05": "angry"},
        "all": {
            "01": "neutral",
            "02": "calm",
            "03": "happy",
            "04": "sad",
            "05": "angry",
            "06": "fearful",
            "07": "disgusted",
            "08": "surprised",
        },
    },
    "emodb": {  # initials of the German words
        "four": {"W": "angry", "F": "happy", "N": "neutral", "T": "sad"},
        "all": {
            "W": "angry",
            "F": "happy",
            "N": "neutral",
            "T": "sad",
            "L": "bored",
            "E": "disgusted",
            "A": "fearful",
        },
    },
    "esd": {
        "four": {"Angry": "angry", "Happy": "happy", "Neutral": "neutral", "Sad": "sad"},
        "all": {
            "Angry": "angry",
            "Happy": "happy",
            "Neutral": "neutral",
            "Sad": "sad",
            "Surprise": "surprised",
        },
    },
}

Labels = str | Mapping[str, str | None]


def emotion_map(corpus: str, labels: Labels) -> Mapping[str, str | None]:
    """Returns own label -> emotion for a named set, or `labels` itself if it is a mapping.

    Raises:
        ValueError: the corpus has no emotion labels, the set is unknown, or the mapping has a
            label that the corpus does not.
    """
    if corpus not in LABELS:
        raise ValueError(f"`labels`={labels!r} is not possible; {corpus} has no emotion labels.")
    sets = LABELS[corpus]
    if isinstance(labels, str):
        if labels not in sets:
            raise ValueError(
                f"`labels`={labels!r} is unknown for {corpus}; use one of {', '.join(sets)}, or a "
                "mapping from its own labels to emotions."
            )
        return sets[labels]
    unknown = set(labels) - set(sets["all"])
    if unknown:
        raise ValueError(
            f"`labels` maps {', '.join(map(repr, sorted(unknown)))}, which {corpus} does not have; "
            f"its own labels are {', '.join(sets['all'])}."
        )
    return labels
