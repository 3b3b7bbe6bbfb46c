"""Safetensors against Arrow for the feature cache: write ragged float16 states, read them at random.

    python benchmarks/cache_formats.py [--utterances 512] [--rounds 9]

Both files are memory-mapped and hold one entry per utterance, (frames, 1024); reading fills padded
batches of 16, on one thread. Every round times both formats, one after the other; printed are
medians and the ratio Arrow ÷ safetensors, above 1 where safetensors is faster.
mtmm_training/batches/cache.py uses safetensors.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WIDTH = 1024
BATCH = 16
MEDIAN_FRAMES = 175  # 3.5 s, about IEMOCAP's median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utterances", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help="where the files are written for the time being")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the workers of a loader
    states = ragged_states(arguments.utterances)
    lengths = [len(tensor) for tensor in states.values()]
    keys = list(np.random.default_rng(1).permutation(list(states)))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        paths = {"safetensors": Path(folder, "a.safetensors"), "Arrow": Path(folder, "a.arrow")}
        writers = {"safetensors": write_safetensors, "Arrow": write_arrow}
        openers = {"safetensors": open_safetensors, "Arrow": open_arrow}
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(arguments.rounds):
            for name, path in paths.items():
                path.unlink(missing_ok=True)
                times.setdefault(("write", name), []).append(timed(writers[name], states, path))
            for name, path in paths.items():
                seconds = timed(read_batches, openers[name], path, keys)
                times.setdefault(("read", name), []).append(seconds)
        check(states, {name: openers[name](path) for name, path in paths.items()})
        gib = sum(lengths) * WIDTH * 2 / 2**30
        print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}")
        print(f"{len(states)} utterances, {min(lengths)} to {max(lengths)} frames, {gib:.2f} GiB")
        for action in ("write", "read"):
            medians = {name: statistics.median(times[action, name]) for name in paths}
            parts = [f"{name} {1000 * s:.0f} ms" for name, s in medians.items()]
            ratio = medians["Arrow"] / medians["safetensors"]
            print(f"{action:<6} {', '.join(parts)}: Arrow ÷ safetensors = {ratio:.2f}")


def ragged_states(utterances: int) -> dict[str, Tensor]:
    """Random states of log-normal lengths, 0.6 to 34 s at 50 frames a second."""
    draw = np.random.default_rng(0).lognormal(np.log(MEDIAN_FRAMES), 0.6, utterances)
    generator = torch.Generator().manual_seed(0)
    return {
        f"utterance{i:06}": torch.randn(int(frames), WIDTH, generator=generator).half()
        for i, frames in enumerate(draw.clip(30, 1700))
    }


def timed(function: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def write_safetensors(states: dict[str, Tensor], path: Path) -> None:
    save_file(states, path)


def open_safetensors(path: Path) -> Callable[[str], Tensor]:
    return safe_open(path, framework="pt").get_tensor


def write_arrow(states: dict[str, Tensor], path: Path) -> None:
    schema = pa.schema([("key", pa.string()), ("states", pa.large_binary())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for key, tensor in states.items():  # one record batch each: nothing is gathered in memory
            array = pa.Array.from_buffers(
                pa.large_binary(),
                1,
                [None, _offsets(tensor.nbytes), pa.py_buffer(tensor.numpy())],
            )
            writer.write_batch(pa.record_batch([pa.array([key]), array], schema=schema))


def _offsets(size: int) -> pa.Buffer:
    return pa.py_buffer(np.array([0, size], dtype=np.int64))


def open_arrow(path: Path) -> Callable[[str], Tensor]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    buffers = {batch[0][0].as_py(): batch[1][0].as_buffer() for batch in batches}

    def read(key: str) -> Tensor:
        return torch.frombuffer(buffers[key], dtype=torch.float16).view(-1, WIDTH)

    return read


def read_batches(
    opener: Callable[[Path], Callable[[str], Tensor]], path: Path, keys: Sequence[str]
) -> None:
    """Open the file and fill padded batches from it."""
    read = opener(path)
    for start in range(0, len(keys), BATCH):
        rows = [read(key) for key in keys[start : start + BATCH]]
        batch = torch.empty(len(rows), max(map(len, rows)), WIDTH, dtype=rows[0].dtype)
        for row, states in zip(batch, rows, strict=True):
            row[: len(states)] = states
            row[len(states) :] = 0


def check(states: dict[str, Tensor], readers: dict[str, Callable[[str], Tensor]]) -> None:
    for name, read in readers.items():
        for key, tensor in states.items():
            assert torch.equal(read(key), tensor), f"{name} returned other states for {key}"


if __name__ == "__main__":
    main()
