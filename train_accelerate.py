"""Train MTMM on one fold, read the test split once, and leave a folder that the Hub takes.

    python train_accelerate.py --manifest my/manifest.csv --protocol grouped --k 5 --fold 0 \\
        --audio_encoder facebook/hubert-large-ll60k --text_encoder microsoft/deberta-v3-large
    accelerate launch --num_processes 2 train_accelerate.py ...   (any number of processes, any device)

The run's folder gets model/ (weights, configuration, processor and code: `from_pretrained` and
`pipeline` load it), results.json, predictions.csv, figures/ and TensorBoard's logs; with --lora_rank
also adapter/. launch/ has a configuration of accelerate for every kind of machine.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, send_to_device, set_seed
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training import adapters, figures
from mtmm_training.batches import (
    LengthBatches,
    RawInputs,
    frame_lengths,
    make_loader,
    mask_modalities,
    rmm_probability,
    to_dataset,
)
from mtmm_training.checkpoints import Checkpoints, Progress, StopSignal
from mtmm_training.corpora import CORPORA, read_corpus
from mtmm_training.features import CachedStates, FeatureCache, trainable_encoders
from mtmm_training.folds import Fold, fold_from_speakers, load_folds, make_folds, select
from mtmm_training.metrics import fit_temperature, selection_score
from mtmm_training.predictions import Predictions, predict, write_predictions
from mtmm_training.utterances import DIMENSIONS, SPLITS, Utterance, read_manifest, replacing


def _flag(default: Any, text: str, **more: Any) -> Any:
    """A field of TrainConfig: its default and the help text of its flag."""
    metadata = {"help": text} | more
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainConfig:
    """All that a run needs beside the weights; written into results.json."""

    out: str = _flag("out/run", "Folder of this run's results.")
    seed: int = _flag(0, "Of weights, batches, dropout and modality masking.")

    # Data and fold
    manifest: str | None = _flag(
        None, "CSV, TSV, JSONL or Parquet table of utterances (see README)."
    )
    audio_dir: str | None = _flag(
        None, "Where the manifest's relative audio paths begin; its folder if not given."
    )
    corpus: str | None = _flag(None, "Name of a corpus with a reader, instead of a manifest.")
    corpus_dir: str | None = _flag(None, "Folder of the corpus as distributed.")
    corpus_options: str = _flag(
        "{}", 'Options of the corpus\'s reader as JSON, for example \'{"labels": "all"}\'.'
    )
    emotions: list[str] | None = _flag(
        None, "Emotions to predict; if not given those of --model, else angry happy sad neutral."
    )
    dimensions: list[str] | None = _flag(
        None, "Dimensions to predict; if not given those of --model, else valence arousal."
    )
    dimension_range: list[float] | None = _flag(
        None,
        "Lowest and highest value of their labels; if not given that of --model or the corpus, else 1 5.",
    )
    modalities: list[str] = _flag(
        ["audio", "text"], "What the model sees, in training and test.", choices=["audio", "text"]
    )
    protocol: str = _flag(
        "speaker",
        "How folds are made: speaker, session, leave_one_speaker_out, grouped or official.",
    )
    k: int | None = _flag(None, "Number of folds of protocol grouped.")
    fold: int = _flag(0, "Which fold of the protocol, from 0.")
    folds_file: str | None = _flag(None, "Folds saved earlier, instead of a protocol.")
    validation_speakers: list[str] = _flag(
        [], "With --test_speakers: the fold by names; all others train."
    )
    test_speakers: list[str] = _flag([], "See --validation_speakers.")

    cache_dir: str | None = _flag(
        None,
        "Folder that keeps frozen encoders' states, for all folds and runs; if not given, cache/ beside "
        "--out where both encoders are frozen; off = encode again in every epoch.",
    )
    cache_dtype: str = _flag(
        "float16", "Precision of those states.", choices=["float16", "bfloat16", "float32"]
    )

    # Model
    model: str | None = _flag(
        None, "Folder or Hub id of an MTMM model to train on, instead of encoders."
    )
    audio_encoder: str = _flag(
        "facebook/hubert-large-ll60k", "Folder or Hub id of the acoustic encoder."
    )
    text_encoder: str = _flag(
        "microsoft/deberta-v3-large", "Folder or Hub id of the linguistic encoder."
    )
    model_config: str = _flag(
        "{}", 'Fields of MTMMConfig as JSON, for example \'{"encoder_layers": "weighted"}\'.'
    )

    # What of the encoders trains
    unfreeze_audio_layers: int = _flag(
        0,
        "Train so many of the acoustic encoder's last layers; 0 = as the model's configuration says.",
    )
    unfreeze_text_layers: int = _flag(
        0, "Train so many of the linguistic encoder's last layers; 0 = as its configuration says."
    )
    lora_rank: int = _flag(
        0,
        "Width of LoRA's adapters in the encoders' attention, which --learning_rate trains; 0 = none.",
    )
    lora_alpha: float = _flag(16.0, "LoRA's outputs are multiplied by it and divided by its rank.")
    lora_dropout: float = _flag(0.05, "Dropout on the adapters' inputs.")

    # Optimisation
    epochs: int = _flag(20, "Passes over the training split.")
    batch_size: int = _flag(16, "Utterances per process and forward pass.")
    frame_budget: int | None = _flag(
        None, "Acoustic frames per process and forward pass, at most (50 a second)."
    )
    accumulation: int = _flag(1, "Forward passes per optimiser step.")
    learning_rate: float = _flag(3e-4, "Of fusion, heads and LoRA's adapters.")
    encoder_learning_rate: float = _flag(1e-5, "Of the encoders' own parameters, where they train.")
    weight_decay: float = _flag(0.01, "Of AdamW, on matrices only.")
    warmup_share: float = _flag(
        0.08, "Share of the steps in which the learning rate rises, 0 to 1."
    )
    clip_norm: float = _flag(1.0, "Largest norm of the gradient.")
    class_weights: str = _flag(
        "none",
        "balanced: rare emotions count more in the cross-entropy.",
        choices=["none", "balanced"],
    )
    rmm_start: float = _flag(
        0.8, "Random modality masking: its probability in the first epoch; 0 = off."
    )
    rmm_text_share: float = _flag(0.6, "How often it is the text that is masked.")
    rmm_per_batch: bool = _flag(False, "Draw the masking once per batch, not per utterance.")
    select_by: str = _flag(
        "mean",
        "Validation metric of the best epoch: mean (of UAR and every CCC that has labels), UAR, WAR, "
        "macro_F1, CCC_valence, ...",
    )
    patience: int | None = _flag(
        None, "Stop after so many epochs without a better one; not at all if not given."
    )

    # Machine
    mixed_precision: str = _flag(
        "no",
        "no, bf16 or fp16. DeBERTa's attention can overflow in fp16: take bf16 where the device has it.",
        choices=["no", "bf16", "fp16"],
    )
    gradient_checkpointing: bool = _flag(
        False, "Keep few activations and compute them again: less memory, about a third more time."
    )
    compile: bool = _flag(
        False,
        "torch.compile: costs minutes before the first step; for long runs on a GPU (on a CPU, torch 2.13 "
        "fails to build HuBERT with DeBERTa). Not with --gradient_checkpointing.",
    )
    workers: int = _flag(1, "Processes that decode audio ahead of the step.")
    checkpoint_steps: int = _flag(
        0, "Write a checkpoint every so many steps; 0 = at the end of epochs only."
    )
    keep_checkpoints: int = _flag(2, "How many of the newest checkpoints to keep.")
    resume: bool = _flag(False, "Go on from the newest checkpoint in --out.")
    tracker: str = _flag("tensorboard", "Any tracker of accelerate by name, or none.")

    def check(self) -> None:
        """Raise ValueError for the first flag whose value is not allowed."""
        whole = ("epochs", "batch_size", "accumulation", "keep_checkpoints")
        for name in whole:
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("learning_rate", "encoder_learning_rate", "clip_norm", "lora_alpha"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("warmup_share", "rmm_start", "rmm_text_share"):
            self._require(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        self._require("fold", self.fold >= 0, "a whole number from 0")
        self._require(
            "manifest", (self.manifest is None) != (self.corpus is None), "given, or else --corpus"
        )
        self._require(
            "validation_speakers",
            bool(self.validation_speakers) == bool(self.test_speakers),
            "given together with --test_speakers",
        )
        self._require(
            "corpus", self.corpus is None or self.corpus in CORPORA, f"one of {', '.join(CORPORA)}"
        )
        self._require(
            "corpus_dir", self.corpus is None or self.corpus_dir is not None, "given with --corpus"
        )
        known = ", ".join(DIMENSIONS)
        for name in self.dimensions or []:
            self._require("dimensions", name in DIMENSIONS, f"one or more of {known}")
        fields = json.loads(self.model_config)
        self._require("model_config", isinstance(fields, dict), "a JSON object")
        for name in ("id2label", "dimension_names", "dimension_range"):
            self._require(
                "model_config", name not in fields, f"without {name}, which has its own flag"
            )
        self._check_encoders(fields)

    def _check_encoders(self, fields: dict[str, Any]) -> None:
        """Refuse flags that contradict each other about what of the encoders trains."""
        for name in ("unfreeze_audio_layers", "unfreeze_text_layers", "lora_rank"):
            self._require(name, getattr(self, name) >= 0, "a whole number from 0")
        self._require(  # torch 2.13 fails to trace checkpoints in batches of changing lengths
            "compile",
            not (self.compile and self.gradient_checkpointing),
            "False with --gradient_checkpointing",
        )
        self._require("lora_dropout", 0 <= self.lora_dropout < 1, "from 0 up to, not including, 1")
        for modality in ("audio", "text"):
            name, frozen = f"unfreeze_{modality}_layers", f"freeze_{modality}_encoder"
            layers = getattr(self, name)
            self._require(name, not (layers and self.lora_rank), "0 with --lora_rank")
            self._require(
                name,
                not layers or modality in self.modalities,
                f"0 without {modality} in --modalities",
            )
            self._require(
                "model_config",
                fields.get(frozen, True) or not (layers or self.lora_rank),
                f"without {frozen}=false where --lora_rank or --{name} says what trains",
            )

    def resolve(self) -> "TrainConfig":
        """The same flags with the outputs that --model brings, or the defaults, filled in."""
        known = MTMMConfig() if self.model is None else MTMMConfig.from_pretrained(self.model)
        corpus_range = None
        if self.model is None and self.corpus is not None:
            corpus_range = CORPORA[self.corpus].load().DIMENSION_RANGE
        return dataclasses.replace(
            self,
            emotions=self.emotions or list(known.id2label.values()),
            dimensions=[
                name for name in DIMENSIONS if name in (self.dimensions or known.dimension_names)
            ],
            dimension_range=self.dimension_range or list(corpus_range or known.dimension_range),
        )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"`--{name}` is {getattr(self, name)!r}; it must be {allowed}.")


# ---- data --------------------------------------------------------------------------------------


def read_utterances(config: TrainConfig) -> list[Utterance]:
    """The utterances that the flags name, reduced to the modalities that the model may see."""
    if config.manifest is not None:
        utterances = read_manifest(
            config.manifest,
            audio_dir=config.audio_dir,
            dimension_range=tuple(config.dimension_range),
        )
    else:
        official = config.protocol == "official"
        options = json.loads(config.corpus_options)
        utterances = read_corpus(
            config.corpus, config.corpus_dir, official_split=official, **options
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
    check_labels(kept, config)
    return [dataclasses.replace(u, **dict.fromkeys(hidden)) for u in kept]


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


def choose_fold(config: TrainConfig, utterances: Sequence[Utterance]) -> Fold:
    """The fold that the flags name."""
    if config.test_speakers:
        return fold_from_speakers(utterances, config.validation_speakers, config.test_speakers)
    if config.folds_file is not None:
        folds = load_folds(config.folds_file, utterances)
    else:
        folds = make_folds(
            utterances, config.protocol, k=config.k, **({"seed": config.seed} if config.k else {})
        )
    if config.fold >= len(folds):
        raise ValueError(
            f"`--fold {config.fold}` does not exist: there are {len(folds)}, counted from 0."
        )
    return folds[config.fold]


def describe_split(utterances: Sequence[Utterance], config: TrainConfig) -> dict[str, Any]:
    """Counts, speakers, and hours of a split, as results.json keeps them."""
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
    }


def check_selection(config: TrainConfig, counts: dict[str, Any]) -> None:
    """Refuse --select_by before training where the validation split has no labels for it."""
    emotion = 0.0 if counts["emotions"] else None
    ccc = {name: 0.0 if labelled >= 2 else None for name, labelled in counts["dimensions"].items()}
    selection_score(
        dict.fromkeys(("UAR", "WAR", "macro_F1"), emotion) | {"CCC": ccc}, config.select_by
    )


def trained_outputs(counts: dict[str, Any]) -> tuple[str, ...]:
    """The outputs that this training split has labels for."""
    dimensions = [name for name, labelled in counts["dimensions"].items() if labelled]
    return (*(["emotion"] if counts["emotions"] else []), *dimensions)


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


def build_model(config: TrainConfig, outputs: tuple[str, ...]) -> tuple[MTMMModel, MTMMProcessor]:
    """Model and processor from pretrained encoders, or from a model that was trained before.

    Seeded: a second call gives the same model. `outputs` are those that the data has labels for.
    """
    set_seed(config.seed)
    fields = json.loads(config.model_config) | {
        "id2label": dict(enumerate(config.emotions)),
        "dimension_names": config.dimensions,
        "dimension_range": config.dimension_range,
    }
    if config.model is not None:
        model = MTMMModel.from_pretrained(config.model, dtype=torch.float32, **fields)
        processor = MTMMProcessor.from_pretrained(config.model)
    else:
        encoders = config.audio_encoder, config.text_encoder
        model = MTMMModel.from_encoders_pretrained(*encoders, **fields)
        processor = MTMMProcessor.from_encoders_pretrained(*encoders)
    model.config.trained_outputs, model.config.temperature = outputs, 1.0
    return model, processor


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
    model, _ = build_model(config, outputs)
    if not config.lora_rank:
        checkpoints.load_best(choose_trained(config, model))
        return model
    encoders = {"audio_encoder": config.audio_encoder, "text_encoder": config.text_encoder}
    names = encoders if config.model is None else {"model": config.model}
    base = adapters.describe_base(model, config.modalities, **names)
    with_adapters = choose_trained(config, model)
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
            # Adapters are new, as heads are; their names begin with peft's prefix.
            in_encoder = name.startswith(("audio_model.", "text_model."))
            rate = config.encoder_learning_rate if in_encoder else config.learning_rate
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
    parser = HfArgumentParser(TrainConfig, description=__doc__.split("\n")[0])
    (config,) = parser.parse_args_into_dataclasses(arguments)
    config.check()
    config = config.resolve()
    out = Path(config.out)
    began = time.monotonic()
    refuse_to_overwrite(config, out)
    accelerator = make_accelerator(config)
    leave_cores_to(config.workers, accelerator)
    set_seed(config.seed)

    # ---- data: read, checked, split ----
    utterances = read_utterances(config)
    fold = choose_fold(config, utterances)
    splits = select(utterances, fold)
    counts = {name: describe_split(splits[name], config) for name in SPLITS}
    ids = {name: [u.utterance_id for u in splits[name]] for name in SPLITS}
    check_selection(config, counts["validation"])
    check_launch(config, accelerator, counts)

    # ---- model ----
    outputs = trained_outputs(counts["train"])
    plain, processor = build_model(config, outputs)
    model = choose_trained(config, plain)
    parameters = parameter_counts(model)
    if config.gradient_checkpointing:
        plain.activation_checkpointing_enable()
    if config.compile:
        plain.compile(dynamic=True)  # in place: names of parameters stay as they are
    raw = RawInputs(processor, config.emotions, config.dimensions)
    cached = cached_states(config, plain, processor, splits, accelerator)
    if cached is not None:
        leave_cores_to(0, accelerator)

    def loader_of(split: str, collate: Any) -> DataLoader:
        batches = LengthBatches(
            frame_lengths(splits[split]),
            config.batch_size,
            frame_budget=config.frame_budget,
            seed=config.seed,
            shuffle=split == "train",
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        # Reading cached states is a copy: a core kept for a worker would lie idle.
        workers = config.workers if collate is raw else 0
        return make_loader(to_dataset(splits[split]), batches, collate, workers=workers)

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
        out / "checkpoints", accelerator, model, config.keep_checkpoints, identity(config, ids)
    )
    newest = checkpoints.newest() if config.resume else None
    if newest is not None:
        checkpoints.load(newest)
    seconds_before = progress.seconds
    stop = StopSignal()

    if accelerator.is_main_process:
        print_summary(config, fold.name, counts, parameters, accelerator, train, steps)
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
                del batch["utterance_ids"]
                # Gradients travel between processes once per step, with the last of its passes.
                with nullcontext() if number == len(group) else accelerator.no_sync(model):
                    output = model(
                        **send_to_device(batch, accelerator.device),
                        class_weights=weights,
                        reduce_sum=sum_over_processes,
                    )
                    accelerator.backward(output.loss / len(group))
                progress.losses.append(float(output.loss.detach()))
            if not math.isfinite(progress.losses[-1]):
                raise RuntimeError(
                    f"The loss is {progress.losses[-1]} in epoch {epoch + 1}, step {progress.step + 1}; "
                    "lower --learning_rate, or --clip_norm."
                )
            accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
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
        better = progress.best_score is None or score > progress.best_score
        if better:
            progress.best_score, progress.best_epoch = score, epoch + 1
            checkpoints.save_best()
        progress.history.append(
            {
                "epoch": epoch + 1,
                "rmm_probability": probability,
                "padding_share": train.batch_sampler.padding_share(),
                "train": {"loss": sum(progress.losses) / len(progress.losses)},
                "validation": metrics,
                "score": score,
            }
        )
        if accelerator.is_main_process:
            print(epoch_line(config, progress.history[-1], better), flush=True)
        accelerator.log(_flat(progress.history[-1]), step=epoch + 1)
        progress.epoch, progress.step, progress.losses = epoch + 1, 0, []
        checkpoints.save(progress.total_steps)

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
            "parameters": parameters,
            "epochs": progress.history,
            "best_epoch": progress.best_epoch,
            "select_by": config.select_by,
            "temperature": best.config.temperature,
            "validation": predictions["validation"].metrics(best.config, best.config.temperature),
            "test": predictions["test"].metrics(best.config, best.config.temperature),
            "test_ECE_before_temperature": predictions["test"].metrics(best.config)["ECE"],
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
            "versions": versions(),
            "wall_time_s": seconds_before + time.monotonic() - began,
        }
        write_run(out, best, processor, results, predictions, utterances)
        checkpoints.delete()
        print_test(results, out)


def leave_cores_to(workers: int, accelerator: Accelerator) -> None:
    """On a CPU, threads that outnumber the cores wait for each other and lose more than they gain."""
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(cores // accelerator.num_processes - workers, 1))


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
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched, but {accelerator.num_processes} would train: "
            f"{accelerator.device} cannot be shared by several. Launch one process."
        )
    return accelerator


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


def identity(config: TrainConfig, ids: dict[str, list[str]]) -> dict[str, Any]:
    """What makes a run this run: its flags, but for those that change no result, and its splits."""
    harmless = ("out", "cache_dir", "resume", "tracker", "checkpoint_steps", "keep_checkpoints")
    flags = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in harmless
    }
    digests = {name: hashlib.sha256("\n".join(ids[name]).encode()).hexdigest()[:16] for name in ids}
    return flags | {f"{name} split": digest for name, digest in digests.items()} | versions()


def cached_states(
    config: TrainConfig,
    model: MTMMModel,
    processor: MTMMProcessor,
    splits: dict[str, list[Utterance]],
    accelerator: Accelerator,
) -> CachedStates | None:
    """The frozen encoders' states of every utterance, encoded now where they never were; or None."""
    if config.cache_dir == "off" or (config.cache_dir is None and trainable_encoders(model)):
        return None
    folder = config.cache_dir or Path(config.out).parent / "cache"
    utterances = [utterance for split in splits.values() for utterance in split]
    cache = FeatureCache.open(
        folder, model.to(accelerator.device), processor, dtype=config.cache_dtype
    )
    cache.encode(
        utterances,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(cache.precision_line(splits["train"][:8]))
    return cache.collator(utterances, config.emotions, config.dimensions)


def calibrate(validation: Predictions, outputs: Sequence[str]) -> float:
    """The temperature that fits the validation labels best; 1 without any."""
    if "emotion" not in outputs or not (validation.emotion_labels >= 0).any():
        return 1.0
    return fit_temperature(validation.emotion_logits, validation.emotion_labels)


def versions() -> dict[str, str]:
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
    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    if results["config"]["lora_rank"]:
        model.config.save_pretrained(out / "adapter")  # again: the temperature is known now
        processor.save_pretrained(out / "adapter")
    write_predictions(out / "predictions.csv", predictions, utterances, model)
    test = predictions["test"]
    figures.plot_curves(results["epochs"], out / "figures" / "curves.png", results["select_by"])
    names = list(model.config.id2label.values())
    if results["test"]["confusion"] is not None:
        title = f"Test split, {len(test.utterance_ids)} utterances"
        figures.plot_confusion(
            results["test"]["confusion"], names, out / "figures" / "confusion.png", title
        )
    columns = [i for i, n in enumerate(model.config.dimension_names) if n in ("valence", "arousal")]
    if len(columns) == 2 and not any(map(math.isnan, test.dimension_labels[:, columns].min(0))):
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
    for part, (trained, frozen) in parameters.items():
        print(f"  {part:<15} {trained:>12,} parameters trained {frozen:>12,} frozen")
    print(
        f"  {config.epochs} epochs, {sum(steps)} steps; {accelerator.num_processes} x "
        f"{config.batch_size} x {config.accumulation} utterances a step at most; "
        f"{100 * train.batch_sampler.padding_share():.1f} % padding; {accelerator.device}, "
        f"precision {config.mixed_precision}",
        flush=True,
    )


def epoch_line(config: TrainConfig, epoch: dict[str, Any], best: bool) -> str:
    """One line: losses and validation metrics."""
    metrics = epoch["validation"]
    parts = [f"epoch {epoch['epoch']:>3}/{config.epochs}"]
    parts += [f"train loss {epoch['train']['loss']:.3f}", f"validation loss {metrics['loss']:.3f}"]
    return "  ".join(parts + metric_parts(metrics) + (["*"] if best else []))


def metric_parts(metrics: dict[str, Any]) -> list[str]:
    parts = [f"{name} {metrics[name]:.3f}" for name in ("UAR", "WAR") if metrics[name] is not None]
    return parts + [
        f"CCC {name} {ccc:.3f}" for name, ccc in metrics["CCC"].items() if ccc is not None
    ]


def print_test(results: dict[str, Any], out: Path) -> None:
    print(
        f"test ({results['splits']['test']['utterances']} utterances of "
        f"{', '.join(results['splits']['test']['speakers'])}; epoch {results['best_epoch']} by "
        f"{results['select_by']}): " + "  ".join(metric_parts(results["test"]))
    )
    untrained = set(results["config"]["dimensions"]) | {"emotion"}
    untrained -= set(results["model_config"]["trained_outputs"])
    if untrained:
        print(f"no labels, so not trained: {', '.join(sorted(untrained))}")
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
        "train/rmm_probability": epoch["rmm_probability"],
    }
    return {name: value for name, value in flat.items() if value is not None}


def explain(error: Exception) -> str:
    """One sentence for the user; of running out of memory, what to lower."""
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return (
            f"Out of memory ({str(error).splitlines()[0]}). Lower --batch_size (and raise "
            "--accumulation as much), --frame_budget or --unfreeze_..._layers, or add "
            "--gradient_checkpointing, --mixed_precision bf16 or --lora_rank; and choose another --out."
        )
    return str(error)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {explain(error)}")
