"""Every bad input that is quickly tried gets its answer; `make stress` tries the heavy ones too."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import stress
from bad_inputs.case import Case

CASES = [case for area in stress.AREAS for case in stress.cases(area)]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in CASES if not case.heavy]
)
def test_bad_input_gets_its_answer(case: Case, tmp_path: Path) -> None:
    case.check(tmp_path)


def test_names_of_bad_inputs_are_distinct() -> None:
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("name", "attempt", "error", "outcome"),
    [
        ("answers", lambda folder: 1.0, None, "finite results"),
        ("refuses", lambda folder: int("x"), "invalid literal", "clear errors"),
        ("is not finite", lambda folder: {"a": [float("nan")]}, None, "wrong answers"),
        ("answers wrongly", lambda folder: 1.0, "too long", "wrong answers"),
        ("says something else", lambda folder: int("x"), "too long", "wrong answers"),
        ("breaks", lambda folder: dict[str, int]()["x"], "too long", "crashes"),
        ("ends the process", lambda folder: os._exit(3), None, "crashes"),
        ("hangs", lambda folder: time.sleep(60), None, "hangs"),
    ],
)
def test_stress_tells_outcomes_apart(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    attempt: Callable[[Path], object],
    error: str | None,
    outcome: str,
) -> None:
    if outcome == "hangs":
        monkeypatch.setattr(stress, "LIMIT_S", 0.1)
    assert stress.tried(Case(name, attempt, error))[0] == outcome
