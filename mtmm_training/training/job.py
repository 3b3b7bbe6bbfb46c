"""What training works on, put together before the first step: data, model, batches, optimiser."""

import copy
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.batches.augment import add_variants
from mtmm_training.batches.cache import encoded, trainable_encoders
from mtmm_training.batches.collate import (
    Loader,
    RawInputs,
    find_bad,
    make_loader,
    to_dataset,
    unusable,
)
from mtmm_training.batches.opinions import Opinions
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.files import write_json
from mtmm_training.scoring.texts import say
from mtmm_training.training import launch, places, report
from mtmm_training.training.adapters import without_adapters
from mtmm_training.training.checkpoints import Checkpoints, Progress
from mtmm_training.training.config import SETTINGS_FILE, TrainConfig
from mtmm_training.training.faults import Unread, trained_parts
from mtmm_training.training.graphs import PassGraphs
from mtmm_training.training.linear import ROWS, inner_folds
from mtmm_training.training.model import build_model, choose_trained, parameter_counts
from mtmm_training.training.optimiser import build_optimiser
from mtmm_training.training.prepare import FoldData, cache_folder, class_weights, prepare_fold
from mtmm_training.training.references import References
from mtmm_training.training.threads import set_threads
from processing_mtmm import MTMMProcessor


@dataclass
class Job:
    """What training works on; the place in it is `progress`."""

    config: TrainConfig
    out: Path
    stop: launch.StopSignal
    began: float  # seconds on a clock of no date, of this run and those that it continues
    accelerator: Accelerator
    data: FoldData
    processor: MTMMProcessor
    model: nn.Module  # as accelerate has prepared it
    trained: dict[str, list[nn.Parameter]]  # what trains of each part
    model_config: MTMMConfig
    parameters: dict[str, tuple[int, int]]
    loaders: dict[str, Loader]
    cached: bool  # whether batches are of the cache's states
    references: References | None  # with --reference
    steps: list[int]  # of each epoch
    optimiser: Any
    schedule: Any
    class_weights: Tensor | None
    progress: Progress
    checkpoints: Checkpoints
    unread: Unread | None = None  # the step before: reading it at once would make a GPU wait
    graphs: PassGraphs | None = None


def prepare(config: TrainConfig, out: Path, stop: launch.StopSignal) -> Job | None:
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
    votes = config.labels == "votes"
    opinions = Opinions.of(data.splits["train"], config.dimensions) if votes else None
    plain, processor = build_model(config, opinions.rated if opinions else ())
    plain.config.trained_outputs = data.outputs
    model = choose_trained(config, plain)
    parameters = parameter_counts(model)
    if config.gradient_checkpointing:
        plain.activation_checkpointing_enable()
    loaders, cached = make_loaders(config, data, plain, processor, accelerator, opinions)
    if config.encode_only:
        return None
    if config.linear_path:
        inner_folds(config, data.splits)  # refuses now what it would after the last epoch
    references = References.fitted(config, plain, loaders["train"], data.splits["train"])
    train = loaders["train"].batch_sampler
    steps = [math.ceil(n / config.accumulation) for n in train.lengths_of(config.epochs)]

    if config.compile and not records(config, cached, accelerator):
        # Only now: the cache needs the encoders as they are.
        torch._dynamo.config.specialize_float = True  # no float varies; else all is traced twice
        plain.compile(dynamic=True)  # in place: names of parameters stay as they are
    optimiser, schedule = build_optimiser(config, model, sum(steps))
    model, optimiser = accelerator.prepare(model, optimiser)
    trained = trained_parts(without_adapters(accelerator.unwrap_model(model)))
    weights = class_weights(config, data.counts["train"])
    set_seed(config.seed, device_specific=True)  # other dropout on every process

    # Where a stopped run goes on.
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    checkpoints = Checkpoints(out / "checkpoints", accelerator, model, config.keep_checkpoints)
    if accelerator.is_main_process:
        told = {"data": data, "parameters": parameters, "accelerator": accelerator}
        say("fold.txt", config=config, **told, steps=sum(steps), padding=train.padding_share())
    settings = data.settings | report.versions()
    settings |= {"processes": accelerator.num_processes, "cached states": cached}
    record, flags = out / SETTINGS_FILE, {"flags": places.written(dataclasses.asdict(config), out)}
    resumed = checkpoints.resume(record, settings, flags) if config.resume else None
    if accelerator.is_main_process:
        if config.resume:
            print(f"resumed from {resumed}" if resumed else "nothing to resume", flush=True)
        if resumed is None:  # a run that left no checkpoint is begun anew
            write_json(settings | flags, record)
    if cached:  # no worker reads ahead, and the encoders rest
        launch.leave_cores_to(0, accelerator)
        set_threads(progress, model, loaders["train"], accelerator, weights)
    return Job(
        config, out, stop, began - progress.seconds, accelerator, data, processor, model, trained,
        plain.config, parameters, loaders, cached, references, steps, optimiser, schedule, weights,
        progress, checkpoints,
    )  # fmt: skip


def records(config: TrainConfig, cached: bool, accelerator: Accelerator) -> bool:
    """Whether CUDA graphs do the passes of a step: from the cache on one GPU, whose loss has no scale."""
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cuda"
    once = config.accumulation == 1 and accelerator.scaler is None
    return config.compile and cached and alone and once


def make_loaders(
    config: TrainConfig,
    data: FoldData,
    model: MTMMModel,
    processor: MTMMProcessor,
    accelerator: Accelerator,
    opinions: Opinions | None = None,
) -> tuple[dict[str, Loader], bool]:
    """A loader for each split, and whether batches are of the cache's states.

    Training goes round variants, if there are any, and is told the opinions. States that were never
    encoded before are encoded now; with `encode_only` that is all.
    """
    cache = cache_folder(config)
    if config.cache_dir is None and not config.encode_only and trainable_encoders(model):
        cache = None  # it was not asked for, and states change in training
    for name, unused in (("mask_frames", 0.0), ("reference", "none"), ("linear_path", False)):
        given = getattr(config, name)
        if given != unused and cache is None:
            text = "it needs the cache, and encoders that are frozen"
            raise ValueError(f"`--{name}` is {given}; {text}.")
    augmented = config.augment, config.augment_variants, config.seed
    variants = add_variants(data.splits["train"], *augmented)
    shown = data.splits | {"train": [u for variant in variants for u in variant]}
    heard = [u for split in shown.values() for u in split]
    if config.linear_path and "validation" in shown:  # it learns from these speakers, too
        most = 1 + ROWS // (len(data.splits["train"]) + len(data.splits["validation"]))
        heard += [u for v in add_variants(data.splits["validation"], *augmented)[1:most] for u in v]
    collate: Any = RawInputs(processor, config.emotions, config.dimensions)
    if cache is not None:  # encoding reads all of them, and says itself what is bad
        collate = encoded(
            heard, collate, cache, model, data.recordings, accelerator, dtype=config.cache_dtype,
            verify=config.verify_cache, batch_size=config.batch_size, workers=config.workers,
            compiled=config.compile,
        )  # fmt: skip
    elif config.on_error == "stop":
        own = [utterance for split in data.splits.values() for utterance in split]
        if bad := find_bad(own, processor, config.workers):
            raise ValueError(f"{unusable(bad, own)}\nRepair their files, or add --on_error skip.")
    if config.encode_only:
        return {}, True
    loaders = {}
    for name, utterances in data.splits.items():
        batches = LengthBatches(
            frame_lengths(shown[name], data.recordings).reshape(-1, len(utterances)),
            config.batch_size, frame_budget=config.frame_budget, seed=config.seed,
            shuffle=name == "train", corpora=[u.corpus for u in utterances],
            exponent=config.corpus_exponent, rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )  # fmt: skip
        # Reading cached states is a copy: a core kept for a worker would lie idle.
        workers = config.workers if cache is None else 0
        own = _with_opinions(collate, opinions) if name == "train" else collate
        loaders[name] = make_loader(to_dataset(shown[name]), batches, own, workers=workers)
    return loaders, cache is not None


def _with_opinions(collate: Any, opinions: Opinions | None) -> Any:
    """The collator, of raw inputs or cached states, with votes and ratings beside the labels."""
    own = copy.copy(collate)
    labels = own if isinstance(own, RawInputs) else copy.copy(own.raw)
    labels.opinions = opinions
    if labels is not own:
        own.raw = labels
    return own
