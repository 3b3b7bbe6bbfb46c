"""The optimiser, its schedule, and what happens to gradients before a step."""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from accelerate import Accelerator
from torch import Tensor, nn

from mtmm_training.training.config import TrainConfig

SMALLEST_SCALE = 1e-4  # of fp16's loss: below it, it is no overflow that makes gradients infinite


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
        {"params": params, "lr": rate, "weight_decay": decay}
        for (rate, decay), params in groups.items()
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


def clip_gradients(accelerator: Accelerator, model: nn.Module, clip_norm: float) -> float | None:
    """The gradient's norm before it was clipped; None where no step can be made with it.

    Infinite is normal under fp16: its scaler leaves the step out and lowers its scale. NaN stands
    for a norm that is not known (DeepSpeed clips by itself).
    """
    norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    if norm is None:
        return math.nan
    if accelerator.scaler is not None:
        return float(norm) if accelerator.scaler.get_scale() >= SMALLEST_SCALE else None
    return float(norm) if math.isfinite(norm) else None
