"""What the Hub's page and other tools do with a model of the task audio-classification."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AudioClassificationPipeline,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    pipeline,
)

from pipeline_mtmm import MTMMPipeline

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
