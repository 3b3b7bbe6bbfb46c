"""The service: the pipeline's answers over HTTP, limits, batches, streams, a clean end."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from conftest import CHECKOUT, encoded, noise
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from small_runs import Run
from starlette.websockets import WebSocketDisconnect
from test_speakers import call

from mtmm_training.commands.cli import main
from mtmm_training.publishing.stage import stage_endpoint
from mtmm_training.serving import handler
from mtmm_training.serving.app import make_app
from mtmm_training.serving.limits import Limits
from pipeline_mtmm import MTMMPipeline

LIMITS = Limits(max_bytes=200_000, max_seconds=5.0, timeout_s=20.0)


def wav(seconds: float = 0.5, seed: int = 0) -> bytes:
    return encoded(noise(seconds, seed=seed), subtype="PCM_16")


@pytest.fixture(scope="module")
def client(pipe: MTMMPipeline) -> Iterator[TestClient]:
    with TestClient(make_app(pipe, LIMITS, "tiny")) as client:
        yield client


def predict(client: TestClient, **request: Any) -> Any:
    response = client.post("/predict", **request)
    assert response.status_code == 200, response.text
    return response.json()


def test_answers_as_the_pipeline(client: TestClient, pipe: MTMMPipeline) -> None:
    recording = wav()
    form = {"files": {"audio": ("a.wav", recording)}, "data": {"text": "so it is", "hop_s": ""}}
    both = {"audio": recording, "text": "so it is"}
    assert predict(client, **form) == pipe(both)
    assert predict(client, content=recording) == pipe({"audio": recording})
    assert predict(client, params={"text": "so"}) == pipe({"text": "so"})


def test_words_windows_and_explanations_come_along(client: TestClient, pipe: MTMMPipeline) -> None:
    recording = wav(1.2)
    words = [{"text": "so", "start": 0.1, "end": 0.2}, {"text": "no", "start": 0.8, "end": 1.0}]
    form = {"files": {"audio": recording}, "data": {"words": json.dumps(words), "window_s": "0.5"}}
    given = {"audio": recording, "words": words}
    found = predict(client, **form, params={"top_k": 2})
    assert found == pipe(given, window_s=0.5, top_k=2, batch_size=8)
    explained = predict(client, content=recording, params={"explain": "arousal"})
    assert explained == pipe(recording, explain="arousal", batch_size=8)


def test_call_has_the_pipelines_turns_and_speakers(pipe: MTMMPipeline, tmp_path: Path) -> None:
    recording = call(tmp_path).read_bytes()
    limits = replace(LIMITS, max_bytes=1_000_000, max_seconds=6.0)
    with TestClient(make_app(pipe, limits, "t")) as client:
        found = predict(client, files={"audio": recording}, data={"channel": "each"})
    turns = [(entry["speaker"], round(entry["start"])) for entry in found["timeline"]]
    assert turns == [("channel 1", 0), ("channel 2", 2), ("channel 1", 5)]
    assert found["speakers"].keys() == {"channel 1", "channel 2"}
    assert found == pipe(recording, channel="each", batch_size=8)


def test_raw_samples(client: TestClient, pipe: MTMMPipeline) -> None:
    samples = (noise(0.5) * 32767).astype("<i2")
    found = predict(client, content=samples.tobytes(), params={"sampling_rate": 8000})
    assert found == pipe(samples, sampling_rate=8000)


HEADLESS = b"RIFF" + bytes(100)
NO_JSON = {"files": {"audio": wav()}, "data": {"words": "[" * 5000}}
ON_CHANNEL = json.dumps([{"start": 0.0, "end": 0.4, "text": "so", "channel": 7}])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({}, 422),
        ({"content": HEADLESS}, 422),
        ({"content": b"\0", "params": {"sampling_rate": 16000}}, 422),
        ({"content": wav(0.01)}, 422),
        ({"content": wav(), "params": {"window_s": 0.001}}, 422),
        ({"content": wav(), "params": {"window_s": "nan"}}, 422),
        ({"content": wav(), "params": {"explain": "loudness"}}, 422),
        ({"content": wav(), "params": {"transcriber": "someone/asr"}}, 422),
        ({"content": wav(), "params": {"reference": "/etc/passwd"}}, 422),
        ({"files": {"audio": wav()}, "data": {"reference": "a.safetensors"}}, 422),
        ({"data": {"text": "a"}, "files": {"more": b""}}, 422),
        (NO_JSON, 422),
        ({"files": {"audio": wav()}, "data": {"segments": ON_CHANNEL}}, 422),
        ({"params": {"text": "a" * 100}}, 422),
        ({"json": {"text": "so"}}, 415),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": bytes(200_001)}, 413),
        ({"content": (bytes(1000) for _ in range(201))}, 413),
        ({"files": {"audio": bytes(200_001)}}, 413),
        ({"content": bytes(2 * 8000 * 6), "params": {"sampling_rate": 8000}}, 413),
    ],
)
def test_what_cannot_be_used_has_its_status(
    client: TestClient, request_: dict[str, Any], status: int
) -> None:
    response = client.post("/predict", **request_)
    assert response.status_code == status, response.text
    assert response.json()["detail"]
    assert predict(client, content=wav())["missing"] == ["text"]  # and it goes on


def test_places_are_never_opened(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name where audio belongs is the bytes of no recording."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav())
    opened: list[str] = []
    monkeypatch.setattr("audio_mtmm._open_path", opened.append)
    monkeypatch.setattr("audio_mtmm.fetch", opened.append)
    for place in (str(path), path.as_uri(), "http://127.0.0.1:9/a.wav"):
        request: dict[str, Any]
        for request in ({"content": place}, {"data": {"audio": place}, "files": {"audio": b""}}):
            assert client.post("/predict", **request).status_code == 422
        for name in ("audio", "reference", "transcriber"):
            refused = client.post("/predict", content=wav(), params={name: place})
            assert refused.status_code == 422
        assert predict(client, params={"text": "so", "speaker": place})["missing"] == ["audio"]
    assert opened == []


# ---- several at once -----------------------------------------------------------------------------


def numbers(answer: dict[str, Any]) -> list[float]:
    return [answer["scores"][name] for name in sorted(answer["scores"])] + [answer["valence"]]


def test_requests_that_wait_share_batches(pipe: MTMMPipeline) -> None:
    """Each has the answer that it has alone; a bad one among them fails alone."""
    recordings = [wav(0.3 + 0.02 * seed, seed) for seed in range(12)]
    limits = replace(LIMITS, batch_size=4, wait_s=0.5)
    with TestClient(make_app(pipe, limits, "tiny")) as client, ThreadPoolExecutor(13) as pool:
        bad = pool.submit(client.post, "/predict", content=wav(0.01))
        found = list(pool.map(lambda audio: predict(client, content=audio), recordings))
        assert bad.result().status_code == 422
        metrics = client.get("/metrics").text
    for answer, audio in zip(found, recordings, strict=True):
        assert numbers(answer) == pytest.approx(numbers(pipe(audio)), abs=1e-5)
    assert float(re.findall(r"^mtmm_batch_requests_sum (.*)", metrics, re.M)[0]) == 13
    assert float(re.findall(r"^mtmm_batch_requests_count (.*)", metrics, re.M)[0]) <= 5
    assert 'mtmm_requests_total{status="422"} 1.0' in metrics
    assert "mtmm_requests_taken 0.0" in metrics


class Slow:
    """Holds the model until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        forward = MTMMPipeline._forward

        def slow(pipe: MTMMPipeline, *args: Any, **options: Any) -> Any:
            self.begun.set()
            self.go_on.wait(20)
            return forward(pipe, *args, **options)

        monkeypatch.setattr(MTMMPipeline, "_forward", slow)


def test_full_queue_and_time_limit(pipe: MTMMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, limits = Slow(monkeypatch), replace(LIMITS, queue=1, timeout_s=1.0)
    with TestClient(make_app(pipe, limits, "tiny")) as client, ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.post, "/predict", content=wav())
        assert slow.begun.wait(10)
        full = client.post("/predict", content=wav())
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert client.get("/health").json()["status"] == "ok"
        assert late.result().status_code == 504
        slow.go_on.set()
        assert predict(client, content=wav())["missing"] == ["text"]


def test_faults_of_ours_are_500_and_the_next_is_answered(
    pipe: MTMMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(make_app(pipe, LIMITS, "t"), raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(MTMMPipeline, "_forward", lambda *_, **__: 1 / 0)
            assert client.post("/predict", content=wav()).status_code == 500
        assert predict(client, content=wav())["missing"] == ["text"]


# ---- streams -------------------------------------------------------------------------------------


def test_stream_gives_windows_while_it_comes(client: TestClient, pipe: MTMMPipeline) -> None:
    samples = (noise(1.3) * 32767).astype("<i2")
    found = []
    with client.websocket_connect("/stream?sampling_rate=16000&window_s=0.5") as socket:
        for start in range(0, len(samples), 1600):
            socket.send_bytes(samples[start : start + 1600].tobytes())
            if start == 9600:
                found.append(socket.receive_json())  # long before the end
        socket.send_bytes(b"")
        found += [socket.receive_json(), socket.receive_json()]
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_json()
    assert ended.value.code == 1000
    assert found == pipe(samples, sampling_rate=16000, window_s=0.5)["timeline"]


@pytest.mark.parametrize(
    ("query", "message", "code"),
    [
        ("", b"\0\0", 1007),
        ("?sampling_rate=16000", b"\0", 1007),
        ("?sampling_rate=16000", "text", 1007),
        ("?sampling_rate=16000&window_s=0.001", b"\0\0", 1007),
        ("?sampling_rate=16000", None, 1008),
    ],
)
def test_streams_that_cannot_go_on_are_closed(
    pipe: MTMMPipeline, query: str, message: Any, code: int
) -> None:
    limits = replace(LIMITS, timeout_s=0.3)
    with TestClient(make_app(pipe, limits, "t")) as client:
        with client.websocket_connect(f"/stream{query}") as socket:
            if message is not None:
                getattr(socket, "send_text" if isinstance(message, str) else "send_bytes")(message)
            with pytest.raises(WebSocketDisconnect) as ended:
                socket.receive_json()
            assert ended.value.code == code and ended.value.reason
        assert "mtmm_streams 0.0" in client.get("/metrics").text


def test_streams_are_counted(pipe: MTMMPipeline) -> None:
    with TestClient(make_app(pipe, replace(LIMITS, streams=1), "t")) as client:
        with client.websocket_connect("/stream?sampling_rate=16000"):
            with client.websocket_connect("/stream?sampling_rate=16000") as second:
                with pytest.raises(WebSocketDisconnect) as ended:
                    second.receive_json()
        assert ended.value.code == 1013


# ---- a process of its own ------------------------------------------------------------------------


@pytest.fixture
def saved(pipe: MTMMPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def start(folder: Path, *flags: str) -> tuple[Run, int]:
    """`mtmm serve`, when it listens; and its port."""
    process = Run(main, ["serve", str(folder), "--port", "0", *flags])
    for _ in range(600):
        if found := re.search(
            r"listening on http://127.0.0.1:(\d+)", process.output_file.read_text()
        ):
            return process, int(found[1])
        assert process.runs(), process.output()
        time.sleep(0.05)
    raise AssertionError(process.output_file.read_text())


def half_sent(port: int, body: bytes) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/predict")
    connection.putheader("content-length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    return connection


def taken(port: int) -> float:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    return float(
        re.findall(rb"^mtmm_requests_taken (.*)", connection.getresponse().read(), re.M)[0]
    )


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError


def test_stops_cleanly_and_loses_no_request(saved: Path, pipe: MTMMPipeline) -> None:
    """What was begun before the signal is answered; clients that broke off leave nothing behind."""
    process, port = start(saved)
    body = wav()
    gone = [half_sent(port, body) for _ in range(3)]
    wait_until(lambda: taken(port) == 3)
    for connection in gone:
        connection.close()
    wait_until(lambda: taken(port) == 0)
    begun = [half_sent(port, body) for _ in range(5)]
    wait_until(lambda: taken(port) == 5)
    process.send(signal.SIGTERM)
    with pytest.raises(ConnectionRefusedError):
        wait_until(lambda: taken(port) < 0)
    for connection in begun:
        connection.send(body[len(body) // 2 :])
        response = connection.getresponse()
        assert response.status == 200
        assert numbers(json.load(response)) == pytest.approx(numbers(pipe(body)), abs=1e-5)
    printed = process.finish()
    assert "ERROR" not in printed and "Traceback" not in printed


def test_examples_of_the_docs(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every curl command, and the stream."""
    process, port = start(saved)
    page = (CHECKOUT / "docs" / "service.md").read_text("utf-8").replace(":8000", f":{port}")
    (tmp_path / "speech.wav").write_bytes(wav(1.5))
    monkeypatch.chdir(tmp_path)
    commands = re.findall("^curl .*", page, re.M) if shutil.which("curl") else []
    answers = [
        subprocess.run([*shlex.split(command), "-sf"], capture_output=True, check=True).stdout
        for command in commands
    ]
    assert all(b"scores" in answer for answer in answers[:4])
    assert not commands or len(json.loads(answers[1])["timeline"]) == 2
    names: dict[str, Any] = {}
    exec(page.split("```py\n")[1].split("```")[0], names)
    assert [window["end"] for window in names["windows"]] == [1.0, 1.5]
    process.send(signal.SIGTERM)
    process.finish()


def test_port_in_use_is_said(saved: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["serve", str(saved), "--port", str(taken.getsockname()[1])]
        assert f"port {words[-1]}, cannot be used" in Run(main, words).finish(1)


def test_fuzzed_requests_never_end_in_500(client: TestClient) -> None:
    """Requests that its own OpenAPI allows, and such as it does not."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    statuses: set[int] = set()

    @settings(
        max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=schema["/predict"]["POST"].as_strategy())
    def send(case: Any) -> None:
        response = case.call(session=None)
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text

    send()
    assert 422 in statuses


# ---- other hosts ---------------------------------------------------------------------------------


def test_handler_of_endpoints_answers_as_the_pipeline(saved: Path, pipe: MTMMPipeline) -> None:
    stage_endpoint(saved)
    assert (saved / "handler.py").read_bytes() == Path(handler.__file__).read_bytes()
    answer = handler.EndpointHandler(str(saved))
    recording = wav(1.2)
    encoded = base64.b64encode(recording).decode()
    parameters = {"window_s": 0.5, "top_k": 1}
    asked = {"inputs": {"audio": encoded}, "parameters": parameters}
    windows, expected = answer(asked), pipe(recording, **parameters)
    assert len(windows["timeline"]) == 3 and windows.keys() == expected.keys()
    assert numbers(windows) == pytest.approx(numbers(expected), abs=1e-5)
    same: dict[Any, Any] = {recording: recording, "so it is": {"text": "so it is"}}
    for inputs, alone in same.items():
        found, expected = answer({"inputs": inputs}), pipe(alone)
        assert numbers(found) == pytest.approx(numbers(expected), abs=1e-5)
    (saved / "a.wav").write_bytes(recording)
    for place in (str(saved / "a.wav"), "http://127.0.0.1:9/a.wav"):
        assert list(answer({"inputs": {"audio": place}})) == ["error"]
        for name in ("transcriber", "reference"):
            refused = answer({"inputs": "so", "parameters": {name: place}})
            assert "no parameters" in refused["error"]
    assert list(answer({})) == ["error"]


@pytest.mark.skipif(
    "MTMM_IMAGE" not in os.environ, reason="MTMM_IMAGE=1 runs it: it takes a minute"
)
def test_dockerfile_starts_the_service(saved: Path, tmp_path: Path) -> None:
    """Its files, its pip and its command, in a virtual environment; the big packages are lent to it."""
    lines = (CHECKOUT / "launch" / "Dockerfile").read_text("utf-8").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and line[0].isupper()]
    image, bin_ = tmp_path / "image", tmp_path / "venv" / "bin"
    image.mkdir()
    for places in (shlex.split(said)[:-1] for step, said in steps if step == "COPY"):
        for source in (source for place in places for source in CHECKOUT.glob(place)):
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, image / source.name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("\n".join(lent))
    *_, install = (said for step, said in steps if step == "RUN" and said.startswith("pip"))
    words = [*shlex.split(install)[1:], "--no-deps", "--quiet"]
    backend: list[Any] = [
        bin_ / "pip",
        "download",
        "hatchling",
        "--dest",
        tmp_path,
        "--no-deps",
        "--quiet",
    ]
    if subprocess.run(backend, capture_output=True).returncode:  # whatever the Dockerfile says
        pytest.skip("no package index can be reached")
    done = subprocess.run([bin_ / "pip", *words], cwd=image, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (entry,) = (json.loads(said) for step, said in steps if step == "ENTRYPOINT")
    entry[entry.index("0.0.0.0")] = "127.0.0.1"
    command = [bin_ / entry[0], *entry[1:], str(saved), "--port", "0"]
    service = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert service.stderr is not None
    said = next(line for line in service.stderr if "listening" in line)
    (port,) = re.findall(r"http://127.0.0.1:(\d+)", said)
    assert taken(int(port)) == 0
    service.terminate()
    assert service.wait(20) == 0
