"""What is saved loads in a process that never saw this checkout, with the same numbers.

Two isolated processes serve all tests: the first loads a saved folder, deletes it and saves what it
has, the second loads that and the models made from encoders that lie on disk as on the Hub.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHECKOUT, HUB_FILES, TRAINED, WHISPER, audio
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    DebertaV2Tokenizer,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from configuration_mtmm import AUTO_MAP, MTMMConfig
from modeling_mtmm import MTMMModel
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

TEXT = "so you ﬁnally won, well done!"
SENTENCES = [
    "i am so happy that you came to see us",
    "leave me alone, i do not want to talk about it",
    "the kids are talking by the door",
    "dogs are sitting by the door again",
    "well done, you finally won the whole thing!",
    "what a sad and lonely day it was",
]

ISOLATED = """
import json, shutil, sys
job = json.loads(sys.argv[1])
for file in job["hub_files"]:  # an editable install finds the checkout even with -I
    sys.modules[file.removesuffix(".py")] = None
sys.modules["mtmm_training"] = None
import numpy as np, torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForAudioClassification, AutoProcessor, pipeline,
)
torch.set_num_threads(1)
audio, results = np.load(job["audio"]), {}
trust = {"trust_remote_code": True}
for folder in job["folders"]:
    config = AutoConfig.from_pretrained(folder, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    inputs = processor(audio=[audio, None], text=[job["text"]] * 2, sampling_rate=16000)
    result = {"config": config.to_dict(), "classes": [type(config).__name__, type(processor).__name__]}
    for auto in (AutoModel, AutoModelForAudioClassification):
        model, info = auto.from_pretrained(folder, output_loading_info=True, **trust)
        with torch.no_grad():
            output = model(**inputs)
        result[auto.__name__] = [output.emotion_logits.tolist(), output.dimensions.tolist()]
        result["classes"].append(type(model).__name__)
        result["loading"] = [len(info[key]) for key in ("missing_keys", "unexpected_keys")]
        result["dtypes"] = sorted({str(p.dtype) for p in model.parameters()})
        result["frozen"] = not any(p.requires_grad for p in model.audio_model.parameters())
    predict = pipeline(model=folder, **trust)
    result["classes"].append(type(predict).__name__)
    utterance = {"audio": {"array": audio, "sampling_rate": 16000}, "text": job["text"]}
    result["pipeline"] = predict(utterance)
    results[folder] = result
    if folder in job["save"]:
        shutil.rmtree(folder)
        model.save_pretrained(job["save"][folder][0])
        processor.save_pretrained(job["save"][folder][0])
        predict.save_pretrained(job["save"][folder][1])
results["files"] = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
json.dump(results, open(job["results"], "w"))
"""


def run_isolated(
    work: Path, name: str, folders: list[Path], save: dict[Path, tuple[Path, ...]] | None = None
) -> dict[str, Any]:
    """Load the folders in a new process outside the checkout; what it saw, by folder."""
    outside = work / name
    outside.mkdir()
    job = {
        "audio": str(work / "audio.npy"),
        "text": TEXT,
        "hub_files": HUB_FILES,
        "folders": [str(folder) for folder in folders],
        "save": {str(key): [str(path) for path in paths] for key, paths in (save or {}).items()},
        "results": str(outside / "results.json"),
    }
    environment = os.environ | {"HF_HOME": str(outside / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ISOLATED, json.dumps(job)],
        cwd=outside,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((outside / "results.json").read_text())
    venv = str(Path(sys.prefix))
    ours = [f for f in results.pop("files") if f.startswith(str(CHECKOUT)) and venv not in f]
    assert not ours, f"the isolated process imported {ours} from the checkout"
    return results


def numbers(model: MTMMModel, processor: MTMMProcessor, heard: np.ndarray) -> list[torch.Tensor]:
    """Of the utterance with audio and text, and of the text alone."""
    inputs = processor(audio=[heard, None], text=[TEXT, TEXT], sampling_rate=16000)
    with torch.no_grad():
        output = model.eval()(**inputs)
    assert (output.emotion_logits[0] - output.emotion_logits[1]).abs().max() > 1e-4
    return [output.emotion_logits, output.dimensions]


def make_influential(model: MTMMModel) -> None:
    """New weights so large that a wrong one would show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (model.fusion, model.emotion_head, model.dimension_head):
            for name, parameter in part.named_parameters():
                parameter.normal_(mean=float("norm.weight" in name), std=0.2)


def save_audio_as_on_hub(folder: Path) -> torch.nn.Module:
    """A HuBERT in float16 as `pytorch_model.bin`, weight norm under its old names."""
    torch.manual_seed(2)
    encoder = AutoModel.from_config(MTMMConfig.tiny().audio_config).half()
    encoder.config.save_pretrained(folder)
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in encoder.state_dict().items()
    }
    torch.save(renamed, folder / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    assert (folder / "preprocessor_config.json").is_file()
    return encoder


def save_text_as_on_hub(folder: Path) -> torch.nn.Module:
    """A DeBERTa-v3 in float16, its tokenizer an `spm.model` without tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the train extra is not installed")
    torch.manual_seed(3)
    encoder = AutoModel.from_config(MTMMConfig.tiny().text_config).half()
    encoder.config.save_pretrained(folder)
    weights = {f"deberta.{name}": value for name, value in encoder.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "spm"),
        vocab_size=70,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    (folder / "spm.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    return encoder


@dataclass
class Hub:
    """The folders, what was predicted here and what the isolated processes predicted."""

    work: Path
    here: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    there: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, MTMMModel] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
) -> Hub:
    work = tmp_path_factory.mktemp("private_folder")
    hub = Hub(work)
    heard = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    np.save(work / "audio.npy", heard)

    def add(name: str, model: MTMMModel, processor: MTMMProcessor) -> None:
        hub.models[name] = model
        hub.here[name] = numbers(model, processor, heard)
        model.save_pretrained(work / name)
        processor.save_pretrained(work / name)

    model = make_model(encoder_layers="weighted", trained_outputs=TRAINED, temperature=1.3)
    add("tiny", model, tiny_processor)
    utterance = {"audio": audio(heard), "text": TEXT}
    hub.extras["prediction"] = MTMMPipeline(model=model, processor=tiny_processor)(utterance)
    shutil.copytree(work / "tiny", work / "tiny_as_saved")

    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    hub.extras["audio"] = save_audio_as_on_hub(work / "hubert")
    hub.extras["text"] = save_text_as_on_hub(work / "deberta")
    folders = str(work / "hubert"), str(work / "deberta")
    model = MTMMModel.from_encoders_pretrained(*folders, trained_outputs=TRAINED, **sizes)
    make_influential(model)
    hub.extras["processor"] = MTMMProcessor.from_encoders_pretrained(*folders)
    add("pair", model, hub.extras["processor"])

    save_whisper(work / "whisper")
    folders = str(work / "whisper"), str(work / "deberta")
    model = MTMMModel.from_encoders_pretrained(*folders, trained_outputs=TRAINED, **sizes)
    make_influential(model)
    add("whisper_pair", model, MTMMProcessor.from_encoders_pretrained(*folders))

    tiny, again, from_pipeline = work / "tiny", work / "again", work / "from_pipeline"
    hub.there |= run_isolated(work, "first", [tiny], {tiny: (again, from_pipeline)})
    assert not tiny.exists()
    for folder in ("hubert", "deberta", "whisper"):  # what was saved needs none of these
        shutil.move(work / folder, work / f"moved_{folder}")
    saved = [again, from_pipeline, work / "pair", work / "whisper_pair"]
    hub.there |= run_isolated(work, "second", saved)
    hub.there = {Path(folder).name: result for folder, result in hub.there.items()}
    return hub


def save_whisper(folder: Path) -> None:
    torch.manual_seed(4)
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    tokens |= {"decoder_start_token_id": 0, "vocab_size": 8}
    WhisperModel(WhisperConfig.from_dict(WHISPER | tokens)).half().save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=20, chunk_length=1).save_pretrained(folder)


SAVED = {  # folder: the model it holds
    "tiny": "tiny",
    "again": "tiny",
    "from_pipeline": "tiny",
    "pair": "pair",
    "whisper_pair": "whisper_pair",
}


@pytest.mark.parametrize("folder", SAVED)
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForAudioClassification"])
def test_isolated_process_predicts_the_same(hub: Hub, folder: str, auto: str) -> None:
    for expected, got in zip(hub.here[SAVED[folder]], hub.there[folder][auto], strict=True):
        torch.testing.assert_close(torch.tensor(got), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", SAVED)
def test_isolated_process_loads_our_classes(hub: Hub, folder: str) -> None:
    result, here = hub.there[folder], hub.extras["prediction"]
    models = ["MTMMModel", "MTMMModel"]
    assert result["classes"] == ["MTMMConfig", "MTMMProcessor", *models, "MTMMPipeline"]
    assert result["loading"] == [0, 0]
    assert result["dtypes"] == ["torch.float32"]
    assert result["frozen"]
    assert result["config"]["trained_outputs"] == list(TRAINED)
    if SAVED[folder] == "tiny":
        there = result["pipeline"]
        assert there.keys() == here.keys() and there["emotion"] == here["emotion"]
        assert there["scores"] == pytest.approx(here["scores"], abs=1e-5)
        for name in ("valence", "arousal"):
            assert there[name] == pytest.approx(here[name], abs=1e-5)


@pytest.mark.parametrize("folder", ["tiny_as_saved", "again", "from_pipeline", "pair"])
def test_saved_folder_has_hub_files_and_no_private_path(hub: Hub, folder: str) -> None:
    """Also one saved from a model whose own folder is gone, far from any checkout."""
    path = hub.work / folder
    assert {file.name for file in path.glob("*.py")} == set(HUB_FILES)
    for name in HUB_FILES:
        assert (path / name).read_bytes() == (CHECKOUT / name).read_bytes(), name
    config = json.loads((path / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["custom_pipelines"].keys() == {"speech-emotion-recognition"}
    private = [hub.work.name, str(CHECKOUT), str(Path.home()), "transformers_modules"]
    for file in (file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        found = [word for word in private if len(word) > 1 and word.encode() in content]
        assert not found, f"{file.name} names {found}"


def test_encoders_from_hub_keep_their_weights(hub: Hub) -> None:
    """The old names of weight norm are found: nothing of the encoder is newly made."""
    model = hub.models["pair"]
    pairs = ((model.audio_model, hub.extras["audio"]), (model.text_model, hub.extras["text"]))
    for loaded, source in pairs:
        expected = source.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        for name, value in loaded.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[name].float()), name
    assert any("pos_conv_embed" in name for name in model.audio_model.state_dict())


def test_saved_weights_are_float32_without_decoder(hub: Hub) -> None:
    for name in ("pair", "whisper_pair"):
        weights = load_file(hub.work / name / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert not any("decoder" in key for key in weights)
        assert weights.keys() == hub.models[name].state_dict().keys()


def test_spm_tokenizer_is_saved_complete(hub: Hub) -> None:
    """Loading what was saved needs neither sentencepiece nor the spm.model."""
    tokenizer = hub.extras["processor"].tokenizer
    assert isinstance(tokenizer, DebertaV2Tokenizer)
    assert not (hub.work / "moved_deberta" / "tokenizer.json").exists()
    again = MTMMProcessor.from_pretrained(hub.work / "pair")
    for text in (TEXT, *SENTENCES):
        ids = hub.extras["processor"](text=text)["input_ids"]
        assert torch.equal(again(text=text)["input_ids"], ids)
        assert (ids == tokenizer.unk_token_id).sum() == 0, text  # NFKC makes ﬁ two letters
    assert again.max_tokens == hub.extras["processor"].max_tokens == 64
    assert again.min_duration_s == hub.extras["processor"].min_duration_s == 105 / 16000
