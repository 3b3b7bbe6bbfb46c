"""What goes wrong in a step, said in a sentence: memory, workers, disks, numbers that run away.

A training that diverges is seen before the step that would ruin the weights, and its batches are
kept. The loss is that of all processes' utterances together and gradients are the same everywhere,
so all processes see it in the same step, and all of them stop.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from modeling_mtmm import MTMMOutput
from mtmm_training.batches.collate import is_of_worker
from mtmm_training.data.files import replacing

EXPLOSION = 100.0  # a gradient explodes that is so many times the median of those before it
BEFORE = 100  # so many of them
FEWEST = 10  # and at least so many

ADVICE = "Lower --learning_rate (or --clip_norm), and choose another --out"
OUT_OF_MEMORY = (
    "Out of memory ({0}). Lower --batch_size (not below 2, and raise --accumulation as much), "
    "--frame_budget or --unfreeze_..._layers, or add --gradient_checkpointing, --mixed_precision bf16 "
    "or --lora_rank; and choose another --out."
)
WORKER_KILLED = (
    "A process that reads audio was killed ({0}), often by the system where memory is short. Lower "
    "--workers, and run the same command with --resume."
)
WEIGHTS = (
    "Weights could not be written or read ({0}). The last complete checkpoint is untouched: where the "
    "disk is full, free some space and run the same command with --resume."
)


@contextmanager
def explained() -> Iterator[None]:
    """Says what to do about errors of libraries that do not.

    Raises:
        RuntimeError: In place of errors of memory, of workers that were killed, and of safetensors.
        ValueError: In place of a configuration's own error.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if known or should_reduce_batch_size(error):
            text = OUT_OF_MEMORY
        elif is_of_worker(error):
            text = WORKER_KILLED
        elif isinstance(error, SafetensorError):  # of a full disk too, of which it makes no OSError
            text = WEIGHTS
        elif isinstance(error, StrictDataclassError):  # transformers' check of a configuration
            raise ValueError(f"`--model_config`: {' '.join(str(error).split())}") from error
        else:
            raise
        raise RuntimeError(text.format(_first_line(error))) from error


def _first_line(error: Exception) -> str:
    """An error's first line without the full stop, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")


def diverged(what: str, batches: Sequence[dict[str, Any]], output: MTMMOutput, path: Path) -> str:
    """Keep the batches of a step that would ruin the weights, and say so.

    Args:
        what: What happened, and where.
        batches: What the model was given on this process, with `utterance_ids`.
        output: The outputs for the last batch.
        path: The file to write, which `torch.load` reads: a dict of `batches`, and of the last one's
            `loss`, `emotion_loss` and `dimension_loss`.
    """
    names = ("loss", "emotion_loss", "dimension_loss")
    losses = {name: float(getattr(output, name).detach()) for name in names}
    with replacing(path) as temporary:
        torch.save({"batches": list(batches)} | losses, temporary)
    ids = ", ".join(str(i) for batch in batches for i in batch["utterance_ids"][:3])
    return (
        f"{what}: emotion loss {losses['emotion_loss']:.3g}, dimension loss "
        f"{losses['dimension_loss']:.3g}; the batch ({ids}, ...) is in {path}. {ADVICE}."
    )


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Norm of the gradient of each part that trains, not clipped; under fp16 times the loss's scale.

    They stay where the gradients are: hardly any step looks at them, and looking makes a GPU wait.

    Args:
        model: A plain `MTMMModel`, sharded or not: without what accelerate and peft put around it.
    """
    norms = {}
    for name, part in model.named_children():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            norm = get_total_norm(gradients)
            norms[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return norms


def explosion(norm: float, before: Sequence[float], parts: dict[str, Tensor]) -> str | None:
    """What to print where a finite gradient is far larger than those before it; else None.

    Args:
        norm: The norm of the whole gradient, before it was clipped.
        before: The norms of the epoch's steps before.
        parts: The norms of the parts, see [`gradient_norms`].
    """
    before = before[-BEFORE:]
    if len(before) < FEWEST or not EXPLOSION * statistics.median(before) < norm < math.inf:
        return None
    largest = max(parts, key=lambda name: float(parts[name]), default="the model")
    return (
        f"the gradient explodes: its norm is {norm:.3g}, {norm / statistics.median(before):.0f} times the "
        f"median of the {len(before)} steps before, most of it in {largest}. It is clipped; if it "
        f"comes again: {ADVICE[0].lower()}{ADVICE[1:]}."
    )


def not_finite(parts: dict[str, Tensor]) -> str:
    """The parts whose gradients are not finite, in words."""
    norms = {name: float(norm) for name, norm in parts.items()}
    names = [f"{name} ({norm})" for name, norm in norms.items() if not math.isfinite(norm)]
    return ", ".join(names) or "the sum of all parts"
