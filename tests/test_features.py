"""The cache returns what was encoded, encodes once, never anything stale, and survives being killed."""

import multiprocessing
import os
import pickle
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from configuration_mtmm import MTMMConfig
from explanation_mtmm import FEATURES
from modeling_mtmm import MTMMModel
from mtmm_training.batches import cache as features
from mtmm_training.batches import fingerprint
from mtmm_training.batches.augment import add_variants
from mtmm_training.batches.cache import FeatureCache
from mtmm_training.batches.collate import RawInputs, to_dataset
from mtmm_training.batches.encoding import positions_that_fit
from mtmm_training.batches.sampler import frame_lengths
from mtmm_training.batches.shards import StateShards
from mtmm_training.data.folds import make_folds
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance, UtteranceError
from processing_mtmm import MTMMProcessor

EMOTIONS, DIMENSIONS = ["angry", "happy", "sad", "neutral"], ["valence", "arousal"]
WORDS = ["so happy today", "no", "what a mess, again", "fine", "oh", "well then, good night", "yes"]


MakeModel = Callable[..., MTMMModel]
OpenCache = Callable[..., FeatureCache]
StartEncoding = Callable[..., tuple[Any, ...]]


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Seven of ragged lengths: the last three lack audio, text, and most of their recording."""
    rng = np.random.default_rng(0)
    made = []
    for i, text in enumerate(WORDS):
        path = tmp_path / f"{i}.wav"
        waveform = rng.normal(0, 0.1, int(16000 * rng.uniform(0.1, 0.4)))
        soundfile.write(path, waveform, 16000, subtype="FLOAT")
        emotion = EMOTIONS[i % 4]
        u = Utterance(
            utterance_id=f"u{i}",
            corpus="noise",
            speaker_id=f"s{i % 3}",
            audio=str(path),
            text=text,
            emotion=emotion,
            valence=1.0 + i % 5,
        )
        made.append(u)
    made[4] = replace(made[4], audio=None)
    made[5] = replace(made[5], text=None)
    made[6] = replace(made[6], start_s=0.02, end_s=0.07)
    return made


@pytest.fixture
def open_cache(tmp_path: Path, make_model: MakeModel, tiny_processor: MTMMProcessor) -> OpenCache:
    """Open the cache in one folder, in float32 and for the tiny model with these settings."""

    def open_cache(
        model: MTMMModel | None = None,
        processor: MTMMProcessor = tiny_processor,
        dtype: str = "float32",
        recordings: Recordings | None = None,
        **settings: Any,
    ) -> FeatureCache:
        model = model or make_model(**settings)
        folder = tmp_path / "cache"
        known = recordings or Recordings(folder)
        return FeatureCache(folder, model, processor, known, dtype=dtype)

    return open_cache


def missing(cache: FeatureCache, utterances: list[Utterance]) -> tuple[int, int]:
    """How many states of audio and of text are not there."""
    found = cache.missing(utterances)
    return len(found["audio"]), len(found["text"])


def count_runs(encoder: torch.nn.Module) -> list[int]:
    """A list that gets the size of every batch that passes through the encoder."""
    sizes: list[int] = []
    encoder.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(len(output[0])), with_kwargs=True
    )
    return sizes


def raw_states(cache: FeatureCache, utterance: Utterance, modality: str) -> Tensor:
    """States of one utterance that is encoded alone."""
    other = {"audio": "text", "text": "audio"}[modality]
    absent: dict[str, Any] = {other: None}
    batch = RawInputs(cache.processor, (), ())([to_dataset([replace(utterance, **absent)])[0]])
    encode = cache.model.encode_audio if modality == "audio" else cache.model.encode_text
    states, mask = encode(*(batch[name] for name in FEATURES[modality]))
    return states[0][..., mask[0], :]


def collated(cache: FeatureCache, utterances: list[Utterance]) -> dict[str, Any]:
    return cache.collator(utterances, EMOTIONS, DIMENSIONS)(list(to_dataset(utterances)))


def logits(model: MTMMModel, batch: dict[str, Any]) -> Tensor:
    output = model(**{name: value for name, value in batch.items() if name != "utterance_ids"})
    return torch.cat([output.emotion_logits, output.dimensions], dim=1)


# ---- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("lacking", [{}, {"audio": None}, {"text": None}])
def test_cache_returns_what_was_encoded(
    utterances: list[Utterance], open_cache: OpenCache, layers: str, lacking: dict[str, Any]
) -> None:
    utterances = [replace(u, **lacking) for u in utterances[:4]]
    cache = open_cache(encoder_layers=layers)
    cache.encode(utterances, batch_size=1)
    batch = collated(cache, utterances)
    for modality, name in features.STATES.items():
        assert (f"{name}_states" in batch) == (modality not in lacking)
        for i, utterance in enumerate(utterances if modality not in lacking else []):
            expected = raw_states(cache, utterance, modality)
            mask = batch[f"{name}_attention_mask"][i]
            assert mask.sum() == expected.shape[-2]
            assert torch.equal(batch[f"{name}_states"][i][..., mask, :], expected)
            assert (batch[f"{name}_states"][i][..., ~mask, :] == 0).all()


# ---- once, and never stale -----------------------------------------------------------------------


def test_second_run_encodes_nothing(utterances: list[Utterance], open_cache: OpenCache) -> None:
    first = open_cache()
    runs = count_runs(first.model.audio_model), count_runs(first.model.text_model)
    assert first.encode(utterances) == {"audio": 6, "text": 6}
    again = open_cache(first.model)
    assert again.encode(utterances) == {"audio": 0, "text": 0}
    collate, rows = again.collator(utterances, EMOTIONS, DIMENSIONS), list(to_dataset(utterances))
    states = collate(rows)["acoustic_states"]
    assert [sum(sizes) for sizes in runs] == [6, 6]
    spawned = pickle.loads(pickle.dumps(collate))  # as a worker gets it, with files open
    assert torch.equal(spawned(rows)["acoustic_states"], states)


def test_each_file_is_opened_twice_by_all_folds(
    utterances: list[Utterance], open_cache: OpenCache, tmp_path: Path
) -> None:
    """Hashed and decoded: by folds, batches, encoding, and two more processes with other folds."""
    opened = tmp_path / "opened.txt"

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).endswith(".wav"):
            with os.fdopen(os.open(opened, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
                file.write(f"{Path(arguments[0]).name}\n")

    def fold(seed: int) -> None:
        recordings = Recordings(tmp_path / "cache")
        make_folds(utterances, "grouped", k=3, seed=seed, recordings=recordings)
        frame_lengths(utterances, recordings)
        cache = open_cache(recordings=recordings)
        cache.encode(utterances, batch_size=2)
        assert len(collated(cache, utterances)["acoustic_states"]) == 7

    watching = True
    sys.addaudithook(note)
    for seed in range(3):
        process = multiprocessing.get_context("fork").Process(target=fold, args=(seed,))
        process.start()
        process.join()
        assert process.exitcode == 0
    watching = False
    counts = Counter(opened.read_text().split())
    assert len(counts) == 6 and set(counts.values()) == {2}


def test_equal_content_is_one_entry(utterances: list[Utterance], open_cache: OpenCache) -> None:
    twins = [utterances[0], replace(utterances[0], utterance_id="twin", start_s=0.0)]
    assert open_cache().encode(twins) == {"audio": 1, "text": 1}


def test_saved_model_and_used_processor_hit_cache(
    utterances: list[Utterance], open_cache: OpenCache, tmp_path: Path
) -> None:
    cache = open_cache()
    cache.encode(utterances)
    cache.model.save_pretrained(tmp_path / "saved")
    loaded = MTMMModel.from_pretrained(tmp_path / "saved")
    cache.processor(text=["a", "b c d"], text_kwargs={"padding": "max_length", "max_length": 20})
    assert missing(open_cache(loaded), utterances) == (0, 0)


@pytest.mark.parametrize(
    ("change", "misses"),
    [
        ({"text": "something else"}, {"audio": 0, "text": 1}),
        ({"start_s": 0.01}, {"audio": 1, "text": 0}),
        ({"end_s": 0.09}, {"audio": 1, "text": 0}),
        ("bytes", {"audio": 1, "text": 0}),
    ],
)
def test_changed_utterance_misses(
    utterances: list[Utterance], open_cache: OpenCache, change: Any, misses: dict[str, int]
) -> None:
    cache = open_cache()
    cache.encode(utterances)
    if change == "bytes":
        waveform, rate = soundfile.read(utterances[0].audio)
        soundfile.write(utterances[0].audio, -waveform[::-1], rate, subtype="FLOAT")  # same size
        changed, cache = utterances, open_cache()  # a process asks for a file's time once
    else:
        changed = [replace(utterances[0], **change), *utterances[1:]]
    with pytest.raises(ValueError, match="states of u0"):
        cache.collator(changed, EMOTIONS, DIMENSIONS)
    assert missing(open_cache(cache.model), changed) == tuple(misses.values())
    assert cache.encode(changed) == misses
    batch = collated(cache, changed)
    for modality, name in features.STATES.items():
        mask = batch[f"{name}_attention_mask"][0]
        fresh = raw_states(cache, changed[0], modality)
        assert (batch[f"{name}_states"][0][mask] - fresh).abs().max() <= 1e-5


def test_changed_model_misses(utterances: list[Utterance], open_cache: OpenCache) -> None:
    weighted: dict[str, Any] = {
        "encoder_layers": "weighted", "audio_layers": [0, 2], "text_layers": [1],
    }  # fmt: skip
    open_cache().encode(utterances)
    open_cache(**weighted).encode(utterances)
    nudged, configured = open_cache().model, open_cache().model
    with torch.no_grad():
        next(nudged.audio_model.parameters()).view(-1)[0] += 1e-6
    configured.text_model.config.layer_norm_eps = 1e-3
    for settings, misses in (
        ({}, (0, 0)),
        ({"num_bridge_tokens": 3}, (0, 0)),  # behind the encoders
        ({"model": nudged}, (6, 0)),
        ({"model": configured}, (0, 6)),
        ({"dtype": "float16"}, (6, 6)),
        ({"encoder_layers": "weighted"}, (6, 6)),
        (weighted, (0, 0)),
        (weighted | {"audio_layers": [0, 1]}, (6, 0)),
        (weighted | {"text_layers": [1, 2]}, (0, 6)),
        (weighted | {"acoustic_stride": 2}, (6, 0)),
    ):
        assert missing(open_cache(**settings), utterances) == misses, settings


def test_changed_processor_misses(
    utterances: list[Utterance], open_cache: OpenCache, tiny_processor: MTMMProcessor
) -> None:
    open_cache().encode(utterances)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", *"abc", "[MASK]"]
    tokenizer = type(tiny_processor.tokenizer)(vocab=[(piece, -1.0) for piece in pieces])
    for processor, misses in (
        (MTMMProcessor(extractor, tiny_processor.tokenizer, max_tokens=64), (6, 0)),
        (MTMMProcessor(tiny_processor.feature_extractor, tokenizer, max_tokens=64), (0, 6)),
    ):
        assert missing(open_cache(processor=processor), utterances) == misses


def test_changed_library_misses(
    utterances: list[Utterance], open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_cache().encode(utterances)
    monkeypatch.setattr(fingerprint, "version", lambda name: "0.0.1")
    assert missing(open_cache(), utterances) == (6, 6)


# ---- killed, shared, damaged, full ---------------------------------------------------------------


@pytest.fixture
def start_encoding(monkeypatch: pytest.MonkeyPatch) -> StartEncoding:
    """Encode in a forked process that writes a shard after every batch; gives process and result."""
    monkeypatch.setattr(features, "SHARD_BYTES", 1)
    fork = multiprocessing.get_context("fork")
    write = StateShards.write

    def start(
        cache: FeatureCache, *args: Any, pause: float = 0.0, **options: Any
    ) -> tuple[Any, ...]:
        receiver, sender = fork.Pipe(duplex=False)

        def slow_write(shards: StateShards, states: dict[str, Tensor]) -> None:
            write(shards, states)
            time.sleep(pause)

        def work() -> None:
            monkeypatch.setattr(StateShards, "write", slow_write)  # in the child alone
            sender.send(cache.encode(*args, batch_size=1, **options))

        process = fork.Process(target=work)
        process.start()
        return process, receiver

    return start


def test_killed_encoding_continues(
    utterances: list[Utterance], open_cache: OpenCache, start_encoding: StartEncoding
) -> None:
    cache = open_cache()
    process, _ = start_encoding(cache, utterances, pause=60)
    while not any(cache.shards["audio"].folder.glob("*.safetensors")):
        time.sleep(0.01)
    process.kill()
    process.join()
    runs = count_runs(cache.model.audio_model)
    cache = open_cache(cache.model)
    assert cache.encode(utterances) == {"audio": 5, "text": 6}
    assert sum(runs) == 5
    collated(cache, utterances)


def test_processes_encode_disjoint_shares(
    utterances: list[Utterance], open_cache: OpenCache, start_encoding: StartEncoding
) -> None:
    shares = [start_encoding(open_cache(), utterances, rank=i, world_size=2) for i in range(2)]
    counts = [result.recv() for _, result in shares]
    for process, _ in shares:
        process.join()
    assert [sum(count[modality] for count in counts) for modality in ("audio", "text")] == [6, 6]
    assert all(0 < sum(count.values()) < 12 for count in counts)
    assert open_cache().encode(utterances) == {"audio": 0, "text": 0}


def test_unrelated_processes_share_a_cache(
    utterances: list[Utterance], open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_cache(), open_cache()
    plan = second.missing(utterances)
    first.encode(utterances, batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(second, "missing", lambda _: plan)  # it looked before the first one wrote
        second.encode(utterances, batch_size=3)
    for cache in (first, second, open_cache()):
        assert collated(cache, utterances)["acoustic_attention_mask"].any(-1).sum() == 6


def test_damaged_shard_is_found_and_encoded_again(
    utterances: list[Utterance], open_cache: OpenCache
) -> None:
    cache = open_cache()
    cache.encode(utterances)
    cache.verify()
    path = next(cache.shards["audio"].folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        open_cache().verify()
    path.unlink()
    assert open_cache().encode(utterances)["audio"] > 0
    open_cache().verify()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A small one, of two tensors."""
    StateShards(tmp_path).write({"a": torch.ones(2, 3), "b": torch.zeros(1, 3)})
    return next(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_cut_shard_is_named(shard: Path, kept: int) -> None:
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ValueError, match=str(shard)):
        StateShards(shard.parent).refresh()


@pytest.mark.parametrize("change", ["gone", "cut"])
def test_shard_that_changes_after_it_was_indexed_is_named(shard: Path, change: str) -> None:
    shards = StateShards(shard.parent)
    shards.refresh()
    if change == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match=str(shard)):
        shards["a"]


def test_small_disk_is_refused(
    utterances: list[Utterance],
    open_cache: OpenCache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = open_cache(encoder_layers="weighted")
    runs = count_runs(cache.model.audio_model)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**10))
    with pytest.raises(ValueError, match="needs 0.00 GiB more"):
        cache.encode(utterances)
    assert runs == []
    assert "6 audio entries to encode" in capsys.readouterr().out


# ---- what cannot be cached -----------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_trainable_encoder_is_refused(open_cache: OpenCache, modality: str) -> None:
    model = open_cache().model
    encoder = model.encoder_of(modality)
    list(encoder.parameters())[-1].requires_grad_(True)
    assert features.trainable_encoders(model) == [modality]
    with pytest.raises(ValueError, match=f"{modality}_model trains"):
        open_cache(model)


def test_overflow_is_refused(utterances: list[Utterance], open_cache: OpenCache) -> None:
    model = open_cache().model
    with torch.no_grad():
        model.audio_model.encoder.layer_norm.weight.fill_(1e6)
    with pytest.raises(UtteranceError, match="u.: .*not finite in float16"):
        open_cache(model, dtype="float16").encode(utterances)
    assert open_cache(model, dtype="bfloat16").encode(utterances)["audio"] == 6


# ---- layers, stride and augmentation -------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"encoder_layers": "weighted", "audio_layers": [0, 2], "text_layers": [1]},
        {"acoustic_stride": 3},
        {"encoder_layers": "weighted", "audio_layers": [1], "acoustic_stride": 2},
    ],
)
def test_chosen_layers_and_stride_come_back(
    utterances: list[Utterance], open_cache: OpenCache, setting: dict[str, Any]
) -> None:
    cache = open_cache(**setting)
    cache.encode(utterances, batch_size=3)
    cached = collated(cache, utterances)
    raw = RawInputs(cache.processor, EMOTIONS, DIMENSIONS)(list(to_dataset(utterances)))
    assert (logits(cache.model, cached) - logits(cache.model, raw)).abs().max() <= 1e-5
    layers = len(cache.model.config.mixed_layers("audio"))
    assert cached["acoustic_states"].shape[1:-2] == ((layers,) if layers else ())
    encode, stride = open_cache().model.encode_audio, setting.get("acoustic_stride", 1)
    frames = encode(raw["input_values"], raw["audio_attention_mask"])[1].sum(-1)
    assert cached["acoustic_attention_mask"].sum(-1).tolist() == (-(-frames // stride)).tolist()


def test_variants_are_entries_of_their_own(
    utterances: list[Utterance], open_cache: OpenCache
) -> None:
    cache = open_cache()
    originals, *variants = add_variants(utterances, ["speed", "noise"], 2, seed=0)
    shown = [*originals, *(u for variant in variants for u in variant)]
    assert cache.encode(originals) == {"audio": 6, "text": 6}
    assert cache.encode(shown, batch_size=3) == {"audio": 12, "text": 0}  # text is shared
    cached = collated(cache, shown)
    raw = RawInputs(cache.processor, EMOTIONS, DIMENSIONS)(list(to_dataset(shown)))
    assert cached["utterance_ids"] == raw["utterance_ids"] == [u.utterance_id for u in shown]
    assert (logits(cache.model, cached) - logits(cache.model, raw)).abs().max() <= 1e-5
    one, two = cached["acoustic_states"][7], cached["acoustic_states"][14]
    assert (one[:5] - two[:5]).abs().max() > 1e-2
    for changes, seed in ((["speed", "noise"], 1), (["speed"], 0)):
        assert missing(cache, add_variants(utterances, changes, 2, seed)[1]) == (6, 0)


def test_compiled_encoders_are_compiled_once(
    utterances: list[Utterance], open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For batches of four and of two, of padded lengths; the states stay the same."""
    graphs: list[Any] = []

    def make(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=make))
    cache = open_cache()
    cache.encode(utterances, batch_size=4, compiled=True)
    assert len(graphs) <= 4  # a layer of each; made anew once where two sizes were equal by chance
    raw = RawInputs(cache.processor, EMOTIONS, DIMENSIONS)(list(to_dataset(utterances)))
    assert (
        logits(cache.model, collated(cache, utterances)) - logits(cache.model, raw)
    ).abs().max() <= 1e-5


def test_batches_fill_what_is_free() -> None:
    assert positions_that_fit(used=10_000, free=100_000, positions=600) == 4_200
    assert positions_that_fit(used=1_000, free=100_000, positions=600) == 32_000  # enough
    assert positions_that_fit(used=100_000, free=100_000, positions=600) == 600  # they did fit


def test_group_norm_is_encoded_one_by_one(
    utterances: list[Utterance], open_cache: OpenCache
) -> None:
    audio_config = MTMMConfig.tiny().encoder_config("audio").to_dict()
    audio_config |= {"feat_extract_norm": "group", "do_stable_layer_norm": False}
    cache = open_cache(audio_config=audio_config)
    runs = count_runs(cache.model.audio_model)
    cache.encode(utterances, batch_size=4)
    assert runs == [1] * 6
    batch = collated(cache, utterances)
    for i, utterance in enumerate(utterances):
        if utterance.audio is not None:
            mask = batch["acoustic_attention_mask"][i]
            expected = raw_states(cache, utterance, "audio")
            assert torch.equal(batch["acoustic_states"][i][mask], expected)
