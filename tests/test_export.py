"""Exported files: parity with the model over lengths, sizes and missing modalities; what they tell a user."""

import contextlib
import copy
import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, noise
from scipy.special import softmax
from sklearn.metrics import recall_score
from torch import Tensor
from transformers import WhisperFeatureExtractor

onnx = pytest.importorskip("onnx", reason="onnx is not installed; pip install -e '.[onnx]'")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed; pip install -e '.[onnx]'"
)

from configuration_mtmm import MTMMConfig  # noqa: E402
from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor  # noqa: E402
from mtmm_training.commands.cli import main  # noqa: E402
from mtmm_training.data.files import appearing  # noqa: E402
from mtmm_training.data.utterances import Utterance  # noqa: E402
from mtmm_training.publishing import export as export_module  # noqa: E402
from mtmm_training.publishing import folder as folder_module  # noqa: E402
from mtmm_training.publishing.export import export, quantise  # noqa: E402
from mtmm_training.publishing.exported import ExportedModel  # noqa: E402
from mtmm_training.publishing.parity import input_shapes, largest_difference, measure  # noqa: E402
from mtmm_training.training.run import Run  # noqa: E402
from reference_mtmm import Reference  # noqa: E402

NAMES = ["emotion_logits", "emotion_probabilities", "dimensions"]
INPUTS = ["input_values", "audio_attention_mask", "input_ids", "attention_mask"]
AUDIO, TEXT = INPUTS[:2], INPUTS[2:]
TEMPERATURE = 2.0
ENCODER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
WHISPER = {
    "model_type": "whisper", "d_model": 32, "num_mel_bins": 8, "vocab_size": 8,
    "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_layers": 0, "decoder_attention_heads": 2, "decoder_ffn_dim": 64,
    "max_source_positions": 20, "max_target_positions": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
BERT = ENCODER | {
    "model_type": "bert", "num_hidden_layers": 1, "vocab_size": 128, "max_position_embeddings": 64,
}  # fmt: skip


def one_layer(name: str) -> dict[str, Any]:
    return getattr(MTMMConfig.tiny(), name).to_dict() | {"num_hidden_layers": 1}


PAIRS: dict[str, dict[str, Any]] = {  # few layers: converting them takes the time
    "hubert-deberta": {name: one_layer(name) for name in ("audio_config", "text_config")},
    "whisper-bert": {
        "audio_config": WHISPER,
        "text_config": BERT,
        "encoder_layers": "weighted",
        "bridge_wiring": "direct",
        "acoustic_stride": 3,
    },  # fmt: skip
}


@dataclasses.dataclass
class Exported:
    model: MTMMModel
    processor: MTMMProcessor
    path: Path
    printed: str
    program: torch.export.ExportedProgram
    converted: Any

    @property
    def is_whisper(self) -> bool:
        return self.model.config.encoder_config("audio").model_type == "whisper"


@pytest.fixture(scope="module", params=PAIRS)
def exported(
    request: pytest.FixtureRequest,
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """A tiny model, and the .onnx that the command wrote of its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    outputs = {"temperature": TEMPERATURE, "trained_outputs": ["emotion", "arousal"]}
    model = make_model(**PAIRS[request.param], **outputs)
    processor = tiny_processor
    if request.param == "whisper-bert":
        extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=400)
        processor = MTMMProcessor(extractor, tiny_processor.tokenizer, max_tokens=64)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    path = folder / "out" / "model.onnx"
    kept: list[Any] = []  # tracing and converting take the time

    def keeping(function: Callable[..., Any]) -> Callable[..., Any]:
        def kept_too(*args: Any, **options: Any) -> Any:
            kept.append(function(*args, **options))
            return kept[-1]

        return kept_too

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        patch.setattr(export_module, "trace", keeping(export_module.trace))
        patch.setattr("torch.onnx.export", keeping(torch.onnx.export))
        assert main(["export", str(folder), str(path.parent)]) == 0  # as a run's folder
    return Exported(model, processor, path, printed.getvalue(), *kept)


def write_exported(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting writes that same file again: tracing and converting take the time."""
    content = exported.path.read_bytes()
    monkeypatch.setattr(export_module, "trace", lambda *args: None)
    monkeypatch.setattr(export_module, "_write", lambda *args: args[-1].write_bytes(content))


def make_batch(exported: Exported, samples: list[int], tokens: list[int]) -> dict[str, Tensor]:
    """Noise and random tokens of these lengths; of Whisper, whole windows with so many real frames."""
    generator = torch.Generator().manual_seed(sum(samples))
    shape: tuple[int, ...] = (max(samples),)
    if exported.is_whisper:
        samples, shape = [min(n // 100, 40) for n in samples], (8, 40)
    return {
        "input_values": torch.randn(len(samples), *shape, generator=generator),
        "audio_attention_mask": first_ones(samples, shape[-1]),
        "input_ids": torch.randint(5, 30, (len(tokens), max(tokens)), generator=generator),
        "attention_mask": first_ones(tokens, max(tokens)),
    }


def first_ones(lengths: list[int], width: int) -> Tensor:
    return torch.tensor([[int(i < length) for i in range(width)] for length in lengths])


def of_model(model: MTMMModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        output = model(**inputs)
    scores = np.asarray(output.emotion_logits, dtype=np.float64) / model.config.temperature
    return [output.emotion_logits, torch.tensor(softmax(scores, axis=-1)), output.dimensions]


def assert_equal(found: dict[str, Tensor], expected: list[Tensor], atol: float = 2e-5) -> None:
    assert list(found) == NAMES
    for name, values in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(found[name].double(), values.double(), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [([3000], [5]), ([4000, 1500, 2222], [3, 17, 9]), ([40_000], [64]), ([900, 800], [1, 1])],
)
def test_onnx_equals_model(exported: Exported, samples: list[int], tokens: list[int]) -> None:
    inputs = make_batch(exported, samples, tokens)
    assert_equal(ExportedModel(exported.path).run(**inputs), of_model(exported.model, inputs))


@pytest.mark.parametrize("absent", [AUDIO, TEXT])
def test_onnx_equals_model_without_a_modality(exported: Exported, absent: list[str]) -> None:
    runtime = ExportedModel(exported.path)
    inputs = make_batch(exported, [4000, 1500, 2222], [3, 17, 9])
    left_out = {name: value for name, value in inputs.items() if name not in absent}
    assert_equal(runtime.run(**left_out), of_model(exported.model, left_out))
    mixed = inputs | {absent[1]: inputs[absent[1]].clone()}
    mixed[absent[1]][1] = 0
    found = runtime.run(**mixed)
    assert_equal(found, of_model(exported.model, mixed))
    alone = {name: value[1:2] for name, value in left_out.items()}
    assert_equal(
        {name: value[1:2] for name, value in found.items()}, of_model(exported.model, alone)
    )


@pytest.mark.parametrize("exported", ["hubert-deberta"], indirect=True)
def test_onnx_takes_audio_of_one_frame(exported: Exported) -> None:
    inputs = make_batch(exported, [105], [4])  # the receptive field of 10, 8, 4 by 5, 4, 4
    assert exported.model.encode_audio(inputs["input_values"])[0].shape[1] == 1
    assert_equal(ExportedModel(exported.path).run(**inputs), of_model(exported.model, inputs))


def test_onnx_gives_nan_where_the_model_refuses(exported: Exported) -> None:
    inputs = make_batch(exported, [4000, 1500, 2222], [3, 17, 9])
    expected = of_model(exported.model, inputs)
    inputs["audio_attention_mask"][1] = inputs["attention_mask"][1] = 0
    if not exported.is_whisper:
        inputs["audio_attention_mask"][2, 104:] = 0  # one sample less than a frame
    with pytest.raises(ValueError):
        exported.model(**inputs)
    found = ExportedModel(exported.path).run(**inputs)
    refused = [1] if exported.is_whisper else [1, 2]
    for name, values in zip(NAMES, expected, strict=True):
        assert found[name].isnan().all(dim=1).nonzero().flatten().tolist() == refused
        torch.testing.assert_close(found[name][0].double(), values[0].double(), atol=2e-5, rtol=0)


def test_onnx_file_says_what_its_numbers_mean(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == INPUTS
    assert [each.name for each in session.get_outputs()] == NAMES
    audio = ["batch", 8, 40] if exported.is_whisper else ["batch", "time"]
    assert session.get_inputs()[0].shape == audio
    assert session.get_inputs()[2].shape == ["batch", "tokens"]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["mtmm"])
    assert metadata["input_shapes"]["input_values"] == audio
    del metadata["input_shapes"]
    assert metadata == {
        "emotions": ["angry", "happy", "sad", "neutral"], "temperature": TEMPERATURE,
        "dimension_names": ["valence", "arousal"], "dimension_range": [1.0, 5.0],
        "trained_outputs": ["emotion", "arousal"], "sampling_rate": 16000, "max_tokens": 64,
        "outputs": NAMES,
    }  # fmt: skip


def test_frames_first_spectra_of_any_length_are_exported(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor, tmp_path: Path
) -> None:
    """Wav2Vec2-BERT takes (batch, frames, 160), and no window of its own length."""
    audio = ENCODER | {"model_type": "wav2vec2-bert", "num_hidden_layers": 1}
    model = make_model(audio_config=audio, text_config=BERT)
    shapes = input_shapes(model)
    assert shapes["input_values"] == ("batch", "frames", 160)
    assert shapes["audio_attention_mask"] == ("batch", "frames")
    path = tmp_path / "mtmm.pt2"
    assert export_module.export(model, tiny_processor, path) < 1e-4
    spectra = torch.randn(1, 130, 160)
    given = {"input_values": spectra, "audio_attention_mask": torch.ones(1, 130, dtype=torch.long)}
    with torch.no_grad():
        expected = model(**given).emotion_logits
    found = ExportedModel(path)(**given).emotion_logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_references_are_inputs(exported_pipe: MTMMPipeline, exported_folder: Path) -> None:
    """Of each utterance its own; what is left out, or NaN, is the model's own."""
    model, runtime = exported_pipe.model, ExportedModel(exported_folder / "model.onnx")
    shape = model.fusion.reference_mean.shape
    names = ["reference_mean", "reference_deviation"]
    assert [each.name for each in runtime.session.get_inputs()] == [*INPUTS, *names]
    assert runtime.session.get_inputs()[-1].shape == ["batch", *shape]
    sounds, texts = [noise(0.9), noise(0.4)], ["so it is", "no"]
    inputs = dict(exported_pipe.processor(audio=sounds, text=texts, sampling_rate=RATE))
    states, mask = model.encode_audio(inputs["input_values"], inputs["audio_attention_mask"])
    answers = torch.full((2, len(model.config.output_names) + 3), 0.1)
    one = Reference.of_states(states, mask, answers, 1.0, "e")
    given = model.standardisation(speaker=one)
    own = of_model(model, inputs)
    moved = of_model(model, inputs | given)
    assert (moved[0] - own[0]).abs().max() > 1e-3

    def run(**more: Tensor) -> dict[str, Tensor]:
        found = runtime.run(**inputs, **more)
        return {name: found[name] for name in NAMES}

    assert_equal(run(), own)
    assert_equal(run(**given), moved)
    mixed = {name: value.repeat(2, 1, 1) for name, value in given.items()}
    for value in mixed.values():
        value[0] = torch.nan
    assert_equal(run(**mixed), [torch.cat([a[:1], b[1:]]) for a, b in zip(own, moved, strict=True)])
    logits = runtime(**inputs, **given).emotion_logits
    torch.testing.assert_close(logits, moved[0], atol=2e-5, rtol=0)


def test_command_prints_size_and_difference(exported: Exported) -> None:
    assert (
        f"{exported.path.parent}: {exported.path.stat().st_size / 1e6:.1f} MB" in exported.printed
    )
    difference = float(exported.printed.split("by ")[1].split()[0])
    assert 0 < difference < 1e-4
    files = ["arrays.safetensors", "export.json", "manifest.json", "model.onnx", "model.onnx.data"]
    found = sorted(file.name for file in exported.path.parent.iterdir())
    assert found == [*files, "tokenizer.json"]


def test_file_names_no_folder_of_this_machine(exported: Exported) -> None:
    content = exported.path.read_bytes()
    for module in (export_module, torch, onnx):
        assert str(Path(str(module.__file__)).parent).encode() not in content


@pytest.mark.parametrize("exported", ["whisper-bert"], indirect=True)
def test_program_of_torch_export_equals_model(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "trace", lambda *args: exported.program)
    path = tmp_path / "mtmm.pt2"
    assert export(exported.model, exported.processor, path) < 1e-4
    runtime = ExportedModel(path)
    assert runtime.metadata == ExportedModel(exported.path).metadata
    for samples, tokens in (([3000], [5]), ([4000, 1500, 2222], [3, 17, 9])):
        inputs = make_batch(exported, samples, tokens)
        assert_equal(runtime.run(**inputs), of_model(exported.model, inputs))
    del inputs["input_values"], inputs["audio_attention_mask"]
    assert_equal(runtime.run(**inputs), of_model(exported.model, inputs))
    assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()


def test_int8_keeps_matrices_in_8_bits_and_answers_nearly_the_same(
    exported: Exported, tmp_path: Path
) -> None:
    source, target = tmp_path / "float32.onnx", tmp_path / "int8.onnx"
    source.write_bytes(exported.path.read_bytes())
    quantise(source, target)
    weights = {
        name: {
            each.name: each.data_type
            for each in onnx.load(path).graph.initializer
            if np.prod(each.dims) >= 32 * 32 and len(each.dims) == 2
        }
        for name, path in (("float32", source), ("int8", target))
    }
    assert onnx.TensorProto.FLOAT in weights["float32"].values()
    kept = [kind for kind in weights["int8"].values() if kind == onnx.TensorProto.FLOAT]
    assert len(kept) == 1 < len(weights["int8"])  # the acoustic layer's second feed-forward matrix
    runtime = ExportedModel(target)
    assert runtime.metadata == ExportedModel(exported.path).metadata
    inputs = make_batch(exported, [4000, 1500, 2222], [3, 17, 9])
    found, expected = runtime.run(**inputs), of_model(exported.model, inputs)
    assert_equal(found, expected, atol=0.3)
    with pytest.raises(AssertionError):
        assert_equal(found, expected)


@pytest.mark.parametrize("exported", ["whisper-bert"], indirect=True)
def test_int8_of_a_model_with_weights_beside_it(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "trace", lambda *args: exported.program)
    monkeypatch.setattr("torch.onnx.export", lambda *args, **options: exported.converted)
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    monkeypatch.setattr(export_module, "PROTOBUF_LIMIT", 10_000)  # as if it were 2 GB
    path = tmp_path / "mtmm.onnx"
    assert export(exported.model, exported.processor, path, "int8") < 1e-4
    assert {file.name for file in tmp_path.iterdir()} == {"mtmm.onnx", "mtmm.onnx.data"}
    locations = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"mtmm.onnx.data"}
    inputs = make_batch(exported, [4000, 1500, 2222], [3, 17, 9])
    found, expected = ExportedModel(path).run(**inputs), of_model(exported.model, inputs)
    assert_equal(found, expected, atol=0.3)


@pytest.mark.parametrize("exported", ["whisper-bert"], indirect=True)
def test_int8_that_gives_nan_is_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Path, target: Path) -> None:
        graph = onnx.load(source)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("emotion_head.projection.bias"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.nan, "f"), tensor.name))
        onnx.save(graph, target)

    write_exported(exported, monkeypatch)
    monkeypatch.setitem(export_module.SMALLER, "int8", broken)
    with pytest.raises(ValueError, match="NaN in int8"):
        export(exported.model, exported.processor, tmp_path / "mtmm.onnx", "int8")


def test_export_that_differs_is_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy.deepcopy(exported.model)
    with torch.no_grad():
        other.emotion_head.projection.bias.add_(1e-3)
    write_exported(exported, monkeypatch)
    with pytest.raises(ValueError, match=r"0\.001"):
        export(other, exported.processor, tmp_path / "mtmm.onnx")


def test_distances_in_millions_are_compared_by_their_digits(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor
) -> None:
    """A model that was trained on one sentence is as far from any other."""
    model = make_model().eval()
    said = torch.randn(1, 32).expand(20, -1)
    model.add_familiarity().fit("text", said)

    class Shifted:
        def run(self, **batch: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                distances = model(**batch).unfamiliarity
            assert (distances[:, 1].nan_to_num(1e4) > 1000).all()
            return {"unfamiliarity": distances * 1.001}

    shifted: Any = Shifted()
    assert largest_difference(model, tiny_processor, shifted) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_program_on_a_full_disk_is_an_error(exported: Exported, tmp_path: Path) -> None:
    """torch's own writer of files ends the process."""
    path = tmp_path / "m.pt2"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        export_module._write(exported.program, {}, path)


def test_failed_export_leaves_the_older_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("older", "newer"):
        with appearing(out, "manifest.json") as staged:
            staged.mkdir()
            (staged / "manifest.json").write_text(name)
    assert (out / "manifest.json").read_text() == "newer"
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=str(out)), appearing(out, "manifest.json") as staged:
        staged.mkdir()
        raise full
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "manifest.json"]
    assert (out / "manifest.json").read_text() == "newer"


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(FileExistsError, match=str(tmp_path)), appearing(tmp_path, "manifest.json"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_leavings_of_a_killed_export_are_swept(tmp_path: Path) -> None:
    left = tmp_path / ".m.pt2.abc.tmp"
    left.mkdir()
    (left / "m.pt2").write_bytes(b"half")
    os.utime(left, (0, 0))
    with appearing(tmp_path / "m.pt2", "manifest.json") as staged:
        staged.write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["m.pt2"]


# ---- what an export costs ----------------------------------------------------------------------


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(8):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, generator.uniform(-0.5, 0.5, 3000), 16000)
        found.append(
            Utterance(
                utterance_id=path.name, corpus="c", speaker_id="s", audio=str(path),
                text=f"so {number * 'o'}", arousal=1 + number / 2,
                emotion=("angry", "happy", "sad", "neutral")[number % 4],
            )
        )  # fmt: skip
    return found


def test_measure_scores_both_on_the_test_split(
    utterances: list[Utterance],
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
) -> None:
    model = make_model(temperature=TEMPERATURE, trained_outputs=["emotion", "arousal"])
    shifted: Any = copy.deepcopy(model)  # in the place of an exported model
    with torch.no_grad():
        shifted.emotion_head.projection.bias[0] += 3
    measured = measure(model, tiny_processor, shifted, utterances)
    assert list(measured) == ["UAR", "largest change of a probability", "CCC arousal"]
    logits = []
    for utterance in utterances:
        waveform, _ = soundfile.read(utterance.audio, dtype="float32")
        inputs = tiny_processor(audio=waveform, text=utterance.text, sampling_rate=16000)
        logits.append(of_model(model, dict(inputs))[0][0].numpy())
    before, after = np.stack(logits), np.stack(logits) + [3.0, 0.0, 0.0, 0.0]
    labels = [0, 1, 2, 3] * 2
    recalls = [recall_score(labels, x.argmax(-1), average="macro") for x in (before, after)]
    assert measured["UAR"] == pytest.approx(recalls)
    p, q = softmax(before / TEMPERATURE, axis=-1), softmax(after / TEMPERATURE, axis=-1)
    assert measured["largest change of a probability"][1] == pytest.approx(
        abs(p - q).max(), abs=1e-4
    )
    assert measured["CCC arousal"][0] == measured["CCC arousal"][1]


@pytest.mark.parametrize("exported", ["whisper-bert"], indirect=True)
def test_command_prints_what_8_bits_cost(
    exported: Exported,
    utterances: list[Utterance],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_exported(exported, monkeypatch)
    run = SimpleNamespace(test_utterances=lambda: utterances)
    monkeypatch.setattr(Run, "open", {"out/run": run}.get)
    folder, path = exported.path.parents[1] / "model", tmp_path / "int8" / "model.onnx"
    words = ["export", str(folder), str(path.parent), "--precision", "int8", "--run", "out/run"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"int8: {path.stat().st_size / 1e6:.1f} MB" in printed
    assert f"{len(utterances)} test utterances" in printed
    rows = {line[:34].strip(): line[34:].split(" ->") for line in printed.splitlines()[-3:]}
    measured = measure(exported.model, exported.processor, ExportedModel(path), utterances)
    assert list(rows) == list(measured) == ["UAR", "largest change of a probability", "CCC arousal"]
    for name, pair in measured.items():
        assert list(map(float, rows[name])) == pytest.approx(pair, abs=1e-4)
    assert 0 < measured["largest change of a probability"][1] < 0.1
    assert measured["CCC arousal"][0] != measured["CCC arousal"][1]


def test_run_without_results_fails_before_exporting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        folder_module.export_model("no model", tmp_path / "out", run=tmp_path)


def test_exporting_needs_no_training_extra() -> None:
    code = """
import sys
for name in ("accelerate", "datasets", "evaluate", "peft", "sklearn", "scipy", "pandas", "matplotlib"):
    sys.modules[name] = None
from mtmm_training.commands.cli import main
import mtmm_training.publishing.folder
sys.exit(main(["export", "model", "out", "--run", "run"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "[train]" in done.stderr, done.stderr
