"""Train MTMM on one fold, read the test split once, and leave a folder that the Hub takes.

    python train_accelerate.py --manifest my/manifest.csv --protocol grouped --k 5 --fold 0 \\
        --audio_encoder facebook/hubert-large-ll60k --text_encoder microsoft/deberta-v3-large
    accelerate launch --num_processes 2 train_accelerate.py ...   (any number of processes, any device)
    python train_accelerate.py --resume out/run                   (goes on with a stopped run)

The whole of training is on this page: batch, forward, backward, step; validation after each epoch,
of which the best one is kept; the test split once, at the end. What happens before is elsewhere:
mtmm_training/training/job.py puts it together, prepare.py reads and checks the fold, model.py builds
the model.

The run's folder gets model/ (weights, configuration, processor and code: `from_pretrained` and
`pipeline` load it), results.json, predictions.csv, figures/ and TensorBoard's logs; with --lora_rank
also adapter/. launch/ has a configuration of accelerate for every kind of machine.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from tqdm.auto import tqdm

from mtmm_training.batches.collate import groups_of
from mtmm_training.batches.masking import mask_frames, mask_modalities, rmm_probability
from mtmm_training.batches.opinions import drop_votes
from mtmm_training.data import hub
from mtmm_training.scoring.metrics import selection_score
from mtmm_training.scoring.predictions import calibrated_scores, predict
from mtmm_training.scoring.texts import say
from mtmm_training.training import faults, launch, report
from mtmm_training.training.choice import settled
from mtmm_training.training.completion import complete
from mtmm_training.training.config import TrainConfig, parse_options
from mtmm_training.training.ending import run_command
from mtmm_training.training.graphs import PassGraphs
from mtmm_training.training.job import Job, prepare, records
from mtmm_training.training.launch import Stopped, StopSignal
from mtmm_training.training.model import best_model
from mtmm_training.training.optimiser import clip_gradients, sum_over_processes
from mtmm_training.training.run import flags_record


def train_fold(config: TrainConfig) -> Path:
    """Train on one fold and test once, or with `encode_only` fill the cache of encoder states.

    Returns:
        The run's folder.

    Raises:
        ValueError: A setting, the data or the fold is not as it should be.
        OSError, RuntimeError: A file, the memory or the training itself failed.
        Stopped: A signal came.
    """
    config.check()
    config = config.resolve()
    out = Path(config.out)
    # Any number of runs may fill one cache at once.
    folder = nullcontext() if config.encode_only else launch.alone_in(out, config.resume)
    with StopSignal() as stop, faults.explained(), folder:
        if job := prepare(config, out, stop):
            train(job)
            finish(job)
    return out


# ---- training ----------------------------------------------------------------------------------


def train(job: Job) -> None:
    """Go through the epochs; after each one validate, and keep it if it is the best so far."""
    config, progress, accelerator = job.config, job.progress, job.accelerator
    batches = job.loaders["train"].batch_sampler
    if progress.total_steps == 0:  # a broken set-up fails in seconds
        loader, ids = job.loaders["validation"], job.data.ids("validation")
        predict(job.model, islice(loader, 2), ids, accelerator, whole=False)
    accelerator.init_trackers("mtmm", config={n: str(v) for n, v in vars(config).items()})
    if records(config, job.cached, accelerator):
        job.graphs = PassGraphs(
            partial(forward_and_backward, job), accelerator.unwrap_model(job.model)
        )
    job.stop.training = True
    for epoch in range(progress.epoch, config.epochs):
        if config.patience is not None and epoch - progress.best_epoch >= config.patience:
            break
        batches.set_epoch(epoch, first_batch=progress.step * config.accumulation)
        job.model.train()
        bar = tqdm(
            groups_of(config.accumulation, job.loaders["train"]), initial=progress.step,
            total=job.steps[epoch], desc=f"epoch {epoch + 1}/{config.epochs}", leave=False,
            disable=None if accelerator.is_main_process else True,  # None: where nobody watches
        )  # fmt: skip
        for group in bar:
            made = step(job, group)
            read(job)
            if progress.losses:
                bar.set_postfix(loss=f"{progress.losses[-1]:.3f}")
            job.unread = made
            stopped = job.stop.requested(accelerator)
            due = config.checkpoint_steps and progress.total_steps % config.checkpoint_steps == 0
            if stopped or due:
                read(job)
                progress.seconds = time.monotonic() - job.began
                checkpoint = job.checkpoints.save(progress.total_steps)
            if stopped:
                raise Stopped(
                    f"{job.stop.name or 'another process'}: stopped after step {progress.total_steps}, "
                    f"{checkpoint} is written. Run the same command with --resume to go on."
                )
        read(job)
        validate(job)
    if job.stop.requested(accelerator, now=True):
        raise Stopped(
            f"{job.stop.name or 'another process'}: stopped after the last epoch. Run the same command "
            "with --resume to test."
        )
    job.stop.training = False


def step(job: Job, group: list[dict[str, Any]]) -> faults.Unread:
    """One step of the optimiser: forward and backward of each batch of the group, then the update.

    Returns:
        Losses and norms that are still on the device. Nothing is written before they are read.
    """
    config, progress, accelerator, model = job.config, job.progress, job.accelerator, job.model
    number = f"{progress.total_steps + 1:09d}-process-{accelerator.process_index}"
    kept = job.out / f"diverged-step-{number}.pt"
    place = f"in epoch {progress.epoch + 1}, step {progress.step + 1}"
    made = faults.Unread(place, kept, group)
    probability = rmm_probability(progress.epoch, config.epochs, config.rmm_start)
    for index, batch in enumerate(group, start=1):
        # What is masked follows from seed, epoch and utterance: a resumed run masks the same.
        mask_modalities(batch, probability, seed=config.seed, epoch=progress.epoch)
        mask_frames(batch, config.mask_frames, seed=config.seed, epoch=progress.epoch)
        drop_votes(batch, config.vote_dropout, seed=config.seed, epoch=progress.epoch)
        inputs = {name: value for name, value in batch.items() if name != "utterance_ids"}
        # Gradients travel between processes once per step, with the last of its passes.
        alone = accelerator.no_sync(model) if index < len(group) else nullcontext()
        with alone:
            passes = job.graphs or partial(forward_and_backward, job, parts=len(group))
            made.losses.append(
                passes(send_to_device(inputs, accelerator.device, non_blocking=True))
            )
    made.parts = faults.gradient_norms(job.trained)
    made.norm = clip_gradients(accelerator, model, job.trained, made.parts, config.clip_norm)
    job.optimiser.step()
    job.optimiser.zero_grad(set_to_none=job.graphs is None)
    if not accelerator.optimizer_step_was_skipped:
        job.schedule.step()
    progress.step += 1
    progress.total_steps += 1
    return made


def forward_and_backward(job: Job, inputs: dict[str, Any], parts: int = 1) -> Tensor:
    """Losses (3,) of a batch: the whole, emotions' and dimensions'; gradients of the whole ÷ `parts`."""
    together = sum_over_processes if job.accelerator.num_processes > 1 else None
    output = job.model(**inputs, class_weights=job.class_weights, reduce_sum=together)
    job.accelerator.backward(output.loss / parts)
    return torch.stack([output.loss, output.emotion_loss, output.dimension_loss]).detach()


def read(job: Job) -> None:
    """Note what the last step found, if it was not yet: done behind the next, or before a file is written."""
    if job.unread is not None:
        job.unread.read(job.progress, job.accelerator)
        job.unread = None


def validate(job: Job) -> None:
    """Score the epoch that has ended on the validation split, keep the best, write a checkpoint."""
    config, progress, accelerator = job.config, job.progress, job.accelerator
    number = progress.epoch + 1
    loader, ids = job.loaders["validation"], job.data.ids("validation")
    metrics = predict(job.model, loader, ids, accelerator).metrics(job.model_config)
    score = selection_score(metrics, config.select_by)
    best = progress.best_score
    better = best is None or score is None or config.select_by == "last" or score > best
    if better:
        progress.best_score, progress.best_epoch = score, number
    record = {
        "epoch": number,
        "rmm_probability": rmm_probability(progress.epoch, config.epochs, config.rmm_start),
        "padding_share": job.loaders["train"].batch_sampler.padding_share(),
        "train": {
            "loss": sum(progress.losses) / len(progress.losses),
            "gradient_norm": float(np.median(progress.norms)) if progress.norms else None,
        },
        "validation": metrics,
        "score": score,
    }
    progress.history.append(record)
    if accelerator.is_main_process:
        print(report.epoch_line(config, record, better), flush=True)
    accelerator.log(report.tracked(record), step=number)
    if better:
        job.checkpoints.save_best()
    progress.epoch, progress.step, progress.losses, progress.norms = number, 0, [], []
    progress.seconds = time.monotonic() - job.began
    job.checkpoints.save(progress.total_steps, number)


# ---- the best epoch, calibrated on validation; then the test split, once -------------------------


def finish(job: Job) -> None:
    """Test the best epoch, and write all that the run leaves."""
    config, data, progress, accelerator = job.config, job.data, job.progress, job.accelerator
    adapter = job.out / "adapter" if accelerator.is_main_process else None
    rated = job.model_config.rated_dimensions
    model = best_model(config, data.outputs, rated, job.checkpoints, adapter)
    model = model.to(accelerator.device)
    predictions, told = complete(job, model)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    model.config.training_data = report.training_data(
        data.splits["train"], model.config.training_data if config.model else None
    )
    scores = calibrated_scores(predictions, data.splits["test"], model.config, config.group_by)
    results = {
        "fold": data.name,
        "config": flags_record(config),
        "model_config": model.config.to_dict(),
        "splits": data.counts,
        "skipped": data.bad,
        "datasets": hub.described(config.manifest or ()),
        "parameters": job.parameters,
        "epochs": progress.history,
        "best_epoch": progress.best_epoch,
        "select_by": config.select_by,
        **scores,
        **told,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cached_states": config.cache_dtype if job.cached else None,
        "versions": report.versions(),
        "wall_time_s": time.monotonic() - job.began,
    }
    report.write_run(job.out, model, job.processor, results, predictions, data)
    job.checkpoints.delete()
    say("tested.txt", results=results, out=job.out, metric_parts=report.metric_parts)


def main(words: Sequence[str] | None = None) -> int:
    def work() -> None:
        train_fold(settled(parse_options(words)))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
