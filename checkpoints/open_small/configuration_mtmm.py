"""The configuration of MTMM: all that the weights need, nothing that only a training run needs.

This file is uploaded to the Hub beside the weights. It imports transformers and huggingface_hub only.
"""

import copy
import difflib
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, __version__

try:
    from transformers import PreTrainedConfig
    from transformers.configuration_utils import SubConfigSpec
except ImportError as error:  # named otherwise, or not there yet
    raise ImportError(f"MTMM needs transformers 5.23 or newer; {__version__} is here.") from error

EMOTIONS = ("angry", "happy", "sad", "neutral")  # IEMOCAP's four classes, excited merged into happy

# The two encoders of the paper, as their published config.json files describe them. The library's
# default configurations differ where it matters: HubertConfig() normalises over time (group norm),
# DebertaV2Config() has absolute positions only.
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
HUBERT_LARGE = LARGE | {
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "feat_proj_dropout": 0.1,
    "layerdrop": 0.0,  # a dropped layer has no gradient, and DistributedDataParallel stops
    "apply_spec_augment": False,  # it fails on recordings shorter than ten frames
}
DEBERTA_V3_LARGE = LARGE | {
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

INFINITE = float("inf")
# Raise it with any change of config.json or of the weights' names that older code would misread.
FORMAT_VERSION = 1
# The pipeline's own keys beside the dimensions' names in an answer.
RESERVED_NAMES = (
    "emotion scores missing untrained timeline start end text transcribed untimed_text speaker speakers "
    "embedding explanation unsure agreement unfamiliar".split()
)

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


@strict
class MTMMConfig(PreTrainedConfig):
    """Configuration of [`MTMMModel`]; the defaults are the paper's model.

    Types are checked whenever a field is set, values when the configuration is made and again when a
    model is built from it. As in any configuration of transformers, other attributes may be set.

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
        audio_window_s (`int`): Seconds to which the window of a pretrained encoder of Whisper's kind is
            cut; None = as it is.
        encoder_sources (`dict`): Where a heads-only model's encoders are: {"audio": {"id":
            "owner/name", "revision": commit or None}, "text": ...}; None = with the model.
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
        calibrated_on (`str`): What the temperature was fitted to: "labels", or "votes" of listeners,
            whose expected shares the probabilities are then.
        min_confidence (`float`): Below this highest probability the pipeline names no emotion; 0 =
            it always does.
        reference (`str`): What unlabelled recordings training gave the model beside an utterance:
            "none", "domain" (statistics of its corpus) or "speaker" (of its speaker too).
        reference_strengths (`tuple[float]`): Frames of the acoustic encoder's states against which a
            speaker's and a domain's reference count; fitted by training.
        reference_answers (`tuple[float]`): The training data's mean answer: a speaker's recordings of
            nearly the same are taken for as mixed as these. () = unknown.
        reference_skew (`float`): How far from these the mean answer must be for a half of it to be
            believed; fitted by training to how its speakers were recorded.
        reference_spread (`float`): A domain's reference that is further from the training data, by the
            deviation of its states, is of another domain: a quarter more than the distance of the
            furthest training speaker. 0 = unknown.
        reference_encoder (`str`): Digest of the acoustic encoder that references must be of.
        linear_path (`dict`): What a regression beside the fusion pools, by modality:
            {"audio": {"layers": [2, 3, 4], "deviation": True}, "text": ...}; fitted by training.
            None = there is none, as in the paper.
        rated_dimensions (`tuple[str]`): Dimensions of which the model also predicts how far raters
            differ (`dimension_deviations`), learned from single ratings; () = none, as in the paper.
        familiarity (`bool`): The model has statistics of its training data, by which it says how far
            an input is from it; filled by training.
        freeze_audio_encoder (`bool`): Build the acoustic encoder without gradients.
        freeze_text_encoder (`bool`): Build the linguistic encoder without gradients.
        trained_outputs (`tuple[str]`): Which of "emotion" and the dimensions were ever trained
            with labels. The pipeline prints no number for the others.
        training_data (`dict`): What it was trained on, {"corpora": {name: utterances}, "speakers":
            how many, "artificial": names of corpora whose speech a program made}; None = not known.
        format_version (`int`): Version of the saved files. A newer one than this code knows is refused.

    Raises:
        StrictDataclassError: A value or its type is not allowed; the message names field, value and
            what is allowed.
        ValueError: An argument is the name of a field misspelt.

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
    keys_to_ignore_at_inference = (
        "emotion_loss dimension_loss fused_state bridge_states acoustic_bridge_attentions "
        "linguistic_bridge_attentions hidden_states unfamiliarity logits".split()
    )

    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    encoder_layers: Literal["last", "weighted"] = "last"
    audio_layers: list[int] | tuple[int, ...] | None = None
    text_layers: list[int] | tuple[int, ...] | None = None
    audio_window_s: int | None = None
    encoder_sources: dict[str, Any] | None = None
    acoustic_stride: int = 1
    hidden_size: int = 1024
    num_attention_heads: int = 16
    intermediate_size: int = 2048
    num_refinement_layers: int = 1
    num_interaction_layers: int = 1
    num_bridge_tokens: int = 30
    bridge_wiring: Literal["crossed", "direct"] = "crossed"
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
    calibrated_on: Literal["labels", "votes"] = "labels"
    min_confidence: float | int = 0.0
    reference: Literal["none", "domain", "speaker"] = "none"
    reference_strengths: list[float | int] | tuple[float | int, ...] = (0.0, 0.0)
    reference_answers: list[float | int] | tuple[float | int, ...] = ()
    reference_skew: float | int = 0.2
    reference_spread: float | int = 0.0
    reference_encoder: str | None = None
    linear_path: dict[str, Any] | None = None
    rated_dimensions: list[str] | tuple[str, ...] = ()
    familiarity: bool = False
    freeze_audio_encoder: bool = True
    freeze_text_encoder: bool = True
    trained_outputs: list[str] | tuple[str, ...] = ()
    training_data: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt_fields(kwargs)
        if self.id2label is None:
            count = kwargs.pop("num_labels", len(EMOTIONS))
            names = EMOTIONS if count == len(EMOTIONS) else [f"LABEL_{i}" for i in range(count)]
            self.id2label = dict(enumerate(names))
        super().__post_init__(**kwargs)  # makes the encoders' configurations
        # In the order of the indices, which are strings in JSON.
        self.id2label = dict(sorted((int(i), name) for i, name in self.id2label.items()))
        if self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        if self.initializer_range is None:
            self.initializer_range = max(self.hidden_size, 1) ** -0.5
        if self.dimension_loss_weights is None:
            self.dimension_loss_weights = (0.33,) * len(self.dimension_names)
        # JSON has lists only; tuples keep a loaded configuration equal to the saved one.
        for name in type(self).__annotations__:
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        # save_pretrained alone would name one Auto class only, and the others would not load.
        self.auto_map = dict(AUTO_MAP)
        # A copy: `transformers.pipeline` replaces the names of classes in it by the classes.
        self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `PreTrainedConfig.get_config_dict`, of an MTMM model only.

        transformers would take a missing file for an empty one, and any model's for ours.

        Raises:
            ValueError: The configuration is another model's, or none at all.
        """
        name = pretrained_model_name_or_path
        config_dict, kwargs = super().get_config_dict(name, **kwargs)
        kind = config_dict.get("model_type")
        if kind != cls.model_type:
            raise ValueError(f"{name} is no MTMM model: its config.json has `model_type` {kind}.")
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`; `id2label` or `num_labels` may rename the emotions.

        Where their number changes, the emotion head is yet to be trained.
        """
        config_dict = dict(config_dict)
        names = config_dict.get("id2label") or EMOTIONS
        given = kwargs.get("id2label") or kwargs.get("num_labels") or names
        count = given if isinstance(given, int) else len(given)
        if "id2label" in kwargs:
            config_dict["id2label"] = kwargs.pop("id2label")
            config_dict["label2id"] = kwargs.pop("label2id", None)
        elif count != len(names):
            config_dict |= {"id2label": None, "label2id": None}
        if count != len(names):
            trained = config_dict.get("trained_outputs", ())
            config_dict["trained_outputs"] = [name for name in trained if name != "emotion"]
        return super().from_dict(config_dict, **kwargs)

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
        small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        audio = HUBERT_LARGE | small | {"model_type": "hubert", "num_hidden_layers": 2}
        audio |= {"conv_dim": [32] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [5, 4, 4]}
        audio |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        text = DEBERTA_V3_LARGE | small | {"model_type": "deberta-v2", "num_hidden_layers": 2}
        text |= {"vocab_size": 128, "position_buckets": 8, "max_position_embeddings": 64}
        text |= {"pooler_hidden_size": 32}
        fusion = small | {"num_attention_heads": 4, "num_bridge_tokens": 4}
        return cls(**({"audio_config": audio, "text_config": text} | fusion | overrides))

    @property
    def emotion_names(self) -> tuple[str, ...]:
        """Names of the emotions, by index."""
        return tuple((self.id2label or {}).values())

    @property
    def trained_on(self) -> str:
        """Its training data in words, such as "720 utterances of ravdess by 20 speakers"."""
        if self.training_data is None:
            return "data that is not recorded"
        artificial = self.training_data["artificial"]
        named = [
            f"{count} utterances of {'artificial speech, ' if name in artificial else ''}{name}"
            for name, count in self.training_data["corpora"].items()
        ]
        return f"{', '.join(named)} by {self.training_data['speakers']} speakers"

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

    def validate_values(self) -> None:
        """Called by @strict when a configuration was made, and by MTMMModel: fields may have been set."""
        emotions, dimensions = list(self.emotion_names), self.dimension_names
        weights, scale = self.dimension_loss_weights or (), self.dimension_range
        indices = list(range(len(set(emotions))))  # fewer where two have one name
        inverse = {name: index for index, name in enumerate(emotions)}
        different = len({*dimensions, *RESERVED_NAMES}) == len(dimensions) + len(RESERVED_NAMES)
        known, each = set(self.rated_dimensions) <= set(dimensions), len(weights) == len(dimensions)
        all_finite = all(0 <= w < INFINITE for w in (self.emotion_loss_weight, *weights))
        any_loss = self.emotion_loss_weight + sum(weights) > 0
        heads = self.num_attention_heads
        heads_fit = heads > 0 and self.hidden_size % heads == 0
        window_s = self.audio_window_s
        rising = len(scale) == 2 and -INFINITE < scale[0] < scale[1] < INFINITE
        positive = ["hidden_size", "num_attention_heads", "num_interaction_layers"]
        positive += ["num_bridge_tokens", "acoustic_stride"]
        for name, holds, allowed in (
            *((name, getattr(self, name) >= 1, "at least 1") for name in positive),
            ("num_attention_heads", heads_fit, f"a divisor of {self.hidden_size}"),
            ("temperature", 0 < self.temperature < INFINITE, "a finite number above 0"),
            ("reference_skew", 0 < self.reference_skew < INFINITE, "a finite number above 0"),
            ("min_confidence", 0 <= self.min_confidence <= 1, "from 0 to 1"),
            ("format_version", self.format_version <= FORMAT_VERSION, "older; update MTMM"),
            ("id2label", list(self.id2label or ()) == indices, "different names from index 0 on"),
            ("id2label", len(emotions) > 1, "two names or more"),
            ("label2id", self.label2id == inverse, f"the inverse of id2label={self.id2label}"),
            ("dimension_names", dimensions and different, f"different, none of {RESERVED_NAMES}"),
            ("rated_dimensions", known, f"some of {dimensions}"),
            ("dimension_range", rising, "two finite numbers, the lower one first"),
            ("dimension_loss_weights", each, f"one for each {dimensions}"),
            ("dimension_loss_weights", all_finite, "finite and at least 0, as emotion_loss_weight"),
            ("emotion_loss_weight", any_loss, "above 0, or one of dimension_loss_weights"),
            ("audio_window_s", window_s is None or window_s >= 1, "at least 1, or None"),
        ):
            self._require(name, holds, allowed)

    def validate_layers(self) -> None:
        """The layers that "weighted" mixes must be there, and "last" mixes none."""
        for modality in ("audio", "text"):
            layers = getattr(self, f"{modality}_layers")
            if layers is not None:
                highest = self.encoder_config(modality).num_hidden_layers
                holds = self.encoder_layers == "weighted" and set(layers) <= set(range(highest + 1))
                allowed = f'with encoder_layers="weighted" numbers from 0 to {highest}, else None'
                self._require(f"{modality}_layers", holds and layers, allowed)

    def _require(self, name: str, holds: Any, allowed: str) -> None:
        if not holds:
            raise ValueError(f"`{name}={getattr(self, name)!r}` must be {allowed}.")

    def _refuse_misspelt_fields(self, extra: dict[str, Any]) -> None:
        """transformers keeps unknown arguments as attributes, so a misspelt field would do nothing."""
        if self.transformers_version is not None:
            return  # a saved configuration, whose attributes anybody may have set
        for name in extra:
            close = difflib.get_close_matches(name, self.__dataclass_fields__, n=1, cutoff=0.85)
            if close and not hasattr(type(self), name):
                raise ValueError(f"MTMMConfig has no field `{name}`; did you mean `{close[0]}`?")
