"""The loss of MTMM: cross-entropy of emotions and 1 − CCC of dimensions, over a global batch.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT_EMOTION = -100  # the emotion label of an utterance that has none; an absent dimension is NaN


def multi_task_loss(
    config: Any,
    emotion_logits: Tensor,
    dimensions: Tensor,
    emotion_labels: Tensor | None = None,
    dimension_labels: Tensor | None = None,
    class_weights: Tensor | None = None,
    reduce_sum: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy and weighted 1 − CCC, from sums over all utterances of a global batch.

    Args:
        config: Has the weights of the terms and the label smoothing.
        emotion_logits: (batch, emotions).
        dimensions: (batch, dimensions), on the labels' scale.
        emotion_labels: (batch,), −100 = absent; None = all absent.
        dimension_labels: (batch, dimensions), NaN = absent; None = all absent.
        class_weights: (emotions,), weights of the emotions in the cross-entropy, or None; only their
            ratios count.
        reduce_sum: Adds a vector of sums over all processes, differentiably; None = one process.

    Returns:
        The two terms of the loss, float32, (). Absent labels add a zero that is still connected to
        the graph.

    Source: paper, training; CCC: Lin 1989, population moments.
    """
    device = emotion_logits.device.type
    there = torch.amp.is_autocast_available(device)  # not on "meta"
    with torch.autocast(device, enabled=False) if there else nullcontext():
        logits, predictions = at_least_float32(emotion_logits), at_least_float32(dimensions)
        emotion_sums = _emotion_sums(config, logits, emotion_labels, class_weights)
        dimension_sums = _dimension_sums(config, predictions, dimension_labels)
        sums = torch.cat([emotion_sums, dimension_sums.flatten()])
        if reduce_sum is not None:
            sums = reduce_sum(sums)
        cross_entropy, weight = sums[0], sums[1]
        emotion_loss = cross_entropy / torch.where(weight > 0, weight, 1.0)
        terms = _one_minus_concordance(sums[2:].view(-1, 3, 3)).unbind()
        # One by one: a tensor of the weights would be a copy to the device that its host waits for.
        dimension_loss = sum(
            w * t for w, t in zip(config.dimension_loss_weights, terms, strict=True)
        )
        emotion_loss = config.emotion_loss_weight * emotion_loss
        return emotion_loss.to(logits), dimension_loss.to(predictions)


def at_least_float32(values: Tensor) -> Tensor:
    """The values as float32, or as they are where they are more precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _emotion_sums(
    config: Any, logits: Tensor, labels: Tensor | None, class_weights: Tensor | None
) -> Tensor:
    """Sum of the cross-entropies and of the labels' weights: (2,)."""
    if labels is None:
        labels = torch.full(logits.shape[:1], ABSENT_EMOTION, device=logits.device)
    weights = (
        logits.new_ones(logits.shape[1]) if class_weights is None else class_weights.to(logits)
    )
    # Their common factor cancels below, where sums of huge weights would have overflown before.
    weights = weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny)
    cross_entropy = F.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=ABSENT_EMOTION,
        label_smoothing=config.label_smoothing,
        reduction="sum",
    )
    present = labels != ABSENT_EMOTION
    weight = torch.where(present, weights[labels.clamp(min=0)], 0.0).sum()
    return torch.stack([cross_entropy, weight])


def _dimension_sums(config: Any, predictions: Tensor, labels: Tensor | None) -> Tensor:
    """Sums over the pairs that have a label: (dimensions, 3, 3), float64.

    For each dimension the products of (1, prediction, label) with each other, so its count, sums,
    squares and products come from one multiplication. In float32 the variance of nearly constant
    predictions would be a difference of rounding errors. Centred and scaled by the dimension range, to
    which CCC is indifferent, for the limit below which there is no spread.
    """
    on_mps = predictions.device.type == "mps"  # which has no float64
    predictions = predictions.to(torch.float32 if on_mps else torch.float64)
    if labels is None:
        labels = torch.full_like(predictions, torch.nan)
    if labels.shape != predictions.shape:  # or they would be broadcast in silence
        raise ValueError(
            f"`dimension_labels` are {tuple(labels.shape)}; they must be {tuple(predictions.shape)}."
        )
    low, high = config.dimension_range
    pairs = torch.stack([predictions, labels.to(predictions)])
    pairs = (pairs - (low + high) / 2) / ((high - low) / 2)
    columns = torch.cat([torch.ones_like(pairs[:1]), pairs])
    columns = columns.masked_fill(labels.isnan(), 0.0).permute(2, 0, 1)
    return columns @ columns.transpose(1, 2)


def _one_minus_concordance(sums: Tensor) -> Tensor:
    """1 − CCC of each dimension; where it is not defined, a zero that is connected to the graph.

    Args:
        sums: What [`_dimension_sums`] gives, over all processes.
    """
    count = sums[:, 0, 0]
    n = count.clamp(min=1)
    moments = sums / n[:, None, None]
    mean_x, mean_y = moments[:, 0, 1], moments[:, 0, 2]
    covariance = moments[:, 1, 2] - mean_x * mean_y
    difference = mean_x - mean_y
    # The squares' mean difference is the variances and the squared difference of means, less twice
    # the covariance; so CCC's denominator is that and twice the covariance.
    spread = (moments[:, 1, 1] - mean_x**2) + (moments[:, 2, 2] - mean_y**2) + difference**2
    # In units of half the dimension range: below this, labels and predictions are one constant.
    defined = (count >= 2) & (spread > 1e-8)
    concordance = 2 * covariance / spread.masked_fill(~defined, 1.0)
    return (1 - concordance) * defined
