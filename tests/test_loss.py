"""Cross-entropy and 1 − CCC: against direct formulas, with absent labels, over several processes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import gradient
from torch import Tensor

from configuration_mtmm import MTMMConfig
from loss_mtmm import multi_task_loss

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


@pytest.mark.parametrize("present", ["all", "some", "one_process_without", "opinions"])
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
    said = {}
    if present == "opinions":
        draw = torch.Generator().manual_seed(1)
        ratings = 1 + 4 * torch.rand(11, 2, 5, dtype=torch.float64, generator=draw)
        said = {
            "emotion_votes": torch.randint(0, 4, (11, 4), generator=draw),
            "dimension_weights": torch.rand(11, 2, generator=draw),
            "dimension_ratings": ratings,
        }

    def loss_of(part: slice, reduce_sum: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        given = (logits[part], predictions[part], emotions[part], labels[part])
        own = {name: value[part] for name, value in said.items()}
        own |= {"deviations": predictions[part] / 4} if said else {}
        return both(multi_task_loss(config, *given, weights, reduce_sum, **own))

    whole = loss_of(slice(None))
    whole_gradients = torch.autograd.grad(whole, (logits, predictions))

    parts = slice(0, 7), slice(7, None)
    statistics = []

    def collect(sums: Tensor) -> Tensor:
        statistics.append(sums)
        return sums

    for part in parts:
        loss_of(part, collect)
    total = statistics[0] + statistics[1]
    assert total.dim() == 1
    loss = loss_of(parts[0], lambda sums: total)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    gradients = torch.autograd.grad(loss, (logits, predictions))
    for ours, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


# Votes and single ratings.


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_hard_labels_are_one_vote(smoothing: float) -> None:
    logits, predictions, emotions, _ = batch()
    emotions[3] = -100
    votes = F.one_hot(emotions.clamp(min=0), 4) * (emotions != -100)[:, None]
    config, weights = MTMMConfig.tiny(label_smoothing=smoothing), torch.tensor([1.0, 2.0, 0.5, 1.5])
    hard = multi_task_loss(config, logits, predictions, emotions, None, weights)[0]
    soft = multi_task_loss(config, logits, predictions, None, None, weights, emotion_votes=votes)[0]
    assert soft.item() == pytest.approx(hard.item(), abs=1e-12)
    nobody = multi_task_loss(config, logits, predictions, emotion_votes=torch.zeros(12, 4))[0]
    assert nobody.item() == 0 and torch.autograd.grad(nobody, logits)[0].abs().max() == 0
    single = logits.detach().float().requires_grad_()  # the sums are float64 all the same
    nobody = multi_task_loss(config, single, predictions, emotion_votes=torch.zeros(12, 4))[0]
    assert torch.autograd.grad(nobody, single)[0].abs().max() == 0


def test_votes_weigh_by_how_many_there_are() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    votes = torch.tensor([[3.0, 1.0], [0.0, 1.0]])  # four votes weigh 4/5, one 1/2
    config = MTMMConfig.tiny(id2label={0: "angry", 1: "sad"})
    loss = multi_task_loss(config, logits, torch.zeros(2, 2), emotion_votes=votes)[0]
    p = logits.log_softmax(-1)
    first, second = -(0.75 * p[0, 0] + 0.25 * p[0, 1]), -p[1, 1]
    expected = 0.34 * (0.8 * first + 0.5 * second) / 1.3
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    with pytest.raises(ValueError, match="emotion_votes.*not"):
        multi_task_loss(config, logits, torch.zeros(2, 2), emotion_votes=votes[:, :1])


def test_doubtful_means_count_less_in_ccc() -> None:
    """A whole number as weight is so many copies."""
    logits, predictions, _, labels = batch(6)
    weights = torch.tensor([2.0, 1, 1, 3, 1, 0])[:, None].expand(6, 2)
    copies = [0, 0, 1, 2, 3, 3, 3, 4]
    once = multi_task_loss(CONFIG, logits, predictions, None, labels, dimension_weights=weights)[1]
    many = multi_task_loss(CONFIG, logits[copies], predictions[copies], None, labels[copies])[1]
    assert once.item() == pytest.approx(many.item(), abs=1e-12)


def test_spread_of_raters_is_learned_where_it_is_known() -> None:
    """The best deviation of one utterance is that of its ratings, with n − 1."""
    logits, predictions, _, labels = batch(2)
    nan = torch.nan
    ratings = torch.tensor([[[1.0, 2, 3, 4], [3, 3, nan, nan]], [[5, nan, nan, nan]] * 2])
    deviations = torch.full((2, 2), 1.0, dtype=torch.float64, requires_grad=True)

    def loss(of: Tensor) -> Tensor:
        return multi_task_loss(
            CONFIG, logits, predictions, None, labels, deviations=of, dimension_ratings=ratings
        )[1]

    (slopes,) = torch.autograd.grad(loss(deviations), deviations)
    assert slopes[0, 1] > 0 and (slopes[1] == 0).all()  # two who agree; one rating says nothing
    best = torch.full((2, 2), 5 / 3, dtype=torch.float64).sqrt().requires_grad_()
    assert torch.autograd.grad(loss(best), best)[0][0, 0].item() == pytest.approx(0, abs=1e-9)
