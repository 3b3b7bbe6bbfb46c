"""A heads-only model: composed of two named encoders, from the Hub or from folders, with equal numbers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from conftest import HUB_FILES, TRAINED, audio
from hub_server import WRITER, HubServer, files_in, run_python
from safetensors.torch import load_file, save_file
from test_hub_roundtrip import TEXT, make_influential, save_whisper
from transformers import AutoModel

from composing_mtmm import LOCAL_ENCODERS
from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from processing_mtmm import MTMMProcessor

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
IDS = {"audio": "lab/audio", "text": "lab/text"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_processor: MTMMProcessor) -> Path:
    """audio/ and text/ as on the Hub, whole/ and heads/ of one model, audio.npy; a window of 1 s."""
    work = tmp_path_factory.mktemp("heads")
    save_whisper(work / "audio")  # 50 positions, of which 1 s takes all
    torch.manual_seed(5)
    AutoModel.from_config(MTMMConfig.tiny().text_config).half().save_pretrained(work / "text")
    tiny_processor.tokenizer.save_pretrained(work / "text")
    folders = str(work / "audio"), str(work / "text")
    model = MTMMModel.from_encoders_pretrained(*folders, trained_outputs=TRAINED, **SIZES)
    make_influential(model)
    with torch.no_grad():  # as they are saved
        for name, value in model.named_parameters():
            if not name.startswith(("audio_model", "text_model")):
                value.copy_(value.half())
    processor = MTMMProcessor.from_encoders_pretrained(*folders)
    for folder, heads in (("whole", False), ("heads", True)):
        model.save_pretrained(work / folder, heads_only=heads, encoders=IDS if heads else None)
        processor.save_pretrained(work / folder, heads_only=heads)
    np.save(work / "audio.npy", np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32))
    return work


@pytest.fixture
def local(work: Path) -> dict[str, str]:
    return {name: str(work / name) for name in IDS}


def says(model: MTMMModel, processor: MTMMProcessor, work: Path) -> torch.Tensor:
    inputs = processor(audio=audio(np.load(work / "audio.npy")), text=TEXT)
    with torch.no_grad():
        return model.eval()(**inputs).emotion_logits


def test_heads_hold_no_encoder(work: Path) -> None:
    assert {p.name for p in (work / "heads").iterdir()} == {
        *HUB_FILES, "config.json", "model.safetensors", "processor_config.json",
    }  # fmt: skip
    weights = load_file(work / "heads" / "model.safetensors")
    assert not any(name.startswith(("audio_model.", "text_model.")) for name in weights)
    halves = {n for n, value in weights.items() if value.dtype == torch.float16}
    assert "emotion_head.projection.weight" in halves
    assert not any("reference_" in name or "fingerprint" in name for name in halves)
    whole = json.loads((work / "whole" / "config.json").read_text())
    assert whole.get("encoder_sources") is None


@pytest.mark.parametrize("by_variable", [False, True])
def test_composed_of_folders_it_answers_alike(
    work: Path, local: dict[str, str], by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {} if by_variable else {"encoders": local}
    for name, variable in LOCAL_ENCODERS.items():
        if by_variable:
            monkeypatch.setenv(variable, local[name])
    model = MTMMModel.from_pretrained(work / "heads", **given)
    processor = MTMMProcessor.from_pretrained(work / "heads", **given)
    whole = MTMMModel.from_pretrained(work / "whole")
    expected = says(whole, MTMMProcessor.from_pretrained(work / "whole"), work)
    torch.testing.assert_close(says(model, processor, work), expected, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for p in model.audio_model.parameters())
    assert model.config.trained_outputs == TRAINED
    model.save_pretrained(work / "again")  # whole, and needs no encoder any more
    assert torch.equal(says(MTMMModel.from_pretrained(work / "again"), processor, work), expected)


def test_options_of_loading_hold(work: Path, local: dict[str, str]) -> None:
    folder = work / "heads"
    half = MTMMModel.from_pretrained(folder, encoders=local, dtype=torch.bfloat16)
    assert {p.dtype for p in half.text_model.parameters()} == {torch.bfloat16}
    placed = MTMMModel.from_pretrained(folder, encoders=local, device_map="auto")
    processor = MTMMProcessor.from_pretrained(folder, encoders=local)
    expected = says(MTMMModel.from_pretrained(work / "whole"), processor, work)
    torch.testing.assert_close(says(placed, processor, work), expected, atol=1e-6, rtol=0)
    state = load_file(folder / "model.safetensors")
    state["emotion_head.projection.bias"] += 1
    moved = MTMMModel.from_pretrained(folder, encoders=local, state_dict=state)
    torch.testing.assert_close(says(moved, processor, work), expected + 1, atol=2e-3, rtol=0)
    told: Any = MTMMModel.from_pretrained(folder, encoders=local, output_loading_info=True)
    found = told[1]
    assert not found["missing_keys"] and not found["unexpected_keys"]
    new: dict[str, Any] = {"id2label": {0: "a", 1: "b"}, "ignore_mismatched_sizes": True}
    renamed = MTMMModel.from_pretrained(folder, encoders=local, **new)
    assert renamed.config.trained_outputs == ("valence", "arousal")
    whole = work / "whole"
    with pytest.raises(ValueError, match="encoders"):
        MTMMModel.from_pretrained(whole, encoders=local)


def test_adapter_on_heads_only_model(work: Path, local: dict[str, str], tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=2, target_modules=["query_proj"], modules_to_save=["emotion_head"])
    model: Any = peft.get_peft_model(
        MTMMModel.from_pretrained(work / "heads", encoders=local), lora
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    model.save_pretrained(str(tmp_path))
    base: Any = MTMMModel.from_pretrained(work / "heads", encoders=local)
    again: Any = peft.PeftModel.from_pretrained(base, str(tmp_path))
    processor = MTMMProcessor.from_pretrained(work / "heads", encoders=local)
    assert torch.equal(says(again, processor, work), says(model, processor, work))


@pytest.mark.parametrize("modality", IDS)
def test_other_encoder_is_refused(
    work: Path, local: dict[str, str], modality: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(work / modality, other)
    weights = load_file(other / "model.safetensors")
    of_query = ("q_proj.weight", "query_proj.weight")
    name = next(n for n in weights if "encoder.layer" in n and n.endswith(of_query))
    exact = weights[name].float()
    full = {n: value.float() * (1 + 2**-12) for n, value in weights.items()}  # rounding to half
    save_file(full, other / "model.safetensors", metadata={"format": "pt"})
    MTMMModel.from_pretrained(work / "heads", encoders=local | {modality: str(other)})
    weights[name] = (exact + 0.003 * torch.randn_like(exact)).half()  # a little training
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{modality} encoder .* 1 of its"):
        MTMMModel.from_pretrained(work / "heads", encoders=local | {modality: str(other)})


def test_missing_encoder_and_other_tokenizer_are_refused(
    work: Path, local: dict[str, str], tmp_path: Path
) -> None:
    for gone in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(OSError, match=LOCAL_ENCODERS["audio"]):
            MTMMModel.from_pretrained(work / "heads", encoders=local | {"audio": gone})
    shutil.copytree(work / "audio", tmp_path / "bin")
    weights = load_file(tmp_path / "bin" / "model.safetensors")
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        MTMMModel.from_pretrained(work / "heads", encoders=local | {"audio": str(tmp_path / "bin")})
    shutil.copytree(work / "text", tmp_path / "text")
    file = tmp_path / "text" / "tokenizer.json"
    file.write_text(file.read_text().replace('"a"', '"ä"'))
    with pytest.raises(ValueError, match="tokenizer"):
        MTMMProcessor.from_pretrained(work / "heads", encoders={"text": str(tmp_path / "text")})


def test_trained_encoder_is_not_left_out(work: Path, local: dict[str, str], tmp_path: Path) -> None:
    model = MTMMModel.from_pretrained(work / "heads", encoders=local)
    model.text_model.requires_grad_(True)
    with pytest.raises(ValueError, match="text_model"):
        model.save_pretrained(tmp_path, heads_only=True)
    with pytest.raises(ValueError, match="ids"):
        MTMMModel.from_pretrained(work / "whole").save_pretrained(tmp_path, heads_only=True)


def test_longer_window_is_cut(work: Path, tmp_path: Path, local: dict[str, str]) -> None:
    """An encoder of 1 s under a model of 1 s, as one of 2 s would be that is cut to it."""
    weights = load_file(work / "audio" / "model.safetensors")
    shutil.copytree(work / "audio", tmp_path / "long")
    name = next(n for n in weights if n.endswith("encoder.embed_positions.weight"))
    weights[name] = torch.cat([weights[name], torch.ones_like(weights[name])])
    save_file(weights, tmp_path / "long" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    file = tmp_path / "long" / "config.json"
    file.write_text(json.dumps(config | {"max_source_positions": 100}))
    file = tmp_path / "long" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chunk_length": 2}))
    pair = {"audio": str(tmp_path / "long"), "text": local["text"]}
    both = pair["audio"], pair["text"]
    expected = says(
        MTMMModel.from_pretrained(work / "heads", encoders=local),
        MTMMProcessor.from_pretrained(work / "heads", encoders=local),
        work,
    )
    composed = MTMMModel.from_pretrained(work / "heads", encoders=pair)
    processor = MTMMProcessor.from_encoders_pretrained(*both, audio_window_s=1)
    assert processor.longest_audio_s() == 1
    assert torch.equal(says(composed, processor, work), expected)
    trained = MTMMModel.from_encoders_pretrained(*both, audio_window_s=1, **SIZES)
    state = trained.audio_model.state_dict()
    assert all(torch.equal(v, composed.audio_model.state_dict()[n]) for n, v in state.items())
    with pytest.raises(ValueError, match="100 positions"):
        MTMMModel.from_encoders_pretrained(*both, audio_window_s=3, **SIZES)


FROM_HUB = """
import json, sys, numpy as np
from transformers import AutoModel, AutoProcessor, pipeline
name, path, again = sys.argv[1:]
trust = {"trust_remote_code": True}
audio = {"array": np.load(path), "sampling_rate": 16000}
predict = pipeline(model=name, **trust)
model, processor = AutoModel.from_pretrained(name, **trust), AutoProcessor.from_pretrained(name, **trust)
logits = model(**processor(audio=audio, text=%r)).emotion_logits.tolist()
model.save_pretrained(again, heads_only=True)
print("FOUND " + json.dumps([logits, predict({"audio": audio, "text": "no"}), model.config.encoder_sources]))
"""


@pytest.fixture
def hub(work: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        for name, repo in IDS.items():
            server.put(repo, files_in(work / name))
        server.put("writer/heads", files_in(work / "heads"), private=True)
        yield server


def test_isolated_process_composes_it_from_hub(hub: HubServer, work: Path, tmp_path: Path) -> None:
    """With a token, then from the cache alone."""
    arguments = "writer/heads", str(work / "audio.npy"), str(tmp_path / "again")
    code, home = FROM_HUB % TEXT, tmp_path / "home"
    environment = hub.environment(home, WRITER)
    process = run_python(code, *arguments, environment=environment, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    logits, answer, sources = json.loads(process.stdout.rpartition("FOUND ")[2])
    whole = MTMMModel.from_pretrained(work / "whole")
    expected = says(whole, MTMMProcessor.from_pretrained(work / "whole"), work)
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=0)
    assert set(answer["scores"]) == {"angry", "happy", "sad", "neutral"}
    commits = {name: hub.repos[name].branches["main"] for name in IDS.values()}
    assert {source["id"]: source["revision"] for source in sources.values()} == commits
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["encoder_sources"] == sources  # pinned from now on
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    process = run_python(code, *arguments, environment=offline, cwd=tmp_path)
    assert f"FOUND [{logits}" in process.stdout, process.stderr[-3000:]
