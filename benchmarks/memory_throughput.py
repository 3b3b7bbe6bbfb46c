"""Peak memory and utterances a second of training: frozen from the cache, frozen, LoRA, in full.

    python benchmarks/memory_throughput.py [--device cuda] [--batch_size 4] [--steps 2]

The paper's shapes with random weights; utterances of 3.6 s; each way in a process of its own. One
step warms up, then `--steps` are timed. On a CPU the peak is the process's largest resident size,
libraries included; on a GPU it is what torch allocated there.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch
from common import (
    MEDIAN_S,
    begin,
    make_config,
    make_optimiser,
    make_parser,
    raw_batch,
    synchronise,
    train_step,
)
from torch import nn

from modeling_mtmm import MTMMModel
from mtmm_training.training.adapters import add_lora

MODES = ("frozen, cached", "frozen", "LoRA", "full fine-tuning")
LORA: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.05}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--measure", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        print(json.dumps(measure(arguments)))
        return
    begin(arguments)
    print(f"batches of {arguments.batch_size} x {MEDIAN_S} s")
    print(f"{'':<18}{'peak memory, GiB':>18}{'utterances/s':>14}{'trained parameters':>20}")
    rows = {}
    for mode in arguments.modes:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", mode]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            print(f"{mode:<18}  failed, exit status {done.returncode}")
            continue
        rows[mode] = row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{mode:<18}{row['peak'] / 2**30:>18.2f}{row['rate']:>14.3f}{row['trained']:>20,}",
            flush=True,
        )
    if "frozen, cached" in rows and len(rows) > 1:
        cached = rows.pop("frozen, cached")
        parts = [
            f"{mode} {cached['rate'] / row['rate']:.1f} x the speed, "
            f"{row['peak'] / cached['peak']:.2f} x the memory"
            for mode, row in rows.items()
        ]
        print(f"RESULT training from the cache has, against {'; '.join(parts)}")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Train a few steps in one way; peak bytes, utterances a second, trained parameters."""
    device, mode = torch.device(arguments.device), arguments.measure
    torch.manual_seed(0)
    frozen = mode != "full fine-tuning"
    config = make_config(arguments.quick, freeze_audio_encoder=frozen, freeze_text_encoder=frozen)
    plain = MTMMModel(config)
    model: nn.Module = add_lora(plain, **LORA) if mode == "LoRA" else plain
    model.to(device).train()
    optimiser = make_optimiser(model)
    batch = raw_batch(config, [MEDIAN_S] * arguments.batch_size, device)
    if mode == "frozen, cached":
        batch = in_place_of_encoders(plain, batch)
    step = partial(train_step, model, optimiser, batch)
    step()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    synchronise(device)
    seconds = time.perf_counter() - began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    if sys.platform == "darwin":
        peak //= 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rate = arguments.steps * arguments.batch_size / seconds
    return {"peak": peak, "rate": rate, "trained": trained}


def in_place_of_encoders(
    model: MTMMModel, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The batch with random states, half precision as in the cache, for its raw inputs."""
    samples = batch["audio_attention_mask"].sum(-1)
    lengths = {
        "acoustic": model.audio_model._get_feat_extract_output_lengths(samples),
        "linguistic": batch["attention_mask"].sum(-1),
    }
    encoders = {"acoustic": model.audio_model, "linguistic": model.text_model}
    states = {}
    for name, length in lengths.items():
        shape = (len(length), int(length.max()), encoders[name].config.hidden_size)
        states[f"{name}_states"] = torch.randn(shape, device=model.device).half()
    return states | {name: tensor for name, tensor in batch.items() if name.endswith("_labels")}


if __name__ == "__main__":
    main()
