"""How many threads a small training takes: as many as are fastest, which is one mostly.

The operations of a fusion on cached states are small. Threads meet after each of them, and beside other
work on the machine each meeting waits for the slowest.
"""

import os
import time
from collections.abc import Callable
from timeit import timeit

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtmm_training.batches.collate import Loader
from mtmm_training.training.checkpoints import Progress
from mtmm_training.training.launch import usable_cores

TRIAL_S = 1.0  # for all numbers together


def set_threads(
    progress: Progress,
    model: nn.Module,
    loader: Loader,
    accelerator: Accelerator,
    class_weights: Tensor | None,
) -> None:
    """Choose by passes over the first batch, or keep what a run that goes on had: sums depend on it.

    Only alone on a CPU: processes that work together share the cores out, and a GPU's host has one task.
    Nothing is drawn from the generator that dropout goes on with, and no weight changes.
    """
    if accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        return
    if progress.threads:
        torch.set_num_threads(progress.threads)
        return
    batch = next(iter(loader))
    inputs = {name: value for name, value in batch.items() if name != "utterance_ids"}

    def work() -> None:
        accelerator.backward(model(**inputs, class_weights=class_weights).loss)

    training = model.training
    with torch.random.fork_rng(devices=[]):
        model.train()
        progress.threads = choose_threads(work)
    model.train(training)
    model.zero_grad()


def free_cores() -> int:
    """How many cores nothing else has used in the last minute; 1 at least."""
    busy = int(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(usable_cores() - busy, 1)


def choose_threads(work: Callable[[], object]) -> int:
    """Set and return the number of threads with which `work` is fastest: 1, 2, 4 ... free cores.

    What the user has set by OMP_NUM_THREADS stays.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    free = free_cores()
    candidates = [number for number in (1, 2, 4, 8, 16, 32, 64) if number < free] + [free]
    if free == 1:  # nothing to try
        torch.set_num_threads(1)
        return 1
    fastest: dict[int, float] = {}
    for number in candidates:
        torch.set_num_threads(number)
        work()  # the first one starts the threads
        fastest[number] = min(timeit(work, number=1) for _ in range(2))
        until = time.monotonic() + TRIAL_S / len(candidates)
        while time.monotonic() < until:
            fastest[number] = min(fastest[number], timeit(work, number=1))
    # More threads must be worth it: they are taken from others, and what is free now may not stay so.
    chosen = min(candidates, key=lambda number: fastest[number] * (1.0 if number == 1 else 1.1))
    torch.set_num_threads(chosen)
    return chosen
