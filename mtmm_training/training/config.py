"""The settings of a run: what each means, its flag, its default, and which values are allowed.

Light to import (no torch, no transformers), so that wrong flags are refused at once.
"""

import argparse
import dataclasses
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from mtmm_training.data import hub
from mtmm_training.data.corpora import CORPORA
from mtmm_training.data.files import read_json
from mtmm_training.data.utterances import DIMENSIONS
from mtmm_training.training import places
from mtmm_training.training.presets import PRESETS, filled

SETTINGS_FILE = "settings.json"  # in a run's folder: what its results depend on, and its flags
LOWEST_MASKING = 0.1  # a lower probability of random modality masking counts as none

CHOICES: dict[str, Collection[str]] = {
    "preset": PRESETS,
    "corpus": CORPORA,
    "dimensions": DIMENSIONS,
    "modalities": ("audio", "text"),
    "on_error": ("stop", "skip"),
    "cache_dtype": ("float16", "bfloat16", "float32"),
    "augment": ("speed", "noise", "lowpass", "gain"),
    "class_weights": ("none", "balanced"),
    "labels": ("votes", "majority"),
    "reference": ("none", "domain", "speaker"),
    "mixed_precision": ("no", "bf16", "fp16"),
}
FROM_DATA = {"preset", "protocol"}  # chosen by choice.py where a command does not say them
# Flags of earlier versions.
RETIRED = {"rmm_text_share", "rmm_per_batch", "lora_alpha", "lora_dropout"}


@dataclass
class TrainConfig:
    """All that a run needs beside the weights, and the flags of its command; --help-all has seldom ones.

    Run:
        preset: Of flags not given; if not given, by the hours.
        out: Folder of this run's results.
        seed: Seed of weights, batches, dropout, modality masking, variants, and the groups of
            protocol grouped.
        resume: Go on from the newest checkpoint in --out. `--resume OUT` alone goes on with the
            flags of that run.
        select_by (seldom): Validation metric that chooses the best epoch: mean (of UAR and every CCC
            that has labels), UAR, WAR, macro_F1, CCC_valence, ...; last = the last epoch, whatever
            its scores, for validation splits that are too small to tell epochs apart.
        patience (seldom): Stop after so many epochs without a better one; if not given, never.
        checkpoint_steps (seldom): Write a checkpoint every so many steps, beside those at the end of
            each epoch; 0 = only those.
        keep_checkpoints (seldom): How many of the newest checkpoints to keep.
        tracker (seldom): Name of a tracker of accelerate, such as tensorboard or wandb; none = no
            tracker.

    Data:
        manifest: Tables of utterances as CSV, TSV, JSONL or Parquet. Several tables are several
            corpora, and ids become corpus/id.
        audio_dir: Folder that relative audio paths begin in; the manifest's own if not given.
        corpus: Name of a corpus that has a reader, instead of a manifest.
        corpus_dir: Folder of the corpus as its makers distribute it.
        corpus_options (seldom): Options of the corpus's reader as JSON, such as '{"labels": "all"}'.
        emotions: Emotions to predict; angry happy sad neutral if not given. With --model: the model's.
        dimensions: Dimensions to predict; valence arousal if not given. With --model: the model's.
        dimension_range: Lowest and highest value of the dimensions' labels; if not given, the
            corpus's, else 1 5. With --model: the model's.
        modalities: What the model sees, in training and test.
        on_error: What happens when a recording cannot be used. stop: the run ends. skip: all
            recordings are read before training, and the bad ones are left out of every split and
            named in results.json.
        label_map (seldom): JSON file with other names for emotions: {"anger": "angry", "calm": null}.
        speakers_unknown (seldom): Take each utterance without a speaker for a speaker of its own: scores
            are then too high, as one voice can be in training and test.
        labels: What emotions and dimensions are learned from. votes: what each listener said, where
            the data has it; a label without votes is one vote. majority: labels and means alone.
        group_by (seldom): Columns of the manifest by whose values the test split is scored, too;
            gender, where the data has it, if not given.
        corpus_exponent (seldom): Share of a corpus of n utterances in each epoch, as n to this power:
            1 = every utterance once, 0 = every corpus as often.

    Folds:
        protocol: How folds are made: speaker, session, leave_one_speaker_out, grouped or official;
            if not given, by the columns, and said.
        k: Number of folds of protocol grouped.
        fold: Number of the fold to train, from 0.
        folds_file (seldom): Folds that were saved earlier, instead of a protocol.
        script_disjoint (seldom): No script of the test split is in train or validation, and none of
            validation in train; without scripts, no transcript. With --folds_file: refuse folds that
            share any.
        improvised_only (seldom): Make the folds of improvised utterances alone.
        validation_speakers (seldom): With --test_speakers: speakers of the validation split; all
            others train.
        test_speakers (seldom): With --validation_speakers: speakers of the test split.

    Cache:
        cache_dir: Folder of the frozen encoders' states, shared by all folds and runs. If not given,
            cache/ beside --out where both encoders are frozen. off = encode again in every epoch.
        cache_dtype (seldom): Precision of the states.
        verify_cache (seldom): Compare the checksum of every file of the cache before use.
        encode_only (seldom): Fill the cache with all that any fold of the protocol needs, and train
            nothing.

    Masking and variants:
        rmm_start: Random modality masking: probability in the first epoch, from 0.1 to 1; 0 = off.
        mask_frames (seldom): Share of an utterance's acoustic states that is hidden, in spans, 0 to
            1; needs the cache.
        vote_dropout (seldom): Probability that a vote is left out in an epoch, 0 to 1; one is always
            kept.
        augment: Changes that make variants of each recording, each of random strength.
        augment_variants (seldom): Number of variants of each recording; it and they take turns by
            epoch.

    Model:
        model: Folder or Hub id of an MTMM model to train on, instead of encoders.
        audio_encoder: Folder or Hub id of the acoustic encoder.
        text_encoder: Folder or Hub id of the linguistic encoder.
        model_config: Fields of MTMMConfig as JSON, such as '{"encoder_layers": "weighted"}'.

        linear_path (seldom): Fit a regression on pooled states into the model, beside the fusion;
            what the fusion adds to it is judged on the validation split. Needs the cache. Where the
            preset is chosen from the data, corpora of less than ten hours without votes get it.
        reference: Unlabelled recordings that the test split's answers may use: those of its corpus
            (domain), or of each speaker too. They are the test split's own. Needs the cache.

    What trains:
        unfreeze_audio_layers (seldom): Number of the acoustic encoder's last layers that train; 0 =
            as the model's configuration says.
        unfreeze_text_layers (seldom): Number of the linguistic encoder's last layers that train; 0 =
            as the model's configuration says.
        lora_rank: Rank of LoRA adapters in the encoders' attention; 0 = no adapters.

    Optimisation:
        epochs: Passes over the training split.
        batch_size: Utterances per process and forward pass, at most.
        frame_budget (seldom): Acoustic frames (50 a second) per process and forward pass, at most.
        accumulation: Forward passes per optimiser step, all of one weight; CCC is of each pass alone.
        learning_rate: Learning rate of fusion, heads and LoRA adapters.
        encoder_learning_rate: Learning rate of encoder layers that train.
        layer_learning_rate (seldom): Learning rate of the weights of an encoder's layers, which at a
            lower one stay nearly equal.
        weight_decay (seldom): AdamW's weight decay, of matrices only.
        warmup_share (seldom): Share of the steps in which the learning rate rises, 0 to 1.
        clip_norm (seldom): Largest norm of the gradient.
        class_weights (seldom): balanced = rare emotions count more in the cross-entropy.

    Machine:
        mixed_precision: Precision of forward passes; DeBERTa's attention can overflow in fp16.
        gradient_checkpointing (seldom): Keep few activations and compute them again: less memory,
            about a third more time.
        compile (seldom): Use torch.compile, which takes minutes before the first step; not with
            --gradient_checkpointing. From the cache on one GPU, record CUDA graphs instead.
        workers: Processes that decode audio ahead of the step.
    """

    preset: str = "paper"
    out: str = "out/run"
    seed: int = 0
    resume: bool = False
    select_by: str = "mean"
    patience: int | None = None
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    tracker: str = "tensorboard"

    manifest: list[str] | None = None
    audio_dir: str | None = None
    corpus: str | None = None
    corpus_dir: str | None = None
    corpus_options: str = "{}"
    emotions: list[str] = field(default_factory=list)
    dimensions: list[str] = field(default_factory=list)
    dimension_range: list[float] = field(default_factory=list)
    modalities: list[str] = field(default_factory=lambda: ["audio", "text"])
    on_error: str = "stop"
    label_map: str | None = None
    speakers_unknown: bool = False
    labels: str = "votes"
    group_by: list[str] | None = None
    corpus_exponent: float = 1.0

    protocol: str = "speaker"
    k: int | None = None
    fold: int = 0
    folds_file: str | None = None
    script_disjoint: bool = False
    improvised_only: bool = False
    validation_speakers: list[str] = field(default_factory=list)
    test_speakers: list[str] = field(default_factory=list)

    cache_dir: str | None = None
    cache_dtype: str = "float16"
    verify_cache: bool = False
    encode_only: bool = False

    rmm_start: float = 0.8
    mask_frames: float = 0.0
    vote_dropout: float = 0.0
    augment: list[str] = field(default_factory=list)
    augment_variants: int = 3

    model: str | None = None
    audio_encoder: str = "facebook/hubert-large-ll60k"
    text_encoder: str = "microsoft/deberta-v3-large"
    model_config: str = "{}"
    linear_path: bool = False
    reference: str = "none"

    unfreeze_audio_layers: int = 0
    unfreeze_text_layers: int = 0
    lora_rank: int = 0

    epochs: int = 20
    batch_size: int = 16
    frame_budget: int | None = None
    accumulation: int = 1
    learning_rate: float = 3e-4
    encoder_learning_rate: float = 1e-5
    layer_learning_rate: float = 3e-2
    weight_decay: float = 0.01
    warmup_share: float = 0.08
    clip_norm: float = 1.0
    class_weights: str = "none"

    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = 1

    @classmethod
    def from_record(cls, flags: Mapping[str, Any]) -> "TrainConfig":
        """The settings that a run of this or an earlier version has recorded."""
        return cls(**{name: value for name, value in flags.items() if name not in RETIRED})

    def check(self) -> None:
        """Raise ValueError for the first flag whose value is not allowed."""
        for name, holds, allowed in (*_ranges(self), *_choices(self), *_contradictions(self)):
            if not holds:
                value = getattr(self, name)
                raise ValueError(f"`--{name}` is {value!r}; it must be {allowed}.")

    def resolve(self) -> "TrainConfig":
        """The same settings with the outputs that --model brings, or the defaults, filled in.

        Raises:
            ValueError: --model has other outputs than those that are asked for.
        """
        from configuration_mtmm import MTMMConfig  # imports transformers

        known = MTMMConfig() if self.model is None else MTMMConfig.from_pretrained(self.model)
        emotions, scale = list(known.emotion_names), list(known.dimension_range)
        if self.model is not None:
            # Rows of its heads would come to mean something else, or be missing.
            for name, given, own in (
                ("emotions", self.emotions, emotions),
                ("dimensions", sorted(self.dimensions), sorted(known.dimension_names)),
                ("dimension_range", self.dimension_range, scale),
            ):
                if given and given != own:
                    raise ValueError(f"`--{name}` is {getattr(self, name)}, but --model has {own}.")
        elif self.corpus is not None:
            scale = CORPORA[self.corpus].get("dimension_range", scale)
        dimensions = self.dimensions or known.dimension_names
        return dataclasses.replace(
            self,
            manifest=self.manifest and [hub.pinned(place) for place in self.manifest],
            emotions=self.emotions or emotions,
            dimensions=[name for name in DIMENSIONS if name in dimensions],
            dimension_range=self.dimension_range or scale,
        )


ADVANCED = set(re.findall(r"(\w+) \(seldom\):", TrainConfig.__doc__ or ""))


# ---- allowed values ----------------------------------------------------------------------------

Rule = tuple[str, bool, str]  # name of a flag, whether its value is allowed, what is


def _ranges(config: TrainConfig) -> Iterator[Rule]:
    """Numbers that are too low or too high."""
    above_0 = math.ulp(0.0)
    for names, low, high, allowed in (
        ("epochs batch_size accumulation keep_checkpoints augment_variants patience frame_budget",
         1, math.inf, "a whole number of at least 1"),
        ("fold workers checkpoint_steps unfreeze_audio_layers unfreeze_text_layers lora_rank",
         0, math.inf, "a whole number from 0"),
        ("seed", 0, 2**32 - 1, "a whole number from 0, below 2 to the 32nd"),
        ("learning_rate encoder_learning_rate layer_learning_rate clip_norm",
         above_0, math.nextafter(math.inf, 0), "a finite number above 0"),
        ("weight_decay", 0, math.nextafter(math.inf, 0), "a finite number from 0"),
        ("warmup_share rmm_start corpus_exponent mask_frames vote_dropout", 0, 1, "from 0 to 1"),
    ):  # fmt: skip
        for name in names.split():
            value = getattr(config, name)
            yield name, value is None or low <= value <= high, allowed


def _choices(config: TrainConfig) -> Iterator[Rule]:
    """Words that are none of those that are known."""
    for name, known in CHOICES.items():
        value = getattr(config, name)
        given = value if isinstance(value, list) else [value]
        yield name, value is None or set(given) <= set(known), f"of {', '.join(known)}"


def _contradictions(config: TrainConfig) -> Iterator[Rule]:
    """Flags that nothing would read, that exclude each other, or that mean nothing."""
    c, default = config, TrainConfig()
    named = bool(c.test_speakers)
    fixed = named or c.folds_file is not None
    audio, off = "audio" in c.modalities, c.cache_dir == "off"
    fields, options = _json_object(c.model_config), _json_object(c.corpus_options)
    quoted = """a JSON object in single quotes, such as '{"NAME": "VALUE"}'"""
    without = "left out without audio in --modalities"
    yield "out", bool(c.out.strip()), "the name of a folder, such as out/run"
    yield "manifest", (c.manifest is None) != (c.corpus is None), "given, or --dataset or --corpus"
    yield "audio_dir", c.audio_dir is None or c.corpus is None, "left out with --corpus"
    yield "corpus_dir", (c.corpus is None) == (c.corpus_dir is None), "given with --corpus alone"
    yield "corpus_options", options is not None, quoted
    yield "corpus_options", c.corpus is not None or not options, "left out without --corpus"
    names = {name.strip() for name in c.emotions} - {""}
    different = names == set(c.emotions) and len(names) == len(c.emotions)
    yield "emotions", different, "different names, none blank or padded with spaces"
    low, high = c.dimension_range if len(c.dimension_range) == 2 else (0.0, -1.0)
    scale = not c.dimension_range or -math.inf < low < high < math.inf
    yield "dimension_range", scale, "two finite numbers, the lower one first"
    both = bool(c.validation_speakers) == named
    yield "validation_speakers", both, "given together with --test_speakers"
    yield "folds_file", not (c.folds_file and named), "left out with --test_speakers"
    yield "k", c.k is None or not fixed, "left out with --test_speakers or --folds_file"
    yield "script_disjoint", not (c.script_disjoint and named), "False with --test_speakers"
    made = not (c.improvised_only and fixed)
    yield "improvised_only", made, "False with --test_speakers or --folds_file"
    # Class weights count the whole split, not what an epoch draws of it.
    balanced = c.class_weights != "none"
    yield "corpus_exponent", c.corpus_exponent == 1 or not balanced, "1 with --class_weights"
    yield "patience", c.patience is None or c.select_by != "last", "left out with --select_by last"
    masked = c.rmm_start == 0 or c.rmm_start >= LOWEST_MASKING
    yield "rmm_start", masked, f"0, or from {LOWEST_MASKING} on: a lower probability counts as none"
    yield "augment", audio or not c.augment, without
    yield "mask_frames", audio or not c.mask_frames, without
    yield "reference", audio or c.reference == "none", without
    for name, used, unused in (
        ("encode_only", not off, "with --cache_dir off"),
        ("audio_encoder", c.model is None, "with --model, which has its own"),
        ("text_encoder", c.model is None, "with --model, which has its own"),
    ):
        yield name, used or getattr(c, name) == getattr(default, name), f"left out {unused}"
    yield "model_config", fields is not None, quoted
    for name in ("id2label", "dimension_names", "dimension_range"):
        yield "model_config", name not in (fields or {}), f"without {name}, which has its own flag"
    for modality in ("audio", "text"):
        name, frozen = f"unfreeze_{modality}_layers", f"freeze_{modality}_encoder"
        layers, seen = getattr(c, name), modality in c.modalities
        yield name, not (layers and c.lora_rank), "0 with --lora_rank"
        yield name, not layers or seen, f"0 without {modality} in --modalities"
        said = (fields or {}).get(frozen, True) or not (layers or c.lora_rank)
        yield "model_config", said, f"without {frozen}=false with --lora_rank or --{name}"


def _json_object(text: str) -> dict[str, Any] | None:
    """What a flag of JSON says; None if it is no JSON object."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


# ---- flags -------------------------------------------------------------------------------------


def parse(words: Sequence[str] | None = None) -> TrainConfig:
    """The settings of a command line, this process's own if None; nothing is read."""
    return from_options(parse_options(words))


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line, this process's own if None; those that are not given are absent."""
    parser = argparse.ArgumentParser(
        description="Train MTMM on one fold, and test once.", allow_abbrev=False
    )
    add_flags(parser)
    return parser.parse_args(words)


def add_flags(
    parser: argparse.ArgumentParser,
    only: Collection[str] | None = None,
    *,
    advanced: Callable[[str], str] = str,
) -> None:
    """Give a parser a flag for every field of TrainConfig, in groups.

    Flags that are not given leave no trace in the parsed options; see [`from_options`].

    Args:
        parser: Gets the flags.
        only: Names of the fields that get one; all if None.
        advanced: Marks the help text of a flag that is seldom needed.
    """
    kinds, defaults = get_type_hints(TrainConfig), dataclasses.asdict(TrainConfig())
    for title, helps in documented().items():
        chosen = {name: text for name, text in helps.items() if only is None or name in only}
        if not chosen:
            continue
        group = parser.add_argument_group(title)
        for name, text in chosen.items():
            options = _argument(kinds[name])
            if name == "resume":
                options |= {"type": _resume, "metavar": "OUT"}
            if name in CHOICES:
                options |= {"choices": list(CHOICES[name]), "metavar": "NAME"}
                text += f" One of {', '.join(CHOICES[name])}."
            if name == "augment":
                options["nargs"] = "*"
            if defaults[name] not in (None, False, [], "{}") and name not in FROM_DATA:
                shown = defaults[name]
                text += f" ({' '.join(shown) if isinstance(shown, list) else shown})"
            text = advanced(text) if name in ADVANCED else text
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **options)
            if name == "manifest":
                hub.add_flags(group.add_argument, advanced)


def documented() -> dict[str, dict[str, str]]:
    """Help texts by group and field, from the docstring of TrainConfig."""
    groups: dict[str, dict[str, str]] = {}
    for line in inspect.cleandoc(TrainConfig.__doc__ or "").splitlines()[1:]:
        if title := re.fullmatch(r"(\S.*):", line):
            helps = groups.setdefault(title[1].lower(), {})
        elif entry := re.fullmatch(r" {4}(\w+)(?: \(seldom\))?: (.*)", line):
            name = entry[1]
            helps[name] = entry[2]
        elif line:
            helps[name] += f" {line.strip()}"
    return groups


def _argument(kind: Any) -> dict[str, Any]:
    """What argparse needs to know of a field's type, such as bool, int | None or list[str]."""
    if isinstance(kind, UnionType):
        return _argument(get_args(kind)[0])  # the other part is None
    if get_origin(kind) is list:
        return _argument(get_args(kind)[0]) | {"nargs": "+"}
    if kind is bool:
        return {"type": _boolean, "nargs": "?", "const": True, "metavar": "True|False"}
    return {"type": kind} | ({"metavar": "N" if kind is int else "X"} if kind is not str else {})


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be True or False")
    return text.lower() == "true"


def _resume(text: str) -> bool | str:
    """True, False, or the folder of a run."""
    return _boolean(text) if text.lower() in ("true", "false") else text


def from_options(options: argparse.Namespace) -> TrainConfig:
    """The settings that parsed flags describe; what was not given has its default.

    With `--resume OUT`, what was not given is as that run has recorded it.

    Raises:
        FileNotFoundError, ValueError: OUT has no record of a run, or a damaged one.
    """
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if named := hub.places_of(options):
        given["manifest"] = given.get("manifest", []) + named
    folder = given.get("resume")
    if isinstance(folder, str):
        flags = read_json(Path(folder, SETTINGS_FILE), "flags")["flags"]
        recorded = TrainConfig.from_record(places.found(flags, folder))
        return dataclasses.replace(recorded, **given | {"out": folder, "resume": True})
    # Flags of accelerate's launcher are defaults.
    if "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in os.environ:
        steps = int(os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"])
        given.setdefault("accumulation", steps)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        given.setdefault("mixed_precision", os.environ["ACCELERATE_MIXED_PRECISION"])
    return TrainConfig(**filled(given))
