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


def wrong_type(name: str, value: object) -> Case:
    return config(f"MTMMConfig: `{name}=.*` is not allowed; its type must be ", **{name: value})


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


def _cast(kind: torch.dtype) -> Callable[[Weights], object]:
    return lambda tensors: tensors.update({k: t.to(kind) for k, t in tensors.items()})


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


DAMAGED = "weights in .* are damaged: .*model.safetensors.* Copy or save them again"
OTHER_WEIGHTS = "not have the weights that its configuration describes: .*Give the folder as it was"
NO_JSON = "config.json' is not a valid JSON file"
NOT_OURS = "where 'mtmm' is needed; give the folder or the Hub id of an MTMM model"
WHOLE = "must be a whole number of at least 1"
NAN = float("nan")

CASES = [
    # ---- configurations
    config("no field `num_bridge_token`; did you mean `num_bridge_tokens`", num_bridge_token=3),
    config(None, something_else=3),  # transformers keeps what it does not know
    *(
        wrong_type(name, value)
        for name, value in {
            "num_bridge_tokens": "30",
            "num_attention_heads": True,
            "hidden_size": NAN,
            "intermediate_size": None,
            "num_refinement_layers": 1.0,
            "encoder_layers": None,
            "hidden_dropout": "0.1",
            "temperature": [1.0],
            "use_refinement": 1,
            "freeze_audio_encoder": "yes",
            "id2label": ["sad", "happy"],
            "label2id": {0: "sad"},
            "dimension_names": "valence",
            "dimension_range": ["1", "5"],
            "dimension_loss_weights": 0.3,
            "trained_outputs": None,
            "audio_config": "hubert",
            "text_config": 3,
        }.items()
    ),
    config(WHOLE, num_bridge_tokens=0),
    config(WHOLE, hidden_size=-32),
    config("at most 1,000,000", hidden_size=10**12),
    config("must be a divisor of hidden_size=32", num_attention_heads=5),
    config("from 0 up to", attention_dropout=NAN),
    config("finite number above 0", temperature=NAN),
    config("finite number above 0", temperature=1e-320),
    config("two finite numbers, the lower one first", dimension_range=[5, 1]),
    config("two finite numbers", dimension_range=[1, 10**400]),
    config("each of valence, arousal", dimension_loss_weights=[0.3]),
    config("the inverse of id2label", label2id={"sad": 0}),
    config("keys must be the indices", id2label={"a": "sad", "b": "happy"}),
    config("two or more emotion names", id2label={}),
    config("`num_labels='3'` .* whole number of at least 2", num_labels="3"),
    config('None with encoder_layers="last"', audio_layers=[1]),
    config("rising whole numbers from 0 to 2", audio_layers=[7], encoder_layers="weighted"),
    config("`hidden_act='gelux'` is not allowed; .* one of", hidden_act="gelux"),
    config("`dtype='float23'` is not allowed; .* one of float32", dtype="float23"),
    config("must be 1", format_version=2),
    config("Unrecognized model type", audio_config={"model_type": "nonsense"}),
    config("encoder's configuration is not allowed: .*expected int",
           text_config={"model_type": "bert", "hidden_size": "x"}),
    # ---- config.json
    saved("no config.json", lambda f: (f / CONFIG).unlink(), NOT_OURS),
    saved("config.json is a folder", config_as_folder, NOT_OURS),
    saved("empty config.json", content(CONFIG, ""), NO_JSON),
    saved("config.json is no JSON", content(CONFIG, '{"a":'), NO_JSON),
    saved("config.json in Latin-1", content(CONFIG, b'{"a": "\xff"}'), NO_JSON),
    saved("config.json is a list", content(CONFIG, "[1]"), "config.json has no JSON object"),
    saved("config.json is null", content(CONFIG, "null"), "config.json has no JSON object"),
    saved("config.json is {}", content(CONFIG, "{}"), NOT_OURS),
    saved("foreign architecture", fields(model_type="bert"), f"is a 'bert' model, {NOT_OURS}"),
    saved("newer format", fields(format_version=9), "has format 9, newer than .* update MTMM"),
    saved("format as text", fields(format_version="1"), "`format_version='1'` is not allowed"),
    saved("format below 0", fields(format_version=-1), "`format_version=-1` is not allowed"),
    saved("wrong type", fields(num_bridge_tokens="4"), "`num_bridge_tokens='4'` is not allowed"),
    saved("no bridge tokens", fields(num_bridge_tokens=0), WHOLE),
    saved("BERT as acoustic encoder", fields(audio_config={"model_type": "bert"}),
          "BertModel is no acoustic encoder .*use HuBERT"),
    saved("HuBERT as linguistic encoder", fields(text_config={"model_type": "hubert"}),
          "HubertModel is no linguistic encoder; use BERT"),
    saved("other library version", fields(transformers_version="99.0"), None),
    # ---- weights
    *(saved(f"first {kept} bytes of the weights", cut(kept), DAMAGED) for kept in (4, 8, 100)),
    *(
        saved(f"{kept:.0%} of the weights", cut(kept),
              r"model.safetensors are damaged: [\d,]+ bytes of [\d,]+. Copy or save them again")
        for kept in (0.3, 0.5, 0.999)
    ),
    saved("empty weights", content(WEIGHTS, ""), DAMAGED),
    saved("weights that are a web page", content(WEIGHTS, "<html>not found</html>"), DAMAGED),
    saved("weights that git-lfs did not fetch",
          content(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), DAMAGED),
    saved("no weights", lambda f: (f / WEIGHTS).unlink(), "no file named model.safetensors"),
    saved("missing weights", weights(lambda w: w.pop("fusion.output_norm.weight")),
          "1 missing, such as 'fusion.output_norm.weight'"),
    saved("additional weights", weights(lambda w: w.update(extra=torch.ones(1))), OTHER_WEIGHTS),
    saved("the encoder's weights alone", weights(_encoder_alone), OTHER_WEIGHTS),
    saved("weights of a model of other shape", _of_other_model(num_bridge_tokens=7), OTHER_WEIGHTS),
    saved("weights of a model with other layers", _of_other_model(encoder_layers="weighted"),
          OTHER_WEIGHTS),
    saved("weights of a model of the same shape", _of_other_model(), None),  # nobody can tell
    saved("more layers in config.json", fields(num_refinement_layers=2), OTHER_WEIGHTS),
    saved("other width in config.json", fields(hidden_size=64), OTHER_WEIGHTS),
    saved("NaN weights", weights(lambda w: w["emotion_head.dense.weight"].fill_(math.nan)),
          "'emotion_head.dense.weight' of .* are NaN or infinite: .*Give an earlier checkpoint"),
    saved("weights as float64", weights(_cast(torch.float64)), None),
    saved("weights as int8", weights(_cast(torch.int8)),
          "are of type I8, which would be cast; save the model again"),
    # ---- the command line and the processor
    saved("cut off, on the command line", cut(0.5), "error: .*model.safetensors are damaged", predict),
    saved("other weights, on the command line", fields(num_refinement_layers=2),
          "error: .* is not a model of this code|error: .*not have the weights", predict),
    saved("config.json of BERT, on the command line", fields(model_type="bert"),
          f"error: .*{NOT_OURS}", predict),
    saved("no tokenizer", without_tokenizer, "tokenizer",
          MTMMProcessor.from_pretrained),
    saved("no processor", lambda f: (f / "processor_config.json").unlink(),
          "Can't load feature extractor", MTMMProcessor.from_pretrained),
]  # fmt: skip
