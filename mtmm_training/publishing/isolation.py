"""The published model in a process of its own, before and after the upload: same numbers or nothing."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from huggingface_hub import HfApi

import modeling_mtmm
from composing_mtmm import LOCAL_ENCODERS
from modeling_mtmm import MTMMPipeline, MTMMProcessor
from mtmm_training.data import sounds
from mtmm_training.data.utterances import DIMENSIONS
from mtmm_training.publishing.card import Facts
from mtmm_training.publishing.hub import first_line
from mtmm_training.publishing.stage import token_of
from mtmm_training.scoring.texts import render
from mtmm_training.training.run import Run

Inputs = Sequence[Mapping[str, Any]]
Outputs = Sequence[Mapping[str, Any]]

TOLERANCE = 1e-5  # the same weights and code on the same machine
MERGING_TOLERANCE = 1e-3  # adapters beside their weights, and merged into them
# predictions.csv has six decimals, and its utterances were padded together with others; of states
# in half precision they differ more.
TRAINER_TOLERANCE, TRAINER_TOLERANCE_HALF = 2e-5, 5e-2
COMPARED_UTTERANCES = 4

# The process has no checkout, and nothing that the Hub files do not import: neither an import nor a
# library's question whether a package is there finds what is None here.
HIDE = "import sys; sys.modules.update(dict.fromkeys(HIDDEN))"
OURS = [path.stem for path in Path(modeling_mtmm.__file__).parent.glob("*_mtmm.py")]
OURS += ["mtmm_training", "train_accelerate"]
TRAINING_ONLY = "datasets evaluate sklearn scipy matplotlib tensorboard sentencepiece".split()
NEEDED_BY_ADAPTERS = ["accelerate", "peft"]


@dataclass(frozen=True)
class Example:
    """The card's ten lines; `{model}` is the place of the repository's id.

    Args:
        code: Python.
        cwd: where it finds its recording.
    """

    code: str
    cwd: Path

    @classmethod
    def of(cls, run: Run, facts: Facts, processor: MTMMProcessor, adapter: bool) -> "Example":
        """Makes it for the facts' recording, or for a tone, with what the model was trained to see."""
        modalities = run.results["config"].get("modalities", ["audio", "text"])
        rate = processor.sampling_rate if facts.example is None else None  # of the tone
        utterance = {}
        if "audio" in modalities:
            array = f'{{"array": tone, "sampling_rate": {rate}}}'
            utterance["audio"] = array if rate else json.dumps(Path(str(facts.example)).name)
        text = facts.example_text or ("It is what it is." if rate else None)
        if "text" in modalities and text is not None:
            utterance["text"] = json.dumps(text, ensure_ascii=False)
        # An adapter has no configuration of its own.
        temperature = run.results["model_config"].get("temperature", 1.0) if adapter else None
        tone = rate if "audio" in modalities else None
        code = render("example.txt", rate=tone, temperature=temperature, utterance=utterance)
        cwd = Path.cwd() if facts.example is None else Path(facts.example).resolve().parent
        return cls(code.rstrip(), cwd)

    def of_model(self, model: str, revision: str | None = None) -> str:
        """The lines for a folder, or for a model on the Hub, at one commit where that is given."""
        pinned = f', revision="{revision}"' if revision and not Path(model).is_dir() else ""
        return self.code.replace("{model}", json.dumps(model) + pinned)


def probes(work: Path) -> list[dict[str, Any]]:
    """Three fixed inputs: noise with text, shorter noise alone, text alone."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    said = "Well, I did not expect that at all!"
    return [
        {"audio": _saved(noise, 16000, work / "long.wav"), "text": said},
        {"audio": _saved(noise[:9000], 16000, work / "short.wav"), "text": None},
        {"audio": None, "text": "no"},
    ]


def _saved(waveform: np.ndarray, rate: int, path: Path) -> dict[str, Any]:
    """A waveform as another process, the pipeline and its processor read it."""
    soundfile.write(path, waveform, rate, subtype="FLOAT")
    return {"path": str(path), "bytes": None}


def outputs_of(predict, utterances):  # type: ignore[no-untyped-def]  # its source runs elsewhere
    """What a pipeline says of utterances. Its source also runs in the isolated process."""
    import torch

    outputs = []
    for utterance in utterances:
        with torch.no_grad():
            output = predict.model(**predict.processor(**utterance))
        outputs.append(
            {
                "emotion_logits": output.emotion_logits[0].float().tolist(),
                "dimensions": output.dimensions[0].float().tolist(),
                "named": predict(utterance),
            }
        )
    return outputs


def outputs_here(model: Any, processor: MTMMProcessor, inputs: Inputs) -> Outputs:
    """What a model says in this process."""
    return outputs_of(MTMMPipeline(model=model, processor=processor), inputs)


def run_isolated(
    api: HfApi,
    example: Example,
    model: str,
    inputs: Inputs,
    work: Path,
    *,
    adapter: bool,
    revision: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[Outputs, str]:
    """Outputs and printed example of `model`, in a process that has only the Hub's requirements.

    Args:
        api: its endpoint and token are the process's.
        example: printed and run.
        model: folder, or id on the Hub.
        inputs: as of `probes`.
        work: folder for what the process downloads and writes.
        adapter: whether `model` is an adapter, which needs peft, and its base from the Hub.
        revision: the commit that was uploaded; None before the upload.
        variables: more of the process's environment, or other than it would be.

    Raises:
        ValueError: The process failed; the message ends with its own last line.
    """
    hidden = OURS + TRAINING_ONLY + ([] if adapter else NEEDED_BY_ADAPTERS)
    environment = os.environ | {
        "HF_ENDPOINT": api.endpoint,
        "HF_HOME": str(work / "hub"),  # nothing that an earlier download left behind
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1" if revision is None and not adapter else "0",
        "HF_TOKEN": token_of(api) or "",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    elsewhere = ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", *LOCAL_ENCODERS.values())
    for name in elsewhere:
        environment.pop(name, None)
    environment |= variables or {}
    code = f"HIDDEN = {hidden!r}\n{HIDE}\n{example.of_model(model, revision)}\n"
    code += f"{inspect.getsource(outputs_of)}\nimport json\n"
    code += 'print("OUTPUTS " + json.dumps(outputs_of(predict, json.loads(sys.argv[1]))))'
    process = subprocess.run(
        [sys.executable, "-I", "-c", code, json.dumps(list(inputs))],
        env=environment, cwd=example.cwd, capture_output=True, text=True,
    )  # fmt: skip
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        when = "was uploaded and does not load back" if revision else "does not load"
        raise ValueError(f"The model {when} where only the Hub's files are ({reason}).")
    printed, _, outputs = process.stdout.rpartition("OUTPUTS ")
    return json.loads(outputs), printed.strip()


def local_encoders(run: Run) -> dict[str, str]:
    """By which variables a process finds a heads-only model's encoders where this run found them."""
    flags = run.flags
    found = zip(LOCAL_ENCODERS.values(), (flags.audio_encoder, flags.text_encoder), strict=True)
    local = {name: str(Path(where).resolve()) for name, where in found if Path(where).is_dir()}
    return local if len(local) == len(LOCAL_ENCODERS) else local | {"HF_HUB_OFFLINE": "0"}


def compare(expected: Outputs, outputs: Outputs, who: str, tolerance: float = TOLERANCE) -> None:
    """Raise ValueError unless both lists hold the same numbers, up to rounding."""
    for number, (ours, theirs) in enumerate(zip(expected, outputs, strict=True)):
        for name in ("emotion_logits", "dimensions"):
            worst = max(abs(a - b) for a, b in zip(ours[name], theirs[name], strict=True))
            if not worst <= tolerance:
                raise ValueError(
                    f"{who} gives other {name} than the run's model for input {number}: they "
                    f"differ by {worst:.2g}, at most {tolerance:g} is allowed."
                )


@dataclass(frozen=True)
class Recorded:
    """Utterances of the test split with the trainer's predictions; empty where the data is away.

    Args:
        inputs: as of `probes`.
        rows: of predictions.csv, one for each input.
        tolerance: how far probabilities and dimensions may be apart.
    """

    inputs: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    tolerance: float

    @classmethod
    def of(cls, run: Run, work: Path, exact: bool = True) -> "Recorded":
        """The first test utterances; none, and a line that says why, if their data changed or is away."""
        config = run.results["config"]
        exact &= config.get("mixed_precision", "no") == "no" and run.results.get("device") == "cpu"
        exact = exact and not run.results.get("cached_states")
        tolerance = TRAINER_TOLERANCE if exact else TRAINER_TOLERANCE_HALF
        try:
            if run.results["model_config"]["audio_config"].get("feat_extract_norm") == "group":
                raise ValueError("an encoder with group norm depends on its batch")
            inputs: list[dict[str, Any]] = []
            for number, u in enumerate(run.test_utterances()[:COMPARED_UTTERANCES]):
                audio = None
                if u.audio is not None and "audio" in config["modalities"]:
                    sound = sounds.waveform(u.audio, u.start_s, u.end_s)
                    audio = _saved(*sound, work / f"recorded_{number}.wav")
                text = u.text if "text" in config["modalities"] else None
                inputs.append({"audio": audio, "text": text})
            plain = "test_without_reference"
            answers = run.predictions(plain if plain in run.results else "test")
            rows = answers.head(len(inputs)).to_dict("records")
        except (ValueError, OSError) as error:
            print(f"predictions.csv not compared: {first_line(error)}", flush=True)
            return cls([], [], tolerance)
        return cls(inputs, rows, tolerance)

    def compare(self, outputs: Outputs) -> None:
        """Raise ValueError unless the outputs are what predictions.csv says."""
        worst = 0.0
        for row, output in zip(self.rows, outputs, strict=True):
            named = output["named"]
            values = {f"p_{name}": p for name, p in named.get("scores", {}).items()}
            columns = [f"{name}{end}" for name in DIMENSIONS for end in ("", "_sd")]
            values |= {name: named[name] for name in columns if name in named}
            for column, value in values.items():
                worst = max(worst, abs(row[column] - value))
            if not worst <= self.tolerance:
                raise ValueError(
                    f"The staged model and predictions.csv differ by {worst:.2g} for utterance "
                    f"{row['id']}, at most {self.tolerance:g} is allowed; is it of this run?"
                )
        if self.rows:
            same = f"{len(self.rows)} test utterances as in predictions.csv"
            print(f"{same}, up to {worst:.1g}", flush=True)
