"""python -m pytest tests/test_evaluate.py -q"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
)

import train_accelerate
from configuration_mtmm import MTMMConfig
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.intervals import Interval
from mtmm_training.scoring.predictions import Predictions, write_predictions
from mtmm_training.studies import compare as comparison
from mtmm_training.studies import protocol as evaluate
from mtmm_training.studies import tables
from mtmm_training.studies.experiments import read_experiment, summarise
from mtmm_training.studies.protocol import main

EMOTIONS = ["angry", "happy", "sad"]
TEMPERATURES = (0.5, 2.0, 1.25)


# ---- fake experiments --------------------------------------------------------------------------


def fake_rows(
    fold: int, seed: int, skill: float, labelled_arousal: bool = True, utterances: int = 40
) -> list[dict[str, Any]]:
    """Test rows of two speakers; labels depend on the fold alone, predictions on the seed too."""
    truth = np.random.default_rng(fold)
    noise = np.random.default_rng([fold, seed])
    rows = []
    for index in range(utterances):
        label = int(truth.integers(3))
        valence, arousal = truth.integers(1, 6, 2).astype(float)
        logits = noise.normal(size=3) + skill * (np.arange(3) == label)
        weights = np.exp(logits / TEMPERATURES[fold])
        probabilities = weights / weights.sum()
        rows.append(
            {
                "id": f"u{fold}_{index}",
                "split": "test",
                "speaker": f"s{fold}_{index % 2}",
                "emotion_label": EMOTIONS[label] if index % 10 else "",
                "emotion": EMOTIONS[int(logits.argmax())],
                **{f"p_{n}": f"{p:.6f}" for n, p in zip(EMOTIONS, probabilities, strict=True)},
                "valence_label": valence,
                "valence": valence + noise.normal() / skill,
                "arousal_label": arousal if labelled_arousal else "",
                "arousal": 3 + noise.normal(),
                "_logits": logits,
            }
        )
    return rows


def write_experiment(
    folder: Path, folds: dict[int, list[dict[str, Any]]], planned: int | None = 3
) -> Path:
    for fold, rows in folds.items():
        run = folder / f"fold-{fold:02d}"
        run.mkdir(parents=True)
        columns = [name for name in rows[0] if not name.startswith("_")]
        with open(run / "predictions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerow(rows[0] | {"id": "v", "split": "validation", "emotion_label": "sad"})
            writer.writerows(rows)
        results: dict[str, Any] = {"fold": f"f{fold}", "splits": {}, "validation": {}, "test": {}}
        results |= {"temperature": TEMPERATURES[fold], "wall_time_s": 10.5}
        results["config"] = {"dimension_range": [1.0, 5.0]}
        (run / "results.json").write_text(json.dumps(results))
    if planned is not None:
        folds_file = {"folds": [{"name": f"f{i}"} for i in range(planned)]}
        (folder / "folds.json").write_text(json.dumps(folds_file))
    return folder


def all_folds(seed: int, skill: float) -> dict[int, list[dict[str, Any]]]:
    return {fold: fake_rows(fold, seed, skill) for fold in range(3)}


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["emotion_label"]]


def direct_ccc(rows: list[dict[str, Any]], name: str) -> float:
    x, y = column(rows, name).astype(float), column(rows, f"{name}_label").astype(float)
    covariance = np.cov(x, y, bias=True)
    return 2 * covariance[0, 1] / (np.trace(covariance) + (x.mean() - y.mean()) ** 2)


def direct_ece(rows: list[dict[str, Any]], temperatures: np.ndarray) -> float:
    total = 0.0
    logits = np.stack([row["_logits"] for row in rows]) / temperatures[:, None]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = column(rows, "emotion") == column(rows, "emotion_label")
    for low in np.arange(15) / 15:
        inside = (probabilities.max(1) > low) & (probabilities.max(1) <= low + 1 / 15)
        if inside.any():
            gap = abs(right[inside].mean() - probabilities.max(1)[inside].mean())
            total += gap * inside.mean()
    return total


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 100)


# ---- one experiment ----------------------------------------------------------------------------


def test_summary_matches_direct_formulas(tmp_path: Path) -> None:
    folds = all_folds(seed=1, skill=1.5)
    summary = summarise(read_experiment(write_experiment(tmp_path / "a", folds)))
    pooled = [row for rows in folds.values() for row in rows]
    scores = {
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
        assert found["sd"] == pytest.approx(np.sqrt(((by_fold - np.mean(by_fold)) ** 2).sum() / 2))
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


def emotion_pair(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    return column(labelled(rows), "emotion_label"), column(labelled(rows), "emotion")


def test_temperature_is_undone_in_each_fold(tmp_path: Path) -> None:
    folds = all_folds(seed=1, skill=1.5)
    summary = summarise(read_experiment(write_experiment(tmp_path / "a", folds)))
    pooled = [(TEMPERATURES[fold], row) for fold, rows in folds.items() for row in labelled(rows)]
    rows, temperatures = [row for _, row in pooled], np.array([t for t, _ in pooled])
    found = summary["metrics"]
    before = direct_ece(rows, np.ones(len(rows)))
    assert found["ECE_before_temperature"]["pooled"] == pytest.approx(before, abs=1e-4)
    assert found["ECE"]["pooled"] == pytest.approx(direct_ece(rows, temperatures), abs=1e-4)
    assert abs(before - found["ECE"]["pooled"]) > 0.01  # else this test could not fail


def test_calibration_before_a_small_temperature_is_not_lost(tmp_path: Path) -> None:
    config = MTMMConfig(id2label=dict(enumerate(EMOTIONS)), temperature=0.05)
    config.trained_outputs = ("emotion",)
    draw = np.random.default_rng(0)
    logits, labels = 0.5 * draw.normal(size=(60, 3)), draw.integers(0, 3, 60)
    ids = [f"u{i}" for i in range(60)]
    nothing = np.full((60, 2), np.nan)
    test = Predictions(ids, logits, np.zeros((60, 2)), labels, nothing)
    utterances = [
        Utterance(utterance_id=name, corpus="c", text="x", speaker_id="s") for name in ids
    ]
    write_experiment(tmp_path / "a", {0: fake_rows(0, 1, 1.5)}, planned=1)
    run = tmp_path / "a" / "fold-00"
    write_predictions(run / "predictions.csv", {"test": test}, utterances, config)
    results = json.loads((run / "results.json").read_text()) | {"temperature": 0.05}
    (run / "results.json").write_text(json.dumps(results))
    found = summarise(read_experiment(tmp_path / "a"))["metrics"]
    expected = test.metrics(config)["ECE"]
    assert found["ECE_before_temperature"]["pooled"] == pytest.approx(expected, abs=1e-4)
    assert found["ECE"]["pooled"] > expected + 0.1  # else this test could not fail


def test_metric_without_labels_is_null(tmp_path: Path) -> None:
    folds = {fold: fake_rows(fold, 1, 1.5, labelled_arousal=fold > 0) for fold in range(3)}
    folder = write_experiment(tmp_path / "a", folds)
    for results in folder.glob("fold-*/results.json"):
        content = json.loads(results.read_text())
        content["config"]["dimensions"] = ["dominance"]
        results.write_text(json.dumps(content))
    markdown = tables.write_tables(folder)
    found = json.loads((folder / "summary.json").read_text())["metrics"]
    assert found["CCC_arousal"]["by_fold"]["0"] is None and found["CCC_arousal"]["n"] == 2
    assert found["CCC_dominance"]["pooled"] is None and found["CCC_dominance"]["mean"] is None
    assert "| CCC dominance | – | – |" in markdown and "(n = 2)" in markdown


def test_incomplete_experiment_says_what_is_missing(tmp_path: Path) -> None:
    folds = {fold: fake_rows(fold, 1, 1.5) for fold in (0, 2)}
    folder = write_experiment(tmp_path / "a", folds, planned=5)
    markdown = tables.write_tables(folder)
    assert json.loads((folder / "summary.json").read_text())["missing_folds"] == [1, 3, 4]
    assert "**Incomplete: folds 1, 3, 4 are missing.**" in markdown
    assert "2 of 5 folds, 80 test utterances of 4 speakers, 21 s" in markdown
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert pictures == {
        f"{n}.png" for n in ("fold_spread", "confusion", "reliability", "valence_arousal")
    }


def test_experiment_without_folds_file_misses_begun_folds(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "a", {0: fake_rows(0, 1, 1.5)}, planned=None)
    (folder / "fold-01").mkdir()
    assert read_experiment(folder).missing == [1]
    with pytest.raises(FileNotFoundError, match="has no finished fold"):
        read_experiment(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fold-01/results.json", '{"fold": ', "results.json is not JSON .* run the command"),
        ("fold-01/results.json", "", "results.json is not JSON"),
        ("fold-01/results.json", "[1]", "results.json is no JSON object"),
        (
            "fold-01/results.json",
            '{"fold": "f1"}',
            "lacks config, splits, temperature, wall_time_s",
        ),
        ("folds.json", "{}", "folds.json lacks folds: another version or program"),
        ("fold-01/predictions.csv", "", "predictions.csv cannot be read .* run this fold again"),
        ("fold-01/predictions.csv", "a,b\n1,2\n", "predictions.csv has no column 'id'"),
        (
            "fold-01/predictions.csv",
            "id,split,speaker,valence_label,valence\nu,test,s,3,x\n",
            "predictions.csv cannot be read .Unable to parse string .x",
        ),
    ],
)
def test_damaged_file_of_experiment_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    folder = write_experiment(tmp_path / "out", all_folds(0, 2.0))
    (folder / name).write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["table", str(folder)])


def test_cut_off_predictions_are_noticed(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "out", all_folds(0, 2.0))
    run = folder / "fold-02"
    results = json.loads((run / "results.json").read_text())
    results["splits"] = {"test": {"utterances": 40}}
    (run / "results.json").write_text(json.dumps(results))
    read_experiment(folder)
    lines = (run / "predictions.csv").read_text().splitlines(keepends=True)
    (run / "predictions.csv").write_text("".join(lines[:-5]))
    with pytest.raises(ValueError, match="has 35 test utterances, results.json beside it says 40"):
        read_experiment(folder)


def test_other_folders_are_no_folds(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "out", all_folds(0, 2.0))
    (folder / "fold-02-old").mkdir()
    assert sorted(read_experiment(folder).runs) == [0, 1, 2]


def test_names_that_look_absent_or_numeric_stay_names(tmp_path: Path) -> None:
    rows = fake_rows(0, 1, 1.5)
    for number, row in enumerate(rows):
        row |= {"id": f"{number:03d}", "speaker": "NA" if number % 2 else "007"}
    experiment = read_experiment(write_experiment(tmp_path / "a", {0: rows}))
    assert set(experiment.rows["speaker"]) == {"NA", "007"} and "007" in set(experiment.rows["id"])


# ---- two experiments ---------------------------------------------------------------------------


def test_comparison_is_paired_by_fold_and_by_speaker(tmp_path: Path, few_draws: None) -> None:
    first, second = all_folds(seed=1, skill=1.0), all_folds(seed=2, skill=2.0)
    shuffled = {fold: rows[::-1] for fold, rows in second.items()}  # order must not matter
    a, b = write_experiment(tmp_path / "a", first), write_experiment(tmp_path / "b", shuffled)
    found = comparison.compare(read_experiment(a), read_experiment(b))

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


def test_experiment_differs_from_itself_by_nothing(tmp_path: Path, few_draws: None) -> None:
    experiment = read_experiment(write_experiment(tmp_path / "a", all_folds(1, 1.5)))
    for difference in comparison.compare(experiment, experiment).values():
        assert difference.by_fold["mean"] == difference.by_fold["sd"] == 0.0
        assert difference.pooled == Interval(0.0, 0.0, 0.0)


def without(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in columns} for row in rows]


def test_only_shared_outputs_are_compared(tmp_path: Path, few_draws: None) -> None:
    folds = all_folds(1, 1.5)
    categories = {
        fold: without(rows, "valence", "valence_label", "arousal", "arousal_label")
        for fold, rows in folds.items()
    }
    a, b = write_experiment(tmp_path / "a", folds), write_experiment(tmp_path / "b", categories)
    found = comparison.compare(read_experiment(a), read_experiment(b))
    assert set(found) == {"UAR", "WAR", "macro_F1", "weighted_F1"}


def test_gain_is_never_shown_without_interval(tmp_path: Path) -> None:
    one_speaker = {}
    for seed in (1, 2):
        rows = fake_rows(0, seed, 1.5)
        one_speaker[seed] = {0: [row | {"speaker": "only"} for row in rows]}
    one, other = (
        read_experiment(write_experiment(tmp_path / str(seed), folds))
        for seed, folds in one_speaker.items()
    )
    differences = comparison.compare(one, other)
    assert differences["UAR"].by_fold["mean"] != 0 and differences["UAR"].pooled is None
    markdown = comparison.comparison_markdown(one, other, differences)
    row = next(line for line in markdown.splitlines() if line.startswith("| UAR"))
    assert row.endswith("| – | – |")
    assert "needs at least 2" in markdown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folds: folds.pop(1), r"first has the folds 0, 1, 2, the second 0, 2"),
        (lambda folds: folds[2].pop(), "1 test utterances are in one only, such as 'u2_39' of fold 2"),
        (lambda folds: folds[0][3].update(valence_label=2.5), "valence_label of utterance 'u0_3'"),
        (lambda folds: folds[1][3].update(emotion_label=""), "emotion_label of utterance 'u1_3'"),
        (lambda folds: folds[1][3].update(speaker="x"), "speaker of utterance 'u1_3' in fold 1 is 's1_1'"),
    ],
)  # fmt: skip
def test_other_utterances_or_labels_are_refused(
    tmp_path: Path, change: Callable[[dict[int, list[dict[str, Any]]]], object], message: str
) -> None:
    folds = all_folds(1, 1.5)
    changed = all_folds(2, 1.5)
    change(changed)
    a = read_experiment(write_experiment(tmp_path / "a", folds))
    b = read_experiment(write_experiment(tmp_path / "b", changed))
    with pytest.raises(ValueError, match=message):
        comparison.compare(a, b)


def test_compare_writes_what_it_prints(
    tmp_path: Path, few_draws: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_experiment(tmp_path / n, all_folds(i, 1 + i)) for i, n in enumerate("abc", 1)]
    main(["compare", *map(str, folders), "--out", str(tmp_path / "compared")])
    printed = capsys.readouterr().out
    assert (tmp_path / "compared.md").read_text().strip() == printed.strip()
    assert "## b minus a" in printed and "## c minus a" in printed
    found = json.loads((tmp_path / "compared.json").read_text())["differences"][str(folders[2])]
    pooled = found["UAR"]["pooled"]
    assert pooled["low"] <= pooled["point"] <= pooled["high"]
    assert f"{pooled['point']:+.3f} [" in printed
    assert "Of 10 speakers or fewer such intervals are too narrow." in printed


def test_few_speakers_with_most_utterances_count_as_few(tmp_path: Path, few_draws: None) -> None:
    sizes = [200] + [10] * 20
    names = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    rows = fake_rows(0, 1, 1.5, utterances=len(names))
    rows = [row | {"speaker": name} for row, name in zip(rows, names, strict=True)]
    experiment = read_experiment(write_experiment(tmp_path / "a", {0: rows}, planned=1))
    equal = 400**2 / (200**2 + 20 * 10**2)
    differences = comparison.compare(experiment, experiment)
    assert differences["UAR"].speakers == pytest.approx(equal)
    said = comparison.comparison_markdown(experiment, experiment, differences)
    assert "of 21 speakers" in said and f"equal ones: UAR {equal:.1f}, WAR {equal:.1f}" in said


def test_speakers_without_the_label_do_not_count(tmp_path: Path, few_draws: None) -> None:
    mixed, alone = [], []
    for seed, skill in ((1, 1.0), (2, 2.0)):
        acted = fake_rows(0, seed, skill, utterances=60)
        acted = [row | {"speaker": f"actor{i % 4}"} for i, row in enumerate(acted)]
        read = fake_rows(0, seed, skill, utterances=50)
        absent = {"emotion_label": None}
        read = [row | absent | {"id": f"t{i}", "speaker": f"d{i}"} for i, row in enumerate(read)]
        mixed.append({0: acted + read})
        alone.append({0: acted})
    pairs = [
        comparison.compare(
            *(
                read_experiment(write_experiment(tmp_path / f"{name}{i}", rows, planned=1))
                for i, rows in enumerate(pair)
            )
        )
        for name, pair in (("mixed", mixed), ("alone", alone))
    ]
    assert pairs[0]["UAR"] == pairs[1]["UAR"]
    assert pairs[0]["UAR"].pooled is not None and pairs[0]["UAR"].speakers == pytest.approx(
        4, rel=0.05
    )


# ---- the runner, with a script that only pretends to train -------------------------------------

FAKE_TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
split = [word.split("=", 1) if word[:2] == "--" else [word] for word in sys.argv[1:]]
words = [part for parts in split for part in parts]
flags = dict(zip(words[::2], words[1::2]))
out, fold = Path(flags["--out"]), int(flags["--fold"])
with open(out.parent / "calls.jsonl", "a") as file:
    threads = os.environ.get("OMP_NUM_THREADS")
    print(json.dumps({"fold": fold, "flags": flags, "threads": threads}), file=file)
if "--encode_only" in flags:
    sys.exit()
def checkpoint(*_):
    (out / "checkpoints" / "step-000000001").mkdir(parents=True)
    sys.exit("stopped")
signal.signal(signal.SIGTERM, checkpoint)
(out / "ready").touch()
if fold == 1 and (out.parent / "fail").exists():
    while not (out.parent / "fold-00" / "ready").exists():
        time.sleep(0.01)
    print("some warning", file=sys.stderr)
    sys.exit("error: no such encoder\\nneither here nor there")
if fold == 0 and (out.parent / "hang").exists():
    time.sleep(60)
test = {"UAR": 0.5, "WAR": 0.5, "CCC": {"valence": None}}
(out / "results.json").write_text(json.dumps({"test": test}))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "corpus", utterances=50)
    write_encoders(folder / "encoders")
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment's folder; folds of `run_plans` are trained by FAKE_TRAINING."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE_TRAINING)
    monkeypatch.setattr(train_accelerate, "__file__", str(script))
    monkeypatch.delenv("OMP_NUM_THREADS")
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def plan(out: Path, corpus: Path, *flags: str, folds: list[int] | None = None) -> evaluate.Plan:
    manifest = str(corpus / "corpus" / "manifest.csv")
    own = ["--manifest", manifest, "--protocol", "session", "--cache_dir", "off", *flags]
    return evaluate.make_plan(out, own, folds)


def calls(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


def test_finished_folds_are_never_run_again(fake: Path, corpus: Path) -> None:
    evaluate.run_plans([plan(fake, corpus, folds=[1, 3])], jobs=1)
    assert [call["fold"] for call in calls(fake)] == [1, 3]
    evaluate.run_plans([plan(fake, corpus)], jobs=1)
    assert [call["fold"] for call in calls(fake)] == [1, 3, 0, 2, 4]
    folds = json.loads((fake / "folds.json").read_text())["folds"]
    assert len(folds) == 5 and folds[0]["name"] == "Ses01"
    assert {path.name for path in fake.glob("fold-*")} == {f"fold-{i:02d}" for i in range(5)}


def test_failed_fold_gives_its_own_message(fake: Path, corpus: Path) -> None:
    (fake / "fail").touch()
    (fake / "hang").touch()
    evaluate.run_plans([plan(fake, corpus, folds=[2])], jobs=1)
    message = r"fold 1 of 5 \(Ses02\) failed with exit status 1: no such encoder\nneither here"
    with pytest.raises(RuntimeError, match=message) as refused:
        evaluate.run_plans([plan(fake, corpus)], jobs=2)
    log = fake / "fold-01" / "log.txt"
    assert str(log) in str(refused.value) and "some warning" in log.read_text()
    assert (fake / "fold-02" / "results.json").exists()  # the others' results stay
    assert sorted(call["fold"] for call in calls(fake)) == [0, 1, 2]  # and no more was begun

    for name in ("fail", "hang"):
        (fake / name).unlink()
    evaluate.run_plans([plan(fake, corpus)], jobs=1)
    resumed = {call["fold"]: call["flags"]["--resume"] for call in calls(fake)[3:]}
    # Fold 0 ran beside the one that failed, and was asked to stop: it goes on from a checkpoint.
    assert resumed == {0: "True", 1: "False", 3: "False", 4: "False"}


def test_jobs_share_the_cores(fake: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    evaluate.run_plans([plan(fake, corpus)], jobs=3)
    assert {call["threads"] for call in calls(fake)} == {"2"}
    assert {call["flags"]["--workers"] for call in calls(fake)} == {"0"}
    for name, own in (("words", ["--workers", "5"]), ("sign", ["--workers=5"])):
        evaluate.run_plans([plan(fake / name, corpus, *own, folds=[0])], jobs=2)
        assert calls(fake / name)[0]["flags"]["--workers"] == "5"


def test_cache_is_filled_before_folds_run_at_once(fake: Path, corpus: Path) -> None:
    evaluate.run_plans([plan(fake, corpus, "--cache_dir", str(fake / "c"))], jobs=2)
    first, *others = calls(fake)
    assert first["flags"]["--encode_only"] == "True"
    assert all("--encode_only" not in call["flags"] for call in others)


@pytest.mark.parametrize(
    ("flags", "cached"),
    [
        ((), True),
        (("--cache_dir", "off"), False),
        (("--lora_rank", "4"), False),
        (("--unfreeze_text_layers", "1"), False),
        (("--model_config", '{"freeze_audio_encoder": false}'), False),
        (("--model_config", '{"freeze_audio_encoder": false}', "--modalities", "text"), True),
    ],
)
def test_cache_is_for_frozen_encoders(flags: tuple[str, ...], cached: bool) -> None:
    assert evaluate.uses_cache(evaluate.parse(["--manifest", "x.csv", *flags])) == cached


def test_share_takes_every_nth_fold(fake: Path, corpus: Path) -> None:
    whole = plan(fake, corpus)
    shares = [evaluate.of_share(whole, evaluate.share(f"{i}/2")).chosen for i in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]
    for wrong in ("2/2", "1", "-1/2", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no share"):
            evaluate.share(wrong)


def test_changed_flags_and_folds_are_refused_by_name(fake: Path, corpus: Path) -> None:
    evaluate.run_plans([plan(fake, corpus, folds=[0])], jobs=1)
    harmless = plan(fake, corpus, "--workers", "0", "--checkpoint_steps", "5", folds=[0])
    evaluate.run_plans([harmless], jobs=2)
    with pytest.raises(ValueError, match="learning_rate was 0.0003, now is 0.5"):
        evaluate.run_plans([plan(fake, corpus, "--learning_rate", "0.5")], jobs=1)
    manifest = corpus / "corpus" / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    try:
        manifest.write_text("".join(lines[:-1]))  # one utterance fewer, of the last session
        with pytest.raises(ValueError, match=r"fold 0 \(its train\) was 'Ses01' with 10 test"):
            evaluate.run_plans([plan(fake, corpus)], jobs=1)
        manifest.write_text("".join(lines).replace(",angry,", ",sad,"))
        with pytest.raises(ValueError, match="digest of labels and transcripts was"):
            evaluate.run_plans([plan(fake, corpus)], jobs=1)
    finally:
        manifest.write_text("".join(lines))


@pytest.mark.parametrize(
    ("flags", "folds", "message"),
    [
        ((), [5], "`--folds 5` does not exist: there are 5"),
        (("--epochs", "0"), None, "`--epochs` is 0"),
        (("--select_by", "CCC_dominance"), None, "CCC_dominance"),
        (
            ("--select_by", "UAR", "--model_config", '{"emotion_loss_weight": 0}'),
            None,
            "`select_by='UAR'` has no value",
        ),
    ],
)
def test_plan_refuses_what_a_fold_would(
    corpus: Path, flags: tuple[str, ...], folds: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(Path("unused"), corpus, *flags, folds=folds)


@pytest.mark.parametrize("jobs", ["0", "-1", "1.5", "two"])
def test_jobs_below_one_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: str
) -> None:
    """They would wait for ever for folds that never begin."""
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--out", str(tmp_path), "--jobs", jobs, *real_flags(corpus)])
    assert f"--jobs: {jobs!r} must be a whole number of at least 1" in capsys.readouterr().err


def test_empty_name_of_the_folder_is_refused(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--out", "", *real_flags(corpus)])
    assert "--out: '' must be the name of a folder" in capsys.readouterr().err


# ---- the runner, in earnest --------------------------------------------------------------------

MODEL_CONFIG = {
    "freeze_audio_encoder": False,
    "freeze_text_encoder": False,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_bridge_tokens": 4,
}


def real_flags(corpus: Path) -> list[str]:
    flags = ["--manifest", str(corpus / "corpus" / "manifest.csv"), "--protocol", "session"]
    flags += ["--audio_encoder", str(corpus / "encoders" / "audio")]
    flags += ["--text_encoder", str(corpus / "encoders" / "text"), "--tracker", "none"]
    flags += ["--model_config", json.dumps(MODEL_CONFIG), "--epochs", "2", "--batch_size", "6"]
    return [*flags, "--checkpoint_steps", "2", "--learning_rate", "1e-3", "--workers", "0"]


def test_stopped_run_goes_on_and_ends_in_tables(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mtmm_training.studies.protocol", "run", "--out", str(out)]
    command += ["--folds", "0", "4", *real_flags(corpus)]
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not any(out.glob("fold-00/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode != 0 and not (out / "summary.json").exists()
    unfinished = not (out / "fold-00" / "results.json").exists()

    command += ["--jobs", "2"]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    if unfinished:
        assert "resumed from" in (out / "fold-00" / "log.txt").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["folds"] == {"0": "Ses01", "4": "Ses05"}
    assert summary["missing_folds"] == [1, 2, 3] and "**Incomplete: folds 1, 2, 3" in output
    for fold in ("0", "4"):  # scores from predictions.csv are those that the run itself saw
        results = json.loads((out / f"fold-0{fold}" / "results.json").read_text())
        found = {name: summary["metrics"][name]["by_fold"][fold] for name in summary["metrics"]}
        for name in ("UAR", "WAR", "macro_F1", "weighted_F1", "ECE"):
            assert found[name] == pytest.approx(results["test"][name], abs=1e-4)
        before = results["test_ECE_before_temperature"]
        assert found["ECE_before_temperature"] == pytest.approx(before, abs=1e-4)
        assert found["CCC_valence"] == pytest.approx(results["test"]["CCC"]["valence"], abs=1e-4)
    assert not os.path.exists(out / "cache")  # these encoders train
