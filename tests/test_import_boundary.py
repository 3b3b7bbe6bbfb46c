"""The three walls: root names, training never inside the Hub files, few imports in those."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT, HUB_FILES
from transformers.dynamic_module_utils import get_relative_import_files

HUB_MODULES = {file.removesuffix(".py") for file in HUB_FILES}
ALLOWED = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors"} | set(
    sys.stdlib_module_names
)
OPTIONAL = {"soundfile", "soxr", "av"}
CARD_NAMES = (
    "pyproject.toml",
    "README.md",
    "modeling_mtmm.py",
    "configuration_mtmm.py",
    "train_accelerate.py",
    "model_card",
    "tests",
)


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Every module that a file imports, whether inside `try`, and how many dots stand before it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tried = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.Try)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in tried, 0
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", id(node) in tried, node.level


def package(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", CARD_NAMES)
def test_root_has_name_on_card(name: str) -> None:
    assert (CHECKOUT / name).exists()


@pytest.mark.parametrize("file", HUB_FILES)
def test_hub_file_imports_little(file: str) -> None:
    for name, tried, _ in imports(CHECKOUT / file):
        allowed = ALLOWED | HUB_MODULES | (OPTIONAL if tried else set())
        assert package(name) in allowed, f"{file} imports {name}"


def test_audio_libraries_are_imported_in_one_file() -> None:
    found = {f for f in HUB_FILES for name, *_ in imports(CHECKOUT / f) if name in OPTIONAL}
    assert len(found) == 1


@pytest.mark.parametrize("file", HUB_FILES)
def test_hub_file_imports_others_relatively_first(file: str) -> None:
    """As remote code the files are neighbours in a package, in a checkout top-level modules."""
    found = [found for found in imports(CHECKOUT / file) if package(found[0]) in HUB_MODULES]
    assert all(tried for _, tried, _ in found)
    relative = [name for name, _, dots in found if dots == 1]
    assert relative == [name for name, _, dots in found if dots == 0]


def test_saving_the_model_takes_every_hub_file_along() -> None:
    """transformers copies what the model's file imports, and what those files import."""
    copied = {Path(path).name for path in get_relative_import_files(CHECKOUT / "modeling_mtmm.py")}
    assert copied | {"modeling_mtmm.py"} == set(HUB_FILES)


@pytest.mark.parametrize("file", HUB_FILES)
def test_hub_file_never_names_training(file: str) -> None:
    source = (CHECKOUT / file).read_text(encoding="utf-8")
    assert "mtmm_training" not in source and "train_accelerate" not in source
    assert "importlib" not in source and "__import__" not in source


def test_hub_modules_are_found_in_this_checkout() -> None:
    for module in HUB_MODULES:
        spec = importlib.util.find_spec(module)
        assert spec is not None and Path(str(spec.origin)) == CHECKOUT / f"{module}.py"


WITHOUT_AUDIO_LIBRARIES = """
import sys
sys.path.insert(0, sys.argv[1])
for name in ("soundfile", "soxr", "mtmm_training", "peft", "accelerate", "datasets", "evaluate"):
    sys.modules[name] = None
import numpy as np
import configuration_mtmm, pipeline_mtmm, processing_mtmm, modeling_mtmm

model = modeling_mtmm.MTMMModel(configuration_mtmm.MTMMConfig.tiny())
for call in (
    lambda: processing_mtmm.MTMMProcessor.load_audio(__file__),
    lambda: processing_mtmm.MTMMProcessor.load_audio(b"RIFF"),
    lambda: processing_mtmm.resample(np.zeros(100, np.float32), 8000, 16000),
):
    try:
        call()
    except ImportError as error:
        print(error)
print(len(processing_mtmm.resample(np.zeros(100, np.float32), 16000, 16000)))
"""


def test_hub_files_work_without_audio_libraries(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_AUDIO_LIBRARIES)
    done = subprocess.run(
        [sys.executable, "-I", script, CHECKOUT], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    by_path, by_bytes, resampling, unchanged = done.stdout.splitlines()
    for message in (by_path, by_bytes):
        assert "pip install soundfile" in message
    assert "8000 to 16000 Hz" in resampling and "pip install soxr" in resampling
    assert unchanged == "100"
