"""A whole forward pass: its parts, seconds of compute for a second of audio, share of the device's peak.

    python benchmarks/real_time_factor.py [--batches 1x3.6 64x10] [--device cuda] [--compile]

The paper's shapes with random weights; rows of so many seconds, with transcripts to match; no gradients.
Each round times the two bare encoders, the whole forward, that compiled, and on CUDA as graphs, in
turns. Below a factor of 1 it is faster than the speech itself. The peak is what a product of two large
matrices reaches here.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
from torch.utils.flop_counter import FlopCounterMode

from batching_mtmm import regions
from fast_mtmm import Graphs
from pipeline_mtmm import named_outputs

FACTORS = {"cpu": 1.0, "cuda": 0.05, "mps": 0.5}
OVERHEAD, FIRST_ANSWER_S = 1.04, 100.0
# On a GPU: milliseconds at most; times real time and per cent of the peak, at least.
LATENCY, LARGE = ("1x3.6", 15.0), ("64x10", 9000.0, 45.0)


def main() -> None:
    parser = common.make_parser(__doc__, rounds=5)
    parser.add_argument("--batches", nargs="+", default=["1x3.6", "1x30"], metavar="ROWSxSECONDS")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compile", nargs="?", const=True, metavar="MODE")
    arguments, device = common.begin(parser)
    for name in arguments.dtypes:  # one after the other: two would need the memory
        torch.manual_seed(0)
        dtype = getattr(torch, name)
        model: Any = common.build(arguments, device).to(dtype).eval()
        compiled: Any = copy.deepcopy(model) if arguments.compile else None
        if compiled is not None:
            mode = arguments.compile if isinstance(arguments.compile, str) else None
            for part in [compiled] if mode else regions(compiled):  # as the pipeline does it
                part.compile(dynamic=True, mode=mode)
        peak = matmul_peak(device, dtype, 8192 if device.type == "cuda" else 1024)
        for size in ["1x0.5"] if arguments.quick else arguments.batches:
            with torch.inference_mode():
                measure(f"{name} {size}", model, compiled, peak, size, arguments.rounds)


def measure(name: str, model: Any, compiled: Any, peak: float, size: str, rounds: int) -> None:
    """Time one batch and print its lines."""
    rows, seconds = int(size.split("x")[0]), float(size.split("x")[1])
    batch = common.raw_batch(model.config, [seconds] * rows, model.device)
    raw = {key: tensor for key, tensor in batch.items() if "labels" not in key}
    raw["input_values"] = raw["input_values"].to(model.dtype)  # the bare encoder does not
    sound, words = [raw[key] for key in common.AUDIO], [raw[key] for key in common.TEXT]
    steps: dict[str, Callable[[], object]] = {
        "audio": partial(model.audio_model, sound[0], attention_mask=sound[1]),
        "text": partial(model.text_model, words[0], attention_mask=words[1]),
        "whole": partial(model, **raw),
    }
    if compiled is not None:
        began = time.perf_counter()
        compiled(**raw)
        common.synchronise(model.device)
        first = time.perf_counter() - began
        common.print_result(f"first compiled pass, s, {name}", first, FIRST_ANSWER_S)
        steps["compiled"] = partial(compiled, **raw)
    if model.device.type == "cuda":  # as the pipeline does it when it is compiled
        for key in list(steps)[2:]:
            own = compiled if key == "compiled" else model
            steps[f"{key}, graph"] = partial(Graphs(partial(numbers, own)), raw)
            steps[f"{key}, graph"]()  # recorded when it is called again
    watch = common.Stopwatch(model.device)
    watch.rounds(rounds, steps)
    with FlopCounterMode(display=False) as flops:
        model(**raw)
    audio, text, whole = (1000 * watch.median(key) for key in ("audio", "text", "whole"))
    print(f"{name}: audio {audio:.1f} ms, text {text:.1f}, rest {whole - audio - text:.1f}")
    both = zip(watch.seconds["audio"], watch.seconds["text"], strict=True)
    watch.seconds["bare"] = [sum(pair) for pair in both]
    ratio = watch.ratio("whole", "bare")
    # Beside encoders of fewer layers the fusion is as large as ever.
    if model.config.encoder_config("audio").num_hidden_layers < 24:
        print(f"whole forward ÷ bare encoders, {name}: {ratio:.3f}")
    else:
        common.print_result(f"whole forward ÷ bare encoders, {name}", ratio, OVERHEAD)
    kind, audio_s = model.device.type, rows * seconds
    for key in list(steps)[2:]:
        best, claim = watch.median(key), f"{key}, {name}"
        common.print_result(f"real-time factor, {claim}", best / audio_s, FACTORS[kind])
        share, speed = 100 * flops.get_total_flops() / best / peak, audio_s / best
        print(f"{claim}: {share:.0f} % of {peak / 1e12:.3g} TFLOP/s", flush=True)
        if kind == "cuda" and size == LATENCY[0]:
            common.print_result(f"milliseconds, {claim}", 1000 * best, LATENCY[1])
        if kind == "cuda" and size == LARGE[0]:
            common.print_result(f"times real time, {claim}", speed, LARGE[1], at_least=True)
            common.print_result(f"% of the peak, {claim}", share, LARGE[2], at_least=True)


def numbers(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return named_outputs(model(**given))


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of a product of two square matrices."""
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    watch = common.Stopwatch(device)
    watch.rounds(3, {"product": lambda: matrix @ matrix})
    return 2 * size**3 / min(watch.seconds["product"])


if __name__ == "__main__":
    main()
