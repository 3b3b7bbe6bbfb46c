"""What a reader of `trust_remote_code` is promised, checked on the Hub files' syntax and in a process.

SECURITY.md says the same in words.
"""

import ast
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKOUT, HUB_FILES
from hub_server import HubServer, run_python, trained_run
from transformers import AutoModel, BertConfig, BertModel, HubertConfig, HubertModel

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel

NEVER_CALLED = {"eval", "exec", "compile", "open", "input", "__import__", "breakpoint", "globals"}
NEVER_CALLED |= {"vars", "locals"}
NEVER_IMPORTED = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "ctypes", "runpy"}
NEVER_IMPORTED |= {"subprocess", "multiprocessing", "socket", "ssl", "http", "urllib", "requests"}
NEVER_IMPORTED |= {"httpx", "httpx2", "ftplib", "importlib", "shutil", "pathlib", "sys"}
NEVER_IMPORTED |= {"builtins", "code", "pty", "webbrowser", "zipfile", "tarfile", "glob", "yaml"}
OS_NAMES = {"os.PathLike", "os.fspath", "os.fsdecode", "os.stat"}
OS_NAMES |= {"os.path.exists", "os.path.getsize", "os.path.join", "os.replace"}
TORCH_NEVER = {"torch.load", "torch.save", "torch.hub", "torch.jit", "torch.package"}
NUMPY_NEVER = {"np.load", "np.save", "np.fromfile", "np.memmap", "np.genfromtxt", "np.loadtxt"}
WRITERS = {"write", "write_text", "write_bytes", "tofile", "unlink", "rmdir", "mkdir", "makedirs"}
WRITERS |= {"remove", "rename", "system", "popen", "savez", "urlopen", "fromfile"}
DUNDERS = {"__globals__", "__subclasses__", "__builtins__", "__code__", "__reduce__", "__mro__"}
# Where a name or path that the caller gave goes to the Hub or to disk.
LOADERS = {"from_pretrained", "load_encoder", "from_encoders_pretrained", "_composed"}
# Of a heads-only model: its own weights, and the commit of the encoder that it names.
CACHED = {"_composed", "_encoder"}
SAVERS = {"save_pretrained"}
# What is decoded or mended goes to a file without a name, which is gone once it is closed.
NAMELESS = {"_transcoded", "_written"}
FETCHERS = {"fetch"}
URLS = {"urllib.parse", "urllib.request"}  # `urlopen` in `fetch` alone
READER = re.compile(r"open\(\w+, 'rb'\)")


def objections(source: str, file: str) -> list[str]:
    """What a careful reader would stop at, in one Hub file."""
    found = []
    for function, node in nodes(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                assert node.module is not None, f"{file} imports from its own package"
                names = [node.module]
            names = [name for name in names if name not in URLS]
            found += [f"import {n}" for n in names if n.split(".")[0] in NEVER_IMPORTED]
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                found.append("from os import")
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if node.attr in DUNDERS or any(name.startswith(n) for n in TORCH_NEVER | NUMPY_NEVER):
                found.append(name)
            allowed = OS_NAMES | ({"os.environ.get"} if function == "where_is" else set())
            if name.startswith("os.") and not any(n.startswith(name) for n in allowed):
                found.append(name)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            if called in NEVER_CALLED or (last in WRITERS and last != called):
                is_read = READER.fullmatch(ast.unparse(node))
                is_nameless = function in NAMELESS and called in ("copy.write", "out.write")
                found += [] if is_read or is_nameless else [called]
            if called.startswith("tempfile.") and called != "tempfile.TemporaryFile":
                found.append(called)
            if last == "from_pretrained" and function not in LOADERS:
                found.append(called)
            if last == "save_pretrained" and function not in SAVERS:
                found.append(called)
            if last == "urlopen" and function not in FETCHERS:
                found.append(called)
            if last in ("get_session", "hf_hub_download", "snapshot_download", "cached_file"):
                known = {"get_session": FETCHERS, "cached_file": CACHED}.get(last, set())
                found += [] if function in known else [called]
            if last in ("getattr", "setattr", "delattr") and "__" in ast.unparse(node.args[1]):
                found.append(ast.unparse(node))
            found += unsafe_options(node)
    return found


def unsafe_options(call: ast.Call) -> list[str]:
    """Keyword arguments that would unpickle, or run what a repository brings."""
    unsafe = {"weights_only": False, "allow_pickle": True, "trust_remote_code": True}
    return [
        ast.unparse(keyword)
        for keyword in call.keywords
        if keyword.arg in unsafe
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is unsafe[keyword.arg]
    ]


def nodes(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the innermost function around it."""
    for child in ast.iter_child_nodes(tree):
        inner = function
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = child.name
        yield inner, child
        yield from nodes(child, inner)


@pytest.mark.parametrize("file", HUB_FILES)
def test_hub_file_gives_no_cause_for_distrust(file: str) -> None:
    assert objections((CHECKOUT / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    "line",
    [
        "exec(code)",
        "from subprocess import run",
        "from os import system",
        "os.environ['HF_TOKEN']",
        "open(path, 'w')",
        "tempfile.mkdtemp()",
        "urlopen('http://example.org')",
        "copy.write(b'x')",
        "path.write_text('x')",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained('someone/else')",
        "AutoModel.from_config(config, trust_remote_code=True)",
        "get_session().get('http://example.org')",
        "().__class__.__subclasses__()",
    ],
)
def test_reader_would_stop_at(line: str) -> None:
    assert objections(line, "modeling_mtmm.py")


def test_one_request_in_one_function() -> None:
    calls = [
        (file, function)
        for file in HUB_FILES
        for function, node in nodes(ast.parse((CHECKOUT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "get_session"
    ]
    assert [function for _, function in calls] == ["fetch"]


def test_hub_files_hold_no_invisible_characters() -> None:
    """Bidirectional controls and zero-width characters can make code read unlike it runs."""
    hidden = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
    for file in HUB_FILES:
        assert not hidden.search((CHECKOUT / file).read_text(encoding="utf-8"))


# ---- what a process really does ------------------------------------------------------------------

WATCHED = """
import json, os, sys
sys.dont_write_bytecode = True
import numpy as np, torch, transformers, soundfile
import transformers.pipelines, transformers.models.auto.processing_auto
from transformers import pipeline
seen = []
WATCH = ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
WATCH += ("os.system", "os.exec", "os.posix_spawn", "os.remove", "os.rename", "shutil.rmtree")
def watch(event, arguments):
    if event in WATCH:
        seen.append([event, str(arguments[0])])
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        mode, flags = arguments[1:]
        if set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(["write", os.fsdecode(arguments[0])])
sys.addaudithook(watch)
predict = pipeline(model=sys.argv[1], trust_remote_code=True)
first = len(seen)
noise = np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32)
predict({"audio": {"array": noise, "sampling_rate": 16000}, "text": "so you won"})
predict([{"audio": sys.argv[2]}, {"text": "no"}])
predicting = seen[first:]
import pickle
pickle.loads(pickle.dumps(os.getcwd))
print("FOUND " + json.dumps([seen[:first], predicting, seen[-1]]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp())


def test_loading_and_predicting_touch_nothing_else(run: Path, tmp_path: Path) -> None:
    """Python's own audit events: no unpickling, network or process; writes in the cache only."""
    wav = next((run.parent / "corpus" / "audio").glob("*.wav"))
    home = tmp_path / "home"
    with HubServer() as hub:
        process = run_python(
            WATCHED,
            str(run / "model"),
            str(wav),
            environment=hub.environment(home, HF_HUB_OFFLINE="1"),
            cwd=tmp_path,
        )
    assert process.returncode == 0, process.stderr[-2000:]
    loading, predicting, last = json.loads(process.stdout.rpartition("FOUND ")[2])
    assert last[0] == "pickle.find_class"  # the watch itself works
    assert predicting == []
    allowed = (str(home), os.devnull, str(tmp_path))
    files = ("write", "os.rename", "os.remove", "shutil.rmtree")
    assert [e for e in loading if e[0] not in files or not e[1].startswith(allowed)] == []


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_pickle_beside_weights_is_not_opened(run: Path, tmp_path: Path) -> None:
    model = MTMMModel.from_pretrained(run / "model")
    model.save_pretrained(tmp_path / "model")
    bomb = pickle.dumps(Bomb(tmp_path / "went_off"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (tmp_path / "model" / name).write_bytes(bomb)
    loaded = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(loaded).__name__ == "MTMMModel"
    assert not (tmp_path / "went_off").exists()


def test_encoder_pickle_is_loaded_as_weights_only(tmp_path: Path) -> None:
    tiny = MTMMConfig.tiny()
    HubertModel(HubertConfig(**tiny.encoder_config("audio").to_dict())).save_pretrained(
        tmp_path / "audio"
    )
    text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=30)
    BertModel(text).save_pretrained(tmp_path / "text")
    (tmp_path / "audio" / "model.safetensors").unlink()
    torch.save({"x": Bomb(tmp_path / "went_off")}, tmp_path / "audio" / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
        MTMMModel.from_encoders_pretrained(str(tmp_path / "audio"), str(tmp_path / "text"))
    assert not (tmp_path / "went_off").exists()
