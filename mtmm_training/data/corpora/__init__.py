"""Speech emotion corpora: one module each, every one ends in a list of Utterances.

Ids: utterance, speaker, dialogue and script ids are `<corpus>_<the corpus's own id>`, such as
"ravdess_actor_01", so that corpora can be mixed. IEMOCAP alone keeps its own ("Ses01F", which no
other corpus can have): they are what every paper on it prints.

What is known of them ahead is in facts.toml: labels, totals, texts.

Emotions: `labels` chooses a set of labels.py, "four" (angry, happy, neutral, sad) or "all". What
is not in the set is left out, and counted in a warning.

Totals: each reader knows how many utterances its corpus has (`EXPECTED`); any other number is
refused, saying what is missing where. With `partial=True` that is logged, and what is there is read.

Speakers: some official splits share speakers, which no fold may. `official_split=True` reads such
a corpus for its official split only: see `read_corpus`.
"""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora.labels import FACTS
from mtmm_training.data.utterances import Utterance

# By name what facts.toml says. The module of this name has `read(folder, ...)`, which takes an absolute
# path and gives all utterances with the corpus's own labels, and `EXPECTED` (the totals that are checked).
CORPORA = FACTS

# What of read_corpus's own arguments no option of a reader may be called, and what sets it.
CORPUS_FLAGS = {"name": "--corpus", "folder": "--corpus_dir"}


def read_corpus(
    name: str, folder: str | Path, *, official_split: bool = False, **options: object
) -> list[Utterance]:
    """Reads a corpus as its makers distribute it.

    Args:
        name: one of `CORPORA`.
        folder: what the corpus was unpacked into; the reader's module shows the layout.
        official_split: read for folds of protocol "official". MELD, EmoBank and ESD share
            speakers (EmoBank: documents) between their splits, so these are then named apart by
            split; MSP-Podcast then keeps the speakers that nobody has identified. Not for other
            protocols: a person under two names could be on both sides of a fold.
        options: the reader's own, and of most: labels (a set of `LABELS`, or own labels to emotions),
            partial (go on, and log it, where `EXPECTED` is not met or a file is missing) and, where
            there are votes, undecided, as of `checks.finish`.

    Raises:
        ValueError: the corpus or an option is unknown, or the corpus is not as it should be.
        FileNotFoundError: the folder, or files that the corpus should have, are missing.
    """
    if name not in CORPORA:
        raise ValueError(f"`name`={name!r} is not a corpus; use one of {', '.join(CORPORA)}.")
    facts = FACTS[name]
    reader = importlib.import_module(f"{__name__}.{name}")
    own = list(inspect.signature(reader.read).parameters)[1:]
    common = ["partial"] + ["labels"] * ("emotions" in facts) + ["undecided"] * ("votes" in facts)
    known = list(dict.fromkeys([*own, *common]))
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"`{unknown[0]}` is not an option of {name}, as {', '.join(known)} are.")
    given: dict[str, Any] = {"partial": False, "official_split": official_split} | options
    place = Path(os.path.abspath(folder))
    found = reader.read(place, **{option: given[option] for option in own if option in given})
    if "totals_by" not in facts:
        return found
    from mtmm_training.data.corpora import checks

    # Totals are of the corpus's own labels, not of what listeners heard.
    expected = None if given.get("heard") else reader.EXPECTED
    kept = checks.finish(name, found, expected, **{o: given[o] for o in common if o in given})
    if official_split and "shared" in facts:
        return checks.apart_by_split(name, kept, facts["shared"])
    return kept
