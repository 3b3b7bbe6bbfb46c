"""The encoders of MTMM: how they are built from a configuration, loaded, and run.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel


class EncoderStatesRecorder:
    """Keeps the chosen ones of an encoder's hidden states: 0 = its first layer's input, i = layer i's output.

    `output_hidden_states=True` would do the same, but takes a lock that a first
    `torch.compile(fullgraph=True)` cannot trace.
    """

    def __init__(self, encoder: PreTrainedModel, chosen: tuple[int, ...]) -> None:
        self.chosen = chosen
        self.states: dict[int, list[Tensor]] = {}  # by thread: several may run one model
        layers = _encoder_layers(encoder)
        layers[0].register_forward_pre_hook(self._keep_input)
        for layer in layers:
            layer.register_forward_hook(self._keep_output)

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if (states := self.states.get(_thread())) is not None:
            states.append(args[0])

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (states := self.states.get(_thread())) is not None:
            states.append(output[0] if isinstance(output, tuple) else output)

    def run(self, encoder: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        """(batch, chosen, time, width), a last layer's as the encoder's last hidden state."""
        thread = _thread()
        self.states[thread] = []
        try:
            last = encoder(**inputs).last_hidden_state
            states = [*self.states[thread][:-1], last]
            return torch.stack([states[layer] for layer in self.chosen], dim=1)
        finally:
            del self.states[thread]


def _thread() -> int:
    """Which thread this is; 0 in a traced graph, which has no word for it."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _encoder_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The encoder's transformer layers: the ModuleList as long as its configuration says."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == encoder.config.num_hidden_layers:
            if "Layer" in type(module[0]).__name__ and "Conv" not in type(module[0]).__name__:
                return module
    raise ValueError(
        f"`encoder_layers='weighted'` finds no list of {encoder.config.num_hidden_layers} layers in "
        f"{type(encoder).__name__}; use encoder_layers='last' with this encoder."
    )


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder from its configuration; of an encoder-decoder (Whisper) the encoder alone."""
    if type(config) not in AutoModel._model_mapping:
        raise ValueError(f"A {config.model_type!r} model is no encoder; give one of audio or text.")
    if not getattr(AutoModel._model_mapping[type(config)], "_supports_sdpa", False):
        config._attn_implementation = "eager"  # DeBERTa refuses what the other parts can use
    if not config.is_encoder_decoder:
        return AutoModel.from_config(config)
    with torch.device("meta"):  # names the encoder's class without making a decoder
        encoder_class = type(AutoModel.from_config(config).get_encoder())
    return encoder_class(config)


def load_encoder(name_or_path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained encoder, without layer drop and SpecAugment (see configuration_mtmm.py)."""
    config = AutoConfig.from_pretrained(name_or_path)
    for field in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    model = AutoModel.from_pretrained(name_or_path, config=config, dtype=dtype, weights_only=True)
    return model.get_encoder() if config.is_encoder_decoder else model


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


def is_trainable(encoder: nn.Module) -> bool:
    """By its parameters, not by the config: LoRA trains an encoder that the config calls frozen."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def as_mask(mask: Tensor | None, values: Tensor, axes: tuple[int, int]) -> Tensor:
    """`mask` as booleans, or all True over two axes of `values`."""
    if mask is None:
        return torch.ones(
            *(values.shape[axis] for axis in axes), dtype=torch.bool, device=values.device
        )
    return mask != 0
