"""The configuration of MTMM: all that the weights need, nothing that only a training run needs.

This file is uploaded to the Hub beside the weights. It imports transformers and huggingface_hub only.
"""

import copy
import difflib
from collections.abc import Callable, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

EMOTIONS = ("angry", "happy", "sad", "neutral")  # IEMOCAP's four classes, excited merged into happy

# The two encoders of the paper, as their published config.json files describe them. The library's
# default configurations differ where it matters: HubertConfig() normalises over time (group norm),
# DebertaV2Config() has absolute positions only.
HUBERT_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "feat_proj_dropout": 0.1,
    "layerdrop": 0.0,  # a dropped layer has no gradient, and DistributedDataParallel stops
    "apply_spec_augment": False,  # it fails on recordings shorter than ten frames
}
DEBERTA_V3_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 128100,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
}

# Of config.json and of the weights' names. Raise it with any change that old code would misread, and
# add the step from the version before to MIGRATIONS; 0 is what was saved before there was a number.
FORMAT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: dict}

DTYPES = ("float32", "float16", "bfloat16", "float64")
LARGEST_SIZE = 1_000_000  # of widths and counts; what is larger was mistyped, and fills any memory
LARGEST_NUMBER = 1e30  # float32, in which all is computed, has room for its products

AUTO_MAP = {
    "AutoConfig": "configuration_mtmm.MTMMConfig",
    "AutoModel": "modeling_mtmm.MTMMModel",
    "AutoModelForAudioClassification": "modeling_mtmm.MTMMModel",
    "AutoProcessor": "processing_mtmm.MTMMProcessor",
}
CUSTOM_PIPELINES = {
    "speech-emotion-recognition": {
        "impl": "pipeline_mtmm.MTMMPipeline",
        "pt": ["AutoModelForAudioClassification"],
        "type": "multimodal",
    }
}


def with_value_errors(cls: Any) -> Any:
    """Let a class made `@strict` refuse wrong types by ValueError, as it refuses wrong values.

    The errors of `@strict` are neither ValueErrors nor TypeErrors, so nobody expects them.
    """
    set_strictly = cls.__setattr__

    def set_plainly(self: Any, name: str, value: Any) -> None:
        try:
            set_strictly(self, name, value)
        except StrictDataclassFieldValidationError as error:
            allowed = cls.__dataclass_fields__[name].type
            raise ValueError(
                f"{cls.__name__}: `{name}={value!r}` is not allowed; its type must be "
                f"{allowed.__name__ if isinstance(allowed, type) else allowed}."
            ) from error

    cls.__setattr__ = set_plainly
    return cls


@with_value_errors
@strict
class MTMMConfig(PreTrainedConfig):
    """Configuration of [`MTMMModel`]; the defaults are the paper's model.

    Values are checked when the configuration is made and again when a model is built from it.

    Args:
        audio_config (`dict` or `PreTrainedConfig`): The acoustic encoder: any transformers encoder
            on waveforms (HuBERT, wav2vec 2.0, WavLM), or Whisper, of which only the encoder is
            built. None is HuBERT-large.
        text_config (`dict` or `PreTrainedConfig`): The linguistic encoder (BERT, RoBERTa,
            DeBERTa-v2/v3, ...). None is DeBERTaV3-large.
        encoder_layers (`str`): "last": the encoders' last hidden states. "weighted": a learned
            softmax-weighted sum over their hidden states, each normalised first (SUPERB,
            Yang et al. 2021, arXiv 2105.01051).
        audio_layers (`tuple[int]`): Which of the acoustic encoder's hidden states "weighted"
            mixes, 0 = the input of its first layer; None = all of them.
        text_layers (`tuple[int]`): The same for the linguistic encoder.
        acoustic_stride (`int`): So many consecutive frames are averaged into one acoustic state,
            before everything else; 1 = none are, as in the paper. 5 turns 50 frames a second into
            10 states and makes fusion and cache about 5 times cheaper (docs/LOG.md has its effect).
        hidden_size (`int`): Width of the fusion, of the bridge tokens and of `fused_state`.
        num_attention_heads (`int`): Attention heads in refinement and interaction; must divide
            `hidden_size`.
        intermediate_size (`int`): Width of the feed-forward parts of refinement and interaction.
        num_refinement_layers (`int`): Self-attention layers per modality before the fusion.
        num_interaction_layers (`int`): Cross-attention layers of the bridge tokens.
        num_bridge_tokens (`int`): Learned tokens in each of the two sets (30 in the paper).
        bridge_wiring (`str`): "crossed": keys from one modality, values from the other, brought
            onto the keys' time axis. "direct": keys and values from the same modality.
        use_refinement (`bool`): False leaves the refinement layers out.
        use_bridge_tokens (`bool`): False leaves the bridge tokens out: each modality's states
            query the other modality.
        hidden_act (`str`): Activation of the feed-forward parts and of the heads.
        hidden_dropout (`float`): Dropout on the outputs of attention and feed-forward parts, 0 to 1.
        attention_dropout (`float`): Dropout on attention weights, 0 to 1.
        head_dropout (`float`): Dropout inside the two heads, 0 to 1.
        layer_norm_eps (`float`): Epsilon of the layer norms of fusion and heads.
        initializer_range (`float`): Standard deviation of the initial weights; None is
            1 / √`hidden_size`, which keeps the size of states whatever the width.
        id2label (`dict[int, str]`): Emotion names by index; the default is angry, happy, sad,
            neutral. `label2id` follows from it and is refused if it disagrees.
        dimension_names (`tuple[str]`): Names of the regressed dimensions, always in this order;
            the default is valence, arousal.
        dimension_range (`tuple[float]`): Lowest and highest value of every dimension: the scale
            of the labels and of the predictions. The default is IEMOCAP's 1 to 5.
        emotion_loss_weight (`float`): Weight of the cross-entropy (h1 in the paper).
        dimension_loss_weights (`tuple[float]`): Weight of 1 − CCC for each dimension (h2, h3);
            None is 0.33 each.
        label_smoothing (`float`): Label smoothing of the cross-entropy, 0 to 1.
        temperature (`float`): Emotion logits are divided by it before the softmax that the
            pipeline shows; fitted on validation data (Guo et al. 2017, arXiv 1706.04599).
        freeze_audio_encoder (`bool`): Build the acoustic encoder without gradients.
        freeze_text_encoder (`bool`): Build the linguistic encoder without gradients.
        trained_outputs (`tuple[str]`): Which of "emotion" and the dimensions were ever trained
            with labels. The pipeline prints no number for the others.
        format_version (`int`): Of the saved files. A newer one than this code knows is refused, an
            older one is migrated.

    Raises:
        ValueError: A value or its type is not allowed; the message names field, value and what is
            allowed.

    Source: paper, sections on architecture and training; loss weights and 30 bridge tokens from a
    re-implementation; head shapes are ours.
    """

    model_type = "mtmm"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(AutoConfig, model_type="hubert", init_kwargs=HUBERT_LARGE),
        "text_config": SubConfigSpec(
            AutoConfig, model_type="deberta-v2", init_kwargs=DEBERTA_V3_LARGE
        ),
    }
    # Trainer gathers every output that is not named here.
    keys_to_ignore_at_inference = [
        "emotion_loss",
        "dimension_loss",
        "fused_state",
        "bridge_states",
        "acoustic_bridge_attentions",
        "linguistic_bridge_attentions",
        "hidden_states",
    ]

    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    encoder_layers: str = "last"
    audio_layers: list[int] | tuple[int, ...] | None = None
    text_layers: list[int] | tuple[int, ...] | None = None
    acoustic_stride: int = 1
    hidden_size: int = 1024
    num_attention_heads: int = 16
    intermediate_size: int = 2048
    num_refinement_layers: int = 1
    num_interaction_layers: int = 1
    num_bridge_tokens: int = 30
    bridge_wiring: str = "crossed"
    use_refinement: bool = True
    use_bridge_tokens: bool = True
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    head_dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int | None = None
    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | None = None
    dimension_names: list[str] | tuple[str, ...] = ("valence", "arousal")
    dimension_range: list[float | int] | tuple[float | int, ...] = (1.0, 5.0)
    emotion_loss_weight: float | int = 0.34
    dimension_loss_weights: list[float | int] | tuple[float | int, ...] | None = None
    label_smoothing: float | int = 0.0
    temperature: float | int = 1.0
    freeze_audio_encoder: bool = True
    freeze_text_encoder: bool = True
    trained_outputs: list[str] | tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt_fields(kwargs)
        num_labels = kwargs.pop("num_labels", None)
        if num_labels is not None and (type(num_labels) is not int or num_labels < 2):
            raise ValueError(
                f"MTMMConfig: `num_labels={num_labels!r}` is not allowed; it must be a whole number of "
                "at least 2."
            )
        if self.id2label is None:
            count = len(EMOTIONS) if num_labels is None else num_labels
            names = EMOTIONS if count == len(EMOTIONS) else [f"LABEL_{i}" for i in range(count)]
            self.id2label = dict(enumerate(names))
        self.id2label = _by_index(self.id2label)
        dtype = str(self.dtype).removeprefix("torch.")
        self._require("dtype", dtype in ("None", *DTYPES), f"None or one of {', '.join(DTYPES)}")
        try:
            super().__post_init__(**kwargs)  # makes the encoders' configurations
        except StrictDataclassError as error:
            raise ValueError(
                f"MTMMConfig: an encoder's configuration is not allowed: {' '.join(str(error).split())}"
            ) from error
        if num_labels is not None and num_labels != self.num_labels:
            self.num_labels = num_labels  # new names, and an emotion head that is yet to be trained
            self.trained_outputs = [name for name in self.trained_outputs if name != "emotion"]
        if self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        if self.initializer_range is None:
            self.initializer_range = max(self.hidden_size, 1) ** -0.5
        # JSON has lists only; tuples keep a loaded configuration equal to the saved one.
        self.dimension_names = tuple(self.dimension_names)
        self.dimension_range = tuple(self.dimension_range)
        self.trained_outputs = tuple(self.trained_outputs)
        for name in ("audio_layers", "text_layers"):
            if getattr(self, name) is not None:
                setattr(self, name, tuple(getattr(self, name)))
        if self.dimension_loss_weights is None:
            self.dimension_loss_weights = (0.33,) * len(self.dimension_names)
        self.dimension_loss_weights = tuple(self.dimension_loss_weights)
        # save_pretrained alone would name one Auto class only, and the others would not load.
        self.auto_map = dict(AUTO_MAP)
        # A copy: `transformers.pipeline` replaces the names of classes in it by the classes.
        self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        # `from_pretrained(..., id2label=...)` sets the field after the configuration was made: rename
        # both ways, and where the number of emotions changes the head is yet to be trained.
        if name == "id2label" and value is not None and getattr(self, "_post_init_done", False):
            value = _by_index(value)
            if len(value) != self.num_labels:
                kept = tuple(output for output in self.trained_outputs if output != "emotion")
                super().__setattr__("trained_outputs", kept)
            super().__setattr__("label2id", {label: index for index, label in value.items()})
        super().__setattr__(name, value)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `PreTrainedConfig.get_config_dict`, of an MTMM model only.

        transformers would take a missing file for an empty one, and any model's for ours.

        Raises:
            ValueError: The configuration is another model's, none at all, or not a JSON object.
        """
        name = pretrained_model_name_or_path
        try:
            config_dict, kwargs = super().get_config_dict(name, **kwargs)
            kind = config_dict.get("model_type")
        except (AttributeError, TypeError) as error:  # of a JSON list or number
            raise ValueError(
                f"{name}: config.json has no JSON object; save the model again or download it anew."
            ) from error
        if kind != cls.model_type:
            found = (
                "has no config.json with a `model_type`" if kind is None else f"is a {kind!r} model"
            )
            raise ValueError(
                f"{name} {found}, where {cls.model_type!r} is needed; give the folder or the Hub id of "
                "an MTMM model."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`, of a dict that this or an older version saved."""
        version = config_dict.get("format_version", 0)
        if type(version) is not int or version < 0:
            raise ValueError(
                f"MTMMConfig: `format_version={version!r}` is not allowed; it must be a whole number, "
                f"{FORMAT_VERSION} for what this code saves."
            )
        if version > FORMAT_VERSION:
            raise ValueError(
                f"This checkpoint has format {version}, newer than the {FORMAT_VERSION} that this "
                "code knows; update MTMM or, if you trust the model's own code, load it with "
                "trust_remote_code=True."
            )
        for older in range(version, FORMAT_VERSION):
            config_dict = MIGRATIONS[older](config_dict)
        return super().from_dict(config_dict | {"format_version": FORMAT_VERSION}, **kwargs)

    @classmethod
    def paper(cls, **overrides: Any) -> "MTMMConfig":
        """The paper's model: HuBERT-large and DeBERTaV3-large shapes, 30 bridge tokens, d = 1024.

        Args:
            overrides: Any field of this class.

        Returns:
            The configuration; nothing is downloaded, and no weights are made.
        """
        return cls(**overrides)

    @classmethod
    def tiny(cls, **overrides: Any) -> "MTMMConfig":
        """A model of the paper's kind with about 60,000 parameters, for tests and trials.

        Args:
            overrides: Any field of this class.
        """
        tiny_encoder = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
        audio_config = (
            HUBERT_LARGE
            | tiny_encoder
            | {
                "model_type": "hubert",
                "conv_dim": [32, 32, 32],
                "conv_kernel": [10, 8, 4],
                "conv_stride": [5, 4, 4],
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 4,
            }
        )
        text_config = (
            DEBERTA_V3_LARGE
            | tiny_encoder
            | {
                "model_type": "deberta-v2",
                "vocab_size": 128,
                "position_buckets": 8,
                "max_position_embeddings": 64,
                "pooler_hidden_size": 32,
            }
        )
        sizes = {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "num_bridge_tokens": 4,
        }
        return cls(
            **({"audio_config": audio_config, "text_config": text_config} | sizes | overrides)
        )

    @property
    def emotion_names(self) -> tuple[str, ...]:
        """Names of the emotions, by index."""
        return tuple((self.id2label or {}).values())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs a model can be trained for: "emotion", then the dimensions."""
        return ("emotion", *self.dimension_names)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each output in the loss, by name."""
        dimensions = zip(self.dimension_names, self.dimension_loss_weights or (), strict=True)
        return {"emotion": self.emotion_loss_weight, **dict(dimensions)}

    def encoder_config(self, modality: str) -> PreTrainedConfig:
        """Of the "audio" or "text" encoder; a dict or None has become one when this was made."""
        config = self.audio_config if modality == "audio" else self.text_config
        assert isinstance(config, PreTrainedConfig), f"{modality}_config is {config!r}"
        return config

    def mixed_layers(self, modality: str) -> tuple[int, ...]:
        """The hidden states of the "audio" or "text" encoder that are mixed; () = the last one alone."""
        if self.encoder_layers == "last":
            return ()
        chosen = self.audio_layers if modality == "audio" else self.text_layers
        every = range(self.encoder_config(modality).num_hidden_layers + 1)
        return tuple(every if chosen is None else chosen)

    def check(self) -> None:
        """Raise ValueError for the first field whose value is not allowed."""
        self._check_choice("encoder_layers", ("last", "weighted"))
        self._check_choice("bridge_wiring", ("crossed", "direct"))
        for name in (
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "num_refinement_layers",
            "num_interaction_layers",
            "num_bridge_tokens",
            "acoustic_stride",
        ):
            self._require(
                name,
                1 <= getattr(self, name) <= LARGEST_SIZE,
                f"a whole number of at least 1 and at most {LARGEST_SIZE:,}",
            )
        self._require(
            "num_attention_heads",
            self.hidden_size % self.num_attention_heads == 0,
            f"a divisor of hidden_size={self.hidden_size}",
        )
        for name in ("hidden_dropout", "attention_dropout", "head_dropout", "label_smoothing"):
            self._require(
                name, 0 <= getattr(self, name) < 1, "a number from 0 up to, not including, 1"
            )
        for name in ("temperature", "layer_norm_eps", "initializer_range"):
            allowed = 1 / LARGEST_NUMBER <= getattr(self, name) <= LARGEST_NUMBER
            self._require(name, allowed, "a finite number above 0, from 1e-30 to 1e30")
        self._check_choice("hidden_act", tuple(ACT2FN))
        self._require("format_version", self.format_version == FORMAT_VERSION, str(FORMAT_VERSION))
        self._check_layers("audio_layers", self.encoder_config("audio"))
        self._check_layers("text_layers", self.encoder_config("text"))
        self._check_emotions()
        self._check_dimensions()
        self._require(
            "trained_outputs",
            set(self.trained_outputs) <= set(self.output_names),
            f"names among {', '.join(self.output_names)}",
        )

    def _check_layers(self, name: str, encoder: PreTrainedConfig) -> None:
        layers = getattr(self, name)
        if layers is None:
            return
        self._require(name, self.encoder_layers == "weighted", 'None with encoder_layers="last"')
        highest = encoder.num_hidden_layers
        self._require(
            name,
            len(layers) >= 1
            and sorted(set(layers)) == list(layers)
            and 0 <= layers[0]
            and layers[-1] <= highest,
            f"rising whole numbers from 0 to {highest}, at least one",
        )

    def _check_emotions(self) -> None:
        names = list(self.emotion_names)
        self._require(
            "id2label",
            sorted(self.id2label or ()) == list(range(len(names))) and len(names) >= 2,
            "two or more emotion names with indices from 0 on",
        )
        self._require(
            "id2label",
            _are_names(names),
            "different names, none of them blank or padded with spaces",
        )
        self._require(
            "label2id",
            self.label2id == {name: index for index, name in enumerate(names)},
            f"the inverse of id2label={self.id2label}; leave it out and it is derived",
        )

    def _check_dimensions(self) -> None:
        names, limits, weights = (
            self.dimension_names,
            self.dimension_range,
            self.dimension_loss_weights or (),
        )
        reserved = {"emotion", "scores", "missing", "untrained", "timeline", "start", "end"}
        reserved |= {"text", "transcribed", "explanation"}  # the pipeline's own keys
        self._require(
            "dimension_names",
            len(names) >= 1 and _are_names(names),
            "one or more different names, none of them blank or padded with spaces",
        )
        self._require(
            "dimension_names",
            not reserved & set(names),
            f"names other than {', '.join(sorted(reserved))}",
        )
        self._require(
            "dimension_range",
            len(limits) == 2 and all(map(_is_finite, limits)) and limits[0] < limits[1],
            "two finite numbers, the lower one first",
        )
        self._require(
            "dimension_loss_weights",
            len(weights) == len(names) and all(w >= 0 and _is_finite(w) for w in weights),
            f"one finite number of at least 0 for each of {', '.join(names)}",
        )
        self._require(
            "emotion_loss_weight",
            self.emotion_loss_weight >= 0 and _is_finite(self.emotion_loss_weight),
            "a finite number of at least 0",
        )
        self._require(
            "emotion_loss_weight",
            self.emotion_loss_weight > 0 or any(weight > 0 for weight in weights),
            "above 0 where all dimension_loss_weights are 0",
        )

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        self._require(
            name, getattr(self, name) in choices, f"one of {', '.join(map(repr, choices))}"
        )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(
                f"MTMMConfig: `{name}={getattr(self, name)!r}` is not allowed; it must be {allowed}."
            )

    def _refuse_misspelt_fields(self, extra: dict[str, Any]) -> None:
        """transformers keeps unknown arguments as attributes, so a typing error would do nothing."""
        fields = list(self.__dataclass_fields__)
        for name in extra:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
            if close and not hasattr(type(self), name):
                raise ValueError(f"MTMMConfig has no field `{name}`; did you mean `{close[0]}`?")


def _by_index(id2label: dict[Any, str]) -> dict[int, str]:
    """In the order of the indices, which are strings in JSON."""
    try:
        return dict(sorted((int(index), name) for index, name in id2label.items()))
    except ValueError as error:
        raise ValueError(
            f"MTMMConfig: `id2label={id2label!r}` is not allowed; its keys must be the indices 0, 1, 2, ..."
        ) from error


def _are_names(names: Sequence[str]) -> bool:
    """Different, and as a manifest's cells are read: not blank, no space around them."""
    return len(set(names)) == len(names) and all(name and name == name.strip() for name in names)


def _is_finite(number: float) -> bool:
    """In float32 too; JSON has whole numbers of any size."""
    return -LARGEST_NUMBER <= number <= LARGEST_NUMBER


__all__ = ["MTMMConfig"]
