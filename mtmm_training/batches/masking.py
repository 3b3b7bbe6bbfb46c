"""What training hides: a modality of an utterance, or frames of its acoustic states.

Everything is drawn from (seed, epoch, utterance id), never from a global generator, so workers,
processes and resumed runs draw the same.
"""

import math
import random
from typing import Any

RMM_TEXT_SHARE = 0.6  # of the utterances that lose a modality, so many lose the text
RMM_FLOOR = 0.1  # a lower probability of random modality masking counts as none
MASKED_SPAN = 10  # positions that one gap hides, at most: 0.2 s without an acoustic stride
MASKS = {"audio": ("audio_attention_mask", "acoustic_attention_mask")}
MASKS |= {"text": ("attention_mask", "linguistic_attention_mask")}


def rmm_probability(epoch: int, epochs: int, start: float = 0.8) -> float:
    """Probability that an utterance loses a modality: a cosine from `start` to 0, cut at `RMM_FLOOR`.

    Args:
        epoch: From 0.
        epochs: How many are planned.
        start: In the first epoch, 0 to 1; 0 switches the masking off.

    Source: the paper's random modality masking; p(e) = start·(1 + cos(π·e/(E − 1)))/2.
    """
    progress = epoch / (epochs - 1) if epochs > 1 else 0.0
    probability = start * (1 + math.cos(math.pi * progress)) / 2
    return probability if probability >= RMM_FLOOR else 0.0


def mask_modalities(batch: dict[str, Any], probability: float, *, seed: int, epoch: int) -> None:
    """Random modality masking, in place: an utterance that has both modalities may lose one.

    Args:
        batch: What a collator gives; the mask row of a lost modality becomes zero.
        probability: How likely an utterance loses one, 0 to 1.
        seed, epoch: With the utterance id they decide what is drawn.

    Source: the paper; shares from a re-implementation; the draw per utterance is ours.
    """
    found = {modality: [n for n in MASKS[modality] if n in batch] for modality in MASKS}
    if probability == 0.0 or not all(found.values()):
        return
    names = {modality: present[0] for modality, present in found.items()}
    masks = {modality: batch[name] for modality, name in names.items()}
    both = (masks["audio"] != 0).any(-1) & (masks["text"] != 0).any(-1)
    for row, utterance_id in enumerate(batch["utterance_ids"]):
        draw = random.Random(f"{seed}/{epoch}/{utterance_id}")
        loses, loses_text = draw.random() < probability, draw.random() < RMM_TEXT_SHARE
        if loses and both[row]:
            masks["text" if loses_text else "audio"][row] = 0


def mask_frames(batch: dict[str, Any], share: float, *, seed: int, epoch: int) -> None:
    """Hides a share of each utterance's acoustic states, in place, by zeros in spans.

    Args:
        batch: What `CachedStates` gives; without `acoustic_states` nothing is done.
        share: Share of the real positions, 0 to 1; exactly so many, rounded, are hidden, in spans of
            MASKED_SPAN or a little fewer.
        seed, epoch: With the utterance id they decide what is drawn.

    Source: time masking of SpecAugment (Park et al. 2019), on states in place of spectra.
    """
    if share == 0.0 or "acoustic_states" not in batch:
        return
    lengths = (batch["acoustic_attention_mask"] != 0).sum(-1).tolist()
    for row, (utterance_id, length) in enumerate(zip(batch["utterance_ids"], lengths, strict=True)):
        draw = random.Random(f"frames/{seed}/{epoch}/{utterance_id}")
        for start, end in draw_spans(draw, length, round(share * length)):
            batch["acoustic_states"][row, ..., start:end, :] = 0


def draw_spans(draw: random.Random, length: int, hidden: int) -> list[tuple[int, int]]:
    """Spans (start, end) that do not overlap and together hide so many of `length` positions."""
    count = -(-hidden // MASKED_SPAN)
    gaps = sorted(draw.randint(0, length - hidden) for _ in range(count))  # seen before each span
    edges = [hidden * number // count for number in range(count + 1)] if count else []
    return [
        (gap + first, gap + last)
        for gap, first, last in zip(gaps, edges[:-1], edges[1:], strict=True)
    ]
