"""What the Hub's page and other tools do with a model of the task audio-classification."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AudioClassificationPipeline,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_mtmm import MTMMModel
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

RATE = 16000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, RATE // 2).astype(np.float32)
GIVEN = {"raw": NOISE, "sampling_rate": RATE}


@pytest.fixture(scope="module", params=["pipe", "whisper_pipe"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a temperature, which scores must take into account."""
    folder = tmp_path_factory.mktemp("saved")
    pipe: MTMMPipeline = request.getfixturevalue(request.param)
    before, pipe.model.config.temperature = pipe.model.config.temperature, 1.7
    pipe.save_pretrained(folder)
    pipe.model.config.temperature = before
    return folder


def test_the_hubs_snippet_gives_labels_and_scores(saved: Path) -> None:
    make: Any = pipeline
    ours = make(model=str(saved), trust_remote_code=True)
    assert type(ours).__name__ == "MTMMPipeline"
    expected = ours(dict(GIVEN))["scores"]
    stock: Any = make("audio-classification", model=str(saved), trust_remote_code=True)
    assert type(stock).__name__ == AudioClassificationPipeline.__name__
    found = stock(dict(GIVEN))
    assert [one["label"] for one in found] == list(expected)
    assert [one["score"] for one in found] == pytest.approx([*expected.values()], abs=1e-5)
    assert len(stock([dict(GIVEN)] * 2, top_k=2)[1]) == 2  # as evaluate's evaluator calls it


def test_a_plain_feature_extractor_feeds_the_model(saved: Path) -> None:
    model = AutoModelForAudioClassification.from_pretrained(saved, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(saved, trust_remote_code=True)
    padding = "longest" if "input_values" in extractor.model_input_names else "max_length"
    options = {"sampling_rate": RATE, "padding": padding, "return_tensors": "pt"}
    short = extractor([NOISE, NOISE[: RATE // 4]], **options)
    with torch.no_grad():
        both = model(**short)
        alone = model(**extractor(NOISE, sampling_rate=RATE, return_tensors="pt"))
    assert torch.allclose(both.logits[:1], alone.logits, atol=1e-4)
    assert torch.equal(both.logits, both.emotion_logits / 1.7)


def test_trainer_gives_the_labels_by_its_own_name(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForAudioClassification.from_pretrained(saved, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(saved, trust_remote_code=True)
    heard = extractor(NOISE, sampling_rate=RATE, return_tensors="pt")
    loss = model(**heard, labels=torch.tensor([1])).loss
    assert loss == model(**heard, emotion_labels=torch.tensor([1])).loss
    rows: Any = [{name: value[0] for name, value in heard.items()} | {"label": 1}] * 2
    options: dict[str, Any] = {
        "max_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
    }
    trainer = Trainer(model, TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    assert trainer.train().training_loss == pytest.approx(loss.item(), rel=0.2)


def test_weights_that_cannot_be_quantised_here_are_no_riddle(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchao's int4 on a CPU: transformers' error names a report of ten thousand lines."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("We encountered some issues during automatic conversion of the weights.")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    with pytest.raises(ValueError, match="Int4WeightOnlyConfig has no kernel for a CPU"):
        MTMMModel.from_pretrained(saved, quantization_config=BitsAndBytesConfig())
    with pytest.raises(RuntimeError, match="automatic conversion"):
        MTMMModel.from_pretrained(saved)


def test_the_last_maps_keep_their_bits(saved: Path, tmp_path: Path) -> None:
    """Rows as few as emotions are none that kernels of 4 bits take; `pipeline` tells the processor, too."""
    told = BitsAndBytesConfig(load_in_8bit=True)
    with suppress(ImportError):  # without bitsandbytes
        MTMMModel.from_pretrained(saved, quantization_config=told)
    assert "emotion_head.projection" in (told.llm_int8_skip_modules or ())
    processor: Any = MTMMProcessor.from_pretrained(saved, quantization_config=told)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer_config.json").is_file()
