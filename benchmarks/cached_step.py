"""A training step from the cache ÷ the same heads' step on tensors that lie ready in memory.

    python benchmarks/cached_step.py [--device cuda] [--layers weighted] [--real FOLDER]

Random states in the paper's shapes, written in the cache's own format, float16, and read as in
training: the cache's collator behind a DataLoader, in-process and with one worker. The base is the
forward, backward and optimiser step of fusion and heads on the same batches in float32. Where the
small real encoders are at hand (--real, else MTMM_REAL_DATA or ../shared/real), the same for a
cache that FeatureCache wrote with them.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    Stopwatch,
    begin,
    iemocap_like_seconds,
    make_config,
    make_heads,
    make_optimiser,
    make_parser,
    move,
    real_data,
    tokens_of,
    train_step,
)

from configuration_mtmm import EMOTIONS, MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.cache import DTYPES, STATES, CachedStates, FeatureCache
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.sampler import FRAMES_PER_SECOND, LengthBatches
from mtmm_training.batches.shards import StateShards
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.utterances import Utterance

TARGET = 1.10


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4, help="different ones, in each round")
    parser.add_argument("--layers", choices=["last", "weighted"], default="last")
    parser.add_argument("--cache_dtype", choices=list(DTYPES), default="float16")
    parser.add_argument(
        "--real", type=Path, default=real_data(), help="folder of encoders/, ravdess4/"
    )
    arguments = parser.parse_args()
    device = begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(arguments.quick, encoder_layers=arguments.layers)
        cache = random_cache(config, arguments, Path(folder))
        measure("paper's shapes", make_heads(config, device), *cache, arguments)
    if arguments.real is None or arguments.quick:
        print("small real encoders: not measured (--quick, or no --real)")
        return
    with tempfile.TemporaryDirectory() as folder:
        model, lengths, dataset, collate = real_cache(arguments, Path(folder))
        move(model, device).train()
        measure("small real encoders", model, lengths, dataset, collate, arguments)


def random_cache(
    config: MTMMConfig, arguments: argparse.Namespace, folder: Path
) -> tuple[list[int], Any, CachedStates]:
    """Frames of utterances, their rows, and the collator of their random states."""
    audio, text = config.encoder_config("audio"), config.encoder_config("text")
    count = arguments.batches * arguments.batch_size
    seconds = iemocap_like_seconds(count)
    layers = (audio.num_hidden_layers + 1,) if arguments.layers == "weighted" else ()
    frames = [int(s * FRAMES_PER_SECOND) for s in seconds]
    tokens = [tokens_of(s) for s in seconds]
    widths = {"audio": audio.hidden_size, "text": text.hidden_size}
    dtype = DTYPES[arguments.cache_dtype]
    shards: dict[str, StateShards] = {}
    keys: dict[str, dict[str, str | None]] = {}
    for modality, lengths in (("audio", frames), ("text", tokens)):
        shards[modality] = StateShards(folder / modality)
        for start in range(0, count, arguments.batch_size):  # a shard for each, to spare memory
            part = range(start, min(start + arguments.batch_size, count))
            shape = {i: (*layers, lengths[i], widths[modality]) for i in part}
            shards[modality].write({f"u{i}": torch.randn(shape[i]).to(dtype) for i in part})
        keys[modality] = {f"u{i}": f"u{i}" for i in range(count)}
    utterances = [
        Utterance(
            utterance_id=f"u{i}",
            corpus="random",
            speaker_id="s",
            audio="none.wav",
            text="none",
            emotion=EMOTIONS[i % len(EMOTIONS)],
            valence=1.0 + i % 5,
            arousal=2.0 + i % 3,
        )
        for i in range(count)
    ]
    assert set(shards) == set(STATES)
    no_processor: Any = None  # only labels are collated
    labels = RawInputs(no_processor, EMOTIONS, config.dimension_names)
    return frames, to_dataset(utterances), CachedStates(labels, shards, keys)


def real_cache(
    arguments: argparse.Namespace, folder: Path
) -> tuple[MTMMModel, list[int], Any, CachedStates]:
    """The same from Whisper and MiniLM on recordings, with the paper's fusion and heads."""
    encoders = [
        str(arguments.real / "encoders" / n) for n in ("whisper-base-6s", "all-MiniLM-L6-v2")
    ]
    utterances = read_manifest(arguments.real / "ravdess4" / "manifest.csv")
    utterances = utterances[: arguments.batches * arguments.batch_size]
    model = MTMMModel.from_encoders_pretrained(*encoders, encoder_layers=arguments.layers)
    processor = MTMMProcessor.from_encoders_pretrained(*encoders)
    cache = FeatureCache.open(folder, model, processor, dtype=arguments.cache_dtype)
    cache.encode(utterances)
    collate = cache.collator(utterances, EMOTIONS, model.config.dimension_names)
    return model, [1] * len(utterances), to_dataset(utterances), collate


def measure(
    name: str,
    model: MTMMModel,
    lengths: list[int],
    dataset: Any,
    collate: CachedStates,
    arguments: argparse.Namespace,
) -> None:
    """Time all ways of a step on each batch, round after round, and print."""
    device = torch.device(arguments.device)
    batches = list(LengthBatches(lengths, arguments.batch_size))
    schedule = batches * (arguments.rounds + 1)  # one round more, to warm up
    optimiser = make_optimiser(model)
    resident = [to_device(collate(dataset.__getitems__(batch)), device, True) for batch in batches]

    def from_cache(loader: Iterator[dict[str, Any]]) -> None:
        train_step(model, optimiser, to_device(next(loader), device))

    def collation(batch: int) -> dict[str, Any]:
        return collate(dataset.__getitems__(batches[batch]))

    loaders = {n: iter(make_loader(dataset, schedule, collate, workers=n)) for n in (0, 1)}
    watch = Stopwatch(device)
    for turn in range(len(schedule)):
        batch = turn % len(batches)
        steps: dict[str, Callable[[], object]] = {
            "resident": partial(train_step, model, optimiser, resident[batch]),
            "cached, in-process": partial(from_cache, loaders[0]),
            "cached, one worker": partial(from_cache, loaders[1]),
            "collation alone": partial(collation, batch),
        }
        if turn == len(batches):
            watch = Stopwatch(device)
        watch.round(turn, steps)
    sizes = ", ".join("x".join(map(str, b["acoustic_states"].shape)) for b in resident)
    print(f"{name}, {arguments.layers} layers, {arguments.cache_dtype}; batches {sizes}")
    watch.print_table()
    for way in ("in-process", "one worker"):
        claim = f"cached step ÷ resident step, {name}, {way}"
        watch.print_ratio(claim, f"cached, {way}", "resident", TARGET)


def to_device(
    batch: dict[str, Any], device: torch.device, as_float: bool = False
) -> dict[str, torch.Tensor]:
    """What the model takes of a batch, on the device; states in float32 if asked for."""
    return {
        name: (tensor.float() if as_float and name.endswith("_states") else tensor).to(device)
        for name, tensor in batch.items()
        if name != "utterance_ids"
    }


if __name__ == "__main__":
    main()
