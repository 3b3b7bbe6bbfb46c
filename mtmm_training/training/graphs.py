"""Forward and backward of a training step as CUDA graphs, where nothing in them asks the host."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batching_mtmm import rounded_states
from fast_mtmm import Graphs


class PassGraphs:
    """Forward and backward of cached states, padded to few sizes, of which one that comes again is a graph.

    Gradients are added to those that are there, so they must be set to zero, not to None.

    Args:
        work: Forward and backward of a batch on the GPU; returns losses.
        model: A plain MTMMModel.
    """

    def __init__(self, work: Callable[[dict[str, Tensor]], Tensor], model: Any) -> None:
        self.model = model
        self._graphs = Graphs(lambda batch: {"losses": work(batch)}, self._untouched)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """What `work` returns."""
        return self._graphs(rounded_states(batch))["losses"]

    def _untouched(self, record: Callable[[], None]) -> None:
        """Recording leaves no gradient and draws nothing."""
        with torch.random.fork_rng(["cuda"]):
            record()
        self.model.zero_grad(set_to_none=False)
