"""The wheel and the sdist: built here, and the wheel used where the checkout is not."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT, HUB_FILES
from hub_server import trained_run

VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
# What is imported from the wheel, which a process finds before the checkout, if it looks there at all.
INSTALLED = """
import json, sys
sys.path = [sys.argv[1], *(p for p in sys.path if p != sys.argv[2])]
from mtmm_training.commands.cli import main
status = main(sys.argv[3:])
ours = [getattr(m, "__file__", None) or "" for n, m in sys.modules.items() if "mtmm" in n.partition(".")[0]]
print("FOUND " + json.dumps([status, sorted(f for f in ours if not f.startswith(sys.argv[1]))]))
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, and wheel/ unpacked as pip would install it."""
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(dist)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    zipfile.ZipFile(dist / f"mtmm-{VERSION}-py3-none-any.whl").extractall(dist / "wheel")
    return dist


def test_distributions_are_whole(dist: Path) -> None:
    files = sorted(str(path) for path in dist.glob(f"mtmm-{VERSION}*"))
    assert len(files) == 2
    checked = [sys.executable, "-m", "twine", "check", "--strict", *files]
    assert subprocess.run(checked, capture_output=True).returncode == 0
    top = {path.name for path in (dist / "wheel").iterdir() if path.suffix != ".dist-info"}
    assert top == {*HUB_FILES, "train_accelerate.py", "mtmm_training"}
    for folder in ("model_card", "launch"):
        here = {path.name for path in (CHECKOUT / folder).iterdir()}
        assert {p.name for p in (dist / "wheel" / "mtmm_training" / folder).iterdir()} == here


def test_wheel_publishes_without_checkout(
    dist: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A dry run loads the model, draws its card from the template, and runs its isolated process."""
    run = trained_run(tmp_path_factory.getbasetemp())
    words = ["publish", str(run), "someone/mtmm", "--dry_run", "--out", "staged"]
    command = [sys.executable, "-I", "-c", INSTALLED, str(dist / "wheel"), str(CHECKOUT), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.rpartition("FOUND ")[2]) == [0, []]
    assert "# mtmm" in (tmp_path / "staged" / "README.md").read_text()


def test_versions_agree() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    runtime = tomllib.loads((CHECKOUT / "runtime" / "pyproject.toml").read_text())["project"]
    heading = re.search(r"^## (\S+)", (CHECKOUT / "docs/CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None and heading[1] in ("Unreleased", VERSION)
    assert citation["version"] == runtime["version"] == VERSION
