"""How a run is launched: its accelerator, cores, folder and signals, and what cannot be launched."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration

from mtmm_training.data.files import writing
from mtmm_training.training.config import TrainConfig

# Kept to the end of the process. Freed with the model, which is where torch frees it, a group of gloo
# waits for its thread, and now and then that thread waits for Python's lock at that moment.
_groups: list[Any] = []


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
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it clips, and asks for a size
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            gradient_clipping=config.clip_norm, train_micro_batch_size_per_gpu=config.batch_size
        )
    if dist.is_initialized():
        _groups.append(dist.group.WORLD)
    # The loop itself divides the loss; accelerate, told by its launcher, would do so again.
    accelerator.gradient_accumulation_steps = 1
    if config.tracker != "none" and not accelerator.log_with:
        raise ValueError(f"`--tracker` is {config.tracker!r}, which is not installed.")
    if accelerator.num_processes != launched:
        raise RuntimeError(f"{launched} processes cannot share {accelerator.device}.")
    return accelerator


# ---- what cannot be launched -------------------------------------------------------------------


def check_launch(config: TrainConfig, accelerator: Accelerator, counts: dict[str, Any]) -> None:
    """Refuse what a launch would hang on or compute wrongly.

    Args:
        config: The settings.
        accelerator: The accelerator of this launch.
        counts: What `describe_split` says of each split.
    """
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    sharded = accelerator.distributed_type == DistributedType.FSDP or (
        deepspeed and accelerator.state.deepspeed_plugin.zero_stage == 3
    )
    partial = [
        f"{split['utterances'] - split[f'with_{modality}']} of the {name} split lack {modality}"
        for name, split in counts.items()
        for modality in ("audio", "text")
        if 0 < split[f"with_{modality}"] < split["utterances"]
    ]
    problem = None
    if deepspeed and config.accumulation > 1:
        problem = f"`--accumulation` is {config.accumulation}; under DeepSpeed it must be 1."
    elif config.batch_size * accelerator.num_processes < 2 and any(
        counts["train"]["dimensions"].values()
    ):
        problem = "`--batch_size` is 1; CCC, where dimensions are trained, needs 2 or more."
    elif sharded and partial:
        problem = (
            "Where the model is sharded, every utterance needs both modalities, but "
            f"{', '.join(partial)}. Launch with DDP, or leave those utterances out."
        )
    if problem:
        raise ValueError(problem)


# ---- the run's folder, and signals -------------------------------------------------------------


@contextmanager
def alone_in(folder: Path, resume: bool = False) -> Iterator[None]:
    """Keeps a run's folder, which is made if need be, for this process while the block runs.

    A finished run in it is never lost, an unfinished one neither: `resume` goes on with it.

    The lock is the kernel's: it ends with the process, however that ends. Of the processes of one
    launch the first takes it for all.

    Raises:
        ValueError: Another run has the folder, or it holds one.
        OSError: The folder cannot be made or written to.
    """
    if os.environ.get("RANK", "0") != "0":
        _refuse_to_overwrite(folder, resume)
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    with file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: workers would inherit it
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"{folder} is in use; wait, or choose another --out.") from error
        except (OSError, ImportError) as error:  # Windows has no fcntl
            print(f"{folder} cannot be locked ({error}): start no second run with this --out")
        _refuse_to_overwrite(folder, resume)
        yield


def _refuse_to_overwrite(out: Path, resume: bool) -> None:
    if (out / "results.json").exists():
        raise ValueError(f"{out} holds a finished run; choose another --out, or delete it.")
    if not resume and any((out / "checkpoints").glob("step-*")):
        raise ValueError(f"{out} holds an unfinished run; add --resume, or choose another --out.")


class Stopped(KeyboardInterrupt):
    """A signal has stopped the run; all that is written is whole, and the text says how to go on."""


class StopSignal:
    """Turns SIGTERM and SIGINT, as long as its `with` block runs, into a clean end.

    While `training`, into a request that the loop meets between two steps; else, and at the second
    signal, into `Stopped` at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.training = False
        self._sent: torch.Tensor | None = None

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator, now: bool = False) -> bool:
        """Whether any process was asked to stop; all processes get the same answer.

        Of several processes it is the answer of the call before, unless it is wanted `now`: to wait
        for the others in every step would make all devices wait.
        """
        if accelerator.num_processes == 1:
            return self.name is not None
        flag = torch.full((), float(self.name is not None), device=accelerator.device)
        before, self._sent = self._sent, accelerator.reduce(flag, "sum")
        read = self._sent if now else before
        return read is not None and bool(read > 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.name is not None  # asked twice: whoever asks wants out now
        self.name = signal.Signals(number).name
        if again or not self.training:
            raise Stopped(f"{self.name}: stopped. Run it again, with --resume if training began.")
