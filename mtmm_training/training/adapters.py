"""What of the encoders trains: LoRA adapters, or the top layers; and adapters merged into a model.

    python -m mtmm_training.training.adapters merge out/run/adapter out/merged [--base BASE_MODEL_FOLDER]

A folder of adapters holds them, fusion, heads, configuration and processor, but not the encoders:
base.json says which those are, a file's place on this machine left out.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from configuration_mtmm import MTMMConfig
from modeling_mtmm import UNUSED_WEIGHTS, MTMMModel, MTMMProcessor
from mtmm_training.batches.fingerprint import weights_digest
from mtmm_training.files import read_json, write_json, writing

IN_FULL = ("fusion", "emotion_head", "dimension_head")  # what LoRA trains beside its adapters
ENCODERS = {"audio": "audio_model", "text": "text_model"}
BASE_FILE, LORA_FILE, WEIGHTS_FILE = "base.json", "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Family:
    """Where encoders of one kind keep what may train.

    Args:
        layers: The list of transformer layers.
        adapted: Pattern of the linear maps in a layer that get adapters.
        last_norm: The layer norm after all layers, where the encoder has one.
    """

    layers: str
    adapted: str
    last_norm: str | None = None


_WAVEFORM = Family("encoder.layers", r"attention\.(q|k|v|out)_proj", "encoder.layer_norm")
_BERT = Family("encoder.layer", r"attention\.(self\.(query|key|value)|output\.dense)")

FAMILIES = {
    "hubert": _WAVEFORM,
    "wav2vec2": _WAVEFORM,
    # Its attention reads the weights of these maps without calling them, so that adapters on them
    # would do nothing: its feed-forward parts get them.
    "wavlm": Family(
        "encoder.layers", r"feed_forward\.(intermediate|output)_dense", "encoder.layer_norm"
    ),
    "whisper": Family("layers", r"self_attn\.(q|k|v|out)_proj", "layer_norm"),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta-v2": Family(
        "encoder.layer", r"attention\.(self\.(query|key|value)_proj|output\.dense)"
    ),
}


def family_of(encoder: PreTrainedModel) -> Family:
    """The entry of FAMILIES for an encoder.

    Raises:
        ValueError: There is none.
    """
    kind = encoder.config.model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"Adapters and partial unfreezing do not know encoders of type {kind!r}; known are "
            f"{', '.join(FAMILIES)}. Add its layers to FAMILIES in mtmm_training/training/adapters.py."
        )
    return FAMILIES[kind]


# ---- what trains -------------------------------------------------------------------------------


def add_lora(
    model: MTMMModel,
    rank: int,
    alpha: float,
    dropout: float,
    modalities: tuple[str, ...] | list[str] = ("audio", "text"),
) -> PeftModel:
    """Freeze a model's encoders, add adapters to their attention, train fusion and heads in full.

    The adapters begin as zero, so that the outputs are unchanged.

    Args:
        model: Changed in place.
        rank: Width of the adapters, at least 1.
        alpha: Their outputs are multiplied by `alpha / rank`.
        dropout: On their inputs, 0 up to 1.
        modalities: Whose encoders get adapters.

    Raises:
        ValueError: An encoder is of an unknown family.
    """
    patterns = []
    for modality in modalities:
        name = ENCODERS[modality]
        family = family_of(getattr(model, name))
        layers = family.layers.replace(".", r"\.")
        patterns.append(rf"{name}\.{layers}\.\d+\.{family.adapted}")
        _freeze(getattr(model, name))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by the rank; any number will do
        lora_dropout=dropout,
        target_modules="|".join(patterns),
        modules_to_save=list(IN_FULL),
    )
    return get_peft_model(model, config)


def unfreeze_top_layers(encoder: PreTrainedModel, count: int) -> None:
    """Train an encoder's last `count` layers, with the layer norm after them, and nothing else of it.

    Raises:
        ValueError: The encoder is of an unknown family, or has fewer layers.
    """
    family = family_of(encoder)
    layers = encoder.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList), family.layers
    if not 1 <= count <= len(layers):
        raise ValueError(
            f"{count} layers of {type(encoder).__name__} cannot be unfrozen; it has {len(layers)}, "
            f"give 1 to {len(layers)}."
        )
    _freeze(encoder)
    for layer in layers[-count:]:
        layer.requires_grad_(True)
    # Without stable layer norm, wav2vec 2.0 and its kin have this norm before their layers.
    if family.last_norm and getattr(encoder.config, "do_stable_layer_norm", True):
        encoder.get_submodule(family.last_norm).requires_grad_(True)


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
    public = {
        name: None if value is None or Path(value).exists() else value
        for name, value in names.items()
    }
    return public | {"encoders": _digests(base)}


def _digests(model: MTMMModel) -> dict[str, dict[str, str]]:
    """Of the parts of both encoders, also where one has no adapters: its states are fused all the same.

    Left out is what no forward pass reads, and transformers draws anew where a checkpoint lacks it:
    the pooler, and `masked_spec_embed`, which lies beside the parts.
    """
    return {
        modality: {
            part: weights_digest(module)
            for part, module in getattr(model, name).named_children()
            if not f"{name}.{part}.".startswith(UNUSED_WEIGHTS)
        }
        for modality, name in ENCODERS.items()
    }


def save_adapters(model: PeftModel, folder: str | Path, base: dict[str, Any]) -> None:
    """Write adapters, fusion, heads and configuration; the processor is the caller's to add.

    Args:
        model: Of [`add_lora`].
        folder: Made where it is not.
        base: Of [`describe_base`], before the adapters were added.
    """
    folder = Path(folder)
    without_adapters(model).name_or_path = (
        base.get("model") or ""
    )  # else peft writes a private path
    model.peft_config["default"].base_model_name_or_path = base.get("model")
    with writing(folder):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
        without_adapters(model).config.save_pretrained(folder)
    write_json(base, folder / BASE_FILE)


def merge(
    adapters: PeftModel | str | Path,
    out: str | Path | None = None,
    *,
    base: str | None = None,
    audio_encoder: str | None = None,
    text_encoder: str | None = None,
) -> MTMMModel:
    """Add the adapters to the encoders' weights: a plain model with the same outputs.

    Args:
        adapters: A model of [`add_lora`], used up by this, or a folder of [`save_adapters`].
        out: Where to save the model, with the folder's processor; None = nowhere.
        base: For a folder: folder or Hub id of the MTMM model that was trained on, if base.json
            does not name it.
        audio_encoder, text_encoder: The same for a run that began from encoders.

    Raises:
        ValueError: The base is not known, or not the one that the adapters were trained on; or the
            folder's files are missing, damaged or do not belong together.
    """
    processor = None
    if not isinstance(adapters, PeftModel):
        _refuse_incomplete(Path(adapters))
        processor = MTMMProcessor.from_pretrained(adapters)
        given = {"model": base, "audio_encoder": audio_encoder, "text_encoder": text_encoder}
        adapters = _load_adapters(Path(adapters), given)
    model = adapters.merge_and_unload(safe_merge=True).eval()
    if out is not None:
        model.save_pretrained(out)
        if processor is not None:
            processor.save_pretrained(out)
    return model


def _refuse_incomplete(folder: Path) -> None:
    files = (BASE_FILE, LORA_FILE, WEIGHTS_FILE, "config.json", "processor_config.json")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}; give the folder adapter/ of a run with --lora_rank, "
            "as it was saved."
        )


def _load_adapters(folder: Path, given: dict[str, str | None]) -> PeftModel:
    """The adapters of a folder on their base, which must be the one that they were trained on."""
    saved = read_json(folder / BASE_FILE, "encoders")
    read_json(folder / LORA_FILE, "peft_type", "target_modules")  # peft names no file
    names = {name: given[name] or saved.get(name) for name in given}
    config = MTMMConfig.from_pretrained(folder)
    if names["model"] is not None:
        model = MTMMModel.from_pretrained(names["model"], config=config)
    elif names["audio_encoder"] is not None and names["text_encoder"] is not None:
        own = set(MTMMConfig.__annotations__) - {"audio_config", "text_config"}
        fields = {name: getattr(config, name) for name in sorted(own)}
        model = MTMMModel.from_encoders_pretrained(
            names["audio_encoder"], names["text_encoder"], **fields
        )
    else:
        raise ValueError(
            f"{folder} was trained on a base in a local folder; name it with --base, or with "
            "--audio_encoder and --text_encoder where the run began from encoders."
        )
    found = _digests(model)
    other = [name for name in ENCODERS if saved["encoders"].get(name) != found[name]]
    if other:
        raise ValueError(
            f"{folder} was trained on another base: the {' and the '.join(other)} encoder's weights "
            "differ. Give the very model or encoders that the run began from."
        )
    adapted = PeftModel(model, LoraConfig.from_pretrained(str(folder)))
    _load_weights(adapted, folder / WEIGHTS_FILE)
    return adapted


def _load_weights(model: PeftModel, path: Path) -> None:
    """All of them: peft leaves adapters at zero that it does not find.

    Raises:
        ValueError: The file is damaged, or is not of these adapters.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or save it again.") from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes, needed = (
        {(name, tuple(tensor.shape)) for name, tensor in state.items()}
        for state in (weights, expected)
    )
    if other := shapes ^ needed:
        raise ValueError(
            f"{path} does not hold the weights that {LORA_FILE} and config.json describe: "
            f"{len(needed - shapes)} are missing and {len(shapes - needed)} left over, such as "
            f"{min(other)[0]!r}. Give the folder as it was saved."
        )
    set_peft_model_state_dict(model, weights)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mtmm_training.training.adapters")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("merge", help="write a plain model folder from adapters")
    command.add_argument("adapters", help="folder adapter/ of a run with --lora_rank")
    command.add_argument("out", help="folder of the merged model")
    command.add_argument("--base", help="the MTMM model that the run began from, if in a folder")
    command.add_argument("--audio_encoder", help="the run's acoustic encoder, if in a folder")
    command.add_argument("--text_encoder", help="the run's linguistic encoder, if in a folder")
    options = parser.parse_args(arguments)
    try:
        merge(
            options.adapters,
            options.out,
            base=options.base,
            audio_encoder=options.audio_encoder,
            text_encoder=options.text_encoder,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.out} holds the merged model")


if __name__ == "__main__":
    main()
