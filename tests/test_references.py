"""References: sums of statistics, what a speaker's moves, and what training fits and answers with."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_runs
import torch
from conftest import TRAINED, MakeModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_mtmm import MTMMModel
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.studies.reference_curve import drawn_from, reference_curve
from mtmm_training.training.references import References, labelled_answers
from reference_mtmm import Reference, believed, read_arrays, standardise

EMOTIONS = ("angry", "happy", "sad", "neutral")
WIDTH = 32


class States:
    """Stands for the cache: states by utterance id."""

    def __init__(self, states: dict[str, Tensor]) -> None:
        self.states = states

    def of(self, modality: str, utterance: Utterance) -> Tensor | None:
        return self.states.get(utterance.utterance_id) if modality == "audio" else None


def say(number: int, speaker: str, emotion: str | None, corpus: str = "home") -> Utterance:
    return Utterance(
        utterance_id=f"{speaker}-{number}", corpus=corpus, speaker_id=speaker, text="a",
        audio="a.wav", emotion=emotion,
    )  # fmt: skip


def planted(
    speakers: dict[str, float], emotions: tuple[str, ...] = EMOTIONS, corpus: str = "home"
) -> tuple[list[Utterance], dict[str, Tensor]]:
    """Utterances whose states are emotion + speaker's shift + noise; eight for each emotion."""
    draw = torch.Generator().manual_seed(0)
    utterances, states = [], {}
    for speaker, shift in speakers.items():
        for number, emotion in enumerate(emotions * 8):
            u = say(number, speaker, emotion, corpus)
            mean = torch.zeros(WIDTH)
            mean[EMOTIONS.index(emotion)] = 4.0
            mean[10] = shift
            states[u.utterance_id] = mean + torch.randn(5, WIDTH, generator=draw)
            utterances.append(u)
    return utterances, states


@pytest.fixture
def fitted(make_model: MakeModel) -> MTMMModel:
    utterances, states = planted({"a": -1.0, "b": 0.0, "c": 1.0})
    model = make_model(trained_outputs=TRAINED)
    References(model, States(states)).fit(utterances, "speaker")  # type: ignore[arg-type]
    return model


def reference_of(
    model: MTMMModel, utterances: list[Utterance], states: dict[str, Tensor]
) -> Reference:
    references = References(model, States(states))  # type: ignore[arg-type]
    answers = labelled_answers(utterances, model.config)
    return references.summed(utterances, answers, lambda u: u.speaker_id)[utterances[0].speaker_id]


def test_references_add_up_whatever_the_parts(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(encoder_layers="weighted")
    states, mask = model.encode_audio(
        torch.randn(4, 4000), torch.arange(4000)[None].expand(4, -1) < 3000
    )
    answers = torch.rand(4, 6)
    whole = Reference.of_states(states, mask, answers, 1.0, "x")
    parts = [
        Reference.of_states(states[i:j], mask[i:j], answers[i:j], 0.5, "x")
        for i, j in ((0, 1), (1, 4))
    ]
    for summed in (sum(parts), sum(parts[::-1])):
        assert isinstance(summed, Reference)
        assert (summed.recordings, summed.frames, summed.seconds) == (4, int(mask.sum()), 1.0)
        for name in ("mean", "squares", "answers"):
            np.testing.assert_allclose(getattr(summed, name), getattr(whole, name), rtol=1e-9)
    real = states.double().movedim(1, 2)[mask].numpy()
    np.testing.assert_allclose(whole.mean, real.mean(0), rtol=1e-9)
    np.testing.assert_allclose(whole.deviation, real.std(0), rtol=1e-9)
    whole.save(tmp_path / "a.safetensors")
    loaded = Reference.load(tmp_path / "a.safetensors")
    assert all(np.array_equal(getattr(loaded, n), v) for n, v in vars(whole).items())
    assert (tmp_path / "a.safetensors").stat().st_size < 20_000
    with pytest.raises(ValueError, match="no reference"):
        save_file({"mean": torch.zeros(2)}, tmp_path / "b.safetensors")
        Reference.load(tmp_path / "b.safetensors")


def test_statistics_that_are_not_given_change_nothing(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(encoder_layers="weighted")
    audio = torch.randn(2, 4000)
    before = model(input_values=audio).emotion_logits
    own = {
        "reference_mean": model.fusion.reference_mean[None].expand(2, -1, -1),
        "reference_deviation": model.fusion.reference_deviation[None].expand(2, -1, -1),
    }
    assert torch.equal(model(input_values=audio, **own).emotion_logits, before)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    older = {n: v for n, v in weights.items() if "reference_" not in n and "expected_" not in n}
    assert len(older) == len(weights) - 3
    save_file(older, tmp_path / "model.safetensors", {"format": "pt"})  # as 0.1 saved it
    again = MTMMModel.from_pretrained(tmp_path)
    assert torch.equal(again(input_values=audio).emotion_logits, before)
    with pytest.raises(ValueError, match="--reference"):
        again.standardisation()


def test_training_data_is_standardised_and_its_emotions_known(fitted: MTMMModel) -> None:
    fusion = fitted.fusion
    assert float(fusion.reference_mean[0, 0]) == pytest.approx(1.0, abs=0.1)  # a quarter of 4
    assert float(fusion.reference_deviation[0, 0]) == pytest.approx(2.0, abs=0.05)  # √(3 + 1)
    angry = fusion.expected_states[0, 0]
    assert float(angry[0]) == pytest.approx(1.5, abs=0.05)  # (4 − 1) / 2
    assert float(angry[1]) == pytest.approx(-0.5, abs=0.05)
    assert float(angry[10]) == pytest.approx(0.0, abs=0.2)  # speakers' shifts are no emotion
    assert fusion.expected_states[4:].abs().max() == 0  # of dimensions, where emotions are known


@pytest.mark.parametrize("emotions", [EMOTIONS, ("angry",)])
def test_speaker_moves_what_emotions_do_not_explain(
    fitted: MTMMModel, emotions: tuple[str, ...]
) -> None:
    utterances, states = planted({"d": 3.0}, emotions)
    given = fitted.standardisation(speaker=reference_of(fitted, utterances, states))
    moved = given["reference_mean"][0, 0] - fitted.fusion.reference_mean[0]
    share = len(utterances) / (len(utterances) + 2)  # two utterances' worth of nobody's
    assert float(moved[10]) == pytest.approx(3.0 * share, abs=0.3)
    assert float(moved[:4].abs().max()) < 0.25  # not the 3.0 by which angry is above the mean
    assert torch.equal(given["reference_deviation"][0], fitted.fusion.reference_deviation)


def test_little_difference_from_the_usual_answers_is_no_mood() -> None:
    usual = (0.25, 0.25, 0.25, 0.25)
    angry, mixed = np.array([0.85, 0.05, 0.05, 0.05]), np.array([0.30, 0.24, 0.23, 0.23])
    assert np.allclose(believed(angry, usual), 1.2 * (angry - usual), rtol=0.01)
    sure = np.array([1.0, 0.0, 0.0, 0.0])  # nothing is angrier
    assert np.allclose(believed(sure, usual), sure - usual, atol=0.04)
    assert np.abs(believed(mixed, usual)).max() < 0.005  # of .05
    assert believed(mixed, ()) is mixed  # a model that does not know what is usual
    assert np.allclose(believed(angry, usual, told=1.0, skew=0.9), angry - usual)
    assert np.abs(believed(angry, usual, skew=0.9)).max() < 0.4  # of .6


def test_another_place_is_not_believed_to_be_recorded_as_home(fitted: MTMMModel) -> None:
    utterances, states = planted({"d": 3.0}, ("angry",))
    own = replace(reference_of(fitted, utterances, states), answers=np.eye(6)[0] * 0.5 + 0.1)
    room = replace(reference_of(fitted, *planted({"e": 0.0})), kind="domain")

    def angry(domain: Reference | None) -> float:
        given = fitted.standardisation(domain, own)["reference_mean"]
        return float(given[0, 0, 0])

    fitted.config.reference_skew = 0.9
    careless, away = angry(None), angry(room)
    fitted.config.reference_skew = 0.2
    assert careless > angry(None) + 0.5  # the mood is taken for the voice
    assert away == angry(room)


def test_emotion_that_was_told_is_left_out_whole(fitted: MTMMModel, tmp_path: Path) -> None:
    utterances, states = planted({"d": 3.0}, ("angry",))
    references = References(fitted, States(states))  # type: ignore[arg-type]
    unsure = np.tile([0.4, 0.3, 0.2, 0.1, 0.0, 0.0], (len(utterances), 1))  # what the model heard
    heard = references.summed(utterances, unsure, lambda u: u.speaker_id)["d"]
    told = heard.of_emotion(0)

    def above(reference: Reference) -> float:
        moved = fitted.standardisation(speaker=reference)["reference_mean"][0, 0]
        return float((moved - fitted.fusion.reference_mean[0])[0])

    assert above(heard) > 1.0  # most of what anger is above the mean, which is 3.0
    assert above(told) < 0.25
    half = heard + told
    assert (half.told, half.answers[0]) == (0.5, pytest.approx(0.7))
    assert above(told) < above(half) < above(heard)
    half.save(tmp_path / "half.safetensors")
    assert Reference.load(tmp_path / "half.safetensors").told == 0.5
    arrays, metadata = read_arrays(tmp_path / "half.safetensors")
    older = json.loads(metadata["mtmm_reference"])
    del older["told"]
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    save_file(tensors, tmp_path / "older.safetensors", {"mtmm_reference": json.dumps(older)})
    assert Reference.load(tmp_path / "older.safetensors").told == 0.0


def test_what_is_further_than_any_speaker_is_another_domain(
    fitted: MTMMModel, tmp_path: Path
) -> None:
    utterances, states = planted({"d": 0.0})
    near = reference_of(fitted, utterances, states)
    wide = {name: 3 * value for name, value in states.items()}
    far = replace(reference_of(fitted, utterances, wide), kind="domain")
    path: Any = fitted.add_linear_path({"audio": {"layers": [0], "deviation": False}})
    path.bias[:4], path.bias[6:10] = 1.0, 2.0  # at home, away; beside these are two dimensions
    audio = torch.randn(1, 4000)

    def logits(model: MTMMModel, domain: Reference) -> Tensor:
        given = model.standardisation(domain=domain)
        return model(input_values=audio, **given).emotion_logits

    assert not torch.equal(logits(fitted, near), torch.full((1, 4), 2.0))
    assert torch.equal(logits(fitted, far), torch.full((1, 4), 2.0))  # the fusion is silent
    fitted.adopt_domain(far)
    fitted.save_pretrained(tmp_path)
    settled = MTMMModel.from_pretrained(tmp_path)
    assert torch.equal(settled(input_values=audio).emotion_logits, torch.full((1, 4), 2.0))


def test_split_is_answered_by_a_model_that_learned_each_place(fitted: MTMMModel) -> None:
    home, states = planted({"d": 0.0})
    away, more = planted({"e": 0.0, "f": 1.0}, corpus="call")
    more = {name: 3 * value for name, value in more.items()}  # far: three times as wide
    test = home + away
    path: Any = fitted.add_linear_path({"audio": {"layers": [0], "deviation": False}})
    half = len(path.bias) // 2
    path.audio_weight[half : half + 4, :4] = torch.eye(4)  # what tells the four emotions
    path.bias[half + 3] = 1.0
    references = References(fitted, States(states | more), {"home"})  # type: ignore[arg-type]
    zeros = np.zeros((len(test), 4)), np.zeros((len(test), 2))
    nothing: Any = np.zeros(len(test), dtype=int), np.zeros((len(test), 2))
    plain = Predictions([u.utterance_id for u in test], *zeros, *nothing)
    asked = []

    def answer(model: MTMMModel) -> Predictions:
        asked.append(model)
        return replace(plain, emotion_logits=np.ones((len(test), 4)))

    found = references.adapted(test, plain, answer)
    assert found is not None and len(asked) == 1
    assert found.emotion_logits[: len(home)].max() == 0  # of home: as before
    assert found.emotion_logits[len(home) :].min() == 1
    (model,) = asked
    learned: Any = model.linear_path
    assert model.audio_model is fitted.audio_model  # not copied
    assert torch.equal(learned.audio_weight[:half], learned.audio_weight[half:])  # settled
    assert (learned.audio_weight[:4] - path.audio_weight[half : half + 4]).abs().max() > 1e-3
    assert path.audio_weight[:half].abs().max() == 0  # the trained model is untouched
    assert references.adapted(home, plain, answer) is None
    fitted.linear_path = None
    assert references.adapted(test, plain, answer) is None


def test_domain_replaces_mean_and_deviation_the_more_the_longer(fitted: MTMMModel) -> None:
    utterances, states = planted({"d": 8.0}, corpus="call")
    short, long = (
        fitted.standardisation(domain=reference_of(fitted, utterances[:n], states)) for n in (4, 32)
    )
    assert 0.6 < float(short["reference_mean"][0, 0, 10]) / 8.0 < 0.7  # 4 of 6 recordings
    assert 0.92 < float(long["reference_mean"][0, 0, 10]) / 8.0 < 0.96  # 32 of 34
    # What is between the two means is deviation too.
    assert float(short["reference_deviation"][0, 0, 10]) > float(
        long["reference_deviation"][0, 0, 10]
    )


def test_reference_of_another_encoder_is_refused(fitted: MTMMModel) -> None:
    utterances, states = planted({"d": 0.0})
    own = reference_of(fitted, utterances, states)
    fitted.config.reference_encoder = "another"
    with pytest.raises(ValueError, match="another encoder"):
        fitted.standardisation(speaker=own)


def test_lowest_label_of_a_scale_is_a_label(make_model: MakeModel) -> None:
    scale = {"dimension_range": (0.0, 1.0), "trained_outputs": ("valence", "arousal")}
    config = make_model(**scale).config
    u = replace(say(0, "a", None), valence=0.0)
    assert labelled_answers([u], config).tolist() == [[0, 0, 0, 0, -1, 0]]  # no arousal: no answer


def test_corpus_that_training_heard_has_no_domain_of_its_own(fitted: MTMMModel) -> None:
    utterances, states = planted({"d": 8.0})
    abroad, more = planted({"e": 8.0}, corpus="call")
    both, count = utterances + abroad, len(utterances) + len(abroad)
    predictions = Predictions(
        [u.utterance_id for u in both], np.zeros((count, 4)), np.zeros((count, 2)),
        np.zeros(count, dtype=int), np.zeros((count, 2)),
    )  # fmt: skip
    references = References(fitted, States(states | more), {"home"})  # type: ignore[arg-type]
    fitted.config.reference = "domain"
    given = references.given(both, predictions, lambda _: predictions)
    means = [float(given[u.utterance_id]["reference_mean"][0, 0, 10]) for u in (both[0], both[-1])]
    assert means[0] == pytest.approx(float(fitted.fusion.reference_mean[0, 10]))
    assert means[1] > 7


@pytest.mark.parametrize(
    ("loss_by_strength", "chosen"),
    [
        # .52 keeps four fifths of the gain
        ({2: 0.54, 4: 0.52, 8: 0.50, 32: 0.58, 1e6: 0.60}, 4.0),
        ({2: 0.61, 4: 0.61, 8: 0.61, 32: 0.60, 1e6: 0.60}, 32.0),
        ({2: 0.62, 4: 0.62, 8: 0.62, 32: 0.61, 1e6: 0.60}, 2.0),  # neither gain nor harm
        ({2: 0.90, 4: 0.85, 8: 0.80, 32: 0.70, 1e6: 0.60}, 1e6),  # harm
    ],
)
def test_reference_counts_as_much_as_most_of_its_gain_asks_for(
    fitted: MTMMModel, loss_by_strength: dict[float, float], chosen: float
) -> None:
    utterances, states = planted({"d": 1.0})
    count = len(utterances)
    predictions = Predictions(
        [u.utterance_id for u in utterances], np.zeros((count, 4)), np.zeros((count, 2)),
        np.zeros(count, dtype=int), np.zeros((count, 2)),
    )  # fmt: skip
    unit = fitted.config.reference_strengths[0] / 2

    def answer(given: Any) -> Any:
        strength = round(fitted.config.reference_strengths[0] / unit)
        return SimpleNamespace(metrics=lambda _: {"loss": loss_by_strength[strength]})

    references = References(fitted, States(states), {"home"})  # type: ignore[arg-type]
    told = references.fit_strengths(utterances, predictions, answer)
    assert told["strengths"] == {"speaker": chosen, "domain": 2.0}
    assert fitted.config.reference_strengths[0] == pytest.approx(chosen * unit)
    assert told["skew"] == fitted.config.reference_skew == 0.2  # none is better

    def skewed(given: Any) -> Any:
        loss = abs(fitted.config.reference_skew - 0.4)
        return SimpleNamespace(metrics=lambda _: {"loss": loss})

    assert references.fit_strengths(utterances, predictions, skewed)["skew"] == 0.4


def test_hidden_states_stay_in_their_type() -> None:
    states = torch.randn(2, 3, 5, WIDTH, dtype=torch.bfloat16)
    mean, deviation = torch.randn(2, 3, WIDTH), torch.rand(2, 3, WIDTH) + 0.5
    out = standardise(states, mean, deviation)
    assert out.dtype == torch.bfloat16
    wanted = (states.float() - mean[:, :, None]) / deviation[:, :, None]
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["mixed", "told"])
def test_mixed_references_are_of_the_other_half(kind: str) -> None:
    test = [say(i, "a", EMOTIONS[i % 4]) for i in range(32)] + [
        say(i, "b", "sad") for i in range(9)
    ]
    parts = drawn_from(test, np.arange(32), kind, np.random.default_rng(0))
    assert sorted(np.concatenate([rows for rows, _ in parts])) == list(range(32))
    for rows, order in parts:
        assert len(rows) == len(order) == 16 and not set(rows) & set(order)
        first = order[: len({i % 4 for i in order})]
        assert len({i % 4 for i in first}) == len(first)  # one of each before a second of any


def test_run_tells_what_its_test_answers_used(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictions, "with_votes", lambda predictions, *_: predictions)
    flags = ["--reference", "speaker", "--linear_path", "--select_by", "last"]
    flags += ["--augment", "speed", "--augment_variants", "1"]
    out = small_runs.train(small_runs.words(embedded, tmp_path / "out", *flags))
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert results["reference"]["kind"] == "speaker"
    assert results["reference"]["recordings"] == results["splits"]["test"]["with_audio"]
    assert results["test_without_reference"]["UAR"] is not None
    model = MTMMModel.from_pretrained(out / "model")
    assert model.config.reference == "speaker"
    assert len(str(model.config.reference_encoder)) == 64
    told = results["linear_path"]
    assert set(told) == {"pooled", "emotion", "valence", "arousal", "speaker_strength"}
    assert model.config.reference_skew == results["reference"]["skew"]
    assert results["reference"]["strengths"]["speaker"] == told["speaker_strength"]
    # The regression alone is calibrated already, where nobody voted.
    assert (results["temperature"] == 1.0) == (told["emotion"]["fusion"] == 0.0)
    assert model.linear_path is not None
    table = reference_curve(out, tmp_path / "curve", None)
    assert len(table) == 1 + 7 * 6  # none; at random, four emotions, mixed, told; five sizes, all
    none = table[table["size"] == 0].iloc[0]
    assert none["UAR"] == pytest.approx(results["test_without_reference"]["UAR"])
    whole = table[(table["kind"] == "random") & table["size"].isna()].iloc[0]
    assert whole["UAR"] == pytest.approx(results["test"]["UAR"])
    assert (tmp_path / "curve" / "references.png").stat().st_size > 10_000
    refused = small_runs.words(
        embedded, tmp_path / "raw", "--reference", "speaker", "--cache_dir", "off"
    )
    with pytest.raises(ValueError, match="--reference"):
        small_runs.train(refused)
