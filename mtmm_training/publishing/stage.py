"""What goes into the folder that is uploaded, and what must not be in it."""

import json
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from safetensors.torch import load_file

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.publishing.hub import ALLOWED, hub_errors
from mtmm_training.serving import handler
from mtmm_training.training.run import RESULTS, Run

# A path from the root, a home or a drive; not the path of a URL, nor a fraction such as 1/2.
PATH = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+ -]+){2,}[/\\]?")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
# Flags of a run that hold paths, also such as have no slash in front, and those that may hold one.
PATH_FIELDS = ("out", "manifest", "audio_dir", "corpus_dir", "label_map", "cache_dir", "folds_file")
ENDPOINT_NEEDS = "transformers>=5.23,<6\nsoundfile>=0.13\nsoxr>=1\n"  # torch is there
SOURCE_FIELDS = ("audio_encoder", "text_encoder", "model")


def stage_model(
    run: Run, folder: Path, encoders: Mapping[str, str] | None = None
) -> tuple[MTMMModel, MTMMProcessor]:
    """Put the run's model, processor and Hub files into `folder`; return what was saved.

    Args:
        run: The run.
        folder: It is filled.
        encoders: Where the encoders are, which are then left out; see `save_pretrained`. The model that
            is returned has the heads as they are saved, in half precision.

    Raises:
        ValueError: The encoders are to be left out, but the run trained them.
    """
    flags, heads_only = run.flags, encoders is not None
    trained = flags.lora_rank or flags.unfreeze_audio_layers or flags.unfreeze_text_layers
    if heads_only and trained:
        raise ValueError(f"{run.folder} trained its encoders; publish it without --heads_only.")
    model, processor = run.model(), run.processor()
    model.save_pretrained(folder, heads_only=heads_only, encoders=encoders)
    processor.save_pretrained(folder, heads_only=heads_only)
    if heads_only:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model, processor


def encoder_ids(run: Run, facts: Any, api: HfApi | None) -> dict[str, str]:
    """Where a heads-only model's encoders are on the Hub, at their newest commit if there is an `api`.

    Raises:
        ValueError: The run's encoders are folders, and the facts do not name two.
    """
    flags = run.results["config"]
    names = list(facts.base_model) or [flags["audio_encoder"], flags["text_encoder"]]
    if len(names) != 2 or not all(map(is_hub_id, names)):
        raise ValueError(
            f"--heads_only needs two Hub ids as --base_model, audio's and text's, and got {' '.join(names)}."
        )
    if api is not None:
        for number, name in enumerate(names):
            with hub_errors(name):
                names[number] = f"{name}@{api.model_info(name).sha}"
    return dict(zip(("audio", "text"), names, strict=True))


def stage_adapter(api: HfApi, run: Run, base_id: str, folder: Path) -> tuple[Any, MTMMProcessor]:
    """Put the run's adapter and processor into `folder`; return them, the adapter on its base.

    Raises:
        ValueError: The base on the Hub has other outputs, which an adapter cannot change.
    """
    from peft import PeftModel

    with hub_errors(base_id):  # its code stays there: this checkout's is used
        base_folder = api.snapshot_download(base_id, allow_patterns=["*.json", "*.safetensors"])
    base = MTMMModel.from_pretrained(base_folder).eval()
    trained = run.results["model_config"]
    ours = [[*trained["id2label"].values()], trained["dimension_names"], trained["dimension_range"]]
    config = base.config
    theirs = [[*config.id2label.values()], [*config.dimension_names], [*config.dimension_range]]
    if ours != theirs:
        raise ValueError(
            f"The run has the outputs {ours}, its base {base_id} has {theirs}; publish without --adapter."
        )
    config.temperature = trained["temperature"]
    config.trained_outputs = trained["trained_outputs"]
    model = PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    processor = run.processor()
    processor.save_pretrained(folder)
    model.peft_config["default"].base_model_name_or_path = base_id
    model.peft_config["default"].auto_mapping = None  # the name of a folder here
    model.peft_config["default"].save_pretrained(str(folder))
    shutil.copy(run.folder / "adapter" / "adapter_model.safetensors", folder)
    return model, processor


def stage_endpoint(folder: Path) -> None:
    """What Inference Endpoints take: a handler, and the packages that it needs there."""
    shutil.copy(handler.__file__, folder / "handler.py")
    (folder / "requirements.txt").write_text(ENDPOINT_NEEDS, encoding="utf-8")


def leave_out(folder: Path) -> None:
    """Delete what is not on the allow-list, so that what is checked is what is uploaded."""
    for path in sorted(folder.iterdir()):
        if not any(fnmatchcase(path.name, pattern) for pattern in ALLOWED):
            print(f"left out: {path.name}, which is not among the files that are uploaded")
            path.unlink()


def stage_results(run: Run, folder: Path, *, name_speakers: bool = False) -> list[str]:
    """Put results.json and the figures into `folder`; return the figures' names."""
    text = json.dumps(clean_results(run.results, name_speakers), indent=2, allow_nan=False)
    (folder / RESULTS).write_text(text, encoding="utf-8")
    pictures = sorted((run.folder / "figures").glob("*.png"))
    (folder / "figures").mkdir()
    for picture in pictures:
        shutil.copy(picture, folder / "figures")
    return [picture.name for picture in pictures]


# ---- privacy -----------------------------------------------------------------------------------


def clean_results(results: Mapping[str, Any], name_speakers: bool = False) -> dict[str, Any]:
    """results.json without private paths, and with numbers of speakers instead of their ids."""
    cleaned = _without_paths(dict(results))
    config = cleaned["config"]
    for name in PATH_FIELDS + SOURCE_FIELDS:
        given = results["config"].get(name)
        if isinstance(given, list):
            config[name] = [_last_part(path) for path in given]
        elif given and not (name in SOURCE_FIELDS and is_hub_id(given)):
            config[name] = _last_part(given)
    if name_speakers:
        return cleaned
    for name in ("by_group", "group_gaps"):
        cleaned.get(name, {}).pop("speaker", None)
    for extremes in cleaned.get("by_speaker", {}).values():
        for name in ("lowest", "highest"):
            del extremes[name]["speaker"]
    for split in cleaned["splits"].values():
        split["speakers"] = len(split["speakers"])
    for name in ("validation_speakers", "test_speakers"):
        if config.get(name):
            config[name] = len(config[name])
    cleaned["fold"] = f"{config.get('protocol')} {config.get('fold')}"
    return cleaned


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    if isinstance(value, str):
        return PATH.sub(lambda match: _last_part(match[0]), value)
    return value


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def is_hub_id(name: str) -> bool:
    """Whether a model's name is `owner/name`, and no folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def refuse_private_text(folder: Path, run: Path, api: HfApi) -> None:
    """Raise ValueError if a staged file names a folder of this machine, or holds an access token."""
    here = (run.resolve(), Path.home(), Path.cwd())
    private = [re.escape(str(path)) for path in here if len(path.parts) > 1]
    token = token_of(api)
    secrets = [TOKEN.pattern, *([re.escape(token)] if token else [])]
    forbidden = re.compile(rf"(?<!\w)({'|'.join(private)})(?!\w)|{'|'.join(secrets)}")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".safetensors":  # its header; the rest is numbers
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        if found := forbidden.search(content.decode("utf-8", errors="ignore")):
            what = repr(found[1]) if found[1] else "an access token"
            raise ValueError(f"{path.name} holds {what}, which must not be published.")


def token_of(api: HfApi) -> str | None:
    """The access token that an api uses."""
    return api.token if isinstance(api.token, str) else get_token()
