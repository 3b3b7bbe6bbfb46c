"""Embeddings of utterances: the fused state that the heads read, and each modality's own.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

EMBEDDINGS = ("fused", "audio", "text")
_PREFIX = "embedding_"  # of the tensors' names among a forward pass's outputs


def embedding_outputs(output: Any, masks: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The embeddings of a batch, (batch, hidden) each; NaN where a modality is absent.

    Args:
        output: The model's, with its hidden states: (batch, frames, hidden), (batch, tokens, hidden).
        masks: Frames' and tokens', (batch, frames) and (batch, tokens); None = all are absent.

    Returns:
        By name, for `embedding_rows`.
    """
    found = {f"{_PREFIX}fused": output.fused_state}
    for name, states, mask in zip(EMBEDDINGS[1:], output.hidden_states, masks, strict=True):
        if mask is None:
            mean = torch.full_like(output.fused_state, float("nan"))
        else:
            weights = mask.to(states)[..., None]
            mean = (states * weights).sum(1) / weights.sum(1)
        found[_PREFIX + name] = mean
    return found


def embedding_rows(outputs: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Any] | None]:
    """One utterance's at a time, as lists of numbers; None where none was asked for.

    Args:
        outputs: A forward pass's, with or without embeddings.
        count: How many utterances there are.
    """
    if f"{_PREFIX}fused" not in outputs:
        yield from [None] * count
        return
    columns = [outputs[_PREFIX + name].float().tolist() for name in EMBEDDINGS]
    for row in zip(*columns, strict=True):
        yield dict(zip(EMBEDDINGS, row, strict=True))
