"""What can go wrong in a step, said in a sentence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from torch import Tensor

from modeling_mtmm import MTMMOutput
from mtmm_training.batches.collate import (
    is_of_worker,
)
from mtmm_training.training import divergence
from mtmm_training.training.checkpoints import Progress


@contextmanager
def naming_shapes(batch: dict[str, Any]) -> Iterator[None]:
    """Says of which shapes a batch is that does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        shapes = ", ".join(
            f"{name} {' x '.join(map(str, tensor.shape))}"
            for name, tensor in batch.items()
            if isinstance(tensor, Tensor) and not name.endswith(("labels", "mask"))
        )
        raise torch.OutOfMemoryError(f"{first_line(error)}, for a batch of {shapes}") from error


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory of the device or of the machine was too small."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or should_reduce_batch_size(error)


def first_line(error: Exception) -> str:
    """An error's first line without the full stop, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")


def diverged(
    what: str,
    batches: Sequence[dict[str, Any]],
    output: MTMMOutput,
    progress: Progress,
    out: Path,
    accelerator: Accelerator,
) -> RuntimeError:
    """The error of a step that would ruin the weights; its batches are kept."""
    name = f"diverged-step-{progress.total_steps + 1:09d}-process-{accelerator.process_index}.pt"
    return RuntimeError(
        f"{what} in epoch {progress.epoch + 1}, step {progress.step + 1}: "
        f"{divergence.keep(out / name, batches, output)}. {divergence.ADVICE}."
    )


def explain(error: Exception) -> str:
    """A sentence or two for the user: what happened, and what to do."""
    if out_of_memory(error):
        return (
            f"Out of memory ({first_line(error)}). Lower --batch_size (not below 2, and raise "
            "--accumulation as much), --frame_budget or --unfreeze_..._layers, or add "
            "--gradient_checkpointing, --mixed_precision bf16 or --lora_rank; and choose another --out."
        )
    if is_of_worker(error):
        return (
            f"A process that reads audio was killed ({first_line(error)}), often by the system where memory "
            "is short. Lower --workers, and run the same command with --resume."
        )
    if isinstance(error, SafetensorError):  # of a full disk too, of which it makes no OSError
        return (
            f"Weights could not be written or read ({error}). The last complete checkpoint is untouched: "
            "where the disk is full, free some space and run the same command with --resume."
        )
    return str(error)
