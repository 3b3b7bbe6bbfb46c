"""Small runs of training on the embedded corpus, in this process or in one of their own."""

import json
import multiprocessing
import os
import signal
import sys
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
    with without_pictures():
        return train_accelerate.main(flags)


def without_pictures() -> AbstractContextManager[object]:
    """Drawing them takes three times as long as all else that a small run does."""
    return patch("mtmm_training.training.report.draw", lambda *_: None)


class Process:
    """`main(words)` in a process of its own, with its output kept: appended to `log` where given."""

    def __init__(
        self,
        main: Callable[[list[str]], int],
        words: list[str],
        environment: dict[str, str],
        log: Path | None = None,
    ) -> None:
        if log is None:
            number, name = tempfile.mkstemp(suffix=".log")
            os.close(number)
            log = Path(name)
        self.log = log
        self.process = _server.Process(target=_run, args=(main, words, environment, str(log)))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def runs(self) -> bool:
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def output(self) -> str:
        """All that it has printed, once it has ended."""
        self.process.join()
        return self.log.read_text()

    def finish(self, status: int = 0) -> str:
        """The same, after it has ended with this status."""
        output = self.output()
        assert self.process.exitcode == status, output
        return output


# Processes are forked from one that has imported everything, which takes longer than a run.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["train_accelerate"])


def _run(
    main: Callable[[list[str]], int],
    words: list[str],
    environment: dict[str, str],
    log: str,
) -> None:
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a run of a user
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = main(words)
    if "coverage" in sys.modules:
        sys.exit(status)
    # At once: an interpreter that was forked beside others' threads may wait for them at its end.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start(flags: list[str], **environment: str) -> Process:
    """A run, as `python train_accelerate.py FLAGS`, without pictures."""
    return Process(main_without_pictures, flags, environment)


class Fold(Process):
    """In the place of the Popen of a protocol's fold."""

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> None:
        self.process.join()

    def terminate(self) -> None:
        if self.runs():
            self.send(signal.SIGTERM)


def start_fold(command: list[str], log: Path, jobs: int) -> Fold:
    """In the place of `protocol.start`, without pictures and the seconds of an interpreter's imports."""
    assert Path(command[1]) == Path(train_accelerate.__file__)
    log.parent.mkdir(parents=True, exist_ok=True)
    return Fold(main_without_pictures, command[2:], {}, log)


def wait_for(checkpoint: Path, process: Process, seconds: float = 240) -> None:
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
