"""The model that `mtmm predict` is told to use: loaded, and identified for the record of a run."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtmm_training.data.files import file_digest


def load_pipeline(model: str, revision: str | None, device: str | None, trust: bool) -> Any:
    """The pipeline of a model.

    Args:
        model: The folder of a model or of a run, or an id on the Hub.
        revision: Commit, branch or tag of the Hub's repository.
        device: What torch calls it; this process's accelerator, or the CPU, if not given.
        trust: Whether the model's own code runs in place of this package's.

    Raises:
        ValueError: The model or the device cannot be used.
        OSError: The model is neither here nor on the Hub.
    """
    from transformers import pipeline

    from modeling_mtmm import MTMMModel
    from pipeline_mtmm import MTMMPipeline
    from processing_mtmm import MTMMProcessor

    model = _model_folder(model)
    place = _device(device)
    where: dict[str, Any] = {"revision": revision} if revision else {}
    with _named("--model", model):
        if trust:
            return pipeline(model=model, trust_remote_code=True, device=place, **where)
        loaded = MTMMModel.from_pretrained(model, **where)
        processor = MTMMProcessor.from_pretrained(model, **where)
    return MTMMPipeline(model=loaded, processor=processor, device=place)


def load_recogniser(name: str, device: Any) -> Any:
    """A speech recogniser of transformers, by folder or id on the Hub; it runs no code of its own."""
    from transformers import pipeline

    with _named("--transcriber", name):
        return pipeline(
            "automatic-speech-recognition", model=name, device=device, trust_remote_code=False
        )


def identity(model: str, revision: str | None) -> tuple[str | None, str]:
    """The revision to load, and what says which weights these are, wherever they lie.

    On the Hub that is the commit behind a branch or tag, which may move while a run works; of a
    folder, a digest of the files that make a model.
    """
    model = _model_folder(model)
    if not Path(model).is_dir():
        from transformers.utils.hub import cached_file, extract_commit_hash

        with _named("--model", model):
            config = cached_file(model, "config.json", revision=revision)
        revision = str(extract_commit_hash(config, None))
        return revision, f"commit {revision}"
    digest = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
            digest.update(f"{path.name} {file_digest(path)}".encode())
    return revision, f"files {digest.hexdigest()}"


def _model_folder(name: str) -> str:
    """The same; of a run's folder, the model in it."""
    inner = Path(name, "model")
    in_run = not Path(name, "config.json").exists() and (inner / "config.json").exists()
    return str(inner) if in_run else name


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        count = torch.accelerator.device_count()
        return int(os.environ.get("LOCAL_RANK", 0)) % count if count else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"`--device {name}` cannot be used here: {error}") from error
    return name


@contextmanager
def _named(flag: str, name: str) -> Iterator[None]:
    """Says which flag it was where transformers speaks of the network alone, also of a misspelt path."""
    try:
        yield
    except OSError as error:
        if name and Path(name).is_dir():
            raise
        reason = str(error).splitlines()[0]
        raise OSError(
            f"`{flag} {name}` is no folder here, and cannot be had from the Hub: {reason}"
        ) from error
