"""The service: the pipeline's answers over HTTP, limits, batches, streams, a clean end."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile
from conftest import RATE, noise
from fastapi.testclient import TestClient

from mtmm_training.serving.app import make_app
from mtmm_training.serving.limits import Limits
from pipeline_mtmm import MTMMPipeline

LIMITS = Limits(max_bytes=200_000, max_seconds=5.0, timeout_s=20.0)


def wav(seconds: float = 0.5, seed: int = 0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed=seed), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(pipe: MTMMPipeline) -> Iterator[TestClient]:
    with TestClient(make_app(pipe, LIMITS, "tiny")) as client:
        yield client


def predict(client: TestClient, **request: Any) -> Any:
    response = client.post("/predict", **request)
    assert response.status_code == 200, response.text
    return response.json()


def assert_same(found: Any, expected: Any) -> None:
    assert json.loads(json.dumps(found)) == pytest.approx(
        json.loads(json.dumps(expected)), abs=1e-5
    )


def test_answers_as_the_pipeline(client: TestClient, pipe: MTMMPipeline) -> None:
    recording = wav()
    form = {"files": {"audio": ("a.wav", recording)}, "data": {"text": "so it is"}}
    both = {"audio": recording, "text": "so it is"}
    assert predict(client, **form) == pipe(both)
    assert predict(client, content=recording) == pipe({"audio": recording})
    assert predict(client, params={"text": "so"}) == pipe({"text": "so"})
