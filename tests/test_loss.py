"""Cross-entropy and 1 − CCC: against direct formulas, with absent labels, over several processes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import gradient
from torch import Tensor

from configuration_mtmm import MTMMConfig
from modeling_mtmm import multi_task_loss

CONFIG = MTMMConfig.tiny()
DOMINANCE = MTMMConfig.tiny(
    dimension_names=("valence", "arousal", "dominance"), dimension_loss_weights=(0.5, 0.3, 0.2)
)


def batch(utterances: int = 12, dimensions: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Logits, dimensions and their labels, float64, dimensions on the scale 1 to 5."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(utterances, 4, dtype=torch.float64, generator=generator)
    predictions = 1 + 4 * torch.rand(
        utterances, dimensions, dtype=torch.float64, generator=generator
    )
    labels = 1 + 4 * torch.rand(utterances, dimensions, dtype=torch.float64, generator=generator)
    emotions = torch.randint(0, 4, (utterances,), generator=generator)
    return logits.requires_grad_(), predictions.requires_grad_(), emotions, labels


def both(losses: tuple[Tensor, Tensor]) -> Tensor:
    return losses[0] + losses[1]


def direct_ccc(x: np.ndarray, y: np.ndarray) -> float:
    """Lin 1989, population moments."""
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


@pytest.mark.parametrize("config", [CONFIG, DOMINANCE], ids=["two", "three"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dimension_loss_matches_direct_formula(config: MTMMConfig, seed: int) -> None:
    count = len(config.dimension_names)
    logits, predictions, _, labels = batch(dimensions=count, seed=seed)
    emotion_loss, loss = multi_task_loss(config, logits, predictions, None, labels)
    x, y = predictions.detach().numpy(), labels.numpy()
    weights = config.dimension_loss_weights or ()
    assert len(weights) == count
    expected = sum(weight * (1 - direct_ccc(x[:, i], y[:, i])) for i, weight in enumerate(weights))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert emotion_loss.item() == 0


def test_gradient_matches_finite_differences() -> None:
    logits, predictions, emotions, labels = batch(6)
    emotions[2] = -100
    labels[1, 0] = labels[3, 1] = torch.nan
    config = MTMMConfig.tiny(label_smoothing=0.1)
    class_weights = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)

    def total(logits: Tensor, predictions: Tensor) -> Tensor:
        return both(multi_task_loss(config, logits, predictions, emotions, labels, class_weights))

    assert torch.autograd.gradcheck(total, (logits, predictions), atol=1e-7)


def test_absent_labels_take_no_part() -> None:
    logits, predictions, emotions, labels = batch(10)
    emotions[[0, 4]] = -100
    labels[[1, 5, 9], 0] = torch.nan
    labels[2, 1] = torch.nan
    emotion_loss, dimension_loss = multi_task_loss(CONFIG, logits, predictions, emotions, labels)
    kept = emotions != -100
    entropy = 0.34 * F.cross_entropy(logits[kept], emotions[kept])
    assert emotion_loss.item() == pytest.approx(entropy.item(), abs=1e-12)
    x, y = predictions.detach().numpy(), labels.numpy()
    there = ~np.isnan(y)
    expected = sum(0.33 * (1 - direct_ccc(x[there[:, i], i], y[there[:, i], i])) for i in range(2))
    assert dimension_loss.item() == pytest.approx(expected, abs=1e-12)
    (emotion_loss + dimension_loss).backward()
    assert not gradient(logits)[~kept].any() and gradient(logits)[kept].all()
    assert not gradient(predictions)[~torch.tensor(there)].any()
    assert gradient(predictions)[torch.tensor(there)].all()


def absent(labels: Tensor) -> Tensor:
    return torch.full_like(labels, torch.nan)


def one_label(labels: Tensor) -> Tensor:
    return torch.cat([labels[:1], absent(labels[1:])])


@pytest.mark.parametrize("change", [None, absent, one_label])
def test_too_few_labels_add_connected_zero(change: Callable[[Tensor], Tensor] | None) -> None:
    logits, predictions, _, whole = batch()
    labels = None if change is None else change(whole)
    emotions = None if change is None else torch.full((12,), -100)
    losses = multi_task_loss(CONFIG, logits, predictions, emotions, labels)
    assert [loss.item() for loss in losses] == [0, 0]
    both(losses).backward()
    assert not gradient(logits).any() and not gradient(predictions).any()


@pytest.mark.parametrize("count", [16, 1000])
@pytest.mark.parametrize("spread", [0, 5e-4, 1e-3, 1e-2])
def test_constant_labels_give_full_loss_in_float32(count: int, spread: float) -> None:
    """Predictions collapsed onto them, with a spread near float32's rounding of the squares."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    predictions = (4.6 + spread * noise).requires_grad_()
    labels = torch.full((count, 2), 4.6)
    loss = multi_task_loss(CONFIG, torch.zeros(count, 4), predictions, None, labels)[1]
    # CCC is 0, whatever they are; 0/0, if they are the same: a zero that is connected.
    assert loss.item() == pytest.approx(0.66 if spread else 0, abs=1e-6)
    loss.backward()
    assert gradient(predictions).abs().max() < 1e-3


@pytest.mark.parametrize("factor", [1e-40, 1e30, 3e38])
def test_class_weights_count_by_their_ratios(factor: float) -> None:
    logits, predictions, emotions, _ = batch(20)
    logits, weights = logits.detach().float(), torch.tensor([0.3, 1.0, 0.2, 0.5])
    expected = multi_task_loss(CONFIG, logits, predictions, emotions, None, weights)[0]
    loss = multi_task_loss(CONFIG, logits, predictions, emotions, None, factor * weights)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_emotion_loss_matches_torch(smoothing: float, weighted: bool) -> None:
    logits, predictions, emotions, _ = batch(20)
    emotions[3] = -100
    weights = torch.tensor([0.3, 1.0, 2.0, 5.0], dtype=torch.float64) if weighted else None
    config = MTMMConfig.tiny(label_smoothing=smoothing, emotion_loss_weight=0.7)
    loss = multi_task_loss(config, logits, predictions, emotions, None, weights)[0]
    expected = 0.7 * F.cross_entropy(logits, emotions, weight=weights, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("present", ["all", "some", "one_process_without"])
def test_summed_statistics_give_loss_of_whole_batch(present: str) -> None:
    """Two processes, each with its part of the batch, get the loss and gradient of the whole."""
    logits, predictions, emotions, labels = batch(11)
    if present == "some":
        emotions[::3] = -100
        labels[::2, 0] = torch.nan
    if present == "one_process_without":
        emotions[7:], labels[7:] = -100, torch.nan
    weights = torch.tensor([0.3, 1.0, 2.0, 5.0], dtype=torch.float64)
    config = MTMMConfig.tiny(label_smoothing=0.1)
    whole = both(multi_task_loss(config, logits, predictions, emotions, labels, weights))
    whole_gradients = torch.autograd.grad(whole, (logits, predictions))

    parts = [
        (logits[part], predictions[part], emotions[part], labels[part])
        for part in (slice(0, 7), slice(7, None))
    ]
    statistics = []

    def collect(sums: Tensor) -> Tensor:
        statistics.append(sums)
        return sums

    for part in parts:
        multi_task_loss(config, *part, weights, collect)
    total = statistics[0] + statistics[1]
    assert total.dim() == 1
    loss = both(multi_task_loss(config, *parts[0], weights, lambda sums: total))
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    gradients = torch.autograd.grad(loss, (logits, predictions))
    for ours, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
