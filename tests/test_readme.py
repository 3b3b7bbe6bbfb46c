"""What the README names must exist. Run alone: python -m pytest tests/test_readme.py"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMOutput
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.manifest import COLUMNS
from mtmm_training.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_file_tree_names_what_is_there() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    names = re.findall(r"^(\S+)", tree, flags=re.MULTILINE)
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_flags_and_make_targets_exist() -> None:
    training = {field.name for field in dataclasses.fields(TrainConfig)}
    known = training | {"help", "num_processes", "config_file", "multi_gpu"}
    known |= {"machine_rank", "num_machines", "main_process_ip", "main_process_port"}
    for command in re.findall(r"train_accelerate\.py ([^`]*)", README):
        flags = re.findall(r"--(\w+)", command.split("\n\n")[0])
        assert set(flags) <= known, command
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+) {2,}", README):
        assert f"\n{target}:" in makefile


def test_manifest_columns_and_outputs_are_the_real_ones() -> None:
    table = README.split("| column | content |")[1].split("\n\n")[0]
    columns = set(
        re.findall(
            r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row)
        )
    )
    assert columns <= set(COLUMNS) and {"audio", "text", "speaker"} <= columns
    table = README.split("## What comes out")[1].split("\n\n")[1]
    outputs = set(
        re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()))
    )
    assert outputs == {field.name for field in dataclasses.fields(MTMMOutput)}


def test_model_config_examples_are_fields() -> None:
    examples = re.findall(r"--model_config '(\{.*?\})'", README)
    assert examples
    for example in examples:
        MTMMConfig.tiny(**json.loads(example))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves, as far as the README's examples touch it, from a model not trained."""
    from modeling_mtmm import MTMMModel, MTMMProcessor

    folder = tmp_path_factory.mktemp("readme")
    demo = folder / "out" / "demo"
    write_corpus(demo / "corpus", utterances=10)
    audio, text = map(str, write_encoders(demo / "encoders"))
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    model = MTMMModel.from_encoders_pretrained(audio, text, **sizes)
    model.config.trained_outputs = ("emotion", "valence", "arousal")
    model.save_pretrained(demo / "fused" / "model")
    MTMMProcessor.from_encoders_pretrained(audio, text).save_pretrained(demo / "fused" / "model")
    return folder


def test_python_examples_run(demo: Path) -> None:
    examples = "\n".join(block for block in blocks("python") if "out/demo" in block)
    audio = sorted((demo / "out" / "demo" / "corpus" / "audio").iterdir())[0].name
    examples = re.sub(r"audio/Ses\w+\.wav", f"audio/{audio}", examples)
    done = subprocess.run(
        [sys.executable, "-I", "-c", examples], cwd=demo, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 4]) torch.Size([1, 2])" in done.stdout
