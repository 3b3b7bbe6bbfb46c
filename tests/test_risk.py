"""Risk over coverage: the curve, the least confidence for an error rate, what is saved."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtmm_training.studies.risk import curve, least_for, risk_study
from mtmm_training.training.run import Run


def answered(confidence: list[float], right: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"confidence": confidence, "right": np.array(right, bool)})


def test_curve_answers_equally_sure_ones_together() -> None:
    points = curve(answered([0.9, 0.5, 0.8, 0.5], [1, 0, 1, 1]))
    assert points["min_confidence"].tolist() == [0.9, 0.8, 0.5]
    assert points["coverage"].tolist() == [0.25, 0.5, 1.0]
    assert points["risk"].tolist() == [0.0, 0.0, 0.25]


@pytest.mark.parametrize(
    ("error", "least"), [(0.0, 0.8), (0.2, 0.8), (0.25, 0.4), (0.34, 0.4), (1.0, 0.3)]
)
def test_least_confidence_answers_most_at_the_wanted_error(error: float, least: float) -> None:
    own = answered([0.9, 0.8, 0.7, 0.4, 0.3], [1, 1, 0, 1, 0])
    assert least_for(own, error) == least
    assert least_for(answered([0.9], [0]), error) == (0.9 if error == 1 else np.inf)


class FakeRun:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "model").mkdir(parents=True)
        (folder / "results.json").write_text("{}")
        (folder / "model" / "config.json").write_text('{"hidden_size": 32}')

    def predictions(self, split: str) -> pd.DataFrame:
        labels = ["sad", "sad", "angry", None] if split == "validation" else ["sad"] * 3 + [None]
        shares = [0.9, 0.7, 0.6, 0.99]
        columns = {"speaker": list("abca"), "emotion_label": labels, "emotion": ["sad"] * 4}
        return pd.DataFrame(columns | {"p_sad": shares, "p_angry": [1 - p for p in shares]})


def test_coverage_is_of_one_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path / "run")
    rows, ids = run.predictions, ["a/1", "b/1", "b/2", "b/3"]
    monkeypatch.setattr(Run, "open", lambda folder: run)
    monkeypatch.setattr(run, "predictions", lambda split: rows(split).assign(id=ids))
    told = risk_study([run.folder], tmp_path / "out", 0.1, corpus="b")
    assert "| run | 0.700 | 0.667 | 0.000 | 0.500 | 0.000" in told


def test_study_saves_what_validation_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path / "run")
    monkeypatch.setattr(Run, "open", lambda folder: run)
    told = risk_study([run.folder], tmp_path / "out", 0.1, save=True)
    assert "| run | 0.700 | 0.667 | 0.000 | 0.667 | 0.000" in told
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config == {"hidden_size": 32, "min_confidence": 0.7}
    points = pd.read_csv(tmp_path / "out" / "risk.csv")
    assert points["risk"][points["split"] == "validation"].tolist() == [0, 0, pytest.approx(1 / 3)]
    assert (tmp_path / "out" / "risk.png").is_file()
