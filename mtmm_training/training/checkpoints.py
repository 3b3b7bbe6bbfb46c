"""Checkpoints of a run: written whole or not at all, the newest few kept, the best one always.

A checkpoint holds what a run needs to go on as if it had never stopped: trained weights (frozen
encoders come from where they came from; only FSDP writes them too), optimiser, schedule, scaler,
random generators of every process, and the place in the run. Batches and modality masking need no
state: they follow from (seed, epoch, utterance id).
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtmm_training.batches.collate import is_of_worker
from mtmm_training.data.files import file_digest, replacing
from mtmm_training.data.record import keep_record

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
        threads: How many torch takes, where they were chosen; 0 = not.
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
    threads: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
        folder: Where checkpoints are; made when the first one is saved.
        accelerator: Saves and loads the state of every process.
        model: Prepared by `accelerator`.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, model: nn.Module, keep: int) -> None:
        self.folder, self.accelerator, self.model, self.keep = folder, accelerator, model, keep
        self._deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        accelerator.register_save_state_pre_hook(_drop_frozen)

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return max(self.folder.glob("step-*"), default=None)  # of steps: clocks may go back

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
                (temporary / DIGESTS).write_text(json.dumps(_digests(temporary)))
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
        except (OSError, RuntimeError, SafetensorError) as error:  # by torch.save and safetensors
            shutil.rmtree(temporary, ignore_errors=True)
            if is_of_worker(error):
                raise
            raise OSError(
                f"{final} could not be written ({error}); free some disk space and add --resume."
            ) from error
        if main:
            for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old)
        return final

    def resume(self, record: Path, settings: dict[str, Any], notes: dict[str, Any]) -> Path | None:
        """Restore every part of the run from the newest checkpoint, and return it; None: there is none.

        Args:
            record, settings, notes: As of `keep_record`; the run must have been begun with these.

        Raises:
            ValueError: The settings are others, or it is damaged. Accelerate itself would go on with
                other random numbers where their file is missing.
        """
        checkpoint = self.newest()
        if checkpoint is None:
            return None
        try:
            written = json.loads((checkpoint / DIGESTS).read_text())
        except (OSError, ValueError):
            written = {DIGESTS: "a file that can be read"}
        found = _digests(checkpoint)
        damaged = sorted(name for name in written if found.get(name) != written[name])
        if damaged:
            raise ValueError(
                f"{checkpoint} is damaged ({', '.join(damaged)}); delete it, and the one before is taken."
            )
        keep_record(record, settings, notes)
        # Not strict: frozen weights are not in it.
        options = {"load_module_strict" if self._deepspeed else "strict": False}
        self.accelerator.load_state(str(checkpoint), **options)
        return checkpoint

    def save_best(self) -> None:
        """Keep the trained weights of this moment, in place of those kept before."""
        # Gathered where they are sharded; by their names in the unwrapped model.
        plain = self.accelerator.unwrap_model(self.model)
        trained = {name for name, p in plain.named_parameters() if p.requires_grad}
        state = self.accelerator.get_state_dict(self.model, unwrap=True)
        if self.accelerator.is_main_process:
            kept = {n: t.detach().cpu().contiguous() for n, t in state.items() if n in trained}
            with replacing(self.folder / "best.safetensors") as temporary:
                save_file(kept, temporary)
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
            raise ValueError(f"{path} cannot be read ({error}); train anew.") from error
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == set(state), f"best.safetensors differs in {sorted(trained ^ set(state))}"
        model.load_state_dict(state, strict=False)

    def delete(self) -> None:
        """Remove all checkpoints of a run that has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _drop_frozen(
    models: list[nn.Module], weights: list[dict[str, Tensor]], output_dir: str
) -> None:
    for model, state in zip(models, weights, strict=False):  # sharding launches bring none here
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                state.pop(name, None)


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's other files, by name."""
    files = [p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != DIGESTS]
    return {str(path.relative_to(checkpoint)): file_digest(path) for path in files}
