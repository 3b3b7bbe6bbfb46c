"""Every benchmark starts, and prints its machine and its result, in tiny sizes; nothing is timed here.

Run alone: python -m pytest tests/test_benchmarks.py
"""

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from modeling_mtmm import MTMMPipeline

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "common")
QUICK = {
    "batched_pipeline": ("--rounds", "1"),
    "cached_training": ("--batch_size", "2", "--rounds", "1", "--batches", "2"),
    "long_file_memory": (),
    "load_time": ("--rounds", "1"),
    "memory_throughput": ("--threads", "1", "--modes", "frozen, cached"),
    "real_time_factor": ("--rounds", "1", "--dtypes", "float32"),
    "service_load": ("--seconds", "1", "--clients", "2"),
}

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a benchmark as its own command does: beside common.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_benchmark_explains_itself(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(name)
    assert f"python benchmarks/{name}.py" in str(module.__doc__)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as exit_:
        module.main()
    assert exit_.value.code == 0 and "usage" in capsys.readouterr().out


@pytest.mark.parametrize("name", QUICK)
def test_quick_benchmark_prints_its_result(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--quick", *QUICK[name]])
    load(name).main()
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}; device cpu; QUICK" in printed.splitlines()[0]
    if name == "memory_throughput":  # its result compares several ways
        assert "\nfrozen, cached  " in printed and "failed" not in printed
    else:
        assert "RESULT " in printed and (": met" in printed or ": MISSED" in printed)


def test_quick_runtime_starts_and_answers_as_the_pipeline(
    load: Load,
    exported_pipe: MTMMPipeline,
    exported_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of an export that other tests read too: exporting takes the time."""
    module: Any = load("runtime_start")

    def write_folder(model: object, processor: object, folder: Path, precision: str) -> None:
        shutil.copytree(exported_folder, folder)

    monkeypatch.setattr(module.batched_pipeline, "make_pipeline", lambda *_: exported_pipe)
    monkeypatch.setattr(module, "write_folder", write_folder)
    monkeypatch.setattr(
        sys, "argv", ["runtime_start", "--quick", "--rounds", "1", "--precisions", "float32"]
    )
    module.main()
    printed = capsys.readouterr().out
    assert "QUICK" in printed.splitlines()[0]
    assert re.search("RESULT largest difference from the pipeline: .*: met", printed)
    assert "RESULT float32: start to first answer, s: " in printed


def test_lengths_are_like_those_of_iemocap(load: Load) -> None:
    seconds = load("common").iemocap_like_seconds(20_000)
    assert 0.6 <= seconds.min() and seconds.max() <= 34.0
    assert np.median(seconds) == pytest.approx(3.6, abs=0.1)


def test_every_round_times_each_step_once_and_turns_the_order(load: Load) -> None:
    watch = load("common").Stopwatch(torch.device("cpu"))
    order: list[str] = []
    watch.rounds(2, {name: lambda name=name: order.append(name) for name in "ab"})
    assert "".join(order) == "ab" + "ab" + "ba"  # the first to warm up
    assert [len(seconds) for seconds in watch.seconds.values()] == [2, 2]
    watch.seconds = {"a": [1.0, 4.0], "b": [1.0, 2.0]}
    assert watch.ratio("a", "b") == 1.5  # of neighbours, then the median


def test_result_says_whether_it_meets_its_target(
    load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    common = load("common")
    common.print_result("a", 1.05, 1.04)
    common.print_result("b", 91.0, 90.0, at_least=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["RESULT a: 1.05; target <= 1.04: MISSED", "RESULT b: 91; target >= 90: met"]


def test_killed_run_that_differs_is_noticed(load: Load, tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    module = load("killed_runs")
    for name, weight in (("one", 0.5), ("same", 0.5), ("other", 0.5 + 2**-24)):
        (tmp_path / name / "model").mkdir(parents=True)
        save_file({"w": torch.tensor([weight])}, tmp_path / name / "model" / "model.safetensors")
        results = dict.fromkeys(module.COMPARED, 1)
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    assert module.is_identical(tmp_path / "one", tmp_path / "same")
    assert not module.is_identical(tmp_path / "one", tmp_path / "other")
    (tmp_path / "same" / "results.json").write_text(json.dumps(results | {"test": 2}))
    assert not module.is_identical(tmp_path / "one", tmp_path / "same")


def test_model_dispatches_few_operations(load: Load) -> None:
    """Commit 499aabd dispatched 493 and 2,594: half of the former, two thirds of the latter."""
    found = load("operations").measure()
    assert found["the same and the loss"][0] <= 246
    assert found["DeBERTa, 24 layers"][0] <= 1729
