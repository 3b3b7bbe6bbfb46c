"""The loss of MTMM: cross-entropy of emotions and 1 − CCC of dimensions, over a global batch.

Where it is known what each listener said, the cross-entropy is to the shares of their votes, and the
spread of their ratings is learned too.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT_EMOTION = -100  # the emotion label of an utterance that has none; an absent dimension is NaN
# n votes weigh n / (n + 1), a hard label as one vote: shares of many votes are surer, but ten votes of
# one utterance tell less than one vote of each of ten.
VOTE_DOUBT = 1.0
DEVIATION_WEIGHT = 0.1  # of the raters' spread in the loss, beside the dimension's own


def multi_task_loss(
    config: Any,
    emotion_logits: Tensor,
    dimensions: Tensor,
    emotion_labels: Tensor | None = None,
    dimension_labels: Tensor | None = None,
    class_weights: Tensor | None = None,
    reduce_sum: Callable[[Tensor], Tensor] | None = None,
    *,
    emotion_votes: Tensor | None = None,
    dimension_weights: Tensor | None = None,
    deviations: Tensor | None = None,
    dimension_ratings: Tensor | None = None,
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
        emotion_votes: (batch, emotions), how many listeners heard each emotion, in place of
            `emotion_labels`; 0 throughout = absent.
        dimension_weights: (batch, dimensions), how much each label counts in CCC, 0 to 1; None = 1.
        deviations: (batch, dimensions), predicted standard deviation of the raters.
        dimension_ratings: (batch, dimensions, raters), NaN = absent; what `deviations` learn from.

    Returns:
        The two terms of the loss, float32, (). Absent labels add a zero that is still connected to
        the graph. The raters' spread is part of the second.

    Source: paper, training; CCC: Lin 1989, population moments; votes, weights and spread are ours.
    """
    device = emotion_logits.device.type
    there = torch.amp.is_autocast_available(device)  # not on "meta"
    with torch.autocast(device, enabled=False) if there else nullcontext():
        logits, predictions = at_least_float32(emotion_logits), at_least_float32(dimensions)
        if emotion_votes is None:
            sums = _emotion_sums(config, logits, emotion_labels, class_weights)
        else:
            sums = _vote_sums(config, logits, emotion_votes, class_weights)
        sums += (_dimension_sums(config, predictions, dimension_labels, dimension_weights),)
        if deviations is not None:
            sums += _deviation_sums(config, deviations, dimension_ratings)
        if reduce_sum is not None:
            flat = reduce_sum(torch.cat([each.reshape(-1) for each in sums]))
            parts = flat.split([each.numel() for each in sums])
            sums = tuple(p.view(each.shape) for p, each in zip(parts, sums, strict=True))
        cross_entropy, weight, products = sums[:3]
        # Not the least number: over that a gradient of zero would be infinite times zero.
        emotion_loss = cross_entropy / weight.clamp(min=torch.finfo(weight.dtype).tiny ** 0.5)
        dimension_loss = _weighted(config, _one_minus_concordance(config, products))
        if deviations is not None:
            likelihood, degrees = sums[3:]
            spread = _weighted(config, likelihood / torch.where(degrees > 0, degrees, 1.0))
            dimension_loss = dimension_loss + DEVIATION_WEIGHT * spread
        emotion_loss = config.emotion_loss_weight * emotion_loss
        return emotion_loss.to(logits), dimension_loss.to(predictions)


def _weighted(config: Any, terms: Tensor) -> Tensor:
    """The sum of the dimensions' terms (dimensions,), each by its weight in the loss.

    One by one: a tensor of the weights would be a copy to the device that its host waits for.
    """
    first, *others = config.dimension_loss_weights
    term, *terms_left = terms.unbind()
    total = first * term
    for weight, term in zip(others, terms_left, strict=True):
        total = torch.add(total, term, alpha=weight)
    return total


def labels_seen(
    outputs: int,
    before: Tensor | None,
    emotion_labels: Tensor | None,
    emotion_votes: Tensor | None,
    dimension_labels: Tensor | None,
) -> Tensor | None:
    """Which outputs had labels, here or before: (outputs,) of booleans on the labels' device."""
    given = [t for t in (dimension_labels, emotion_labels, emotion_votes) if t is not None]
    if not given:
        return before
    seen = torch.zeros(outputs, dtype=torch.bool, device=given[0].device)
    if before is not None:
        seen = seen | before.to(given[0].device)
    if emotion_votes is not None:
        seen[0] |= (emotion_votes > 0).any()
    elif emotion_labels is not None:
        seen[0] |= (emotion_labels != ABSENT_EMOTION).any()
    if dimension_labels is not None:
        seen[1:] |= ~dimension_labels.isnan().all(0)
    return seen


def at_least_float32(values: Tensor) -> Tensor:
    """The values as float32, or as they are where they are more precise."""
    return values.float() if values.dtype.itemsize < 4 else values


def _emotion_sums(
    config: Any, logits: Tensor, labels: Tensor | None, class_weights: Tensor | None
) -> tuple[Tensor, ...]:
    """Sum of the cross-entropies and of the labels' weights: () each."""
    if labels is None:
        labels = torch.full(logits.shape[:1], ABSENT_EMOTION, device=logits.device)
    weights = None if class_weights is None else _scaled(class_weights, logits)
    cross_entropy = F.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=ABSENT_EMOTION,
        label_smoothing=config.label_smoothing,
        reduction="sum",
    )
    present = labels != ABSENT_EMOTION
    if weights is None:
        return cross_entropy, present.sum(dtype=logits.dtype)
    weight = torch.where(present, weights[labels.clamp(min=0)], 0.0).sum()
    return cross_entropy, weight


def _vote_sums(
    config: Any, logits: Tensor, votes: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, ...]:
    """The same for votes. A vote weighs what its emotion does, an utterance what its votes do."""
    if votes.shape != logits.shape:  # or they would be broadcast in silence
        raise ValueError(f"`emotion_votes` are {tuple(votes.shape)}, not {tuple(logits.shape)}.")
    votes, weights = votes.to(logits), _scaled(class_weights, logits)
    total = votes.sum(-1, keepdim=True)
    trust = total / (total + VOTE_DOUBT)
    wanted = votes / torch.where(total > 0, total, 1.0) * trust
    # As torch smooths hard labels: a part of each is given to all emotions alike.
    smoothing = config.label_smoothing
    smoothed = (1 - smoothing) * wanted + smoothing / logits.shape[1] * trust
    entropy = -(smoothed * weights * logits.log_softmax(-1)).sum()
    return entropy, (wanted * weights).sum()


def _scaled(class_weights: Tensor | None, logits: Tensor) -> Tensor:
    """The emotions' weights, the highest one 1: (emotions,).

    Their common factor cancels later, where sums of huge weights would have overflown before.
    """
    if class_weights is None:
        return logits.new_ones(logits.shape[1])
    weights = class_weights.to(logits)
    return weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny)


def _deviation_sums(config: Any, deviations: Tensor, ratings: Tensor | None) -> tuple[Tensor, ...]:
    """Sums of the negative log likelihood of the raters' variances, and their degrees of freedom.

    (n − 1)·s²/σ² of n normal ratings around an unknown mean is chi-square distributed with n − 1
    degrees of freedom: what follows of σ is (n − 1)·(log σ + s²/2σ²), and needs no predicted mean.
    Returns (dimensions,) each.
    """
    deviations = at_least_float32(deviations)
    if ratings is None:
        ratings = torch.full((*deviations.shape, 1), torch.nan, device=deviations.device)
    low, high = config.dimension_range
    deviations = deviations / (high - low)
    present = ~ratings.isnan()
    values = torch.where(present, ratings.to(deviations), 0.0) / (high - low)
    count = present.sum(-1)
    mean = values.sum(-1) / count.clamp(min=1)
    squares = torch.where(present, (values - mean[..., None]) ** 2, 0.0).sum(-1)
    degrees = (count - 1).clamp(min=0).to(deviations)
    likelihood = degrees * deviations.log() + squares / (2 * deviations**2)
    return likelihood.sum(0), degrees.sum(0)


def _dimension_sums(
    config: Any, predictions: Tensor, labels: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Sums over the pairs that have a label: (dimensions, 3, 3), float64; with weights (…, 4, 3).

    For each dimension the products of (1, prediction, label) with each other, so its count, sums,
    squares and products come from one multiplication. In float32 the variance of nearly constant
    predictions would be a difference of rounding errors. Centred in the dimension range, to which CCC
    is indifferent. With weights the products are weighted, and a first row without weights goes before
    them: it has the count.
    """
    if labels is None:
        labels = torch.full_like(predictions, torch.nan)
    if labels.shape != predictions.shape:  # or they would be broadcast in silence
        raise ValueError(f"`dimension_labels` are {[*labels.shape]}, not {[*predictions.shape]}.")
    low, high = config.dimension_range
    on_mps = predictions.device.type == "mps"  # which has no float64
    pairs = torch.stack([predictions, labels.to(predictions.device)])
    pairs = pairs.to(torch.float32 if on_mps else torch.float64)
    pairs = pairs - (low + high) / 2
    columns = F.pad(pairs, (0, 0, 0, 0, 1, 0), value=1.0)
    columns = columns.masked_fill(labels.isnan(), 0.0).permute(2, 0, 1)
    left = columns
    if weights is not None:
        left = torch.cat([columns[:, :1], columns * weights.to(columns).T[:, None]], dim=1)
    return torch.bmm(left, columns.transpose(1, 2))


def _one_minus_concordance(config: Any, sums: Tensor) -> Tensor:
    """1 − CCC of each dimension; where it is not defined, a zero that is connected to the graph.

    Args:
        config: Has the dimension range.
        sums: What [`_dimension_sums`] gives, over all processes.
    """
    products = sums.flatten(1)
    count, rows = products[:, 0], products[:, -9:]
    n = rows[:, :1].clamp(min=torch.finfo(rows.dtype).tiny)
    _, x, y, _, xx, xy, _, _, yy = (rows / n).unbind(1)
    # Lin's 1 - CCC in other words: the mean squared difference, by what it were if the two had
    # nothing to do with each other.
    squares = xx + yy
    spread = torch.addcmul(squares, x, y, value=-2)
    # Below (a ten-thousandth of half the range)², labels and predictions are one constant.
    low, high = config.dimension_range
    least = 1e-8 * ((high - low) / 2) ** 2
    defined = (count >= 2) & (spread > least)
    return torch.sub(squares, xy, alpha=2) / spread.clamp(min=least) * defined
