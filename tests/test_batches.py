"""Run alone: python -m pytest tests/test_batches.py"""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mtmm_training.batches.collate import RawInputs, to_dataset
from mtmm_training.batches.masking import mask_modalities, rmm_probability
from mtmm_training.batches.opinions import Opinions, drop_votes
from mtmm_training.batches.sampler import LengthBatches
from mtmm_training.data.utterances import Utterance, UtteranceError


def iemocap_like_lengths(count: int = 5531, seed: int = 0) -> np.ndarray:
    """Frames of utterances: log-normal, median 3.6 s, 0.6 to 34 s."""
    seconds = np.random.default_rng(seed).lognormal(math.log(3.6), 0.7, count).clip(0.6, 34.0)
    return np.ceil(50 * seconds).astype(int)


def test_padding_share_is_small_on_iemocap_like_lengths() -> None:
    lengths = iemocap_like_lengths()
    bucketed = LengthBatches(lengths, 16)
    assert bucketed.padding_share() <= 0.05
    random_order = np.random.default_rng(0).permutation(len(lengths))
    chunks = [lengths[random_order[i : i + 16]] for i in range(0, len(lengths), 16)]
    random_share = 1 - lengths.sum() / sum(chunk.max() * len(chunk) for chunk in chunks)
    assert random_share > 0.3, "the lengths would need no bucketing"


def test_batches_follow_from_seed_and_epoch() -> None:
    lengths = iemocap_like_lengths(200)
    first, again = LengthBatches(lengths, 8, seed=1), LengthBatches(lengths, 8, seed=1)
    assert list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)
    assert list(first) != list(LengthBatches(lengths, 8, seed=2))


def test_lengths_of_counts_the_batches_of_each_epoch() -> None:
    batches = LengthBatches(iemocap_like_lengths(500), 16, frame_budget=1500)
    counted = batches.lengths_of(4)
    for epoch, count in enumerate(counted):
        batches.set_epoch(epoch)
        assert len(list(batches)) == count


# ---- variants and corpora ----------------------------------------------------------------------


def drawn_in(batches: LengthBatches, epoch: int) -> list[int]:
    batches.set_epoch(epoch)
    return [index for batch in batches for index in batch]


def test_utterances_take_turns_with_their_variants() -> None:
    lengths = np.stack([iemocap_like_lengths(50, seed=seed) for seed in range(3)])
    batches = LengthBatches(lengths, 8, frame_budget=900)
    epochs = [drawn_in(batches, epoch) for epoch in range(4)]
    for indices in epochs:
        assert sorted(index % 50 for index in indices) == list(range(50))
        assert len({index // 50 for index in indices}) == 3, "all show the same variant"
    assert sorted(epochs[0] + epochs[1] + epochs[2]) == list(range(150))
    assert sorted(epochs[3]) == sorted(epochs[0])


def test_variants_bring_their_own_lengths_into_the_budget() -> None:
    lengths = np.stack([np.full(40, 10), np.full(40, 100)])
    batches = LengthBatches(lengths, 16, frame_budget=200)
    for batch in batches:
        assert lengths.reshape(-1)[batch].max() * len(batch) <= 200
    assert batches.padding_share() < 0.2


CORPORA = ["big"] * 90 + ["small"] * 10


@pytest.mark.parametrize(
    ("exponent", "shares"), [(1.0, (90, 10)), (0.5, (75, 25)), (0.0, (50, 50))]
)
def test_epoch_shares_follow_the_exponent(exponent: float, shares: tuple[int, int]) -> None:
    batches = LengthBatches(
        iemocap_like_lengths(100), 7, corpora=CORPORA, exponent=exponent, seed=3
    )
    total = np.zeros(100, dtype=int)
    for epoch in range(9):
        counts = np.bincount(drawn_in(batches, epoch), minlength=100)
        assert (counts[:90].sum(), counts[90:].sum()) == shares
        for part in (counts[:90], counts[90:]):
            assert part.max() - part.min() <= 1, "an epoch repeats some more than others"
        total += counts
        for part in (total[:90], total[90:]):
            assert part.max() - part.min() <= 1, "some wait longer than others"
    assert total.min() >= 5


def test_repeats_show_other_variants() -> None:
    lengths = np.tile(iemocap_like_lengths(100), (3, 1))
    batches = LengthBatches(lengths, 8, corpora=CORPORA, exponent=0.0)
    indices = np.array(drawn_in(batches, 0))
    small = indices[indices % 100 >= 90]
    assert len(small) == 50 and sorted(np.bincount(small)[np.unique(small)]) == [1] * 10 + [2] * 20


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_what_an_epoch_draws(world_size: int) -> None:
    lengths = np.stack([iemocap_like_lengths(100, seed=seed) for seed in range(2)])
    options: dict[str, Any] = {"corpora": CORPORA, "exponent": 0.3}
    ranks = [
        LengthBatches(lengths, 12 // world_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    alone = LengthBatches(lengths, 12, **options)
    for epoch in range(3):
        together = [index for batches in ranks for index in drawn_in(batches, epoch)]
        assert sorted(together) == sorted(drawn_in(alone, epoch))
        assert len({len(list(batches)) for batches in ranks}) == 1


def test_one_corpus_is_as_no_corpora() -> None:
    lengths = iemocap_like_lengths(100)
    for exponent in (0.0, 1.0):
        named = LengthBatches(lengths, 8, corpora=["a"] * 100, exponent=exponent)
        assert list(named) == list(LengthBatches(lengths, 8))
    assert list(LengthBatches(lengths, 8, corpora=CORPORA)) == list(LengthBatches(lengths, 8))


@pytest.mark.parametrize("epochs", [1, 2, 5, 20])
def test_rmm_probability_follows_its_closed_form(epochs: int) -> None:
    for epoch in range(epochs):
        angle = math.pi * epoch / (epochs - 1) if epochs > 1 else 0.0
        expected = 0.8 * (1 + math.cos(angle)) / 2
        assert rmm_probability(epoch, epochs) == pytest.approx(expected if expected >= 0.1 else 0.0)
    assert rmm_probability(0, epochs) == 0.8
    if epochs > 1:
        assert rmm_probability(epochs - 1, epochs) == 0.0


def masked_batch(count: int, **options: Any) -> dict[str, Any]:
    batch: dict[str, Any] = {
        "utterance_ids": [f"u{i}" for i in range(count)],
        "audio_attention_mask": torch.ones(count, 5, dtype=torch.long),
        "attention_mask": torch.ones(count, 3, dtype=torch.long),
    }
    batch["attention_mask"][0] = 0  # u0 has no text
    mask_modalities(batch, **({"probability": 0.8, "seed": 0, "epoch": 0} | options))
    return batch


def test_masking_takes_exactly_one_modality_at_the_stated_rates() -> None:
    batch = masked_batch(4000)
    no_audio = ~batch["audio_attention_mask"].any(-1)[1:]
    no_text = ~batch["attention_mask"].any(-1)[1:]
    assert not (no_audio & no_text).any()
    assert (no_audio | no_text).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (no_text.sum() / (no_audio | no_text).sum()).item() == pytest.approx(0.6, abs=0.03)


def test_masking_does_not_depend_on_the_batch() -> None:
    whole = masked_batch(20)["audio_attention_mask"]
    part: dict[str, Any] = {"utterance_ids": ["u13", "u7"]} | {
        name: torch.ones(2, 5) for name in ("audio_attention_mask", "attention_mask")
    }
    mask_modalities(part, 0.8, seed=0, epoch=0)
    assert torch.equal(part["audio_attention_mask"], whole[[13, 7]])
    assert not torch.equal(masked_batch(20, epoch=1)["audio_attention_mask"], whole)


def test_masking_off_or_without_a_modality_changes_nothing() -> None:
    assert masked_batch(9, probability=0.0)["audio_attention_mask"].all()
    assert masked_batch(1, probability=1.0)["audio_attention_mask"].all()  # it has no text
    only_text: dict[str, Any] = {"utterance_ids": ["a"], "attention_mask": torch.ones(1, 3)}
    mask_modalities(only_text, 1.0, seed=0, epoch=0)
    assert only_text["attention_mask"].all()


class FakeProcessor:
    """Stands where the collator needs no features."""

    def __call__(self, audio: list[Any], text: list[Any]) -> dict[str, Any]:
        if "bad" in text:
            raise ValueError("Refused.")
        return {"attention_mask": torch.ones(len(text), 1)}


FAKE: Any = FakeProcessor()


def text_utterance(number: int, text: str = "NA", **labels: Any) -> Utterance:
    return Utterance(utterance_id=f"u{number}", corpus="c", speaker_id="s", text=text, **labels)


def test_collator_keeps_na_and_marks_absent_labels() -> None:
    utterances = [
        text_utterance(0, emotion="sad", valence=2.5),
        text_utterance(1, arousal=4.0, text="null"),
    ]
    dataset = to_dataset(utterances)
    assert dataset["text"][:] == ["NA", "null"]
    batch = RawInputs(FAKE, ["angry", "sad"], ["valence", "arousal"])(list(dataset))
    assert batch["emotion_labels"].tolist() == [1, -100]
    assert batch["dimension_labels"].isnan().tolist() == [[False, True], [True, False]]
    assert batch["utterance_ids"] == ["u0", "u1"]


def test_collator_names_the_utterance_that_is_refused() -> None:
    collate = RawInputs(FAKE, ["angry"], ["valence"])
    rows = list(to_dataset([text_utterance(0), text_utterance(1, text="bad")]))
    with pytest.raises(UtteranceError) as caught:
        collate(rows)
    assert (caught.value.utterance_id, caught.value.problem) == ("u1", "Refused.")
    assert pickle.loads(pickle.dumps(caught.value)).utterance_id == "u1"  # as from a worker
    assert collate.problems(rows) == {"u1": "Refused."}


# ---- votes and ratings -------------------------------------------------------------------------


def test_votes_and_ratings_become_tensors() -> None:
    utterances = [
        text_utterance(0, votes={"sad": 2.0, "other": 1.0}, valence_ratings=(1.0, 3.0)),
        text_utterance(1, emotion="angry", votes={"angry": 1.5, "sad": 0.5}),
        text_utterance(2, emotion="sad", valence_ratings=(4.0, 4.0, 5.0, 5.0), valence=4.5),
        text_utterance(3, emotion="unheard"),
    ]
    opinions = Opinions.of(utterances, ["valence", "arousal"])
    assert opinions is not None and opinions.rated == ("valence",)
    # Within (2 + 1) / 4 degrees; means 2 and 4.5 vary by 25/16, of which errors are 9/32.
    doubt = opinions.doubt["valence"]
    assert doubt == pytest.approx(0.75 / (25 / 16 - 0.75 * (1 / 2 + 1 / 4) / 2))
    collate = RawInputs(FAKE, ["angry", "sad"], ["valence", "arousal"], opinions)
    batch = collate(list(to_dataset(utterances)))
    assert batch["emotion_votes"].tolist() == [[0, 2], [1.5, 0.5], [0, 1], [0, 0]]
    assert batch["emotion_labels"].tolist() == [-100, 0, 1, -100]
    assert batch["dimension_ratings"][2].nan_to_num(-1).tolist() == [[4, 4, 5, 5], [-1] * 4]
    weights = torch.tensor([2 / (2 + doubt), 1, 4 / (4 + doubt), 1])
    torch.testing.assert_close(batch["dimension_weights"][:, 0], weights)
    assert Opinions.of([text_utterance(0, emotion="sad")], ["valence"]) is None


def test_vote_dropout_follows_from_seed_epoch_and_utterance() -> None:
    def drawn(epoch: int, share: float = 0.5, reverse: bool = False) -> list[list[float]]:
        order = slice(None, None, -1 if reverse else 1)
        votes = torch.tensor([[3.0, 2.5], [1, 0], [0, 0]] * 50)
        ids = [f"u{number}" for number in range(150)]
        batch: dict[str, Any] = {
            "emotion_votes": votes.flip(0) if reverse else votes,
            "utterance_ids": ids[order],
        }
        drop_votes(batch, share, seed=1, epoch=epoch)
        return batch["emotion_votes"].tolist()[order]

    first = drawn(0)
    assert first == drawn(0, reverse=True) != drawn(1)
    assert all(row == [1, 0] for row in first[1::3])  # the only one is kept
    assert all(row == [0, 0] for row in first[2::3])
    kept = torch.tensor(first[0::3])
    assert (kept.sum(1) > 0).all() and (kept % 0.5 == 0).all()
    assert kept.mean(0).tolist() == pytest.approx([1.5, 1.25], abs=0.25)
    assert drawn(0, 0.0)[0] == [3.0, 2.5]
