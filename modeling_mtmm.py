"""MTMM: two pretrained encoders, refinement, bridge fusion, two heads.

The architecture of Ispas, Deschamps-Berger and Devillers 2023 (arXiv 2401.00536), uploaded to the Hub
beside the weights. Encoders, fusion and loss are in files of their own, as are waveforms and
transcripts (processing_mtmm.py); training is elsewhere.

Shapes: "frames" are the acoustic encoder's output positions (50 a second for HuBERT and Whisper),
"tokens" the linguistic one's, "keys" the longer of the two, "width" an encoder's hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import maybe_install_capturing_hooks

# The only imports among the Hub files. Relative first: as remote code these are neighbours in a
# package; in a checkout they are top-level modules. Processor and pipeline are named here so that
# saving a model takes their files along: transformers copies what a model's file imports.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .configuration_mtmm import MTMMConfig
        from .encoders_mtmm import (
            EncoderInput,
            as_mask,
            average_frames,
            build_encoder,
            encoder_width,
            frame_mask,
            is_trainable,
            load_encoder,
        )
        from .fusion_mtmm import MTMMFusion, MTMMHead, MTMMInput, carry_to_values, unmask_absent
        from .loss_mtmm import ABSENT_EMOTION, at_least_float32, multi_task_loss
        from .pipeline_mtmm import MTMMPipeline
        from .processing_mtmm import MTMMProcessor
except ImportError:
    from configuration_mtmm import MTMMConfig
    from encoders_mtmm import (
        EncoderInput,
        as_mask,
        average_frames,
        build_encoder,
        encoder_width,
        frame_mask,
        is_trainable,
        load_encoder,
    )
    from fusion_mtmm import MTMMFusion, MTMMHead, MTMMInput, carry_to_values, unmask_absent
    from loss_mtmm import ABSENT_EMOTION, at_least_float32, multi_task_loss
    from pipeline_mtmm import MTMMPipeline
    from processing_mtmm import MTMMProcessor

# Weights that no forward pass reads; the second one only where there is no SpecAugment.
UNUSED_WEIGHTS = ("text_model.pooler.", "audio_model.masked_spec_embed")
MASKS = ("audio_attention_mask", "attention_mask")
MASKS += ("acoustic_attention_mask", "linguistic_attention_mask")


@dataclass
class MTMMOutput(ModelOutput):
    """What [`MTMMModel`] returns; every field is None where it was not asked for or has no input.

    Args:
        loss (`Tensor`, ()): `emotion_loss + dimension_loss`; None without labels.
        emotion_loss (`Tensor`, ()): Weighted cross-entropy; 0 where the batch has no emotion label.
        dimension_loss (`Tensor`, ()): Sum over the dimensions of weight · (1 − CCC); a dimension with
            fewer than two labels, or without any spread, adds 0.
        emotion_logits (`Tensor`, (batch, emotions)): Unnormalised scores, in the order of
            `config.id2label`; not divided by `config.temperature`.
        dimensions (`Tensor`, (batch, dimensions)): In the order of `config.dimension_names`, on the
            labels' scale: inside `config.dimension_range`.
        fused_state (`Tensor`, (batch, hidden)): The vector that feeds both heads.
        bridge_states (`Tensor`, (batch, 2 · bridges, hidden)): The bridge tokens after the
            interaction, acoustic set first; zeros for a set whose modality is absent in direct
            wiring; None without bridge tokens.
        acoustic_bridge_attentions (`tuple[Tensor]`, each (batch, heads, queries, keys)): One per
            interaction layer. In crossed wiring a weight on a key stands for the value that
            `align_values` brought there. Zeros where the keys' modality is absent.
        linguistic_bridge_attentions (`tuple[Tensor]`): The same for the linguistic set.
        hidden_states (`tuple[Tensor, Tensor]`): Refined acoustic (batch, frames, hidden) and
            linguistic (batch, tokens, hidden) states; zeros at padding and for absent modalities.
    """

    loss: Tensor | None = None
    emotion_loss: Tensor | None = None
    dimension_loss: Tensor | None = None
    emotion_logits: Tensor | None = None
    dimensions: Tensor | None = None
    fused_state: Tensor | None = None
    bridge_states: Tensor | None = None
    acoustic_bridge_attentions: tuple[Tensor, ...] | None = None
    linguistic_bridge_attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


# ---- heads and loss ----------------------------------------------------------------------------


# ---- the model ---------------------------------------------------------------------------------


class MTMMPreTrainedModel(PreTrainedModel):
    """What transformers must know of every MTMM model: its configuration, inputs and attention kinds."""

    config: MTMMConfig
    config_class = MTMMConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MTMMRefinementLayer", "MTMMInteractionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = float(self.config.initializer_range or 0)  # None is filled in when it is made
        if isinstance(module, MTMMFusion) and module.config.use_bridge_tokens:
            init.normal_(module.acoustic_bridge_tokens, std=std)
            init.normal_(module.linguistic_bridge_tokens, std=std)
        if isinstance(module, MTMMInput) and module.weighted:
            init.zeros_(module.layer_weights)  # all layers count alike


class MTMMModel(MTMMPreTrainedModel):
    """Emotions and dimensions of utterances, from audio, text or both.

    Built from a configuration alone, with random weights. [`from_encoders_pretrained`] starts from
    pretrained encoders, [`from_pretrained`] loads a trained model.

    Args:
        config ([`MTMMConfig`]): Checked again, since fields may have been set after it was made.
    """

    # Trainer must not divide by the number of labelled items: CCC is no sum over items.
    accepts_loss_kwargs = False

    audio_model: Any  # of any family: PreTrainedModel names little of what they share
    text_model: Any

    def __init__(self, config: MTMMConfig) -> None:
        config.validate()
        super().__init__(config)
        self.audio_model = build_encoder(config.encoder_config("audio"))
        self.text_model = build_encoder(config.encoder_config("text"))
        widths = encoder_width(self.audio_model), encoder_width(self.text_model)
        self.fusion = MTMMFusion(config, *widths)
        self.emotion_head = MTMMHead(config, len(config.emotion_names))
        self.dimension_head = MTMMHead(config, len(config.dimension_names))
        self._labels_seen: Tensor | None = None
        self._adopt_encoders()
        self.post_init()

    def _forget_outputs(self, drawn: set[str]) -> None:
        """Weights of these names are random now, so what is predicted through them is untrained."""
        of_heads = {"emotion_head": ("emotion",), "dimension_head": self.config.dimension_names}
        lost: set[str] = set()
        for key in drawn:
            if key.startswith(UNUSED_WEIGHTS):
                continue
            lost.update(of_heads.get(key.partition(".")[0], self.config.output_names))
        if lost:
            kept = [name for name in self.config.trained_outputs if name not in lost]
            self.config.trained_outputs = tuple(kept)

    def _adopt_encoders(self) -> None:
        """What must hold for the encoders, wherever they came from."""
        self._audio_input = EncoderInput.of(self.audio_model)
        self._text_input = EncoderInput.of(self.text_model)
        encoders = {"audio": self.audio_model, "text": self.text_model}
        for modality, encoder in encoders.items():
            for config in (encoder.config, self.config.encoder_config(modality)):
                config._name_or_path = ""  # else a private path is saved and published
                config.return_dict = True  # its outputs are read by name
            if self.config.encoder_layers == "weighted":
                # Now, since the first call would take a lock, which torch.compile cannot trace.
                maybe_install_capturing_hooks(encoder)
        self._freeze_encoders()

    def _freeze_encoders(self) -> None:
        if self.config.freeze_audio_encoder:
            self.audio_model.requires_grad_(False)
        if self.config.freeze_text_encoder:
            self.text_model.requires_grad_(False)
        # A weight that no forward pass reads gets no gradient, and DistributedDataParallel would stop.
        augmented = getattr(self.audio_model.config, "apply_spec_augment", True)
        for name, parameter in self.named_parameters():
            if name.startswith(UNUSED_WEIGHTS) and not (
                name.startswith("audio_model.") and augmented
            ):
                parameter.requires_grad_(False)
        if self._audio_input.mels_first and hasattr(self.audio_model, "embed_positions"):
            self.audio_model.embed_positions.requires_grad_(False)  # Whisper's sinusoids are fixed

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> "MTMMModel":
        """Load a saved model; as `PreTrainedModel.from_pretrained`, with its frozen encoders frozen.

        transformers draws weights that it does not find at random, and goes on with a warning. Here
        that must be asked for: by `ignore_mismatched_sizes=True`, or by `output_loading_info=True`
        where weights are missing or left over, since the caller is then told.

        Raises:
            ValueError: The weights are not those that the configuration describes.
            OSError: A file is missing or damaged.
        """
        name = pretrained_model_name_or_path
        told = kwargs.pop("output_loading_info", False)
        # Without a name the caller brings the weights, and those that are missing are drawn.
        drawn = kwargs.pop("ignore_mismatched_sizes", False) or name is None
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            loaded: Any = super().from_pretrained(name, *args, **kwargs)
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise OSError(
                f"The weights in {name} are damaged ({error}); copy or save them again."
            ) from error
        model, found = loaded
        if not drawn:
            _refuse_other_weights(name, found, told)
        mismatched = {key for key, *_ in found["mismatched_keys"]}
        model._forget_outputs(found["missing_keys"] | mismatched)
        model._freeze_encoders()  # loading makes new parameters, all of them with gradients
        answer: Any = (model, found) if told else model
        return answer

    @classmethod
    def from_encoders_pretrained(
        cls, audio: str, text: str, *, dtype: torch.dtype = torch.float32, **config_fields: Any
    ) -> "MTMMModel":
        """A model with pretrained encoders and new fusion and heads.

        Args:
            audio: Folder or Hub id of the acoustic encoder (of Whisper only the encoder is kept).
            text: Folder or Hub id of the linguistic encoder.
            dtype: Of all weights. Checkpoints often are float16, in which training fails; so
                float32 unless asked otherwise.
            config_fields: Fields of [`MTMMConfig`].

        Raises:
            ValueError: A field is not allowed.
            OSError: An encoder cannot be found.
        """
        audio_model, audio_config = load_encoder(audio, dtype)
        text_model, text_config = load_encoder(text, dtype)
        config = MTMMConfig(
            audio_config=audio_config, text_config=text_config, dtype=dtype, **config_fields
        )
        with torch.device("meta"):  # random encoders would be made only to be replaced
            model = cls(config)
        for module in (model.fusion, model.emotion_head, model.dimension_head):
            module.to_empty(device="cpu").to(dtype).apply(model._init_weights)
        model.audio_model, model.text_model = audio_model, text_model
        model._adopt_encoders()
        return model.eval()

    def get_input_embeddings(self) -> Any:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "MTMMModel":
        """As `nn.Module.train`; a frozen encoder goes back to eval mode at its next forward pass."""
        self._record_trained_outputs()
        return super().train(mode)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`."""
        self._record_trained_outputs()
        super().save_pretrained(*args, **kwargs)

    def encode_audio(
        self, input_values: Tensor, audio_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The acoustic encoder's states, as `forward` takes them back.

        Args:
            input_values: Waveforms (batch, time) or log-mel spectra, (batch, mels, frames) for
                Whisper's kind, (batch, frames, mels) for others.
            audio_attention_mask: (batch, time or frames), 1 = real, real positions first; None = all.

        Returns:
            `acoustic_states` (batch, frames, width), or (batch, layers, frames, width) with
            `encoder_layers="weighted"`, and `acoustic_attention_mask` (batch, frames) of booleans;
            with an `acoustic_stride`, a frame is the mean of so many of the encoder's.
        """
        encoder, takes = self.audio_model, self._audio_input
        mask = as_mask(audio_attention_mask, input_values, axes=(0, takes.time_axis(input_values)))
        if input_values.dim() == 2:  # waveforms: the encoder fails on less than one frame
            missing = max(takes.shortest - input_values.shape[1], 0)
            input_values, mask = F.pad(input_values, (0, missing)), F.pad(mask, (0, missing))
        inputs = takes.arguments(input_values.to(encoder.dtype), unmask_absent(mask))
        states = self._run_encoder("audio", inputs)
        real = frame_mask(encoder, mask, states.shape[-2])
        return average_frames(states, real, self.config.acoustic_stride)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The linguistic encoder's states, as `forward` takes them back.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 1 = real, real positions first; None = all.

        Returns:
            `linguistic_states` (batch, tokens, width), or (batch, layers, tokens, width) with
            `encoder_layers="weighted"`, and `linguistic_attention_mask` (batch, tokens) of booleans.
        """
        mask = as_mask(attention_mask, input_ids, axes=(0, -1))
        inputs = self._text_input.arguments(input_ids, unmask_absent(mask))
        return self._run_encoder("text", inputs), mask

    def _run_encoder(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        encoder = self.audio_model if modality == "audio" else self.text_model
        trainable = is_trainable(encoder)
        if encoder.training != (self.training and trainable):
            encoder.train(self.training and trainable)  # frozen: no dropout, whatever the rest does
        layers = self.config.mixed_layers(modality)
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            if not layers:
                return encoder(**inputs).last_hidden_state
            output = encoder(**inputs, output_hidden_states=True)
            # The last one as the encoder returns it: HuBERT-large's norm is behind its last layer.
            states = (*output.hidden_states[:-1], output.last_hidden_state)
            return torch.stack([states[layer] for layer in layers], dim=1)

    @can_return_tuple  # type: ignore[untyped-decorator]  # of transformers
    def forward(
        self,
        input_values: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        acoustic_states: Tensor | None = None,
        acoustic_attention_mask: Tensor | None = None,
        linguistic_states: Tensor | None = None,
        linguistic_attention_mask: Tensor | None = None,
        emotion_labels: Tensor | None = None,
        dimension_labels: Tensor | None = None,
        class_weights: Tensor | None = None,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MTMMOutput:
        """Predict, and compute the loss where labels are given.

        A modality is absent for the batch if neither its inputs nor its states are given, and for
        one utterance if its mask row is all zero; either way the result is the same.

        Args:
            input_values: Waveforms (batch, time), −1 to 1 before the processor's normalisation, or
                log-mel spectra as [`encode_audio`] takes them.
            audio_attention_mask: (batch, time or frames), 1 = real, real positions first.
            input_ids: (batch, tokens).
            attention_mask: The text's: (batch, tokens), 1 = real, real positions first.
            acoustic_states: Instead of `input_values`: what [`encode_audio`] returned.
            acoustic_attention_mask: (batch, frames).
            linguistic_states: Instead of `input_ids`: what [`encode_text`] returned.
            linguistic_attention_mask: (batch, tokens).
            emotion_labels: (batch,), −100 = absent.
            dimension_labels: (batch, dimensions), on the scale of `config.dimension_range`,
                NaN = absent.
            class_weights: (emotions,), weights of the emotions in the cross-entropy.
            reduce_sum: Adds a vector over all processes, differentiably; see [`multi_task_loss`].
            output_attentions: Return the bridge tokens' attention weights.
            output_hidden_states: Return the refined states.

        Raises:
            ValueError: No modality at all; both inputs and states of one modality; different numbers
                of utterances; labels of another shape. Only where masks are in the CPU's memory, so
                that no GPU has to wait: an utterance without either modality (its outputs are NaN
                elsewhere), audio shorter than the encoder's receptive field, padding on the left.
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        audio = (input_values, audio_attention_mask, acoustic_states, acoustic_attention_mask)
        text = (input_ids, attention_mask, linguistic_states, linguistic_attention_mask)
        given = _one_of_each(*audio[::2], *text[::2])
        acoustic, acoustic_mask = self._states("audio", given, *audio)
        linguistic, linguistic_mask = self._states("text", given, *text)
        if given.device.type == "cpu" and not torch.compiler.is_compiling():
            masks = (audio_attention_mask, attention_mask)
            masks += (acoustic_attention_mask, linguistic_attention_mask)
            _refuse_rows(input_values, masks, acoustic_mask, linguistic_mask)
        fused = self.fusion(acoustic, acoustic_mask, linguistic, linguistic_mask, output_attentions)
        logits = self.emotion_head(fused.fused_state)
        low, high = self.config.dimension_range
        scores = at_least_float32(self.dimension_head(fused.fused_state))
        dimensions = low + (high - low) * scores.sigmoid()
        loss = emotion_loss = dimension_loss = None
        if emotion_labels is not None or dimension_labels is not None:
            emotion_loss, dimension_loss = multi_task_loss(
                self.config,
                logits,
                dimensions,
                emotion_labels,
                dimension_labels,
                class_weights,
                reduce_sum,
            )
            loss = emotion_loss + dimension_loss
            if self.training and not torch.compiler.is_compiling():
                self._see_labels(emotion_labels, dimension_labels)
        return MTMMOutput(
            loss=loss,
            emotion_loss=emotion_loss,
            dimension_loss=dimension_loss,
            emotion_logits=logits,
            dimensions=dimensions,
            fused_state=fused.fused_state,
            bridge_states=fused.bridge_states,
            acoustic_bridge_attentions=fused.acoustic_bridge_attentions,
            linguistic_bridge_attentions=fused.linguistic_bridge_attentions,
            hidden_states=fused.hidden_states if output_hidden_states else None,
        )

    def bridge_contributions(
        self, output: MTMMOutput, acoustic_attention_mask: Tensor, linguistic_attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the states came from that the interaction read, by its attention weights.

        The mean over heads, bridge tokens and layers. In crossed wiring a weight on a key stands for
        values of the other modality, and is carried to them.

        Args:
            output: Of [`forward`] with `output_attentions=True`.
            acoustic_attention_mask: As [`encode_audio`] gave it: (batch, frames).
            linguistic_attention_mask: As [`encode_text`] gave it: (batch, tokens).

        Returns:
            Shares (batch, frames) and (batch, tokens); 0 at padding; the two rows of an utterance
            sum to 1 together.

        Raises:
            ValueError: The model has no bridge tokens.

        Source: ours; attention weights say what was read, not what decided (Jain & Wallace 2019).
        """
        if not self.config.use_bridge_tokens:
            raise ValueError(
                "Contributions are read from bridge tokens, which this model was built without "
                "(`use_bridge_tokens=False`)."
            )
        a_mask, l_mask = acoustic_attention_mask != 0, linguistic_attention_mask != 0
        a_read = _mean_attention(output.acoustic_bridge_attentions)
        l_read = _mean_attention(output.linguistic_bridge_attentions)
        acoustic, linguistic = a_read, l_read
        if self.config.bridge_wiring == "crossed":
            acoustic, linguistic = carry_to_values(a_read, a_mask, l_read, l_mask)
        acoustic, linguistic = acoustic[:, : a_mask.shape[1]], linguistic[:, : l_mask.shape[1]]
        total = (acoustic.sum(-1) + linguistic.sum(-1))[:, None]
        return acoustic / total, linguistic / total

    def _states(
        self,
        modality: str,
        given: Tensor,
        inputs: Tensor | None,
        inputs_mask: Tensor | None,
        states: Tensor | None,
        states_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One modality's encoder states and mask, whichever way it was given; zeros if absent."""
        audio = modality == "audio"
        dtype = self.fusion.output_norm.weight.dtype
        if states is not None:
            return states.to(dtype), as_mask(states_mask, states, axes=(0, -2))
        encode = self.encode_audio if audio else self.encode_text
        if inputs is not None:
            states, mask = encode(inputs, inputs_mask)
            return states.to(dtype), mask
        encoder = self.audio_model if audio else self.text_model
        batch = given.shape[0]
        if torch.is_grad_enabled() and is_trainable(encoder):
            # Every trainable parameter must get a gradient, and under FSDP every process must enter
            # the encoder, so one empty utterance passes through it; its mask hides it.
            takes = self._audio_input if audio else self._text_input
            pad_token_id = getattr(encoder.config, "pad_token_id", None) or 0
            states = encode(takes.empty(given.device, pad_token_id))[0].to(dtype)
            states = states.expand(batch, *states.shape[1:])
        else:
            layers = len(self.config.mixed_layers(modality))
            shape = (batch, *([layers] if layers else []), 1, encoder_width(encoder))
            states = torch.zeros(shape, dtype=dtype, device=given.device)
        return states, torch.zeros(batch, states.shape[-2], dtype=torch.bool, device=given.device)

    def _see_labels(self, emotion_labels: Tensor | None, dimension_labels: Tensor | None) -> None:
        """Remember which outputs had labels; on a GPU they are read later, since that is a wait."""
        given = emotion_labels if dimension_labels is None else dimension_labels
        if given is None:
            return
        seen = torch.zeros(len(self.config.output_names), dtype=torch.bool, device=given.device)
        if self._labels_seen is not None:
            seen = seen | self._labels_seen.to(given.device)
        if emotion_labels is not None:
            seen[0] |= (emotion_labels != ABSENT_EMOTION).any()
        if dimension_labels is not None:
            seen[1:] |= ~dimension_labels.isnan().all(0)
        self._labels_seen = seen
        if given.device.type == "cpu":
            self._record_trained_outputs()

    def _record_trained_outputs(self) -> None:
        """Note in the config which outputs have now seen labels."""
        if self._labels_seen is None:
            return
        seen = dict(zip(self.config.output_names, self._labels_seen.tolist(), strict=True))
        self._labels_seen = None
        known, weights = self.config.trained_outputs, self.config.loss_weights
        new = [name for name in seen if seen[name] and weights[name] > 0 and name not in known]
        self.config.trained_outputs = (*known, *new)


def _mean_attention(layers: tuple[Tensor, ...] | None) -> Tensor:
    """Over layers, heads and bridge tokens: (batch, keys), float32 at least."""
    assert layers is not None, "without `output_attentions`"
    return at_least_float32(torch.stack(layers)).mean(dim=(0, 2, 3))


def _one_of_each(
    input_values: Tensor | None,
    acoustic_states: Tensor | None,
    input_ids: Tensor | None,
    linguistic_states: Tensor | None,
) -> Tensor:
    """The first of what was given, each modality once and of the same number of utterances."""
    inputs = (input_values, acoustic_states, input_ids, linguistic_states)
    given = [tensor for tensor in inputs if tensor is not None]
    twice = [
        names
        for names, *pair in (
            ("`input_values` and `acoustic_states`", input_values, acoustic_states),
            ("`input_ids` and `linguistic_states`", input_ids, linguistic_states),
        )
        if all(tensor is not None for tensor in pair)
    ]
    sizes = [len(tensor) for tensor in given]
    for wrong, text in (
        (not given, "neither audio nor text; give `input_values`, `input_ids` or both"),
        (twice, f"both {' and '.join(twice)}; give the input or its encoder states"),
        (len(set(sizes)) > 1, f"{sizes} utterances of audio and text; give as many of each"),
    ):
        if wrong:
            raise ValueError(f"MTMMModel got {text}.")
    return given[0]


def _refuse_rows(
    input_values: Tensor | None,
    masks: tuple[Tensor | None, ...],
    acoustic_mask: Tensor,
    linguistic_mask: Tensor,
) -> None:
    """Refuse utterances whose masks would be misread; reads values, which on a GPU is a wait."""
    heard, said = acoustic_mask.any(-1), linguistic_mask.any(-1)
    faults = {"there is neither audio nor text": ~(heard | said)}
    if input_values is not None:
        claimed = as_mask(masks[0], input_values, axes=(0, -1)).any(-1)
        faults = {"the audio is shorter than one frame of the encoder": claimed & ~heard} | faults
    for name, mask in zip(MASKS, masks, strict=True):
        if mask is not None:
            gaps = ((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any(-1)
            faults[f"`{name}` has zeros before ones (pad on the right)"] = gaps
    for fault, rows in faults.items():
        if bool(rows.any()):
            raise ValueError(f"In rows {rows.nonzero().flatten().tolist()} of the batch {fault}.")


def _refuse_other_weights(name: Any, found: dict[str, Any], told: bool) -> None:
    """`found` is what transformers tells of loading; `told`: the caller will read of it."""
    problems = []
    for words, keys in (
        ("missing", () if told else found["missing_keys"]),
        ("of another shape", {key for key, *_ in found["mismatched_keys"]}),
        ("left over", () if told else found["unexpected_keys"]),
    ):
        if keys:
            problems.append(f"{len(keys)} {words}, such as {min(keys)!r}")
    if problems:
        raise ValueError(
            f"{name} does not have the weights that its configuration describes: {'; '.join(problems)}. "
            "Give the folder as it was saved; to draw new weights in their place, and train them, give "
            "ignore_mismatched_sizes=True."
        )


MTMMModel.register_for_auto_class("AutoModel")  # saving the model saves the four Hub files with it

__all__ = [
    "ABSENT_EMOTION",
    "MTMMModel",
    "MTMMOutput",
    "MTMMPipeline",
    "MTMMProcessor",
    "multi_task_loss",
]
