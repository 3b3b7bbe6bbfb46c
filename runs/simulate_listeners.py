"""Write a manifest of acted utterances again, with the votes of simulated listeners.

    python runs/simulate_listeners.py MANIFEST NEW_MANIFEST [SEED]

Each of 20 listeners hears the acted emotion with a probability of his own, .45 to .75, and .15 more
where the column "intensity" says strong; else one of the others, in the shares of CONFUSED. Three to
ten listeners hear an utterance. The emotion becomes that with most votes, and none where two lead.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance, leading

# Acted emotion -> what is heard in its place, and how often.
CONFUSED = {
    "angry": {"neutral": 0.4, "happy": 0.4, "sad": 0.2},
    "happy": {"neutral": 0.5, "angry": 0.3, "sad": 0.2},
    "neutral": {"sad": 0.6, "happy": 0.2, "angry": 0.2},
    "sad": {"neutral": 0.8, "angry": 0.1, "happy": 0.1},
}
LISTENERS = np.linspace(0.45, 0.75, 20)


def hear(utterance: Utterance, draw: np.random.Generator) -> Utterance:
    """The utterance with votes, and the emotion that leads among them."""
    acted = str(utterance.emotion)
    names = [acted, *CONFUSED[acted]]
    votes: Counter[str] = Counter()
    for listener in draw.choice(LISTENERS, draw.integers(3, 11), replace=False):
        right = listener + 0.15 * (dict(utterance.groups).get("intensity") == "strong")
        shares = [right, *((1 - right) * share for share in CONFUSED[acted].values())]
        votes[names[draw.choice(len(names), p=shares)]] += 1
    return replace(utterance, votes=dict(votes), emotion=leading(votes))


def main(path: str, new: str, seed: str = "0") -> None:
    """Read, listen, write, and print what the listeners said."""
    acted = read_manifest(path, groups=("intensity",))
    heard = [hear(u, np.random.default_rng([int(seed), n])) for n, u in enumerate(acted)]
    Path(new).parent.mkdir(parents=True, exist_ok=True)
    write_manifest(heard, new)
    pairs = list(zip(acted, heard, strict=True))
    wrong = sum(own.emotion not in (None, u.emotion) for u, own in pairs)
    print(
        f"{len(heard)} utterances, {sum(sum((u.votes or {}).values()) for u in heard):g} votes; "
        f"{sum(u.emotion is None for u in heard)} have no majority, {wrong} another one than acted"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
