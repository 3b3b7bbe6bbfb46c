"""What is known of each corpus ahead, in facts.toml: its emotions, and what they are called here.

In a set, an own label that has an emotion is that emotion; one that has None has no emotion label
but stays for the other tasks; one that is not there is left out. Set "all" has every own label.

Votes go the same way: those for own labels of one emotion are merged, and those for a label that has
no emotion in the set are kept as "other". So an utterance whose majority is left out may still have
votes for emotions of the set; readers keep it where `undecided` says so.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mtmm_training.data.files import facts_beside
from mtmm_training.data.utterances import OTHER

FACTS: dict[str, dict[str, Any]] = facts_beside(__file__, "facts.toml")
FOUR = ("angry", "happy", "neutral", "sad")


def _sets(facts: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Both sets of a corpus: own label -> emotion, by the set's name."""
    every = {own: emotion or None for own, emotion in facts["emotions"].items()}
    four = {own: emotion for own, emotion in every.items() if emotion in FOUR}
    return {"four": four | facts.get("four", {}), "all": every}


# corpus -> name of the set -> own label -> emotion
LABELS = {corpus: _sets(facts) for corpus, facts in FACTS.items() if "emotions" in facts}

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
            f"`labels`={labels!r}: {corpus} has {' and '.join(sets)}, or maps {', '.join(sets['all'])}."
        )
    return labels


def own_label(corpus: str, answer: str) -> str:
    """The own label that a rater's answer stands for; "Other (tense)" and the like are "Other".

    Raises:
        ValueError: the answer is none of the corpus's `votes`.
    """
    answers: dict[str, str] = FACTS[corpus]["votes"]
    if answer.startswith("Other"):
        answer = "Other"
    if answer not in answers:
        raise ValueError(f"a rater's answer is {answer!r}, and not one of {', '.join(answers)}")
    return answers[answer]


def named_votes(votes: Mapping[str, float], emotions: Mapping[str, str | None]) -> dict[str, float]:
    """Votes for own labels as votes for emotions, merged, the rest as "other"."""
    named: Counter[str] = Counter()
    for own, count in votes.items():
        named[emotions.get(own) or OTHER] += count  # type: ignore[assignment]  # weights too
    return dict(named)


def totals(corpus: str, prefix: str = "") -> dict[str, dict[str, int]]:
    """How many utterances the corpus has: speaker or split -> own label -> utterances."""
    facts = FACTS[corpus]
    return {
        f"{prefix}{group}": dict(zip(facts["emotions"], counts, strict=True))
        for group, counts in facts["totals"].items()
    }
