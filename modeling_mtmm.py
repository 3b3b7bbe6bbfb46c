"""MTMM: two pretrained encoders, refinement, bridge fusion, two heads, and the loss of training.

The architecture of Ispas, Deschamps-Berger and Devillers 2023 (arXiv 2401.00536), uploaded to the Hub
beside the weights. Reading waveforms and transcripts is in processing_mtmm.py, training elsewhere.

Shapes: "frames" are the acoustic encoder's output positions (50 a second for HuBERT and Whisper),
"tokens" the linguistic one's, "keys" the longer of the two, "width" an encoder's hidden size.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

# The only imports among the Hub files. Relative first: as remote code these are neighbours in a
# package; in a checkout they are top-level modules. Processor and pipeline are named here so that
# saving a model takes their files along: transformers copies what a model's file imports.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .configuration_mtmm import MTMMConfig
        from .encoders_mtmm import (
            EncoderStatesRecorder,
            as_mask,
            average_frames,
            build_encoder,
            is_trainable,
            load_encoder,
        )
        from .fusion_mtmm import MTMMFusion, MTMMHead, MTMMInput, carry_to_values, unmask_absent
        from .loss_mtmm import ABSENT_EMOTION, at_least_float32, multi_task_loss
        from .pipeline_mtmm import MTMMPipeline
        from .processing_mtmm import MTMMProcessor, receptive_field
except ImportError:
    from configuration_mtmm import MTMMConfig
    from encoders_mtmm import (
        EncoderStatesRecorder,
        as_mask,
        average_frames,
        build_encoder,
        is_trainable,
        load_encoder,
    )
    from fusion_mtmm import MTMMFusion, MTMMHead, MTMMInput, carry_to_values, unmask_absent
    from loss_mtmm import ABSENT_EMOTION, at_least_float32, multi_task_loss
    from pipeline_mtmm import MTMMPipeline
    from processing_mtmm import MTMMProcessor, receptive_field

FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors calls them
# Weights that no forward pass reads; the second one only where there is no SpecAugment.
UNREAD = ("text_model.pooler.", "audio_model.masked_spec_embed")


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
        config.check()
        super().__init__(config)
        self.audio_model = build_encoder(config.encoder_config("audio"))
        self.text_model = build_encoder(config.encoder_config("text"))
        self.fusion = MTMMFusion(config)
        self.emotion_head = MTMMHead(config, len(config.emotion_names))
        self.dimension_head = MTMMHead(config, len(config.dimension_names))
        self._adopt_encoders()
        self.post_init()

    def _forget_outputs(self, drawn: set[str]) -> None:
        """Weights of these names are random now, so what is predicted through them is untrained."""
        of_heads = {"emotion_head": ("emotion",), "dimension_head": self.config.dimension_names}
        lost: set[str] = set()
        for key in drawn:
            if key.startswith(UNREAD):
                continue
            lost.update(of_heads.get(key.partition(".")[0], self.config.output_names))
        if lost:
            kept = [name for name in self.config.trained_outputs if name not in lost]
            self.config.trained_outputs = tuple(kept)

    def _adopt_encoders(self) -> None:
        """What must hold for the encoders, wherever they came from."""
        config = self.config
        if not hasattr(self.audio_model, "_get_feat_extract_output_lengths"):
            raise ValueError(
                f"{type(self.audio_model).__name__} is no acoustic encoder of waveforms or log-mel "
                "spectra; use HuBERT, wav2vec 2.0, WavLM or Whisper."
            )
        if self.text_model.main_input_name != "input_ids":
            raise ValueError(
                f"{type(self.text_model).__name__} is no linguistic encoder; use BERT, RoBERTa, DeBERTa "
                "or another that takes input_ids."
            )
        for encoder in (self.audio_model, self.text_model):
            encoder.config._name_or_path = ""  # else a private path is saved and published
            encoder.config.return_dict = True  # its outputs are read by name
        self._freeze_encoders()
        self._recorders = {}
        if config.encoder_layers == "weighted":
            audio, text = config.mixed_layers("audio"), config.mixed_layers("text")
            self._recorders["audio"] = EncoderStatesRecorder(self.audio_model, audio)
            self._recorders["text"] = EncoderStatesRecorder(self.text_model, text)

    def _freeze_encoders(self) -> None:
        if self.config.freeze_audio_encoder:
            self.audio_model.requires_grad_(False)
        if self.config.freeze_text_encoder:
            self.text_model.requires_grad_(False)
        # What no forward pass reads gets no gradient, and DistributedDataParallel would stop.
        augmented = getattr(self.audio_model.config, "apply_spec_augment", True)
        for name, parameter in self.named_parameters():
            if name.startswith(UNREAD) and not (name.startswith("audio_model.") and augmented):
                parameter.requires_grad_(False)
        if self.audio_model.main_input_name == "input_features":  # Whisper's sinusoids are fixed
            self.audio_model.embed_positions.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> "MTMMModel":
        """Load a saved model; as `PreTrainedModel.from_pretrained`, with its frozen encoders frozen.

        transformers draws weights that it does not find at random, and goes on with a warning. Here
        that must be asked for: by `ignore_mismatched_sizes=True`, or by `output_loading_info=True`
        where weights are missing or left over, since the caller is then told.

        Raises:
            ValueError: The configuration is not allowed; the weights are others than it describes,
                or not finite.
            OSError: A file is missing or damaged.
        """
        name = pretrained_model_name_or_path
        if name is not None and os.path.exists(name):
            _refuse_damaged_files(name)
        told = kwargs.pop("output_loading_info", False)
        drawn = kwargs.pop("ignore_mismatched_sizes", False)
        options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(name, *args, **options, **kwargs)
        model, found = loaded
        if not drawn:
            _refuse_other_weights(name, found, told)
        model._forget_outputs(
            {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
        )
        _refuse_infinite_weights(name, model)
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
        audio_model, text_model = load_encoder(audio, dtype), load_encoder(text, dtype)
        config = MTMMConfig(
            audio_config=audio_model.config,
            text_config=text_model.config,
            dtype=dtype,
            **config_fields,
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
        """Frozen encoders stay in eval mode: no dropout, whatever the rest does."""
        super().train(mode)
        for encoder in (self.audio_model, self.text_model):
            encoder.train(mode and is_trainable(encoder))
        return self

    def encode_audio(
        self, input_values: Tensor, audio_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The acoustic encoder's states, as `forward` takes them back.

        Args:
            input_values: Waveforms (batch, time) or log-mel spectra (batch, mels, frames).
            audio_attention_mask: (batch, time or frames), 1 = real, real positions first; None = all.

        Returns:
            `acoustic_states` (batch, frames, width), or (batch, layers, frames, width) with
            `encoder_layers="weighted"`, and `acoustic_attention_mask` (batch, frames) of booleans;
            with an `acoustic_stride`, a frame is the mean of so many of the encoder's.
        """
        encoder = self.audio_model
        self._refuse_other_audio(input_values)
        mask = as_mask(audio_attention_mask, input_values, axes=(0, -1))
        if input_values.dim() == 2:  # waveforms: the encoder fails on less than one frame
            missing = max(receptive_field(encoder.config) - input_values.shape[1], 0)
            input_values, mask = F.pad(input_values, (0, missing)), F.pad(mask, (0, missing))
        inputs = {encoder.main_input_name: input_values.to(encoder.dtype)}
        # Log-mel encoders take no mask. Waveform encoders with group norm were trained without one:
        # they normalise over the padded time axis, mask or no mask, so padding changes their result.
        if getattr(encoder.config, "feat_extract_norm", None) == "layer":
            inputs["attention_mask"] = unmask_absent(mask).long()
        states = self._run_encoder("audio", inputs)
        lengths = encoder._get_feat_extract_output_lengths(mask.sum(-1))
        frames = torch.arange(states.shape[-2], device=states.device)
        return average_frames(states, frames < lengths[:, None], self.config.acoustic_stride)

    def _refuse_other_audio(self, input_values: Tensor) -> None:
        """A processor of another acoustic encoder gives other inputs."""
        if self.audio_model.main_input_name == "input_features":
            mels = self.audio_model.config.num_mel_bins
            fits, wanted = input_values.shape[1:-1] == (mels,), f"(batch, {mels}, frames)"
        else:
            fits, wanted = input_values.dim() == 2, "(batch, time)"
        if not fits:
            raise ValueError(
                f"`input_values` are {tuple(input_values.shape)}, but {type(self.audio_model).__name__} "
                f"takes {wanted}; use the processor that was saved with this model."
            )

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
        if not torch.compiler.is_compiling():  # reads values, which a traced graph cannot
            _refuse_unknown_tokens(input_ids, self.get_input_embeddings().num_embeddings)
        mask = as_mask(attention_mask, input_ids, axes=(0, -1))
        inputs = {"input_ids": input_ids, "attention_mask": unmask_absent(mask).long()}
        return self._run_encoder("text", inputs), mask

    def _run_encoder(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        encoder = self.audio_model if modality == "audio" else self.text_model
        trainable = is_trainable(encoder)
        if encoder.training and not trainable:
            encoder.eval()  # frozen after the last call of train()
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            if modality in self._recorders:
                return self._recorders[modality].run(encoder, inputs)
            return encoder(**inputs).last_hidden_state

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
                log-mel spectra (batch, mels, frames).
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
            ValueError: No modality at all, for the batch or for one utterance; both inputs and
                states of one modality; audio shorter than the encoder's receptive field; padding
                on the left; labels of another shape.
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        _refuse_both("input_values", input_values, "acoustic_states", acoustic_states)
        _refuse_both("input_ids", input_ids, "linguistic_states", linguistic_states)
        inputs = (input_values, input_ids, acoustic_states, linguistic_states)
        given = next((tensor for tensor in inputs if tensor is not None), None)
        if given is None:
            raise ValueError(
                "MTMMModel got neither audio nor text; give `input_values` (or `acoustic_states`), "
                "`input_ids` (or `linguistic_states`), or both."
            )
        acoustic, acoustic_mask = self._states(
            "audio",
            given,
            input_values,
            audio_attention_mask,
            acoustic_states,
            acoustic_attention_mask,
        )
        linguistic, linguistic_mask = self._states(
            "text", given, input_ids, attention_mask, linguistic_states, linguistic_attention_mask
        )
        if acoustic.shape[0] != linguistic.shape[0]:
            raise ValueError(
                f"MTMMModel got {acoustic.shape[0]} utterances of audio and {linguistic.shape[0]} of "
                "text; give the same number, with zero mask rows where one is absent."
            )
        if not torch.compiler.is_compiling():  # reads values, which a traced graph cannot
            _refuse_gaps(
                audio_attention_mask=audio_attention_mask,
                attention_mask=attention_mask,
                acoustic_attention_mask=acoustic_attention_mask,
                linguistic_attention_mask=linguistic_attention_mask,
            )
            if input_values is not None:
                claimed = as_mask(audio_attention_mask, input_values, axes=(0, -1)).any(-1)
                _refuse_too_short(claimed & ~acoustic_mask.any(-1))
            _refuse_absent(~(acoustic_mask.any(-1) | linguistic_mask.any(-1)))
            if self.training:
                self._record_trained_outputs(emotion_labels, dimension_labels)
        fused = self.fusion(acoustic, acoustic_mask, linguistic, linguistic_mask, output_attentions)
        logits = self.emotion_head(fused.fused_state)
        low, high = self.config.dimension_range
        scores = at_least_float32(self.dimension_head(fused.fused_state))
        dimensions = low + (high - low) * scores.sigmoid()
        _refuse_other_labels("emotion_labels", emotion_labels, logits.shape[:1])
        _refuse_other_labels("dimension_labels", dimension_labels, dimensions.shape)
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
        encode = self.encode_audio if modality == "audio" else self.encode_text
        encoder = self.audio_model if modality == "audio" else self.text_model
        dtype = self.fusion.output_norm.weight.dtype
        if states is not None:
            return states.to(dtype), as_mask(states_mask, states, axes=(0, -2))
        if inputs is not None:
            states, mask = encode(inputs, inputs_mask)
            return states.to(dtype), mask
        batch = given.shape[0]
        if torch.is_grad_enabled() and is_trainable(encoder):
            # Every trainable parameter must get a gradient, and under FSDP every process must enter
            # the encoder, so one empty utterance passes through it; its mask hides it.
            states = encode(self._empty_input(modality, given.device))[0].to(dtype)
            states = states.expand(batch, *states.shape[1:])
        else:
            layers = len(self.config.mixed_layers(modality))
            shape = (batch, *([layers] if layers else []), 1, encoder.config.hidden_size)
            states = torch.zeros(shape, dtype=dtype, device=given.device)
        return states, torch.zeros(batch, states.shape[-2], dtype=torch.bool, device=given.device)

    def _empty_input(self, modality: str, device: torch.device) -> Tensor:
        if modality == "text":
            return torch.full((1, 1), self.text_model.config.pad_token_id or 0, device=device)
        config = self.audio_model.config
        if self.audio_model.main_input_name == "input_features":
            window = 2 * config.max_source_positions
            return torch.zeros(1, config.num_mel_bins, window, device=device)
        return torch.zeros(1, receptive_field(config), device=device)

    def _record_trained_outputs(
        self, emotion_labels: Tensor | None, dimension_labels: Tensor | None
    ) -> None:
        """Note in the config which outputs have now seen labels; reads a value at most until then."""
        untrained = [
            name
            for name, weight in self.config.loss_weights.items()
            if weight > 0 and name not in self.config.trained_outputs
        ]
        for name in untrained:
            if name == "emotion":
                seen = emotion_labels is not None and bool((emotion_labels != ABSENT_EMOTION).any())
            else:
                column = self.config.dimension_names.index(name)
                seen = dimension_labels is not None and not bool(
                    dimension_labels[:, column].isnan().all()
                )
            if seen:
                self.config.trained_outputs = (*self.config.trained_outputs, name)


def _mean_attention(layers: tuple[Tensor, ...] | None) -> Tensor:
    """Over layers, heads and bridge tokens: (batch, keys), float32 at least."""
    assert layers is not None, "without `output_attentions`"
    return at_least_float32(torch.stack(layers)).mean(dim=(0, 2, 3))


def _refuse_both(
    inputs_name: str, inputs: Tensor | None, states_name: str, states: Tensor | None
) -> None:
    if inputs is not None and states is not None:
        raise ValueError(
            f"MTMMModel got both `{inputs_name}` and `{states_name}`; give the input or its encoder states."
        )


def _refuse_gaps(**masks: Tensor | None) -> None:
    """(batch, time): padding before or between real positions would be heard as real ones."""
    gaps = {
        name: ((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any(-1)
        for name, mask in masks.items()
        if mask is not None
    }
    if not gaps or not bool(torch.stack([rows.any() for rows in gaps.values()]).any()):
        return
    name = next(name for name, rows in gaps.items() if bool(rows.any()))
    raise ValueError(
        f"`{name}` has zeros before ones in rows {gaps[name].nonzero().flatten().tolist()}; real "
        'positions must come first: pad on the right (padding_side="right").'
    )


def _refuse_other_labels(name: str, labels: Tensor | None, shape: torch.Size) -> None:
    if labels is not None and labels.shape != shape:
        raise ValueError(f"`{name}` are {tuple(labels.shape)}; they must be {tuple(shape)}.")


def _refuse_too_short(too_short: Tensor) -> None:
    """(batch,): has audio, but not enough of it for one frame."""
    if bool(too_short.any()):
        rows = too_short.nonzero().flatten().tolist()
        raise ValueError(
            f"The audio of utterances {rows} of this batch is shorter than one frame of the acoustic "
            "encoder; leave them out, or zero their mask rows to use their text alone."
        )


def _refuse_unknown_tokens(input_ids: Tensor, known: int) -> None:
    """On a GPU an id beyond the embeddings would end the process."""
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < known:
        raise ValueError(
            f"`input_ids` go from {int(input_ids.min())} to {int(input_ids.max())}, but the linguistic "
            f"encoder knows 0 to {known - 1}; use the processor that was saved with this model."
        )


def _refuse_absent(absent: Tensor) -> None:
    """(batch,): has neither modality."""
    if bool(absent.any()):
        rows = absent.nonzero().flatten().tolist()
        raise ValueError(
            f"Utterances {rows} of this batch have neither audio nor text; each needs at least one "
            "(a mask row that is all zero means absent)."
        )


def _refuse_damaged_files(folder: str) -> None:
    """Weights that are cut off, or no safetensors at all, or whose numbers are no floats."""
    again = "Copy or save them again."
    try:
        files = get_local_safetensors_metadata(folder).files_metadata
    except NotASafetensorsRepoError:
        return  # transformers says what it looked for
    except (SafetensorsParsingError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise OSError(
            f"The weights in {folder} are damaged: {str(error).rstrip('.')}. {again}"
        ) from error
    for file, content in files.items():
        path = f"{folder}/{file}"
        # The length of the header comes first, eight bytes; then the header, then the tensors.
        header = torch.from_file(path, size=8, dtype=torch.uint8).view(torch.int64).item()
        ends = [tensor.data_offsets[1] for tensor in content.tensors.values()]
        size, whole = os.path.getsize(path), 8 + header + max(ends, default=0)
        if size != whole:
            raise OSError(
                f"The weights in {path} are damaged: {size:,} bytes of {whole:,}. {again}"
            )
        kinds = {tensor.dtype for tensor in content.tensors.values()} - FLOATS
        if kinds:
            raise ValueError(
                f"The weights in {path} are of type {', '.join(sorted(kinds))}, which would be cast; "
                "save the model again as float32, float16 or bfloat16."
            )


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


def _refuse_infinite_weights(name: Any, model: nn.Module) -> None:
    for key, weights in model.named_parameters():
        # A training that diverged ruins these first. The encoders are nearly all of the file, which is
        # read when it is used: to look through them would double the time that loading takes.
        if key.startswith(("audio_model.", "text_model.")):
            continue
        if weights.is_meta or not weights.numel() or weights.element_size() < 2:
            continue  # kept on disk, or quantised
        if not bool(torch.stack(weights.detach().aminmax()).isfinite().all()):
            raise ValueError(
                f"The weights {key!r} of {name} are NaN or infinite: its training diverged, or the file "
                "is damaged. Give an earlier checkpoint, or train again with a lower learning rate."
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
