"""The loss of MTMM: cross-entropy of emotions and 1 − CCC of dimensions, over a global batch.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from collections.abc import Callable
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
    with torch.autocast(emotion_logits.device.type, enabled=False):
        logits, predictions = at_least_float32(emotion_logits), at_least_float32(dimensions)
        emotion_sums = _emotion_sums(config, logits, emotion_labels, class_weights)
        dimension_sums = _dimension_sums(config, predictions, dimension_labels)
        sums = torch.cat([emotion_sums, dimension_sums.flatten()])
        if reduce_sum is not None:
            sums = reduce_sum(sums)
        cross_entropy, weight = sums[0], sums[1]
        emotion_loss = cross_entropy / torch.where(weight > 0, weight, 1.0)
        concordance, defined = _concordance(sums[2:].view(6, -1))
        terms = torch.where(defined, 1 - concordance, concordance).unbind()
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
    """Count, sums, squares and products of the pairs that have a label: (6, dimensions), float64.

    In float32 the variance of nearly constant predictions would be a difference of rounding errors.
    Centred and scaled by the dimension range, to which CCC is indifferent, for the limit below which
    there is no spread.
    """
    on_mps = predictions.device.type == "mps"  # which has no float64
    predictions = predictions.to(torch.float32 if on_mps else torch.float64)
    if labels is None:
        labels = torch.full_like(predictions, torch.nan)
    if labels.shape != predictions.shape:  # or they would be broadcast in silence
        raise ValueError(
            f"`dimension_labels` are {tuple(labels.shape)}; they must be {tuple(predictions.shape)}."
        )
    present = ~labels.isnan()
    low, high = config.dimension_range
    middle, half_range = (low + high) / 2, (high - low) / 2
    x = torch.where(present, (predictions - middle) / half_range, predictions * 0)
    y = torch.where(present, (labels.to(predictions) - middle) / half_range, 0.0)
    return torch.stack([present.to(x).sum(0), *(v.sum(0) for v in (x, y, x * x, y * y, x * y))])


def _concordance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """CCC of each dimension, and whether it is defined; where not, a connected zero."""
    count, x, y, xx, yy, xy = sums
    n = count.clamp(min=1)
    mean_x, mean_y = x / n, y / n
    covariance = xy / n - mean_x * mean_y
    spread = (xx / n - mean_x**2) + (yy / n - mean_y**2) + (mean_x - mean_y) ** 2
    # In units of half the dimension range: below this, labels and predictions are one constant.
    defined = (count >= 2) & (spread > 1e-8)
    return 2 * torch.where(defined, covariance, xy * 0) / torch.where(defined, spread, 1.0), defined
