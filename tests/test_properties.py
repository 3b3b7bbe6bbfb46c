"""Processor, scores, loss, folds, files and batches: what holds for whatever they are given."""

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import gradient
from hypothesis import given
from strategies import MANY, SOME, finite, names, transcripts

from configuration_mtmm import MTMMConfig
from loss_mtmm import multi_task_loss
from mtmm_training.batches.masking import MASKED_SPAN, draw_spans
from mtmm_training.batches.sampler import LengthBatches
from mtmm_training.data.folds import PROTOCOLS, make_folds
from mtmm_training.data.manifest import EMPTY, read_manifest, write_manifest
from mtmm_training.data.utterances import DIMENSIONS, SPLITS, Utterance
from mtmm_training.scoring import metrics
from processing_mtmm import MTMMProcessor

EMOTIONS = ("angry", "happy", "sad", "neutral")

# ---- scores --------------------------------------------------------------------------------------


def exact_ccc(x: list[float], y: list[float]) -> float | None:
    """Lin 1989 in exact fractions; None where the denominator is zero or a label is missing."""
    pairs = [(Fraction(a), Fraction(b)) for a, b in zip(x, y, strict=True) if not math.isnan(b)]
    if len(pairs) < 2:
        return None
    n = len(pairs)
    mean_x, mean_y = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in pairs) / n
    spread = sum((a - mean_x) ** 2 + (b - mean_y) ** 2 for a, b in pairs) / n
    spread += (mean_x - mean_y) ** 2
    return float(2 * covariance / spread) if spread else None


@st.composite
def pairs_of(draw: st.DrawFn, values: st.SearchStrategy[float]) -> tuple[list[float], list[float]]:
    """Predictions and labels, some of them absent, some of both constant."""
    size = draw(st.integers(0, 12))
    columns = [
        draw(
            st.one_of(
                st.lists(values, min_size=size, max_size=size), values.map(lambda v: [v] * size)
            )
        )
        for _ in range(2)
    ]
    absent = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return columns[0], [math.nan if a else v for a, v in zip(absent, columns[1], strict=True)]


@MANY
@given(pairs_of(finite))
def test_ccc_matches_exact_fractions_of_any_size(pair: tuple[list[float], list[float]]) -> None:
    expected = exact_ccc(*pair)
    score = metrics.concordance_correlation(*pair)
    if expected is None:
        assert math.isnan(score)
    else:
        assert score == pytest.approx(expected, abs=1e-6) and abs(score) <= 1


# ---- loss ----------------------------------------------------------------------------------------

on_scale = st.floats(1, 5, width=16)


@MANY
@given(pairs_of(on_scale), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_dimension_loss_matches_exact_fractions(
    pair: tuple[list[float], list[float]], dtype: torch.dtype
) -> None:
    predictions = torch.tensor(pair[0], dtype=dtype).requires_grad_()
    expected = exact_ccc(predictions.tolist(), pair[1])
    labels = torch.tensor(pair[1], dtype=torch.float32)
    config = MTMMConfig.tiny(dimension_names=("valence",), dimension_loss_weights=(1.0,))
    loss = multi_task_loss(
        config, torch.zeros(len(labels), 4), predictions[:, None], None, labels[:, None]
    )[1]
    loss.backward()
    assert gradient(predictions).isfinite().all()
    assert loss.item() == pytest.approx(0 if expected is None else 1 - expected, abs=1e-5)


# ---- folds ---------------------------------------------------------------------------------------


@st.composite
def corpora(draw: st.DrawFn) -> list[Utterance]:
    """Any assignment of few speakers, sessions, scripts and splits to up to twenty utterances."""
    session = st.one_of(st.none(), st.sampled_from("12345"))
    if draw(st.booleans()):
        session = st.sampled_from("12345")
    # Half of the time every speaker has a session of their own choice, as in most corpora.
    home = draw(st.one_of(st.none(), st.fixed_dictionaries({s: session for s in "abcdef"})))
    utterances = []
    for number in range(draw(st.integers(0, 20))):
        speaker = draw(st.sampled_from([*"abcdef"]))
        utterances.append(
            Utterance(
                utterance_id=f"u{number}",
                corpus="c",
                text=draw(st.sampled_from(["yes", "Yes!", "no", "...", "it is eleven"])),
                speaker_id=speaker,
                session_id=draw(session) if home is None else home[speaker],
                script_id=draw(st.one_of(st.none(), st.sampled_from("xyz"))),
                improvised=draw(st.sampled_from([None, True, False])),
                split=draw(st.sampled_from(SPLITS)),
            )
        )
    return utterances


@MANY
@given(
    corpora(),
    st.sampled_from(sorted(PROTOCOLS)),
    st.integers(0, 7),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_folds_never_leak_and_test_everyone_once(
    utterances: list[Utterance],
    protocol: str,
    k: int,
    seed: int,
    improvised_only: bool,
    script_disjoint: bool,
) -> None:
    try:
        folds = make_folds(
            utterances,
            protocol,
            k=k if protocol == "grouped" else None,
            seed=seed,
            improvised_only=improvised_only,
            script_disjoint=script_disjoint,
        )
    except ValueError:
        return
    keyed = {u.utterance_id: u for u in utterances}
    kept = {name for name, u in keyed.items() if u.improvised or not improvised_only}
    assert folds and len({fold.name for fold in folds}) == len(folds)
    for fold in folds:
        splits = [[keyed[name] for name in getattr(fold, split)] for split in SPLITS]
        assert all(splits)
        for of in ("utterance_id", "speaker_id"):
            values = [{getattr(u, of) for u in split} for split in splits]
            assert sum(map(len, values)) == len(set.union(*values))
        if script_disjoint:
            scripts = [
                {u.script_id or str(u.text).casefold().strip("!") for u in s} for s in splits
            ]
            assert sum(map(len, scripts)) == len(set.union(*scripts))
        else:
            assert {u.utterance_id for split in splits for u in split} == kept
    if protocol != "official":
        tested = Counter(name for fold in folds for name in fold.test)
        assert tested == Counter(kept)


# ---- files ---------------------------------------------------------------------------------------


seconds = st.floats(0, 1e9)
names = names.filter(lambda name: name not in EMPTY)  # what pandas writes for nothing
optional_names = st.none() | names
written = st.builds(
    Utterance,
    utterance_id=names,
    corpus=names,
    text=transcripts,
    speaker_id=names,
    improvised=st.sampled_from([None, True, False]),
    split=st.sampled_from([None, *SPLITS]),
    start_s=st.none() | seconds,
    **dict.fromkeys(
        ("emotion", "session_id", "dialogue_id", "script_id", "gender"), optional_names
    ),
    **dict.fromkeys(DIMENSIONS, st.none() | st.floats(1, 5)),
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@SOME
@given(st.lists(written, min_size=1, max_size=4, unique_by=lambda u: u.utterance_id))
def test_manifests_come_back_exactly(suffix: str, utterances: list[Utterance]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, f"m{suffix}")
        write_manifest(utterances, path)
        assert read_manifest(path) == utterances


# ---- batches and cache ---------------------------------------------------------------------------


@MANY
@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=60),
    st.integers(1, 8),
    st.none() | st.integers(1, 3000),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 5),
)
def test_every_index_comes_once_an_epoch_and_after_a_stop(
    lengths: list[int],
    batch_size: int,
    frame_budget: int | None,
    world_size: int,
    shuffle: bool,
    epoch: int,
) -> None:
    def make(rank: int) -> LengthBatches:
        options: dict[str, Any] = {"frame_budget": frame_budget, "shuffle": shuffle}
        return LengthBatches(lengths, batch_size, rank=rank, world_size=world_size, **options)

    if len(lengths) < world_size:
        with pytest.raises(ValueError, match=f"{len(lengths)} .* {world_size} processes"):
            make(0)
        return
    ranks = [make(rank) for rank in range(world_size)]
    for batches in ranks:
        batches.set_epoch(epoch)
    shares = [list(batches) for batches in ranks]
    assert len({len(share) for share in shares}) == 1
    assert all(batch for share in shares for batch in share)
    seen = sorted(index for share in shares for batch in share for index in batch)
    assert seen == list(range(len(lengths)))
    assert 0 <= ranks[0].padding_share() < 1
    for first in range(len(shares[0])):
        resumed = make(0)
        resumed.set_epoch(epoch, first)
        assert list(resumed) == shares[0][first:]


@MANY
@given(st.integers(0, 500), st.floats(0, 1), st.randoms(use_true_random=False))
def test_hidden_spans_are_apart_and_exactly_as_many(
    length: int, share: float, draw: Random
) -> None:
    hidden = round(share * length)
    spans = draw_spans(draw, length, hidden)
    places = [place for start, end in spans for place in range(start, end)]
    assert len(places) == len(set(places)) == hidden
    assert all(0 <= place < length for place in places)
    assert all(end - start <= MASKED_SPAN for start, end in spans)


# ---- processor -----------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Waveforms of any type, shape and size, good and bad."""
    dtype = draw(
        st.sampled_from("float16 float32 float64 int8 uint8 int16 int32 int64 bool".split())
    )
    time, channels = draw(st.integers(0, 3000)), draw(st.integers(0, 40))
    shape = draw(st.sampled_from([(time,), (time, channels), (channels, time), (1, time, 1), ()]))
    values = np.random.default_rng(draw(st.integers(0, 2**16))).uniform(-1, 1, shape)
    size = draw(st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 8.0, 9.0, 1e30]))
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            values = (size * values).astype(dtype)
        if values.size and draw(st.integers(0, 5)) == 0:
            values.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        return values
    return (100 * values).astype(dtype)


rates = st.sampled_from(
    [1, 4000, 8000, 11025, 12345, 16000, 44100, 48000, 192000, 0, -1, None, 1.5]
)


# ---- processor and collator ----------------------------------------------------------------------


@MANY
@given(arrays(), rates, st.one_of(st.none(), transcripts, st.just("a" * 100)))
def test_processor_gives_finite_tensors_or_says_why_not(
    tiny_processor: MTMMProcessor, array: np.ndarray, rate: Any, text: str | None
) -> None:
    try:
        features = tiny_processor(audio={"array": array, "sampling_rate": rate}, text=text)
    except (ValueError, TypeError):  # InputError, or an option that is wrong
        return
    for value, mask in (("input_values", "audio_attention_mask"), ("input_ids", "attention_mask")):
        if value in features:
            assert (
                features[value].isfinite().all() and features[mask].shape == features[value].shape
            )
            assert (features[mask] == 1).all()
    assert ("input_ids" in features) == (text is not None)
