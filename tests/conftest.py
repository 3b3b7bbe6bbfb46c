"""What several test files share: the tiny model and its processor, a trained demo, two processes."""

import io
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch: the models are tiny, and what the tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process that gives large tensors' memory back after each step spends a fifth of its time on getting it.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**32))

import numpy as np
import pytest
import soundfile
import torch
from bad_inputs import tiny
from filelock import FileLock
from transformers import WhisperFeatureExtractor

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

CHECKOUT = Path(__file__).parents[1]
RATE = 16000
TRAINED = ("emotion", "valence", "arousal")
MakeModel = Callable[..., MTMMModel]
HUB_FILES = sorted(file.name for file in CHECKOUT.glob("*_mtmm.py"))

# A tiny acoustic encoder that takes windows of 1 s as 20 log-mel bands.
WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 20,
    "max_source_positions": 50,
}


# Files that take the longest, the longest first: begun last, one would keep one worker alone busy.
SLOW = (
    "readme examples composing hub_datasets page export runtime checkpoint_life demo compile "
    "publish device train_accelerate cli benchmarks long_recordings modeling_mtmm ablation "
    "training_faults protocol hub_roundtrip fsdp adapters predict_files experiments serve "
    "release"
).split()


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist's own order: most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in SLOW]
    items.sort(key=lambda item: [*names, item.path.stem].index(item.path.stem))


def noise(duration_s: float = 0.5, rate: int = RATE, seed: int = 0) -> np.ndarray:
    samples = round(duration_s * rate)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def encoded(
    waveform: np.ndarray, form: str = "WAV", subtype: str | None = None, rate: int = RATE
) -> bytes:
    """A file with this sound; of several channels (time, channels)."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=form, subtype=subtype)
    return file.getvalue()


def audio(waveform: np.ndarray) -> dict[str, Any]:
    return {"array": waveform, "sampling_rate": RATE}


def two_processes() -> list[dict[str, str]]:
    """The environments in which two processes on this machine train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    together |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    return [together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def load_with_info(folder: Path) -> tuple[MTMMModel, dict[str, Any]]:
    """The model, and which weights the file lacked or had besides."""
    loaded: Any = MTMMModel.from_pretrained(folder, output_loading_info=True)
    return loaded


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Make a tiny model, in eval mode, with new weights so large that every part matters."""

    def make(seed: int = 0, **overrides: object) -> MTMMModel:
        torch.manual_seed(seed)
        model = MTMMModel(MTMMConfig.tiny(**overrides)).eval()
        with torch.no_grad():
            for part in (model.fusion, model.emotion_head, model.dimension_head):
                for name, parameter in part.named_parameters():
                    parameter.normal_(mean=float("norm.weight" in name), std=0.2)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_processor() -> MTMMProcessor:
    """16 kHz waveforms, and a tokenizer of letters whose ids fit the tiny configuration."""
    return tiny.processor()


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> MTMMModel:
    """Trained, so it says, for every output."""
    return make_model(trained_outputs=TRAINED)


@pytest.fixture(scope="module")
def pipe(model: MTMMModel, tiny_processor: MTMMProcessor) -> MTMMPipeline:
    return MTMMPipeline(model=model, processor=tiny_processor)


@pytest.fixture(scope="session")
def whisper_processor(tiny_processor: MTMMProcessor) -> MTMMProcessor:
    """Log-mel input with a window of one second."""
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    return MTMMProcessor(extractor, tiny_processor.tokenizer, max_tokens=64)


@pytest.fixture(scope="module")
def whisper_pipe(make_model: MakeModel, whisper_processor: MTMMProcessor) -> MTMMPipeline:
    model = make_model(audio_config=WHISPER, trained_outputs=TRAINED)
    return MTMMPipeline(model=model, processor=whisper_processor)


@dataclass(frozen=True)
class TrainedDemo:
    """What `mtmm demo out/demo` left and printed.

    Args:
        folder: Where it was run; shared by all tests, so read it and write elsewhere.
        printed: Its standard output.
    """

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def trained_demo(tmp_path_factory: pytest.TempPathFactory) -> TrainedDemo:
    """The demo, trained once for all workers; minutes of one core.

    MTMM_DEMO names a folder with out/demo and printed.txt, made earlier by
    `mtmm demo out/demo > printed.txt`, to do without.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of one session, where each worker has a folder of its own
    folder = Path(os.environ.get("MTMM_DEMO", root / "trained_demo")).resolve()
    printed = folder / "printed.txt"
    with FileLock(root / "trained_demo.lock"):
        if not printed.is_file():
            folder.mkdir()
            command = [sys.executable, "-m", "mtmm_training", "demo", "out/demo"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            printed.write_text(done.stdout, encoding="utf-8")
    return TrainedDemo(folder, printed.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    default = Path(__file__).parents[2] / "shared" / "real"
    folder = Path(os.environ.get("MTMM_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip(
            "no real data; set MTMM_REAL_DATA to the folder that has encoders/ and ravdess4/"
        )
    return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpus/ of fifty utterances and encoders/ of the embedded corpus; runs may add cache/."""
    folder = tmp_path_factory.mktemp("embedded")
    write_corpus(folder / "corpus", utterances=50)
    write_encoders(folder / "encoders")
    return folder


@pytest.fixture(scope="session")
def exported_pipe(make_model: MakeModel, whisper_processor: MTMMProcessor) -> MTMMPipeline:
    """A log-mel model with all that an answer may have."""
    bert = {"model_type": "bert", "num_hidden_layers": 1, "vocab_size": 128}
    bert |= {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    fields: dict[str, Any] = {
        "temperature": 1.7, "min_confidence": 0.3, "trained_outputs": TRAINED,
        "rated_dimensions": ("valence",), "familiarity": True, "calibrated_on": "votes",
        "reference": "speaker", "reference_encoder": "e", "reference_strengths": (5.0, 5.0),
        "reference_answers": (0.3, 0.2, 0.2, 0.3, 0.0, 0.0), "reference_skew": 0.4,
        "training_data": {"corpora": {"synthetic": 9}, "speakers": 2, "artificial": ["synthetic"]},
    }  # fmt: skip
    texts = bert | {"max_position_embeddings": 64}
    model = make_model(audio_config=WHISPER, text_config=texts, **fields)
    with torch.no_grad():
        model.fusion.reference_mean.normal_(generator=torch.Generator().manual_seed(0))
        model.fusion.reference_deviation.fill_(0.7)
        model.fusion.expected_states.normal_(generator=torch.Generator().manual_seed(1))
    return MTMMPipeline(model=model, processor=whisper_processor)


@pytest.fixture(scope="session")
def exported_folder(exported_pipe: MTMMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export, made once for all workers."""
    from mtmm_training.publishing.folder import write_folder

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "exported"
    with FileLock(root / "exported.lock"):
        if not folder.is_dir():
            write_folder(exported_pipe.model, exported_pipe.processor, root / "exporting")
            (root / "exporting").rename(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium; on Debian run `apt-get install chromium`")
    with playwright.sync_playwright() as started:
        # Containers' root may not use the sandbox, and the page is our own; the microphone beeps.
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
        arguments += ["--use-fake-ui-for-media-stream"]
        opened = started.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("MTMM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
