"""What goes wrong while training: bad files, runaway numbers, memory, workers, signals, two runs.

Run alone: python -m pytest tests/test_training_faults.py
"""

import dataclasses
import errno
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from conftest import two_processes
from small_runs import assert_same_run, results_of, start, train, wait_for, words
from torch import nn

import train_accelerate
from modeling_mtmm import MTMMModel
from mtmm_training.batches import collate as batches
from mtmm_training.batches.collate import is_of_worker, make_loader, to_dataset
from mtmm_training.batches.sampler import LengthBatches
from mtmm_training.batches.shards import StateShards
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance
from mtmm_training.training import checkpoints, completion, faults, job, prepare, report
from mtmm_training.training.checkpoints import Checkpoints
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import Stopped, StopSignal, alone_in
from mtmm_training.training.model import choose_trained

# ---- interrupted -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(embedded: Path) -> Path:
    return train(words(embedded, embedded / "whole"))


# Phase -> what is being called as the signal comes, and which of its calls that is.
PHASES = {
    "reading the manifest": (prepare, "read_all", 1),
    "encoding": (StateShards, "write", 1),
    "training": (train_accelerate, "mask_modalities", 3),
    "validating": (train_accelerate, "predict", 2),
    "writing a checkpoint": (checkpoints, "_digests", 1),
    "validating the last epoch": (train_accelerate, "predict", 3),
    "testing": (completion, "predict", 2),
    "writing predictions": (report, "write_predictions", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_run_interrupted_in_any_phase_ends_as_if_it_had_not_been(
    embedded: Path, tmp_path: Path, whole: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name, which = PHASES[phase]
    original, calls = getattr(home, name), 0
    number = (signal.SIGTERM, signal.SIGINT)[list(PHASES).index(phase) % 2]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == which:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(home, name, interrupted)
    handler = signal.getsignal(number)
    flags = words(embedded, tmp_path / "out")
    if phase == "encoding":
        flags += ["--cache_dir", str(tmp_path / "cache")]
    with pytest.raises(Stopped, match=number.name):
        train(flags)
    monkeypatch.undo()
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "out" / "results.json").exists()
    train([*flags, "--resume"])
    assert_same_run(whole, tmp_path / "out")


def test_second_signal_ends_a_training_at_once() -> None:
    with StopSignal() as stop:
        stop.training = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
        with pytest.raises(Stopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


# ---- the folder --------------------------------------------------------------------------------


def hold(folder: Path, ready: Any) -> None:
    """Keep the folder until killed, with a worker that outlives this process."""
    os.setsid()
    with alone_in(folder):
        if os.fork() != 0:
            ready.send("held")
        time.sleep(60)


def test_two_runs_in_one_folder_are_refused_until_the_first_dies(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path / "out", sender))
    process.start()
    assert process.pid is not None
    try:
        assert receiver.recv() == "held"
        with pytest.raises(ValueError, match="in use"), alone_in(tmp_path / "out"):
            pass
        process.kill()  # not its worker
        process.join()
        with alone_in(tmp_path / "out"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_only_the_first_process_of_a_launch_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with alone_in(tmp_path / "out"):
        assert not (tmp_path / "out").exists()


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Two checkpoints of a layer."""
    accelerator = Accelerator(cpu=True)
    layer = nn.Linear(2, 2)
    model, _ = accelerator.prepare(layer, torch.optim.AdamW(layer.parameters()))
    written = Checkpoints(tmp_path / "checkpoints", accelerator, model, 2)
    for step in (9, 10):
        written.save(step)
    resume(written)
    return written


def resume(checkpoints: Checkpoints) -> None:
    assert checkpoints.resume(checkpoints.folder.parent / "settings.json", {}, {}) is not None


def test_newest_checkpoint_is_that_of_most_steps_whatever_the_clock(saved: Checkpoints) -> None:
    os.utime(saved.folder / "step-000000010", (0, 0))  # the clock went back between the two
    newest = saved.newest()
    assert newest is not None and newest.name == "step-000000010"
    saved.save(11)
    names = {path.name for path in saved.folder.glob("step-*")}
    assert names == {"step-000000010", "step-000000011"}


def test_end_of_an_epoch_takes_no_checkpoint_s_place(saved: Checkpoints) -> None:
    step = saved.folder / "step-000000010"
    (step / "mine").touch()
    assert saved.save(10, epoch=2) == saved.newest() == step.with_name("step-000000010-epoch-2")
    assert (step / "mine").exists()


def test_worker_killed_during_a_checkpoint_is_what_is_said(
    saved: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: str) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")

    monkeypatch.setattr(saved.accelerator, "save_state", killed)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker"):
        saved.save(11)
    assert {path.name for path in saved.folder.iterdir()} == {"step-000000009", "step-000000010"}


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir())


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "one bit"])
def test_damaged_checkpoint_is_refused(saved: Checkpoints, damage: str) -> None:
    checkpoint = saved.folder / "step-000000010"
    names = [path.name for path in files_of(checkpoint)]
    assert any(name.startswith("random_states") for name in names)
    for path in files_of(checkpoint):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        damaged = {"empty": b"", "truncated": content[:middle], "one bit": flipped}
        path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
        with pytest.raises(ValueError, match=rf"{checkpoint} is damaged"):
            resume(saved)
        path.write_bytes(content)
    resume(saved)


def test_damaged_best_weights_are_refused(saved: Checkpoints) -> None:
    saved.save_best()
    path = saved.folder / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="best.safetensors"):
        saved.load_best(nn.Linear(2, 2))


# ---- bad recordings ----------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    if how == "vanished":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-4000])
    elif how == "not audio":
        path.write_bytes(b"PK\x03\x04" * 500)
    elif how == "NaN":
        waveform, rate = soundfile.read(path, dtype="float32")
        waveform[100] = np.nan
        soundfile.write(path, waveform, rate, subtype="FLOAT")


BAD = ("vanished", "empty", "truncated", "not audio", "NaN")

Spoilt = tuple[list[Utterance], dict[str, str]]


@pytest.fixture
def spoilt(embedded: Path, tmp_path: Path) -> Spoilt:
    """A copy of the corpus with one bad recording of each kind; which id is bad, and how."""
    utterances = []
    for utterance in read_manifest(embedded / "corpus" / "manifest.csv"):
        copy = shutil.copy(str(utterance.audio), tmp_path)
        utterances.append(dataclasses.replace(utterance, audio=str(copy)))
    write_manifest(utterances, tmp_path / "manifest.csv")
    # Utterances that follow each other are of one session: these are of all splits.
    chosen = dict(zip(BAD, utterances[::10], strict=True))
    for how, utterance in chosen.items():
        spoil(Path(str(utterance.audio)), how)
    return utterances, {u.utterance_id: how for how, u in chosen.items()}


@pytest.mark.parametrize("cached", [True, False])
def test_bad_recordings_are_skipped_and_named(
    embedded: Path, tmp_path: Path, spoilt: Spoilt, cached: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances, bad = spoilt
    flags = words(embedded, tmp_path / "out", "--manifest", str(tmp_path / "manifest.csv"))
    flags += ["--epochs", "1", "--on_error", "skip"] + ([] if cached else ["--cache_dir", "off"])
    train(flags)
    printed = capsys.readouterr().out
    assert "skipped: 5 of " in printed
    results = results_of(tmp_path / "out")
    assert set(results["skipped"]) == set(bad)
    for utterance_id in bad:
        assert f"{utterance_id}: {results['skipped'][utterance_id]}" in printed
    counted = sum(split["utterances"] for split in results["splits"].values())
    assert counted == len(utterances) - len(bad)
    rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
    assert not {row.split(",")[0] for row in rows} & set(bad)
    assert len(rows) == sum(results["splits"][n]["utterances"] for n in ("validation", "test"))


def test_bad_recordings_stop_a_run_all_named_at_once(
    embedded: Path, tmp_path: Path, spoilt: Spoilt
) -> None:
    utterances, bad = spoilt
    (vanished,) = [u for u in utterances if bad.get(u.utterance_id) == "vanished"]
    shutil.copy(
        str(utterances[1].audio), str(vanished.audio)
    )  # the manifest's reader refuses those
    flags = words(embedded, tmp_path / "out", "--manifest", str(tmp_path / "manifest.csv"))
    with pytest.raises(ValueError) as raised:
        train([*flags, "--cache_dir", "off", "--workers", "1"])
    text = str(raised.value)
    assert text.startswith("4 of 50 utterances cannot be used:") and "--on_error skip" in text
    for utterance_id, how in bad.items():
        assert (f"\n  {utterance_id}: " in text) == (how != "vanished")
    with pytest.raises(ValueError, match=r"^Utterance .*(cut off|decoded|empty|as audio)"):
        train(flags)  # from the cache: the first that encoding meets


def test_repaired_recording_makes_another_run(
    embedded: Path, tmp_path: Path, spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances, bad = spoilt
    flags = words(embedded, tmp_path / "out", "--manifest", str(tmp_path / "manifest.csv"))
    flags += ["--on_error", "skip"]
    steps = iter([False])
    monkeypatch.setattr(StopSignal, "requested", lambda *_: next(steps, True))
    with pytest.raises(Stopped, match="stopped after step 2"):
        train(flags)
    monkeypatch.undo()
    (empty,) = [u for u in utterances if bad.get(u.utterance_id) == "empty"]
    shutil.copy(str(utterances[1].audio), str(empty.audio))
    with pytest.raises(ValueError, match="number of skipped was 5, now is 4"):
        train([*flags, "--resume", "True"])
    Path(str(empty.audio)).write_bytes(b"")
    train([*flags, "--resume", "True"])
    assert set(results_of(tmp_path / "out")["skipped"]) == set(bad)


def test_split_without_any_good_recording_is_refused(embedded: Path, tmp_path: Path) -> None:
    manifest = (embedded / "corpus" / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(manifest)  # its audio is not here
    flags = words(embedded, tmp_path / "out", "--manifest", str(tmp_path / "manifest.csv"))
    with pytest.raises(ValueError, match="(?s)50 of 50 utterances .* and 45 more"):
        train([*flags, "--on_error", "skip", "--modalities", "audio"])


# ---- numbers -----------------------------------------------------------------------------------


def kept_batch(message: str) -> dict[str, Any]:
    return torch.load(message.partition(" is in ")[2].partition(". Lower")[0])


def test_diverged_training_stops_with_the_batch_kept(embedded: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="The loss is (nan|inf) in epoch 1, step") as raised:
        train(words(embedded, tmp_path / "out", "--learning_rate", "1e30", "--warmup_share", "0"))
    text = str(raised.value)
    assert "Lower --learning_rate" in text and "choose another --out" in text
    kept = kept_batch(text)
    assert not math.isfinite(kept["loss"])
    assert kept["loss"] != kept["loss"] or kept["loss"] == pytest.approx(
        kept["emotion_loss"] + kept["dimension_loss"]
    )
    (batch,) = kept["batches"]
    assert len(batch["utterance_ids"]) == len(batch["acoustic_states"]) == 6
    assert batch["utterance_ids"][0] in text


def test_loss_of_every_pass_of_a_step_is_checked(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass is fine: its loss alone would let the first one's gradient ruin the weights."""
    calls = 0

    def spoil_third(batch: dict[str, Any], *_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            batch["acoustic_states"][0, 0, 0] = torch.nan

    monkeypatch.setattr(train_accelerate, "mask_frames", spoil_third)
    with pytest.raises(RuntimeError, match="The loss is nan in epoch 1, step 2: ") as raised:
        train(words(embedded, tmp_path / "out", "--accumulation", "2", "--rmm_start", "0"))
    assert len(kept_batch(str(raised.value))["batches"]) == 1


def scale_gradients(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply the gradient of one weight of the emotion head, in so many a backward pass."""
    original, passes = choose_trained, 0

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return gradient * factors.get(passes, 1.0)

    def hooked(config: TrainConfig, model: MTMMModel) -> nn.Module:
        trained = original(config, model)
        list(model.emotion_head.parameters())[0].register_hook(hook)
        return trained

    monkeypatch.setattr(job, "choose_trained", hooked)


def test_gradient_that_explodes_is_named_and_one_not_finite_stops(
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scale_gradients(monkeypatch, {12: 1e7, 14: math.inf})
    with pytest.raises(
        RuntimeError, match=r"gradient is not finite in emotion_head \((inf|nan)\) in"
    ):
        train(words(embedded, tmp_path / "out", "--batch_size", "2"))
    printed = capsys.readouterr()
    (line,) = [n for n in (printed.out + printed.err).splitlines() if "explodes" in n]
    assert "epoch 1, step 12: " in line and "most of it in emotion_head" in line
    assert "--learning_rate" in line


@pytest.mark.parametrize(
    ("norm", "before", "expected"),
    [(99.0, [1.0] * 10, False), (101.0, [1.0] * 10, True), (1e9, [1.0] * 9, False),
     (101.0, [50.0] * 200 + [1.0] * 100, True), (math.inf, [1.0] * 10, False)],
)  # fmt: skip
def test_explosion_is_by_the_median_of_the_steps_before(
    norm: float, before: list[float], expected: bool
) -> None:
    parts = {"fusion": torch.tensor(norm)}
    assert (faults.explosion(norm, before, parts) is not None) == expected


def test_gradient_norms_are_those_of_each_part(make_model: Callable[..., MTMMModel]) -> None:
    model = make_model()
    total = 0.0
    for parameter in model.fusion.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
        total += 4.0 * parameter.numel()
    parts = faults.trained_parts(model)
    norms = {name: float(norm) for name, norm in faults.gradient_norms(parts).items()}
    assert norms == {"fusion": pytest.approx(math.sqrt(total))}


class Scaled:
    """Stands for an accelerator with fp16's scaler after its norm overflowed."""

    def __init__(self, scale: float) -> None:
        self.scaler = self
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def test_fp16_skips_steps_until_its_scale_is_used_up() -> None:
    assert faults.overflowed(Scaled(1.0))
    assert not faults.overflowed(Scaled(1e-5))


def test_outputs_that_are_not_finite_are_no_predictions(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MTMMModel.forward

    def forward(self: MTMMModel, **inputs: Any) -> Any:
        output = original(self, **inputs)
        if not self.training:
            output.emotion_logits[0] = torch.nan
        return output

    monkeypatch.setattr(MTMMModel, "forward", forward)
    with pytest.raises(RuntimeError, match="not finite, such as Ses"):
        train(words(embedded, tmp_path / "out"))


# ---- memory and devices ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("Unable to allocate 2.00 GiB"),
    ],
    ids=["GPU", "CPU", "NumPy"],
)
def test_batch_too_large_for_memory_says_what_to_lower(
    embedded: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MTMMModel.forward

    def forward(self: MTMMModel, **inputs: Any) -> Any:
        if self.training:
            raise error
        return original(self, **inputs)

    monkeypatch.setattr(MTMMModel, "forward", forward)
    with pytest.raises(RuntimeError) as raised:
        train(words(embedded, tmp_path / "out"))
    text = str(raised.value)
    flags = ("batch_size", "accumulation", "frame_budget", "gradient_checkpointing")
    assert all(f"--{name}" in text for name in flags)


# ---- workers -----------------------------------------------------------------------------------


def texts(count: int) -> list[Utterance]:
    return [
        Utterance(utterance_id=f"u{n}", corpus="c", speaker_id="s", text="x" * (n + 1))
        for n in range(count)
    ]


class Collate:
    """Of ids; hangs at one of them, or refuses it."""

    def __init__(self, hangs: str | None = None, refuses: str | None = None) -> None:
        self.hangs, self.refuses = hangs, refuses

    def __call__(self, rows: list[dict[str, Any]]) -> list[str]:
        ids = [row["utterance_id"] for row in rows]
        if self.hangs in ids:
            time.sleep(600)
        if self.refuses in ids:
            raise ValueError(f"Utterance {self.refuses}: refused.")
        return ids


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_that_hangs_is_given_up(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "READING_S", 2.0)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # and 5 s to end
    schedule = LengthBatches([6, 5, 4, 3, 2, 1], 2, shuffle=False)
    loader = make_loader(to_dataset(texts(6)), schedule, Collate(hangs="u3"), workers=workers)
    seen: list[Any] = []
    with pytest.raises(RuntimeError, match="timed out after 2"):
        seen.extend(loader)
    assert seen == [["u0", "u1"]]


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_is_that_of_its_collator(workers: int) -> None:
    schedule = LengthBatches([3, 2, 1], 1, shuffle=False)
    loader = make_loader(to_dataset(texts(3)), schedule, Collate(refuses="u1"), workers=workers)
    with pytest.raises(ValueError, match=r"^Utterance u1: refused\.$"):
        list(loader)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        EOFError("ran out of input"),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_worker_killed_while_it_hands_over_is_what_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", broken)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    for workers in (0, 1):
        schedule = LengthBatches([3, 2, 1], 1, shuffle=False)
        loader = make_loader(to_dataset(texts(3)), schedule, Collate(), workers=workers)
        with pytest.raises(RuntimeError if workers else type(error)) as raised:
            list(loader)
        assert is_of_worker(raised.value) == bool(workers)


def workers_of(process: int) -> list[int]:
    """The processes that it has forked, so of the same command line."""

    def command_of(pid: int | str) -> bytes:
        path = Path(f"/proc/{pid}/cmdline")
        return path.read_bytes() if path.exists() else b""

    path = Path(f"/proc/{process}/task/{process}/children")
    children = path.read_text().split() if path.exists() else []
    return [int(child) for child in children if command_of(child) == command_of(process)]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker in /proc")
def test_killed_worker_ends_the_run_which_can_go_on(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = words(embedded, tmp_path / "out", "--epochs", "50", "--checkpoint_steps", "1")
    flags += ["--cache_dir", "off"]
    process = start([*flags, "--workers", "1"])
    wait_for(tmp_path / "out" / "checkpoints" / "step-000000001", process)
    assert process.pid is not None
    while process.runs():
        for pid in workers_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    output = process.finish(
        status=1
    )  # Python may print after ours what it ignores of others' deaths
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert said, output
    assert "audio was killed (DataLoader worker" in said[0]
    assert "--workers" in said[0] and "--resume" in said[0]
    newest = max((tmp_path / "out" / "checkpoints").glob("step-*"))
    monkeypatch.setattr(StopSignal, "requested", lambda *_: True)
    with pytest.raises(Stopped, match=f"stopped after step {int(newest.name.split('-')[1]) + 1}"):
        train([*flags, "--resume"])


# ---- two processes -----------------------------------------------------------------------------


def test_all_processes_stop_where_a_training_diverges(embedded: Path, tmp_path: Path) -> None:
    flags = ("--learning_rate", "1e30", "--warmup_share", "0", "--batch_size", "3")
    pair = words(embedded, tmp_path / "out", *flags)
    processes = [start(pair, **environment) for environment in two_processes()]
    ids = []
    for process in processes:
        lines = process.finish(status=1).splitlines()
        (line,) = [n for n in lines if n.startswith("error: The loss is")]
        (batch,) = kept_batch(line)["batches"]
        ids += batch["utterance_ids"]
    assert len(set(ids)) == 6, "both shares of one batch"
