"""Errors in transcripts at a rate, and the metrics of a trained run over them.

Run alone: python -m pytest tests/test_transcript_errors.py
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import trained_run
from matplotlib.image import imread

from mtmm_training.studies.transcript_errors import (
    degrade,
    edit_distance,
    measure_errors,
    word_error_rate,
)

WORDS = [f"w{i}" for i in range(40)]
TRANSCRIPTS = [" ".join(np.random.default_rng(i).choice(WORDS, 5 + i % 9)) for i in range(200)]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "distance"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "a b x c", 1),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("a b c d", "b c d e", 2),
        ("a b", "b a", 2),
    ],
)
def test_distance_counts_the_fewest_edits(reference: str, hypothesis: str, distance: int) -> None:
    assert edit_distance(reference.split(), hypothesis.split()) == distance


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_transcripts_have_the_stated_error_rate(rate: float) -> None:
    degraded = degrade(TRANSCRIPTS, rate, seed=0)
    # An error may undo another, which the fewest edits do not count: a little less is right.
    assert 0.93 * rate <= word_error_rate(TRANSCRIPTS, degraded) <= rate + 1e-3
    assert {word for text in degraded for word in text.split()} <= set(WORDS)
    assert degrade(TRANSCRIPTS, rate, seed=0) == degraded
    if rate:
        assert degrade(TRANSCRIPTS, rate, seed=1) != degraded
        lengths = [
            (len(a.split()), len(b.split())) for a, b in zip(TRANSCRIPTS, degraded, strict=True)
        ]
        assert any(a < b for a, b in lengths) and any(a > b for a, b in lengths)
    else:
        assert degraded == TRANSCRIPTS


def test_run_is_measured_at_every_rate(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_run(tmp_path_factory.getbasetemp())
    measure_errors(run, tmp_path, [0, 0.5])
    with open(tmp_path / "wer.csv", newline="", encoding="utf-8") as file:
        true, degraded, silent = csv.DictReader(file)
    test = json.loads((run / "results.json").read_text())["test"]
    assert float(true["UAR"]) == pytest.approx(test["UAR"])
    # The run read its encoders' states from a cache in half precision.
    assert float(true["CCC valence"]) == pytest.approx(test["CCC"]["valence"], abs=0.02)
    assert float(true["WER"]) == 0 and 0.4 < float(degraded["WER"]) <= 0.5 and silent["WER"] == ""
    values = [float(row["CCC valence"]) for row in (true, degraded, silent)]
    assert len(set(values)) == 3
    assert imread(tmp_path / "wer.png").ndim == 3
    assert "8 test utterances" in capsys.readouterr().out
