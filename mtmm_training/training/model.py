"""Building the model of a run, choosing what of it trains, and loading its best epoch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.training import adapters
from mtmm_training.training.checkpoints import Checkpoints
from mtmm_training.training.config import TrainConfig


def planned(config: TrainConfig) -> MTMMConfig:
    """What the flags say of the model's outputs and loss; of its encoders nothing."""
    names = ("id2label", "dimension_names", "emotion_loss_weight", "dimension_loss_weights")
    fields = {name: value for name, value in model_fields(config).items() if name in names}
    if config.model is not None:
        return MTMMConfig.from_pretrained(config.model, **fields)
    return MTMMConfig(**fields)


def build_model(config: TrainConfig, rated: Sequence[str] = ()) -> tuple[MTMMModel, MTMMProcessor]:
    """Model and processor from pretrained encoders, or from a model that was trained before.

    Seeded: a second call gives the same model. It gets a head for the raters' spread if dimensions
    are rated and it has none.
    """
    processor = load_processor(config)
    set_seed(config.seed)
    fields = model_fields(config)
    if config.model is not None:
        model = MTMMModel.from_pretrained(config.model, dtype=torch.float32, **fields)
    else:
        encoders = config.audio_encoder, config.text_encoder
        model = MTMMModel.from_encoders_pretrained(*encoders, **fields)
    model.config.temperature = 1.0
    if rated and model.deviation_head is None:
        model.add_deviation_head(rated)
    return model, processor


def model_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields of the model's configuration that the flags set."""
    return json.loads(config.model_config) | {
        "id2label": dict(enumerate(config.emotions)),
        "dimension_names": config.dimensions,
        "dimension_range": config.dimension_range,
    }


def load_processor(config: TrainConfig) -> MTMMProcessor:
    """The processor of the encoders, or of the model that was trained before."""
    if config.model is not None:
        return MTMMProcessor.from_pretrained(config.model)
    window_s = json.loads(config.model_config).get("audio_window_s")
    encoders = config.audio_encoder, config.text_encoder
    return MTMMProcessor.from_encoders_pretrained(*encoders, audio_window_s=window_s)


def choose_trained(config: TrainConfig, model: MTMMModel) -> nn.Module:
    """The model with what the flags train: adapters, top layers, or what its configuration says."""
    for modality, encoder in (("audio", model.audio_model), ("text", model.text_model)):
        if modality not in config.modalities:
            encoder.requires_grad_(False)  # it gets no input, so it can learn nothing
    if config.lora_rank:
        return adapters.add_lora(model, config.lora_rank, modalities=config.modalities)
    if config.unfreeze_audio_layers:
        adapters.unfreeze_top_layers(model.audio_model, config.unfreeze_audio_layers)
    if config.unfreeze_text_layers:
        adapters.unfreeze_top_layers(model.text_model, config.unfreeze_text_layers)
    return model


def best_model(
    config: TrainConfig,
    outputs: Sequence[str],
    rated: Sequence[str],
    checkpoints: Checkpoints,
    adapter: Path | None,
) -> MTMMModel:
    """The best epoch's weights in a plain model, made anew.

    The one that was trained may be sharded, compiled, of lower precision, or have adapters; those
    are merged here, and written into the folder `adapter` unless it is None.
    """
    model, _ = build_model(config, rated)
    model.config.trained_outputs = tuple(outputs)
    if not config.lora_rank:
        checkpoints.load_best(choose_trained(config, model))
        return model
    encoders = {"audio_encoder": config.audio_encoder, "text_encoder": config.text_encoder}
    names = encoders if config.model is None else {"model": config.model}
    base = adapters.describe_base(model, **names)
    with_adapters: Any = choose_trained(config, model)
    checkpoints.load_best(with_adapters)
    if adapter is not None:
        adapters.save_adapters(with_adapters, adapter, base)
    return with_adapters.merge_and_unload(safe_merge=True).eval()


def parameter_counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Trained and frozen parameters of each part."""
    counts = {}
    for name, part in adapters.without_adapters(model).named_children():
        trained = frozen = 0
        for parameter, p in part.named_parameters():
            if p.requires_grad:
                trained += p.numel()
            elif not parameter.startswith("original_module."):  # peft's copy of what it trains
                frozen += p.numel()
        counts[name] = (trained, frozen)
    return counts
