"""Experiments made of random predictions, as files on disk."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_training.training.run import NEEDED

EMOTIONS = ["angry", "happy", "sad"]
TEMPERATURES = (0.5, 2.0, 1.25)  # of the folds

Rows = list[dict[str, Any]]


def fake_rows(fold: int, seed: int, skill: float, utterances: int = 40) -> Rows:
    """Test rows of two speakers; labels depend on the fold alone, predictions on the seed too."""
    truth = np.random.default_rng(fold)
    noise = np.random.default_rng([fold, seed])
    rows = []
    for index in range(utterances):
        label = int(truth.integers(3))
        valence, arousal = truth.integers(1, 6, 2).astype(float)
        logits = noise.normal(size=3) + skill * (np.arange(3) == label)
        weights = np.exp(logits / TEMPERATURES[fold])
        rows.append(
            {
                "id": f"u{fold}_{index}",
                "split": "test",
                "speaker": f"s{fold}_{index % 2}",
                "emotion_label": EMOTIONS[label] if index % 10 else "",
                "emotion": EMOTIONS[int(logits.argmax())],
                **{f"p_{n}": p for n, p in zip(EMOTIONS, weights / weights.sum(), strict=True)},
                "valence_label": valence,
                "valence": valence + noise.normal() / skill,
                "arousal_label": arousal,
                "arousal": 3 + noise.normal(),
                "_logits": logits,
            }
        )
    return rows


def all_folds(seed: int, skill: float) -> dict[int, Rows]:
    return {fold: fake_rows(fold, seed, skill) for fold in range(3)}


def without(rows: Rows, *columns: str) -> Rows:
    return [{name: row[name] for name in row if name not in columns} for row in rows]


def write_experiment(folder: Path, folds: dict[int, Rows], planned: int = 3, **config: Any) -> Path:
    """Writes the folds' runs, and folds.json, which says that so many were planned.

    Args:
        folder: Of the experiment.
        folds: Test rows by fold; names that begin with "_" are not written.
        planned: How many folds there should be.
        config: Flags to put into results.json.
    """
    for fold, rows in folds.items():
        run = folder / f"fold-{fold:02d}"
        run.mkdir(parents=True)
        columns = [name for name in rows[0] if not name.startswith("_")]
        with open(run / "predictions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerow(rows[0] | {"id": "v", "split": "validation"})
            writer.writerows(rows)
        results = dict.fromkeys(NEEDED) | {"fold": f"f{fold}", "wall_time_s": 10.5}
        results |= {"temperature": TEMPERATURES[fold]}
        results |= {"splits": {"test": {"utterances": len(rows)}}}
        results |= {"config": {"dimension_range": [1.0, 5.0]} | config}
        (run / "results.json").write_text(json.dumps(results))
    names = [{"name": f"f{i}"} for i in range(planned)]
    (folder / "folds.json").write_text(json.dumps({"folds": names}))
    return folder
