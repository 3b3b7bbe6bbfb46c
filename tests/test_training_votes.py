"""Training on votes and ratings: what the run's flags, data and model say of them."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import results_of, train, words

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance, leading
from mtmm_training.scoring.votes import spread_scores
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.prepare import (
    class_weights,
    describe_split,
    trained_outputs,
    votes_among,
)


@pytest.fixture(scope="module")
def heard(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus's manifest with no labels but votes and ratings; every third utterance is undecided."""
    undecided = {"angry": 1.0, "happy": 1.0, "bored": 1.0}
    utterances = [
        replace(u, votes=undecided if number % 3 == 0 else u.votes)
        for number, u in enumerate(read_manifest(embedded / "corpus" / "manifest.csv"))
    ]
    path = tmp_path_factory.mktemp("heard") / "m.csv"
    write_manifest([replace(u, emotion=leading(u.votes or {})) for u in utterances], path)
    return path


def test_undecided_utterances_train_and_do_not_count(
    embedded: Path, heard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {
        labels: train(
            words(embedded, heard.parent / labels, "--manifest", str(heard), "--labels", labels)
        )
        for labels in ("votes", "majority")
    }
    assert (
        "votes that are for none of --emotions, and do not train: bored (17)"
        in capsys.readouterr().out
    )
    results = {labels: results_of(folder) for labels, folder in folders.items()}
    losses = {labels: run["epochs"][0]["train"]["loss"] for labels, run in results.items()}
    assert losses["votes"] != losses["majority"]
    for run in results.values():
        split = run["splits"]["train"]
        assert sum(split["emotions"].values()) < split["utterances"] < sum(split["votes"].values())
        assert run["test"]["emotion_labels"] < run["test"]["utterances"] == 10
    model = MTMMModel.from_pretrained(folders["votes"] / "model").eval()
    assert model.config.rated_dimensions == ("valence", "arousal")
    with torch.no_grad():
        deviations = model(input_ids=torch.arange(5, 15)[None]).dimension_deviations
    assert deviations is not None and deviations.shape == (1, 2)
    assert ((deviations > 0.02) & (deviations < 2)).all()
    spread = results["votes"]["raters_spread"]["valence"]
    assert spread["utterances"] == 10 and 0.4 < spread["observed"] < 1.5
    assert "valence_sd" in (folders["votes"] / "predictions.csv").read_text()
    plain = MTMMModel.from_pretrained(folders["majority"] / "model")
    assert plain.deviation_head is None and plain.config.rated_dimensions == ()


def spoken(number: int, **said: object) -> Utterance:
    given = {"utterance_id": f"u{number}", "corpus": "c", "speaker_id": "s", "text": "x"}
    return Utterance(**given | said)  # type: ignore[arg-type]


def test_votes_that_the_model_does_not_predict_are_other() -> None:
    names = ["angry", "sad"]
    one = spoken(1, votes={"angry": 2, "bored": 1, "other": 0.5, "sad": 0})
    assert votes_among([one], names)[0].votes == {"angry": 2, "other": 1.5}
    with pytest.raises(ValueError, match="No vote is for one of --emotions angry sad: ang"):
        votes_among([spoken(1, votes={"ang": 2})], names)


def test_votes_alone_are_labels_where_they_count() -> None:
    known = TrainConfig().resolve()
    split = [spoken(1, votes={"angry": 3, "sad": 1}), spoken(2, emotion="sad")]
    counts = describe_split(split, known)
    assert (counts["emotions"], counts["votes"]) == ({"sad": 1}, {"angry": 3, "sad": 2})
    balanced = replace(known, class_weights="balanced")
    weights = class_weights(balanced, counts)
    assert weights is not None and weights[0] == pytest.approx(5 / (2 * 3))
    majority = class_weights(replace(balanced, labels="majority"), counts)
    assert majority is not None and majority[0] == 0
    assert trained_outputs(MTMMConfig(), split[:1], by_votes=True) == ("emotion",)
    with pytest.raises(ValueError, match="No training label"):
        trained_outputs(MTMMConfig(), split[:1])


def test_spread_is_compared_with_the_raters() -> None:
    utterances = [
        replace(spoken(n, valence_ratings=own), speaker_id=f"s{n}")
        for n, own in enumerate([(3, 3), (1, 5), (2, 4), (3,), (3, 4), (1, 4), (2, 2), (5, 5)] * 4)
    ]
    predicted = np.array([0.2, 2.5, 1.4, 9, 0.6, 2.0, 0.1, 0.3] * 4)
    found = spread_scores({"valence": predicted, "arousal": predicted}, utterances)
    (own,) = found.values()
    observed = np.array([0, 4, 2, 1, 3, 0, 0] * 4) / 2**0.5
    assert own["correlation"] == pytest.approx(
        np.corrcoef(predicted[predicted < 9], observed)[0, 1]
    )
    assert own["low"] <= own["correlation"] <= own["high"] and own["utterances"] == 28
    assert own["observed"] == pytest.approx(observed.mean())


def test_crema_d_trains_on_what_its_listeners_heard(embedded: Path, tmp_path: Path) -> None:
    """Its layout with the embedded corpus's sounds: the label is what was acted, the votes teach."""
    folder, votes = tmp_path / "crema_d", ['"","A","D","F","H","N","S","fileName","numResponses"']
    (folder / "AudioWAV").mkdir(parents=True)
    sounds = sorted((embedded / "corpus").rglob("*.wav"))
    acted = itertools.product(range(1001, 1005), ("ANG", "HAP", "NEU", "SAD"))
    for number, ((actor, emotion), sound) in enumerate(zip(acted, sounds, strict=False)):
        name = f"{actor}_IEO_{emotion}_XX"
        (folder / "AudioWAV" / f"{name}.wav").symlink_to(sound)
        votes.append(f'"{100001 + number}",1,1,0,0,7,0,"{name}",9')  # all heard neutral, mostly
    (folder / "processedResults").mkdir()
    (folder / "processedResults" / "tabulatedVotes.csv").write_text("\n".join(votes) + "\n")
    flags = words(embedded, tmp_path / "run", "--epochs", "12", "--learning_rate", "3e-3")
    at = flags.index("--manifest")
    flags[at : at + 2] = ["--corpus", "crema_d", "--corpus_dir", str(folder)]
    flags += ["--corpus_options", '{"partial": true}', "--protocol", "leave_one_speaker_out"]
    results = results_of(train([*flags, "--fold", "0"]))
    assert results["splits"]["train"]["votes"] == {"angry": 4, "other": 4, "neutral": 28}
    # What is learned is what was heard, whatever was acted.
    assert results["test"]["JSD_votes"] < 0.1 and results["test"]["WAR"] == 0.25
