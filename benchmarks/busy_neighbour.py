"""A training step from the cache beside busy processes ÷ what its share of the cores explains.

    python benchmarks/busy_neighbour.py [--steps 30]

The small recipe's fusion on states of whisper-base's width, batches of 16; the number of threads is
chosen as in training, beside the neighbours: one for each core. With n cores and n neighbours a run of
one thread has n / (n + 1) of a core.
"""

import os
import subprocess
from functools import partial
from typing import Any

import common

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.training.threads import choose_threads

TARGET = 1.5


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=30)
    arguments, _ = common.begin(parser)
    os.environ.pop("OMP_NUM_THREADS", None)  # else it is obeyed
    cores = len(os.sched_getaffinity(0))
    alone, threads = common.in_own_process(measure, arguments)
    print(f"alone: {1000 * alone:.1f} ms a step with {threads} threads", flush=True)
    busy = ["sh", "-c", "while :; do :; done"]
    neighbours = [subprocess.Popen(busy) for _ in range(cores)]
    beside, threads = common.in_own_process(measure, arguments)
    for neighbour in neighbours:
        neighbour.kill()
    print(f"beside {cores} busy processes: {1000 * beside:.1f} ms with {threads} threads")
    explained = beside / alone * cores / (cores + 1)
    common.print_result("step beside busy processes ÷ its share of the cores", explained, TARGET)


def measure(arguments: Any) -> tuple[float, int]:
    """Median seconds of a step, and how many threads were chosen."""
    device = common.begin_quietly(arguments)
    encoders = common.encoders_of_size(512, 1, vocab_size=1000)
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    model = MTMMModel(MTMMConfig.tiny() if arguments.quick else MTMMConfig(**encoders, **sizes))
    step = partial(common.trainer(model.train()), common.cached_batch(model, 16, device))
    watch = common.Stopwatch(device)
    threads = choose_threads(step)
    watch.rounds(3 if arguments.quick else arguments.steps, {"step": step})
    return watch.median("step"), threads


if __name__ == "__main__":
    main()
