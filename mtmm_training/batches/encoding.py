"""Frozen encoders over many inputs: batches that fill the device, and copies that it never waits for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from mtmm_training.batches.sampler import LengthBatches

FILLED = 0.7  # of the free memory: fragments and kernels' own needs take some
ENOUGH = 32_000  # positions keep any GPU busy: 11 minutes; of larger batches workers make too few at once


def positions_that_fit(used: int, free: int, positions: int) -> int:
    """Padded positions of a batch that fills the memory, or is large enough, from one that ran.

    Args:
        used: Bytes that it took at its peak, beside the weights.
        free: Bytes that were free before.
        positions: That it had: of the longest inputs, which need most for each.
    """
    return max(min(int(FILLED * free / max(used, 1) * positions), ENOUGH), positions)


def fill(device: torch.device, run: Callable[[], object], positions: int) -> int:
    """Positions that fit, by a batch that `run` encodes; on CUDA alone, elsewhere as they are."""
    if device.type != "cuda":
        return positions
    run()  # what libraries take once
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before, (free, _) = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)
    run()
    return positions_that_fit(torch.cuda.max_memory_allocated(device) - before, free, positions)


def batches_within(
    parts: Sequence[int], lengths: np.ndarray, batch_size: int, budget: int
) -> list[list[int]]:
    """Batches that each stay within a part, and go from its longest input to its shortest.

    Args:
        parts: How many inputs are in each part, in their order.
        lengths: (inputs,), in positions.
        batch_size, budget: As of [`LengthBatches`].
    """
    batches = list[list[int]]()
    for end, count in zip(accumulate(parts), parts, strict=True):
        own = LengthBatches(
            lengths[end - count : end], batch_size, frame_budget=budget, shuffle=False
        )
        batches += [[end - count + index for index in batch] for batch in own]
    return batches


def one_behind(
    batches: Iterable[dict[str, Tensor]],
    encode: Callable[..., tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, list[int]]]:
    """States of each batch in the CPU's memory, and their lengths; the device has the next one by then.

    Args:
        batches: Raw inputs of one encoder, in the order of its arguments.
        encode: The encoder.
        device: Where it runs.
        dtype: That states are given in.
    """
    waiting = None
    for batch in chain(batches, [None]):
        made = None
        if batch is not None:
            states, mask = encode(*(t.to(device, non_blocking=True) for t in batch.values()))
            # Into pinned memory, as soon as they are there.
            copies = [t.to("cpu", non_blocking=True) for t in (states.to(dtype), mask.sum(-1))]
            event = torch.cuda.Event() if device.type == "cuda" else None
            if event is not None:
                event.record()
            made = (copies[0], copies[1], event)
        if waiting is not None:
            states, lengths, event = waiting
            if event is not None:
                event.synchronize()
            yield states, lengths.tolist()
        waiting = made
