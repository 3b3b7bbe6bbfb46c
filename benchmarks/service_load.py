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
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any, NamedTuple

import batched_pipeline
import common
import httpx
import numpy as np
import psutil
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
    arguments, device = common.begin(parser)
    predict = batched_pipeline.make_pipeline(arguments, device)
    longest_s = 1.0 if arguments.quick else predict.processor.longest_audio_s()
    inputs = [
        {"audio": wav(given["audio"]), "text": given["text"]}
        for given in batched_pipeline.make_inputs(48, longest_s)
    ]
    expected = batched_pipeline.numbers(predict(inputs))
    bare = [throughput(predict, inputs, arguments)]
    with tempfile.TemporaryDirectory() as folder, serving(predict, folder, arguments) as server:
        warm(server, predict, longest_s)
        asked = list(zip(inputs, expected, strict=True))
        loads = {n: load(server, asked, n, arguments.seconds) for n in arguments.clients}
    bare.append(throughput(predict, inputs, arguments))
    report(loads, bare)


class Server(NamedTuple):
    """A service that listens."""

    port: int
    process: psutil.Process

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=300)


class Load(NamedTuple):
    """What the clients of a service saw.

    Args:
        answers: Seconds, and the largest difference from the pipeline, of each answer.
        lost: Requests without an answer.
        disturbed: The status of each answer to a disturber.
        rate: Answers a second.
        mebibytes: The service's memory at its end.
        growth: The same ÷ that of a fifth into it.
    """

    answers: np.ndarray
    lost: int
    disturbed: list[int]
    rate: float
    mebibytes: float
    growth: float


def warm(server: Server, predict: MTMMPipeline, longest_s: float) -> None:
    """An idle service's answer for a median utterance against the model's forward alone, in turns."""
    given = batched_pipeline.make_inputs(1, longest_s)[0]
    waveform = np.resize(given["audio"], round(min(common.MEDIAN_S, longest_s) * RATE))
    form = {"audio": ("a.wav", wav(waveform))}, {"text": given["text"]}
    tensors = predict.processor(audio=waveform, text=given["text"], sampling_rate=RATE)
    watch = common.Stopwatch(torch.device("cpu"))
    with server.client() as client:
        steps: dict[str, Callable[[], object]] = {
            "forward": lambda: predict.model(**tensors),
            "service": lambda: client.post("/predict", files=form[0], data=form[1]),
        }
        with torch.inference_mode():
            watch.rounds(15, steps)
    watch.print_ratio("an idle service's answer ÷ the forward", "service", "forward", WARM)


def report(loads: dict[int, Load], bare: list[float]) -> None:
    """The table, and what the benchmark is for."""
    print(
        f"bare pipeline in batches: {bare[0]:.2f} before, {bare[1]:.2f} after, utterances a second"
    )
    print(f"{'clients':>7}{'answers':>9}{'p50 s':>9}{'p99 s':>9}{'a second':>10}{'MiB':>7}")
    for clients, load in loads.items():
        p50, p99 = np.percentile(load.answers[:, 0], [50, 99])
        print(
            f"{clients:>7}{len(load.answers):>9}{p50:>9.3f}{p99:>9.3f}{load.rate:>10.2f}"
            f"{load.mebibytes:>7.0f}"
        )
    *_, last = loads.values()
    statuses = [status for load in loads.values() for status in load.disturbed]
    print(f"answers to {len(statuses)} disturbers: {sorted(set(statuses))}")
    largest = max(load.answers[:, 1].max() for load in loads.values())
    common.print_result("largest difference from the pipeline", largest, TOLERANCE)
    share = last.rate / float(np.mean(bare))
    claim = f"{list(loads)[-1]} clients ÷ bare pipeline, utterances a second"
    common.print_result(claim, share, THROUGHPUT, at_least=True)
    common.print_result("memory at the end ÷ a fifth into the last load", last.growth, GROWTH)
    lost = sum(load.lost for load in loads.values())
    common.print_result("requests without an answer", lost, 0)


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
    ports = (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in process.stderr)
    if (found := next(filter(None, ports), None)) is None:
        raise SystemExit("the service did not start")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield Server(int(found[1]), psutil.Process(process.pid))
    finally:
        process.terminate()
        print(f"the service ended with status {process.wait()}")


def load(server: Server, asked: list[tuple[Any, Any]], clients: int, seconds: float) -> Load:
    """So many clients at once, for so long; they ask, and know what the pipeline answers."""
    began = time.monotonic()
    ends = began + seconds
    with ThreadPoolExecutor(clients + 1) as pool:
        disturber = pool.submit(disturb, server.port, ends)
        # Each begins elsewhere.
        turns = (itertools.islice(itertools.cycle(asked), 7 * n, None) for n in range(clients))
        seen = pool.map(partial(ask, server, ends), turns)
        time.sleep(seconds / 5)
        early = server.process.memory_info().rss
    answers = [answer for each in seen for answer in each]
    known = np.array([answer for answer in answers if answer is not None])
    memory, lasted_s = server.process.memory_info().rss, time.monotonic() - began
    lost, rate = len(answers) - len(known), len(known) / lasted_s
    return Load(known, lost, disturber.result(), rate, memory / 2**20, memory / early)


def ask(server: Server, ends: float, turns: Iterator[Any]) -> list[tuple[float, float] | None]:
    """One client: seconds and largest difference of each answer, None where there was none."""
    answers: list[tuple[float, float] | None] = []
    with server.client() as client:
        while (began := time.monotonic()) < ends:
            given, expected = next(turns)
            text, audio = {"text": given["text"]}, {"audio": ("a.wav", given["audio"])}
            try:
                response = client.post("/predict", data=text, files=audio).raise_for_status()
            except httpx.HTTPError:
                answers.append(None)
                continue
            took_s = time.monotonic() - began
            found = batched_pipeline.numbers([response.json()])[0]
            answers.append((took_s, np.abs(found - expected).max()))
    return answers


def disturb(port: int, ends: float) -> list[int]:
    """Half a body, no audio, too much, in turns; the statuses of the answers."""
    statuses = []
    turns = itertools.cycle(("half", "large", "noise"))
    while time.monotonic() < ends:
        kind = next(turns)
        connection = HTTPConnection("127.0.0.1", port, timeout=300)
        try:
            if kind == "half":
                connection.putrequest("POST", "/predict")
                connection.putheader("content-length", "100000")
                connection.endheaders(b"RIFF")
            else:
                size = LIMIT + 1 if kind == "large" else 5000
                connection.request("POST", "/predict", os.urandom(size))
                statuses.append(connection.getresponse().status)
        except OSError:  # refused while it was sent
            pass
        connection.close()
        time.sleep(0.1)
    return statuses


if __name__ == "__main__":
    main()
