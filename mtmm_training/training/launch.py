"""The accelerator of a process, its cores, and launches that cannot work."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
)

from modeling_mtmm import MTMMProcessor
from mtmm_training.training.config import TrainConfig


def usable_cores() -> int:
    """How many cores this process may use; 1 where the machine does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_cores_to(workers: int, accelerator: Accelerator) -> None:
    """On a CPU, threads that outnumber the cores wait for each other and lose more than they gain."""
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(usable_cores() // accelerator.num_processes - workers, 1))


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of this process; as many work together as were launched, on a CPU too."""
    check_device(config)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        # Not told so, accelerate takes processes without a GPU for as many runs side by side.
        cpu=launched > 1 and not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_config=ProjectConfiguration(
            project_dir=config.out, logging_dir=str(Path(config.out) / "logs")
        ),
    )
    if config.tracker != "none" and not accelerator.log_with:
        raise ValueError(
            f"`--tracker` is {config.tracker!r}, which is not installed; install it, or give none."
        )
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched, but {accelerator.num_processes} would train: "
            f"{accelerator.device} cannot be shared by several. Launch one process."
        )
    return accelerator


def check_device(config: TrainConfig) -> None:
    """Refuse to train on the CPU where a GPU was asked for."""
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if asked.startswith(("GPU-", "MIG-", *"0123456789")) and not cpu:
        if not torch.cuda.is_available():
            reason = (
                "finds none" if torch.version.cuda or torch.version.hip else "is built without CUDA"
            )
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES={asked} asks for a GPU, but torch {torch.__version__} {reason}. See "
                "what nvidia-smi says; or unset it, to train on the CPU."
            )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", config.mixed_precision):
        raise ValueError(
            f"The launcher says mixed precision {launched}, `--mixed_precision` of this script is "
            f"{config.mixed_precision!r}, and counts; give it behind the script's name."
        )
    if config.mixed_precision == "fp16" and (cpu or not torch.accelerator.is_available()):
        raise ValueError(
            "`--mixed_precision` is 'fp16', which needs a GPU, and there is none; it must be no or bf16."
        )


def refuse_to_overwrite(config: TrainConfig, out: Path) -> None:
    """Raise ValueError where a finished or unfinished run would be lost."""
    if (out / "results.json").exists():
        raise ValueError(
            f"{out} holds a finished run (results.json); choose another --out, or delete it."
        )
    if not config.resume and any((out / "checkpoints").glob("step-*")):
        raise ValueError(
            f"{out} holds an unfinished run; add --resume to go on with it, or choose another --out."
        )


def check_launch(config: TrainConfig, accelerator: Accelerator, counts: dict[str, Any]) -> None:
    """Refuse what a sharding launch would hang on or compute wrongly."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED and config.accumulation > 1:
        raise ValueError(
            f"`--accumulation` is {config.accumulation}; under DeepSpeed, which would make a step of "
            "every pass, it must be 1. Raise --batch_size with --gradient_checkpointing, or use FSDP."
        )
    for name, split in counts.items():
        if split["utterances"] < accelerator.num_processes:
            raise ValueError(
                f"The {name} split has {split['utterances']} utterances, which cannot be dealt out to "
                f"{accelerator.num_processes} processes. Start fewer."
            )
    if config.batch_size * accelerator.num_processes < 2 and any(
        counts["train"]["dimensions"].values()
    ):
        raise ValueError(
            f"`--batch_size` is {config.batch_size}; it must be 2 or more where dimensions are trained: of "
            "one utterance 1 − CCC teaches nothing."
        )
    sharded = kind == DistributedType.FSDP or (
        kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3
    )
    partial = [
        f"{split['utterances'] - split[with_modality]} of the {name} split lack {modality}"
        for name, split in counts.items()
        for modality, with_modality in (("audio", "with_audio"), ("text", "with_text"))
        if 0 < split[with_modality] < split["utterances"]
    ]
    if sharded and partial:
        raise ValueError(
            "Where the model is sharded, every process must enter both encoders in every batch, but "
            f"{', '.join(partial)}. Launch with DDP, or leave those utterances out."
        )


def check_augmentation(config: TrainConfig, processor: MTMMProcessor) -> None:
    """Refuse a change that the feature extractor undoes."""
    if "gain" in config.augment and getattr(processor.feature_extractor, "do_normalize", False):
        raise ValueError(
            f"`--augment` is {config.augment}, but this model's feature extractor brings every waveform "
            "to one loudness, so gain would change nothing. Leave gain out."
        )
