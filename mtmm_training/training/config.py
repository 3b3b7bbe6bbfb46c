"""The flags of train_accelerate.py: their defaults, their help texts, and which values are allowed."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configuration_mtmm import MTMMConfig
from mtmm_training.batches.augment import CHANGES
from mtmm_training.batches.masking import RMM_FLOOR
from mtmm_training.data.corpora import CORPORA, CORPUS_FLAGS
from mtmm_training.data.utterances import DIMENSIONS

NO_OPTIONS = CORPUS_FLAGS | {"official_split": "--protocol official"}


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
    seed: int = _flag(
        0, "Of weights, batches, dropout, modality masking, and the groups of protocol grouped."
    )

    # Data and fold
    manifest: list[str] | None = _flag(
        None,
        "CSV, TSV, JSONL or Parquet tables of utterances (see README), one or several; of several, ids "
        "become corpus/id.",
    )
    audio_dir: str | None = _flag(
        None, "Where a manifest's relative audio paths begin; its folder if not given."
    )
    corpus: str | None = _flag(None, "Name of a corpus with a reader, instead of a manifest.")
    corpus_dir: str | None = _flag(None, "Folder of the corpus as distributed.")
    corpus_options: str = _flag(
        "{}", 'Options of the corpus\'s reader as JSON, for example \'{"labels": "all"}\'.'
    )
    emotions: list[str] = _flag(
        [], "Emotions to predict; angry happy sad neutral if not given. With --model: its own."
    )
    dimensions: list[str] = _flag(
        [], "Dimensions to predict; valence arousal if not given. With --model: its own."
    )
    dimension_range: list[float] = _flag(
        [],
        "Lowest and highest value of their labels, one scale for all; if not given that of the corpus, else "
        "1 5. With --model: its own.",
    )
    modalities: list[str] = _flag(
        ["audio", "text"], "What the model sees, in training and test.", choices=["audio", "text"]
    )
    protocol: str = _flag(
        "speaker",
        "How folds are made: speaker, session, leave_one_speaker_out, grouped or official.",
    )
    k: int | None = _flag(None, "Number of folds of protocol grouped.")
    fold: int = _flag(0, "Which fold of the protocol, or of --folds_file, from 0.")
    folds_file: str | None = _flag(None, "Folds saved earlier, instead of a protocol.")
    script_disjoint: bool = _flag(
        False,
        "Drop from train and validation the scripts (without scripts: the transcripts) of test, and from "
        "train those of validation; with --folds_file: refuse folds that share any.",
    )
    improvised_only: bool = _flag(False, "Make the folds of improvised utterances alone.")
    validation_speakers: list[str] = _flag(
        [], "With --test_speakers: the fold by names; all others train."
    )
    test_speakers: list[str] = _flag([], "See --validation_speakers.")
    corpus_exponent: float = _flag(
        1.0,
        "Of several corpora, one of n utterances gets a share of each epoch in proportion to n to this "
        "power: 1 = every utterance once, 0 = every corpus as much.",
    )

    on_error: str = _flag(
        "stop",
        "What a recording that cannot be used does: stop = the run ends; skip = all are read before "
        "training, and such utterances are left out of every split and named in results.json.",
        choices=["stop", "skip"],
    )

    cache_dir: str | None = _flag(
        None,
        "Folder that keeps frozen encoders' states, for all folds and runs; if not given, cache/ beside "
        "--out where both encoders are frozen; off = encode again in every epoch.",
    )
    cache_dtype: str = _flag(
        "float16", "Precision of those states.", choices=["float16", "bfloat16", "float32"]
    )

    encode_only: bool = _flag(
        False, "Fill the cache with all that any fold of the protocol needs; train nothing."
    )

    # Augmentation, of the training split alone
    augment: list[str] = _flag(
        [],
        "What the variants of a recording differ in, each by a random strength: "
        + ", ".join(CHANGES)
        + ".",
        choices=list(CHANGES),
    )
    augment_variants: int = _flag(
        3, "With --augment: so many variants of each recording; it and they take turns by epoch."
    )
    mask_frames: float = _flag(
        0.0, "Share of an utterance's acoustic states hidden in spans, 0 to 1; from the cache only."
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
    accumulation: int = _flag(
        1,
        "Forward passes per optimiser step. Each counts alike, so utterances of a smaller last pass weigh "
        "more; CCC is of each pass alone.",
    )
    learning_rate: float = _flag(3e-4, "Of fusion, heads and LoRA's adapters.")
    encoder_learning_rate: float = _flag(1e-5, "Of the encoders' own parameters, where they train.")
    layer_learning_rate: float = _flag(
        3e-2,
        "Of the logits that weight an encoder's layers; at a lower rate they stay nearly equal.",
    )
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
        0.8,
        f"Random modality masking: its probability in the first epoch, from {RMM_FLOOR} on; 0 = off.",
    )
    rmm_text_share: float = _flag(0.6, "How often it is the text that is masked.")
    rmm_per_batch: bool = _flag(False, "Draw the masking once per batch, not per utterance.")
    select_by: str = _flag(
        "mean",
        "Validation metric of the best epoch: mean (of UAR and every CCC that has labels), UAR, WAR, "
        "macro_F1, CCC_valence, ...; last: the last epoch is kept, whatever its scores, for where the "
        "validation split is too small to tell epochs apart.",
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
        "torch.compile: costs minutes before the first step; for long runs. Verified from the cache, on "
        "a CPU. Not with --gradient_checkpointing.",
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
        # An empty name is the current folder, which nobody means a run to fill.
        self._require("out", bool(self.out.strip()), "the name of a folder, such as out/run")
        self._check_numbers()
        self._check_data()
        self._check_places()
        self._check_used()
        self._check_outputs()
        self._require(
            "encode_only",
            not (self.encode_only and self.cache_dir == "off"),
            "False without a cache",
        )
        fields = self._json_object("model_config")
        for name in ("id2label", "dimension_names", "dimension_range"):
            self._require(
                "model_config", name not in fields, f"without {name}, which has its own flag"
            )
        self._check_encoders(fields)

    def _check_numbers(self) -> None:
        """Refuse numbers that are too low or too high."""
        whole = ("epochs", "batch_size", "accumulation", "keep_checkpoints", "augment_variants")
        for name in whole:
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("fold", "workers", "checkpoint_steps"):
            self._require(name, getattr(self, name) >= 0, "a whole number from 0")
        for name in ("patience", "frame_budget"):
            value = getattr(self, name)
            self._require(
                name, value is None or value >= 1, "a whole number of at least 1, or left out"
            )
        self._require(
            "patience",
            self.patience is None or self.select_by != "last",
            "left out with --select_by last",
        )
        rates = ("learning_rate", "encoder_learning_rate", "layer_learning_rate")
        for name in (*rates, "clip_norm", "lora_alpha"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number from 0")
        self._require("seed", 0 <= self.seed < 2**32, "a whole number from 0, below 2 to the 32nd")
        shares = ("warmup_share", "rmm_start", "rmm_text_share", "corpus_exponent", "mask_frames")
        for name in shares:
            self._require(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        self._require(
            "rmm_start",
            self.rmm_start == 0 or self.rmm_start >= RMM_FLOOR,
            f"0 or from {RMM_FLOOR} on: a lower probability counts as none",
        )
        self._require(  # weights count the split, not what an epoch draws of it
            "corpus_exponent",
            self.corpus_exponent == 1 or self.class_weights == "none",
            "1 with --class_weights",
        )
        for name in ("augment", "mask_frames"):
            self._require(
                name,
                "audio" in self.modalities or not getattr(self, name),
                "left out without audio in --modalities",
            )

    def _check_data(self) -> None:
        """Refuse flags of the data and its folds that are not allowed, or contradict each other."""
        self._require(
            "manifest", (self.manifest is None) != (self.corpus is None), "given, or else --corpus"
        )
        self._require(
            "validation_speakers",
            bool(self.validation_speakers) == bool(self.test_speakers),
            "given together with --test_speakers",
        )
        named = bool(self.test_speakers)
        self._require(
            "folds_file", not (self.folds_file and named), "left out with --test_speakers"
        )
        self._require(
            "k",
            self.k is None or not (named or self.folds_file),
            "left out with --test_speakers or --folds_file",
        )
        self._require(
            "script_disjoint", not (self.script_disjoint and named), "False with --test_speakers"
        )
        self._require(
            "improvised_only",
            not (self.improvised_only and (named or self.folds_file is not None)),
            "False with --test_speakers or --folds_file",
        )
        self._require(
            "corpus", self.corpus is None or self.corpus in CORPORA, f"one of {', '.join(CORPORA)}"
        )
        self._require(
            "corpus_dir",
            (self.corpus is None) == (self.corpus_dir is None),
            "given with --corpus, and only with it",
        )
        self._require(
            "audio_dir",
            self.audio_dir is None or self.manifest is not None,
            "left out with --corpus",
        )
        options = self._json_object("corpus_options")
        self._require(
            "corpus_options",
            self.corpus is not None or not options,
            "left out without --corpus: a manifest has no reader that takes options",
        )
        for name, flag in NO_OPTIONS.items():
            self._require("corpus_options", name not in options, f"without {name}: give {flag}")

    def _check_places(self) -> None:
        """Refuse the name of a folder that is not there: the Hub's answer to it explains nothing."""
        for name in ("model", "audio_encoder", "text_encoder"):
            value = getattr(self, name)
            if value is None:
                continue
            path = Path(value)
            local = path.is_absolute() or value.startswith((".", "~")) or len(path.parts) > 2
            self._require(name, path.is_dir() or not local, "a folder that is there, or a Hub id")

    def _check_used(self) -> None:
        """Refuse flags that would be read by nothing."""
        for name, used, unused in (
            ("audio_encoder", self.model is None, "with --model, which has its own"),
            ("text_encoder", self.model is None, "with --model, which has its own"),
            ("cache_dtype", self.cache_dir != "off", "with --cache_dir off"),
            ("augment_variants", bool(self.augment), "without --augment"),
            ("lora_alpha", self.lora_rank > 0, "without --lora_rank"),
            ("lora_dropout", self.lora_rank > 0, "without --lora_rank"),
        ):
            default = type(self).__dataclass_fields__[name].default
            self._require(name, used or getattr(self, name) == default, f"left out {unused}")

    def _check_outputs(self) -> None:
        """Refuse outputs that no model can have; none given is for `resolve`."""
        names = self.emotions or []
        self._require(
            "emotions",
            len(set(names)) == len(names) and all(n and n == n.strip() for n in names),
            "different names, none of them blank or padded with spaces",
        )
        known = ", ".join(DIMENSIONS)
        for name in self.dimensions or []:
            self._require("dimensions", name in DIMENSIONS, f"one or more of {known}")
        limits = self.dimension_range or []
        self._require(
            "dimension_range",
            not limits
            or (len(limits) == 2 and all(map(math.isfinite, limits)) and limits[0] < limits[1]),
            "two finite numbers, the lower one first, such as 1 5",
        )

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
        """The same flags with the outputs that --model brings, or the defaults, filled in.

        Raises:
            ValueError: --model has other outputs than those that are asked for.
        """
        known = MTMMConfig() if self.model is None else MTMMConfig.from_pretrained(self.model)
        if self.model is not None:
            # Rows of its heads would come to mean something else, or be missing.
            for name, own in (
                ("emotions", self.emotions == list(known.emotion_names)),
                ("dimensions", set(self.dimensions) == set(known.dimension_names)),
                ("dimension_range", self.dimension_range == list(known.dimension_range)),
            ):
                low, high = known.dimension_range
                self._require(
                    name,
                    own or not getattr(self, name),
                    f"left out with --model, which predicts {', '.join(known.emotion_names)}, and "
                    f"{', '.join(known.dimension_names)} from {low:g} to {high:g}; for others begin with "
                    "encoders",
                )
        corpus_range = None
        if self.model is None and self.corpus is not None:
            corpus_range = CORPORA[self.corpus].load().DIMENSION_RANGE
        return dataclasses.replace(
            self,
            emotions=self.emotions or list(known.emotion_names),
            dimensions=[
                name for name in DIMENSIONS if name in (self.dimensions or known.dimension_names)
            ],
            dimension_range=self.dimension_range or list(corpus_range or known.dimension_range),
        )

    def _json_object(self, name: str) -> dict[str, Any]:
        """What a flag of JSON says."""
        quoted = (
            "a JSON object in single quotes, which keep its double quotes from the shell, such as "
            """'{"NAME": "VALUE"}'"""
        )
        content: Any = None
        problem = ""
        try:
            content = json.loads(getattr(self, name))
        except ValueError as error:
            problem = f" ({error})"
        self._require(name, isinstance(content, dict), quoted + problem)
        return dict(content)

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"`--{name}` is {getattr(self, name)!r}; it must be {allowed}.")
