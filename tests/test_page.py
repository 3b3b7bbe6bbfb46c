"""The page that predicts in a browser: its answers, its looks, and that it asks nobody for anything."""

import functools
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from conftest import RATE, noise
from mtmm_runtime.features import Features

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install -e '.[onnx]'")

from fastapi.testclient import TestClient

from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor
from mtmm_training.data.manifest import read_manifest
from mtmm_training.publishing import browser as browser_module
from mtmm_training.publishing.browser import PACKAGES, fetch, write_page
from mtmm_training.publishing.folder import make_manifest
from mtmm_training.serving.app import make_app
from mtmm_training.serving.limits import Limits
from mtmm_training.studies import composed

PATIENCE_MS = 60_000
SAID = "we won <b>it</b>, ﬁne"


@pytest.fixture(scope="module")
def pipe(exported_pipe: MTMMPipeline) -> MTMMPipeline:
    return exported_pipe


@pytest.fixture(scope="module")
def site(
    pipe: MTMMPipeline, exported_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What is uploaded to a host."""
    folder = tmp_path_factory.mktemp("page") / "site"
    shutil.copytree(exported_folder, folder)
    try:
        write_page(folder, "someone/mtmm", pipe.model.config)
    except OSError as error:
        pytest.skip(f"no npm packages: {error}")
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """As any host of static files has it; no header of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Any]:
    """Loaded once. When it had loaded, it asked no host for anything more."""
    page = browser.new_context(permissions=["microphone"]).new_page()
    page.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    page.goto(address)
    page.locator("body[data-ready]").wait_for()
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    yield page
    assert not [url for url in asked if url.startswith("http")] and not faults
    page.context.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings, and a file that is none."""
    folder, silence = tmp_path_factory.mktemp("files"), np.zeros(2 * RATE)
    left, right = (
        np.concatenate(parts) for parts in ((noise(2.2), silence), (silence, noise(2.2)))
    )
    waveforms = {
        "speech": noise(0.8), "long": noise(3.4), "call": np.stack([left, right[: len(left)]], axis=1),
        "silence": silence, "gap": np.concatenate([noise(1.0), silence, noise(0.7)]),
    }  # fmt: skip
    for name, waveform in waveforms.items():
        soundfile.write(folder / f"{name}.wav", waveform, RATE, subtype="FLOAT")
    soundfile.write(folder / "cd.flac", noise(0.9, 44100), 44100, subtype="PCM_24")
    (folder / "rubbish.wav").write_bytes(b"this is no audio" * 100)
    return {path.stem: path for path in folder.iterdir()}


def ask(
    page: Any, file: Path | None, text: str = "", is_call: bool = False, own_voices: bool = False
) -> dict[str, Any]:
    """The page's answer, with all its digits."""
    page.evaluate("document.querySelector('#outcome').replaceChildren()")
    if page.locator("#clear").is_visible():
        page.locator("#clear").click()
    page.locator("#text").fill(text)
    if file is not None:
        page.locator("#file").set_input_files(file)
        page.locator("#clear").wait_for()
    if is_call:
        page.locator("#each").check()
    if own_voices:
        page.locator("#own").check()
    page.locator("#analyse").click()
    link = page.locator("#json").get_attribute("href")
    return json.loads(unquote(link.partition(",")[2]))


def assert_near(found: Any, expected: Any, apart: float) -> None:
    """The same keys in the same order, and numbers that far apart at most."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
    if isinstance(expected, (dict, list)):
        keys = expected if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        for key in keys:
            assert_near(found[key], expected[key], apart)
    else:
        is_number = isinstance(expected, float)
        assert found == (pytest.approx(expected, abs=apart) if is_number else expected)


@pytest.mark.parametrize(
    ("name", "text", "is_call"),
    [
        ("speech", SAID, False),
        ("cd", "", False),
        ("long", "", False),
        ("long", SAID, False),
        ("gap", "", False),
        ("gap", SAID, False),
        ("call", "", True),
        ("call", "", False),
        (None, SAID, False),
    ],
)
def test_answers_are_the_pipelines(
    page: Any,
    pipe: MTMMPipeline,
    files: dict[str, Path],
    name: str | None,
    text: str,
    is_call: bool,
) -> None:
    file = files[name] if name else None
    given = ({"audio": str(file)} if file else {}) | ({"text": text} if text else {})
    expected = pipe(given, channel="each" if is_call else None)
    assert_near(ask(page, file, text, is_call), expected, 1e-3)
    assert "9 utterances of artificial speech" in page.locator("#model").inner_text()


def test_call_of_two_actors_is_heard_alike_everywhere(
    page: Any, pipe: MTMMPipeline, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real voices, one on each channel: the page and the service answer as the pipeline does."""
    monkeypatch.setattr(composed, "TURNS", 6)
    utterances = read_manifest(real_data / "ravdess4" / "manifest.csv")
    truth = composed.write_call([u for u in utterances if u.speaker_id > "actor_22"], tmp_path, 0)
    recording = tmp_path / "call.wav"
    with TestClient(make_app(pipe, Limits(max_seconds=120.0), "t")) as client:
        for reference in ("none", "speaker"):
            expected = pipe(str(recording), channel="each", reference=reference)
            assert composed.score_call(expected["timeline"], truth)["speaker right"] == 1
            shown = ask(page, recording, is_call=True, own_voices=reference == "speaker")
            assert_near(shown, expected, 1e-3)
            data = {"channel": "each", "reference": reference}
            files = {"audio": recording.read_bytes()}
            answer = client.post("/predict", files=files, data=data).json()
            assert_near(answer, expected, 1e-4)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_looks(
    page: Any, files: dict[str, Path], screenshots: Path, width: int, theme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)
    answer = ask(page, files["call"], is_call=True)
    drawn = page.locator(".chart").count()
    assert drawn == 2 * len(answer["speakers"]) == 4  # emotions and dimensions of each
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (theme == "light")
    page.screenshot(path=screenshots / f"page_{width}_{theme}.png", full_page=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("silence", "is silent"), ("rubbish", "cannot be decoded"), (None, "nothing to hear or read")],
)
def test_refusals(page: Any, files: dict[str, Path], name: str | None, said: str) -> None:
    page.evaluate("document.querySelector('#outcome').replaceChildren()")
    page.locator("#text").fill("")
    if page.locator("#clear").is_visible():
        page.locator("#clear").click()
    if name:
        page.locator("#file").set_input_files(files[name])
    else:
        page.locator("#analyse").click()
    assert said in page.locator(".refused").inner_text()


def test_records(page: Any) -> None:
    page.locator("#record").click()
    page.wait_for_timeout(800)
    page.locator("#record").click()
    page.locator("#clear").wait_for()
    page.locator("#analyse").click()
    assert page.locator("#json").get_attribute("href")


def test_waveforms_as_other_encoders_take_them(
    browser: Any,
    address: str,
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    exported_folder: Path,
) -> None:
    manifest = make_manifest(make_model(), tiny_processor, "float32")
    expected = Features(manifest, {}, exported_folder)(noise(0.3), None)["input_values"][0]
    call = """async ([audio, samples]) => {
        const {audioFeatures} = await import("./page/features.js");
        return [...audioFeatures(new Float32Array(samples), audio, {}).values];
    }"""
    page = browser.new_page()
    page.goto(address)
    found = page.evaluate(call, [manifest["audio"], noise(0.3).tolist()])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_packages_are_the_ones_that_were_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry's altered package is refused; a good one is fetched once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", tmp_path.as_uri())
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz"):
        pass
    good = browser_module._integrity(content.getvalue())
    package = PACKAGES[1]._replace(integrity=good)
    place = tmp_path / "@huggingface/tokenizers/-/tokenizers-0.2.0.tgz"
    with pytest.raises(OSError, match="cannot be fetched"):
        fetch(package)
    place.parent.mkdir(parents=True)
    place.write_bytes(content.getvalue() + b"altered")
    with pytest.raises(ValueError, match="not used"):
        fetch(package)
    place.write_bytes(content.getvalue())
    fetch(package)
    shutil.rmtree(place.parent)
    assert fetch(package) == content.getvalue()
