"""Peak memory and milliseconds of a training step: frozen from the cache, frozen, LoRA, in full.

    python benchmarks/memory_throughput.py [--device cuda] [--batch_size 4] [--precisions no bf16]

The paper's shapes with random weights; utterances of 3.6 s; each way in a process of its own. Two
steps warm up, then two are timed. On a CPU the peak is the process's largest resident size,
libraries included; on a GPU it is what torch allocated there. bf16 is autocast, as in training.
"""

import argparse
from functools import partial

import common
from torch import nn

from mtmm_training.training.adapters import add_lora

MODES = ("frozen, cached", "frozen", "LoRA", "full fine-tuning")
CACHED_MS = 6.0  # on a GPU
STEPS = 2


def main() -> None:
    parser = common.make_parser(__doc__, batch_size=4)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--precisions", nargs="+", choices=["no", "bf16"], default=["no"])
    arguments, device = common.begin(parser)
    print(f"batches of {arguments.batch_size} x {common.MEDIAN_S} s")
    print(f"{'':<24}{'peak, GiB':>10}{'ms a step':>12}{'utterances/s':>14}{'trained':>14}")
    for mode in arguments.modes:
        for precision in arguments.precisions:
            name = f"{mode}{', bf16' * (precision == 'bf16')}"
            try:
                peak, step_s, trained = common.in_own_process(measure, arguments, mode, precision)
            except (RuntimeError, MemoryError) as error:
                # Also where it was killed for its memory: the table goes on.
                print(f"{name:<24}  failed: {error}", flush=True)
                continue
            rate = arguments.batch_size / step_s
            columns = f"{peak / 2**30:>10.2f}{1000 * step_s:>12.1f}{rate:>14.3f}{trained:>14,}"
            print(f"{name:<24}{columns}", flush=True)
            if mode == MODES[0] and device.type == "cuda":
                common.print_result(f"ms a step, {name}", 1000 * step_s, CACHED_MS)


def measure(arguments: argparse.Namespace, mode: str, precision: str) -> tuple[int, float, int]:
    """Train a few steps in one way; peak bytes, seconds of the fastest step, trained parameters."""
    device = common.begin_quietly(arguments)
    frozen = mode != "full fine-tuning"
    plain = common.build(arguments, device, freeze_audio_encoder=frozen, freeze_text_encoder=frozen)
    lora = mode == "LoRA"
    model: nn.Module = add_lora(plain, rank=8, alpha=16.0, dropout=0.05) if lora else plain
    model.to(device).train()
    if mode == MODES[0]:
        batch = common.cached_batch(plain, arguments.batch_size, device)
    else:
        batch = common.raw_batch(plain.config, [common.MEDIAN_S] * arguments.batch_size, device)
    watch = common.Stopwatch(device)
    step = common.trainer(model, precision, mode == MODES[0] and device.type == "cuda")
    step(batch)  # graphs are recorded when a size comes again, which is the step that warms up
    watch.rounds(STEPS, {"step": partial(step, batch)})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return common.peak_bytes(device), min(watch.seconds["step"]), trained


if __name__ == "__main__":
    main()
