"""What the project is made of: dependencies, their licences and versions, and no secrets.

`python tests/test_supply.py` writes the table of docs/LICENCES.md anew.
"""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LICENCES = ROOT / "docs" / "LICENCES.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = [
    (extra, Requirement(line))
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items()
    for line in lines
]
# `make test` does not install these; their own pages state these licences.
NOT_INSTALLED = {
    "silero-vad": "MIT License",
    "mteb": "Apache-2.0",
    "opensmile": "audEERING's own: free for research, not for commercial products",
}
SECRETS = {
    "access token": r"\b(hf_|gh[po]_|github_pat_|glpat-|pypi-|sk-|xox[bp]-)[A-Za-z0-9]{16,}",
    "cloud key": r"\bA(KIA|SIA)[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "e-mail address": r"[\w.+-]+@[\w-]+(\.[\w-]+)*\.(com|org|net|de|fr|eu|io|ai|edu|uk)\b",
    "machine's path": r"(?<![\w.$}~:])/(work|home|root|Users|mnt|media|scratch|opt|srv)/\w",
    "private address": r"\b(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))\.\d+\.\d+\b",
    "private host": r"\b[\w-]+\.(internal|corp|intranet|lan)\b",
}
# Tests of what refuses to publish such things use these.
MADE_UP = ("/home/someone/", "/home/me")


def licence(name: str) -> str:
    """What a package says of itself, in the newest of the three ways of saying it."""
    try:
        about: Any = metadata(name)
    except PackageNotFoundError:
        return NOT_INSTALLED[name]
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: ")
    ]
    said = about.get("License-Expression") or ", ".join(classified) or about.get("License")
    return said.strip().split("\n")[0] if said else "not declared"


def licence_table() -> str:
    """Markdown: every direct dependency, what needs it, its licence."""
    rows = [
        f"| {requirement.name} | {extra or 'always'} | {licence(requirement.name)} |"
        for extra, requirement in DEPENDENCIES
    ]
    return "\n".join(["| package | needed for | licence |", "|---|---|---|", *rows]) + "\n"


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no git checkout: what would be published is unknown")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_licences_are_listed() -> None:
    assert licence_table() in LICENCES.read_text(encoding="utf-8"), "python tests/test_supply.py"


def test_pins_lie_in_the_declared_ranges() -> None:
    lines = dict(
        line.split("==")
        for line in (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    pins = {canonicalize_name(name): Version(version) for name, version in lines.items()}
    outside = [
        f"{requirement} is pinned to {pins.get(canonicalize_name(requirement.name))}"
        for _, requirement in DEPENDENCIES
        if requirement.name not in NOT_INSTALLED
        and pins.get(canonicalize_name(requirement.name), Version("0")) not in requirement.specifier
    ]
    assert outside == []


def test_space_needs_what_the_package_needs() -> None:
    lines = (ROOT / "demo" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted == PROJECT["dependencies"]


def test_files_hold_no_secrets() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        for what, pattern in SECRETS.items():
            for hit in re.finditer(pattern, text):
                line = text.count("\n", 0, hit.start()) + 1
                if not text[hit.start() :].startswith(MADE_UP):
                    found.append(f"{path.relative_to(ROOT)}:{line} {what}: {hit[0]}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("access token", "token = hf_" + "a" * 30),
        ("cloud key", "AKIA" + "A" * 16),
        ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("e-mail address", "me" + "@" + "example.org"),
        ("machine's path", 'open("' + "/home" + '/me/x")'),
        ("private address", "http://192" + ".168.0.1/"),
        ("private host", "http://files" + ".internal/"),
    ],
)
def test_secrets_are_recognised(what: str, text: str) -> None:
    assert re.search(SECRETS[what], text)


if __name__ == "__main__":
    heading, _, _ = LICENCES.read_text(encoding="utf-8").partition("| package |")
    LICENCES.write_text(heading + licence_table(), encoding="utf-8")
