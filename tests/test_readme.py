"""README and docs/ say what is true: their code runs, their commands parse, their outputs are printed.

Run alone: python -m pytest tests/test_readme.py. Where an output differs, the failure shows the new
one, ready to be pasted. A `text` block below a `python` block, or below a command that is run, is
what that prints; any other `text` block is printed by `mtmm demo`.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from accelerate.commands.launch import launch_command_parser
from conftest import CHECKOUT, TrainedDemo
from hub_server import HubServer, files_in

from configuration_mtmm import MTMMConfig
from mtmm_training.commands.cli import parser_of, verb_names
from mtmm_training.data.manifest import COLUMNS
from mtmm_training.studies.embedded_demo import MODELS
from mtmm_training.training.run import Run
from outputs_mtmm import MTMMOutput

REAL = Path(os.environ.get("MTMM_REAL_DATA", CHECKOUT.parent / "shared" / "real")) / "encoders"
ENCODERS = {
    "openai/whisper-base": "whisper-base-6s",
    "sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2",
}
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(CHECKOUT.glob("docs/*.md")))]
PAGES += [".github/CONTRIBUTING.md", ".github/SECURITY.md", "demo/README.md"]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
FILE_TREE = "configuration_mtmm.py "  # how the one `text` block begins that nothing prints
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
# Commands whose first word is none of ours.
OTHERS = {"hf", "for", ".", "curl", "docker"}  # those of curl are run by test_serve.py
HISTORY = {"docs/CHANGELOG.md", "docs/LOG.md"}  # they name commands of then, and parts of commands
Ask = Callable[..., str]
CHEAP = (
    *(
        "mtmm predict speech.wav",
        "mtmm predict talk.mp3",
        "mtmm predict call.wav",
        "mtmm predict my/",
    ),
    *("mtmm embed", "mtmm inspect --manifest", "mtmm score"),
)

# Forks a process for every command or page, and prints its status and output. The imports would
# otherwise take longer than the examples.
FORKS = """
import contextlib, io, json, os, sys
import torch, transformers, train_accelerate
from mtmm_training.commands.cli import main

def run_blocks(blocks):
    # In one namespace; what each of them printed.
    namespace, outputs = {"__name__": "page"}, []
    for place, code in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, place, "exec"), namespace)
        outputs.append(printed.getvalue())
    print(json.dumps(outputs))

for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(asked["folder"])
    for number, name in ((0, os.devnull), (1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.exit(main(asked["words"]) if "words" in asked else run_blocks(asked["blocks"]))
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        place: Page and line.
        language: The word behind the fence.
        content: Its lines.
        above: The block that ends right before it; None where words stand between the two.
    """

    place: str
    language: str
    content: str
    above: "Block | None"


def read(page: str) -> str:
    return (CHECKOUT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    text, above, end = read(page), None, 0
    for found in BLOCK.finditer(text):
        place = f"{page}:{text.count(chr(10), 0, found.start()) + 1}"
        joined = not text[end : found.start()].strip()
        content = "\n".join(line.removeprefix(found[1]) for line in found[3].splitlines())
        above = Block(place, found[2], content + "\n", above if joined else None)
        end = found.end()
        yield above


def commands(page: str) -> Iterator[str]:
    """Every command of a page: the lines of its `bash` blocks, and `mtmm ...` in its sentences."""
    for block in blocks(page):
        if block.language == "bash":
            for line in re.sub(r" *\\\n *", " ", block.content).splitlines():
                yield from [line] if line.startswith("for ") else re.split(r" && | \| ", line)
    prose = BLOCK.sub("", read(page))
    yield from re.findall(r"`((?:mtmm|python|accelerate launch|make) [^`]+)`", prose)


COMMANDS = [
    pytest.param(command, id=f"{page}: {command}")
    for page in PAGES
    if page not in HISTORY
    for command in dict.fromkeys(commands(page))
]


def words_of(command: str) -> list[str]:
    """A command's words, without its comment, "..." and what it sets in its environment."""
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    return words


# ---- commands --------------------------------------------------------------------------


def parse_mtmm(words: list[str]) -> None:
    """Refuse what the parser of the verb refuses; a verb alone may lack what it requires."""
    if not words or words[0].startswith("-"):
        assert words in ([], ["--help"], ["--version"])
        return
    assert words[0] in verb_names()
    parser = parser_of(words[0])
    named = 1 if parser.verbs is None else 2  # such as `mtmm evaluate run`
    if len(words) <= named or words[-1] == "--help":
        assert named == 1 or set(words[1:2]) <= set(parser.verbs.choices)
        return
    options = parser.parse_args(words[1:])
    if getattr(options, "model_config", None):
        MTMMConfig.tiny(**json.loads(options.model_config))


def parse_python(words: list[str]) -> None:
    if words[0] == "-m":
        if words[1] == "mtmm_training":
            parse_mtmm(words[2:])
        elif words[1] == "pytest":
            assert all((CHECKOUT / path).exists() for path in words[2:])
        else:
            assert words[1] in ("venv", "http.server")
        return
    script = CHECKOUT / words[0]
    assert script.is_file()
    if words[0] == "train_accelerate.py":
        parse_mtmm(["train", *words[1:]])
    elif words[0].startswith("benchmarks/"):
        shown = help_of_benchmark(script.stem)
        assert all(word in shown for word in words[1:] if word.startswith("--"))


def help_of_benchmark(name: str) -> str:
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
        pytest.raises(SystemExit) as ended,
    ):
        patch.syspath_prepend(str(CHECKOUT / "benchmarks"))
        patch.setattr(sys, "argv", [name, "--help"])
        importlib.import_module(name).main()
    assert ended.value.code == 0
    return printed.getvalue()


def parse_accelerate(words: list[str]) -> None:
    """Accelerate's own parser takes its flags, ours the rest."""
    words = [{"R": "0"}.get(word, word) for word in words[1:]]
    given: Any = launch_command_parser().parse_args(words)
    assert given.config_file is None or (CHECKOUT / given.config_file).is_file()
    words = [given.training_script, *given.training_script_args]
    parse_python(["-m", *words] if given.module else words)


def check_make(words: list[str]) -> None:
    assert f"\n{words[0]}:" in read("Makefile")


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    if (CHECKOUT / words[-1] / "pyproject.toml").is_file() and words[-1] != ".":
        return  # a distribution of its own
    named = re.fullmatch(r"\.(?:\[(.*)\])?", words[-1])
    assert named and set((named[1] or "train").split(",")) <= set(extras)


CHECKS = {
    "mtmm": parse_mtmm,
    "python": parse_python,
    "accelerate": parse_accelerate,
    "make": check_make,
    "pip": check_pip,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_taken(command: str) -> None:
    words = words_of(command)
    if not words or words[0] in OTHERS:
        return
    CHECKS[words[0]](words[1:])


# ---- what stands in tables and links -----------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", read(page))
    lost = [link for link in links if not (CHECKOUT / page).parent.joinpath(link).exists()]
    top = "runs|launch|tests|benchmarks|demo|docs|model_card|evaluate_metrics|mtmm_training"
    named = re.findall(rf"`((?:{top})/[\w./-]*)`", read(page))
    lost += [path for path in named if not (CHECKOUT / path).exists()]
    assert lost == []


def test_file_tree_is_the_root() -> None:
    (tree,) = (b.content for b in blocks("README.md") if b.content.startswith(FILE_TREE))
    named = set(re.findall(r"^([\w.]+)/?", tree, flags=re.MULTILINE))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    root = {path.partition("/")[0] for path in tracked if not path.startswith(".")}
    assert named <= root
    missing = {name for name in root - named if not name.endswith("_mtmm.py")}
    assert missing <= {"README.md", "LICENSE", "Makefile", "pyproject.toml", "CITATION.cff"}


def first_column(text: str, header: str) -> set[str]:
    """The names in backticks in the first cells of the table with this header."""
    rows = text.split(header)[1].split("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_tables_name_columns_and_outputs() -> None:
    assert first_column(read("docs/training.md"), "| column | content |") == set(COLUMNS)
    assert first_column(read("README.md"), "| column | content |") <= set(COLUMNS)
    outputs = first_column(read("README.md"), "| name | shape |")
    assert outputs == {field.name for field in dataclasses.fields(MTMMOutput)}


# ---- what is printed -----------------------------------------------------------------------


def as_shown(shown: str, printed: str) -> str:
    """`printed`, each number with as many decimals as in `shown`; as it is where their counts differ."""
    digits = [number.partition(".")[2] for number in NUMBER.findall(shown)]
    if len(digits) != len(NUMBER.findall(printed)):
        return printed
    places = iter(digits)

    def rounded(number: re.Match[str]) -> str:
        decimals = len(next(places))
        return f"{float(number[0]):.{decimals}f}" if decimals else number[0]

    return NUMBER.sub(rounded, printed)


def differs(shown: str, printed: str) -> str | None:
    """What should be shown, or None where it is; a last digit may be one off that lies at its edge."""
    new = as_shown(shown, printed)
    if "".join(NUMBER.sub("#", shown).split()) != "".join(NUMBER.sub("#", new).split()):
        return new
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(as_shown(shown, printed)), strict=True)
    exact = NUMBER.findall(printed)
    for (old, rounded), value in zip(numbers, exact, strict=True):
        edge = 0.6 * 10.0 ** -len(old.partition(".")[2])
        if old != rounded and ("." not in old or abs(float(old) - float(value)) > edge):
            return new
    return None


def test_numbers_are_compared_to_the_digits_shown() -> None:
    assert differs("a 0.87 [1]\n", "a 0.8686\n [1]") is None
    assert differs("a 0.87 [1]", "a 0.8786 [1]") == "a 0.88 [1]"
    assert differs("a 0.87 [1]", "a 0.8686 [2]") == "a 0.87 [2]"
    assert differs("a 0.87", "b 0.8686") == "b 0.87"


@pytest.fixture(scope="module")
def hub(trained_demo: TrainedDemo) -> Iterator[HubServer]:
    """A Hub that has the demo's model as someone/mtmm, and the encoders of checkpoints/ if they are here."""
    model = trained_demo.folder / "out" / "demo" / "fused" / "model"
    with HubServer() as server:
        server.put("someone/mtmm", files_in(model))
        for name, folder in ENCODERS.items() if REAL.is_dir() else ():
            server.put(name, files_in(REAL / folder))
        yield server


@pytest.fixture
def scene(tmp_path: Path, trained_demo: TrainedDemo) -> Path:
    """The folder in which the pages' examples are run."""
    demo = trained_demo.folder / "out" / "demo"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo").symlink_to(demo)
    (tmp_path / "my").symlink_to(demo / "corpus")
    (tmp_path / "checkpoints").symlink_to(CHECKOUT / "checkpoints")
    (tmp_path / "evaluate_metrics").symlink_to(CHECKOUT / "evaluate_metrics")
    recordings = sorted((demo / "corpus" / "audio").glob("Ses05F_impro01_F*.wav"))
    shutil.copy(recordings[0], tmp_path / "speech.wav")
    talk = np.concatenate([soundfile.read(path)[0] for path in recordings[:16]])
    soundfile.write(tmp_path / "talk.mp3", talk, 16000)
    turn = "SPEAKER talk 1 {} 2.0 <NA> <NA> {} <NA> <NA>\n"
    (tmp_path / "talk.rttm").write_text(turn.format(0.5, "ann") + turn.format(3.5, "bob"))
    silent = np.zeros_like(talk[:64000])
    ann = np.concatenate([talk[:64000], silent])
    bob = np.concatenate([silent, talk[64000:128000]])
    soundfile.write(tmp_path / "call.wav", np.stack([ann, bob], axis=1), 16000)
    return tmp_path


@pytest.fixture(scope="module")
def run(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Run the words of an `mtmm` command, or Python blocks, in a folder; what they print."""
    environment = hub.environment(tmp_path_factory.mktemp("home"), token=None)
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        environment["COVERAGE_PROCESS_CONFIG"] = os.environ["COVERAGE_PROCESS_CONFIG"]
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert forks.stdin and forks.stdout
    asking, answers = forks.stdin, forks.stdout

    def run(folder: Path, **asked: object) -> str:
        print(json.dumps({"folder": str(folder)} | asked), file=asking, flush=True)
        assert answers.readline() == "0\n", (folder / "stderr.txt").read_text("utf-8")[-3000:]
        return (folder / "stdout.txt").read_text("utf-8")

    yield run
    forks.communicate()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))]
)
def test_python_blocks_print_what_stands_below_them(
    page: str, scene: Path, hub: HubServer, run: Ask
) -> None:
    commit = hub.repos["someone/mtmm"].branches["main"]
    code = [block for block in blocks(page) if block.language == "python"]
    if not REAL.is_dir():  # the checkpoints' encoders
        code = [block for block in code if "checkpoints/" not in block.content]
    given = [(b.place, b.content.replace("<commit>", commit)) for b in code]
    printed = json.loads(run(scene, blocks=given).splitlines()[-1])
    outputs = dict(zip([block.place for block in code], printed, strict=True))
    for block in blocks(page):
        if block.language == "text" and block.above and block.above.place in outputs:
            new = differs(block.content, outputs[block.above.place])
            assert new is None, f"{block.place} should be:\n{new}"


@pytest.mark.parametrize("page", PAGES)
def test_other_outputs_are_the_demos(page: str, trained_demo: TrainedDemo) -> None:
    for block in blocks(page):
        below_code = block.above is not None and block.above.language == "python"
        if block.language == "text" and not below_code and not block.content.startswith(FILE_TREE):
            assert block.content.strip() in trained_demo.printed, (
                f"{block.place} is not what the demo prints:\n{trained_demo.printed}"
            )


def test_first_screen_has_the_demos_numbers(trained_demo: TrainedDemo) -> None:
    screen = read("README.md").split("## ")[0]
    results = json.loads(
        (trained_demo.folder / "out" / "demo" / "fused" / "results.json").read_text("utf-8")
    )
    assert f"UAR {results['test']['UAR']:.3f}".replace("0.", ".") in screen
    manifest = (trained_demo.folder / "out" / "demo" / "corpus" / "manifest.csv").read_text("utf-8")
    (row,) = (row for row in manifest.splitlines() if row.startswith("Ses05F_impro01_F000,"))
    text, emotion, valence, arousal = row.split(",")[3:7]
    assert text in screen and f"{emotion}, valence {valence}, arousal {arousal}" in screen


@pytest.mark.parametrize("command", [c for c in COMMANDS if str(c.values[0]).startswith(CHEAP)])
def test_cheap_command_runs(command: str, scene: Path, run: Ask) -> None:
    (scene / "my").unlink()  # a shorter table is enough
    (scene / "my").mkdir()
    corpus = scene / "out" / "demo" / "corpus"
    (scene / "my" / "audio").symlink_to(corpus / "audio")
    header, *rows = (corpus / "manifest.csv").read_text("utf-8").splitlines()
    (scene / "my" / "manifest.csv").write_text("\n".join([header, *rows[::12]]), "utf-8")
    printed, parts = run(scene, words=words_of(command)[1:]), scene / "out" / "predicted"
    assert printed or len(pd.read_parquet(parts)) == 100


def test_demo_trains_three_models_and_predicts_apart(trained_demo: TrainedDemo) -> None:
    folder, printed = trained_demo.folder / "out" / "demo", trained_demo.printed
    for name, modalities in MODELS.items():
        trained = Run.open(folder / name.replace(" ", "_"))
        assert trained.flags.modalities == modalities
        assert re.search(rf"^{name} +{trained.results['test']['UAR']:.3f} ", printed, re.MULTILINE)
    said = re.findall(r"labelled (\w+), .*\n    predicted (\w+) \(0\.\d\d\), valence \d", printed)
    assert said == [(emotion, emotion) for emotion in ("happy", "angry", "sad")]
    for place in re.findall(r"^  .*? (/.*)$", printed, re.MULTILINE)[-5:]:
        assert Path(place).exists()
