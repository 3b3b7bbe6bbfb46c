"""Small runs of training on the embedded corpus, in this process or in one of their own."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

import train_accelerate
from mtmm_training.studies.processes import Process
from mtmm_training.training.config import parse

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_bridge_tokens": 4,
}
TRAINED = {"freeze_audio_encoder": False, "freeze_text_encoder": False}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0}
# All that is drawn at random: dropout, modality masking, variants of recordings, votes.
RANDOM = (
    *("--checkpoint_steps", "2", "--augment", "speed", "noise", "lowpass"),
    *("--augment_variants", "2", "--vote_dropout", "0.3"),
)


def words(embedded: Path, out: Path, *flags: str, **model_config: object) -> list[str]:
    """Flags of two epochs of 40, 8 and 10 utterances; encoders are frozen unless said otherwise."""
    cached = model_config.get("freeze_audio_encoder", True)
    return [
        *("--manifest", str(embedded / "corpus" / "manifest.csv"), "--out", str(out)),
        *("--audio_encoder", str(embedded / "encoders" / "audio")),
        *("--text_encoder", str(embedded / "encoders" / "text")),
        *(["--cache_dir", str(embedded / "cache")] if cached else []),
        *("--model_config", json.dumps(SIZES | model_config)),
        *("--protocol", "session", "--fold", "4", "--epochs", "2", "--batch_size", "6"),
        *("--learning_rate", "1e-3", "--encoder_learning_rate", "1e-3", "--tracker", "none"),
        *("--workers", "0", "--preset", "paper", *flags),
    ]


def train(flags: list[str]) -> Path:
    """A run in this process, without pictures; the run's folder."""
    with without_pictures():
        return train_accelerate.train_fold(parse(flags))


def main_without_pictures(flags: list[str]) -> int:
    """In the place of `train_accelerate.main`."""
    with without_pictures():
        return _main(flags)


_main = train_accelerate.main  # tests put the other one in its place


def without_pictures() -> AbstractContextManager[object]:
    """Drawing them takes three times as long as all else that a small run does."""
    return patch("mtmm_training.training.report.draw", lambda *_: None)


class Run(Process):
    """`main(flags)` in a process of its own, with its output kept."""

    def __init__(
        self, main: Callable[[list[str]], int], flags: list[str], **environment: str
    ) -> None:
        number, name = tempfile.mkstemp(suffix=".log")
        os.close(number)
        self.output_file = Path(name)
        super().__init__(main, flags, self.output_file, environment)

    def runs(self) -> bool:
        return self.exitcode is None

    def send(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def output(self) -> str:
        """All that it has printed, once it has ended."""
        self.wait()
        return self.output_file.read_text()

    def finish(self, status: int = 0) -> str:
        """The same, after it has ended with this status."""
        output = self.output()
        assert self.exitcode == status, output
        return output


def start(flags: list[str], **environment: str) -> Run:
    """A run, as `python train_accelerate.py FLAGS`, without pictures."""
    return Run(main_without_pictures, flags, **environment)


def wait_for(checkpoint: Path, process: Run, seconds: float = 240) -> None:
    """Until it is there, or a later one: few are kept, so it may be gone before it is seen."""
    deadline = time.monotonic() + seconds
    while not any(found.name >= checkpoint.name for found in checkpoint.parent.glob("step-*")):
        assert process.runs(), process.output()
        assert time.monotonic() < deadline, f"{checkpoint} did not come"
        time.sleep(0.05)


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit the same weights, epochs and test."""
    assert largest_difference(first, second) == 0.0
    one, two = results_of(first), results_of(second)
    assert one["epochs"] == two["epochs"] and one["test"] == two["test"]
