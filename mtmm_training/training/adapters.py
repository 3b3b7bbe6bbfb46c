"""What of the encoders trains: LoRA adapters, or the top layers; and adapters merged into a model.

A folder of adapters holds them, fusion, heads, configuration and processor, but not the encoders:
base.json says which those are, a file's place on this machine left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from configuration_mtmm import MTMMConfig
from encoders_mtmm import UNUSED_WEIGHTS
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.fingerprint import weights_digest
from mtmm_training.data.files import read_json, write_json, writing

# What LoRA trains beside its adapters, where a model has it.
IN_FULL = ("fusion", "emotion_head", "dimension_head", "deviation_head")
ENCODERS = {"audio": "audio_model", "text": "text_model"}
BASE_FILE, WEIGHTS_FILE = "base.json", "adapter_model.safetensors"
FAMILIARITY_FILE = "familiarity.safetensors"  # what the whole model learned of its training data

ADAPTED = "att"  # adapters are on the linear maps under attention, attn, self_attn, ...
# WavLM's attention reads the weights of its maps without calling them, so that adapters there would
# do nothing.
ADAPTED_ELSEWHERE = {"wavlm": "feed_forward"}
LAST_NORMS = ("layer_norm", "final_layer_norm")  # names of the norm after all layers


def layers_of(encoder: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of an encoder's transformer layers, and its name.

    Raises:
        ValueError: There is none.
    """
    count = encoder.config.num_hidden_layers
    lists = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    if not lists:
        raise ValueError(
            f"{type(encoder).__name__} has no list of its {count} layers; train it in full, or freeze it."
        )
    # Of lists of one length, such as convolutions, the largest.
    return max(lists.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


# ---- what trains -------------------------------------------------------------------------------


def add_lora(
    model: MTMMModel,
    rank: int,
    alpha: float = 16.0,
    dropout: float = 0.05,
    modalities: Sequence[str] = ("audio", "text"),
) -> PeftModel:
    """Freeze a model's encoders, add adapters to their attention, train fusion and heads in full.

    The adapters begin as zero, so that the outputs are unchanged.

    Args:
        model: Changed in place.
        rank: Rank of the adapters, at least 1.
        alpha: Their outputs are multiplied by `alpha / rank`.
        dropout: On their inputs, 0 up to 1.
        modalities: Whose encoders get adapters.

    Raises:
        ValueError: An encoder has no list of layers.
    """
    names = []
    for modality in modalities:
        encoder: PreTrainedModel = getattr(model, ENCODERS[modality])
        place = ADAPTED_ELSEWHERE.get(encoder.config.model_type, ADAPTED)
        layers, modules = layers_of(encoder)
        names += [
            f"{ENCODERS[modality]}.{layers}.{name}"
            for name, module in modules.named_modules()
            if isinstance(module, nn.Linear) and place in name
        ]
        _freeze(encoder)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by the rank; any number will do
        lora_dropout=dropout,
        target_modules=names,
        modules_to_save=[name for name in IN_FULL if getattr(model, name) is not None],
    )
    return get_peft_model(model, config)


def unfreeze_top_layers(encoder: PreTrainedModel, count: int) -> None:
    """Train an encoder's last `count` layers, with the layer norm after them, and nothing else of it.

    Raises:
        ValueError: The encoder has no list of layers, or fewer of them.
    """
    name, layers = layers_of(encoder)
    if not 1 <= count <= len(layers):
        raise ValueError(f"{type(encoder).__name__} has {len(layers)} layers, not {count}.")
    _freeze(encoder)
    layers[-count:].requires_grad_(True)
    # Without stable layer norm, wav2vec 2.0 and its kin have this norm before their layers.
    if getattr(encoder.config, "do_stable_layer_norm", True):
        parent = encoder.get_submodule(name.rpartition(".")[0])
        for norm, module in parent.named_children():
            if norm in LAST_NORMS:
                module.requires_grad_(True)


def _freeze(encoder: PreTrainedModel) -> None:
    encoder.requires_grad_(False)
    if hasattr(encoder, "feature_extractor"):
        # In training, wav2vec 2.0 and its kin else keep the activations of their convolutions, as if
        # the frozen ones were to be trained.
        convolutions: Any = encoder.feature_extractor
        convolutions._freeze_parameters()


def without_adapters(model: nn.Module) -> Any:
    """The MTMM model inside a model with adapters, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


# ---- saved and merged --------------------------------------------------------------------------


def describe_base(base: MTMMModel, /, **names: str | None) -> dict[str, Any]:
    """What base.json says: Hub ids, and the digests of both encoders.

    Args:
        base: Without adapters yet.
        names: `model`, or `audio_encoder` and `text_encoder`: Hub ids, or folders, whose place is
            not written down.
    """
    public = {n: None if own is None or Path(own).exists() else own for n, own in names.items()}
    # Of both encoders, also where one has no adapters: its states are fused all the same. Left out is
    # what no forward pass reads, and transformers draws anew where a checkpoint lacks it: the pooler,
    # and `masked_spec_embed`, which lies beside the parts.
    digests = {
        modality: {
            part: weights_digest(module)
            for part, module in getattr(base, name).named_children()
            if not f"{name}.{part}.".startswith(UNUSED_WEIGHTS)
        }
        for modality, name in ENCODERS.items()
    }
    return public | {"encoders": digests}


def save_adapters(model: PeftModel, folder: str | Path, base: dict[str, Any]) -> None:
    """Write adapters, fusion, heads and configuration; the processor is the caller's to add.

    Args:
        model: What [`add_lora`] returned.
        folder: Made where it is not.
        base: What [`describe_base`] said before the adapters were added.
    """
    plain, name = without_adapters(model), base.get("model")
    plain.name_or_path = name or ""  # else peft writes a private path
    model.peft_config["default"].base_model_name_or_path = name
    with writing(folder):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        Path(folder, "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
        plain.config.save_pretrained(folder)
    write_json(base, Path(folder, BASE_FILE))


def merge(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    base: str | None = None,
    audio_encoder: str | None = None,
    text_encoder: str | None = None,
) -> MTMMModel:
    """Add a folder's adapters to the encoders' weights: a plain model with the same outputs.

    Args:
        folder: The folder that [`save_adapters`] wrote.
        out: Where to save the model, with the folder's processor; None = nowhere.
        base: Folder or Hub id of the MTMM model that was trained on, if base.json does not name it.
        audio_encoder, text_encoder: The same for a run that began from encoders.

    Raises:
        ValueError: The base is not known, or not the one that the adapters were trained on; or the
            folder's files do not belong together.
    """
    folder = Path(folder)
    given = {"model": base, "audio_encoder": audio_encoder, "text_encoder": text_encoder}
    saved = read_json(folder / BASE_FILE, "encoders")
    names = {name: given[name] or saved.get(name) for name in given}
    config = MTMMConfig.from_pretrained(folder)
    config.familiarity = False  # its statistics come last
    if names["model"] is not None:
        config.familiarity = MTMMConfig.from_pretrained(names["model"]).familiarity
        model = MTMMModel.from_pretrained(names["model"], config=config)
    elif names["audio_encoder"] is not None and names["text_encoder"] is not None:
        own = set(MTMMConfig.__annotations__) - {"audio_config", "text_config"}
        fields = {name: getattr(config, name) for name in sorted(own)}
        model = MTMMModel.from_encoders_pretrained(
            names["audio_encoder"], names["text_encoder"], **fields
        )
    else:
        raise ValueError(f"{folder} names no base; give --base, or both encoders.")
    found = describe_base(model)["encoders"]
    if other := [name for name in ENCODERS if saved["encoders"].get(name) != found[name]]:
        raise ValueError(f"{folder} is of another {' and another '.join(other)} encoder.")
    adapted = PeftModel(model, LoraConfig.from_pretrained(str(folder)))
    weights = load_file(folder / WEIGHTS_FILE)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if differing := weights.keys() ^ expected.keys():  # peft leaves adapters at zero that it misses
        raise ValueError(f"{folder / WEIGHTS_FILE} lacks or adds weights: {min(differing)!r}.")
    set_peft_model_state_dict(adapted, weights)
    merged = adapted.merge_and_unload(safe_merge=True).eval()
    if (folder / FAMILIARITY_FILE).exists():
        familiarity = merged.familiarity or merged.add_familiarity()
        familiarity.load_state_dict(load_file(folder / FAMILIARITY_FILE))
    if out is not None:
        merged.save_pretrained(out)
        MTMMProcessor.from_pretrained(folder).save_pretrained(out)
    return merged
