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
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
    gather_object,
    send_to_device,
    set_seed,
)
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.hf_argparser import DataClassType, HfArgumentParser

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMOutput, MTMMProcessor
from mtmm_training.batches.augment import add_variants, mask_frames
from mtmm_training.batches.cache import CachedStates, FeatureCache, trainable_encoders
from mtmm_training.batches.collate import (
    LengthBatches,
    Loader,
    RawInputs,
    frame_lengths,
    is_of_worker,
    make_loader,
    mask_modalities,
    rmm_probability,
    to_dataset,
)
from mtmm_training.data.corpora import CORPORA, read_corpus
from mtmm_training.data.folds import (
    Fold,
    fold_from_speakers,
    load_folds,
    make_folds,
    script_of,
    select,
)
from mtmm_training.data.utterances import (
    SPLITS,
    Utterance,
    digest,
    few,
    read_manifests,
    without_fields,
)
from mtmm_training.files import read_json, replacing, writing
from mtmm_training.pictures import figures
from mtmm_training.scoring.metrics import fit_temperature, selection_score
from mtmm_training.scoring.predictions import Predictions, predict, write_predictions
from mtmm_training.training import adapters, divergence
from mtmm_training.training.checkpoints import Checkpoints, Progress, StopSignal, alone_in
from mtmm_training.training.config import TrainConfig

# ---- data --------------------------------------------------------------------------------------


def read_utterances(config: TrainConfig) -> list[Utterance]:
    """The utterances that the flags name and that can be used; see `read_usable`."""
    return read_usable(config)[0]


def read_usable(config: TrainConfig) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances that the flags name, reduced to the modalities that the model may see.

    Under --on_error skip also what is wrong with those that are left out for it, by id: before any
    folds are made, so that all that follows is of the same utterances.
    """
    utterances = read_all(config)
    if config.on_error == "stop":
        return utterances, {}
    bad = find_bad(utterances, config, load_processor(config))
    if len(bad) == len(utterances):
        raise ValueError(
            f"None of the {len(utterances)} utterances can be used:{listing(bad)}\nCheck --audio_dir and "
            "the files."
        )
    return [u for u in utterances if u.utterance_id not in bad], bad


def read_all(config: TrainConfig) -> list[Utterance]:
    """The utterances that the flags name, usable or not."""
    if config.manifest is not None:
        utterances = read_manifests(
            config.manifest,
            audio_dir=config.audio_dir,
            dimension_range=tuple(config.dimension_range),
            audio_exists=config.on_error == "stop",
        )
    else:
        official = config.protocol == "official"
        options = json.loads(config.corpus_options)
        utterances = read_corpus(
            str(config.corpus), str(config.corpus_dir), official_split=official, **options
        )
    hidden = {"audio", "text"} - set(config.modalities)
    kept = [
        u for u in utterances if any(getattr(u, name) is not None for name in config.modalities)
    ]
    if len(kept) < len(utterances):
        print(
            f"{len(utterances) - len(kept)} of {len(utterances)} utterances have no "
            f"{config.modalities[0]}: left out"
        )
    if not config.encode_only:
        check_labels(kept, config)
    if config.script_disjoint and "text" in hidden:  # folds are by words that the model may not see
        kept = [replace(u, script_id=script_of(u)) if u.text is not None else u for u in kept]
    return [without_fields(u, hidden) for u in kept]


def check_labels(utterances: Sequence[Utterance], config: TrainConfig) -> None:
    """Refuse emotions that the model has no output for, and data without any label."""
    found = Counter(u.emotion for u in utterances if u.emotion is not None)
    unknown = sorted(set(found) - set(config.emotions))
    if unknown:
        counts = ", ".join(f"{name} ({found[name]})" for name in unknown)
        raise ValueError(
            f"The data has emotions that the model would not predict: {counts}. Known are "
            f"{', '.join(config.emotions)}; name all of yours with --emotions, or leave those cells empty."
        )
    if not found and all(
        getattr(u, name) is None for u in utterances for name in config.dimensions
    ):
        raise ValueError(
            f"No utterance has a label: neither an emotion nor {' nor '.join(config.dimensions)}. "
            "Training needs at least one labelled column."
        )


def folds_of(config: TrainConfig, utterances: Sequence[Utterance]) -> list[Fold]:
    """All folds that the flags describe, of which `--fold` chooses one."""
    if config.test_speakers:
        return [fold_from_speakers(utterances, config.validation_speakers, config.test_speakers)]
    if config.folds_file is not None:
        return load_folds(config.folds_file, utterances, script_disjoint=config.script_disjoint)
    return make_folds(
        utterances,
        config.protocol,
        k=config.k,
        seed=config.seed,
        improvised_only=config.improvised_only,
        script_disjoint=config.script_disjoint,
    )


def choose_fold(config: TrainConfig, utterances: Sequence[Utterance]) -> Fold:
    """The fold that the flags name."""
    folds = folds_of(config, utterances)
    if config.fold >= len(folds):
        raise ValueError(
            f"`--fold {config.fold}` does not exist: there are {len(folds)}, counted from 0."
        )
    return folds[config.fold]


def find_bad(
    utterances: Sequence[Utterance], config: TrainConfig, processor: MTMMProcessor
) -> dict[str, str]:
    """What is wrong with the utterances that cannot be used, by id: each is read once.

    Every process reads its share and gets the answer about all.
    """
    state = PartialState()
    mine = utterances[state.process_index :: state.num_processes]
    rows = list(range(len(mine)))
    batches = [rows[start : start + 16] for start in range(0, len(mine), 16)]
    collate = RawInputs(processor, (), ()).problems
    loader = make_loader(to_dataset(mine), batches, collate, workers=config.workers)
    found = dict(gather_object([item for problems in loader for item in problems.items()]))
    return {u.utterance_id: found[u.utterance_id] for u in utterances if u.utterance_id in found}


def refuse_bad(
    utterances: Sequence[Utterance], config: TrainConfig, processor: MTMMProcessor
) -> None:
    """Raise ValueError that names all utterances that cannot be used, if there are any."""
    bad = find_bad(utterances, config, processor)
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(utterances)} utterances cannot be used:{listing(bad)}\nRepair their files "
            "or take them out of the data, or add --on_error skip, which leaves them out."
        )


def listing(bad: dict[str, str], most: int = 5) -> str:
    """Bad utterances and what is wrong with them, a line each."""
    lines = [f"\n  {utterance_id}: {problem}" for utterance_id, problem in bad.items()]
    more = [f"\n  and {len(bad) - most} more"] if len(bad) > most else []
    return "".join(lines[:most] + more)


def describe_split(utterances: Sequence[Utterance], config: TrainConfig) -> dict[str, Any]:
    """Counts and speakers of a split, as results.json keeps them; corpora where there are several."""
    corpora = Counter(u.corpus for u in utterances)
    return {
        "utterances": len(utterances),
        "with_audio": sum(u.audio is not None for u in utterances),
        "with_text": sum(u.text is not None for u in utterances),
        "emotions": dict(
            Counter(u.emotion for u in utterances if u.emotion is not None).most_common()
        ),
        "dimensions": {
            n: sum(getattr(u, n) is not None for u in utterances) for n in config.dimensions
        },
        "speakers": sorted({u.speaker_id for u in utterances}),
    } | ({"corpora": dict(corpora)} if len(corpora) > 1 else {})


def planned(config: TrainConfig) -> MTMMConfig:
    """What the flags say of the model's outputs and loss; of its encoders nothing."""
    names = ("id2label", "dimension_names", "emotion_loss_weight", "dimension_loss_weights")
    fields = {name: value for name, value in model_fields(config).items() if name in names}
    if config.model is not None:
        return MTMMConfig.from_pretrained(config.model, **fields)
    return MTMMConfig(**fields)


def check_fold(config: TrainConfig, known: MTMMConfig, splits: dict[str, list[Utterance]]) -> None:
    """Refuse a fold whose speakers or labels do not suit the flags, without building the model.

    Args:
        config: The flags.
        known: Of [`planned`].
        splits: The fold's utterances.
    """
    check_unseen(config, splits["test"])
    outputs = trained_outputs(known, splits["train"])
    check_scale(config, outputs)
    labelled = hide_labels(splits["validation"], config, outputs)
    check_selection(config, describe_split(labelled, config))


def check_scale(config: TrainConfig, outputs: Iterable[str]) -> None:
    """Refuse to train dimensions on ratings of a corpus whose scale is not the model's."""
    if config.corpus is None or not set(config.dimensions) & set(outputs):
        return
    own = CORPORA[config.corpus].load().DIMENSION_RANGE
    if own != tuple(config.dimension_range):
        low, high = config.dimension_range
        remedy = f"Give --dimension_range {own[0]:g} {own[1]:g}."
        if config.model is not None:
            remedy = "Begin with encoders, or convert the ratings in a manifest."
        raise ValueError(
            f"The dimensions of {config.corpus} are rated from {own[0]:g} to {own[1]:g}, the model's go from "
            f"{low:g} to {high:g}. {remedy}"
        )


def speakers_behind(model: str | None) -> set[str]:
    """Who a run's model, and those that it went on from, were trained or selected on, if that is known."""
    speakers: set[str] = set()
    followed = set()
    while model is not None and model not in followed:
        followed.add(model)
        try:
            past = read_json(Path(model).parent / "results.json", "splits", "config")
            for split in ("train", "validation"):
                speakers.update(past["splits"][split]["speakers"])
            model = past["config"]["model"]
        except (OSError, ValueError, KeyError, TypeError):  # no run's, or another program's
            break
    return speakers


def check_unseen(config: TrainConfig, test: Iterable[Utterance]) -> None:
    """Refuse to test a run's model on speakers that it was trained or selected on."""
    seen = sorted(speakers_behind(config.model) & {u.speaker_id for u in test})
    if seen:
        raise ValueError(
            f"`--model` is {config.model!r}, which was trained or selected on {few(seen)} of "
            "the test split. Give every fold the model of a run that left its test speakers out, or other "
            "names to other people."
        )


def check_selection(config: TrainConfig, counts: dict[str, Any]) -> None:
    """Refuse --select_by before training where the validation split has no labels for it."""
    emotion = 0.0 if counts["emotions"] else None
    ccc = {name: 0.0 if labelled >= 2 else None for name, labelled in counts["dimensions"].items()}
    selection_score(
        dict.fromkeys(("UAR", "WAR", "macro_F1"), emotion) | {"CCC": ccc}, config.select_by
    )


def trained_outputs(model_config: MTMMConfig, utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """The outputs that this training split has labels for and that count in the loss."""
    weights = model_config.loss_weights
    outputs = tuple(
        name
        for name, weight in weights.items()
        if weight > 0 and any(getattr(u, name) is not None for u in utterances)
    )
    if not outputs:
        raise ValueError(
            "The training split has no label that counts in the loss: labels may be of "
            f"{', '.join(weights)}, their weights in the loss are {', '.join(map(str, weights.values()))}."
        )
    return outputs


def hide_labels(
    utterances: Iterable[Utterance], config: TrainConfig, outputs: Sequence[str]
) -> list[Utterance]:
    """Utterances without the labels of outputs that are not trained: no score is about chance."""
    hidden = {"emotion", *config.dimensions} - set(outputs)
    return [without_fields(u, hidden) for u in utterances]


def class_weights(config: TrainConfig, counts: dict[str, Any]) -> Tensor | None:
    """Weights (emotions,) that give every emotion of the training split the same total, or None."""
    if config.class_weights == "none" or not counts["emotions"]:
        return None
    total, present = sum(counts["emotions"].values()), len(counts["emotions"])
    weights = [
        total / (present * counts["emotions"].get(name, math.inf)) for name in config.emotions
    ]
    return torch.tensor(weights)


# ---- model and optimiser -----------------------------------------------------------------------


def build_model(config: TrainConfig) -> tuple[MTMMModel, MTMMProcessor]:
    """Model and processor from pretrained encoders, or from a model that was trained before.

    Seeded: a second call gives the same model.
    """
    set_seed(config.seed)
    fields = model_fields(config)
    if config.model is not None:
        model = MTMMModel.from_pretrained(config.model, dtype=torch.float32, **fields)
    else:
        encoders = config.audio_encoder, config.text_encoder
        model = MTMMModel.from_encoders_pretrained(*encoders, **fields)
    model.config.temperature = 1.0
    return model, load_processor(config)


def model_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields of the model's configuration that the flags set."""
    return json.loads(config.model_config) | {
        "id2label": dict(enumerate(config.emotions)),
        "dimension_names": config.dimensions,
        "dimension_range": config.dimension_range,
    }


def load_processor(config: TrainConfig) -> MTMMProcessor:
    """The processor of the encoders, or of the model that was trained before."""
    if config.model is not None:
        return MTMMProcessor.from_pretrained(config.model)
    return MTMMProcessor.from_encoders_pretrained(config.audio_encoder, config.text_encoder)


def choose_trained(config: TrainConfig, model: MTMMModel) -> nn.Module:
    """The model with what the flags train: adapters, top layers, or what its configuration says."""
    for modality, encoder in (("audio", model.audio_model), ("text", model.text_model)):
        if modality not in config.modalities:
            encoder.requires_grad_(False)  # it will hear nothing, so it can learn nothing
    if config.lora_rank:
        return adapters.add_lora(
            model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.modalities
        )
    if config.unfreeze_audio_layers:
        adapters.unfreeze_top_layers(model.audio_model, config.unfreeze_audio_layers)
    if config.unfreeze_text_layers:
        adapters.unfreeze_top_layers(model.text_model, config.unfreeze_text_layers)
    return model


def best_model(
    config: TrainConfig, outputs: tuple[str, ...], checkpoints: Checkpoints, adapter: Path | None
) -> MTMMModel:
    """The best epoch's weights in a plain model, made anew.

    The one that was trained may be sharded, compiled, of lower precision, or have adapters; those
    are merged here, and written into the folder `adapter` unless it is None.
    """
    model, _ = build_model(config)
    model.config.trained_outputs = outputs
    if not config.lora_rank:
        checkpoints.load_best(choose_trained(config, model))
        return model
    encoders = {"audio_encoder": config.audio_encoder, "text_encoder": config.text_encoder}
    names = encoders if config.model is None else {"model": config.model}
    base = adapters.describe_base(model, **names)
    with_adapters: Any = choose_trained(config, model)
    checkpoints.load_best(with_adapters)
    if adapter is not None:
        adapters.save_adapters(with_adapters, adapter, base)
    return adapters.merge(with_adapters)


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
        [
            {"params": params, "lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ]
    )
    warmup = round(config.warmup_share * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def groups_of(size: int, items: Iterable[Any]) -> Iterator[list[Any]]:
    """Consecutive lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def sum_over_processes(sums: Tensor) -> Tensor:
    """Add the loss's sums over all processes; its gradient flows back to each of them.

    DistributedDataParallel averages gradients, the backward of this sum adds them: together N
    processes with batch B train as one with N·B.
    """
    return dist_functional.all_reduce(sums) if dist.is_initialized() else sums


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
    accelerator.init_trackers("mtmm", config=_trackable(config))

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
                    text_share=config.rmm_text_share,
                    per_batch=config.rmm_per_batch,
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
        accelerator.log(_flat(progress.history[-1]), step=epoch + 1)
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


def usable_cores() -> int:
    """How many cores this process may use; 1 where the machine does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_cores_to(workers: int, accelerator: Accelerator) -> None:
    """On a CPU, threads that outnumber the cores wait for each other and lose more than they gain."""
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(usable_cores() // accelerator.num_processes - workers, 1))


@contextmanager
def naming_shapes(batch: dict[str, Any]) -> Iterator[None]:
    """Says of which shapes a batch is that does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        shapes = ", ".join(
            f"{name} {' x '.join(map(str, tensor.shape))}"
            for name, tensor in batch.items()
            if isinstance(tensor, Tensor) and not name.endswith(("labels", "mask"))
        )
        raise torch.OutOfMemoryError(f"{first_line(error)}, for a batch of {shapes}") from error


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory of the device or of the machine was too small."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or should_reduce_batch_size(error)


def first_line(error: Exception) -> str:
    """An error's first line without the full stop, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")


def diverged(
    what: str,
    batches: Sequence[dict[str, Any]],
    output: MTMMOutput,
    progress: Progress,
    out: Path,
    accelerator: Accelerator,
) -> RuntimeError:
    """The error of a step that would ruin the weights; its batches are kept."""
    name = f"diverged-step-{progress.total_steps + 1:09d}-process-{accelerator.process_index}.pt"
    return RuntimeError(
        f"{what} in epoch {progress.epoch + 1}, step {progress.step + 1}: "
        f"{divergence.keep(out / name, batches, output)}. {divergence.ADVICE}."
    )


def clip_gradients(accelerator: Accelerator, model: nn.Module, clip_norm: float) -> float | None:
    """The gradient's norm before it was clipped; None where no step can be made with it.

    Infinite is normal under fp16: its scaler leaves the step out and lowers its scale. NaN stands
    for a norm that is not known (DeepSpeed clips by itself).
    """
    norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    if norm is None:
        return math.nan
    if accelerator.scaler is not None:
        return float(norm) if accelerator.scaler.get_scale() >= divergence.SMALLEST_SCALE else None
    return float(norm) if math.isfinite(norm) else None


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


def identity(
    config: TrainConfig, splits: dict[str, list[Utterance]], bad: dict[str, str]
) -> dict[str, Any]:
    """What makes a run this run: its flags, but for those that change no result, and its splits."""
    harmless = ["out", "cache_dir", "resume", "tracker", "checkpoint_steps", "keep_checkpoints"]
    harmless += ["workers", "on_error"]  # who is skipped counts, see below
    flags = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in harmless
    }
    digests = {f"{name} split": digest(members) for name, members in splits.items()}
    return flags | digests | {"skipped": sorted(bad)} | versions()


def uses_cache(config: TrainConfig, model: MTMMModel) -> bool:
    """Whether training is from the cache: not where it is off, or where an encoder trains."""
    optional = config.cache_dir is None and not config.encode_only
    return config.cache_dir != "off" and not (optional and trainable_encoders(model))


def cached_states(
    config: TrainConfig,
    model: MTMMModel,
    processor: MTMMProcessor,
    utterances: Sequence[Utterance],
    accelerator: Accelerator,
) -> CachedStates | None:
    """The frozen encoders' states of these utterances, encoded now where they never were.

    None where training goes without a cache: it is off, or an encoder trains.
    """
    if not uses_cache(config, model):
        if config.mask_frames:
            raise ValueError(
                f"`--mask_frames` is {config.mask_frames}, but it hides cached states, and there is no "
                "cache: it is off, or an encoder trains. Leave it out, or freeze both encoders."
            )
        return None
    folder = config.cache_dir or Path(config.out).parent / "cache"
    cache = FeatureCache.open(
        folder, model.to(accelerator.device), processor, dtype=config.cache_dtype
    )
    encoded = cache.encode(
        utterances,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    accelerator.wait_for_everyone()
    print_cache(cache, encoded, utterances, accelerator)
    return cache.collator(utterances, config.emotions, config.dimensions)


def with_variants(config: TrainConfig, utterances: Sequence[Utterance]) -> list[Utterance]:
    """The utterances, then as many of each of their variants, if there are any."""
    variants = add_variants(utterances, config.augment, config.augment_variants, config.seed)
    return [utterance for variant in variants for utterance in variant]


def encode_all(
    config: TrainConfig, utterances: Sequence[Utterance], accelerator: Accelerator
) -> None:
    """Fill the cache for every fold: all utterances, and variants of those that train in any."""
    model, processor = build_model(config)
    choose_trained(config, model)  # what trains cannot be cached, and is refused
    check_augmentation(config, processor)
    training = {name for fold in folds_of(config, utterances) for name in fold.train}
    trained = [u for u in utterances if u.utterance_id in training]
    variants = with_variants(config, trained)[len(trained) :]
    cached_states(config, model, processor, [*utterances, *variants], accelerator)


def metrics_by_corpus(
    predictions: Predictions, utterances: Sequence[Utterance], config: MTMMConfig
) -> dict[str, Any]:
    """Metrics of each corpus in a split by itself; nothing where there is one corpus."""
    corpora = np.array([u.corpus for u in utterances])  # in the order of the predictions
    names = np.unique(corpora).tolist()
    return {
        name: Predictions(
            *(np.asarray(column)[corpora == name] for column in vars(predictions).values())
        ).metrics(config, config.temperature)
        for name in (names if len(names) > 1 else ())
    }


def calibrate(validation: Predictions, outputs: Sequence[str]) -> float:
    """The temperature that fits the validation labels best; 1 without any."""
    if "emotion" not in outputs or not (validation.emotion_labels >= 0).any():
        return 1.0
    return fit_temperature(validation.emotion_logits, validation.emotion_labels)


def versions() -> dict[str, str]:
    """Of what decides a run's numbers: packages and Python."""
    packages = ("torch", "transformers", "accelerate")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def write_run(
    out: Path,
    model: MTMMModel,
    processor: MTMMProcessor,
    results: dict[str, Any],
    predictions: dict[str, Predictions],
    utterances: Sequence[Utterance],
) -> None:
    """Model folder, predictions, pictures, and results.json last: where it is, all is."""
    with writing(out):
        model.save_pretrained(out / "model")
        processor.save_pretrained(out / "model")
        if results["config"]["lora_rank"]:
            model.config.save_pretrained(out / "adapter")  # again: the temperature is known now
            processor.save_pretrained(out / "adapter")
    write_predictions(out / "predictions.csv", predictions, utterances, model.config)
    test = predictions["test"]
    figures.plot_curves(results["epochs"], out / "figures" / "curves.png", results["select_by"])
    names = list(model.config.emotion_names)
    if results["test"]["confusion"] is not None:
        title = f"Test split, {len(test.utterance_ids)} utterances"
        figures.plot_confusion(
            results["test"]["confusion"], names, out / "figures" / "confusion.png", title
        )
    columns = [i for i, n in enumerate(model.config.dimension_names) if n in ("valence", "arousal")]
    complete = ~np.isnan(test.dimension_labels[:, columns]).any(axis=1)
    if len(columns) == 2 and complete.any():  # rows that lack one are left out
        figures.plot_dimensions(
            test.dimension_labels[:, columns],
            test.dimensions[:, columns],
            out / "figures" / "valence_arousal.png",
            model.config.dimension_range,
            [names[label] if label >= 0 else None for label in test.emotion_labels],
        )
    with replacing(out / "results.json") as temporary:
        temporary.write_text(
            json.dumps(results, indent=2, default=str, allow_nan=False), encoding="utf-8"
        )


# ---- what is printed ---------------------------------------------------------------------------


def print_summary(
    config: TrainConfig,
    fold: str,
    counts: dict[str, Any],
    bad: dict[str, str],
    parameters: dict[str, tuple[int, int]],
    accelerator: Accelerator,
    train: Any,
    steps: list[int],
) -> None:
    """Everything that follows from the flags, before the first step."""
    print(f"fold {fold}")
    for name, split in counts.items():
        emotions = ", ".join(f"{emotion} {count}" for emotion, count in split["emotions"].items())
        dimensions = ", ".join(
            f"{dimension} {count}" for dimension, count in split["dimensions"].items()
        )
        print(
            f"  {name:<10} {split['utterances']:>6} utterances ({split['with_audio']} audio, "
            f"{split['with_text']} text), speakers: {len(split['speakers'])}; "
            f"{emotions or 'no emotions'}; {dimensions}"
        )
        if "corpora" in split:
            print("  " * 7 + ", ".join(f"{name} {n}" for name, n in split["corpora"].items()))
    if bad:
        print(f"  skipped, as they cannot be used: {len(bad)} utterances{listing(bad)}")
    for part, (trained, frozen) in parameters.items():
        print(f"  {part:<15} {trained:>12,} parameters trained {frozen:>12,} frozen")
    print(
        f"  {config.epochs} epochs, {sum(steps)} steps; {accelerator.num_processes} x "
        f"{config.batch_size} x {config.accumulation} utterances a step at most; "
        f"{100 * train.batch_sampler.padding_share():.1f} % padding; {accelerator.device}, "
        f"precision {config.mixed_precision}",
        flush=True,
    )


def print_cache(
    cache: FeatureCache,
    encoded: dict[str, int],
    utterances: Sequence[Utterance],
    accelerator: Accelerator,
) -> None:
    """How much of the cache is new, and what its precision does."""
    counts = gather_object([encoded])
    if accelerator.is_main_process:
        for modality, shards in cache.shards.items():
            present = sum(getattr(u, modality) is not None for u in utterances)
            print(
                f"cache {shards.folder}: {present} {modality} inputs, "
                f"{sum(count[modality] for count in counts)} encoded now"
            )
        print(cache.precision_line(utterances[:8]), flush=True)


def epoch_line(config: TrainConfig, epoch: dict[str, Any], best: bool) -> str:
    """One line: losses and validation metrics."""
    metrics = epoch["validation"]
    parts = [f"epoch {epoch['epoch']:>3}/{config.epochs}"]
    parts += [f"train loss {epoch['train']['loss']:.3f}", f"validation loss {metrics['loss']:.3f}"]
    return "  ".join(parts + metric_parts(metrics) + (["*"] if best else []))


def metric_parts(metrics: dict[str, Any]) -> list[str]:
    """UAR, WAR and every CCC that have a value, as words to print."""
    parts = [f"{name} {metrics[name]:.3f}" for name in ("UAR", "WAR") if metrics[name] is not None]
    return parts + [
        f"CCC {name} {ccc:.3f}" for name, ccc in metrics["CCC"].items() if ccc is not None
    ]


def print_test(results: dict[str, Any], out: Path) -> None:
    """Print the test metrics, those of each corpus, and where the results are."""
    print(
        f"test ({results['splits']['test']['utterances']} utterances of "
        f"{', '.join(results['splits']['test']['speakers'])}; epoch {results['best_epoch']}, "
        f"{'the last' if results['select_by'] == 'last' else 'by ' + results['select_by']}): "
        + "  ".join(metric_parts(results["test"]))
    )
    for name, metrics in results["by_corpus"].items():
        parts = metric_parts(metrics)
        print(f"  {name} ({metrics['utterances']} utterances): " + "  ".join(parts))
    untrained = set(results["config"]["dimensions"]) | {"emotion"}
    untrained -= set(results["model_config"]["trained_outputs"])
    if untrained:
        print(f"not trained (no labels, or weight 0 in the loss): {', '.join(sorted(untrained))}")
    print(
        f"{results['wall_time_s']:.0f} s; model, results, predictions and pictures are in {out}",
        flush=True,
    )


def parameter_counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Trained and frozen parameters of each part."""
    counts = {}
    for name, part in adapters.without_adapters(model).named_children():
        sizes = [
            (p.numel(), p.requires_grad)
            for parameter, p in part.named_parameters()
            if not parameter.startswith("original_module.")  # peft keeps a copy of what it trains
        ]
        counts[name] = (
            sum(n for n, trained in sizes if trained),
            sum(n for n, trained in sizes if not trained),
        )
    return counts


def _trackable(config: TrainConfig) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in dataclasses.asdict(config).items()
    }


def _flat(epoch: dict[str, Any]) -> dict[str, float]:
    """An epoch's record as a tracker takes it."""
    metrics = epoch["validation"]
    flat = {f"validation/{name}": metrics[name] for name in ("loss", "UAR", "WAR", "macro_F1")}
    flat |= {f"validation/CCC_{name}": ccc for name, ccc in metrics["CCC"].items()}
    flat |= {
        "train/loss": epoch["train"]["loss"],
        "train/gradient_norm": epoch["train"]["gradient_norm"],
        "train/rmm_probability": epoch["rmm_probability"],
    }
    return {name: value for name, value in flat.items() if value is not None}


def explain(error: Exception) -> str:
    """A sentence or two for the user: what happened, and what to do."""
    if out_of_memory(error):
        return (
            f"Out of memory ({first_line(error)}). Lower --batch_size (not below 2, and raise "
            "--accumulation as much), --frame_budget or --unfreeze_..._layers, or add "
            "--gradient_checkpointing, --mixed_precision bf16 or --lora_rank; and choose another --out."
        )
    if is_of_worker(error):
        return (
            f"A process that reads audio was killed ({first_line(error)}), often by the system where memory "
            "is short. Lower --workers, and run the same command with --resume."
        )
    if isinstance(error, SafetensorError):  # of a full disk too, of which it makes no OSError
        return (
            f"Weights could not be written or read ({error}). The last complete checkpoint is untouched: "
            "where the disk is full, free some space and run the same command with --resume."
        )
    return str(error)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError, MemoryError, SafetensorError) as error:
        sys.exit(f"error: {explain(error)}")
