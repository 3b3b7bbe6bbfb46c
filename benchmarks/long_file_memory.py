"""Peak memory of predicting a file of an hour against one of 30 s, each in a process of its own.

    python benchmarks/long_file_memory.py [--long_s 3600] [--encoders real]

The files hold the same noise, or with `real` the same real recordings, again and again; they are cut
into windows of 6 s, the pipeline's default. The peak is the process's largest resident size,
libraries and weights included.
"""

import argparse
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import soundfile
import torch
from batched_pipeline import RATE, add_encoders, make_pipeline

TARGET = 1.3
SHORT_S = 30.0


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--long_s", type=float, default=3600.0)
    add_encoders(parser)
    arguments, _ = common.begin(parser)
    lengths = (13.0, 60.0) if arguments.quick else (SHORT_S, arguments.long_s)
    peaks = []
    print(f"{'file':<12}{'windows':>10}{'peak memory, MiB':>18}{'real-time factor':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            path = Path(folder, f"{length:g}.wav")
            write_recording(path, length, arguments.encoders)
            peak, windows, seconds = common.in_own_process(measure, arguments, path)
            peaks.append(peak)
            factor = seconds / length
            print(f"{length:<12g}{windows:>10}{peak / 2**20:>18.0f}{factor:>18.3f}", flush=True)
    claim = f"peak memory of {lengths[1]:g} s ÷ that of {lengths[0]:g} s"
    common.print_result(claim, peaks[1] / peaks[0], TARGET)


def measure(arguments: argparse.Namespace, path: Path) -> tuple[int, int, float]:
    """Predict one file; peak bytes, windows, seconds."""
    device = common.begin_quietly(arguments)
    predict = make_pipeline(arguments, device)
    began = time.perf_counter()
    result = predict(str(path), batch_size=1, window_s=6.0)
    seconds = time.perf_counter() - began
    # Resident memory on every device: a long recording lies there.
    return common.peak_bytes(torch.device("cpu")), len(result["timeline"]), seconds


def write_recording(path: Path, seconds: float, encoders: str) -> None:
    """Half a minute of sound, again and again, until the file is so long."""
    real = common.real_data()
    if encoders == "real" and real is not None:
        files = sorted((real / "ravdess4" / "audio").rglob("*.flac"))[:8]
        sound = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])
    else:
        sound = np.random.default_rng(0).uniform(-0.3, 0.3, 30 * RATE).astype(np.float32)
    soundfile.write(path, np.resize(sound, round(seconds * RATE)), RATE)


if __name__ == "__main__":
    main()
