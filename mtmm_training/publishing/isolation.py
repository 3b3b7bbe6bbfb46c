"""The published model in a process of its own, before and after the upload."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import (
    HfApi,
)

from modeling_mtmm import MTMMPipeline, MTMMProcessor
from mtmm_training.data.utterances import read_manifests
from mtmm_training.publishing.hub import _first_line, _token
from mtmm_training.publishing.publication import Publication

TOLERANCE = 1e-5  # the same weights and code on the same machine
MERGING_TOLERANCE = 1e-3  # adapters beside their weights, and merged into them
# predictions.csv has six decimals, and its utterances were padded together with others.
TRAINER_TOLERANCE, TRAINER_TOLERANCE_HALF = 2e-5, 5e-2
COMPARED_UTTERANCES = 4
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
OURS = ["configuration_mtmm", "modeling_mtmm", "processing_mtmm", "pipeline_mtmm"]
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
