"""A folder's settings: written once, compared afterwards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mtmm_training.data.record import HARMLESS, changed, keep_record, settings_of

FOLDS = [{"name": "a", "test": ["u1", "u2"]}, {"name": "b", "test": ["u3"]}]


@dataclass
class Config:
    epochs: int = 20
    workers: int = 4
    batch_size: int = 8
    betas: tuple[float, ...] = (0.9, 0.999)
    layers: list[int] = field(default_factory=list)


def test_settings_are_without_what_changes_no_result() -> None:
    assert settings_of(Config()) == {
        "epochs": 20, "batch_size": 8, "betas": [0.9, 0.999], "layers": [],
    }  # fmt: skip
    assert "batch_size" not in settings_of(Config(), "batch_size")
    assert "workers" in HARMLESS


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({"a": 1, "b": None}, {"a": 1}, None),
        ({"a": (1, 2)}, {"a": [1, 2]}, None),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b was 2, now is 3"),
        ({"a": 1}, {"b": 1}, "b was None, now is 1"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b was 1, now is 2"),
        ({"folds": FOLDS}, {"folds": FOLDS[:1]}, "the number of folds was 2, now is 1"),
        ({"folds": FOLDS}, {"folds": [FOLDS[0], FOLDS[1] | {"test": ["u4"]}]},
         "folds.1.test.0 was 'u3', now is 'u4'"),
    ],
)  # fmt: skip
def test_first_difference_is_named(old: Any, new: Any, difference: str | None) -> None:
    assert changed(old, new) == difference


def test_long_values_are_abridged() -> None:
    difference = str(changed({"text": "a" * 5000}, {"text": "b" * 5000}))
    assert difference.startswith("text was 'aaa") and len(difference) < 200


def test_record_is_kept_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.json"
    keep_record(path, {"epochs": 20, "folds": FOLDS}, {"command": ["--epochs", "20"]})
    written = path.read_bytes()
    keep_record(path, {"epochs": 20, "folds": FOLDS}, {"command": ["--epochs=20"]})
    with pytest.raises(ValueError, match=f"{path} .*epochs was 20, now is 30"):
        keep_record(path, {"epochs": 30, "folds": FOLDS}, {"command": []})
    assert path.read_bytes() == written


def test_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"epochs"')
    with pytest.raises(ValueError, match="run.json"):
        keep_record(tmp_path / "run.json", {"epochs": 20})
