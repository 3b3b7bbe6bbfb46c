"""Peak memory of predicting a file of an hour against one of 30 s, each in a process of its own.

    python benchmarks/long_file_memory.py [--long_s 3600] [--encoders real]

The files hold the same noise, or with `real` the same real recordings, again and again; they are cut
into windows of 6 s, the pipeline's default. The peak is the process's largest resident size,
libraries and weights included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from batched_pipeline import make_pipeline
from common import begin, make_parser, print_result, real_data

TARGET = 1.3
RATE = 16000


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--short_s", type=float, default=30.0)
    parser.add_argument("--long_s", type=float, default=3600.0)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--encoders", choices=["medium", "real", "paper"], default="medium")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.short_s, arguments.long_s = 13.0, 60.0
    if arguments.measure is not None:
        print(json.dumps(measure(arguments)))
        return
    begin(arguments)
    peaks = {}
    print(f"{'file':<12}{'windows':>10}{'peak memory, MiB':>18}{'real-time factor':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("short", arguments.short_s), ("long", arguments.long_s)):
            path = write_recording(Path(folder) / f"{name}.wav", seconds, arguments.encoders)
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            peaks[name] = row["peak"]
            print(
                f"{seconds:<12g}{row['windows']:>10}{row['peak'] / 2**20:>18.0f}"
                f"{row['seconds'] / seconds:>18.3f}",
                flush=True,
            )
    claim = f"peak memory of {arguments.long_s:g} s ÷ that of {arguments.short_s:g} s"
    print_result(claim, peaks["long"] / peaks["short"], TARGET)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Predict one file; peak bytes, windows, seconds."""
    predict = make_pipeline(arguments, begin(arguments))
    began = time.perf_counter()
    result = predict(arguments.measure, batch_size=arguments.batch_size, window_s=6.0)
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak, "windows": len(result["timeline"]), "seconds": seconds}


def write_recording(path: Path, seconds: float, encoders: str) -> Path:
    """Half a minute of sound, again and again, until the file is so long."""
    real = real_data()
    if encoders == "real" and real is not None:
        files = sorted((real / "ravdess4" / "audio").rglob("*.flac"))[:8]
        sound = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])
    else:
        sound = np.random.default_rng(0).uniform(-0.3, 0.3, 30 * RATE).astype(np.float32)
    left = round(seconds * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        while left > 0:
            file.write(sound[:left])
            left -= len(sound)
    return path


if __name__ == "__main__":
    main()
