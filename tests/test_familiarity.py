"""What is far from the training data: distances, limits, and what a run keeps of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import noise

from modeling_mtmm import MTMMModel
from pipeline_mtmm import MTMMPipeline
from pooled_mtmm import MTMMFamiliarity, pooled
from processing_mtmm import MTMMProcessor


def fitted(means: torch.Tensor) -> MTMMFamiliarity:
    familiarity = MTMMFamiliarity((means.shape[1], 8))
    familiarity.fit("audio", means)
    known = familiarity.distances("audio", means)
    familiarity.limit("audio", float(known[0].quantile(0.95)), float(known[1].quantile(0.95)))
    return familiarity


def test_far_along_or_apart_from_the_training_data_is_beyond_the_limit() -> None:
    torch.manual_seed(0)
    basis = torch.randn(3, 40)
    means = torch.randn(500, 3) @ basis + 0.01 * torch.randn(500, 40) + 5
    familiarity = fitted(means)
    new = torch.randn(500, 3) @ basis + 0.01 * torch.randn(500, 40) + 5
    share = (familiarity.distances("audio", new).amax(0) > 1).double().mean().item()
    assert 0.05 <= share <= 0.2
    along, apart = means[:1] + 8 * basis[:1], means[:1] + torch.randn(1, 40)
    assert (familiarity.distances("audio", torch.cat([along, apart])).amax(0) > 1.5).all()
    assert (familiarity.distances("text", torch.randn(4, 8)) == 0).all()  # never filled


def test_third_sentence_is_far_from_two() -> None:
    torch.manual_seed(0)
    two = torch.randn(2, 40)
    familiarity = fitted(two[torch.arange(60) % 2])
    own = familiarity.distances("audio", two).amax(0)
    other = familiarity.distances("audio", torch.stack([two.mean(0), torch.randn(40)]))
    assert (own <= 1).all() and other[1, 1] > 10


@pytest.mark.parametrize("sentences", [1, 2])
def test_training_sentence_is_not_far_in_another_precision(sentences: int) -> None:
    """An encoder's state of it is cached in half precision, or comes from a larger batch."""
    torch.manual_seed(0)
    for _ in range(20):
        said = torch.randn(sentences, 40) + 2
        familiarity = fitted(said.half().float()[torch.arange(60) % sentences])
        assert familiarity.distances("audio", said).max() <= 1
        assert familiarity.distances("audio", torch.randn(5, 40) + 2).amax(0).min() > 5


def test_padding_changes_nothing_and_an_absent_modality_has_no_distance(
    make_model: Callable[..., MTMMModel],
) -> None:
    model = make_model(familiarity=True).eval()
    assert model.familiarity is not None
    states, mask = torch.randn(3, 7, 32), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:], mask[2] = False, False
    torch.testing.assert_close(pooled(states, mask)[1], states[1, :4].mean(0))
    model.familiarity.fit("audio", pooled(torch.randn(50, 7, 32), mask[:1].expand(50, 7)))
    text, words = torch.randn(3, 5, 32), torch.ones(3, 5, dtype=torch.bool)
    output = model(
        acoustic_states=states, acoustic_attention_mask=mask,
        linguistic_states=text, linguistic_attention_mask=words,
    )  # fmt: skip
    assert output.unfamiliarity[:2, 0].min() > 0 and output.unfamiliarity[2, 0].isnan()
    assert not output.unfamiliarity[:, 1].isnan().any()


def test_statistics_are_saved_and_models_without_them_say_nothing(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor, tmp_path: Path
) -> None:
    plain = make_model(trained_outputs=("emotion",))
    pipe = MTMMPipeline(model=plain, processor=tiny_processor)
    sound = {"array": noise(0.5), "sampling_rate": 16000}
    before = pipe(sound)
    assert "unfamiliar" not in before
    familiarity = plain.add_familiarity()
    familiarity.fit("audio", torch.randn(50, 32) + 9)
    pipe.save_pretrained(tmp_path)
    again = MTMMPipeline(model=MTMMModel.from_pretrained(tmp_path), processor=tiny_processor)
    told = again(sound)
    assert told.pop("unfamiliar") == ["audio"]
    assert told["scores"] == pytest.approx(before["scores"])
    kept = again.model.familiarity.get_buffer("audio_weights")
    torch.testing.assert_close(kept, familiarity.get_buffer("audio_weights"))
