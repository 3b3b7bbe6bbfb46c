"""The optimiser, its schedule, and what happens to gradients before a step."""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mtmm_training.training.config import TrainConfig

# Where every process has all of every gradient; others clip in ways of their own.
WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def build_optimiser(
    config: TrainConfig, model: nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over what is trained, and its schedule: linear warm-up, then a cosine to zero."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = config.learning_rate
            # Adapters are new, as heads are; their names begin with peft's prefix.
            if name.startswith(("audio_model.", "text_model.")):
                rate = config.encoder_learning_rate
            elif "layer_weights" in name:
                rate = config.layer_learning_rate
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    optimiser = torch.optim.AdamW(
        (
            {"params": params, "lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ),
        # One kernel in the place of a dozen for each weight. Under fp16 accelerate would take a step
        # that this one leaves out for one that was made.
        fused=config.mixed_precision != "fp16",
    )
    warmup = round(config.warmup_share * steps)

    # Not transformers' schedule of this form: there the first step has rate 0.
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def sum_over_processes(sums: Tensor) -> Tensor:
    """Add the loss's sums over all processes; its gradient flows back to each of them.

    DistributedDataParallel averages gradients, the backward of this sum adds them: together N
    processes with batch B train as one with N·B.
    """
    return dist_functional.all_reduce(sums) if dist.is_initialized() else sums


def unsharded(norm: Tensor) -> Tensor:
    """A norm of FSDP's shards as one tensor on every process."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(
    accelerator: Accelerator,
    model: nn.Module,
    trained: dict[str, list[nn.Parameter]],
    norms: dict[str, Tensor],
    clip_norm: float,
) -> Tensor | None:
    """The gradient's norm before it was clipped, on the device; None where DeepSpeed does not tell.

    Args:
        accelerator: Unscales the gradients under fp16.
        model: As `accelerator` has prepared it.
        trained: By part of it, what trains.
        norms: By part, the norm of its gradient; under fp16 times the loss's scale.
        clip_norm: What the norm is brought down to.
    """
    whole = accelerator.distributed_type in WHOLE_GRADIENTS
    if not whole or accelerator.scaler is not None:
        clipped = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
        return None if clipped is None else unsharded(clipped)
    norm = get_total_norm(list(norms.values()))
    clip_grads_with_norm_([p for part in trained.values() for p in part], clip_norm, norm)
    return norm
