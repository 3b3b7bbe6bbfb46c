"""From a run's folder to the Hub: stage, load in isolation, upload, load back from the Hub.

    python -m mtmm_training.publishing.publish out/run someone/mtmm --licence cc-by-nc-4.0 --tag v1
    python -m mtmm_training.publishing.publish out/run someone/mtmm --dry_run

What is uploaded is on an allow-list; predictions, logs, paths and speakers stay at home. The card is
filled from results.json by the template in model_card/.
"""

import argparse
import csv
import dataclasses
import fnmatch
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
    get_token,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place, though it lists no exports

from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor
from mtmm_training.data.manifest import read_manifests
from mtmm_training.files import read_json, replacing, writing

TEMPLATE = Path(__file__).parents[2] / "model_card" / "template.md"
HUB_FILES = sorted(file.name for file in Path(__file__).parents[2].glob("*_mtmm.py"))
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
TOLERANCE = 1e-5  # the same weights and code on the same machine
MERGING_TOLERANCE = 1e-3  # adapters beside their weights, and merged into them
# predictions.csv has six decimals, and its utterances were padded together with others.
TRAINER_TOLERANCE, TRAINER_TOLERANCE_HALF = 2e-5, 5e-2
COMPARED_UTTERANCES = 4

# Metric of results.json -> its id on the Hub, arguments, and the name that the card prints.
EMOTION_METRICS = {
    "UAR": ("recall", {"average": "macro"}, "UAR (unweighted average recall)"),
    "WAR": ("accuracy", None, "WAR (accuracy)"),
    "macro_F1": ("f1", {"average": "macro"}, "macro F1"),
    "ECE": ("expected_calibration_error", None, "ECE (calibration error, lower is better)"),
}
DIMENSION_METRICS = {
    "CCC": ("concordance_correlation_coefficient", "CCC"),
    "MAE": ("mae", "mean absolute error"),
    "RMSE": ("rmse", "root mean squared error"),
}

# The published model's own process: no checkout, and nothing that the Hub files do not import.
HIDE = """
import sys
class Hider:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hider(finder) for finder in sys.meta_path]
from transformers.utils import logging
logging.set_verbosity_error()
"""
OURS = [name.removesuffix(".py") for name in HUB_FILES]
OURS += ["mtmm_training", "train_accelerate"]
TRAINING_ONLY = ["datasets", "evaluate", "sklearn", "scipy", "matplotlib", "tensorboard"]
TRAINING_ONLY += ["sentencepiece"]
NEEDED_BY_ADAPTERS = ["accelerate", "peft"]
PREDICT = """
import json, numpy, torch
utterances = json.loads(sys.argv[1])
outputs = []
for utterance in utterances:
    audio = utterance["audio"] and numpy.load(utterance["audio"])
    if audio is not None:
        audio = {"array": audio, "sampling_rate": utterance["sampling_rate"]}
    features = predict.processor(audio=audio, text=utterance["text"])
    with torch.no_grad():
        output = predict.model(**features)
    outputs.append({
        "emotion_logits": output.emotion_logits[0].float().tolist(),
        "dimensions": output.dimensions[0].float().tolist(),
        "named": predict({"audio": audio, "text": utterance["text"]}),
    })
print("OUTPUTS " + json.dumps(outputs))
"""


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


def publish(options: Publication, api: HfApi | None = None) -> CommitInfo | None:
    """Stage, check, upload, and check what came back.

    Args:
        options: See [`Publication`].
        api: Of the Hub to use; the environment's if not given.

    Returns:
        The commit; None for a dry run.

    Raises:
        ValueError: An option that is not allowed; outputs that differ; private text in a file.
        FileNotFoundError: The run is not complete.
        PermissionError: The Hub refuses the token, or the token may not write there.
        ConnectionError: The Hub cannot be reached, or the upload broke off.
        OSError: The disk is full: of temporary files (TMPDIR says where they are), or of `out`.
    """
    options.check()
    api = api or HfApi()
    if not options.dry_run:
        check_target(api, options)  # before the work, not after it
    with tempfile.TemporaryDirectory() as scratch, writing(scratch):
        work = Path(scratch)
        folder = work / "staged"
        folder.mkdir()
        results = read_results(options.run)
        model, processor = stage_model(api, options, results, folder)
        utterances = probe_utterances(work)
        expected = reference_outputs(model, processor, utterances)
        if options.adapter:
            merged = MTMMModel.from_pretrained(Path(options.run) / "model").eval()
            merged_outputs = reference_outputs(merged, processor, utterances)
            subject = f"The adapter on {options.base_model[0]}"
            compare(merged_outputs, expected, subject, MERGING_TOLERANCE)
        example = Example.of(options, results, processor)
        recorded = trainer_predictions(options, results, work)
        outputs, printed = run_isolated(
            api, options, example, str(folder), utterances + recorded.utterances, work
        )
        compare(expected, outputs[: len(expected)], "The staged folder")
        recorded.compare(outputs[len(expected) :])
        stage_papers(
            options, results, model.config, example.shown(options.repo_id), printed, folder
        )
        if options.out is not None:
            copy_files(folder, Path(options.out))
        files = allowed_files(folder)
        refuse_private_text(folder, files, private_folders(options), _token(api))
        print_plan(options, folder, files)
        if options.dry_run:
            return None
        commit = upload(api, options, folder, files)
        print(f"uploaded: {commit.commit_url}", flush=True)
        back = load_back(api, options, commit, work)
        outputs, _ = run_isolated(
            api, options, example, back, utterances, work, revision=commit.oid
        )
        compare(expected, outputs, f"The model at commit {commit.oid}")
        print(f"loaded back at {commit.oid[:12]}: same outputs as before the upload", flush=True)
        return commit


# ---- staging -----------------------------------------------------------------------------------


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


def stage_papers(
    options: Publication,
    results: dict[str, Any],
    config: Any,
    code: str,
    printed: str,
    folder: Path,
) -> None:
    """Card, results, figures, and evaluation results for a benchmark."""
    cleaned = clean_results(results, options.name_speakers)
    text = json.dumps(cleaned, indent=2, allow_nan=False)
    (folder / "results.json").write_text(text, encoding="utf-8")
    pictures = sorted((Path(options.run) / "figures").glob("*.png"))
    if pictures:
        (folder / "figures").mkdir()
    for picture in pictures:
        shutil.copy(picture, folder / "figures")
    card = make_card(options, cleaned, config, [p.name for p in pictures], code, printed)
    card.save(folder / "README.md")
    if options.benchmark:
        dataset, task, metric = options.benchmark
        values = metric_values(results["test"], list(results["model_config"]["trained_outputs"]))
        if metric not in values:
            raise ValueError(f"`--benchmark` metric {metric!r} is none of {', '.join(values)}.")
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=values[metric].value,
            source_url=f"https://huggingface.co/{options.repo_id}",
            source_name="results.json",
            notes=f"{metric}, {protocol_name(cleaned)}",
        )
        (folder / ".eval_results").mkdir()
        listing = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        (folder / ".eval_results" / "mtmm.yaml").write_text(listing, encoding="utf-8")


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


# ---- privacy -----------------------------------------------------------------------------------

# A path from the root, a home or a drive; not the path of a URL, nor a fraction such as 1/2.
PATH = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+ -]+){2,}[/\\]?")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
PATH_FIELDS = ("out", "manifest", "audio_dir", "corpus_dir", "cache_dir", "folds_file")
SOURCE_FIELDS = ("audio_encoder", "text_encoder", "model")


def clean_results(results: Mapping[str, Any], name_speakers: bool = False) -> dict[str, Any]:
    """results.json without private paths, and with numbers of speakers instead of their ids."""
    cleaned = _without_paths(dict(results))
    config = cleaned["config"]
    for name in PATH_FIELDS:
        if isinstance(config.get(name), list):
            config[name] = [_last_part(path) for path in config[name]]
        elif config.get(name):
            config[name] = _last_part(config[name])
    for name in SOURCE_FIELDS:
        if config.get(name) and not _is_hub_id(results["config"][name]):
            config[name] = _last_part(config[name])
    if name_speakers:
        return cleaned
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


def _is_hub_id(name: str) -> bool:
    """`owner/name`, and no folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


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


def _token(api: HfApi) -> str | None:
    return api.token if isinstance(api.token, str) else get_token()


# ---- checks in isolation -----------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """The card's ten lines; `{model}` is the place of the repository's id."""

    code: str
    cwd: Path

    @classmethod
    def of(
        cls, options: Publication, results: Mapping[str, Any], processor: MTMMProcessor
    ) -> "Example":
        """Of the recording in the options, or of a tone, with what the model was trained to see."""
        modalities = results["config"].get("modalities", ["audio", "text"])
        lines = ["from pprint import pprint", "from transformers import pipeline"]
        utterance = {}
        if "audio" in modalities and options.example is not None:
            utterance["audio"] = json.dumps(Path(options.example).name)
        elif "audio" in modalities:
            rate = processor.sampling_rate
            lines.insert(1, "import numpy")
            lines += ["", f"times = numpy.arange({rate}) / {rate}"]
            lines += ["tone = 0.1 * numpy.sin(2 * numpy.pi * 220 * times)"]
            utterance["audio"] = f'{{"array": tone, "sampling_rate": {rate}}}'
        text = options.example_text or ("It is what it is." if options.example is None else None)
        if "text" in modalities and text is not None:
            utterance["text"] = json.dumps(text, ensure_ascii=False)
        inner = ", ".join(f'"{name}": {value}' for name, value in utterance.items())
        lines += ["", "predict = pipeline(model={model}, trust_remote_code=True)"]
        if options.adapter:  # which has no configuration of its own
            temperature = results["model_config"].get("temperature", 1.0)
            lines += [f"predict.model.config.temperature = {temperature!r}"]
        lines += [f"pprint(predict({{{inner}}}), sort_dicts=False)"]
        cwd = Path.cwd() if options.example is None else Path(options.example).resolve().parent
        return cls("\n".join(lines), cwd)

    def shown(self, repo_id: str) -> str:
        """As the card prints it."""
        return self.code.replace("{model}", f'"{repo_id}"')

    def runnable(self, model: str, revision: str | None) -> str:
        """As it runs: the same lines on a folder, or on the Hub at one commit."""
        pinned = f", revision={revision!r}" if revision and not Path(model).is_dir() else ""
        return self.code.replace("{model}", repr(model) + pinned)


def probe_utterances(work: Path) -> list[dict[str, Any]]:
    """Three fixed inputs: noise with text, shorter noise alone, text alone."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    probes = []
    for samples, text in ((16000, "Well, I did not expect that at all!"), (9000, None), (0, "no")):
        path = None
        if samples:
            path = str(work / f"noise_{samples}.npy")
            np.save(path, noise[:samples])
        probes.append({"audio": path, "sampling_rate": 16000, "text": text})
    return probes


def reference_outputs(
    model: torch.nn.Module, processor: MTMMProcessor, utterances: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What the model in this process says of the utterances."""
    base = getattr(model, "get_base_model", lambda: model)()  # of peft's wrapper
    predict = MTMMPipeline(model=base, processor=processor)
    outputs = []
    for utterance in utterances:
        audio = None
        if utterance["audio"]:
            audio = {
                "array": np.load(utterance["audio"]),
                "sampling_rate": utterance["sampling_rate"],
            }
        with torch.no_grad():
            output = base(**processor(audio=audio, text=utterance["text"]))
        outputs.append(
            {
                "emotion_logits": output.emotion_logits[0].float().tolist(),
                "dimensions": output.dimensions[0].float().tolist(),
                "named": predict({"audio": audio, "text": utterance["text"]}),
            }
        )
    return outputs


def run_isolated(
    api: HfApi,
    options: Publication,
    example: Example,
    model: str,
    utterances: Sequence[Mapping[str, Any]],
    work: Path,
    revision: str | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """Outputs and printed example of `model`, in a process that has only the Hub's requirements.

    Args:
        api: Its endpoint and token are the process's.
        options: Whether adapters are published, which need peft.
        example: Printed and run.
        model: Folder, or id on the Hub.
        utterances: Inputs as files, see [`probe_utterances`].
        work: Folder for what the process downloads and writes.
        revision: The commit that was uploaded; None before the upload.

    Raises:
        ValueError: The process failed; the message ends with its own last line.
    """
    hidden = OURS + TRAINING_ONLY + ([] if options.adapter else NEEDED_BY_ADAPTERS)
    environment = os.environ | {
        "HF_ENDPOINT": api.endpoint,
        "HF_HOME": str(work / "hub"),  # nothing that an earlier download left behind
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if revision is None and not options.adapter:
        environment |= {"HF_HUB_OFFLINE": "1"}
    token = _token(api)
    if token is not None:
        environment["HF_TOKEN"] = token
    for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE"):
        environment.pop(name, None)
    code = f"HIDDEN = {hidden!r}\n{HIDE}\n{example.runnable(model, revision)}\n{PREDICT}"
    process = subprocess.run(
        [sys.executable, "-I", "-c", code, json.dumps(list(utterances))],
        env=environment,
        cwd=example.cwd,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"The model does not load where only the Hub's files are ({reason}); nothing was "
            "uploaded."
            if revision is None
            else f"The model was uploaded and does not load back ({reason})."
        )
    printed, _, outputs = process.stdout.rpartition("OUTPUTS ")
    return json.loads(outputs), printed.strip()


def compare(
    expected: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    subject: str,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ValueError unless both lists hold the same numbers, up to rounding."""
    for number, (ours, theirs) in enumerate(zip(expected, outputs, strict=True)):
        for name in ("emotion_logits", "dimensions"):
            worst = max(abs(a - b) for a, b in zip(ours[name], theirs[name], strict=True))
            if not worst <= tolerance:
                raise ValueError(
                    f"{subject} gives other {name} than the run's model for input {number}: they "
                    f"differ by {worst:.2g}, at most {tolerance:g} is allowed."
                )
        if ours["named"]["missing"] != theirs["named"]["missing"]:
            raise ValueError(f"{subject} finds other modalities in input {number}.")


@dataclass(frozen=True)
class Recorded:
    """Utterances of the test split with the trainer's predictions; empty where the data is away."""

    utterances: list[dict[str, Any]]
    rows: list[dict[str, str]]
    tolerance: float

    def compare(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError unless the outputs are what predictions.csv says."""
        worst = 0.0
        for row, output in zip(self.rows, outputs, strict=True):
            named = output["named"]
            values = {f"p_{name}": p for name, p in named.get("scores", {}).items()}
            values |= {name: v for name, v in named.items() if isinstance(v, float)}
            for column, value in values.items():
                worst = max(worst, abs(float(row[column]) - value))
            if not worst <= self.tolerance:
                raise ValueError(
                    f"The staged model and predictions.csv differ by {worst:.2g} for utterance "
                    f"{row['id']}, at most {self.tolerance:g} is allowed; is predictions.csv of "
                    "this run?"
                )
        if self.rows:
            print(
                f"{len(self.rows)} test utterances as in predictions.csv, up to {worst:.1g}",
                flush=True,
            )


def trainer_predictions(options: Publication, results: Mapping[str, Any], work: Path) -> Recorded:
    """The first test utterances whose data is still here, with their rows of predictions.csv."""
    config = results["config"]
    exact = config.get("mixed_precision", "no") == "no" and results.get("device") == "cpu"
    tolerance = TRAINER_TOLERANCE if exact else TRAINER_TOLERANCE_HALF
    table, manifests = Path(options.run) / "predictions.csv", config.get("manifest") or []
    encoder = results["model_config"]["audio_config"]
    reason = None
    if not table.is_file():
        reason = "the run has none"
    elif not manifests or not all(Path(manifest).is_file() for manifest in manifests):
        reason = "the run's manifest is not here"
    elif encoder.get("feat_extract_norm") == "group":
        reason = "an encoder with group norm depends on its batch"
    try:
        if reason is None:
            return Recorded(*_recorded(table, config, work), tolerance)
    except (ValueError, FileNotFoundError) as error:
        reason = _first_line(error).rstrip(":")
    print(f"predictions.csv not compared: {reason}", flush=True)
    return Recorded([], [], tolerance)


def _recorded(
    table: Path, config: Mapping[str, Any], work: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The utterances and their rows.

    Raises:
        ValueError, FileNotFoundError: Table, manifests or recordings changed since the run.
    """
    with open(table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := {"id", "split"} - set(reader.fieldnames or ()):
            raise ValueError(f"it has no column {' and '.join(sorted(lacking))}")
        rows = [row for row in reader if row["split"] == "test"][:COMPARED_UTTERANCES]
    known = {
        u.utterance_id: u
        for u in read_manifests(
            config["manifest"],
            audio_dir=config["audio_dir"],
            dimension_range=tuple(config["dimension_range"]),
        )
    }
    utterances: list[dict[str, Any]] = []
    for row in rows:
        utterance = known.get(row["id"])
        if utterance is None:
            raise ValueError(f"utterance {row['id']!r} is no longer in the run's manifest")
        path = rate = None
        if utterance.audio is not None and "audio" in config["modalities"]:
            waveform, rate = MTMMProcessor.load_audio(
                utterance.audio, utterance.start_s, utterance.end_s
            )
            path = str(work / f"recorded_{len(utterances)}.npy")
            np.save(path, waveform)
        text = utterance.text if "text" in config["modalities"] else None
        utterances.append({"audio": path, "sampling_rate": rate, "text": text})
    return utterances, rows


# ---- the card ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One number of a split, and how the Hub and the card call it."""

    type: str
    args: dict[str, Any] | None
    title: str
    value: float


def metric_values(metrics: Mapping[str, Any], trained: Sequence[str]) -> dict[str, Metric]:
    """Every metric of a split that has a number, of trained outputs only, by its key.

    Args:
        metrics: "validation" or "test" of results.json.
        trained: `trained_outputs` of the configuration.
    """
    found: dict[str, Metric] = {}
    if "emotion" in trained:
        for key, (kind, args, title) in EMOTION_METRICS.items():
            found[key] = Metric(kind, args, title, metrics.get(key, math.nan))
        for emotion, value in (metrics.get("recall") or {}).items():
            title = f"recall of {emotion}"
            found[title] = Metric("recall", {"label": emotion}, title, value)
    for key, (kind, title) in DIMENSION_METRICS.items():
        for name, value in metrics.get(key, {}).items():
            if name in trained:
                found[f"{key}_{name}"] = Metric(kind, {"output": name}, f"{title} of {name}", value)
    return {
        key: metric
        for key, metric in found.items()
        if metric.value is not None and math.isfinite(metric.value)
    }


def read_folds(options: Publication) -> list[dict[str, Any]]:
    """results.json of all folds, the published run's first.

    Raises:
        ValueError: The runs are no folds of one protocol with the same outputs, or one comes twice.
    """
    runs = {run: read_results(run) for run in (options.run, *options.folds)}
    published = runs[options.run]["config"]
    for run, results in runs.items():
        for name in ("protocol", "k", "corpus", "modalities", "emotions", "dimensions"):
            if results["config"].get(name) != published.get(name):
                raise ValueError(
                    f"{run} has another {name} than {options.run}; `--folds` takes runs that "
                    "differ in their fold only."
                )
    names = [results["fold"] for results in runs.values()]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"Fold {', '.join(sorted(doubled))} comes twice in `--folds`.")
    return list(runs.values())


def spread_over_folds(
    runs: Sequence[Mapping[str, Any]], trained: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each test metric that all folds have; {} of one fold."""
    if len(runs) < 2:
        return {}
    folds = [metric_values(run["test"], trained) for run in runs]
    return {
        key: (
            statistics.mean(fold[key].value for fold in folds),
            statistics.stdev(fold[key].value for fold in folds),
        )
        for key in folds[0]
        if all(key in fold for fold in folds)
    }


def protocol_name(results: Mapping[str, Any]) -> str:
    """The kind of folds, in words."""
    config = results["config"]
    if config.get("test_speakers"):
        return "one fold with chosen test speakers"
    if config.get("folds_file"):
        return f"fold {config['fold']} of {Path(config['folds_file']).name}"
    folds = f" of {config['k']} folds" if config.get("k") else ""
    special = ", scripts apart too" if config.get("script_disjoint") else ""
    special += ", of improvised utterances alone" if config.get("improvised_only") else ""
    return (
        f"fold {config['fold']} (counted from 0){folds}, protocol {config['protocol']!r}{special}"
    )


def corpus_name(options: Publication, results: Mapping[str, Any]) -> str:
    """What the card calls the training data."""
    config = results["config"]
    if options.corpus_name or config.get("corpus"):
        return options.corpus_name or config["corpus"]
    return "a private manifest"


def base_models(options: Publication, results: Mapping[str, Any]) -> list[str]:
    """Hub ids that the model derives from."""
    config = results["config"]
    if options.base_model:
        return list(options.base_model)
    sources = (
        [config["model"]]
        if config.get("model")
        else [config["audio_encoder"], config["text_encoder"]]
    )
    return [source for source in sources if _is_hub_id(source)]


def card_data(options: Publication, results: Mapping[str, Any], config: Any) -> ModelCardData:
    """The card's metadata, as the Hub documents it."""
    trained = list(config.trained_outputs)
    corpus = corpus_name(options, results)
    dataset = options.datasets[0] if options.datasets else re.sub(r"\W+", "-", corpus.lower())
    folds = read_folds(options)
    spreads = spread_over_folds(folds, trained)
    protocol = {
        name: results["config"].get(name)
        for name in ("protocol", "k", "fold", "modalities")
        if results["config"].get(name) is not None
    }
    evaluations = []
    for split in ("validation", "test"):
        for key, metric in metric_values(results.get(split, {}), trained).items():
            args = dict(metric.args or {})
            if split == "test" and key in spreads:
                mean, deviation = spreads[key]
                args |= {"folds": len(folds), "mean": mean, "standard_deviation": deviation}
            evaluations.append(
                EvalResult(
                    task_type="audio-classification",
                    task_name="Speech emotion recognition",
                    dataset_type=dataset,
                    dataset_name=corpus,
                    dataset_split=split,
                    dataset_args=protocol,
                    metric_type=metric.type,
                    metric_name=metric.title,
                    metric_value=round(metric.value, 6),
                    metric_args=args or None,
                )
            )
    bases = base_models(options, results)
    return ModelCardData(
        language=options.language or ["en"],
        license=options.licence,
        library_name="peft" if options.adapter else "transformers",
        pipeline_tag="audio-classification",
        base_model=bases or None,
        # Of several bases the Hub would otherwise conclude that they were merged.
        base_model_relation=("adapter" if options.adapter else "finetune") if bases else None,
        datasets=options.datasets or None,
        metrics=sorted({result.metric_type for result in evaluations}) or None,
        tags=["speech-emotion-recognition", "mtmm", "multimodal", "custom_code", *trained],
        model_name=options.repo_id.split("/")[1],
        eval_results=evaluations or None,
    )


def make_card(
    options: Publication,
    results: Mapping[str, Any],
    config: Any,
    figures: Sequence[str],
    code: str,
    printed: str,
) -> ModelCard:
    """The card, from the template.

    Args:
        options: Name, licence and folds.
        results: Cleaned.
        config: The published model's.
        figures: File names in figures/.
        code: The example.
        printed: What it printed.
    """
    if not TEMPLATE.is_file():
        raise FileNotFoundError(
            f"The card's template is not at {TEMPLATE}; publish from a checkout of the repository."
        )
    data = card_data(options, results, config)
    trained = list(config.trained_outputs)
    folds = read_folds(options)
    spreads = spread_over_folds(folds, trained)
    validation, test = (metric_values(results.get(s, {}), trained) for s in ("validation", "test"))
    rows = [
        {
            "title": metric.title,
            "validation": _number(validation[key].value) if key in validation else "-",
            "test": _number(metric.value),
            "spread": "{} ± {}".format(*map(_number, spreads[key])) if key in spreads else "-",
        }
        for key, metric in test.items()
    ]
    seconds = [run["wall_time_s"] * run.get("processes", 1) for run in folds]
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=options.repo_id.split("/")[1],
        repo_id=options.repo_id,
        adapter=options.adapter,
        merged=bool(results["config"].get("lora_rank")) and not options.adapter,
        licence=options.licence,
        base_models=base_models(options, results),
        code=code,
        printed=printed,
        example=options.example is not None,
        config=config,
        emotions=list(config.emotion_names),
        trained=trained,
        outputs=_listed(["an emotion" if name == "emotion" else name for name in trained]),
        columns={name: i for i, name in enumerate(config.dimension_names)},
        untrained=[name for name in config.output_names if name not in trained],
        run=results["config"],
        results=results,
        protocol=protocol_name(results),
        speakers={name: _count(split["speakers"]) for name, split in results["splits"].items()},
        corpus=corpus_name(options, results),
        corpus_licence=options.corpus_licence,
        datasets=options.datasets,
        language=", ".join(options.language or ["en"]),
        rows=rows,
        folds=len(folds),
        figures=[(name, FIGURE_TITLES.get(Path(name).stem, Path(name).stem)) for name in figures],
        hours=seconds[0] / 3600,
        all_hours=sum(seconds) / 3600,
        device=options.device_name or results.get("device", "an unrecorded device"),
        parameters=results.get("parameters", {}),
    )


FIGURE_TITLES = {
    "confusion": "Confusion matrix of the test split",
    "curves": "Losses and validation metrics by epoch",
    "valence_arousal": "Predicted and labelled valence and arousal of the test split",
}


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + list(names[-1:]))


def _number(value: float) -> str:
    return f"{value:.3f}"


def _count(speakers: int | Sequence[str]) -> int:
    return speakers if isinstance(speakers, int) else len(speakers)


# ---- the Hub -----------------------------------------------------------------------------------


def print_plan(options: Publication, folder: Path, files: Sequence[str]) -> None:
    """What goes where."""
    to = [options.repo_id, "private if new" if options.private else "public if new"]
    to.append("a pull request" if options.pull_request else f"branch {options.branch or 'main'}")
    if options.tag:
        to.append(f"tag {options.tag}")
    print(f"{'would go' if options.dry_run else 'goes'} to {', '.join(to)}:")
    sizes = {name: (folder / name).stat().st_size for name in files}
    for name, size in sizes.items():
        print(f"  {size:>14,}  {name}")
    print(f"  {sum(sizes.values()):>14,}  bytes in {len(files)} files", flush=True)


def check_target(api: HfApi, options: Publication) -> None:
    """Refuse what the Hub would refuse, before anything is computed."""
    with hub_errors(options.repo_id):
        api.whoami()
        try:
            info = api.model_info(options.repo_id)
        except RepositoryNotFoundError as error:
            if options.pull_request:
                raise ValueError(
                    f"There is no {options.repo_id} to open a pull request on; publish without "
                    "--pull_request."
                ) from error
            return
        if options.private and not info.private:
            raise ValueError(
                f"{options.repo_id} exists and is public, so `--private` would not hold; change it "
                "in the repository's settings, or choose another id."
            )
        if options.tag and options.tag in [t.name for t in api.list_repo_refs(info.id).tags]:
            raise ValueError(
                f"{options.repo_id} already has the tag {options.tag}; choose another."
            )


def upload(api: HfApi, options: Publication, folder: Path, files: Sequence[str]) -> CommitInfo:
    """One commit with the staged files and without an earlier version's left-overs."""
    with hub_errors(options.repo_id):
        if not options.pull_request:
            private = True if options.private else None
            api.create_repo(options.repo_id, private=private, exist_ok=True)
        if options.branch:
            api.create_branch(
                options.repo_id, branch=options.branch, revision=options.revision, exist_ok=True
            )
        # Weights of an earlier version would win over the new ones: one file over shards, an
        # adapter over everything.
        there = api.list_repo_files(options.repo_id, revision=options.branch)
        stale = [
            name
            for name in there
            if name not in files and is_allowed(name) and not name.startswith(".eval_results/")
        ]
        commit = api.create_commit(
            options.repo_id,
            [CommitOperationAdd(name, folder / name) for name in files]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=options.message,
            revision=options.branch,
            create_pr=options.pull_request,
        )
        if options.tag:
            api.create_tag(options.repo_id, tag=options.tag, revision=commit.oid)
    return commit


def load_back(api: HfApi, options: Publication, commit: CommitInfo, work: Path) -> str:
    """What to load for the check after the upload: the repository's id, or an adapter's folder.

    transformers looks for an adapter's revision in the base's repository too.
    """
    if not options.adapter:
        return options.repo_id
    with hub_errors(options.repo_id):
        return api.snapshot_download(
            options.repo_id, revision=commit.oid, local_dir=work / "downloaded"
        )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """One sentence for what the Hub or the network refuses."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            "No access token; run `hf auth login`, or set HF_TOKEN to a token with write access."
        ) from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise ValueError(
            f"{repo_id}: {_first_line(error)}; check --branch and --revision."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            raise PermissionError(
                "The Hub refuses the access token; run `hf auth login` again, or set HF_TOKEN."
            ) from error
        if status in (401, 403, 404):
            raise PermissionError(
                f"The access token may not write to {repo_id}; use one with write access there."
            ) from error
        raise ConnectionError(f"{repo_id}: the Hub answers {_first_line(error)}.") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # huggingface_hub's HTTP library
            raise
        raise ConnectionError(
            f"The connection to the Hub failed ({_first_line(error)}); no commit was made. Run the "
            "same command again."
        ) from error


def _first_line(error: Exception) -> str:
    """The first line that says something; the Hub's errors begin with "404 Client Error."."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.endswith("Client Error")]
    return telling[0] if telling else type(error).__name__


# ---- the command -------------------------------------------------------------------------------


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.publishing.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        publish(Publication(**vars(parser.parse_args(arguments))))
    except (ValueError, OSError) as error:  # OSError: files, permissions and the network
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
