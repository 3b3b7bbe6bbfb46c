"""What to publish, where, and what the card must say that no run can know."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from huggingface_hub.errors import (
    HFValidationError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place, though it lists no exports

from mtmm_training.files import read_json

TEMPLATE = Path(__file__).parents[2] / "model_card" / "template.md"


def _flag(default: Any, text: str) -> Any:
    """A field of Publication: its default and the help text of its flag."""
    if isinstance(default, list):
        return field(default_factory=list, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class Publication:
    """What to publish, where, and what the card must say that no run can know."""

    run: str = field(metadata={"help": "Folder that train_accelerate.py wrote."})
    repo_id: str = field(metadata={"help": "Where to: user/name or organisation/name."})
    dry_run: bool = _flag(False, "Stage, check, and list what would go where; upload nothing.")
    out: str | None = _flag(None, "Keep the staged folder here, to look at.")

    private: bool = _flag(False, "Make a new repository private.")
    branch: str | None = _flag(None, "Upload to this branch; made if it does not exist.")
    revision: str | None = _flag(None, "Where a new branch begins: branch, tag or commit.")
    pull_request: bool = _flag(False, "Open a pull request instead of changing the branch.")
    tag: str | None = _flag(None, "Name the uploaded commit.")
    message: str = _flag("Publish an MTMM model", "Commit message.")

    max_shard_size: str = _flag("5GB", "Split larger weights into files of at most this size.")
    base_model: list[str] = _flag(
        [], "Hub ids that the model derives from; of an adapter: the MTMM model it belongs to."
    )
    adapter: bool = _flag(
        False, "Publish a LoRA run's adapter alone, not the whole model it was merged into."
    )

    folds: list[str] = _flag([], "Folders of the other folds' runs, for mean and spread.")
    licence: str | None = _flag(None, "Of the weights, as the Hub names it, such as cc-by-nc-4.0.")
    language: list[str] = _flag([], "ISO 639-1 codes of the speech; en if not given.")
    corpus_name: str | None = _flag(None, "Name of the training data, as readers know it.")
    corpus_licence: str | None = _flag(None, "Licence or terms of the training data.")
    datasets: list[str] = _flag([], "Hub ids of the training data, if it is on the Hub.")
    device_name: str | None = _flag(None, "What trained the model, such as 'one H100'.")
    example: str | None = _flag(None, "Recording for the card's example; a tone if not given.")
    example_text: str | None = _flag(None, "Its transcript.")
    benchmark: list[str] = _flag(
        [], "Hub benchmark's dataset id, task id and our metric, such as UAR: .eval_results/."
    )
    name_speakers: bool = _flag(False, "Keep speakers' ids in results.json (public corpora only).")

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError for the first thing that cannot be published."""
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"`{self.repo_id}` is not a repository id: {error}") from error
        if "/" not in self.repo_id:
            raise ValueError(f"`{self.repo_id}` lacks its owner; give user/{self.repo_id}.")
        if self.pull_request and (self.branch or self.tag):
            raise ValueError(
                "`--pull_request` goes without --branch and --tag; merge first, then tag."
            )
        if self.revision and not self.branch:
            raise ValueError("`--revision` says where a new --branch begins; give both.")
        if self.benchmark and len(self.benchmark) != 3:
            raise ValueError("`--benchmark` takes three words: dataset id, task id, metric.")
        if self.example is not None and not Path(self.example).is_file():
            raise FileNotFoundError(f"No recording at `--example {self.example}`; check the path.")
        if not (Path(self.run) / "results.json").is_file():
            raise FileNotFoundError(
                f"{self.run} has no results.json; give the folder of a run that "
                "train_accelerate.py finished."
            )
        if not self.source.is_dir():
            remedy = "only runs with --lora_rank have one" if self.adapter else "train again"
            raise FileNotFoundError(f"{self.run} has no {self.source.name}/; {remedy}.")
        if not list(self.source.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{self.source} has no weights (*.safetensors); run the training again."
            )
        if not (self.source / "processor_config.json").is_file():
            raise FileNotFoundError(
                f"{self.source} has no processor_config.json; save the processor there with "
                "`processor.save_pretrained`."
            )
        if self.adapter and len(self.base_model) != 1:
            raise ValueError(
                "An adapter needs its base: name the one MTMM model on the Hub that it was trained on "
                "with --base_model, or publish the merged model without --adapter."
            )
        if self.adapter and Path(self.base_model[0]).exists():
            raise ValueError(
                f"`--base_model {self.base_model[0]}` is a folder here, which users do not have; "
                "publish the base first and give its id."
            )

    @property
    def source(self) -> Path:
        """What is published: the run's whole model, or its adapter."""
        return Path(self.run) / ("adapter" if self.adapter else "model")


def read_results(run: str | Path) -> dict[str, Any]:
    """results.json of a run.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not one of ours.
    """
    path = Path(run) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no results.json; give the folder of a finished run.")
    return read_json(path, "config", "model_config", "splits", "test", "wall_time_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One argument for each field of Publication; those without a default are positional."""
    for f in dataclasses.fields(Publication):
        text = f.metadata["help"].replace("%", "%%")
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            parser.add_argument(f.name, help=text)
        elif f.type is bool:
            parser.add_argument(f"--{f.name}", action="store_true", help=text)
        elif f.default_factory is not dataclasses.MISSING:
            parser.add_argument(f"--{f.name}", nargs="+", default=[], help=text)
        else:
            kind = next((t for t in get_args(f.type) if t is not type(None)), f.type)
            parser.add_argument(f"--{f.name}", type=kind, default=f.default, help=text)
