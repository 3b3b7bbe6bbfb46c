"""Training from the cache ÷ training without: a step, an epoch, and what a cross-validation takes.

    python benchmarks/cached_training.py [--device cuda] [--batch_size 16] [--batches 3] [--rounds 2]

The paper's shapes with random weights. An epoch of IEMOCAP-like utterances is cut into batches by
length; a few of them, evenly from the shortest to the longest, stand for all. Their states are
written in the cache's own format, float16, and read as in training: the cache's collator behind a
DataLoader, in-process and with one worker. Of each batch, every round times the encoders, the step of
fusion and heads on float32 tensors in memory, the step with encoding, and the step from the cache.
The epoch's ratio can be no more than (encoders + heads) ÷ heads.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from configuration_mtmm import EMOTIONS
from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import STATES, CachedStates
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.sampler import LengthBatches
from mtmm_training.batches.shards import StateShards
from mtmm_training.data.utterances import Utterance

STEP_TARGET, EPOCH_TARGET = 1.10, 90.0
FOLDS, EPOCHS = 10, 20
# One speaker of ten validates, one tests, in every fold.
TRAIN, VALIDATION, TEST = 0.8, 0.1, 0.1
Batch = dict[str, Tensor]


def main() -> None:
    parser = common.make_parser(__doc__, rounds=2, batch_size=16)
    parser.add_argument("--batches", type=int, default=3)
    arguments, device = common.begin(parser)
    size = arguments.batch_size
    model = common.build(arguments, device).train()
    everything = common.iemocap_like_seconds(common.IEMOCAP_UTTERANCES)
    epoch = list(LengthBatches(everything, size, shuffle=False))
    # The middle ones of equal shares of the epoch, by length.
    middles = [int(len(epoch) * (i + 0.5) / arguments.batches) for i in range(arguments.batches)]
    stand_ins = [everything[epoch[middle]] for middle in reversed(middles)]
    print(
        f"{len(stand_ins)} batches of {size} stand for {common.IEMOCAP_UTTERANCES} utterances; mean "
        f"{np.mean(stand_ins):.1f} s"
    )
    raws = [common.raw_batch(model.config, list(seconds), device) for seconds in stand_ins]
    with tempfile.TemporaryDirectory() as folder:
        cached = random_cache(model, raws, Path(folder))
        seconds = measure(model, raws, *cached, arguments)
    print_epoch(seconds, size)


def to_device(batch: dict[str, Any], device: torch.device) -> Batch:
    """What the model takes of a batch, on the device."""
    return {name: value.to(device) for name, value in batch.items() if name != "utterance_ids"}


@torch.no_grad()
def encode(model: MTMMModel, raw: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """By modality states and mask."""
    return {
        "audio": model.encode_audio(raw["input_values"], raw["audio_attention_mask"]),
        "text": model.encode_text(raw["input_ids"], raw["attention_mask"]),
    }


def random_cache(model: MTMMModel, raws: list[Batch], folder: Path) -> tuple[Any, CachedStates]:
    """The cache's files with what the encoders say of the batches, as dataset and collator."""
    shards = {modality: StateShards(folder / modality) for modality in STATES}
    utterances: list[Utterance] = []
    for raw in raws:
        first = len(utterances)
        for modality, (states, mask) in encode(model, raw).items():
            rows = zip(states.half().cpu(), mask.sum(-1).tolist(), strict=True)
            shards[modality].write(
                {f"u{first + i}": row[:length].clone() for i, (row, length) in enumerate(rows)}
            )
        utterances += [
            Utterance(
                utterance_id=f"u{i}", corpus="random", speaker_id="s", audio="none.wav", text="none",
                emotion=EMOTIONS[i % len(EMOTIONS)], valence=1.0 + i % 5, arousal=2.0 + i % 3,
            )
            for i in range(first, first + len(raw["input_ids"]))
        ]  # fmt: skip
    no_processor: Any = None  # only labels are collated
    labels = RawInputs(no_processor, EMOTIONS, model.config.dimension_names)
    keys: dict[str, str | None] = {u.utterance_id: u.utterance_id for u in utterances}
    return to_dataset(utterances), CachedStates(labels, shards, dict.fromkeys(STATES, keys))


def measure(
    model: MTMMModel,
    raws: list[Batch],
    dataset: Any,
    collate: CachedStates,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Time all ways of a step on each batch, round after round; each way's seconds for a batch."""
    device, size = torch.device(arguments.device), arguments.batch_size
    train = common.trainer(model, graphs=device.type == "cuda")
    everything, medians = common.Stopwatch(device), []

    def train_from(loader: Iterator[dict[str, Any]]) -> None:
        train(to_device(next(loader), device))

    for number, raw in enumerate(raws):
        rows = list(range(number * size, (number + 1) * size))
        resident = to_device(collate(dataset.__getitems__(rows)), device)
        resident |= {n: tensor.float() for n, tensor in resident.items() if n.endswith("_states")}
        states = {n: tensor for n, tensor in resident.items() if not n.endswith("_labels")}
        schedule = [rows] * (arguments.rounds + 1)  # one more, to warm up
        alone, helped = (iter(make_loader(dataset, schedule, collate, workers=n)) for n in (0, 1))
        steps: dict[str, Callable[[], object]] = {
            "encoders": partial(encode, model, raw),
            "heads": partial(train, resident),
            "re-encoding step": partial(train, raw),
            "cached step, in-process": partial(train_from, alone),
            "cached step, one worker": partial(train_from, helped),
            "collation alone": partial(collate, dataset.__getitems__(rows)),
            "heads, forward only": partial(torch.no_grad()(model), **states),
        }
        watch = common.Stopwatch(device)
        watch.rounds(arguments.rounds, steps)
        print(f"paper's shapes, batch {number + 1}:")
        watch.print_table()
        for step, seconds in watch.seconds.items():
            everything.seconds.setdefault(step, []).extend(seconds)
        medians.append({step: watch.median(step) for step in steps})
    for way in ("in-process", "one worker"):
        claim = f"cached step ÷ resident step, paper's shapes, {way}"
        everything.print_ratio(claim, f"cached step, {way}", "heads", STEP_TARGET)
    # Batches stand for equally many, so the mean over them is that of an epoch.
    return {step: float(np.mean([each[step] for each in medians])) for step in medians[0]}


def print_epoch(mean: dict[str, float], batch_size: int) -> None:
    """The epoch's ratio, and a 10-fold, 20-epoch run on IEMOCAP from the seconds of a batch."""
    cached, forward = mean["cached step, in-process"], mean["heads, forward only"]
    encoded = mean["encoders"] + forward
    passes = FOLDS * EPOCHS
    last = FOLDS * (VALIDATION + TEST) * encoded  # predictions come from raw inputs
    with_cache = passes * (TRAIN * cached + VALIDATION * forward) + last + mean["encoders"]
    without = passes * (TRAIN * mean["re-encoding step"] + VALIDATION * encoded) + last
    hours = {
        "encoding once": mean["encoders"],
        f"{FOLDS} folds x {EPOCHS} epochs from the cache, with encoding once": with_cache,
        f"{FOLDS} folds x {EPOCHS} epochs with encoding": without,
    }
    print(f"projected for {common.IEMOCAP_UTTERANCES} utterances from the medians above:")
    for name, seconds in hours.items():
        print(f"  {name}: {common.IEMOCAP_UTTERANCES / batch_size * seconds / 3600:.2f} h")
    print(f"  ratio of the two runs: {without / with_cache:.2f}")
    ratio = mean["re-encoding step"] / cached
    bound = (mean["encoders"] + mean["heads"]) / mean["heads"]
    claim = "epoch with encoding ÷ epoch from cache, % of its bound"
    remark = f"{ratio:.2f} of {bound:.2f}"
    common.print_result(claim, 100 * ratio / bound, EPOCH_TARGET, remark, at_least=True)


if __name__ == "__main__":
    main()
