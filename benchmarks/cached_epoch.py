"""An epoch that encodes anew ÷ an epoch from the cache, and what a whole cross-validation takes.

    python benchmarks/cached_epoch.py [--device cuda] [--batch_size 16] [--batches 3] [--rounds 2]

The paper's shapes with random weights. An epoch of IEMOCAP-like utterances is cut into batches by
length; a few of them, evenly from the shortest to the longest, stand for all. Of each, every round
times the encoders, the step of fusion and heads on tensors in memory, the step with encoding, and
the step from the cache. The ratio can be no more than (encoders + heads) ÷ heads.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import (
    IEMOCAP_UTTERANCES,
    Stopwatch,
    begin,
    iemocap_like_seconds,
    make_config,
    make_optimiser,
    make_parser,
    move,
    print_result,
    raw_batch,
    train_step,
)
from torch import Tensor

from modeling_mtmm import MTMMModel
from mtmm_training.batches.sampler import LengthBatches
from mtmm_training.batches.shards import StateShards, pad_states

TARGET = 90.0
FOLDS, EPOCHS = 10, 20
# One speaker of ten validates, one tests, in every fold.
TRAIN, VALIDATION, TEST = 0.8, 0.1, 0.1
PARTS = ("encoders", "heads", "re-encoding step", "cached step", "heads, forward only")
WARMED_UP = ("heads", "cached step", "heads, forward only")  # the encoders have had their turn
INPUTS = (
    "acoustic_states", "acoustic_attention_mask", "linguistic_states", "linguistic_attention_mask",
)  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, rounds=2, batch_size=16)
    parser.add_argument("--batches", type=int, default=3)
    arguments = parser.parse_args()
    device = begin(arguments)
    model = move(MTMMModel(make_config(arguments.quick)), device).train()
    optimiser = make_optimiser(model)
    stand_ins = choose_batches(arguments)
    print(
        f"{len(stand_ins)} batches of {arguments.batch_size} stand for {IEMOCAP_UTTERANCES} "
        f"utterances; mean {np.mean(stand_ins):.1f} s"
    )
    watches = []
    with tempfile.TemporaryDirectory() as folder:
        for number, seconds in enumerate(stand_ins):
            watch = Stopwatch(device)
            steps = make_steps(model, optimiser, seconds, StateShards(Path(folder, str(number))))
            for name in WARMED_UP:
                steps[name]()
            for turn in range(arguments.rounds):
                watch.round(turn, steps)
            print(f"batch {number + 1}, {seconds.min():.1f} to {seconds.max():.1f} s:")
            watch.print_table()
            watches.append(watch)
    # Batches stand for equally many, so the mean over them is that of an epoch.
    mean = {name: float(np.mean([watch.median(name) for watch in watches])) for name in PARTS}
    print(f"projected for {IEMOCAP_UTTERANCES} utterances from the medians above:")
    print_projection({name: s / arguments.batch_size for name, s in mean.items()})
    ratio = mean["re-encoding step"] / mean["cached step"]
    bound = (mean["encoders"] + mean["heads"]) / mean["heads"]
    claim = "epoch with encoding ÷ epoch from cache, % of its bound"
    remark = f"{ratio:.2f} of {bound:.2f}"
    print_result(claim, 100 * ratio / bound, TARGET, remark, at_least=True)


def choose_batches(arguments: argparse.Namespace) -> list[np.ndarray]:
    """Durations of a few batches of an epoch: the middle ones of equal shares, by length."""
    seconds = iemocap_like_seconds(IEMOCAP_UTTERANCES)
    batches = list(LengthBatches(seconds, arguments.batch_size, shuffle=False))
    count = arguments.batches
    middles = [int(len(batches) * (i + 0.5) / count) for i in reversed(range(count))]
    return [seconds[batches[middle]] for middle in middles]


def make_steps(
    model: MTMMModel, optimiser: torch.optim.Optimizer, seconds: np.ndarray, shards: StateShards
) -> dict[str, Callable[[], object]]:
    """The parts to time on one batch, by name; its states are put into the cache's files."""
    batch = raw_batch(model.config, list(seconds), model.device)
    labels = {name: tensor for name, tensor in batch.items() if name.endswith("_labels")}

    @torch.no_grad()
    def encode() -> dict[str, Tensor]:
        acoustic = model.encode_audio(batch["input_values"], batch["audio_attention_mask"])
        linguistic = model.encode_text(batch["input_ids"], batch["attention_mask"])
        return dict(zip(INPUTS, (*acoustic, *linguistic), strict=True))

    states = encode()
    for name in ("acoustic", "linguistic"):
        lengths = states[f"{name}_attention_mask"].sum(-1).tolist()
        rows = zip(states[f"{name}_states"].half().cpu(), lengths, strict=True)
        shards.write({f"{name}{i}": row[:length].clone() for i, (row, length) in enumerate(rows)})

    def cached() -> dict[str, Tensor]:
        acoustic = pad_states([shards[f"acoustic{i}"] for i in range(len(seconds))])
        linguistic = pad_states([shards[f"linguistic{i}"] for i in range(len(seconds))])
        tensors = (tensor.to(model.device) for tensor in (*acoustic, *linguistic))
        return dict(zip(INPUTS, tensors, strict=True))

    return {
        "encoders": encode,
        "heads": lambda: train_step(model, optimiser, states | labels),
        "re-encoding step": lambda: train_step(model, optimiser, batch),
        "cached step": lambda: train_step(model, optimiser, cached() | labels),
        "heads, forward only": torch.no_grad()(lambda: model(**states)),
    }


def print_projection(each: dict[str, float]) -> None:
    """A 10-fold, 20-epoch run on IEMOCAP from the seconds that each utterance takes."""
    forward = each["heads, forward only"]
    encoded = each["encoders"] + forward
    passes = FOLDS * EPOCHS
    last = FOLDS * (VALIDATION + TEST) * encoded  # predictions come from raw inputs
    with_cache = passes * (TRAIN * each["cached step"] + VALIDATION * forward) + last
    with_cache += each["encoders"]
    without = passes * (TRAIN * each["re-encoding step"] + VALIDATION * encoded) + last
    hours = {
        "encoding once": each["encoders"],
        f"{FOLDS} folds x {EPOCHS} epochs from the cache, with encoding once": with_cache,
        f"{FOLDS} folds x {EPOCHS} epochs with encoding": without,
    }
    for name, seconds in hours.items():
        print(f"  {name}: {IEMOCAP_UTTERANCES * seconds / 3600:.2f} h")
    print(f"  ratio of the two runs: {without / with_cache:.2f}")


if __name__ == "__main__":
    main()
