"""Where a run's data and encoders are, so written that a run which moves with them finds them.

Light to import, as the settings are.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtmm_training.data.hub import is_dataset

DATA = ("manifest", "audio_dir", "corpus_dir", "label_map")  # flags that say where utterances are
OTHERS = ("folds_file", "cache_dir", "model", "audio_encoder", "text_encoder")  # or ids on the Hub


def written(flags: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """The flags with relative places, which begin in the current folder, beginning in the run's folder."""
    folder = os.path.realpath(out)

    def from_run(place: str) -> str:
        # A link to a manifest stays one: its audio paths begin where the link is.
        parent, name = os.path.split(place)
        return os.path.join(os.path.relpath(os.path.realpath(parent or "."), folder), name)

    return (
        flags | _changed(flags, DATA, from_run) | _changed(flags, OTHERS, from_run, os.path.exists)
    )


def found(flags: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """What [`written`] wrote, read back from anywhere: places that are there, from the run's folder."""
    here = Path(folder).resolve()

    def exists(place: str) -> bool:  # else it is a Hub id, or as earlier versions kept it: as given
        return (here / place).exists()

    return flags | _changed(flags, (*DATA, *OTHERS), lambda place: str(here / place), exists)


def _changed(
    flags: dict[str, Any],
    names: tuple[str, ...],
    change: Callable[[str], str],
    where: Callable[[str], bool] = lambda place: True,
) -> dict[str, Any]:
    """The relative places among these flags, changed where a condition holds."""

    def one(place: str) -> str:
        stays = os.path.isabs(place) or is_dataset(place) or not where(place)
        return place if stays else change(place)

    given = {name: flags[name] for name in names if flags.get(name) not in (None, "off")}
    return {
        name: [one(place) for place in value] if isinstance(value, list) else one(value)
        for name, value in given.items()
    }
