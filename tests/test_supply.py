"""What the project is made of: dependencies, their licences and versions, interpreters, no secrets.

`python tests/test_supply.py` writes the table of docs/LICENCES.md anew.
"""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = [
    (extra, Requirement(line))
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items()
    for line in lines
]
# Of what `make test` leaves out, as its own pages say.
NOT_INSTALLED = {
    "silero-vad": "MIT License",
    "opensmile": "audEERING's own: free for research, not for commercial products",
}
INTERPRETERS = ("python3.11", "python3.12", "python3.13")
HUB_MODULES = sorted(file.stem for file in ROOT.glob("*_mtmm.py"))
# Of the standard library, until 3.12 or 3.13 (PEP 594, 632 and 749).
REMOVED_MODULES = set(
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib "
    "nis nntplib ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib".split()
)
SECRETS = {
    "access token": r"\b(hf_|gh[po]_|github_pat_|glpat-|pypi-|sk-|xox[bp]-)[A-Za-z0-9]{16,}",
    "cloud key": r"\bA(KIA|SIA)[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "e-mail address": r"[\w.+-]+@[\w-]+(\.[\w-]+)*\.(com|org|net|de|fr|eu|io|ai|edu|uk)\b",
    "machine's path": r"(?<![\w.$}~:])/(work|home|root|Users|mnt|media|scratch|opt|srv)/\w",
    "private address": r"\b(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))\.\d+\.\d+\b",
    "private host": r"\b[\w-]+\.(internal|corp|intranet|lan)\b",
}
# Tests of what refuses to publish such things.
MADE_UP = ("/home/someone/", "/home/me")


def declared_licence(name: str) -> str:
    """What an installed package says of itself, in the newest of the three ways of saying it."""
    about: Any = metadata(name)
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: ")
    ]
    said = about.get("License-Expression") or ", ".join(classified) or about.get("License")
    return said.strip().split("\n")[0] if said else "not declared"


def licence(name: str) -> str:
    try:
        return declared_licence(name)
    except PackageNotFoundError:
        return NOT_INSTALLED[name]


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


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(ROOT / "mtmm_training").rglob("*.py"), *ROOT.glob("demo/*.py")]


def test_licences_are_listed() -> None:
    listed = (ROOT / "docs" / "LICENCES.md").read_text(encoding="utf-8")
    assert licence_table() in listed, "write it anew: python tests/test_supply.py"


def test_installed_packages_fit_together() -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_pins_lie_in_the_declared_ranges() -> None:
    lines = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
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


@pytest.mark.parametrize("what", SECRETS)
def test_files_hold_no_secrets(what: str) -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        for hit in re.finditer(SECRETS[what], text):
            place = f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}"
            if not text[hit.start() :].startswith(MADE_UP):
                found.append(f"{place} {hit[0]}")
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


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_sources_import_nothing_that_newer_pythons_lack() -> None:
    gone = {path.name: set(imported_modules(path)) & REMOVED_MODULES for path in sources()}
    assert {name: modules for name, modules in gone.items() if modules} == {}


@pytest.mark.parametrize("name", INTERPRETERS)
def test_hub_files_import_on_interpreter(name: str) -> None:
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if name == own else shutil.which(name)
    if interpreter is None:
        pytest.skip(f"no {name} on the path")
    asked = "from importlib.util import find_spec as f; assert f('torch') and f('transformers')"
    if subprocess.run([interpreter, "-I", "-c", asked], capture_output=True).returncode:
        pytest.skip(f"{interpreter} lacks torch or transformers")
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(HUB_MODULES)}"
    done = subprocess.run([interpreter, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    file = ROOT / "docs" / "LICENCES.md"
    heading, _, _ = file.read_text(encoding="utf-8").partition("| package |")
    file.write_text(heading + licence_table(), encoding="utf-8")
