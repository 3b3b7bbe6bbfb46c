"""The encoders of MTMM: how any encoder of transformers is built, loaded, and given its input.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

# What transformers calls the mask over the input, and the number of features of a frame.
MASK_ARGUMENTS = ("attention_mask", "input_features_mask", "padding_mask")
FEATURE_FIELDS = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
FRAMES_METHODS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder from its configuration; of an encoder-decoder (Whisper, T5) the encoder alone."""
    kind = AutoModel._model_mapping.get(type(config), None)
    if not getattr(kind, "_supports_sdpa", False):
        config._attn_implementation = "eager"  # DeBERTa refuses what the other parts can use
    return _encoder_of(AutoModel.from_config(config))


def load_encoder(name_or_path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedConfig]:
    """A pretrained encoder and the configuration that builds it, without layer drop and SpecAugment.

    A dropped layer has no gradient, and SpecAugment fails on very short recordings.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    for field in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    model = AutoModel.from_pretrained(name_or_path, config=config, dtype=dtype, weights_only=True)
    return _encoder_of(model), model.config


def _encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    encoder: PreTrainedModel = model.get_encoder() if model.config.is_encoder_decoder else model
    return encoder


def encoder_width(encoder: PreTrainedModel) -> int:
    """Width of an encoder's states."""
    config = encoder.config
    if getattr(config, "add_adapter", False):  # of wav2vec 2.0: layers behind the encoder's own
        return config.output_hidden_size
    if hasattr(config, "hidden_size"):
        return config.hidden_size
    return config.get_text_config().hidden_size


def is_trainable(encoder: nn.Module) -> bool:
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
    """

    name: str
    mask_name: str | None
    mels_first: bool
    features: int | None
    shortest: int

    @classmethod
    def of(cls, encoder: PreTrainedModel) -> "EncoderInput":
        config = encoder.config
        arguments = inspect.signature(encoder.forward).parameters
        mask_name = next((name for name in MASK_ARGUMENTS if name in arguments), None)
        # With group norm the mean goes over padding too, mask or no mask; trained without one.
        if getattr(config, "feat_extract_norm", None) == "group":
            mask_name = None
        features = next((n for f in FEATURE_FIELDS if (n := getattr(config, f, None))), None)
        convolutions = (part for part in encoder.modules() if isinstance(part, nn.Conv1d))
        first = next(convolutions, None)
        mels_first = first is not None and first.in_channels == getattr(
            config, "num_mel_bins", None
        )
        shortest = 1
        if mels_first:  # the whole window, which most of these insist on
            shortest = 2 * getattr(config, "max_source_positions", 100)
        elif features is not None:
            shortest = getattr(config, "max_length", None) or 100
        elif encoder.main_input_name == "input_values":
            shortest = receptive_field(config) if hasattr(config, "conv_kernel") else 16000
        return cls(encoder.main_input_name, mask_name, mels_first, features, shortest)

    def time_axis(self, values: Tensor) -> int:
        """The axis of samples, frames or tokens."""
        return 1 if values.dim() == 3 and not self.mels_first else -1

    def empty(self, device: torch.device, pad_token_id: int) -> Tensor:
        """One input without content."""
        if self.name == "input_ids":
            return torch.full((1, 1), pad_token_id, device=device)
        if self.features is None:
            return torch.zeros(1, self.shortest, device=device)
        shape = (
            (self.features, self.shortest) if self.mels_first else (self.shortest, self.features)
        )
        return torch.zeros(1, *shape, device=device)

    def arguments(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Arguments of the encoder's `forward`; `mask` (batch, time) of booleans."""
        given = {self.name: values}
        return given if self.mask_name is None else given | {self.mask_name: mask.long()}


def frame_mask(encoder: Any, mask: Tensor, frames: int) -> Tensor:
    """Which of an acoustic encoder's frames are real, by the mask over its input: (batch, frames)."""
    lengths = mask.sum(-1)
    method = next((m for name in FRAMES_METHODS if (m := getattr(encoder, name, None))), None)
    if method is None:  # in proportion
        counts = (lengths * frames / mask.shape[-1]).ceil()
    else:
        try:
            counts = method(lengths)
        except (TypeError, ValueError, RuntimeError):  # Moonshine counts one utterance at a time
            counts = lengths.new_tensor([method(length) for length in lengths.tolist()])
        if isinstance(counts, tuple):  # behind the first convolutions, and behind all
            counts = counts[-1]
    real = torch.arange(frames, device=mask.device) < counts[:, None]
    return real & mask.any(-1, keepdim=True)


def average_frames(states: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Means over `stride` consecutive real frames; the last one may be over fewer.

    `states` (batch[, layers], frames, width) and `mask` (batch, frames), of ⌈frames / stride⌉ after.
    """
    if stride == 1:
        return states, mask
    missing = -states.shape[-2] % stride
    states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    shares = mask.unflatten(-1, (-1, stride)).to(states.dtype)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1)
    if states.dim() == 4:
        shares = shares[:, None]
    averages = torch.einsum("...fsw,...fs->...fw", states.unflatten(-2, (-1, stride)), shares)
    return averages, mask[:, ::stride]


def as_mask(mask: Tensor | None, values: Tensor, axes: tuple[int, int]) -> Tensor:
    """`mask` as booleans, or all True over two axes of `values`."""
    if mask is None:
        return torch.ones(
            *(values.shape[axis] for axis in axes), dtype=torch.bool, device=values.device
        )
    return mask != 0
