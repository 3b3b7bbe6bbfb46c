"""The linear path: what it pools, that it is the regression, and when the fusion counts beside it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRAINED, MakeModel

from modeling_mtmm import MTMMModel
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.linear import add_linear_path, fusion_share, inner_folds
from mtmm_training.training.regressions import Task
from mtmm_training.training.ridge import fit_task, speaker_trust
from pooled_mtmm import pool

EMOTIONS = ["angry", "happy", "sad", "neutral"]
CONFIG = TrainConfig(
    manifest=["x"], emotions=EMOTIONS, dimensions=["valence", "arousal"], dimension_range=[1, 5]
)


class States:
    """Stands for the cache; every second utterance has no text."""

    def __init__(self, utterances: list[Utterance], noise: float) -> None:
        draw = np.random.default_rng(0)
        self.audio, self.text = {}, {}
        for u in utterances:
            mean = np.zeros((3, 32))
            mean[1, EMOTIONS.index(str(u.emotion))] = 2.0
            audio = mean[:, None] + noise * draw.normal(size=(3, draw.integers(3, 9), 32))
            self.audio[u.utterance_id] = torch.tensor(audio, dtype=torch.float32)
            text = draw.normal(size=(3, 4, 32)) + float(u.valence or 0)
            self.text[u.utterance_id] = torch.tensor(text, dtype=torch.float32)

    def of(self, modality: str, utterance: Utterance) -> torch.Tensor | None:
        states = self.audio if modality == "audio" else self.text
        return states[utterance.utterance_id] if getattr(utterance, modality) else None


def make_splits() -> dict[str, list[Utterance]]:
    draw = np.random.default_rng(1)
    splits: dict[str, list[Utterance]] = {"train": [], "validation": []}
    for number in range(96):
        speaker = number % 8
        u = Utterance(
            utterance_id=f"u{number}", corpus="c", speaker_id=f"s{speaker}", audio="a.wav",
            text="a" if number % 3 else None, emotion=EMOTIONS[draw.integers(4)],
            valence=float(draw.integers(1, 6)), arousal=3.0 + draw.normal() / 3,
        )  # fmt: skip
        splits["train" if speaker < 6 else "validation"].append(u)
    return splits


def no_help(splits: dict[str, list[Utterance]]) -> Predictions:
    """A fusion that has learned nothing."""
    draw = np.random.default_rng(2)
    own = splits["validation"]
    return Predictions(
        [u.utterance_id for u in own],
        draw.normal(size=(len(own), 4)),
        3 + draw.normal(size=(len(own), 2)) / 9,
        np.array([EMOTIONS.index(str(u.emotion)) for u in own]),
        np.array([[u.valence, u.arousal] for u in own], dtype=float),
    )


@pytest.fixture
def weighted(make_model: MakeModel) -> MTMMModel:
    return make_model(encoder_layers="weighted", trained_outputs=TRAINED)


def batch(states: States, u: Utterance) -> dict[str, Any]:
    given = {"acoustic_states": states.of("audio", u), "linguistic_states": states.of("text", u)}
    return {name: value[None] for name, value in given.items() if value is not None}


def test_pooled_states_are_mean_and_deviation_without_padding() -> None:
    states, mask = torch.randn(2, 3, 6, 5), torch.tensor([[1] * 6, [1] * 4 + [0] * 2]) != 0
    states[1, :, 4:] = 1e6
    pooled = pool(states, mask, [0, 2], True)
    own = states[1, [0, 2], :4].numpy()
    wanted = np.concatenate([own.mean(1).ravel(), own.std(1).ravel()])
    np.testing.assert_allclose(pooled[1], wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(pool(states[:, 0], mask, [0], False), pool(states, mask, [0], False))


def test_model_whose_fusion_does_not_help_is_the_regression(
    weighted: MTMMModel, tmp_path: Any
) -> None:
    splits = make_splits()
    states: Any = States(splits["train"] + splits["validation"], noise=0.5)
    validation, told = add_linear_path(CONFIG, weighted, splits, states, no_help(splits))
    assert told["emotion"]["fusion"] == told["valence"]["fusion"] == 0.0
    assert 1 in told["pooled"]["audio"]["layers"]  # the one that was planted
    right = validation.emotion_logits.argmax(1) == validation.emotion_labels
    assert right.mean() > 0.95
    correct = []
    for u in splits["train"]:
        output = weighted(**batch(states, u))
        correct.append(int(output.emotion_logits.argmax()) == EMOTIONS.index(str(u.emotion)))
        assert 1 < float(output.dimensions[0, 0]) < 5
    assert np.mean(correct) > 0.98
    said = [u for u in splits["train"] if u.text]
    values = [float(weighted(**batch(states, u)).dimensions[0, 0]) for u in said]
    assert np.corrcoef(values, [float(u.valence or 0) for u in said])[0, 1] > 0.9
    weighted.save_pretrained(tmp_path)
    loaded = MTMMModel.from_pretrained(tmp_path)
    given = batch(states, splits["train"][1])
    torch.testing.assert_close(loaded(**given).emotion_logits, weighted(**given).emotion_logits)


class Changed(States):
    """Features 10 to 13 tell the emotion too, but not of a variant."""

    def of(self, modality: str, utterance: Utterance) -> torch.Tensor | None:
        states = super().of(modality, utterance)
        if modality == "text" or states is None:
            return states
        lasting = torch.zeros(3, 1, 4) if utterance.augmentation else states[:, :, :4]
        return torch.cat([states[:, :, :10], lasting + states[:, :, 10:14], states[:, :, 14:]], 2)


def test_path_relies_on_what_variants_keep(make_model: MakeModel) -> None:
    splits = make_splits()
    states: Any = Changed(splits["train"] + splits["validation"], noise=0.5)
    shares = []
    for changes in ([], ["noise"]):
        model = make_model(encoder_layers="weighted", trained_outputs=TRAINED)
        config = replace(CONFIG, augment=changes)
        add_linear_path(config, model, splits, states, no_help(splits))

        def angrier(first: int, model: MTMMModel = model) -> float:
            planted = torch.zeros(2, 3, 5, 32)
            planted[1, 1, :, first] = 2.0
            angry = model(acoustic_states=planted).emotion_logits[:, 0]
            return float(angry[1] - angry[0])

        shares.append(angrier(10) / angrier(0))
    assert shares[0] > 0.5
    assert shares[1] < 0.5 * shares[0]


def test_absent_modality_adds_nothing(weighted: MTMMModel) -> None:
    splits = make_splits()
    states: Any = States(splits["train"] + splits["validation"], noise=0.5)
    add_linear_path(CONFIG, weighted, splits, states, no_help(splits))
    path = weighted.linear_path
    assert path is not None
    given = batch(states, splits["train"][1])
    audio, text = given["acoustic_states"], given["linguistic_states"]
    here = [torch.ones(1, states.shape[-2], dtype=torch.bool) for states in (audio, text)]
    gone = [torch.zeros_like(mask) for mask in here]
    both, heard, said, none = (
        path({"audio": (audio, a), "text": (text, t)})[0]
        for a, t in ((here[0], here[1]), (here[0], gone[1]), (gone[0], here[1]), gone)
    )
    torch.testing.assert_close(both + none, heard + said)
    assert not torch.allclose(both, heard)


def test_slightly_unfamiliar_recording_keeps_its_regression(weighted: MTMMModel) -> None:
    """One in twenty of a new speaker's is beyond 1."""
    weighted.add_linear_path({"audio": {"layers": [0], "deviation": False}})
    distances = torch.tensor([[0.9, torch.nan], [1.2, torch.nan], [1.3, torch.nan]])
    away = weighted._away(None, distances)
    assert away is not None and away.tolist() == [False, False, True]


def test_path_that_nobody_can_choose_is_refused_before_training() -> None:
    splits = make_splits()
    alone = {name: [u for u in own if u.speaker_id == "s0"] for name, own in splits.items()}
    with pytest.raises(ValueError, match="--linear_path"):
        inner_folds(CONFIG, alone)
    assert len(inner_folds(CONFIG, splits)) == 5


def other_place(recordings: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Two emotions that lie apart along the diagonal of two features, (recordings, 1, 32)."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(2, size=recordings)
    means = 0.4 * draw.normal(size=(recordings, 1, 32))
    means[:, 0, :2] += np.where(labels, 1.0, -1.0)[:, None]
    return torch.from_numpy(means), labels


def far_path(make_model: MakeModel) -> Any:
    """A linear path whose regression for other places looks at the first feature alone."""
    path: Any = make_model().add_linear_path({"audio": {"layers": [0], "deviation": False}})
    half = len(path.bias) // 2
    path.audio_weight[half, 0], path.audio_weight[half + 1, 0] = -0.5, 0.5
    path.audio_weight[half, 1:8] = path.audio_weight[half + 1, 1:8] = 1e-6
    path.bias[half + 2 : half + 4] = -20.0
    return path


def far_answers(path: Any, means: torch.Tensor) -> torch.Tensor:
    far = slice(len(path.bias) // 2, len(path.bias) // 2 + 4)
    return (means[:, 0].float() @ path.audio_weight[far].T + path.bias[far]).argmax(1)


def test_place_is_learned_from_its_recordings_without_labels(make_model: MakeModel) -> None:
    path, (means, labels) = far_path(make_model), other_place(400)
    dimensions = path.audio_weight[len(path.bias) // 2 + 4 :].clone()
    before = (far_answers(path, means).numpy() == labels).mean()
    path.refit(means)
    new, told = other_place(400, seed=1)  # also of recordings that it has not heard
    after = (far_answers(path, new).numpy() == told).mean()
    assert before < 0.995 and after > before
    assert path.audio_weight[len(path.bias) // 2, 1] < -0.02  # the second feature counts now
    half = len(path.bias) // 2
    assert path.audio_weight[:half].abs().max() == 0  # the regression at home is as it was
    assert torch.equal(path.audio_weight[half + 4 :], dimensions)


@pytest.mark.parametrize("count", [1, 3])
def test_few_recordings_of_a_place_move_little(make_model: MakeModel, count: int) -> None:
    path, (means, _) = far_path(make_model), other_place(count)
    weight = path.audio_weight.clone()
    path.refit(means)
    assert torch.isfinite(path.audio_weight).all() and torch.isfinite(path.bias).all()
    assert (path.audio_weight - weight).abs().max() < 0.1


def test_fusion_counts_only_where_it_is_clearly_better() -> None:
    known = np.arange(60)

    def share(quality: np.ndarray, speakers: int) -> float:
        return fusion_share(lambda w, own: w * float(quality[own].mean()), known, known % speakers)

    assert share(np.where(known < 45, 1.0, -1.0), 2) == 1.0  # better in most utterances
    assert share(np.where(known % 2, 1.0, -0.95), 20) == 0.0
    # By more than a standard error, which might be chance of two speakers.
    better = np.where(known < 36, 1.0, -1.0)
    assert (share(better, 2), share(better, 20)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shifts", "mixed", "strength", "skew"),
    [
        (2.0, True, 2.0, 0.5),  # only a voice is far from the usual answers
        (0.0, True, 32.0, None),  # or more: there is nothing to gain
        (1.0, False, 1e6, 0.1),  # who was recorded in one emotion: the answers are a mood
    ],
)
def test_references_count_as_speakers_left_out_ask_for(
    shifts: float, mixed: bool, strength: float, skew: float | None
) -> None:
    draw, speakers = np.random.default_rng(0), np.repeat(np.arange(24), 24)
    labels = (np.tile(np.arange(24), 24) if mixed else speakers) % 4
    inputs = 2.0 * np.eye(4)[labels] + draw.normal(size=(576, 4))
    inputs += shifts * draw.normal(size=(24, 4))[speakers]
    task, part = Task("emotion", labels, EMOTIONS, True), speakers // 4 % 3
    inner = [(np.flatnonzero(part != p), np.flatnonzero(part == p)) for p in range(3)]
    found = fit_task(task, inputs, inner)
    chosen = speaker_trust(task, inputs, np.ones(4, bool), inner, found, speakers)
    assert chosen[0] >= strength and (chosen[0] == strength or shifts < 2)
    assert skew in (None, chosen[1])
