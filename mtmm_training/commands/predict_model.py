"""The model that `mtmm predict` is told to use: loaded, and identified for the record of a run."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtmm_training.files import writing


def load_pipeline(model: str, revision: str | None, device: str | None, trust: bool) -> Any:
    """The pipeline of a model.

    Args:
        model: A folder, or an id on the Hub.
        revision: Of the Hub's repository.
        device: As torch names it; this process's accelerator, or the CPU, if not given.
        trust: Whether the model's own code runs in place of this package's.

    Raises:
        ValueError: No such place, or a model or device that cannot be used.
        OSError: The model cannot be had from the Hub.
    """
    from transformers import pipeline

    place = _device(device)
    if trust:
        with _loading(model):
            return pipeline(model=model, trust_remote_code=True, revision=revision, device=place)
    from modeling_mtmm import MTMMModel
    from pipeline_mtmm import MTMMPipeline
    from processing_mtmm import MTMMProcessor

    where = {"revision": revision} if revision else {}
    with _loading(model):
        try:
            loaded = MTMMModel.from_pretrained(model, **where)
        except ValueError as error:
            raise ValueError(
                f"{error} If the model brings code of its own that you trust, give --trust_remote_code."
            ) from error
        processor = MTMMProcessor.from_pretrained(model, **where)
    return MTMMPipeline(model=loaded, processor=processor, device=place)


def load_recogniser(name: str, device: Any) -> Any:
    """A speech recogniser of transformers, by folder or id on the Hub.

    Raises:
        ValueError: There is none, or it is no speech recogniser.
    """
    from transformers import pipeline

    task = "automatic-speech-recognition"
    try:
        return pipeline(task, model=name, device=device, trust_remote_code=False)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`--transcriber {name!r}` cannot be used as a speech recogniser: {reason}"
        ) from error


def identity(model: str, revision: str | None) -> tuple[str | None, str]:
    """The revision to load, and what says which weights these are, wherever they lie.

    On the Hub that is the commit behind a branch or tag, which may move while a run works; of a
    folder, a digest of the files that make a model.
    """
    if not Path(model).is_dir():
        from transformers.utils.hub import cached_file, extract_commit_hash

        with _loading(model):
            config = cached_file(model, "config.json", revision=revision)
            revision = str(extract_commit_hash(config, None))
        return revision, f"commit {revision}"
    digest = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}".encode())
    return revision, f"files {digest.hexdigest()}"


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        count = torch.accelerator.device_count()
        return int(os.environ.get("LOCAL_RANK", 0)) % count if count else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" makes tensors that nobody can read
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"`--device {name}` cannot be used here: {error}") from error
    return name


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Says what was looked for where a model is neither a folder nor on the Hub."""
    if Path(model).is_dir():
        inner = Path(model, "model")
        if not Path(model, "config.json").exists() and (inner / "config.json").exists():
            raise ValueError(
                f"`--model {model}` is a run's folder; its model is {inner}: give that."
            )
        yield
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(
            f"`--model {model}` is no folder, and no id on the Hub, which is OWNER/NAME."
        )
    else:
        from huggingface_hub.constants import HF_HUB_CACHE

        try:
            with writing(HF_HUB_CACHE):
                yield
        except OSError as error:
            raise OSError(
                f"`--model {model}` is no folder here, and cannot be had from the Hub: {error}"
            ) from error
