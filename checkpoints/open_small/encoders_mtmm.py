"""The encoders of MTMM: how any encoder of transformers is built, loaded, and given its input.

Uploaded to the Hub with the others.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

# Relative first: as remote code these are neighbours in a package; in a checkout they are top-level
# modules.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .fast_mtmm import use_fast_ways
except ImportError:
    from fast_mtmm import use_fast_ways

# What transformers calls the mask over the input, and the number of features of a frame.
MASK_ARGUMENTS = ("attention_mask", "input_features_mask", "padding_mask")
FEATURE_FIELDS = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
# Of an encoder's states: Gemma's and OPT's are projected behind the last layer.
WIDTH_FIELDS = ("output_proj_dims", "word_embed_proj_dim", "hidden_size")
FRAMES_METHODS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
# Weights that no forward pass reads; the second one only where there is no SpecAugment.
UNUSED_WEIGHTS = ("text_model.pooler.", "audio_model.masked_spec_embed")
MASKS = [f"{of}attention_mask" for of in ("audio_", "acoustic_", "", "linguistic_")]


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder from its configuration; of an encoder-decoder (Whisper, T5) the encoder alone."""
    kind = AutoModel._model_mapping.get(type(config), None)
    if not getattr(kind, "_supports_sdpa", False):
        config._attn_implementation = "eager"  # DeBERTa refuses what the other parts can use
    return _encoder_of(AutoModel.from_config(config))


def load_encoder(
    name_or_path: str,
    dtype: torch.dtype | str,
    positions: int | None = None,
    use_safetensors: bool | None = None,
    **hub: Any,
) -> tuple[PreTrainedModel, PreTrainedConfig]:
    """A pretrained encoder and the configuration that builds it, without layer drop and SpecAugment.

    A dropped layer has no gradient, and SpecAugment fails on very short recordings.

    Args:
        name_or_path: Folder or Hub id.
        dtype: Type of its weights; "auto" = as they were saved.
        positions: How many of the positions of Whisper's kind are kept; None = all.
        use_safetensors: Whether files of another kind are refused.
        hub: Revision, token, cache and the like, as of `from_pretrained`.

    Raises:
        ValueError: The encoder has not so many positions.
    """
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    off = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False}
    for field, value in off.items():
        if hasattr(config, field):
            setattr(config, field, value)
    how: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": use_safetensors}
    model = AutoModel.from_pretrained(name_or_path, weights_only=True, **how, **hub)
    encoder: Any = _encoder_of(model)
    if positions is not None:
        has = getattr(model.config, "max_source_positions", 0)
        if positions > has:
            raise ValueError(f"{name_or_path} has {has} positions, and {positions} are wanted.")
        if positions < has:
            table = encoder.embed_positions
            table.weight = nn.Parameter(table.weight[:positions].clone(), requires_grad=False)
            table.num_embeddings = positions
            encoder.max_source_positions = model.config.max_source_positions = positions
    return encoder, model.config


def _encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    encoder: PreTrainedModel = model.get_encoder() if model.config.is_encoder_decoder else model
    return encoder


def _is_trainable(encoder: nn.Module) -> bool:
    """By its parameters, not by the config: LoRA trains an encoder that the config calls frozen."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def receptive_field(config: PreTrainedConfig) -> int:
    """Samples that a waveform encoder needs for its first frame: 400 (25 ms) for HuBERT-large."""
    samples = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


@dataclass(frozen=True)
class EncoderInput:
    """How one encoder takes its input: looked up once, when the model is built.

    Args:
        name: The input's argument.
        mask_name: The mask's argument; None where the encoder takes none, or normalises over padding.
        mels_first: Log-mel spectra are (batch, mels, frames), as Whisper's; else frames come first.
        features: Features of a frame; None for waveforms and tokens.
        shortest: Samples, frames or tokens of an input that gives one state at least.
        width: Width of the encoder's states.
    """

    name: str
    mask_name: str | None
    mels_first: bool
    features: int | None
    shortest: int
    width: int

    @classmethod
    def of(cls, encoder: PreTrainedModel) -> "EncoderInput":
        """What this encoder takes, by its configuration and the arguments of its forward."""
        config, name = encoder.config, encoder.main_input_name
        arguments = inspect.signature(encoder.forward).parameters
        mask_name = next((name for name in MASK_ARGUMENTS if name in arguments), None)
        features = next((n for f in FEATURE_FIELDS if (n := getattr(config, f, None))), None)
        if features is None and name == "input_features":
            features = 128  # Gemma's, whose configuration does not say
        convolutions = [part for part in encoder.modules() if isinstance(part, nn.Conv1d)]
        mels = getattr(config, "num_mel_bins", None)
        mels_first = bool(convolutions) and convolutions[0].in_channels == mels
        # With group norm the mean goes over padding too, mask or no mask; trained without one.
        # Whisper's kind hears its whole window; what some call a mask is none over the input.
        if getattr(config, "feat_extract_norm", None) == "group" or (
            mels_first and mask_name == "attention_mask"
        ):
            mask_name = None
        shortest = 1
        if mels_first:  # the whole window, which most of these insist on
            shortest = 2 * getattr(config, "max_source_positions", 100)
        elif features is not None:
            shortest = getattr(config, "max_length", None) or 100
        elif name == "input_values":
            shortest = receptive_field(config) if hasattr(config, "conv_kernel") else 16000
        return cls(name, mask_name, mels_first, features, shortest, _width(config))

    def time_axis(self, values: Tensor) -> int:
        """The axis of samples, frames or tokens."""
        return 1 if values.dim() == 3 and not self.mels_first else -1

    def empty(self, device: torch.device, pad_token_id: int) -> Tensor:
        """One input without content."""
        if self.name == "input_ids":
            return torch.full((1, 1), pad_token_id, device=device)
        if self.features is None:
            return torch.zeros(1, self.shortest, device=device)
        empty = torch.zeros(1, self.shortest, self.features, device=device)
        return empty.transpose(1, 2) if self.mels_first else empty

    def arguments(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Arguments of the encoder's `forward`; `mask` (batch, time) of booleans.

        An absent input counts as all real: no kernel may see a row that is masked whole.
        """
        given = {self.name: values}
        if self.mask_name is not None:
            given[self.mask_name] = (mask | ~mask.any(dim=-1, keepdim=True)).long()
        return given


def _width(config: PreTrainedConfig) -> int:
    if getattr(config, "add_adapter", False):  # of wav2vec 2.0: layers behind the encoder's own
        return config.output_hidden_size
    widths = (width for f in WIDTH_FIELDS if (width := getattr(config, f, None)))
    return next(widths, None) or config.get_text_config().hidden_size


def _acoustic_frames(
    encoder: Any, states: Tensor, mask: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """States and which of them are real, from the mask over the encoder's input.

    Args:
        encoder: Says how many frames it makes of an input.
        states: (batch, frames, width), or (batch, layers, frames, width).
        mask: (batch, time) of booleans.
        stride: Means are taken over so many consecutive real frames; the last one may be over fewer.

    Returns:
        `states` and a mask (batch, frames), of ⌈frames / stride⌉.
    """
    frames = states.shape[-2]
    counts = _frame_counts(encoder, mask.sum(-1), frames / mask.shape[-1])
    real = torch.arange(frames, device=mask.device) < counts[:, None]
    mask = real & mask.any(-1, keepdim=True)
    if stride == 1:
        return states, mask
    missing = -frames % stride
    states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    shares = mask.unflatten(-1, (-1, stride)).to(states.dtype)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1)
    if states.dim() == 4:
        shares = shares[:, None]
    averages = torch.einsum("...fsw,...fs->...fw", states.unflatten(-2, (-1, stride)), shares)
    return averages, mask[:, ::stride]


def _frame_counts(encoder: Any, lengths: Tensor, ratio: float) -> Tensor:
    """How many frames inputs of these lengths become; `ratio`: frames by input positions."""
    method = next((m for name in FRAMES_METHODS if (m := getattr(encoder, name, None))), None)
    if method is None:
        return (lengths * ratio).ceil()
    try:
        counts = method(lengths)
    except (TypeError, ValueError, RuntimeError):  # Moonshine counts one utterance at a time
        return lengths.new_tensor([method(length) for length in lengths.tolist()])
    # Some count behind the first convolutions, and behind all.
    return counts[-1] if isinstance(counts, tuple) else counts


def as_mask(mask: Tensor | None, values: Tensor, axes: tuple[int, int]) -> Tensor:
    """`mask` as booleans, or all True over two axes of `values`."""
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask != 0
    sizes = [values.shape[axis] for axis in axes]
    return torch.ones(sizes, dtype=torch.bool, device=values.device)


def refuse_rows(
    input_values: Tensor | None,
    masks: tuple[Tensor | None, ...],
    acoustic_mask: Tensor,
    linguistic_mask: Tensor,
) -> None:
    """Refuse utterances whose masks, in the CPU's memory, would be misread; numpy is fastest at it."""
    frames, tokens = acoustic_mask.numpy(), linguistic_mask.numpy()
    heard, said = frames.any(-1), tokens.any(-1)
    faults: dict[str, Any] = {"there is neither audio nor text": ~(heard | said)}
    real: dict[str, Any] = dict(zip(MASKS, (None, frames, tokens, tokens), strict=True))
    if input_values is not None:
        claimed = real[MASKS[0]] = as_mask(masks[0], input_values, axes=(0, -1)).numpy()
        short = claimed.any(-1) & ~heard
        faults = {"the audio is shorter than one frame of the encoder": short} | faults
    for name, mask in zip(MASKS, masks, strict=True):
        if mask is not None and real[name] is not None:
            gaps = (real[name][:, 1:] > real[name][:, :-1]).any(-1)
            faults[f"`{name}` has zeros before ones (pad on the right)"] = gaps
    for fault, rows in faults.items():
        if rows.any():
            raise ValueError(f"In rows {rows.nonzero()[0].tolist()} of the batch {fault}.")


class MTMMEncoders(PreTrainedModel):
    """The part of [`MTMMModel`] that runs its two encoders."""

    config: Any  # an MTMMConfig
    audio_model: Any  # of any family: PreTrainedModel names little of what they share
    text_model: Any
    fusion: Any  # an MTMMFusion

    def encoder_of(self, modality: str) -> Any:
        """The encoder of "audio" or "text"."""
        return self.audio_model if modality == "audio" else self.text_model

    def _adopt_encoders(self) -> None:
        """What must hold for the encoders, wherever they came from."""
        self._audio_input = EncoderInput.of(self.audio_model)
        self._text_input = EncoderInput.of(self.text_model)
        for modality in ("audio", "text"):
            encoder = self.encoder_of(modality)
            use_fast_ways(encoder)
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
        unused = UNUSED_WEIGHTS[:1] if augmented else UNUSED_WEIGHTS
        for name, parameter in self.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)
        if self._audio_input.mels_first and hasattr(self.audio_model, "embed_positions"):
            self.audio_model.embed_positions.requires_grad_(False)  # Whisper's sinusoids are fixed

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
        states = self._run_encoder("audio", takes.arguments(input_values.to(encoder.dtype), mask))
        return _acoustic_frames(encoder, states, mask, self.config.acoustic_stride)

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
        return self._run_encoder("text", self._text_input.arguments(input_ids, mask)), mask

    def _run_encoder(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        encoder = self.encoder_of(modality)
        trainable = _is_trainable(encoder)
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

    def _states_of(
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
        encoder = self.encoder_of(modality)
        takes = self._audio_input if audio else self._text_input
        batch = given.shape[0]
        if torch.is_grad_enabled() and _is_trainable(encoder):
            # Every trainable parameter must get a gradient, and under FSDP every process must enter
            # the encoder, so one empty utterance passes through it; its mask hides it.
            pad_token_id = getattr(encoder.config, "pad_token_id", None) or 0
            states = encode(takes.empty(given.device, pad_token_id))[0].to(dtype)
            states = states.expand(batch, *states.shape[1:])
        else:
            layers = len(self.config.mixed_layers(modality))
            shape = (batch, *([layers] if layers else []), 1, takes.width)
            states = torch.zeros(shape, dtype=dtype, device=given.device)
        return states, torch.zeros(batch, states.shape[-2], dtype=torch.bool, device=given.device)
