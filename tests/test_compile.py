"""Whole training runs with --compile equal eager ones.

torch's own code generation takes minutes and needs a C++ compiler; its run is skipped unless
MTMM_SLOW_TESTS=1. The other one traces, splits and differentiates the graphs alike, without it.
Run alone: python -m pytest tests/test_compile.py
"""

import json
import os
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train_accelerate
from modeling_mtmm import MTMMModel
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0}
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
TOLERANCE = 2e-5  # of weights and losses, after ten steps at a learning rate of 1e-3


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    write_corpus(folder / "corpus", utterances=50)
    write_encoders(folder / "encoders")
    return folder


def train(work: Path, out: Path, compiled: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights of a run on cached states, and its losses, of training and validation by epoch."""
    fields = SIZES | NO_DROPOUT | {"num_bridge_tokens": 4}
    flags = ["--manifest", str(work / "corpus" / "manifest.csv"), "--out", str(out)]
    flags += ["--audio_encoder", str(work / "encoders" / "audio")]
    flags += ["--text_encoder", str(work / "encoders" / "text"), "--cache_dir", str(work / "cache")]
    flags += ["--model_config", json.dumps(fields), "--compile", str(compiled)]
    flags += ["--protocol", "session", "--fold", "4", "--epochs", "2", "--batch_size", "6"]
    flags += ["--learning_rate", "1e-3", "--workers", "0", "--tracker", "none"]
    train_accelerate.main(flags)
    epochs = json.loads((out / "results.json").read_text())["epochs"]
    losses = [epoch[part]["loss"] for epoch in epochs for part in ("train", "validation")]
    return load_file(out / "model" / "model.safetensors"), losses


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_on_cached_states_equals_eager(
    backend: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "inductor" and not os.environ.get("MTMM_SLOW_TESTS"):
        pytest.skip("generating code takes minutes; set MTMM_SLOW_TESTS=1")
    graphs = []

    def make(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    torch.compiler.reset()
    monkeypatch.setattr(MTMMModel, "compile", partialmethod(MTMMModel.compile, backend=make))
    weights, losses = train(work, tmp_path / "eager", compiled=False)
    assert not graphs
    compiled_weights, compiled_losses = train(work, tmp_path / "compiled", compiled=True)
    assert len(graphs) > 0
    assert compiled_losses == pytest.approx(losses, abs=TOLERANCE)
    assert weights.keys() == compiled_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(compiled_weights[name], weight, atol=TOLERANCE, rtol=0)
