"""The life of a checkpoint: trained, published, loaded by everyone, trained on, published again.

Everything goes through the real client to a Hub on the loopback. Few processes serve many tests, as
each takes seconds to start: their fixtures return what they printed as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from conftest import CHECKOUT, HUB_FILES
from hub_server import RECIPE, HubServer, files_in, run_python, trained_run
from safetensors.torch import load, load_file, save

from configuration_mtmm import AUTO_MAP
from modeling_mtmm import MTMMModel
from processing_mtmm import MTMMProcessor

COMPLETE = {"config.json", "model.safetensors", "processor_config.json", *HUB_FILES}
COMPLETE |= {"tokenizer.json", "tokenizer_config.json"}
REPO = "writer/mtmm"

# Begins every isolated process: one fixed input, what a model says of it, and what an error says.
PRELUDE = """
import json, os
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoProcessor
from transformers import pipeline
from transformers.utils import logging
logging.set_verbosity_error()
logging.disable_progress_bar()
NOISE = np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32)
AUDIO = {"array": NOISE, "sampling_rate": 16000}
INPUT = {"audio": AUDIO, "text": "so you won"}

def outputs(model, processor):
    with torch.no_grad():
        output = model(**processor(audio=AUDIO, text=INPUT["text"]))
    return output.emotion_logits[0].tolist() + output.dimensions[0].tolist()

def message(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"

def tell(**found):
    print("FOUND " + json.dumps(found))
"""


class Scene:
    """The Hub, what is on it, and how to run a process that sees nothing else."""

    def __init__(self, hub: HubServer, run: Path, home: Path) -> None:
        self.hub, self.run, self.home = hub, run, home
        self.model = MTMMModel.from_pretrained(run / "model").eval()
        self.processor = MTMMProcessor.from_pretrained(run / "model", trust_remote_code=False)
        self.files = files_in(run / "model")

    def isolated(
        self, code: str, *arguments: str, home: str = "home", **environment: str
    ) -> dict[str, Any]:
        (self.home / home).mkdir(exist_ok=True)
        process = run_python(
            PRELUDE + code,
            *arguments,
            environment=self.hub.environment(self.home / home, **environment),
            cwd=self.home,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(process.stdout.rpartition("FOUND ")[2])

    def outputs(self, model: torch.nn.Module | None = None) -> list[float]:
        """What this process's model says of the isolated processes' input."""
        noise = np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32)
        features = self.processor(audio=noise, text="so you won", sampling_rate=16000)
        with torch.no_grad():
            output = (model or self.model)(**features)
        return output.emotion_logits[0].tolist() + output.dimensions[0].tolist()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    run = trained_run(tmp_path_factory.getbasetemp())
    with HubServer() as hub:
        scene = Scene(hub, run, tmp_path_factory.mktemp("life"))
        hub.put(REPO, scene.files)
        yield scene


def changed(files: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, torch.Tensor]]:
    """The same repository with other weights, and these."""
    weights = load(files["model.safetensors"])
    weights["dimension_head.projection.bias"] = torch.tensor([0.7, -0.9])
    return files | {"model.safetensors": save(weights, metadata={"format": "pt"})}, weights


# ---- load ----------------------------------------------------------------------------------------

LOAD = """
found = {}
for revision in (None, *sys.argv[1:]):
    known = {} if revision is None else {"revision": revision}
    model = AutoModel.from_pretrained(REPO, trust_remote_code=True, **known)
    processor = AutoProcessor.from_pretrained(REPO, trust_remote_code=True, **known)
    found[str(revision)] = outputs(model, processor)
predict = pipeline(model=REPO, trust_remote_code=True)
head = AutoModelForAudioClassification.from_pretrained(REPO, trust_remote_code=True)
tell(
    by_revision=found,
    named=predict(INPUT),
    classes=[type(model).__module__, type(head).__name__, type(predict).__name__],
    config=AutoConfig.from_pretrained(REPO, trust_remote_code=True).to_dict(),
)
""".replace("REPO", f'"{REPO}"')


@pytest.fixture(scope="module")
def loaded(scene: Scene) -> dict[str, Any]:
    """Loaded by id, branch, tag and commit: four versions that differ in their weights."""
    repo = scene.hub.repos[REPO]
    first = repo.branches["main"]
    repo.tags["v1"] = first
    files, weights = changed(scene.files)
    repo.branches["next"] = repo.commit(files, "next")
    found = scene.isolated(LOAD, "next", "v1", first)
    found["commit"], found["next"] = first, weights
    return found


def test_repository_loads_by_every_revision(scene: Scene, loaded: dict[str, Any]) -> None:
    trained = scene.outputs()
    for revision in ("None", "v1", loaded["commit"]):
        assert loaded["by_revision"][revision] == pytest.approx(trained, abs=1e-5)
    other = MTMMModel.from_pretrained(scene.run / "model").eval()
    other.load_state_dict(loaded["next"], strict=False)
    assert loaded["by_revision"]["next"] == pytest.approx(scene.outputs(other), abs=1e-5)
    assert loaded["by_revision"]["next"] != pytest.approx(trained, abs=1e-2)
    module, *names = loaded["classes"]
    assert module.startswith("transformers_modules.writer.mtmm.")
    assert names == ["MTMMModel", "MTMMPipeline"]
    named, config = loaded["named"], scene.model.config
    scores = (torch.tensor(trained[:4]) / config.temperature).softmax(-1).tolist()
    expected = dict(zip(config.id2label.values(), scores, strict=True))
    assert named["scores"] == pytest.approx(expected, abs=1e-5)
    assert [named["valence"], named["arousal"]] == pytest.approx(trained[4:], abs=1e-5)


def test_second_load_needs_no_hub(scene: Scene, loaded: dict[str, Any]) -> None:
    asked = len(scene.hub.requests)
    found = scene.isolated(LOAD, "v1", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert len(scene.hub.requests) == asked
    for revision in ("None", "v1"):
        assert found["by_revision"][revision] == loaded["by_revision"][revision]
    assert found["named"] == loaded["named"]


# ---- every way to load -------------------------------------------------------------------------

WAYS = """
full = dict(pretrained_model_name_or_path=REPO, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(REPO, trust_remote_code=True)
ways = {
    "dtype_auto": {"dtype": "auto"},
    "device_map_auto": {"device_map": "auto"},
    "device_map_cpu": {"device_map": "cpu"},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "eager": {"attn_implementation": "eager"},
    "sdpa": {"attn_implementation": "sdpa"},
    "dict": {"attn_implementation": {"": "eager", "audio_config": "sdpa", "text_config": "eager"}},
    "sharded": {"pretrained_model_name_or_path": "writer/sharded"},
    "adapter": {"pretrained_model_name_or_path": "writer/lora"},
    "bf16_as_float32": {"pretrained_model_name_or_path": "writer/bf16", "dtype": torch.float32},
    "bf16": {"pretrained_model_name_or_path": "writer/bf16", "dtype": "auto"},
    "to_bf16": {"dtype": torch.bfloat16},
}
found, kinds, attention = {}, {}, {}
for name, way in ways.items():
    model = AutoModel.from_pretrained(**(full | way)).eval()
    found[name] = outputs(model, processor)
    kinds[name] = sorted({str(p.dtype) for p in model.parameters()})
    attention[name] = [
        part.config._attn_implementation
        for part in (model, model.audio_model, model.text_model)
    ]
predict = pipeline(model="writer/bf16", trust_remote_code=True)
renamed = AutoModel.from_pretrained(
    **full, id2label={0: "calm", 1: "tense"}, ignore_mismatched_sizes=True
)
fewer = message(lambda: AutoModel.from_pretrained(**full, num_labels=2))
untrusted = message(lambda: AutoModel.from_pretrained(REPO, trust_remote_code=False))
bare = message(lambda: pipeline(model="writer/bare", trust_remote_code=True))
kept = AutoModel.from_pretrained(**full)
tell(
    found=found,
    kinds=kinds,
    attention=attention,
    bf16_pipeline=predict(INPUT),
    renamed=[renamed.config.id2label, list(outputs(renamed, processor))],
    wrong=[fewer, untrusted, bare],
    kept=kept.config.id2label,
)
""".replace("REPO", f'"{REPO}"')


@pytest.fixture(scope="module")
def ways(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process that loads in every way, also from sharded, half-precision and LoRA repositories."""
    folder = tmp_path_factory.mktemp("ways")
    code = {name: scene.files[name] for name in scene.files if name.endswith((".py", ".json"))}

    def put(repo_id: str, model: MTMMModel, **options: Any) -> None:
        model.save_pretrained(folder / repo_id, **options)
        scene.hub.put(f"writer/{repo_id}", code | files_in(folder / repo_id))

    no_processor = {
        name for name in scene.files if not name.startswith(("processor_", "tokenizer"))
    }
    scene.hub.put("writer/bare", {name: scene.files[name] for name in no_processor})
    put("sharded", scene.model, max_shard_size="200KB")
    put("bf16", MTMMModel.from_pretrained(scene.run / "model", dtype=torch.bfloat16))
    lora = peft.LoraConfig(
        target_modules=r".*text_model\.encoder\.layer\.\d+\.attention\.self\.query",
        modules_to_save=["fusion", "emotion_head", "dimension_head"],
    )
    torch.manual_seed(0)
    adapted = peft.get_peft_model(MTMMModel.from_pretrained(scene.run / "model").eval(), lora)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.peft_config["default"].base_model_name_or_path = REPO
    adapted.save_pretrained(
        str(folder / "lora"), save_embedding_layers=False
    )  # else it asks the Hub
    scene.hub.put("writer/lora", files_in(folder / "lora"))
    found = scene.isolated(WAYS)
    found["adapted"] = scene.outputs(adapted)
    found["shards"] = sorted(p.name for p in (folder / "sharded").glob("*.safetensors"))
    return found


@pytest.mark.parametrize(
    "way",
    "dtype_auto device_map_auto device_map_cpu low_cpu_mem_usage eager sdpa dict sharded".split(),
)
def test_every_way_of_loading_agrees(scene: Scene, ways: dict[str, Any], way: str) -> None:
    assert len(ways["shards"]) > 2
    assert ways["found"][way] == pytest.approx(scene.outputs(), abs=1e-5)
    assert ways["kinds"][way] == ["torch.float32"]
    attention = {"eager": ["eager"] * 3, "dict": ["eager", "sdpa", "eager"]}
    assert ways["attention"][way] == attention.get(way, ways["attention"]["sdpa"])


def test_adapter_loads_and_what_is_wrong_is_named(scene: Scene, ways: dict[str, Any]) -> None:
    assert ways["found"]["adapter"] == pytest.approx(ways["adapted"], abs=1e-5)
    assert ways["adapted"] != pytest.approx(scene.outputs(), abs=1e-2)
    named = ("ignore_mismatched_sizes", "trust_remote_code", "processor")
    for message, name in zip(ways["wrong"], named, strict=True):
        assert name in message


@pytest.mark.parametrize("way", ["bf16", "to_bf16"])
def test_half_precision_repository_stays_half(ways: dict[str, Any], way: str, scene: Scene) -> None:
    assert ways["kinds"][way] == ["torch.bfloat16"]
    assert ways["kinds"]["bf16_as_float32"] == ["torch.float32"]
    for name in (way, "bf16_as_float32"):
        assert ways["found"][name] == pytest.approx(scene.outputs(), abs=0.1)
    assert ways["bf16_pipeline"]["valence"] == pytest.approx(scene.outputs()[4], abs=0.1)


def test_labels_change_only_as_asked(scene: Scene, ways: dict[str, Any]) -> None:
    assert list(ways["kept"].values()) == list(scene.model.config.id2label.values())
    names, values = ways["renamed"]
    assert list(names.values()) == ["calm", "tense"] and len(values) == 2 + 2
    assert values[2:] == pytest.approx(scene.outputs()[4:], abs=1e-5)  # the other head is kept


# ---- train on, and publish again ---------------------------------------------------------------

FINE_TUNE = """
from transformers import Trainer, TrainingArguments
model = AutoModel.from_pretrained(
    REPO, trust_remote_code=True, id2label={0: "calm", 1: "tense"}, ignore_mismatched_sizes=True
)
processor = AutoProcessor.from_pretrained(REPO, trust_remote_code=True)
rows = [
    processor(audio=AUDIO, text=text) | {"emotion_labels": torch.tensor(label)}
    for label, text in enumerate(["so you won", "we lost it"])
] * 4
for number, row in enumerate(rows):
    row["dimension_labels"] = torch.tensor([1.0 + number / 2, float("nan")])

def collate(rows):
    batch = processor(audio=[AUDIO] * len(rows), text=["so you won", "we lost it"][: len(rows)])
    batch["emotion_labels"] = torch.stack([row["emotion_labels"] for row in rows])
    batch["dimension_labels"] = torch.stack([row["dimension_labels"] for row in rows])
    return dict(batch)

before = outputs(model.eval(), processor)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "trained", max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to="none", use_cpu=True, disable_tqdm=True,
    ),
    train_dataset=[dict(row) for row in rows],
    data_collator=collate,
    processing_class=processor,
)
trainer.train()
checkpoint = sorted(os.listdir("trained/checkpoint-3"))
model.eval()
model.push_to_hub("writer/tuned", private=True)
processor.push_to_hub("writer/tuned")
tell(before=before, after=outputs(model, processor), checkpoint=checkpoint)
""".replace("REPO", f'"{REPO}"')

RELOAD = """
model = AutoModel.from_pretrained("writer/tuned", trust_remote_code=True)
head = AutoModelForAudioClassification.from_pretrained("writer/tuned", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("writer/tuned", trust_remote_code=True)
predict = pipeline("speech-emotion-recognition", model="writer/tuned", trust_remote_code=True)
predict.save_pretrained("third")
again = pipeline(model="third", trust_remote_code=True)
config = AutoConfig.from_pretrained("writer/tuned", trust_remote_code=True)
tell(
    model=outputs(model, processor), head=outputs(head, processor), named=predict(INPUT),
    third=again(INPUT), files=sorted(os.listdir("third")), config=config.to_dict(),
    module=type(model).__module__,
)
"""


@pytest.fixture(scope="module")
def tuned(scene: Scene) -> dict[str, Any]:
    """Fine-tuned from the Hub without any checkout, pushed, and loaded by somebody else."""
    found = scene.isolated(FINE_TUNE)
    return found | {"reloaded": scene.isolated(RELOAD, home="somebody_else")}


def test_fine_tuned_model_is_complete_on_hub(scene: Scene, tuned: dict[str, Any]) -> None:
    repo = scene.hub.repos["writer/tuned"]
    files = repo.commits[repo.branches["main"]]
    assert COMPLETE <= set(files) and repo.private
    for name in HUB_FILES:
        assert files[name] == scene.files[name]
    config = json.loads(files["config.json"])
    assert config["auto_map"] == AUTO_MAP and "--" not in json.dumps(config)
    assert config["custom_pipelines"]["speech-emotion-recognition"]["pt"] == [
        "AutoModelForAudioClassification"
    ]
    assert COMPLETE <= set(tuned["checkpoint"])


def test_fine_tuned_model_loads_with_its_labels(tuned: dict[str, Any]) -> None:
    reloaded = tuned["reloaded"]
    assert reloaded["model"] == pytest.approx(tuned["after"], abs=1e-5)
    assert reloaded["head"] == reloaded["model"]
    assert tuned["after"] != pytest.approx(tuned["before"], abs=1e-3)
    assert reloaded["config"]["label2id"] == {"calm": 0, "tense": 1}
    assert set(reloaded["named"]["scores"]) == {"calm", "tense"}
    assert reloaded["module"].startswith("transformers_modules.writer.tuned.")
    assert COMPLETE <= set(reloaded["files"])  # of the third generation
    assert reloaded["third"]["scores"] == pytest.approx(reloaded["named"]["scores"], abs=1e-5)


def test_training_goes_on_from_hub(scene: Scene, tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "train_accelerate.py"), "--model", REPO, *RECIPE]
    command += ["--manifest", str(scene.run.parent / "corpus" / "manifest.csv")]
    command += ["--out", str(tmp_path / "run"), "--learning_rate", "1e-2"]
    environment = scene.hub.environment(
        scene.home / "home", PYTHONPATH=os.environ.get("PYTHONPATH", "")
    )
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert "Do you wish to run the custom code" not in process.stdout + process.stderr
    saved = tmp_path / "run" / "model"
    assert COMPLETE <= {p.name for p in saved.iterdir()}
    old, new = (load_file(p / "model.safetensors") for p in (scene.run / "model", saved))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    trained = ("fusion.", "emotion_", "dimension_", "deviation_")
    assert moved and all(name.startswith(trained) for name in moved)
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and REPO not in json.dumps(config)


# ---- checkpoints of other versions ---------------------------------------------------------------

OLD = Path(__file__).parent / "old_checkpoint"


def test_old_checkpoint_loads_with_its_numbers() -> None:
    """Written by commit 394d881, before there was a format version; random weights in bfloat16."""
    assert "format_version" not in json.loads((OLD / "config.json").read_text())
    model = MTMMModel.from_pretrained(OLD, dtype=torch.float32).eval()
    expected = json.loads((OLD / "outputs.json").read_text())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        output = model(
            input_values=torch.randn(1, 4000, generator=generator),
            input_ids=torch.arange(5, 15)[None],
        )
    assert output.emotion_logits[0].tolist() == pytest.approx(expected["emotion_logits"], abs=1e-4)
    assert output.dimensions[0].tolist() == pytest.approx(expected["dimensions"], abs=1e-4)
    assert sum(p.stat().st_size for p in OLD.iterdir()) <= 300_000
