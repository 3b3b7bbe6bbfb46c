"""What single listeners said, as tensors of a batch: votes, and how far a mean of ratings is to be trusted.

A vote for an emotion that the model does not predict takes no part. A hard label is one vote, and a
mean without ratings is trusted wholly.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtmm_training.data.utterances import RATINGS, Utterance

LEAST_VARIANCE = 1e-3  # of means, in error variances: no rating is worth less than a thousandth


@dataclass(frozen=True)
class Opinions:
    """How votes and ratings of a training split count.

    Args:
        doubt: By dimension that has ratings, the variance of one rating around an utterance's mean
            over that of these means. A mean of n ratings weighs n / (n + doubt), which is its
            reliability: the smaller its standard error, the more it counts.
    """

    doubt: Mapping[str, float]

    @classmethod
    def of(cls, utterances: Sequence[Utterance], dimensions: Sequence[str]) -> "Opinions | None":
        """Those of a training split; None where no utterance has votes or ratings.

        Source: one-way analysis of variance, by the method of moments.
        """
        doubt = {}
        for name in dimensions:
            rated = [np.array(r) for u in utterances if (r := getattr(u, RATINGS[name]))]
            degrees = sum(len(ratings) - 1 for ratings in rated)
            if degrees:
                within = sum(len(ratings) * float(ratings.var()) for ratings in rated) / degrees
                means = np.array([ratings.mean() for ratings in rated])
                error = within * float(np.mean([1 / len(ratings) for ratings in rated]))
                between = max(float(means.var()) - error, LEAST_VARIANCE * within)
                doubt[name] = within / between if between else 0.0
        return cls(doubt) if doubt or any(u.votes for u in utterances) else None

    @property
    def rated(self) -> tuple[str, ...]:
        """The dimensions of which utterances have several ratings."""
        return tuple(self.doubt)

    def tensors(
        self, rows: Sequence[dict[str, Any]], emotions: Mapping[str, int], dimensions: Sequence[str]
    ) -> dict[str, Tensor]:
        """`emotion_votes`, `dimension_weights` and `dimension_ratings` of rows, see the model's forward."""
        votes = torch.zeros(len(rows), len(emotions))
        for votes_row, row in zip(votes, rows, strict=True):
            said = row.get("votes") or ({row["emotion"]: 1.0} if row["emotion"] else {})
            for name, count in said.items():
                if name in emotions and count is not None:
                    votes_row[emotions[name]] = count
        found = {"emotion_votes": votes}
        if self.doubt:
            ratings = [[row.get(RATINGS[name]) or [] for name in dimensions] for row in rows]
            most = max(len(own) for row in ratings for own in row)
            padded = [[own + [math.nan] * (most - len(own)) for own in row] for row in ratings]
            weights = [
                [len(own) / (len(own) + self.doubt.get(name, 0.0)) if own else 1.0
                 for name, own in zip(dimensions, row, strict=True)]
                for row in ratings
            ]  # fmt: skip
            found["dimension_ratings"] = torch.tensor(padded).reshape(
                len(rows), len(dimensions), most
            )
            found["dimension_weights"] = torch.tensor(weights)
        return found


def drop_votes(batch: dict[str, Any], share: float, *, seed: int, epoch: int) -> None:
    """Annotator dropout, in place: each vote is left out with this probability, but never all.

    Args:
        batch: What a collator gives; without `emotion_votes` nothing is done.
        share: Probability, 0 to 1.
        seed, epoch: With the utterance id they decide what is drawn.

    Source: ours, after training on one annotator at a time (Davani et al. 2022).
    """
    if share == 0.0 or "emotion_votes" not in batch:
        return
    votes = batch["emotion_votes"]
    for row, utterance_id in enumerate(batch["utterance_ids"]):
        draw = random.Random(f"votes/{seed}/{epoch}/{utterance_id}")
        single = [
            (emotion, min(1.0, count - number))  # a weight of 1.5 is a vote and half of one
            for emotion, count in enumerate(votes[row].tolist())
            for number in range(math.ceil(count))
        ]
        kept = [vote for vote in single if draw.random() >= share]
        votes[row] = 0
        for emotion, count in kept or single and [draw.choice(single)]:
            votes[row, emotion] += count
