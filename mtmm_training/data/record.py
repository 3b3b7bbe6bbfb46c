"""The record of what a folder's results depend on, so that nothing else is added to them.

A run, a protocol of folds and a run of predictions each keep their settings in a JSON file. Whoever
goes on in that folder compares first.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtmm_training.data.files import read_json, write_json

# Settings that change no result: where things lie, how often something is saved, what runs at once.
# `fold`, `on_error` and the data's places do change what is trained on, but a record has the splits
# themselves.
DATA = frozenset("manifest audio_dir corpus_dir label_map preset".split())
HARMLESS = DATA | frozenset(
    "out cache_dir resume tracker checkpoint_steps keep_checkpoints "
    "workers on_error encode_only verify_cache fold folds jobs".split()
)
PLACES = frozenset("model audio_encoder text_encoder folds_file".split())
_SHOWN = 60  # letters of a value in a message


def settings_of(config: Any, *harmless: str) -> dict[str, Any]:
    """The settings that results depend on, as JSON values.

    Args:
        config: an instance of a dataclass.
        harmless: names of fields that change no result here, beside those of `HARMLESS`.
    """
    without = HARMLESS.union(harmless)
    kept = {name: value for name, value in asdict(config).items() if name not in without}
    for name in PLACES & kept.keys():  # the same folder, from wherever it is named
        if isinstance(kept[name], str) and os.path.exists(kept[name]):
            kept[name] = os.path.realpath(kept[name])
    return _plain(kept)


def keep_record(
    path: Path, settings: Mapping[str, Any], notes: Mapping[str, Any] | None = None
) -> None:
    """Writes a folder's settings, or checks that the folder was begun with the same.

    Args:
        path: the JSON file.
        settings: what the folder's results depend on, as JSON values.
        notes: written beside the settings when the file is new, and not compared.

    Raises:
        ValueError: the file has other settings; the message names the first. Or it is damaged.
    """
    notes = notes or {}
    if not path.exists():
        write_json({**settings, **notes}, path)
        return
    kept = {name: value for name, value in read_json(path).items() if name not in notes}
    if difference := changed(kept, settings):
        raise ValueError(f"{path} was begun with other settings: {difference}. Choose another.")


def changed(old: Any, new: Any, name: str = "settings") -> str | None:
    """The first difference of two settings as words, "epochs was 20, now is 30"; None = equal.

    Mappings and lists are searched through: "folds.3.test.0" is what differs in them. A setting that
    one of the two lacks counts as None.

    Args:
        old, new: the settings, or parts of them.
        name: what the parts are called.
    """
    old, new = _plain(old), _plain(new)
    if old == new:
        return None
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"the number of {name} was {len(old)}, now is {len(new)}"
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        outer = "" if name == "settings" else f"{name}."
        for key in dict.fromkeys([*new, *old]):
            if key in DATA:  # records of earlier versions have some
                continue
            if difference := changed(old.get(key), new.get(key), f"{outer}{key}"):
                return difference
        return None
    return f"{name} was {old!r:.{_SHOWN}}, now is {new!r:.{_SHOWN}}"


def _plain(value: Any) -> Any:
    """As it comes back from a JSON file."""
    return json.loads(json.dumps(value))
