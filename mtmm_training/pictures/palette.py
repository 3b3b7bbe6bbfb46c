"""The one palette: what of an answer is drawn, in which colour, in every picture and on the demo page.

Imports the standard library alone, because the demo's Space takes this one file with it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from zlib import crc32


class Look(NamedTuple):
    """How an emotion is drawn: colour never stands alone.

    Attributes:
        colour: as "#RRGGBB".
        marker: matplotlib's letter of the mark of a point.
        hatch: matplotlib's pattern of a bar.
    """

    colour: str
    marker: str
    hatch: str


# Okabe and Ito, "Color Universal Design", 2008; their yellow vanishes on white paper.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
GREY = "#737373"

# The hues that Okabe and Ito do not have are of Paul Tol, "Colour Schemes", 2021.
EMOTIONS = {
    "angry": Look(VERMILION, "s", ""),
    "happy": Look(ORANGE, "^", "///"),
    "sad": Look(BLUE, "v", "..."),
    "neutral": Look(GREY, "o", "\\\\\\"),
    "fearful": Look(PURPLE, "D", "xx"),
    "surprised": Look(SKY, "P", "||"),
    "disgusted": Look(GREEN, "X", "++"),
    "excited": Look("#DDCC77", "*", "oo"),
    "frustrated": Look("#661100", "<", "--"),
    "calm": Look("#44AA99", ">", "**"),
    "contemptuous": Look("#332288", "p", "OO"),
    "bored": Look("#999933", "h", "\\\\"),
    "unsure": Look(GREY, ".", ""),  # where no emotion is named
}
# MELD has names of its own for the same emotions.
NOUNS = {
    "anger": "angry", "joy": "happy", "sadness": "sad", "fear": "fearful", "surprise": "surprised",
    "disgust": "disgusted",
}  # fmt: skip
# For emotions of other names; none is a pair that a known emotion has.
OTHERS = [
    Look(colour, marker, hatch)
    for marker, hatch in (("d", "//"), ("H", ".."), ("8", "x"))
    for colour in COLOURS
]

# No emotion's colours, readable on white and on black, and matplotlib's line styles.
DIMENSIONS = {
    "valence": ("#AA3377", "-"),
    "arousal": ("#228833", "--"),
    "dominance": ("#CCBB44", ":"),
}

NO_DIMENSIONS = {"start", "end", "agreement"}  # the other numbers of an entry, and NAME_sd


def looks(emotions: Iterable[str]) -> dict[str, Look]:
    """Colour, marker and hatch of each emotion, by name.

    An emotion that the palette does not know gets a look by its name alone, the same in every
    picture. Where two such emotions would look the same, the later by name gets the next free look.

    Args:
        emotions: names; each is drawn in one picture.
    """
    names = sorted(set(emotions))
    known = {name: EMOTIONS.get(NOUNS.get(name, name)) for name in names}
    found = {name: look for name, look in known.items() if look is not None}
    for name in names:
        if name not in found:
            first = crc32(name.encode()) % len(OTHERS)
            turns = OTHERS[first:] + OTHERS[:first]
            free = (look for look in turns if look not in found.values())
            found[name] = next(free, turns[0])
    return found


def dimensions_of(*entries: Mapping[str, Any]) -> dict[str, float]:
    """Valence, arousal and others by name, of the first entry with a signal; those that were trained."""
    entry = next((entry for entry in entries if entry.get("scores")), entries[0])
    numbers = {k: v for k, v in entry.items() if isinstance(v, float) and k not in NO_DIMENSIONS}
    return {k: v for k, v in numbers.items() if not k.endswith("_sd")}


def colours(emotions: Iterable[str]) -> dict[str, str]:
    """Colour "#RRGGBB" of each emotion, by name."""
    return {name: look.colour for name, look in looks(emotions).items()}
