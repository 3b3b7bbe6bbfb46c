"""The modules for Hugging Face `evaluate` load from their folder, offline, and give our numbers."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from mtmm_training.scoring.metrics import concordance_correlation, unweighted_average_recall

METRICS = Path(__file__).parents[1] / "evaluate_metrics"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], evaluate.Metric]]:
    """Load a module; what evaluate copies and keeps goes to the tests' own folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(folder / "modules"))
        patch.syspath_prepend(
            folder / "modules"
        )  # before the user's, which transformers puts there
        yield lambda name: evaluate.load(str(METRICS / name), cache_dir=str(folder / "cache"))


def test_ccc_is_ours_to_the_last_digit(load: Callable[[str], evaluate.Metric]) -> None:
    rng = np.random.default_rng(0)
    references = rng.uniform(1, 5, 101)
    predictions = references + rng.normal(0, 1, 101)
    references[[3, 50]] = np.nan
    expected = concordance_correlation(predictions, references)
    metric = load("ccc")
    assert metric.compute(predictions=predictions, references=references) == {"ccc": expected}
    for start in range(0, 101, 10):
        part = slice(start, start + 10)
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == {"ccc": expected}  # of all utterances, no mean over batches
    example = metric.compute(predictions=[1, 2, 3], references=[2, 3, 4])
    assert example["ccc"] == pytest.approx(4 / 7, abs=1e-15)


def test_uar_is_ours_to_the_last_digit(load: Callable[[str], evaluate.Metric]) -> None:
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 4, 101), rng.integers(0, 5, 101)
    expected = unweighted_average_recall(references, predictions, list("01234"))
    metric = load("uar")
    assert metric.compute(predictions=predictions, references=references) == {"uar": expected}
    with pytest.warns(UserWarning, match="not in y_true"):
        assert expected == pytest.approx(balanced_accuracy_score(references, predictions))
    references[:10] = -100
    expected = unweighted_average_recall(references[10:], predictions[10:], list("01234"))
    metric.add_batch(predictions=predictions[:50], references=references[:50])
    metric.add_batch(predictions=predictions[50:], references=references[50:])
    assert metric.compute() == {"uar": expected}
    example = metric.compute(predictions=[0, 1, 1], references=[0, 0, 1])
    assert example == {"uar": 0.75}


def test_metrics_combine_in_a_new_offline_process(tmp_path: Path) -> None:
    code = f"""
import evaluate
metrics = evaluate.combine([{str(METRICS / "ccc")!r}, {str(METRICS / "uar")!r}])
print(metrics.compute(predictions=[0, 1, 2, 2], references=[0, 1, 2, 1]))
print("Lin" in evaluate.load({str(METRICS / "ccc")!r}).citation)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd="/",
        env=os.environ | offline | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown, cited = done.stdout.splitlines()
    scores = ast.literal_eval(shown)
    # means 1.25 and 1, cov 0.5, variances 0.6875 and 0.5; recalls 1, 1/2 and 1
    assert scores == pytest.approx({"ccc": 1 / (0.6875 + 0.5 + 0.0625), "uar": 2.5 / 3})
    assert cited == "True"
