"""What goes wrong in a step, said in a sentence: memory, workers, disks, numbers that run away.

A training that diverges is seen one step later, before anything is written, and its batches are kept:
what a step found stays on the device until the next one is under way, so that a GPU never waits for
its host. The loss is that of all processes' utterances together and gradients are the same everywhere,
so all processes see it in the same step, and all of them stop.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm.auto import tqdm

from mtmm_training.batches.collate import is_of_worker
from mtmm_training.data.files import replacing
from mtmm_training.training.checkpoints import Progress
from mtmm_training.training.optimiser import unsharded

EXPLOSION = 100.0  # a gradient explodes that is so many times the median of those before it
BEFORE = 100  # so many of them
FEWEST = 10  # and at least so many
SMALLEST_SCALE = 1e-4  # of fp16's loss: below it, it is no overflow that makes gradients infinite

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
        first = (str(error).splitlines() or [type(error).__name__])[0]  # it may say nothing
        raise RuntimeError(text.format(first.rstrip(". "))) from error


@dataclass
class Unread:
    """What a step found, on the device until it is read.

    Args:
        place: The step, in words.
        kept: The file for its batches, if the training diverges in it.
        batches: What the model was given on this process, with `utterance_ids`.
        losses: For each batch three: the loss, the emotions' and the dimensions'.
        norm: Norm of the gradient before it was clipped; None where DeepSpeed keeps it to itself.
        parts: The norms of the parts, see [`gradient_norms`].
    """

    place: str
    kept: Path
    batches: Sequence[dict[str, Any]]
    losses: list[Tensor] = field(default_factory=list)
    norm: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    def read(self, progress: Progress, accelerator: Accelerator) -> None:
        """Note losses and norm in `progress`, and say where the gradient explodes; one wait.

        Raises:
            RuntimeError: A loss or the gradient is not finite.
        """
        norms = [] if self.norm is None else [self.norm.reshape(1).to(self.losses[0])]
        values = torch.cat([*self.losses, *norms]).tolist()
        losses = [values[start : start + 3] for start in range(0, 3 * len(self.losses), 3)]
        for number, (loss, *_) in enumerate(losses, start=1):
            progress.losses.append(loss)
            if not math.isfinite(loss):
                problem = f"The loss is {loss} {self.place}"
                raise RuntimeError(
                    diverged(problem, self.batches[:number], losses[number - 1], self.kept)
                )
        if self.norm is None:
            return
        norm = values[-1]
        if not (math.isfinite(norm) or overflowed(accelerator)):
            problem = f"The gradient is not finite in {not_finite(self.parts)} {self.place}"
            raise RuntimeError(diverged(problem, self.batches, losses[-1], self.kept))
        warning = explosion(norm, progress.norms, self.parts)
        if warning and accelerator.is_main_process:
            tqdm.write(f"{self.place.removeprefix('in ')}: {warning}")
        if math.isfinite(norm):
            progress.norms.append(norm)


def overflowed(accelerator: Accelerator) -> bool:
    """Whether an infinite norm is normal: fp16's scaler leaves the step out and lowers its scale."""
    return accelerator.scaler is not None and accelerator.scaler.get_scale() >= SMALLEST_SCALE


def diverged(
    what: str, batches: Sequence[dict[str, Any]], losses: Sequence[float], path: Path
) -> str:
    """Keep the batches of a step that has ruined the weights, and say so.

    Args:
        what: What happened, and where.
        batches: What the model was given on this process, with `utterance_ids`.
        losses: The last batch's loss, and those of emotions and dimensions.
        path: The file to write, which `torch.load` reads: a dict of `batches`, and of the last one's
            `loss`, `emotion_loss` and `dimension_loss`.
    """
    names = ("loss", "emotion_loss", "dimension_loss")
    named = dict(zip(names, losses, strict=True))
    with replacing(path) as temporary:
        torch.save({"batches": list(batches)} | named, temporary)
    ids = ", ".join(str(i) for batch in batches for i in batch["utterance_ids"][:3])
    return (
        f"{what}: emotion loss {named['emotion_loss']:.3g}, dimension loss "
        f"{named['dimension_loss']:.3g}; the batch ({ids}, ...) is in {path}. {ADVICE}."
    )


def trained_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """By part, what trains of a plain `MTMMModel`, sharded or not: without accelerate's and peft's wraps."""
    parts = {
        name: [p for p in part.parameters() if p.requires_grad]
        for name, part in model.named_children()
    }
    return {name: parameters for name, parameters in parts.items() if parameters}


def gradient_norms(parts: dict[str, list[nn.Parameter]]) -> dict[str, Tensor]:
    """Norm of the gradient of each part that trains, not clipped; under fp16 times the loss's scale.

    They stay where the gradients are: hardly any step looks at them, and looking makes a GPU wait.
    """
    norms = {}
    for name, parameters in parts.items():
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            norms[name] = unsharded(get_total_norm(gradients))
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
