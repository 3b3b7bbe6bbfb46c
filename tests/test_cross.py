"""Corpora against each other: folds, the matrix, and a whole run.

Run alone: python -m pytest tests/test_cross.py -q
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_experiments import EMOTIONS, Rows, fake_rows, write_experiment
from sklearn.metrics import balanced_accuracy_score
from small_runs import SIZES, main_without_pictures

import train_accelerate
from mtmm_training.commands.cli import main
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import SPLITS
from mtmm_training.studies import cross
from mtmm_training.studies.compare import write_comparison
from mtmm_training.studies.cross import make_plan, named, write_cross
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.run import Run


@pytest.fixture(scope="module")
def corpora(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three manifests: sessions 1 and 2, which nobody rated, 3 and 4, and 5."""
    folder = tmp_path_factory.mktemp("corpora")
    utterances = read_manifest(embedded / "corpus" / "manifest.csv")
    paths = []
    for name, sessions in (("a", "12"), ("b", "34"), ("c", "5")):
        own = [u for u in utterances if str(u.session_id)[-1] in sessions]
        if name == "a":
            own = [replace(u, valence=None, arousal=None, dominance=None) for u in own]
        (folder / name).mkdir()
        write_manifest(own, folder / name / "manifest.csv")
        paths.append(str(folder / name / "manifest.csv"))
    return paths


def flags(embedded: Path, **given: Any) -> TrainConfig:
    encoders = {f"{name}_encoder": str(embedded / "encoders" / name) for name in ("audio", "text")}
    return TrainConfig(**{"protocol": "leave_one_speaker_out"} | encoders | given)


def test_corpora_are_called_by_file_or_folder_or_as_said(tmp_path: Path) -> None:
    assert list(named(["x/one.csv", "x/two.csv"])) == ["one", "two"]
    assert list(named(["one/m.csv", "two/m.csv", "z=three/m.csv"])) == ["one", "two", "z"]
    for wrong in (["x/one.csv"], ["x/one.csv", "one=y/two.csv"], ["a/b=x.csv", "y.csv"]):
        with pytest.raises(ValueError, match="corpora"):
            named(wrong)


def test_own_test_speakers_have_the_corpus_emotions(embedded: Path, tmp_path: Path) -> None:
    utterances = read_manifest(embedded / "corpus" / "manifest.csv")
    number = {name: i for i, name in enumerate(sorted({u.speaker_id for u in utterances}))}
    # All have one emotion alone but two speakers, who are not of the first fold.
    names, mixed = ("angry", "happy", "neutral", "sad"), ("Ses04F", "Ses04M")
    own = [
        u for u in utterances
        if u.speaker_id in mixed or u.emotion == names[number[u.speaker_id] % 4]
    ]  # fmt: skip
    paths = [str(tmp_path / "skewed.csv"), str(tmp_path / "other.csv")]
    write_manifest(own, Path(paths[0]))
    others = [replace(u, speaker_id=f"x{u.speaker_id}", audio=None) for u in utterances]
    write_manifest(others, Path(paths[1]))
    config = flags(embedded, cache_dir=str(tmp_path / "cache"), modalities=["text"])
    plan = make_plan(tmp_path / "out", config, paths)
    tested = set(plan.folds[0].test)
    told = {u.emotion for u in plan.utterances if u.utterance_id in tested and u.corpus == "skewed"}
    assert len(told) == 4


def test_training_corpus_is_tested_on_its_own_and_all_other_speakers(
    embedded: Path, corpora: list[str], tmp_path: Path
) -> None:
    config = flags(embedded, protocol="grouped", k=4, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="^c: "):  # two speakers
        make_plan(tmp_path, config, corpora)
    a, b = corpora[:2]
    plan = make_plan(tmp_path, config, [a, b])
    assert [fold.name for fold in plan.folds] == ["a", "b"]
    speakers = {u.utterance_id: u.speaker_id for u in plan.utterances}
    for fold, own, other in ((plan.folds[0], "a", "b"), (plan.folds[1], "b", "a")):
        trained = {speakers[i] for i in fold.train + fold.validation}
        assert {i.partition("/")[0] for i in fold.train + fold.validation} == {own}
        tested = {i for i in fold.test if i.startswith(f"{own}/")}
        assert len({speakers[i] for i in tested}) == 1 and len(trained) == 3
        everything = {i for i in speakers if i.startswith(f"{other}/")}
        assert set(fold.test) == tested | everything
    with pytest.raises(ValueError, match="leave_one_out"):
        make_plan(tmp_path, config, [a, b], leave_one_out=True)


def test_speaker_of_two_corpora_is_refused(
    embedded: Path, corpora: list[str], tmp_path: Path
) -> None:
    utterances = read_manifest(corpora[1])
    shared = max(u.speaker_id for u in read_manifest(corpora[0]))  # the first tests
    spoilt = [replace(u, speaker_id=shared) if i < 5 else u for i, u in enumerate(utterances)]
    write_manifest(spoilt, tmp_path / "b.csv")
    config = flags(embedded, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=shared):
        make_plan(tmp_path / "out", config, [corpora[0], str(tmp_path / "b.csv")])


def split(rows: Rows, corpus: str) -> Rows:
    return [row for row in rows if row["id"].startswith(f"{corpus}/")]


def test_cells_are_scores_of_one_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross, "RESAMPLES", 100)
    folds: dict[int, Rows] = {}
    for fold in range(2):
        folds[fold] = fake_rows(fold, seed=0, skill=1.0, utterances=60)
        for index, row in enumerate(folds[fold]):
            row["id"] = f"{'ab'[index % 2]}/{row['id']}"
            row["speaker"] = f"s{index % 6}"
            row["unfamiliar_audio"] = float(index % 2 == (fold == 0) and index % 10 < 6)
            if index % 2 and row["emotion_label"] == "sad":
                row["emotion_label"] = ""  # b has no sadness
    for rows in folds.values():
        for row in rows[1::2]:
            row["valence_label"] = ""
    folder = write_experiment(
        tmp_path / "x",
        folds,
        planned=2,
        manifest=["corpora/a.csv", "corpora/b.csv"],
        reference="none",
    )
    for fold, name in enumerate("ab"):
        path = folder / f"fold-0{fold}" / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fold": name}))
    markdown = write_cross(folder)
    table = pd.read_csv(folder / "cross.csv")
    assert len(table) == 4 and (folder / "figures" / "cross_UAR.png").is_file()
    for cell in table.itertuples():
        own = split(folds["ab".index(cell.trained_on)], cell.tested_on)
        pairs = np.array([(r["emotion_label"], r["emotion"]) for r in own if r["emotion_label"]])
        assert pytest.approx(cell.UAR, abs=1e-9) == balanced_accuracy_score(*pairs.T)
        assert len(set(pairs[:, 0])) == (3 if cell.tested_on == "a" else 2) <= len(EMOTIONS)
        assert cell.UAR_low < cell.UAR < cell.UAR_high
        assert np.isnan(cell.CCC_valence) == (cell.tested_on == "b")
        assert cell.unfamiliar_audio == (0 if cell.trained_on == cell.tested_on else 0.6)
    assert "| a | 0." in markdown and "## CCC valence, no reference" in markdown


def test_whole_matrix_with_references(
    embedded: Path, corpora: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(train_accelerate, "main", main_without_pictures)
    monkeypatch.setattr(cross, "RESAMPLES", 100)
    out = tmp_path / "out"
    words = ["evaluate", "cross", "--corpora", *corpora[:2], "--out", str(out), "--k", "4"]
    for name in ("audio", "text"):
        words += [f"--{name}_encoder", str(embedded / "encoders" / name)]
    words += ["--model_config", json.dumps(SIZES), "--reference", "speaker", "--epochs", "1"]
    words += ["--tracker", "none", "--workers", "0", "--batch_size", "8"]
    words += ["--cache_dir", str(embedded / "cache"), "--group_by", "gender", "--linear_path"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(out / "cross.csv").set_index(["answers", "trained_on", "tested_on"])
    assert len(table) == 20 and set(table.index.levels[0]) == {
        "no reference", "reference: speaker", "difference", "adapted", "adapted, difference"
    }  # fmt: skip
    plain, adapted = table["UAR"]["no reference"], table["UAR"]["adapted"]
    assert np.allclose(adapted - plain, table["UAR"]["adapted, difference"])
    # There is nothing to learn at home.
    assert all(adapted[name, name] == plain[name, name] for name in "ab")
    gain = table["UAR"]["reference: speaker"] - table["UAR"]["no reference"]
    assert np.allclose(gain, table["UAR"]["difference"])
    assert np.isnan(table.loc[("no reference", "a", "b"), "CCC_valence"])  # a has no ratings
    assert "## UAR, difference" in printed
    markdown = write_comparison(out, [], tmp_path / "compared")
    assert "out without references" in markdown
    assert (tmp_path / "compared_out_without_references.png").stat().st_size > 1000
    run = Run.open(out / "fold-00")
    assert (
        run.results["by_corpus"]["b"]["UAR"] == table.loc[("reference: speaker", "a", "b"), "UAR"]
    )
    assert set(run.results["by_group"]["gender"]) == {"F", "M"}
    assert (out / "fold-00" / "model").is_dir()
    before = (out / "fold-00" / "results.json").stat().st_mtime_ns
    assert main(words) == 0  # what is finished stays
    assert (out / "fold-00" / "results.json").stat().st_mtime_ns == before


def test_leaving_a_corpus_out_trains_on_all_others(
    embedded: Path, corpora: list[str], tmp_path: Path
) -> None:
    config = flags(embedded, protocol="official", cache_dir=str(tmp_path / "cache"))
    paths = [str(tmp_path / f"{name}.csv") for name in "abc"]
    for path, given in zip(paths, corpora, strict=True):
        made = [
            replace(u, audio=None, speaker_id=f"{Path(path).stem}{i % 3}", split=SPLITS[i % 3])
            for i, u in enumerate(read_manifest(given))
        ]
        write_manifest(made, path)
    plan = make_plan(tmp_path / "out", config, paths, leave_one_out=True)
    assert [f.name for f in plan.folds] == ["a", "b", "c", "all but a", "all but b", "all but c"]
    last = plan.folds[-1]
    assert {i[0] for i in last.train} == {i[0] for i in last.validation} == {"a", "b"}
    assert {i[0] for i in last.test} == {"c"}
    own = [u for u in plan.utterances if u.corpus in "ab"]
    assert len(last.train) + len(last.validation) == len(own)
