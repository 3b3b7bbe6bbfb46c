"""What experiments score, over folds and pooled, and by how much two of them differ.

Run alone: python -m pytest tests/test_experiments.py -q
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_experiments import (
    EMOTIONS,
    Rows,
    all_folds,
    fake_rows,
    write_experiment,
)
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
)

from configuration_mtmm import MTMMConfig
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.intervals import Interval
from mtmm_training.scoring.predictions import Predictions, write_predictions
from mtmm_training.studies import compare as comparison
from mtmm_training.studies.compare import compare, comparison_markdown
from mtmm_training.studies.experiments import Experiment, read_experiment, summarise
from mtmm_training.studies.tables import summary_markdown, write_tables


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 100)


def column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def labelled(rows: Rows) -> Rows:
    return [row for row in rows if row["emotion_label"]]


def emotion_pair(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return column(labelled(rows), "emotion_label"), column(labelled(rows), "emotion")


def direct_ccc(rows: Rows, name: str) -> float:
    x, y = column(rows, name).astype(float), column(rows, f"{name}_label").astype(float)
    covariance = np.cov(x, y, bias=True)
    return 2 * covariance[0, 1] / (np.trace(covariance) + (x.mean() - y.mean()) ** 2)


# ---- one experiment ----------------------------------------------------------------------------


def test_summary_matches_direct_formulas(tmp_path: Path) -> None:
    folds = all_folds(seed=1, skill=1.5)
    summary = summarise(read_experiment(write_experiment(tmp_path / "a", folds)))
    pooled = [row for rows in folds.values() for row in rows]
    scores: dict[str, Callable[[Rows], float]] = {
        "UAR": lambda rows: balanced_accuracy_score(*emotion_pair(rows)),
        "WAR": lambda rows: accuracy_score(*emotion_pair(rows)),
        "macro_F1": lambda rows: f1_score(*emotion_pair(rows), average="macro"),
        "weighted_F1": lambda rows: f1_score(*emotion_pair(rows), average="weighted"),
        "CCC_valence": lambda rows: direct_ccc(rows, "valence"),
        "CCC_arousal": lambda rows: direct_ccc(rows, "arousal"),
        "MAE_valence": lambda rows: mean_absolute_error(
            column(rows, "valence_label"), column(rows, "valence")
        ),
    }
    for name, score in scores.items():
        by_fold = [score(rows) for rows in folds.values()]
        found = summary["metrics"][name]
        assert list(found["by_fold"].values()) == pytest.approx(by_fold), name
        assert found["mean"] == pytest.approx(np.mean(by_fold))
        assert found["sd"] == pytest.approx(np.std(by_fold, ddof=1))
        assert found["pooled"] == pytest.approx(score(pooled)) and found["n"] == 3
    expected = confusion_matrix(*emotion_pair(pooled), labels=EMOTIONS).tolist()
    assert summary["confusion"] == expected
    assert summary["wall_time_s"] == 31.5 and summary["utterances"] == 120
    by_speaker = {
        name: accuracy_score(*emotion_pair([r for r in pooled if r["speaker"] == name]))
        for name in set(column(pooled, "speaker"))
    }
    assert summary["speakers"]["WAR"]["by_speaker"] == pytest.approx(by_speaker)
    assert summary["speakers"]["WAR"]["lowest"] == pytest.approx(min(by_speaker.values()))


def test_calibration_before_a_small_temperature_is_not_lost(tmp_path: Path) -> None:
    """Probabilities near 0 keep their digits in predictions.csv."""
    config = MTMMConfig(id2label=dict(enumerate(EMOTIONS)), temperature=0.05)
    config.trained_outputs = ("emotion",)
    draw = np.random.default_rng(0)
    logits, labels = 0.5 * draw.normal(size=(40, 3)), draw.integers(0, 3, 40)
    ids = [f"u{i}" for i in range(40)]
    test = Predictions(ids, logits, np.zeros((40, 2)), labels, np.full((40, 2), np.nan))
    utterances = [
        Utterance(utterance_id=name, corpus="c", text="x", speaker_id="s") for name in ids
    ]
    folder = write_experiment(tmp_path / "a", {0: fake_rows(0, 1, 1.5)})
    write_predictions(folder / "fold-00/predictions.csv", {"test": test}, utterances, config)
    results = json.loads((folder / "fold-00/results.json").read_text()) | {"temperature": 0.05}
    (folder / "fold-00/results.json").write_text(json.dumps(results))
    found = summarise(read_experiment(folder))["metrics"]
    expected = test.metrics(config)["ECE"]
    assert found["ECE_before_temperature"]["pooled"] == pytest.approx(expected, abs=1e-4)
    assert found["ECE"]["pooled"] > expected + 0.1  # else this test could not fail


def table_rows(markdown: str) -> dict[str, list[str]]:
    """Cells of the rows of all tables, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines}


def test_share_of_the_unfamiliar_leaves_out_what_is_absent(tmp_path: Path) -> None:
    folds = {0: fake_rows(0, 1, 1.5)}
    for index, row in enumerate(folds[0]):
        row["unfamiliar_audio"] = ("", 1.0, 0.0, 0.0)[index % 4]
    summary = summarise(read(tmp_path / "a", folds))
    assert summary["metrics"]["unfamiliar_audio"]["pooled"] == pytest.approx(1 / 3)
    assert "| unfamiliar audio | 0.333 | 0.333 |" in summary_markdown(summary)
    assert "unfamiliar_text" not in summary["metrics"]


def test_tables_have_no_row_without_labels(tmp_path: Path) -> None:
    folds = all_folds(1, 1.5)
    for fold, rows in folds.items():
        for row in rows:
            row |= {"dominance_label": "", "dominance": 3.0}
            row["arousal_label"] = row["arousal_label"] if fold else ""
    folder = write_experiment(tmp_path / "a", folds)
    cells = table_rows(write_tables(folder))
    found = json.loads((folder / "summary.json").read_text())["metrics"]
    assert found["CCC_arousal"]["by_fold"]["0"] is None and found["CCC_arousal"]["n"] == 2
    assert cells["CCC arousal"][0].endswith("(n = 2)") and cells["0 (f0)"][-1] == "–"
    assert found["CCC_dominance"]["pooled"] is found["CCC_dominance"]["mean"] is None
    assert "CCC dominance" not in cells


def test_incomplete_experiment_says_what_is_missing(tmp_path: Path) -> None:
    folds = {fold: fake_rows(fold, 1, 1.5) for fold in (0, 2)}
    folder = write_experiment(tmp_path / "a", folds, planned=5)
    (folder / "fold-02-old").mkdir()  # is no fold
    markdown = write_tables(folder)
    assert json.loads((folder / "summary.json").read_text())["missing_folds"] == [1, 3, 4]
    assert "folds 1, 3, 4" in markdown
    assert "2 of 5 folds, 80 test utterances of 4 speakers, 21 s" in markdown
    pictures = {path.stem for path in (folder / "figures").iterdir()}
    assert pictures == {"fold_spread", "confusion", "reliability", "valence_arousal"}


def test_folder_without_finished_folds_is_refused(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "a", {0: fake_rows(0, 1, 1.5)})
    (folder / "folds.json").unlink()
    (folder / "fold-01").mkdir()  # begun
    assert read_experiment(folder).missing == [1]
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_experiment(tmp_path)
    (folder / "folds.json").write_text("{}")
    with pytest.raises(ValueError, match=r"folds\.json"):
        read_experiment(folder)


# ---- two experiments ---------------------------------------------------------------------------


def read(folder: Path, folds: dict[int, Rows], **config: Any) -> Experiment:
    return read_experiment(write_experiment(folder, folds, **config))


def test_comparison_is_paired_by_fold_and_by_speaker(tmp_path: Path) -> None:
    first, second = all_folds(seed=1, skill=1.0), all_folds(seed=2, skill=2.0)
    shuffled = {fold: rows[::-1] for fold, rows in second.items()}  # order must not matter
    found = compare(read(tmp_path / "a", first), read(tmp_path / "b", shuffled))

    deltas = [
        direct_ccc(second[fold], "valence") - direct_ccc(first[fold], "valence") for fold in first
    ]
    by_fold = found["CCC_valence"].by_fold
    assert by_fold["mean"] == pytest.approx(np.mean(deltas)) and by_fold["n"] == 3
    assert by_fold["sd"] == pytest.approx(np.std(deltas, ddof=1))

    # The bootstrap once more, from per-speaker counts: accuracy needs no more than these.
    right: dict[str, np.ndarray] = {}
    for sign, folds in ((-1, first), (1, second)):
        for row in labelled([row for rows in folds.values() for row in rows]):
            counts = right.setdefault(row["speaker"], np.zeros(2))
            counts += [sign * (row["emotion"] == row["emotion_label"]), sign > 0]
    table = np.stack([right[name] for name in sorted(right)])
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(comparison.RESAMPLES):
        difference, labels = table[generator.integers(len(table), size=len(table))].sum(0)
        draws.append(difference / labels)
    interval = found["WAR"].pooled
    assert interval is not None
    assert interval.point == pytest.approx(table[:, 0].sum() / table[:, 1].sum())
    assert [interval.low, interval.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]))


def test_experiment_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    experiment = read(tmp_path / "a", all_folds(1, 1.5))
    for difference in compare(experiment, experiment).values():
        assert difference.by_fold["mean"] == difference.by_fold["sd"] == 0.0
        assert difference.pooled == Interval(0.0, 0.0, 0.0)


def test_difference_is_not_shown_without_interval(tmp_path: Path) -> None:
    one, other = (
        read(tmp_path / str(seed), {0: [r | {"speaker": "x"} for r in fake_rows(0, seed, 1.5)]})
        for seed in (1, 2)
    )
    differences = compare(one, other)
    assert differences["UAR"].by_fold["mean"] != 0 and differences["UAR"].pooled is None
    markdown = comparison_markdown(one, other, differences)
    assert table_rows(markdown)["UAR"][2:] == ["–", "–"]
    assert str(differences["UAR"].reason) in markdown


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folds: folds.pop(1), "0, 1, 2 and 0, 2"),
        (lambda folds: folds[2].pop(), "'u2_39' of fold 2"),
        (lambda folds: folds[0][3].update(valence_label=2.5), "valence_label of utterance 'u0_3'"),
        (lambda folds: folds[1][3].update(emotion_label=""), "emotion_label of utterance 'u1_3'"),
        (lambda folds: folds[1][3].update(speaker="x"), "speaker of utterance 'u1_3'"),
    ],
    ids=["folds", "utterances", "valence", "emotion", "speaker"],
)
def test_other_utterances_or_labels_are_refused(
    tmp_path: Path, change: Callable[[dict[int, Rows]], object], named: str
) -> None:
    changed = all_folds(2, 1.5)
    change(changed)
    a, b = read(tmp_path / "a", all_folds(1, 1.5)), read(tmp_path / "b", changed)
    with pytest.raises(ValueError, match=f"^a and b .*{named}"):
        compare(a, b)


def test_comparison_is_written_as_it_is_returned(tmp_path: Path) -> None:
    folders = [write_experiment(tmp_path / n, all_folds(i, 1 + i)) for i, n in enumerate("abc", 1)]
    markdown = comparison.write_comparison(folders[0], folders[1:], tmp_path / "compared")
    assert (tmp_path / "compared.md").read_text() == markdown
    assert "## b minus a" in markdown and "## c minus a" in markdown
    found = json.loads((tmp_path / "compared.json").read_text())["differences"][str(folders[2])]
    pooled = found["UAR"]["pooled"]
    assert pooled["low"] <= pooled["point"] <= pooled["high"]
    assert f"{pooled['point']:+.3f} [" in markdown
    assert {path.name for path in tmp_path.glob("*.png")} == {"compared_b.png", "compared_c.png"}


def test_seeds_below_one_folder_are_compared_together(tmp_path: Path) -> None:
    a = write_experiment(tmp_path / "a", all_folds(1, 1.0))
    seeds = [write_experiment(tmp_path / "seeds" / str(i), all_folds(i, 2.0)) for i in (2, 3)]
    comparison.write_comparison(a, [*seeds, tmp_path / "seeds"], tmp_path / "out")
    found = json.loads((tmp_path / "out.json").read_text())["differences"]
    apart = [found[str(seed)]["UAR"]["pooled"]["point"] for seed in seeds]
    pooled = found[str(tmp_path / "seeds")]["UAR"]["pooled"]
    assert pooled["point"] == pytest.approx(np.mean(apart))
    assert apart[0] != apart[1] and pooled["low"] < pooled["point"] < pooled["high"]
    # An experiment is itself, whatever else is kept below its folder.
    write_experiment(seeds[0] / "more", all_folds(3, 2.0))
    comparison.write_comparison(a, [seeds[0]], tmp_path / "again")
    again = json.loads((tmp_path / "again.json").read_text())["differences"]
    assert again[str(seeds[0])] == found[str(seeds[0])]


def test_validation_is_compared_as_the_test_split_is(tmp_path: Path) -> None:
    a, b = (write_experiment(tmp_path / n, all_folds(i, 1 + i)) for i, n in enumerate("ab", 1))
    tested = comparison.write_comparison(a, [b])
    for path in tmp_path.glob("*/fold-*/predictions.csv"):
        text = path.read_text().replace(",test,", ",x,").replace(",validation,", ",test,")
        path.write_text(text.replace(",x,", ",validation,"))
        results = path.with_name("results.json")
        results.write_text(results.read_text().replace('{"test"', '{"validation"'))
    chosen = comparison.write_comparison(a, [b], split="validation")
    assert chosen.replace("_on_validation", "") == tested != chosen


def test_experiment_of_two_corpora_is_seen_on_one(tmp_path: Path) -> None:
    alone, mixed = all_folds(1, 1.0), all_folds(2, 2.0)
    for fold, rows in mixed.items():
        others = [row | {"id": f"read/{row['id']}", "speaker": "r"} for row in rows]
        mixed[fold] = [row | {"id": f"acted/{row['id']}"} for row in rows] + others
    a = write_experiment(tmp_path / "a", alone, manifest=["a.csv"])
    both = write_experiment(tmp_path / "both", mixed, manifest=["a.csv", "b.csv"])
    other = read_experiment(write_experiment(tmp_path / "own", all_folds(2, 2.0)))
    part = read_experiment(both).of_corpus("acted")
    assert compare(read_experiment(a), part) == compare(read_experiment(a), other)
    markdown = comparison.write_comparison(a, [both], corpus="acted")
    assert "## both_on_acted minus a" in markdown and "120 utterances of 6" in markdown
    with pytest.raises(ValueError, match="'sung'"):
        read_experiment(both).of_corpus("sung")


def test_few_speakers_with_most_utterances_count_as_few(tmp_path: Path) -> None:
    sizes = [200] + [10] * 20
    names = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    rows = fake_rows(0, 1, 1.5, utterances=len(names))
    rows = [row | {"speaker": name} for row, name in zip(rows, names, strict=True)]
    experiment = read(tmp_path / "a", {0: rows})
    equal = 400**2 / (200**2 + 20 * 10**2)
    differences = compare(experiment, experiment)
    assert differences["UAR"].speakers == pytest.approx(equal)
    said = comparison_markdown(experiment, experiment, differences)
    assert "of 21 speakers" in said and f"UAR {equal:.1f}, WAR {equal:.1f}" in said
