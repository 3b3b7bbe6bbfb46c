"""Whole training runs with --compile equal eager ones; prediction compiles nothing twice.

torch's own code generation takes minutes and needs a C++ compiler; its run is skipped unless
MTMM_SLOW_TESTS=1. The other one traces, splits and differentiates the graphs alike, without it.
Run alone: python -m pytest tests/test_compile.py
"""

import os
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TRAINED, MakeModel
from small_runs import NO_DROPOUT, results_of, train, weights, words
from test_device import LABELS, states_of

from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor

TOLERANCE = 2e-5  # of weights and losses, after ten steps at a learning rate of 1e-3


def run(embedded: Path, out: Path, compiled: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights of a run on cached states, and its losses, of training and validation by epoch."""
    train(words(embedded, out, "--compile", str(compiled), **NO_DROPOUT))
    epochs = results_of(out)["epochs"]
    return weights(out), [
        epoch[part]["loss"] for epoch in epochs for part in ("train", "validation")
    ]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_on_cached_states_equals_eager(
    backend: str, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "inductor" and not os.environ.get("MTMM_SLOW_TESTS"):
        pytest.skip("generating code takes minutes; set MTMM_SLOW_TESTS=1")
    graphs = []

    def make(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    torch.compiler.reset()
    monkeypatch.setattr(MTMMModel, "compile", partialmethod(MTMMModel.compile, backend=make))
    eager, losses = run(embedded, tmp_path / "eager", compiled=False)
    assert not graphs
    compiled_weights, compiled_losses = run(embedded, tmp_path / "compiled", compiled=True)
    assert len(graphs) > 0
    assert compiled_losses == pytest.approx(losses, abs=TOLERANCE)
    assert eager.keys() == compiled_weights.keys()
    for name, weight in eager.items():
        torch.testing.assert_close(compiled_weights[name], weight, atol=TOLERANCE, rtol=0)


def test_nothing_is_compiled_for_other_lengths_and_batches(
    make_model: MakeModel, tiny_processor: MTMMProcessor
) -> None:
    pipe = MTMMPipeline(model=make_model(trained_outputs=TRAINED), processor=tiny_processor)
    inputs = [{"text": "a" * length} for length in (1, 2, 13, 15, 16, 30, 55)]
    expected = [result["valence"] for result in pipe(inputs)]
    graphs = []

    def make(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    pipe.compile(backend=make)
    made = []
    for size in (3, 7, 1, 2):
        results = [result["valence"] for result in pipe(inputs, batch_size=size)]
        assert results == pytest.approx(expected, abs=1e-5)
        made.append(len(graphs))
    # A layer and the fusion; the former may be made anew once, where two sizes were equal by chance.
    assert made[0] == made[-1] <= 3


def test_training_compiles_nothing_for_other_lengths_and_batches(make_model: MakeModel) -> None:
    """Forward and backward of a training step on cached states: one graph for all sizes."""
    model = make_model().train()
    graphs = []

    def make(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model.compile(dynamic=True, backend=make)
    for times, more in ((1, 0), (2, 13), (3, 30), (5, 4)):
        batch = {
            name: torch.cat([tensor] * times)
            for name, tensor in (states_of(model) | LABELS).items()
        }
        batch["acoustic_states"] = F.pad(batch["acoustic_states"], (0, 0, 0, more))
        batch["acoustic_attention_mask"] = F.pad(batch["acoustic_attention_mask"], (0, more))
        model(**batch).loss.backward()
        assert len(graphs) == 1
