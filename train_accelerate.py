"""Train MTMM on one fold, read the test split once, and leave a folder that the Hub takes.

    python train_accelerate.py --manifest my/manifest.csv --protocol grouped --k 5 --fold 0 \\
        --audio_encoder facebook/hubert-large-ll60k --text_encoder microsoft/deberta-v3-large
    accelerate launch --num_processes 2 train_accelerate.py ...   (any number of processes, any device)
    python train_accelerate.py --resume out/run                   (goes on with a stopped run)

The whole of training is on this page: batch, forward, backward, step; validation after each epoch,
of which the best one is kept; the test split once, at the end. What happens before is elsewhere:
mtmm_training/training/prepare.py reads and checks the fold, model.py builds the model, loaders.py
the batches.

The run's folder gets model/ (weights, configuration, processor and code: `from_pretrained` and
`pipeline` load it), results.json, predictions.csv, figures/ and TensorBoard's logs; with --lora_rank
also adapter/. launch/ has a configuration of accelerate for every kind of machine.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from configuration_mtmm import MTMMConfig
from mtmm_training.batches.collate import Loader
from mtmm_training.batches.masking import mask_frames, mask_modalities, rmm_probability
from mtmm_training.data.files import write_json
from mtmm_training.data.record import keep_record
from mtmm_training.scoring.metrics import selection_score
from mtmm_training.scoring.predictions import calibrated_scores, predict
from mtmm_training.training import faults, launch, report
from mtmm_training.training.adapters import without_adapters
from mtmm_training.training.checkpoints import Checkpoints, Progress
from mtmm_training.training.config import SETTINGS_FILE, TrainConfig, parse
from mtmm_training.training.ending import run_command
from mtmm_training.training.launch import Stopped, StopSignal
from mtmm_training.training.loaders import make_loaders, uses_cache
from mtmm_training.training.model import best_model, build_model, choose_trained, parameter_counts
from mtmm_training.training.optimiser import (
    build_optimiser,
    clip_gradients,
    groups_of,
    sum_over_processes,
)
from mtmm_training.training.prepare import (
    FoldData,
    check_augmentation,
    class_weights,
    prepare_fold,
)
from processing_mtmm import MTMMProcessor


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


@dataclass
class Job:
    """What training works on; the place in it is `progress`."""

    config: TrainConfig
    out: Path
    stop: StopSignal
    began: float  # seconds on a clock of no date, of this run and those that it continues
    accelerator: Accelerator
    data: FoldData
    processor: MTMMProcessor
    model: nn.Module  # as accelerate has prepared it
    model_config: MTMMConfig
    parameters: dict[str, tuple[int, int]]
    loaders: dict[str, Loader]
    cached: bool  # whether batches are of the cache's states
    steps: list[int]  # of each epoch
    optimiser: Any
    schedule: Any
    class_weights: Tensor | None
    progress: Progress
    checkpoints: Checkpoints


# ---- before the first step ---------------------------------------------------------------------


def prepare(config: TrainConfig, out: Path, stop: StopSignal) -> Job | None:
    """Everything up to the first step: data, model, batches, optimiser, and where to go on.

    With `encode_only` nothing follows the batches: None.
    """
    began = time.monotonic()
    accelerator = launch.make_accelerator(config)
    launch.leave_cores_to(config.workers, accelerator)
    set_seed(config.seed)

    # Data and model: read, checked, split; only what is trained keeps its labels.
    data = prepare_fold(config)
    if not config.encode_only:
        launch.check_launch(config, accelerator, data.counts)
    plain, processor = build_model(config)
    plain.config.trained_outputs = data.outputs
    check_augmentation(config, processor)
    model = choose_trained(config, plain)
    parameters = parameter_counts(model)
    if config.gradient_checkpointing:
        plain.activation_checkpointing_enable()
    loaders = make_loaders(config, data, plain, processor, accelerator)
    if config.encode_only:
        return None
    cached = uses_cache(config, plain)
    if cached:  # no worker reads ahead
        launch.leave_cores_to(0, accelerator)
    if config.compile:  # only now: training from the cache never enters the encoders
        plain.compile(dynamic=True)  # in place: names of parameters stay as they are

    train = loaders["train"].batch_sampler
    steps = [math.ceil(n / config.accumulation) for n in train.lengths_of(config.epochs)]
    optimiser, schedule = build_optimiser(config, model, sum(steps))
    model, optimiser = accelerator.prepare(model, optimiser)
    weights = class_weights(config, data.counts["train"])
    set_seed(config.seed, device_specific=True)  # other dropout on every process

    # Where a stopped run goes on.
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    checkpoints = Checkpoints(out / "checkpoints", accelerator, model, config.keep_checkpoints)
    newest = checkpoints.newest() if config.resume else None
    settings = report.identity(config, data, accelerator, cached)
    flags = {"flags": dataclasses.asdict(config)}
    if newest is not None:
        keep_record(out / SETTINGS_FILE, settings, flags)
        checkpoints.load(newest)
    elif accelerator.is_main_process:  # a run that left no checkpoint is begun anew
        write_json(settings | flags, out / SETTINGS_FILE)
    if accelerator.is_main_process:
        report.print_summary(
            config, data, parameters, accelerator, sum(steps), train.padding_share()
        )
        if config.resume:
            print(f"resumed from {newest}" if newest else "nothing to resume", flush=True)
    return Job(
        config, out, stop, began - progress.seconds, accelerator, data, processor, model,
        plain.config, parameters, loaders, cached, steps, optimiser, schedule, weights, progress,
        checkpoints,
    )  # fmt: skip


# ---- training ----------------------------------------------------------------------------------


def train(job: Job) -> None:
    """Go through the epochs; after each one validate, and keep it if it is the best so far."""
    config, progress, accelerator = job.config, job.progress, job.accelerator
    batches = job.loaders["train"].batch_sampler
    if progress.total_steps == 0:  # a broken set-up fails in seconds
        loader, ids = job.loaders["validation"], job.data.ids("validation")
        predict(job.model, islice(loader, 2), ids, accelerator, max_batches=2)
    accelerator.init_trackers("mtmm", config={n: str(v) for n, v in vars(config).items()})
    job.stop.training = True
    for epoch in range(progress.epoch, config.epochs):
        if config.patience is not None and epoch - progress.best_epoch >= config.patience:
            break
        batches.set_epoch(epoch, first_batch=progress.step * config.accumulation)
        probability = rmm_probability(epoch, config.epochs, config.rmm_start)
        job.model.train()
        bar = tqdm(
            groups_of(config.accumulation, job.loaders["train"]),
            initial=progress.step,
            total=job.steps[epoch],
            desc=f"epoch {epoch + 1}/{config.epochs}",
            disable=None if accelerator.is_main_process else True,  # None: where nobody watches
            leave=False,
        )
        for group in bar:
            step(job, group, probability)
            bar.set_postfix(loss=f"{progress.losses[-1]:.3f}")
            stopped = job.stop.requested(accelerator)
            due = config.checkpoint_steps and progress.total_steps % config.checkpoint_steps == 0
            if stopped or due:
                progress.seconds = time.monotonic() - job.began
                checkpoint = job.checkpoints.save(progress.total_steps)
            if stopped:
                raise Stopped(
                    f"{job.stop.name or 'another process'}: stopped after step {progress.total_steps}, "
                    f"{checkpoint} is written. Run the same command with --resume to go on."
                )
        validate(job, probability)
    if job.stop.requested(accelerator):
        raise Stopped(
            f"{job.stop.name or 'another process'}: stopped after the last epoch. Run the same command "
            "with --resume to test."
        )
    job.stop.training = False


def step(job: Job, group: list[dict[str, Any]], probability: float) -> None:
    """One step of the optimiser: forward and backward of each batch of the group, then the update."""
    config, progress, accelerator, model = job.config, job.progress, job.accelerator, job.model
    place = f"in epoch {progress.epoch + 1}, step {progress.step + 1}"
    number = f"{progress.total_steps + 1:09d}-process-{accelerator.process_index}"
    kept = job.out / f"diverged-step-{number}.pt"
    for index, batch in enumerate(group, start=1):
        # What is masked follows from seed, epoch and utterance: a resumed run masks the same.
        mask_modalities(batch, probability, seed=config.seed, epoch=progress.epoch)
        mask_frames(batch, config.mask_frames, seed=config.seed, epoch=progress.epoch)
        inputs = {name: value for name, value in batch.items() if name != "utterance_ids"}
        # Gradients travel between processes once per step, with the last of its passes.
        alone = accelerator.no_sync(model) if index < len(group) else nullcontext()
        with alone, faults.naming_shapes(inputs):
            output = model(
                **send_to_device(inputs, accelerator.device),
                class_weights=job.class_weights,
                reduce_sum=sum_over_processes,
            )
            accelerator.backward(output.loss / len(group))
        loss = float(output.loss.detach())
        progress.losses.append(loss)
        if not math.isfinite(loss):
            what = f"The loss is {loss} {place}"
            raise RuntimeError(faults.diverged(what, group[:index], output, kept))
    parts = faults.gradient_norms(without_adapters(accelerator.unwrap_model(model)))
    norm = clip_gradients(accelerator, model, config.clip_norm)
    if norm is None:
        what = f"The gradient is not finite in {faults.not_finite(parts)} {place}"
        raise RuntimeError(faults.diverged(what, group, output, kept))
    warning = faults.explosion(norm, progress.norms, parts)
    if warning and accelerator.is_main_process:
        tqdm.write(f"{place.removeprefix('in ')}: {warning}")
    if math.isfinite(norm):
        progress.norms.append(norm)
    job.optimiser.step()
    job.optimiser.zero_grad()
    if not accelerator.optimizer_step_was_skipped:
        job.schedule.step()
    progress.step += 1
    progress.total_steps += 1


def validate(job: Job, probability: float) -> None:
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
        job.checkpoints.save_best()
    record = {
        "epoch": number,
        "rmm_probability": probability,
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
    progress.epoch, progress.step, progress.losses, progress.norms = number, 0, [], []
    progress.seconds = time.monotonic() - job.began
    job.checkpoints.save(progress.total_steps, number)


# ---- the best epoch, calibrated on validation; then the test split, once -------------------------


def finish(job: Job) -> None:
    """Test the best epoch, and write all that the run leaves."""
    config, data, progress, accelerator = job.config, job.data, job.progress, job.accelerator
    adapter = job.out / "adapter" if accelerator.is_main_process else None
    model = best_model(config, data.outputs, job.checkpoints, adapter).to(accelerator.device)
    validation = predict(model, job.loaders["validation"], data.ids("validation"), accelerator)
    test = predict(model, job.loaders["test"], data.ids("test"), accelerator)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    corpora = [u.corpus for u in data.splits["test"]]
    scores = calibrated_scores(validation, test, corpora, model.config)  # sets the temperature
    results = {
        "fold": data.name,
        "config": dataclasses.asdict(config),
        "model_config": model.config.to_dict(),
        "splits": data.counts,
        "skipped": data.bad,
        "parameters": job.parameters,
        "epochs": progress.history,
        "best_epoch": progress.best_epoch,
        "select_by": config.select_by,
        **scores,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "cached_states": config.cache_dtype if job.cached else None,
        "versions": report.versions(),
        "wall_time_s": time.monotonic() - job.began,
    }
    predictions = {"validation": validation, "test": test}
    report.write_run(job.out, model, job.processor, results, predictions, data)
    job.checkpoints.delete()
    report.print_test(results, job.out)


def main(words: Sequence[str] | None = None) -> int:
    def work() -> None:
        train_fold(parse(words))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
