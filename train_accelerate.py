"""Train MTMM on one fold, read the test split once, and leave a folder that the Hub takes.

    python train_accelerate.py --manifest my/manifest.csv --protocol grouped --k 5 --fold 0 \\
        --audio_encoder facebook/hubert-large-ll60k --text_encoder microsoft/deberta-v3-large
    accelerate launch --num_processes 2 train_accelerate.py ...   (any number of processes, any device)

The run's folder gets model/ (weights, configuration, processor and code: `from_pretrained` and
`pipeline` load it), results.json, predictions.csv, figures/ and TensorBoard's logs; with --lora_rank
also adapter/. launch/ has a configuration of accelerate for every kind of machine.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import (
    DistributedType,
    send_to_device,
    set_seed,
)
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers.hf_argparser import DataClassType, HfArgumentParser

from mtmm_training.batches.collate import Loader, RawInputs, make_loader, to_dataset
from mtmm_training.batches.masking import mask_frames, mask_modalities, rmm_probability
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.folds import (
    select,
)
from mtmm_training.data.utterances import (
    SPLITS,
)
from mtmm_training.scoring.metrics import selection_score
from mtmm_training.scoring.predictions import predict
from mtmm_training.training import adapters, divergence
from mtmm_training.training.checkpoints import Checkpoints, Progress, StopSignal, alone_in
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.faults import diverged, explain, naming_shapes
from mtmm_training.training.launch import (
    check_augmentation,
    check_launch,
    leave_cores_to,
    make_accelerator,
    refuse_to_overwrite,
)
from mtmm_training.training.model import (
    best_model,
    build_model,
    choose_trained,
    parameter_counts,
    planned,
)
from mtmm_training.training.optimiser import (
    build_optimiser,
    clip_gradients,
    groups_of,
    sum_over_processes,
)
from mtmm_training.training.prepare import (
    check_fold,
    choose_fold,
    class_weights,
    describe_split,
    hide_labels,
    read_usable,
    refuse_bad,
    trained_outputs,
    with_variants,
)
from mtmm_training.training.report import (
    calibrate,
    epoch_line,
    flat,
    identity,
    metrics_by_corpus,
    print_summary,
    print_test,
    trackable,
    versions,
    write_run,
)
from mtmm_training.training.states import cached_states, encode_all, uses_cache

# ---- data --------------------------------------------------------------------------------------


# ---- model and optimiser -----------------------------------------------------------------------


# ---- the run -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(DataClassType(TrainConfig), description=__doc__.split("\n")[0])
    (config,) = parser.parse_args_into_dataclasses(arguments)
    config.check()
    config = config.resolve()
    out = Path(config.out)
    # What only encodes may share its folder and its cache with any number of others.
    with StopSignal() as stop, nullcontext() if config.encode_only else alone_in(out):
        if not config.encode_only:
            refuse_to_overwrite(config, out)
        run(config, out, stop)


def run(config: TrainConfig, out: Path, stop: StopSignal) -> None:
    """Train, and test once; or only encode."""
    began = time.monotonic()
    accelerator = make_accelerator(config)
    leave_cores_to(config.workers, accelerator)
    set_seed(config.seed)

    # ---- data and model: read, checked, split; only what is trained keeps its labels ----
    utterances, bad = read_usable(config)
    if config.encode_only:
        encode_all(config, utterances, accelerator)
        return
    fold = choose_fold(config, utterances)
    splits = select(utterances, fold)
    check_fold(config, planned(config), splits)
    plain, processor = build_model(config)
    model = choose_trained(config, plain)
    outputs = plain.config.trained_outputs = trained_outputs(plain.config, splits["train"])
    splits = {name: hide_labels(splits[name], config, outputs) for name in SPLITS}
    counts = {name: describe_split(splits[name], config) for name in SPLITS}
    ids = {name: [u.utterance_id for u in splits[name]] for name in SPLITS}
    check_launch(config, accelerator, counts)
    check_augmentation(config, processor)
    if config.on_error == "stop" and not uses_cache(config, plain):  # else encoding reads them all
        refuse_bad([u for name in SPLITS for u in splits[name]], config, processor)
    parameters = parameter_counts(model)
    if config.gradient_checkpointing:
        plain.activation_checkpointing_enable()

    # ---- states from the cache, or raw inputs; batches ----
    raw = RawInputs(processor, config.emotions, config.dimensions)
    shown = splits | {"train": with_variants(config, splits["train"])}
    everything = [utterance for name in SPLITS for utterance in shown[name]]
    cached = cached_states(config, plain, processor, everything, accelerator)
    if cached is not None:
        leave_cores_to(0, accelerator)
    if config.compile:  # only now: training from the cache never enters the encoders
        plain.compile(dynamic=True)  # in place: names of parameters stay as they are

    @functools.cache  # lengths come from the files' headers, which are read once
    def batches_of(split: str) -> LengthBatches:
        return LengthBatches(
            frame_lengths(shown[split]).reshape(-1, len(splits[split])),
            config.batch_size,
            frame_budget=config.frame_budget,
            seed=config.seed,
            shuffle=split == "train",
            corpora=[u.corpus for u in splits[split]],
            exponent=config.corpus_exponent,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )

    def loader_of(split: str, collate: Any) -> Loader:
        # Reading cached states is a copy: a core kept for a worker would lie idle.
        workers = config.workers if collate is raw else 0
        return make_loader(to_dataset(shown[split]), batches_of(split), collate, workers=workers)

    train, validation = loader_of("train", cached or raw), loader_of("validation", cached or raw)
    steps = [
        math.ceil(n / config.accumulation) for n in train.batch_sampler.lengths_of(config.epochs)
    ]
    optimiser, schedule = build_optimiser(config, model, sum(steps))
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it clips, and asks for a size
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            gradient_clipping=config.clip_norm, train_micro_batch_size_per_gpu=config.batch_size
        )
    model, optimiser = accelerator.prepare(model, optimiser)
    weights = class_weights(config, counts["train"])
    set_seed(config.seed, device_specific=True)  # other dropout on every process

    # ---- where a stopped run goes on ----
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    checkpoints = Checkpoints(
        out / "checkpoints",
        accelerator,
        model,
        config.keep_checkpoints,
        identity(config, splits, bad)
        | {"processes": accelerator.num_processes, "cached states": cached is not None},
    )
    newest = checkpoints.newest() if config.resume else None
    if newest is not None:
        checkpoints.load(newest)
    seconds_before = progress.seconds

    if accelerator.is_main_process:
        print_summary(config, fold.name, counts, bad, parameters, accelerator, train, steps)
        if config.resume:
            print(
                f"resumed from {newest}" if newest else "nothing to resume: starting anew",
                flush=True,
            )

    # ---- two batches of validation first: a broken set-up fails in seconds ----
    if newest is None:
        predict(model, islice(validation, 2), ids["validation"], accelerator, max_batches=2)
    accelerator.init_trackers("mtmm", config=trackable(config))

    # ---- train ----
    stop.training = True
    for epoch in range(progress.epoch, config.epochs):
        if config.patience is not None and epoch - progress.best_epoch >= config.patience:
            break
        train.batch_sampler.set_epoch(epoch, first_batch=progress.step * config.accumulation)
        probability = rmm_probability(epoch, config.epochs, config.rmm_start)
        model.train()
        bar = tqdm(
            groups_of(config.accumulation, train),
            initial=progress.step,
            total=steps[epoch],
            desc=f"epoch {epoch + 1}/{config.epochs}",
            disable=None if accelerator.is_main_process else True,  # None: where nobody watches
            leave=False,
        )
        for group in bar:
            for number, batch in enumerate(group, start=1):
                mask_modalities(
                    batch,
                    probability,
                    seed=config.seed,
                    epoch=epoch,
                )
                mask_frames(batch, config.mask_frames, seed=config.seed, epoch=epoch)
                inputs = {name: value for name, value in batch.items() if name != "utterance_ids"}
                # Gradients travel between processes once per step, with the last of its passes.
                synchronised = number == len(group)
                with (
                    nullcontext() if synchronised else accelerator.no_sync(model),
                    naming_shapes(inputs),
                ):
                    output = model(
                        **send_to_device(inputs, accelerator.device),
                        class_weights=weights,
                        reduce_sum=sum_over_processes,
                    )
                    accelerator.backward(output.loss / len(group))
                progress.losses.append(float(output.loss.detach()))
                if not math.isfinite(progress.losses[-1]):
                    what = f"The loss is {progress.losses[-1]}"
                    raise diverged(what, group[:number], output, progress, out, accelerator)
            parts = divergence.gradient_norms(
                adapters.without_adapters(accelerator.unwrap_model(model))
            )
            norm = clip_gradients(accelerator, model, config.clip_norm)
            if norm is None:
                what = f"The gradient is not finite in {divergence.not_finite(parts)}"
                raise diverged(what, group, output, progress, out, accelerator)
            warning = divergence.explosion(norm, progress.norms, parts)
            if warning and accelerator.is_main_process:
                tqdm.write(f"epoch {epoch + 1}, step {progress.step + 1}: {warning}")
            if math.isfinite(norm):
                progress.norms.append(norm)
            optimiser.step()
            optimiser.zero_grad()
            if not accelerator.optimizer_step_was_skipped:
                schedule.step()
            progress.step += 1
            progress.total_steps += 1
            progress.seconds = seconds_before + time.monotonic() - began
            bar.set_postfix(loss=f"{progress.losses[-1]:.3f}")
            stopped = stop.requested(accelerator)
            due = config.checkpoint_steps and progress.total_steps % config.checkpoint_steps == 0
            if stopped or due:
                checkpoint = checkpoints.save(progress.total_steps)
            if stopped:
                raise SystemExit(
                    f"{stop.name or 'another process'}: stopped after step {progress.total_steps}, "
                    f"{checkpoint} is written. Run the same command with --resume to go on."
                )

        # ---- validate, keep the best epoch ----
        metrics = predict(model, validation, ids["validation"], accelerator).metrics(plain.config)
        score = selection_score(metrics, config.select_by)
        best = progress.best_score
        better = best is None or score is None or config.select_by == "last" or score > best
        if better:
            progress.best_score, progress.best_epoch = score, epoch + 1
            checkpoints.save_best()
        progress.history.append(
            {
                "epoch": epoch + 1,
                "rmm_probability": probability,
                "padding_share": train.batch_sampler.padding_share(),
                "train": {
                    "loss": sum(progress.losses) / len(progress.losses),
                    "gradient_norm": float(np.median(progress.norms)) if progress.norms else None,
                },
                "validation": metrics,
                "score": score,
            }
        )
        if accelerator.is_main_process:
            print(epoch_line(config, progress.history[-1], better), flush=True)
        accelerator.log(flat(progress.history[-1]), step=epoch + 1)
        progress.epoch, progress.step, progress.losses, progress.norms = epoch + 1, 0, [], []
        checkpoints.save(progress.total_steps, epoch + 1)
    if stop.requested(accelerator):
        raise SystemExit(
            f"{stop.name or 'another process'}: stopped after the last epoch. Run the same command with "
            "--resume to test."
        )
    stop.training = False

    # ---- the best epoch, calibrated on validation; then the test split, once ----
    adapter = out / "adapter" if accelerator.is_main_process else None
    best = best_model(config, outputs, checkpoints, adapter).to(accelerator.device)
    predictions = {}
    for split in ("validation", "test"):  # from raw inputs, as a user of the model gives them
        predictions[split] = predict(best, loader_of(split, raw), ids[split], accelerator)
    best.config.temperature = calibrate(predictions["validation"], best.config.trained_outputs)
    accelerator.end_training()
    if accelerator.is_main_process:
        results = {
            "fold": fold.name,
            "config": dataclasses.asdict(config),
            "model_config": best.config.to_dict(),
            "splits": counts,
            "skipped": bad,
            "parameters": parameters,
            "epochs": progress.history,
            "best_epoch": progress.best_epoch,
            "select_by": config.select_by,
            "temperature": best.config.temperature,
            "validation": predictions["validation"].metrics(best.config, best.config.temperature),
            "test": predictions["test"].metrics(best.config, best.config.temperature),
            "test_ECE_before_temperature": predictions["test"].metrics(best.config)["ECE"],
            "by_corpus": metrics_by_corpus(predictions["test"], splits["test"], best.config),
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
            "versions": versions(),
            "wall_time_s": seconds_before + time.monotonic() - began,
        }
        write_run(out, best, processor, results, predictions, utterances)
        checkpoints.delete()
        print_test(results, out)


# ---- what is printed ---------------------------------------------------------------------------


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError, MemoryError, SafetensorError) as error:
        sys.exit(f"error: {explain(error)}")
