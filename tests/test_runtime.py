"""The runtime without torch: the pipeline's answers from an exported folder."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mtmm_runtime
import numpy as np
import pytest
import torch
from conftest import CHECKOUT, RATE, encoded, noise

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install -e '.[onnx]'")

from transformers.exporters.base import ExportedModel as TransformersExport

from modeling_mtmm import MTMMPipeline
from mtmm_training.publishing import export as export_module
from mtmm_training.publishing.folder import write_folder

WORDS = [{"text": "so", "start": 0.1, "end": 0.3}, {"text": "there", "start": 1.2, "end": 1.4}]
SEGMENTS: list[dict[str, Any]] = [
    {"start": 0.1, "end": 0.9, "text": "yes"},
    {"start": 1.0, "end": 2.2},
]
SPOKEN = [{**segment, "speaker": who} for segment, who in zip(SEGMENTS, "ab", strict=True)]
Exports = dict[str, mtmm_runtime.Predictor]


@pytest.fixture(scope="module")
def pipe(exported_pipe: MTMMPipeline) -> MTMMPipeline:
    return exported_pipe


@pytest.fixture(scope="module")
def exports(
    pipe: MTMMPipeline, exported_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exports:
    """By precision; the graph is traced and converted once, which takes the time."""
    folder = tmp_path_factory.mktemp("exports")
    model, processor = pipe.model, pipe.processor
    graph = (exported_folder / "model.onnx").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "trace", lambda *_: None)
        patch.setattr(export_module, "_write", lambda *given: given[-1].write_bytes(graph))
        write_folder(model, processor, folder / "float16", "float16")
        write_folder(model, processor, folder / "int8", "int8")
    folders = {"float32": exported_folder, "float16": folder / "float16", "int8": folder / "int8"}
    return {name: mtmm_runtime.load(place, threads=1) for name, place in folders.items()}


def recording(seconds: float, rate: int = RATE) -> bytes:
    return encoded(noise(seconds, rate), subtype="FLOAT", rate=rate)


def leaves(answer: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its place; lists and dicts in their order."""
    if isinstance(answer, (dict, list)):
        for key, value in answer.items() if isinstance(answer, dict) else enumerate(answer):
            yield from leaves(value, f"{place}/{key}")
    else:
        yield place, answer


def assert_near(found: Any, expected: Any, apart: float) -> None:
    """The same keys and words in the same order, and numbers that far apart at most."""
    pairs, others = list(leaves(found)), list(leaves(expected))
    assert [place for place, _ in pairs] == [place for place, _ in others]
    for (place, value), (_, other) in zip(pairs, others, strict=True):
        is_number = isinstance(value, float)
        assert value == (pytest.approx(other, abs=apart) if is_number else other), place


INPUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "both": ({"audio": recording(0.7), "text": "so it is"}, {}),
    "audio at another rate": (recording(0.9, 22050), {"top_k": 2}),
    "stereo array": (noise(0.8).reshape(-1, 2), {"sampling_rate": 8000}),
    "text": ({"text": " ﬁne　"}, {"min_confidence": 0.9}),
    "long": (recording(2.6), {"hop_s": 0.4}),
    "words": ({"audio": recording(1.5), "words": WORDS}, {"window_s": 0.5}),
    "segments": ({"audio": recording(2.3), "segments": SEGMENTS}, {}),
    "turns": ({"audio": recording(2.3), "segments": SPOKEN}, {"by": "turn"}),
    "channels": (noise(2.4).reshape(-1, 2), {"sampling_rate": 16000, "channel": "each"}),
    "untimed": ({"audio": recording(2.1), "text": "all along"}, {}),
    "several": ([{"text": "one"}, {"audio": recording(0.5), "speaker": "anna"}], {}),
}


@pytest.mark.parametrize("name", INPUTS)
def test_answers_are_the_pipelines(exports: Exports, pipe: MTMMPipeline, name: str) -> None:
    given, options = INPUTS[name]
    expected = pipe(given, **options)
    assert_near(exports["float32"](given, **options), expected, 1e-4)
    if name == "both":
        for precision, apart in (("float16", 0.02), ("int8", 0.3)):
            assert_near(exports[precision](given)["scores"], expected["scores"], apart)


def test_references_that_were_saved(exports: Exports, pipe: MTMMPipeline, tmp_path: Path) -> None:
    domain = pipe.reference([recording(0.9), recording(1.4)], kind="domain")
    speaker = pipe.reference([recording(0.6)], domain=domain)
    places = [tmp_path / f"{name}.safetensors" for name in ("domain", "speaker", "told")]
    told = pipe.reference(recording(0.6), emotion="sad")
    for made, place in zip((domain, speaker, told), places, strict=True):
        made.save(place)
    given, predict = {"audio": recording(0.7), "text": "so"}, exports["float32"]
    own = pipe(given)
    for reference in (places, places[:2], places[1], places[2]):
        expected = pipe(given, reference=reference)
        assert abs(expected["valence"] - own["valence"]) > 1e-3
        assert_near(predict(given, reference=reference), expected, 1e-4)
    with pytest.raises(ValueError, match="says who speaks"):
        predict(given, reference="speaker")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(places[0].read_bytes()[:100])
    with pytest.raises(ValueError, match="safetensors"):
        predict(given, reference=damaged)


@pytest.mark.parametrize("reference", ["speaker", "domain", ["speaker", "domain"]])
def test_references_of_the_inputs(exports: Exports, pipe: MTMMPipeline, reference: Any) -> None:
    several = [
        {"audio": recording(s), "speaker": who} for s, who in ((0.7, "a"), (0.9, "b"), (2.4, "a"))
    ]
    call = {"audio": noise(2.4).reshape(-1, 2), "sampling_rate": RATE}
    gap = np.concatenate([noise(0.9), np.zeros(3 * RATE, np.float32), noise(0.9)])
    broken = [{"audio": gap, "sampling_rate": RATE, "speaker": "a"}]
    for given, options in (
        (several, {}),
        (call, {"channel": "each"}),
        (several[2:], {"hop_s": 0.4}),
        (broken, {"hop_s": 0.4}),
    ):
        expected = pipe(given, reference=reference, **options)
        found = exports["float32"](given, reference=reference, **options)
        assert_near(found, list(expected) if isinstance(given, list) else expected, 1e-4)
    again = exports["float32"](iter(several), reference=reference)
    assert again == exports["float32"](several, reference=reference)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"text": " "}, {}),
        ({"text": "a" * 200}, {}),
        ({"audio": b"RIFF"}, {}),
        ({"audio": noise(0.01), "sampling_rate": RATE}, {}),
        ({"text": "so"}, {"window_s": 9.0}),
        ({"path": "no.wav"}, {}),
    ],
)
def test_what_the_pipeline_refuses(
    exports: Exports, pipe: MTMMPipeline, given: Any, options: dict[str, Any]
) -> None:
    for predict in (pipe, exports["float32"]):
        with pytest.raises((ValueError, OSError)) as one:
            predict(given, **options)
        with pytest.raises(ValueError) as several:
            predict([{"text": "so"}, given], **options)
        if not options:
            assert several.value.index == 1 and str(one.value) in str(several.value)  # type: ignore[attr-defined]


def test_newer_and_unknown_exports_are_refused(exports: Exports, tmp_path: Path) -> None:
    manifest = dict(exports["float32"].manifest)
    for changed, named in (({"format": 9}, "newer"), ({"audio": {"kind": "Clap"}}, "Clap")):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | changed))
        with pytest.raises(ValueError, match=named):
            mtmm_runtime.load(tmp_path)


def test_transformers_reads_the_folder_too(exports: Exports, pipe: MTMMPipeline) -> None:
    predict = exports["float32"]
    tensors = predict.features(noise(0.7), "so it is")
    expected = predict.run(tensors)
    graph: Any = TransformersExport.from_pretrained(predict.folder, device="cpu")
    names = ("reference_mean", "reference_deviation")
    own = dict.fromkeys(names, np.full((1, 1, 32), np.nan, np.float32))
    found = graph(**{name: torch.from_numpy(array) for name, array in (tensors | own).items()})
    assert list(found) == predict.manifest["graph"]["outputs"]
    for name, values in found.items():
        np.testing.assert_allclose(values.numpy(), expected[name], atol=1e-5)


def test_example_of_the_docs(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (CHECKOUT / "docs" / "runtime.md").read_text("utf-8")
    (tmp_path / "exported").symlink_to(exports["float32"].folder)
    (tmp_path / "speech.wav").write_bytes(recording(0.9))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(page.split("```py\n")[1].split("```")[0].replace("1.0", "0.5"), names)
    assert len(names["windows"]) == 2 and list(names["several"][1]["scores"]) != []


# ---- the distribution ----------------------------------------------------------------------------

REFUSED = ["torch", "transformers", "safetensors", "huggingface_hub", "pandas", "scipy"]
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3:]:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import json
import mtmm_runtime
import numpy as np
print(json.dumps(mtmm_runtime.load(sys.argv[1])([sys.argv[2], {"text": "so"}])))
"""


def test_it_needs_no_torch(exports: Exports, pipe: MTMMPipeline, tmp_path: Path) -> None:
    """As its wheel has it: the files of the package and those that it shares, in one folder."""
    project = tomllib.loads((CHECKOUT / "runtime" / "pyproject.toml").read_text("utf-8"))
    package = tmp_path / "mtmm_runtime"
    package.mkdir()
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    files = {
        path: f"mtmm_runtime/{path.name}" for path in CHECKOUT.glob("runtime/mtmm_runtime/*.py")
    }
    files |= {CHECKOUT / "runtime" / place: target for place, target in shared.items()}
    for source, target in files.items():
        (tmp_path / target).write_bytes(source.read_bytes())
    (tmp_path / "a.wav").write_bytes(recording(0.7))
    (tmp_path / "script.py").write_text(ALONE)
    folder = exports["float32"].folder
    words = [sys.executable, "-E", "script.py", str(folder), "a.wav", *REFUSED]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_near(json.loads(done.stdout), pipe([recording(0.7), {"text": "so"}]), 1e-4)
