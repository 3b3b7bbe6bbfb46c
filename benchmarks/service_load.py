"""`mtmm serve` under load: latency and throughput of 1, 8 and 64 clients against the bare pipeline.

    python benchmarks/service_load.py [--seconds 60] [--clients 1 8 64] [--encoders real] [--batch_size 8]

The service is a process of its own, on 127.0.0.1. Each client sends a recording with its transcript, waits
for the answer, and sends the next; recordings have IEMOCAP-like lengths. Every answer is compared with
the pipeline's, one by one. Beside the clients somebody breaks off in the middle of a body, sends what is
no audio, and what is too large, ten times a second. The bare pipeline predicts the same recordings from
memory, in batches, before the service begins and after it has ended. The clients share the
CPU with the service.
"""

import argparse
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import batched_pipeline
import common
import httpx
import numpy as np
import soundfile
import torch

from modeling_mtmm import MTMMPipeline

RATE, TOLERANCE, THROUGHPUT, GROWTH, WARM = 16000, 1e-4, 0.8, 1.1, 1.1
LIMIT = 1_000_000  # bytes of a request


def main() -> None:
    parser = common.make_parser(__doc__, batch_size=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    batched_pipeline.add_encoders(parser)
    arguments = parser.parse_args()
    device = common.begin(arguments)
    predict = batched_pipeline.make_pipeline(arguments, device)
    longest_s = 1.0 if arguments.quick else predict.processor.longest_audio_s()
    inputs = list(utterances(longest_s))
    expected = batched_pipeline.numbers(predict(inputs))
    bare = [throughput(predict, inputs, arguments)]
    loads: dict[int, Load] = {}
    with tempfile.TemporaryDirectory() as folder, serving(predict, folder, arguments) as server:
        warm(server, predict, longest_s)
        for clients in arguments.clients:
            loads[clients] = Load(server, inputs, expected)
            loads[clients].run(clients, arguments.seconds)
    bare.append(throughput(predict, inputs, arguments))
    report(loads, bare)


def warm(server: "Server", predict: MTMMPipeline, longest_s: float) -> None:
    """An idle service's answer for a median utterance against the model's forward alone, in turns."""
    given = batched_pipeline.make_inputs(1, longest_s)[0]
    waveform = np.resize(given["audio"], round(min(common.MEDIAN_S, longest_s) * RATE))
    form = {"audio": ("a.wav", wav(waveform))}, {"text": given["text"]}
    tensors = predict.processor(audio=waveform, text=given["text"], sampling_rate=RATE)
    watch = common.Stopwatch(torch.device("cpu"))
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=300) as client:
        steps: dict[str, Callable[[], object]] = {
            "forward": lambda: predict.model(**tensors),
            "service": lambda: client.post("/predict", files=form[0], data=form[1]),
        }
        with torch.inference_mode():
            watch.rounds(15, steps)
    watch.print_ratio("an idle service's answer ÷ the forward", "service", "forward", WARM)


def report(loads: "dict[int, Load]", bare: list[float]) -> None:
    """The table, and what the benchmark is for."""
    print(
        f"bare pipeline in batches: {bare[0]:.2f} before, {bare[1]:.2f} after, utterances a second"
    )
    print(f"{'clients':>7}{'answers':>9}{'p50 s':>9}{'p99 s':>9}{'a second':>10}{'MiB':>7}")
    for clients, load in loads.items():
        p50, p99 = np.percentile(load.latencies, [50, 99])
        print(
            f"{clients:>7}{len(load.latencies):>9}{p50:>9.3f}{p99:>9.3f}{load.rate():>10.2f}"
            f"{load.mebibytes:>7.0f}"
        )
    every = list(loads.values())
    statuses = sorted({status for load in every for status in load.disturbed})
    print(f"answers to {sum(len(load.disturbed) for load in every)} disturbers: {statuses}")
    largest = max(load.difference for load in every)
    common.print_result("largest difference from the pipeline", largest, TOLERANCE)
    share = every[-1].rate() / np.mean(bare)
    claim = f"{list(loads)[-1]} clients ÷ bare pipeline, utterances a second"
    common.print_result(claim, float(share), THROUGHPUT, at_least=True)
    growth = every[-1].mebibytes / every[-1].mebibytes_early
    common.print_result("memory at the end ÷ a fifth into the last load", growth, GROWTH)
    common.print_result("requests without an answer", sum(load.lost for load in every), 0)


def utterances(longest_s: float) -> Iterator[dict[str, Any]]:
    """The benchmark's inputs as files in memory."""
    for given in batched_pipeline.make_inputs(48, longest_s):
        yield {"audio": wav(given["audio"]), "text": given["text"]}


def wav(waveform: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def throughput(
    predict: MTMMPipeline, inputs: list[dict[str, Any]], arguments: argparse.Namespace
) -> float:
    """Utterances a second of the pipeline itself."""
    predict(inputs[:4], batch_size=4)
    began, done = time.perf_counter(), 0
    while time.perf_counter() < began + arguments.seconds / 3:
        done += len(predict(inputs, batch_size=arguments.batch_size))
    return done / (time.perf_counter() - began)


@dataclass
class Server:
    """A service that listens."""

    port: int
    pid: int

    def mebibytes(self) -> float:
        """What it holds in memory; 0 where the system does not say."""
        status = Path(f"/proc/{self.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(predict: MTMMPipeline, folder: str, arguments: argparse.Namespace) -> Iterator[Server]:
    """`mtmm serve` of the pipeline's model."""
    predict.save_pretrained(folder)
    command = [sys.executable, "-m", "mtmm_training", "serve", folder, "--port", "0"]
    command += ["--timeout_s", "300"]
    command += ["--batch_size", str(arguments.batch_size), "--max_bytes", str(LIMIT)]
    environment = os.environ | {"PYTHONPATH": str(common.ROOT)}
    if arguments.threads:
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = None
    while found is None:
        line = process.stderr.readline()
        if not line:
            raise SystemExit("the service did not start")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield Server(int(found[1]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"the service ended with status {process.wait()}")


@dataclass
class Load:
    """Clients of a service, and what they saw.

    Args:
        server: The service.
        inputs: What they ask.
        expected: (inputs, numbers), what the pipeline answers.
    """

    server: Server
    inputs: list[dict[str, Any]]
    expected: np.ndarray
    latencies: list[float] = field(default_factory=list)
    disturbed: list[int] = field(default_factory=list)
    difference: float = 0.0
    lost: int = 0
    seconds: float = 0.0
    mebibytes: float = 0.0
    mebibytes_early: float = 0.0

    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def run(self, clients: int, seconds: float) -> None:
        """So many clients at once, for so long."""
        began = time.monotonic()
        ends = began + seconds
        threads = [
            threading.Thread(target=self._ask, args=(number, ends)) for number in range(clients)
        ]
        threads.append(threading.Thread(target=self._disturb, args=(ends,)))
        for thread in threads:
            thread.start()
        time.sleep(seconds / 5)
        self.mebibytes_early = self.server.mebibytes()
        for thread in threads:
            thread.join()
        self.seconds = time.monotonic() - began
        self.mebibytes = self.server.mebibytes()

    def _ask(self, number: int, ends: float) -> None:
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=300)
        turns = itertools.cycle(zip(self.inputs, self.expected, strict=True))
        for given, expected in itertools.islice(turns, number * 7, None):
            if time.monotonic() >= ends:
                return
            began = time.monotonic()
            try:
                text, audio = {"text": given["text"]}, {"audio": ("a.wav", given["audio"])}
                response = client.post("/predict", data=text, files=audio).raise_for_status()
            except httpx.HTTPError:
                self.lost += 1
                continue
            self.latencies.append(time.monotonic() - began)
            found = batched_pipeline.numbers([response.json()])[0]
            self.difference = max(self.difference, float(np.abs(found - expected).max()))

    def _disturb(self, ends: float) -> None:
        """Half a body, no audio, too much: in turns."""
        for number in itertools.count():
            if time.monotonic() >= ends:
                return
            connection = HTTPConnection("127.0.0.1", self.server.port, timeout=300)
            try:
                if number % 3 == 0:
                    connection.putrequest("POST", "/predict")
                    connection.putheader("content-length", "100000")
                    connection.endheaders(b"RIFF")
                else:
                    size = LIMIT + 1 if number % 3 == 1 else 5000
                    connection.request("POST", "/predict", os.urandom(size))
                    self.disturbed.append(connection.getresponse().status)
            except OSError:  # refused while it was sent
                pass
            connection.close()
            time.sleep(0.1)


if __name__ == "__main__":
    main()
