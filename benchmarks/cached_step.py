"""A training step from the cache ÷ the same heads' step on tensors that lie ready in memory.

    python benchmarks/cached_step.py [--device cuda] [--batch_size 16] [--batches 4] [--rounds 3]

Random states in the paper's shapes, written in the cache's own format, float16, and read as in
training: the cache's collator behind a DataLoader, in-process and with one worker. The base is the
forward, backward and optimiser step of fusion and heads on the same batches in float32. Where the
small real encoders are at hand (MTMM_REAL_DATA or ../shared/real), the same for a cache that
FeatureCache wrote with them.
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
    real_model,
    tokens_of,
    train_step,
)

from configuration_mtmm import EMOTIONS, MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import CachedStates, FeatureCache
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.sampler import FRAMES_PER_SECOND, LengthBatches
from mtmm_training.batches.shards import StateShards
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance

TARGET = 1.10


def main() -> None:
    parser = make_parser(__doc__, rounds=3, batch_size=16)
    parser.add_argument("--batches", type=int, default=4, help="different ones, in each round")
    arguments = parser.parse_args()
    device = begin(arguments)
    count = arguments.batches * arguments.batch_size
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(arguments.quick)
        cache = random_cache(config, count, Path(folder))
        measure("paper's shapes", make_heads(config, device), *cache, arguments)
    real = real_data()
    if real is None or arguments.quick:
        print("small real encoders: not measured (--quick, or not at hand)")
        return
    with tempfile.TemporaryDirectory() as folder:
        model, processor = real_model(real)
        utterances = read_manifest(real / "ravdess4" / "manifest.csv")[:count]
        written = FeatureCache.open(folder, model, processor, Recordings(folder))
        written.encode(utterances)
        collate = written.collator(utterances, EMOTIONS, model.config.dimension_names)
        move(model, device).train()
        lengths = [1] * len(utterances)
        measure("small real encoders", model, lengths, to_dataset(utterances), collate, arguments)


def random_cache(
    config: MTMMConfig, count: int, folder: Path
) -> tuple[list[int], Any, CachedStates]:
    """Frames of utterances, their rows, and the collator of their random states."""
    seconds = iemocap_like_seconds(count)
    frames = [int(s * FRAMES_PER_SECOND) for s in seconds]
    lengths = {"audio": frames, "text": [tokens_of(s) for s in seconds]}
    shards: dict[str, StateShards] = {}
    keys: dict[str, dict[str, str | None]] = {}
    for modality, of_each in lengths.items():
        width = config.encoder_config(modality).hidden_size
        shards[modality] = StateShards(folder / modality)
        shards[modality].write(
            {f"u{i}": torch.randn(length, width).half() for i, length in enumerate(of_each)}
        )
        keys[modality] = {f"u{i}": f"u{i}" for i in range(count)}
    utterances = [
        Utterance(
            utterance_id=f"u{i}", corpus="random", speaker_id="s",
            audio="none.wav", text="none", emotion=EMOTIONS[i % len(EMOTIONS)],
            valence=1.0 + i % 5, arousal=2.0 + i % 3,
        )
        for i in range(count)
    ]  # fmt: skip
    no_processor: Any = None  # only labels are collated
    labels = RawInputs(no_processor, EMOTIONS, config.dimension_names)
    return frames, to_dataset(utterances), CachedStates(labels, shards, keys)


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

    def collated(batch: list[int]) -> dict[str, Any]:
        return collate(dataset.__getitems__(batch))

    resident = [to_device(collated(batch), device) for batch in batches]
    for batch in resident:
        batch |= {name: batch[name].float() for name in batch if name.endswith("_states")}

    def from_cache(loader: Iterator[dict[str, Any]]) -> None:
        train_step(model, optimiser, to_device(next(loader), device))

    loaders = {n: iter(make_loader(dataset, schedule, collate, workers=n)) for n in (0, 1)}
    watch = Stopwatch(device)
    for turn in range(len(schedule)):
        steps: dict[str, Callable[[], object]] = {
            "resident": partial(train_step, model, optimiser, resident[turn % len(resident)]),
            "cached, in-process": partial(from_cache, loaders[0]),
            "cached, one worker": partial(from_cache, loaders[1]),
            "collation alone": partial(collated, schedule[turn]),
        }
        if turn == len(batches):
            watch = Stopwatch(device)
        watch.round(turn, steps)
    sizes = ", ".join("x".join(map(str, b["acoustic_states"].shape)) for b in resident)
    print(f"{name}; batches {sizes}")
    watch.print_table()
    for way in ("in-process", "one worker"):
        claim = f"cached step ÷ resident step, {name}, {way}"
        watch.print_ratio(claim, f"cached, {way}", "resident", TARGET)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """What the model takes of a batch, on the device."""
    return {name: value.to(device) for name, value in batch.items() if name != "utterance_ids"}


if __name__ == "__main__":
    main()
