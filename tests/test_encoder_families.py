"""Any encoder family of transformers that works forward also saves, loads and trains."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKOUT, gradient
from torch import nn

sys.path.insert(0, str(CHECKOUT / "benchmarks"))
import encoder_families

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel

AUDIO = ["wav2vec2-conformer", "wav2vec2-bert", "data2vec-audio", "unispeech-sat", "sew-d"]
AUDIO += ["moonshine", "speech_to_text", "parakeet_encoder", "audio-spectrogram-transformer"]
AUDIO += ["qwen2_audio_encoder", "glmasr_encoder"]
TEXT = ["t5", "bart", "xlm", "electra", "distilbert", "modernbert", "mra", "canine", "gpt2"]


def family_model(model_type: str, **overrides: Any) -> tuple[MTMMModel, dict[str, torch.Tensor]]:
    """A tiny model with one encoder of this family, and inputs for it."""
    modality = "audio" if model_type in AUDIO else "text"
    config = encoder_families.small_config(model_type)
    torch.manual_seed(0)
    model = MTMMModel(MTMMConfig.tiny(**{f"{modality}_config": config}, **overrides)).eval()
    return model, encoder_families.inputs_of(model, modality)


@pytest.mark.parametrize("model_type", AUDIO + TEXT)
def test_family_saves_and_loads(model_type: str) -> None:
    modality = "audio" if model_type in AUDIO else "text"
    assert list(encoder_families.steps(model_type, modality))[-1] == "loads"


def test_batch_norm_comes_back_with_its_counter(tmp_path: Path) -> None:
    """Its counter is an integer among weights that are floats."""
    model, _ = family_model("wav2vec2-conformer")
    norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm1d))
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    norm.running_mean.fill_(0.5)
    norm.num_batches_tracked.fill_(7)
    model.save_pretrained(tmp_path)
    loaded = MTMMModel.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name
    counters = [value for name, value in loaded.items() if name.endswith("num_batches_tracked")]
    assert {int(value) for value in counters} == {0, 7}


@pytest.mark.parametrize("model_type", ["wav2vec2-bert", "parakeet_encoder", "t5", "bart"])
def test_padding_changes_no_family(model_type: str) -> None:
    """Of those that mask their padding everywhere; Moonshine's group norm, say, hears it."""
    model, inputs = family_model(model_type)
    name, values = next(iter(inputs.items()))
    length = values.shape[1] * 5 // 8
    mask = torch.ones(2, values.shape[1]).long()
    mask[1, length:] = 0
    mask_name = "attention_mask" if name == "input_ids" else "audio_attention_mask"
    with torch.no_grad():
        padded = model(**{name: values, mask_name: mask}).emotion_logits[1]
        alone = model(**{name: values[1:, :length]}).emotion_logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_feature_extractors_names_mask_frames() -> None:
    """Of which there are more than features of a frame."""
    model, _ = family_model("wav2vec2-bert")
    values, mask = torch.randn(2, 400, 160), torch.ones(2, 400).long()
    mask[1, 250:] = 0
    with torch.no_grad():
        expected = model(input_values=values, audio_attention_mask=mask).logits
        assert torch.equal(model(input_features=values, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("model_type", ["wav2vec2-bert", "qwen2_audio_encoder", "t5"])
def test_absent_input_gives_every_weight_a_gradient(model_type: str) -> None:
    """An empty input of the family's shape goes through it, or DistributedDataParallel would stop."""
    free = {"freeze_audio_encoder": False, "freeze_text_encoder": False}
    model, _ = family_model(model_type, **free)
    other = {"input_ids": torch.randint(4, 100, (2, 9))}
    if model_type in TEXT:
        other = {"input_values": torch.randn(2, 4000)}
    model.train()(**other, emotion_labels=torch.tensor([0, 1])).loss.backward()
    encoder = model.audio_model if model_type in AUDIO else model.text_model
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert not gradient(parameter).any(), name
