"""The demo: what it refuses, what it draws, its Space's files, and the page in a real browser."""

import importlib
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import yaml

from modeling_mtmm import MTMMModel
from mtmm_training.pictures import palette
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

ROOT = Path(__file__).parents[1]
RATE = 16000
TRAINED = ("emotion", "valence", "arousal")
SAID = "we won <b>it</b>"
PATIENCE_S = 180


@pytest.fixture(scope="module", autouse=True)
def demo_folder() -> Iterator[None]:
    """As `python demo/app.py` has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "demo")
        yield


@pytest.fixture(scope="module")
def app() -> ModuleType:
    pytest.importorskip("gradio", reason='needs gradio; run `pip install -e ".[demo]"`')
    return importlib.import_module("app")


@pytest.fixture(scope="module")
def drawings() -> ModuleType:
    return importlib.import_module("drawings")


@pytest.fixture(scope="module")
def pipes(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor
) -> dict[str, MTMMPipeline]:
    """Two models that answer differently."""
    models = {f"model{i}": make_model(seed=i, trained_outputs=TRAINED) for i in range(2)}
    return {name: MTMMPipeline(model=m, processor=tiny_processor) for name, m in models.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings that are answered, and files that are not."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 45 * RATE)
    waveforms = {
        "speech": (noise[: 2 * RATE], RATE),
        "windows": (noise, RATE),  # longer than the 40 s that are heard at once
        "silence": (np.full(RATE, 1e-4), RATE),
        "short": (noise[: RATE // 10], RATE),
        "long": (np.resize(noise, 601 * 4000), 4000),
    }
    paths = {name: folder / f"{name}.wav" for name in (*waveforms, "rubbish")}
    for name, (waveform, rate) in waveforms.items():
        soundfile.write(paths[name], waveform, rate, subtype="PCM_16")
    paths["rubbish"].write_bytes(b"this is no audio" * 100)
    soundfile.write(folder / "large.wav", np.resize(noise, 11_000_000), RATE, subtype="PCM_16")
    paths["large"] = folder / "large.wav"
    paths["text"] = folder / "notes.txt"
    paths["text"].write_text("this is no audio")
    return paths


REFUSED = {
    "silence": r"^silence.wav is silent",
    "short": r"^short.wav lasts 0.10 s; from 0.3 to 600 s",
    "long": r"^long.wav lasts 601.00 s; from 0.3 to 600 s",
    "rubbish": r"^'rubbish.wav' cannot be decoded as audio",
}


# ---- from an input to an answer ------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_refused_recordings_are_named(
    app: ModuleType, pipes: dict[str, MTMMPipeline], files: dict[str, Path], name: str
) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]) as refusal:
        app.analyse(pipes["model0"], str(files[name]), "")
    assert str(files[name].parent) not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_no_input_is_refused(app: ModuleType, pipes: dict[str, MTMMPipeline], text: str) -> None:
    with pytest.raises(ValueError, match="nothing to hear or read yet"):
        app.analyse(pipes["model0"], None, text)


def test_words_without_times_go_to_every_window(
    app: ModuleType, pipes: dict[str, MTMMPipeline], files: dict[str, Path]
) -> None:
    answer = app.analyse(pipes["model0"], str(files["windows"]), SAID)
    assert answer.result["untimed_text"] and answer.result["missing"] == []
    assert app.origins(pipes).startswith("model0 was trained on data that is not recorded.")


def test_answer_is_the_pipelines_explained(
    app: ModuleType, pipes: dict[str, MTMMPipeline], files: dict[str, Path]
) -> None:
    pipe, path = pipes["model0"], str(files["speech"])
    for given, utterance in (
        ((path, SAID), {"audio": path, "text": SAID}),
        ((path, " "), path),
        ((None, SAID), {"text": SAID}),
    ):
        answer = app.analyse(pipe, *given)
        assert answer.result == pipe(utterance, explain=True, batch_size=app.BATCH_SIZE)
    assert answer.colours["angry"] == palette.EMOTIONS["angry"].colour


def test_long_recordings_get_a_timeline_instead(
    app: ModuleType, pipes: dict[str, MTMMPipeline], files: dict[str, Path]
) -> None:
    result = app.analyse(pipes["model0"], str(files["windows"]), "").result
    assert len(result["timeline"]) == math.ceil(45 / 6)
    assert all("explanation" not in entry for entry in [result, *result["timeline"]])


@pytest.mark.parametrize(
    "overrides", [{"use_bridge_tokens": False}, {"trained_outputs": ("valence", "arousal")}]
)
def test_unexplainable_models_still_answer(
    app: ModuleType,
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    overrides: dict[str, Any],
) -> None:
    model = make_model(**{"trained_outputs": TRAINED} | overrides)
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    message, answer = app.respond({"only": pipe}, "only", None, SAID)
    assert message == "" and "explanation" not in answer.result
    assert ("scores" in answer.result) == ("emotion" in model.config.trained_outputs)


def test_gpu_of_a_space_answers_in_its_own_process(
    app: ModuleType, pipes: dict[str, MTMMPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeroGPU pickles what goes there and back, and so must not be given the models."""
    sent: list[bytes] = []

    def gpu(function: Callable[..., Any]) -> Callable[..., Any]:
        def there_and_back(*given: Any) -> Any:
            sent.append(pickle.dumps(given))
            return pickle.loads(pickle.dumps(function(*pickle.loads(sent[-1]))))

        return there_and_back

    monkeypatch.setattr(app, "GPU", gpu)
    (handler,) = (f.fn for f in app.build(pipes, []).fns.values() if f.api_name == "predict")
    _, answer = handler("model1", None, SAID)
    expected = pipes["model1"]({"text": SAID}, explain=True, batch_size=app.BATCH_SIZE)
    assert answer.result == expected and len(sent) == 1 and len(sent[0]) < 1000


def test_examples_have_each_emotion_once(app: ModuleType, tmp_path: Path) -> None:
    examples = app.make_examples(str(tmp_path))
    assert len(examples) == len({text for _, text in examples}) == 4
    assert all(soundfile.info(path).duration > 1 for path, _ in examples)


def test_models_are_folders_or_commits_on_the_hub(
    app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(app, "pipeline", lambda **given: asked.append(given))
    folder = tmp_path / "a@b"
    folder.mkdir()
    for name in (str(folder), "someone/mtmm", "someone/mtmm@1a2b3c"):
        app.load(name)
    assert all(given.pop("trust_remote_code") for given in asked)
    assert asked == [
        {"model": str(folder), "revision": None},
        {"model": "someone/mtmm", "revision": None},
        {"model": "someone/mtmm", "revision": "1a2b3c"},
    ]


def test_demo_without_models_says_what_to_give(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.delenv(app.MODELS, raising=False)
    with pytest.raises(SystemExit, match="2"):
        app.main()
    assert "no MODEL; give folders or ids on the Hub, or set MTMM_MODELS" in capsys.readouterr().err


# ---- what is drawn -------------------------------------------------------------------------------

RESULT = {
    "emotion": "happy",
    "scores": {"happy": 0.75, "sad": 0.25},
    "valence": 5.0,
    "arousal": 1.0,
    "missing": [],
    "untrained": [],
}


def test_plane_puts_valence_right_and_arousal_up(drawings: ModuleType) -> None:
    drawn = drawings.plane(RESULT, {"happy": "#abc"}, (1, 5))
    (x, y), *others = re.findall(r'<circle.* cx="(.*?)" cy="(.*?)"', drawn)
    assert (float(x), float(y)) == (270, 270)  # the lower right corner of 240, 30 from the edges
    assert not others and 'fill="#abc"' in drawn


def test_timeline_has_a_row_for_each_window(app: ModuleType) -> None:
    entries = [RESULT | {"start": 0.0, "end": 6.0}, RESULT | {"start": 6.0, "end": 12.0}]
    expected = {"emotion": "happy", "probability": 0.75, "valence": 5.0, "arousal": 1.0}
    rows = app.windows(entries).to_dict("records")
    assert rows == [expected | {"start": s, "end": s + 6} for s in (0.0, 6.0)]
    without = [{k: v for k, v in entries[0].items() if k not in ("emotion", "scores")}]
    assert list(app.windows(without)) == ["start", "end", "valence", "arousal"]


def test_change_of_a_probability_is_in_percent(app: ModuleType) -> None:
    falls = {"audio": math.log(2), "text": -math.log(1.5)}
    assert app.without(falls).endswith("without audio **−50 %**, without text **+50 %**.")
    assert app.without({"audio": 0.5, "text": None}) == ""


def test_words_of_others_are_escaped(drawings: ModuleType) -> None:
    result = RESULT | {"untrained": ["<script>"], "emotion": "<x>", "scores": {"<x>": 1.0}}
    pages = [
        drawings.message("<script>"),
        drawings.summary(result, {"<d>": 2.0}, (1, 5)),
        drawings.plane(result, {"<x>": "red"}, (1, 5)),
    ]
    assert all("&lt;" in page for page in pages)
    assert not any("<x>" in page or "<script>" in page for page in pages)


# ---- the Space -----------------------------------------------------------------------------------


def test_space_installs_what_the_package_needs() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "demo" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == package


def test_space_has_the_gradio_that_is_tested() -> None:
    _, metadata, _ = (ROOT / "demo" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    space = yaml.safe_load(metadata)
    pins = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    assert f"gradio=={space['sdk_version']}" in pins
    assert (ROOT / "demo" / space["app_file"]).is_file()
    assert len(space["short_description"]) <= 60  # the Hub refuses longer ones


def test_space_runs_from_its_own_folder(tmp_path: Path) -> None:
    """With the files that demo/README.md uploads, and without a checkout."""
    pytest.importorskip("gradio")
    for source in (*(ROOT / "demo").glob("*.*"), ROOT / "mtmm_training/pictures/palette.py"):
        shutil.copy(source, tmp_path)
    code = "import sys; sys.modules['mtmm_training'] = None; sys.path.insert(0, '.'); import app; "
    code += (
        "print(app.palette.__file__, app.make_examples('.') == [[None, s] for s in app.SENTENCES])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split()[-2:] == [str(tmp_path / "palette.py"), "True"], done.stderr


# ---- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(
    app: ModuleType, pipes: dict[str, MTMMPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of the demo with both models, run as anybody would run it."""
    folder = tmp_path_factory.mktemp("server")
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "demo" / "app.py"), *pipes, "--port", str(port)]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "code"),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }  # fmt: skip
    environment.pop("GRADIO_SERVER_NAME", None)
    with open(folder / "log", "w+") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(port, server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    late = time.monotonic() + PATIENCE_S
    while time.monotonic() < late and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"the demo did not start:\n{log.read_text()}")


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page in a window of some size; in the end, it asked no other host for anything."""
    contexts, asked = [], set()

    def start(width: int = 1280, height: int = 900, theme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(f"{address}/?__theme={theme}")
        page.get_by_role("button", name="Analyse").wait_for()
        return page

    yield start
    for context in contexts:
        context.close()
    urls = [urlsplit(url) for url in asked]
    assert {url.hostname for url in urls if url.scheme in ("http", "https")} == {"127.0.0.1"}


def upload(page: Any, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_label("Clear").first.wait_for()


def answer(page: Any) -> dict[str, Any]:
    """Press the button and read the answer off the page."""
    page.get_by_role("button", name="Analyse").click()
    page.locator("#summary b").first.wait_for()
    page.wait_for_timeout(1000)  # until the plots are drawn
    numbers = page.locator("#summary .numbers span").all_inner_texts()
    return {
        "emotion": page.get_by_test_id("label-output-value").inner_text(),
        "valence": numbers[0],
        "arousal": numbers[1],
    }


def refusal(page: Any) -> str:
    page.get_by_role("button", name="Analyse").click()
    return page.locator(".refused").inner_text()


def rounded(result: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: f"{name} {result[name]:.2f}" for name in ("valence", "arousal")}
    return {"emotion": result["emotion"]} | numbers


@pytest.mark.parametrize(("width", "height", "theme"), [(1280, 1000, "dark"), (390, 844, "light")])
def test_page_shows_the_pipelines_answer(
    open_page: Callable[..., Any],
    pipes: dict[str, MTMMPipeline],
    files: dict[str, Path],
    screenshots: Path,
    width: int,
    height: int,
    theme: str,
) -> None:
    page = open_page(width, height, theme)
    upload(page, files["speech"])
    page.get_by_label("What was said").fill(SAID)
    utterance = {"audio": str(files["speech"]), "text": SAID}
    result = pipes["model0"](utterance, explain=True)
    assert answer(page) == rounded(result)
    for name, share in result["scores"].items():
        bar = page.get_by_test_id(f"{name}-confidence-set")
        assert bar.locator(".confidence").inner_text() == f"{share:.0%}"
    words = page.locator(".words").first.inner_text()
    assert words.split()[-len(SAID.split()) :] == SAID.split()  # escaped, as they were said
    assert page.locator(".vega-embed").count() == 2  # moments: what mattered, and what was read
    in_sight = f"document.querySelector('#outcome').getBoundingClientRect().top < {height / 2}"
    page.wait_for_function(in_sight)  # on the phone it scrolls there
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=screenshots / f"demo_{width}.png", full_page=True)


def test_page_offers_the_models(
    open_page: Callable[..., Any], pipes: dict[str, MTMMPipeline]
) -> None:
    page = open_page()
    page.get_by_label("What was said").fill("we lost")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="model1").click()
    first, second = (rounded(pipe({"text": "we lost"})) for pipe in pipes.values())
    assert answer(page) == second != first
    assert "No recording was heard." in page.locator("#summary").inner_text()


@pytest.mark.parametrize(("width", "height", "theme"), [(1280, 1000, "dark"), (390, 844, "light")])
def test_page_draws_the_timeline(
    open_page: Callable[..., Any],
    pipes: dict[str, MTMMPipeline],
    files: dict[str, Path],
    screenshots: Path,
    width: int,
    height: int,
    theme: str,
) -> None:
    page = open_page(width, height, theme)
    upload(page, files["windows"])
    result = pipes["model0"](str(files["windows"]))
    assert answer(page) == rounded(result)
    page.get_by_text("All windows in numbers").click()
    cells = page.locator(".windows tbody td:nth-child(3)").all_inner_texts()
    assert cells == [entry["emotion"] for entry in result["timeline"]]
    assert page.locator(".vega-embed").count() == 2  # emotions and dimensions
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=screenshots / f"demo_timeline_{width}.png", full_page=True)


def test_page_says_what_it_refuses(
    open_page: Callable[..., Any], files: dict[str, Path], screenshots: Path
) -> None:
    page = open_page()
    assert "nothing to hear or read yet" in refusal(page)
    for name in ("rubbish", "long", "silence"):
        page = open_page()
        upload(page, files[name])
        said = refusal(page)
        assert re.search(REFUSED[name], said), said
        assert "Traceback" not in page.content()
    page.screenshot(path=screenshots / "demo_refused.png")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", "Invalid file type"),
        ("large", 'maximum allowed size of 20.0 Mb: "large.wav"'),
    ],
)
def test_page_takes_no_other_files(
    open_page: Callable[..., Any], files: dict[str, Path], name: str, words: str
) -> None:
    page = open_page()
    page.locator("input[type=file]").first.set_input_files(files[name])
    page.get_by_text(words).wait_for()


def test_page_records_and_answers(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(2000)
    with page.expect_response("**/upload*"):  # until then the page has nothing to analyse
        page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_label("Clear").first.wait_for()
    assert answer(page)["emotion"] in ("angry", "happy", "neutral", "sad")


def test_page_has_examples(open_page: Callable[..., Any], app: ModuleType, tmp_path: Path) -> None:
    path, said = app.make_examples(str(tmp_path))[0]
    page = open_page()
    page.get_by_role("button", name=said).click()
    page.get_by_label("Clear").first.wait_for()
    assert page.get_by_label("What was said").input_value() == said
    assert answer(page)["emotion"]
    assert said.split()[0] in page.locator(".words").first.inner_text()
