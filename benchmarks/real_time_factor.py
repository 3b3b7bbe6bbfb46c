"""Seconds of compute for a second of audio, at the paper's shapes with random weights.

    python benchmarks/real_time_factor.py [--device cuda] [--batch_size 1]

Whole forward passes, audio and text, without gradients: in float32 and bfloat16, and the latter
compiled too on a GPU. HuBERT and the fusion use SDPA, DeBERTa eager
attention, which is all it has. Below 1 is faster than the speech itself.
"""

from collections.abc import Callable
from functools import partial

import common
import torch

from modeling_mtmm import MTMMModel

TARGETS = {"cpu": 1.0, "cuda": 0.05, "mps": 0.5}


def main() -> None:
    parser = common.make_parser(__doc__, rounds=5, batch_size=1)
    arguments = parser.parse_args()
    device = common.begin(arguments)
    config = common.make_config(arguments.quick)
    lengths = (common.MEDIAN_S,) if arguments.quick else (common.MEDIAN_S, 30.0)
    watch = common.Stopwatch(device)
    audio_s: dict[str, float] = {}  # of the batch that each name times
    for dtype in (torch.float32, torch.bfloat16):  # one after the other: two would need the memory
        torch.manual_seed(0)
        model = common.move(MTMMModel(config), device, dtype).eval()
        ways: dict[str, Callable[..., object]] = {str(dtype).removeprefix("torch."): model}
        if dtype is torch.bfloat16 and device.type == "cuda":
            ways["bfloat16 compiled"] = torch.compile(model)
        for seconds in lengths:
            batch = common.raw_batch(config, [seconds] * arguments.batch_size, device)
            raw = {name: tensor for name, tensor in batch.items() if "labels" not in name}
            steps: dict[str, Callable[[], object]] = {
                f"{way}, {seconds:g} s": partial(run, **raw) for way, run in ways.items()
            }
            audio_s |= dict.fromkeys(steps, seconds * arguments.batch_size)
            with torch.inference_mode():
                watch.rounds(arguments.rounds, steps)
        del model, ways, steps
    watch.print_table()
    print(f"batches of {arguments.batch_size}; tokens: {[common.tokens_of(s) for s in lengths]}")
    for name, total in audio_s.items():
        factor = watch.median(name) / total
        remark = f"{1 / factor:.3g} times as fast as speech"
        common.print_result(f"real-time factor, {name}", factor, TARGETS[device.type], remark)


if __name__ == "__main__":
    main()
