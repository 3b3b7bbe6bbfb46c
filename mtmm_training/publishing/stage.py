"""What goes into the folder that is uploaded, and what must not be in it."""

import fnmatch
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    HfApi,
)

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.files import replacing
from mtmm_training.publishing.hub import hub_errors
from mtmm_training.publishing.publication import Publication

HUB_FILES = [f"{name}_mtmm.py" for name in ("configuration", "modeling", "processing", "pipeline")]
WEIGHTS = [
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
]
ALLOWED = [
    *WEIGHTS,
    *HUB_FILES,
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "sentencepiece.bpe.model",
    "README.md",
    "results.json",
    "figures/*.png",
    ".eval_results/*.yaml",
]


def stage_model(
    api: HfApi, options: Publication, results: Mapping[str, Any], folder: Path
) -> tuple[torch.nn.Module, MTMMProcessor]:
    """Put model, processor and Hub files into `folder`; return what was saved, loaded."""
    # False: the checkout's code, and transformers does not ask whether to run the folder's.
    processor = MTMMProcessor.from_pretrained(options.source, trust_remote_code=False)
    processor.save_pretrained(folder)
    if options.adapter:
        model = load_adapted(api, options, results)
        stage_adapter(options, folder)
    else:
        model = MTMMModel.from_pretrained(options.source).eval()
        model.save_pretrained(folder, max_shard_size=options.max_shard_size)
    return model, processor


def load_adapted(api: HfApi, options: Publication, results: Mapping[str, Any]) -> torch.nn.Module:
    """The base from the Hub with the run's adapter on it.

    Raises:
        ValueError: The base predicts other outputs; an adapter cannot say so.
    """
    from peft import PeftModel

    with hub_errors(options.base_model[0]):  # its code stays there: this checkout's is used
        wanted = ["*.json", "*.safetensors"]
        folder = api.snapshot_download(options.base_model[0], allow_patterns=wanted)
    base = MTMMModel.from_pretrained(folder).eval()
    trained = results["model_config"]
    for name, ours, theirs in (
        ("emotions", trained["id2label"].values(), base.config.id2label.values()),
        ("dimensions", trained["dimension_names"], base.config.dimension_names),
        ("dimension range", trained["dimension_range"], base.config.dimension_range),
    ):
        if list(ours) != list(theirs):
            raise ValueError(
                f"The run's {name} are {list(ours)}, those of its base {options.base_model[0]} "
                f"{list(theirs)}, which an adapter cannot change; publish without --adapter."
            )
    base.config.temperature = trained["temperature"]
    base.config.trained_outputs = trained["trained_outputs"]
    return PeftModel.from_pretrained(base, options.source).eval()


def stage_adapter(options: Publication, folder: Path) -> None:
    """The adapter alone, its base named by its id on the Hub."""
    config = json.loads((options.source / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = options.base_model[0]
    config["revision"] = None
    config["auto_mapping"] = None  # peft puts the name of the folder there that code came from
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    shutil.copy(options.source / "adapter_model.safetensors", folder)


def copy_files(source: Path, target: Path) -> None:
    """Copy all files below a folder to below another, which may be there and hold others."""
    for path in source.rglob("*"):
        if path.is_file():
            with replacing(target / path.relative_to(source)) as temporary:
                shutil.copy(path, temporary)


def allowed_files(folder: Path) -> list[str]:
    """Files of `folder` that are on the allow-list, sorted.

    Raises:
        ValueError: A file is not on it.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    unknown = [name for name in names if not is_allowed(name)]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} would be uploaded and is not on the allow-list of "
            "mtmm_training/publishing/publish.py; add it there, or keep it from being saved."
        )
    return names


def is_allowed(name: str) -> bool:
    """Whether a file of this name, with its folder, may be uploaded."""
    return any(
        fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
        for pattern in ALLOWED
    )


# A path from the root, a home or a drive; not the path of a URL, nor a fraction such as 1/2.
PATH = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+ -]+){2,}[/\\]?")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")


def private_folders(options: Publication) -> list[str]:
    """This machine's folders, which no uploaded file may name."""
    folders = {Path(options.run).resolve(), Path.home(), Path.cwd()}
    return sorted(str(folder) for folder in folders if len(folder.parts) > 1)


def refuse_private_text(
    folder: Path, files: Sequence[str], private: Sequence[str], token: str | None
) -> None:
    """Raise ValueError if a file holds one of `private`, the token, or what looks like one."""
    for name in files:
        content = (folder / name).read_bytes()
        if name.endswith(".safetensors"):  # its header; the rest is numbers
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        text = content.decode("utf-8", errors="ignore")
        found = [
            repr(path) for path in private if re.search(rf"(?<!\w){re.escape(path)}(?!\w)", text)
        ]
        if TOKEN.search(text) or (token and token in text):
            found.append("an access token")
        if found:
            raise ValueError(
                f"{name} holds {' and '.join(found)}, which must not be published; remove it first."
            )
