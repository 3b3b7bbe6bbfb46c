"""Configurations and saved models, damaged and mixed up; folders of runs that were interrupted."""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bad_inputs import tiny
from bad_inputs.case import Case
from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.commands import cli

Damage = Callable[[Path], object]
Weights = dict[str, torch.Tensor]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def config(error: str | None, **fields: Any) -> Case:
    """A configuration with these fields."""
    (name, value), *_ = fields.items()
    shown = f"{name}={str(value)[:30]}"
    return Case(f"config: {shown}", lambda folder: MTMMConfig.tiny(**fields), error)


def saved(
    name: str, damage: Damage, error: str | None, load: Callable[[Path], Any] | None = None
) -> Case:
    """A saved model that something happened to; loaded, it must answer."""

    def attempt(folder: Path) -> Any:
        copy = Path(shutil.copytree(tiny.saved(), folder / "model"))
        damage(copy)
        return (load or answer)(copy)

    return Case(f"checkpoint: {name}", attempt, error)


def answer(folder: Path) -> Any:
    model = MTMMModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(input_ids=torch.arange(5, 15)[None], input_values=torch.zeros(1, 4000))
    return output.emotion_logits, output.dimensions


def predict(folder: Path) -> None:
    """As a user would; its message as the error it is."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = cli.main(["predict", "--model", str(folder), "--transcript", "so you won"])
    if status:
        raise SystemExit(said.getvalue())


def content(file: str, text: str | bytes) -> Damage:
    """A file replaced."""
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / file).write_bytes(raw)


def config_as_folder(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut(kept: float) -> Damage:
    """The first bytes of the weights, or a share of them."""

    def damage(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])

    return damage


def fields(**changes: Any) -> Damage:
    """Other values in config.json."""

    def damage(folder: Path) -> None:
        known = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(known | changes))

    return damage


def weights(change: Callable[[Weights], object]) -> Damage:
    """Other tensors in the file."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _encoder_alone(tensors: Weights) -> None:
    for name in list(tensors):
        tensor = tensors.pop(name)
        if name.startswith("audio_model."):
            tensors[name.removeprefix("audio_model.")] = tensor


def _of_other_model(**overrides: Any) -> Damage:
    def damage(folder: Path) -> None:
        torch.manual_seed(1)
        other = MTMMModel(MTMMConfig.tiny(**overrides)).state_dict()
        save_file({k: t.contiguous() for k, t in other.items()}, folder / WEIGHTS)

    return damage


DAMAGED, CONFIG_FILE = "model.*damaged", "model.*config.json"

CASES = [
    # ---- configurations
    config("num_bridge_tokens", num_bridge_token=3),
    config(None, something_else=3),  # transformers keeps what it does not know
    config("num_attention_heads", num_attention_heads=True),
    config("temperature", temperature=math.nan),
    config("dimension_range", dimension_range=[5, 1]),
    config("id2label", id2label={}),
    config("audio_layers", audio_layers=[7], encoder_layers="weighted"),
    config("nonsense", audio_config={"model_type": "nonsense"}),
    config("hidden_size", text_config={"model_type": "bert", "hidden_size": "x"}),
    # ---- config.json
    saved("no config.json", lambda f: (f / CONFIG).unlink(), CONFIG_FILE),
    saved("config.json is a folder", config_as_folder, CONFIG_FILE),
    saved("empty config.json", content(CONFIG, ""), CONFIG_FILE),
    saved("config.json is no JSON", content(CONFIG, '{"a":'), CONFIG_FILE),
    saved("config.json is {}", content(CONFIG, "{}"), CONFIG_FILE),
    saved("foreign architecture", fields(model_type="bert"), "bert"),
    saved("newer format", fields(format_version=9), "format_version=9"),
    saved("wrong type", fields(num_bridge_tokens="4"), "num_bridge_tokens"),
    saved("BERT as acoustic encoder", fields(audio_config={"model_type": "bert"}), "audio_model"),
    saved("HuBERT as linguistic encoder", fields(text_config={"model_type": "hubert"}), "text_model"),
    saved("other library version", fields(transformers_version="99.0"), None),
    # ---- weights
    *(saved(f"first {kept} of the weights", cut(kept), DAMAGED) for kept in (0, 8, 100, 0.5, 0.999)),
    saved("weights that are a web page", content(WEIGHTS, "<html>not found</html>"), DAMAGED),
    saved("weights that git-lfs did not fetch",
          content(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), DAMAGED),
    saved("no weights", lambda f: (f / WEIGHTS).unlink(), "model.safetensors"),
    saved("missing weights", weights(lambda w: w.pop("fusion.output_norm.weight")),
          "fusion.output_norm.weight"),
    saved("additional weights", weights(lambda w: w.update(extra=torch.ones(1))), "extra"),
    saved("the encoder's weights alone", weights(_encoder_alone), "audio_model"),
    saved("weights of a model of other shape", _of_other_model(num_bridge_tokens=7), "bridge_tokens"),
    saved("weights of a model with other layers", _of_other_model(encoder_layers="weighted"),
          "layer_weights"),
    saved("weights of a model of the same shape", _of_other_model(), None),  # nobody can tell
    saved("more layers in config.json", fields(num_refinement_layers=2), "refinement"),
    saved("other width in config.json", fields(hidden_size=64), "of another shape"),
    saved("weights as float64",
          weights(lambda w: w.update({k: t.double() for k, t in w.items()})), None),
    # ---- the command line and the processor
    saved("cut off, on the command line", cut(0.5), DAMAGED, predict),
    saved("other weights, on the command line", fields(num_refinement_layers=2),
          "refinement|is not a model of this code", predict),
    saved("config.json of BERT, on the command line", fields(model_type="bert"), "bert", predict),
    saved("no tokenizer", without_tokenizer, "tokenizer", MTMMProcessor.from_pretrained),
    saved("no processor", lambda f: (f / "processor_config.json").unlink(),
          "feature extractor", MTMMProcessor.from_pretrained),
]  # fmt: skip
