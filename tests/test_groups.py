"""Scores of groups of speakers, their gaps, and the lowest and highest speaker."""

from pathlib import Path

import numpy as np
import pytest
from fake_experiments import all_folds, write_experiment

from configuration_mtmm import MTMMConfig
from mtmm_training.data.manifest import column_of, read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance, digest
from mtmm_training.publishing.card import Facts, Subject, make_card
from mtmm_training.publishing.stage import clean_results
from mtmm_training.scoring.groups import by_value, extremes, gaps
from mtmm_training.scoring.predictions import (
    Predictions,
    calibrated_scores,
    read_predictions,
    write_predictions,
)
from mtmm_training.studies.experiments import read_experiment, summarise
from mtmm_training.studies.tables import write_tables

# Eight speakers of ten rows; in each group two speakers are right so often, of ten.
RIGHT = {"a": (9, 7), "b": (5, 3), "": (0, 10), "c": (6, 6)}
VALUES = np.repeat(list(RIGHT), 20)
SPEAKERS = np.repeat([f"s{i}" for i in range(8)], 10)
CORRECT = np.concatenate([np.arange(10) < n for pair in RIGHT.values() for n in pair])
SCORES = {"UAR": lambda rows: float(CORRECT[rows].mean()) if len(rows) else np.nan}


def test_gap_is_of_the_best_and_the_worst_group() -> None:
    assert by_value(SCORES, VALUES) == {"a": {"UAR": 0.8}, "b": {"UAR": 0.4}, "c": {"UAR": 0.6}}
    found = gaps(SCORES, VALUES, SPEAKERS)["UAR"]
    assert (found["lowest"], found["highest"]) == ("b", "a")
    assert found["gap"] == pytest.approx(0.4)
    assert found["interval"] == pytest.approx([0.2, 0.6])  # two speakers a group: .9 − .3, .7 − .5
    ends = extremes(SCORES, SPEAKERS)["UAR"]
    assert ends["speakers"] == 8
    assert ends["lowest"] == {"speaker": "s4", "score": 0.0}
    assert ends["highest"] == {"speaker": "s5", "score": 1.0}


def test_gap_without_an_interval_says_why() -> None:
    one = np.isin(SPEAKERS, ("s0", "s2", "s3"))  # group a has one speaker
    rows = np.flatnonzero(one)
    scores = {"UAR": lambda drawn: SCORES["UAR"](rows[drawn])}
    found = gaps(scores, VALUES[one], SPEAKERS[one])["UAR"]
    assert found["gap"] == pytest.approx(0.5) and found["interval"] is None
    assert "at least 2 in each group" in found["reason"]
    assert gaps(scores, np.where(one, "a", "")[one], SPEAKERS[one]) == {}


def test_any_column_of_a_manifest_can_group(tmp_path: Path) -> None:
    table = "text,speaker,emotion,gender,accent\nhello,s1,angry,male,north\nbye,s2,sad,female,\n"
    (tmp_path / "m.csv").write_text(table)
    first, second = read_manifest(tmp_path / "m.csv", groups=["accent", "gender"])
    assert [column_of(first, name) for name in ("gender", "accent", "script")] == [
        "male",
        "north",
        None,
    ]
    assert column_of(second, "accent") is None
    plain = read_manifest(tmp_path / "m.csv")
    assert plain[0].groups == () and digest(plain) == digest([first, second])
    write_manifest([first, second], tmp_path / "again.csv")
    again = read_manifest(tmp_path / "again.csv", groups=["accent"])
    assert again == [first, second]


def test_results_and_predictions_name_the_groups(tmp_path: Path) -> None:
    made = [
        Utterance(
            utterance_id=f"u{i}", corpus="c", text="t", speaker_id=f"s{i // 4}",
            gender="male" if i < 8 else "female", groups=(("accent", "north"),) if i % 2 else (),
        )
        for i in range(16)
    ]  # fmt: skip
    labels = np.arange(16) % 2
    logits = np.eye(2)[np.where(np.arange(16) < 6, labels, 1 - labels)]  # the first six are right
    absent = np.full((16, 1), np.nan)
    ids = [u.utterance_id for u in made]
    rows = Predictions(ids, logits, np.zeros((16, 1)), labels, absent)
    config = MTMMConfig(
        id2label={0: "sad", 1: "happy"}, dimension_names=["valence"], trained_outputs=["emotion"]
    )
    scores = calibrated_scores({"validation": rows, "test": rows}, made, config)
    assert scores["by_group"]["gender"]["male"]["UAR"] == 0.75
    assert scores["by_group"]["gender"]["female"]["utterances"] == 8
    assert scores["group_gaps"]["gender"]["UAR"]["gap"] == 0.75
    assert scores["by_speaker"]["UAR"]["highest"] == {"speaker": "s0", "score": 1.0}
    write_predictions(tmp_path / "p.csv", {"test": rows}, made, config, ["accent"])
    written = read_predictions(tmp_path / "p.csv")
    assert written["group_accent"].fillna("").tolist() == ["", "north"] * 8
    assert "group_gender" not in written


def test_table_of_an_experiment_has_groups(tmp_path: Path) -> None:
    folds = all_folds(seed=1, skill=2.0)
    for rows in folds.values():
        for row in rows:
            row["group_gender"] = "male" if row["speaker"].endswith("_0") else "female"
    folder = write_experiment(tmp_path / "a", folds)
    found = summarise(read_experiment(folder))["groups"]["gender"]
    male = [r for rows in folds.values() for r in rows if r["group_gender"] == "male"]
    assert found["values"]["male"]["utterances"] == len(male) == 60
    assert found["values"]["male"]["speakers"] == 3
    assert set(found["gaps"]) == {"UAR", "CCC_valence", "CCC_arousal"}
    markdown = write_tables(folder)
    assert "| male | 60 | 3 |" in markdown and "Gaps by gender: UAR" in markdown


def test_card_tells_groups_and_names_no_speaker() -> None:
    metrics = {"UAR": 0.7, "utterances": 40, "CCC": {"valence": 0.5, "arousal": None}}
    gap = {"lowest": "male", "highest": "female", "gap": 0.05, "interval": [-0.01, 0.11]}
    ends = {n: {"speaker": n, "score": s} for n, s in (("lowest", 0.6), ("highest", 0.9))}
    results = {
        "by_group": {"gender": {"female": metrics}},
        "group_gaps": {"gender": {"UAR": gap}, "speaker": {"UAR": gap}},
        "by_speaker": {"UAR": ends | {"speakers": 4}},
        "config": {"protocol": "speaker", "fold": 0, "modalities": ["text"], "model": "me/base"},
        "splits": {},
        "validation": metrics,
        "test": metrics,
        "epochs": [],
        "wall_time_s": 1.0,
    }
    cleaned = clean_results(results)
    assert cleaned["by_speaker"]["UAR"]["lowest"] == {"score": 0.6}
    assert set(cleaned["group_gaps"]) == {"gender"}
    config = MTMMConfig(trained_outputs=["emotion", "valence"])
    subject = Subject("me/model", cleaned, config, Facts(), [results])
    card = make_card(subject, [], "code", "printed").text
    assert "| gender: female | 40 | UAR 0.700, CCC valence 0.500 |" in card
    told = "- UAR by gender: female is 0.050 above male (95 % interval -0.010 to 0.110).\n"
    assert told + "- UAR by speaker: 0.600 to 0.900, 4 speakers.\n" in card
