"""The page that predicts in a visitor's browser: static files, put beside those of an export.

What it takes from npm is named by version and hash, and is never part of this repository.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from configuration_mtmm import MTMMConfig
from mtmm_training.data.files import facts_beside, replacing
from mtmm_training.pictures.palette import DIMENSIONS, colours

SOURCE = Path(__file__).parent / "page"
AT_TOP = {"index.html", "README.md"}  # the others are in a folder beside the model
REGISTRY = "https://registry.npmjs.org"
TIMEOUT_S = 60.0


class Package(NamedTuple):
    """A package of npm: the integrity that its registry states, and which of its files the page takes."""

    name: str
    version: str
    integrity: str
    files: list[str]


PACKAGES = [Package(name, **own) for name, own in facts_beside(__file__, "packages.toml").items()]


def write_page(folder: Path, name: str, config: MTMMConfig) -> None:
    """Put the page into an export's folder, with what it needs of npm.

    Args:
        folder: The export.
        name: What the page calls the model.
        config: The model's.

    Raises:
        OSError: The registry, which the variable npm_config_registry may name, does not answer.
        ValueError: A package is not the one that was tested.
    """
    vendor = folder / "page" / "vendor"
    vendor.mkdir(parents=True)
    for file in SOURCE.iterdir():
        shutil.copyfile(file, (folder if file.name in AT_TOP else vendor.parent) / file.name)
    about = {
        "name": name,
        "trained_on": config.trained_on,
        "colours": colours([*config.emotion_names, "unsure"]),
        "dimensions": {dimension: colour for dimension, (colour, _) in DIMENSIONS.items()},
    }
    (vendor.parent / "page.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    for package in PACKAGES:
        with tarfile.open(fileobj=io.BytesIO(fetch(package))) as archive:
            for path in package.files:
                content = archive.extractfile(f"package/{path}")
                assert content is not None  # it is a file of exactly this archive
                (vendor / Path(path).name).write_bytes(content.read())


def fetch(package: Package) -> bytes:
    """The archive of a package, from the user's cache or the registry; as `write_page`."""
    file = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cached = Path(cache, "mtmm", file)
    if cached.is_file() and _integrity(content := cached.read_bytes()) == package.integrity:
        return content
    registry = os.environ.get("npm_config_registry") or REGISTRY
    url = f"{registry.rstrip('/')}/{package.name}/-/{file}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content = response.read()
    except OSError as error:
        raise OSError(f"{url} cannot be fetched ({error}).") from error
    if _integrity(content) != package.integrity:
        raise ValueError(f"{url} is not the package whose hash is known; it was not used.")
    with replacing(cached) as temporary:
        temporary.write_bytes(content)
    return content


def _integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
