"""Baselines choose inside the fold, never look at test speakers, and write what training writes."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from configuration_mtmm import MTMMConfig
from explanation_mtmm import FEATURES
from mtmm_training.batches.collate import RawInputs, to_dataset
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.folds import make_folds
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance, without_fields
from mtmm_training.studies import baselines
from mtmm_training.studies.baselines import (
    Baseline,
    PooledReferences,
    Statistics,
    run_baseline,
    run_fold,
)
from mtmm_training.studies.experiments import read_experiment
from mtmm_training.training import regressions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import build_model
from mtmm_training.training.prepare import read_data
from mtmm_training.training.regressions import Features, Task, fit_regression
from mtmm_training.training.run import Run
from reference_mtmm import Reference

EMOTIONS = ["angry", "happy", "sad", "neutral"]
RunFold = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]  # the `run` below


@pytest.fixture(autouse=True)
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scikit-learn's overhead is most of the time here."""
    monkeypatch.setattr(regressions, "EMOTION_GRID", (0.1, 1.0))
    monkeypatch.setattr(regressions, "DIMENSION_GRID", (1.0, 100.0))


@pytest.fixture
def utterances() -> list[Utterance]:
    """Eight speakers, ten utterances each; the emotion is random, valence follows from it."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(80):
        emotion = EMOTIONS[rng.integers(4)]
        valence = 1.0 + EMOTIONS.index(emotion) + rng.uniform(0, 0.5)
        speaker = f"speaker_{i // 10}"
        made.append(
            Utterance(
                utterance_id=f"u{i:02d}",
                corpus="numbers",
                speaker_id=speaker,
                text=f"sentence {i}",
                emotion=emotion,
                valence=valence,
            )
        )
    return made


def planted(
    utterances: list[Utterance], layer: int, layers: int = 3, noise: float = 0.4
) -> Features:
    """Features of which one layer tells the emotion, and the others are noise."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(len(utterances), layers, 6))
    for row, utterance in enumerate(utterances):
        told = np.eye(4)[EMOTIONS.index(str(utterance.emotion))]
        values[row, layer, :4] = told + noise * values[row, layer, :4]
    return Features(values.astype(np.float32), tuple(range(layers)))


@pytest.fixture
def run(tmp_path: Path, utterances: list[Utterance]) -> RunFold:
    """Run fold 0; gives its results and its predictions as they are on disk."""

    def run(
        features: dict[str, Features] | None = None,
        given: list[Utterance] = utterances,
        layers: tuple[str, ...] = ("best",),
        pooling: str = "mean",
        **flags: Any,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        settings = {"protocol": "leave_one_speaker_out", "modalities": ["text"]} | flags
        config = TrainConfig(manifest=["m.csv"], out=str(tmp_path), **settings).resolve()
        fold = make_folds(given, config.protocol)[0]
        features = features or {"text": planted(given, 1)}
        run_fold(config, Baseline(layers=layers, pooling=pooling), fold, given, features)
        with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return json.loads((tmp_path / "results.json").read_text()), rows

    return run


# ---- what is chosen and fitted -------------------------------------------------------------------


def test_informative_layer_is_chosen_and_wins(run: RunFold, utterances: list[Utterance]) -> None:
    results, rows = run()
    assert results["chosen"]["emotion"]["layers"] == {"text": [1]}
    assert results["chosen"]["valence"]["layers"] == {"text": [1]}
    assert results["test"]["UAR"] > 0.8 and results["test"]["CCC"]["valence"] > 0.8
    noise, _ = run(layers=("0",))
    assert noise["chosen"]["emotion"]["layers"] == {"text": [0]}
    assert noise["test"]["UAR"] < 0.6
    last, _ = run({"text": planted(utterances, 2)}, layers=("last",))
    assert last["chosen"]["emotion"]["layers"] == {"text": [2]} and last["test"]["UAR"] > 0.8


def test_predictions_are_those_of_a_plain_regression(
    run: RunFold, utterances: list[Utterance]
) -> None:
    """Test: of one on all other speakers. Validation: of one that lacks their speakers too."""
    results, rows = run(layers=("1", "2"))
    inputs = planted(utterances, 1).values[:, 1:].reshape(80, -1)
    emotions = np.array([EMOTIONS.index(str(u.emotion)) for u in utterances])
    valences = np.array([u.valence for u in utterances])
    speakers = np.array([u.speaker_id for u in utterances])
    chosen, fitted = results["chosen"], set()
    rest = np.flatnonzero(speakers != "speaker_0")  # who is the test speaker of fold 0
    parts = [
        (rest[a], rest[b])
        for a, b in GroupKFold(5).split(rest, groups=speakers[rest])  # speakers apart
    ]

    def ridge(others: np.ndarray, wanted: np.ndarray | list[int]) -> np.ndarray:
        scale = StandardScaler().fit(inputs[others])
        model = Ridge(alpha=chosen["valence"]["alpha"])
        model.fit(scale.transform(inputs[others]), valences[others])
        predicted: np.ndarray = model.predict(scale.transform(inputs[wanted]))
        return predicted

    unseen = np.concatenate([ridge(a, b) for a, b in parts])
    slope = valences[rest].std() / unseen.std()  # to the mean and spread of the labels
    for row in rows:
        number = int(row["id"][1:])
        others = rest
        if row["split"] == "validation":
            others = next(a for a, b in parts if number in b)
        assert row["speaker"] == speakers[number] and row["speaker"] not in speakers[others]
        scale = StandardScaler().fit(inputs[others])
        logistic = LogisticRegression(C=chosen["emotion"]["C"], max_iter=2000)
        logistic.fit(scale.transform(inputs[others]), emotions[others])
        one = scale.transform(inputs[[number]])
        written = [float(row[f"p_{name}"]) for name in EMOTIONS]
        logits = np.log(logistic.predict_proba(one)[0]) / results["temperature"]
        assert written == pytest.approx(softmax(logits), abs=5e-4)  # the solver stops early
        assert row["emotion"] == EMOTIONS[int(np.argmax(written))]
        stretched = valences[rest].mean() + slope * (ridge(others, [number])[0] - unseen.mean())
        assert float(row["valence"]) == pytest.approx(stretched, abs=2e-5)
        fitted.add(len(others))
    assert [row["split"] for row in rows].count("test") == 10 and len(rows) == 30
    assert 70 in fitted and min(fitted) < 70


def test_test_speakers_are_never_looked_at(run: RunFold, utterances: list[Utterance]) -> None:
    results, rows = run()
    fold = make_folds(utterances, "leave_one_speaker_out")[0]
    spoilt = [
        replace(u, emotion="angry", valence=5.0) if u.utterance_id in fold.test else u
        for u in utterances
    ]
    values = planted(utterances, 1).values.copy()
    values[[u.utterance_id in fold.test for u in utterances]] = 1e6
    other, other_rows = run({"text": Features(values, (0, 1, 2))}, spoilt)
    assert other["chosen"] == results["chosen"] and other["validation"] == results["validation"]
    validation = [row for row in rows if row["split"] == "validation"]
    assert validation == [row for row in other_rows if row["split"] == "validation"]
    assert other["test"] != results["test"]


def test_inner_splits_keep_speakers_apart(utterances: list[Utterance]) -> None:
    speakers = np.array([u.speaker_id for u in utterances])
    train, validation = np.arange(0, 50), np.arange(50, 65)
    inner = regressions.inner_splits(TrainConfig(), train, validation, speakers)
    assert len(inner) == 5
    assert sorted(np.concatenate([scored for _, scored in inner])) == list(range(65))
    for fitted, scored in inner:
        assert not set(speakers[fitted]) & set(speakers[scored])
        assert set(fitted) | set(scored) == set(range(65))
    ((fitted, scored),) = regressions.inner_splits(
        TrainConfig(protocol="official"), train, validation, speakers
    )
    assert fitted is train and scored is validation


def test_official_splits_fit_on_train_alone(
    utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regressions, "DIMENSION_GRID", (1.0,))
    features = {"text": planted(utterances, 1)}
    labels = np.array([u.valence for u in utterances])
    spoilt = np.where(np.arange(80) < 50, labels, 6 - labels)
    inner = [(np.arange(50), np.arange(50, 60))]
    (one, choice), (two, other) = (
        fit_regression(Task("valence", values, EMOTIONS), features, ["1"], inner)
        for values in (labels, spoilt)
    )
    first, second = (model.predict(features, np.arange(80)) for model in (one, two))
    assert np.allclose(first - first.mean(), second - second.mean())  # the same but for the line
    assert first[50:60].mean() == pytest.approx(labels[50:60].mean())
    assert first[50:60].std() == pytest.approx(labels[50:60].std())
    assert choice["inner_score"] > 0.6 and other["inner_score"] < -0.3


# ---- what is absent ------------------------------------------------------------------------------


def test_output_without_training_labels_is_left_out(
    run: RunFold, utterances: list[Utterance]
) -> None:
    fold = make_folds(utterances, "leave_one_speaker_out")[0]
    unlabelled = [
        u if u.utterance_id in fold.test else replace(u, emotion=None) for u in utterances
    ]
    results, rows = run({"text": planted(utterances, 1)}, unlabelled)
    assert set(results["chosen"]) == {"valence"}
    assert list(rows[0]) == ["id", "split", "speaker", "valence_label", "valence"]
    assert results["test"]["UAR"] is None and results["test"]["emotion_labels"] == 0
    assert results["test"]["CCC"]["arousal"] is None and results["test"]["CCC"]["valence"] > 0.8


def test_unlabelled_utterances_are_predicted_but_not_fitted(
    run: RunFold, utterances: list[Utterance]
) -> None:
    partly = [replace(u, emotion=None) if i % 10 < 3 else u for i, u in enumerate(utterances)]
    results, rows = run({"text": planted(utterances, 1)}, partly)
    assert results["test"]["emotion_labels"] == 7 and results["test"]["labels"]["valence"] == 10
    test = [row for row in rows if row["split"] == "test"]
    assert [row["emotion_label"] for row in test].count("") == 3
    assert all(row["emotion"] in EMOTIONS for row in test)


def test_absent_modality_says_nothing(run: RunFold, utterances: list[Utterance]) -> None:
    """What lacks the text is predicted as if the text were average."""
    audio, text = planted(utterances, 0, noise=1.0), planted(utterances, 1)
    fold = make_folds(utterances, "leave_one_speaker_out")[0]
    test = np.array([u.utterance_id in fold.test for u in utterances])
    predicted = {}
    for name, filling in (("absent", np.nan), ("average", text.values[~test].mean(0))):
        values = text.values.copy()
        values[test] = filling
        features = {"audio": audio, "text": Features(values, text.layers)}
        results, rows = run(features, modalities=["audio", "text"])
        assert results["chosen"]["emotion"]["layers"] == {"audio": [0], "text": [1]}
        predicted[name] = [float(row["p_angry"]) for row in rows]
    assert predicted["absent"] == pytest.approx(predicted["average"], abs=3e-6)


@pytest.mark.filterwarnings("ignore:.*non-finite")
@pytest.mark.parametrize(
    ("output", "labelled", "flags"),
    [
        ("valence", lambda u: u.utterance_id in ("u35", "u45"), {}),
        ("emotion", lambda u: u.split != "validation", {"protocol": "official"}),
        ("emotion", lambda u: u.speaker_id in ("speaker_0", "speaker_3"), {}),
        ("emotion", lambda u: u.emotion == "sad" or u.speaker_id in ("speaker_0", "speaker_3"), {}),
    ],
    ids=["two of all", "nothing to choose by", "one speaker left", "one emotion"],
)
def test_labels_that_leave_no_choice_are_refused(
    run: RunFold,
    utterances: list[Utterance],
    output: str,
    labelled: Callable[[Utterance], bool],
    flags: Any,
) -> None:
    splits = {"speaker_0": "test", "speaker_1": "validation"}
    given = [replace(u, split=splits.get(u.speaker_id, "train")) for u in utterances]
    given = [u if labelled(u) else without_fields(u, [output]) for u in given]
    with pytest.raises(ValueError, match=f"^{output} has too few labels"):
        run({"text": planted(utterances, 1)}, given=given, **flags)


# ---- references ----------------------------------------------------------------------------------


def voices(utterances: list[Utterance], strength: float) -> Features:
    """Means that tell the emotion, moved by a speaker's voice, and deviations of 1; 50 states each."""
    rng = np.random.default_rng(2)
    moved = planted(utterances, 0, layers=1, noise=0.2).values
    moved = moved + strength * np.repeat(rng.normal(size=(8, 1, 6)), 10, axis=0)
    both = np.concatenate([moved, np.ones_like(moved)], axis=-1).astype(np.float32)
    return Features(both, (0,), np.full(80, 50))


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_speakers_reference_takes_the_voice_away(
    run: RunFold, utterances: list[Utterance], pooling: str
) -> None:
    given: dict[str, Any] = {"features": {"audio": voices(utterances, 0.3)}, "layers": ("0",)}
    plain, _ = run(**given, pooling=pooling)
    results, rows = run(**given, pooling=pooling, reference="speaker")
    assert results["test_without_reference"]["UAR"] == plain["test"]["UAR"] < 0.9
    assert results["test"]["UAR"] == 1.0
    assert results["validation"]["UAR"] == plain["validation"]["UAR"]
    assert results["reference"]["kind"] == "speaker"
    assert results["reference"]["strengths"]["speaker"] <= 8
    assert [row["split"] for row in rows].count("test_without_reference") == 10


def test_references_are_those_of_the_states(utterances: list[Utterance]) -> None:
    """What pooled states say of a recording is what the states say, and moves by the same formula."""
    states = torch.randn(2, 3, 40, 5, dtype=torch.float64) * 2 + 1  # two recordings of 40 frames
    values = np.stack([baselines.pool(s.float(), "mean_std") for s in states])
    config = MTMMConfig(reference_encoder="")
    pooled = Features(values, (0, 1, 2), np.full(2, 40))
    rows = {u.utterance_id: row for row, u in enumerate(utterances[:2])}
    references = PooledReferences(model=Statistics(config, pooled), pooled=pooled, rows=rows)
    answers = torch.zeros(2, 6)
    for row, one in enumerate(states):
        mask = torch.ones(1, 40, dtype=torch.bool)
        direct = Reference.of_states(one[None], mask, answers[:1], 0.8, "")
        made = references.of(utterances[row], answers[0].numpy())
        assert made is not None and made.seconds == pytest.approx(direct.seconds)
        assert np.allclose(made.mean, direct.mean) and np.allclose(made.squares, direct.squares)
    mean, deviation = torch.full((1, 3, 5), 0.5), torch.full((1, 3, 5), 4.0)
    given = {"reference_mean": mean, "reference_deviation": deviation}
    moved = references.standardised({utterances[1].utterance_id: given})
    expected = baselines.pool(((states[1] - 0.5) / 4).float(), "mean_std")
    assert np.allclose(moved.values[1], expected, atol=1e-5)  # the training data's are 0 and 1
    assert np.array_equal(moved.values[0], values[0])


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus and its encoders; one utterance lacks its audio, another its text."""
    folder = tmp_path_factory.mktemp("baselines")
    write_corpus(folder / "corpus", utterances=60)
    write_encoders(folder / "encoders")
    made = read_manifest(folder / "corpus" / "manifest.csv")
    made[0], made[1] = replace(made[0], audio=None), replace(made[1], text=None)
    write_manifest(made, folder / "corpus" / "manifest.csv")
    return folder


def settings(work: Path, out: str, **flags: Any) -> TrainConfig:
    own: dict[str, Any] = {"manifest": [str(work / "corpus" / "manifest.csv")]}
    own |= {"out": str(work / out), "protocol": "session", "workers": 0, "cache_dtype": "float32"}
    own |= {f"{name}_encoder": str(work / "encoders" / name) for name in ("audio", "text")}
    return TrainConfig(**own | flags)


def test_folds_are_those_of_training(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(work, "both")
    run_baseline(config, Baseline(layers=("1",), pooling="mean_std"))
    assert capsys.readouterr().out.count("CCC valence") == 5
    data = read_data(config.resolve())
    experiment = read_experiment(work / "both")
    assert experiment.emotions == EMOTIONS and experiment.dimensions == ["valence", "arousal"]
    assert sorted(experiment.rows["id"]) == sorted(u.utterance_id for u in data.utterances)
    assert not experiment.missing
    for index, run in experiment.runs.items():
        fold = data.folds[index]
        assert run.results["fold"] == fold.name and run.flags.fold == index
        for split in ("validation", "test"):
            assert list(run.predictions(split)["id"]) == list(getattr(fold, split))
        assert [u.utterance_id for u in run.test_utterances()] == list(fold.test)
        chosen = run.results["chosen"]["emotion"]
        assert chosen["layers"] == {"audio": [1], "text": [1]}
        assert chosen["C"] in regressions.EMOTION_GRID
        assert 0.05 < run.results["temperature"] < 20 and run.results["wall_time_s"] > 0


def test_finished_folds_are_skipped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, last = settings(work, "text", modalities=["text"]), Baseline(layers=("last",))
    run_baseline(config, last, folds=[1, 3])
    assert [path.name for path in sorted((work / "text").glob("fold-*"))] == ["fold-01", "fold-03"]
    before = (work / "text" / "fold-01" / "results.json").stat().st_mtime_ns
    run_baseline(config, last)
    assert len(list((work / "text").glob("fold-*"))) == 5
    assert (work / "text" / "fold-01" / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"baseline\.layers\.0 was 'last', now is '0'"):
        run_baseline(config, Baseline(layers=("0",)))
    monkeypatch.setattr(baselines, "read_features", lambda *_: pytest.fail("encoded for nothing"))
    run_baseline(config, last)
    manifest = work / "corpus" / "manifest.csv"
    whole = manifest.read_text()
    manifest.write_text("".join(whole.splitlines(keepends=True)[:-1]))  # results are of other data
    try:
        with pytest.raises(ValueError, match=r"text/folds.json was begun .*folds\.0\.train"):
            run_baseline(config, last)
    finally:
        manifest.write_text(whole)


@pytest.mark.parametrize("layers", ["last", "best"])
def test_features_are_means_of_encoder_states(work: Path, layers: str) -> None:
    data = read_manifest(work / "corpus" / "manifest.csv")[:4]
    mixed = json.dumps({"encoder_layers": "last" if layers == "last" else "weighted"})
    config = settings(work, "features", model_config=mixed).resolve()
    features = baselines.read_features(config, Baseline("encoders", (layers,), "mean_std"), data)
    model, processor = build_model(config)
    for row, utterance in enumerate(to_dataset(data)):
        batch = RawInputs(processor, (), ())([utterance])
        for modality in ("audio", "text"):
            vectors = features[modality].values[row]
            if utterance[modality] is None:
                assert np.isnan(vectors).all()
                continue
            encode = model.encode_audio if modality == "audio" else model.encode_text
            with torch.no_grad():
                encoded, mask = encode(*(batch[name] for name in FEATURES[modality]))
            states = (
                encoded[0][..., mask[0], :].reshape(-1, int(mask.sum()), encoded.shape[-1]).numpy()
            )
            expected = np.concatenate([states.mean(1), states.std(1)], axis=-1)
            assert vectors.shape == expected.shape
            assert np.abs(vectors - expected).max() < 1e-5
            assert features[modality].layers[-1] == 2  # both encoders have two layers
            assert len(features[modality].layers) == (1 if layers == "last" else 3)


@pytest.mark.parametrize(
    ("flags", "layers", "folds", "named"),
    [
        ({}, ("best",), [5], "5"),
        ({}, ("7",), None, "7"),
        ({"cache_dir": "off"}, ("best",), None, "cache_dir"),
        ({"manifest": None}, ("best",), None, "manifest"),
    ],
)
def test_what_is_not_there_is_refused(
    work: Path, flags: dict[str, Any], layers: tuple[str, ...], folds: list[int] | None, named: str
) -> None:
    config = settings(work, f"refused {layers[0]}", **flags)
    with pytest.raises(ValueError, match=named):
        run_baseline(config, Baseline(layers=layers), folds)


# ---- eGeMAPS -------------------------------------------------------------------------------------


def test_functionals_go_to_a_linear_svm(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def functionals(utterances: list[Utterance]) -> np.ndarray:
        return planted(utterances, 0, layers=1).values[:, 0]

    monkeypatch.setattr(baselines, "egemaps_functionals", functionals)
    monkeypatch.setattr(baselines, "build_model", lambda *_: pytest.fail("needs no encoder"))
    run_baseline(settings(work, "svm", modalities=["audio"]), Baseline("egemaps"), folds=[0])
    results = Run.open(work / "svm" / "fold-00").results
    assert results["chosen"]["emotion"]["layers"] == {"egemaps": [0]}
    assert results["test"]["UAR"] > 0.8
