"""A training whose numbers run away: seen before the step that would ruin the weights, and kept.

The loss is that of all processes' utterances together and gradients are the same everywhere, so all
processes see it in the same step, and all of them stop.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from modeling_mtmm import MTMMOutput
from mtmm_training.files import replacing

EXPLOSION = 100.0  # a gradient is one when it is so many times the median of those before it
BEFORE = 100  # so many of them
FEWEST = 10  # and at least so many
SMALLEST_SCALE = 1e-4  # of fp16's loss: below it, it is no overflow that makes gradients infinite

ADVICE = "Lower --learning_rate (or --clip_norm), and choose another --out"


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
        norm: Of the whole gradient, before it was clipped.
        before: Those of the epoch's steps before.
        parts: As of [`gradient_norms`].
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


def keep(path: Path, batches: Sequence[dict[str, Any]], output: MTMMOutput) -> str:
    """Write the batches of a step to a file that `torch.load` reads, and say so.

    Args:
        path: Of the file: a dict of `batches` (what the model was given, with `utterance_ids`), and
            of the last one's `loss`, `emotion_loss` and `dimension_loss`.
        batches: Of this process.
        output: Of the last one.
    """
    names = ("loss", "emotion_loss", "dimension_loss")
    losses = {name: float(getattr(output, name).detach()) for name in names}
    with replacing(path) as temporary:
        torch.save({"batches": list(batches)} | losses, temporary)
    ids = ", ".join(str(i) for batch in batches for i in batch["utterance_ids"][:3])
    return (
        f"emotion loss {losses['emotion_loss']:.3g}, dimension loss {losses['dimension_loss']:.3g}; the "
        f"batch ({ids}, ...) is in {path}"
    )
