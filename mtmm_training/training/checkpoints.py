"""Checkpoints of a run: written whole or not at all, the newest few kept, the best one always.

Also what keeps a run's folder for one process alone, and what a signal does to a run.

A checkpoint holds what a run needs to go on as if it had never stopped: trained weights (frozen
encoders come from where they came from; only FSDP writes them too), optimiser, schedule, scaler,
random generators of every process, and the place in the run. Batches and modality masking need no
state: they follow from (seed, epoch, utterance id).
"""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtmm_training.batches.collate import is_of_worker
from mtmm_training.files import file_digest, replacing, writing

DIGESTS = "digests.json"  # of a checkpoint's other files: damage shows before anything is loaded


@dataclass
class Progress:
    """The place of a run: all that the loop itself remembers.

    Args:
        epoch: Epochs finished.
        step: Optimiser steps made in the epoch that follows.
        total_steps: Optimiser steps made in all.
        losses: Training losses of that epoch, one per forward pass.
        norms: Norms of that epoch's gradients before they were clipped, one per step.
        history: One record per finished epoch, as in results.json.
        best_epoch: Number of the best epoch, from 1; 0 = none yet.
        best_score: Its validation score; None = none yet.
        seconds: Time spent by this run and those that it continues.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
        folder: Of the checkpoints; made when the first one is saved.
        accelerator: Saves and loads the state of every process.
        model: Prepared by `accelerator`.
        keep: How many of the newest to keep.
        identity: What makes this run this run, as JSON values; a checkpoint of another is refused.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        model: nn.Module,
        keep: int,
        identity: dict[str, Any],
    ) -> None:
        self.folder, self.accelerator, self.model, self.keep = folder, accelerator, model, keep
        self.identity = json.loads(json.dumps(identity))
        accelerator.register_save_state_pre_hook(self._drop_frozen)

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return max(self._all(), default=None)

    def _all(self) -> list[Path]:
        """The complete checkpoints, oldest first: by their steps, for clocks may go back."""
        return sorted(self.folder.glob("step-*"))

    def save(self, total_steps: int, epoch: int | None = None) -> Path:
        """Write a checkpoint under a temporary name, rename it, and delete the oldest beyond `keep`.

        Args:
            total_steps: That were made.
            epoch: The one that ended with them, validated too; None = in the midst of one. It is in the
                name, so that no checkpoint takes another's place.

        Raises:
            OSError: The disk is full or cannot be written to; earlier checkpoints are untouched.
        """
        ended = "" if epoch is None else f"-epoch-{epoch}"
        final = self.folder / f"step-{total_steps:09d}{ended}"
        temporary = self.folder / f".{final.name}.tmp"
        main = self.accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            options = {"exclude_frozen_parameters": True} if self._deepspeed else {}
            self.accelerator.save_state(str(temporary), **options)
            self.accelerator.wait_for_everyone()
            if main:
                _write_json(temporary / "identity.json", self.identity)
                _write_json(temporary / DIGESTS, _digests(temporary))
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
        except (OSError, RuntimeError, SafetensorError) as error:  # by torch.save and safetensors
            shutil.rmtree(temporary, ignore_errors=True)
            if is_of_worker(error):
                raise
            raise OSError(
                f"The checkpoint {final} could not be written ({error}). The last complete one is "
                f"{self.newest() or 'none'}; free some disk space and run the same command with --resume."
            ) from error
        if main:
            for old in self._all()[: -self.keep]:
                shutil.rmtree(old)
        return final

    def load(self, checkpoint: Path) -> None:
        """Restore every part of the run from a checkpoint.

        Raises:
            ValueError: It is damaged, or belongs to a run with other flags or data; the message
                names them.
        """
        self._check_files(checkpoint)
        saved = json.loads((checkpoint / "identity.json").read_text(encoding="utf-8"))
        names = sorted(set(saved) | set(self.identity))
        changed = [name for name in names if saved.get(name) != self.identity.get(name)]
        if changed:
            changes = "; ".join(
                f"{name} was {saved.get(name)!r}, now is {self.identity.get(name)!r}"
                for name in changed
            )
            raise ValueError(
                f"{checkpoint} belongs to another run: {changes}. Resume with the same flags and data, or "
                "start anew in another --out."
            )
        # Not strict: frozen weights are not in it.
        options = {"load_module_strict" if self._deepspeed else "strict": False}
        self.accelerator.load_state(str(checkpoint), **options)

    def _check_files(self, checkpoint: Path) -> None:
        """Accelerate itself would go on with other random numbers where a file of them is missing."""
        try:
            written = json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            written = {DIGESTS: "a file that can be read"}
        found = _digests(checkpoint)
        damaged = sorted(name for name in written if found.get(name) != written[name])
        if damaged:
            older = [path for path in self._all() if path < checkpoint]
            raise ValueError(
                f"{checkpoint} is damaged: {', '.join(damaged)} is not as it was written. Delete that folder "
                "and run the same command again, which goes on from "
                f"{older[-1].name if older else 'the beginning'}."
            )

    def save_best(self) -> None:
        """Keep the trained weights of this moment, in place of those kept before."""
        state = trained_state(self.accelerator, self.model)
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / "best.safetensors") as temporary:
                save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module) -> None:
        """Put the best epoch's trained weights into a model like the one that is trained.

        Args:
            model: With the same parameters trained, but not prepared: whole and on one device.

        Raises:
            ValueError: The file of the best weights is damaged or gone.
        """
        path = self.folder / "best.safetensors"
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The best epoch's weights cannot be read from {path} ({error}), and no other file has them. "
                "Train anew in another --out."
            ) from error
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == set(state), f"best.safetensors differs in {sorted(trained ^ set(state))}"
        model.load_state_dict(state, strict=False)

    def delete(self) -> None:
        """Remove all checkpoints of a run that has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _drop_frozen(
        self, models: list[nn.Module], weights: list[dict[str, Any]], output_dir: str
    ) -> None:
        for model, state in zip(models, weights, strict=False):  # sharding launches bring none here
            frozen = {
                name for name, parameter in model.named_parameters() if not parameter.requires_grad
            }
            for name in frozen & set(state):
                del state[name]


def trained_state(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """All trained weights, by their names in the unwrapped model, gathered where they are sharded."""
    trained = {n for n, p in accelerator.unwrap_model(model).named_parameters() if p.requires_grad}
    state = accelerator.get_state_dict(model, unwrap=True)
    return {name: tensor.detach().cpu() for name, tensor in state.items() if name in trained}


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's other files, by name."""
    return {
        str(path.relative_to(checkpoint)): file_digest(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != DIGESTS
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps a run's folder, which is made if need be, for this process while the block runs.

    The lock is the kernel's: it ends with the process, however that ends. Of the processes of one
    launch the first takes it for all.

    Raises:
        ValueError: Another run has the folder.
        OSError: The folder cannot be made or written to.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: workers would inherit it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"{folder} is in use: another run writes there now. Wait for it, or choose another "
                    "--out."
                ) from error
            print(f"{folder} cannot be locked ({error}): start no second run with this --out")
        yield


class StopSignal:
    """Turns SIGTERM and SIGINT, as long as its `with` block runs, into a clean end.

    While `training`, into a request that the loop meets between two steps; else, and at the second
    signal, into a SystemExit at once: all that is written is whole.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.training = False

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        flag = torch.tensor(float(self.name is not None), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.name is not None  # asked twice: whoever asks wants out now
        self.name = signal.Signals(number).name
        if again or not self.training:
            raise SystemExit(
                f"{self.name}: stopped. What is written stays: run the same command again, with --resume "
                "if training had begun."
            )
