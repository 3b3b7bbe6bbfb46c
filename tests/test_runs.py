"""The run scripts are bash, and every command in them is one that `mtmm` takes.

Run alone: python -m pytest tests/test_runs.py -q
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtmm_training.commands.cli import parser_of
from mtmm_training.data import corpora
from mtmm_training.data.manifest import read_manifest
from mtmm_training.training.config import TrainConfig, from_options

RUNS = Path(__file__).parents[1] / "runs"
COMMANDS = [path for path in sorted(RUNS.glob("*.sh")) if path.read_text().startswith("#!")]
# In the place of mtmm: notes what it is asked to run, and runs nothing.
NOTES = """\
#!/usr/bin/env bash
printf '%s\\0' "$@" $'\\n' >> "$NOTES"
"""


@pytest.mark.parametrize("script", sorted(RUNS.glob("*.sh")), ids=lambda path: path.name)
def test_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_help_is_the_comment_at_the_head(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        line.removeprefix("# ")
        for line in script.read_text().partition("\nset ")[0].splitlines()[1:]
    ]
    assert not list(tmp_path.iterdir())


def commands_of(script: Path, folder: Path) -> list[list[str]]:
    """What a script would run with mtmm, word by word, its results going into folder/out."""
    (folder / "bin").mkdir()
    nothing = "#!/usr/bin/env bash\n"
    for name, content in (("mtmm", NOTES), ("python", nothing), ("espeak-ng", nothing)):
        (folder / "bin" / name).write_text(content)
        (folder / "bin" / name).chmod(0o755)
    (usage,) = re.findall(rf"^#   runs/{script.name} ([^\[\n]*)", script.read_text(), re.M)
    words = ["out" if word == "OUT" else word for word in usage.split()]
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NOTES": str(folder / "notes")}
    environment |= dict.fromkeys(("RAVDESS", "CREMA_D", "EMOBANK"), str(folder))  # no download
    subprocess.run(["bash", script, *words], cwd=folder, check=True, env=environment)
    notes = (folder / "notes").read_text().split("\0\n\0")[:-1]
    return [note.split("\0") for note in notes]


# Without local_small.sh, which waits for a Hub of its own, and whose commands are open_small.sh's.
@pytest.mark.parametrize(
    "script", [p for p in COMMANDS if p.name != "local_small.sh"], ids=lambda p: p.name
)
def test_commands_have_the_flags_that_they_are_given(script: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "last_layer").mkdir(parents=True)
    for words in commands_of(script, tmp_path):
        options = parser_of(words[0]).parse_args(words[1:])
        if hasattr(options, "manifest") or hasattr(options, "corpus_dir"):
            for place in ("out", "model", "audio_encoder", "text_encoder"):  # none is there
                vars(options).pop(place, None)
            config = from_options(options)
            assert config != TrainConfig()
            config.check()


@pytest.mark.parametrize("names", [[], ["last_layer", "egemaps"]])
def test_baselines_that_are_there_are_compared(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "out" / name).mkdir(parents=True)
    *_, last = commands_of(RUNS / "ravdess4.sh", tmp_path)
    folders = [str(tmp_path / "out" / name) for name in ["ours", *names, "comparison"]]
    assert ("compare" in last) == bool(names)
    assert not names or last[2:] == [*folders[:-1], "--out", folders[-1]]


def test_manifests_of_two_corpora_have_their_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python in runs/mixed.sh before the training."""
    code = (RUNS / "mixed.sh").read_text().split("<<'PY'\n")[1].partition("\nPY\n")[0]
    given = tmp_path / "acted.csv"
    rows = [f"u{i},x,angry,actor_{i}" for i in (1, 19, 21)]
    given.write_text("\n".join(["id,text,emotion,speaker", *rows]))
    monkeypatch.setattr(sys, "argv", ["-", given, "unused", tmp_path])
    monkeypatch.setattr(corpora, "read_corpus", lambda *_, **__: read_manifest(given))
    exec(code, {})
    acted = read_manifest(tmp_path / "ravdess.csv")
    assert [u.split for u in acted] == ["train", "validation", "test"]
    assert {u.corpus for u in acted} == {"ravdess"}
    assert len(read_manifest(tmp_path / "emobank.csv")) == 3
