"""Texts: templates of tables in Markdown and of what commands print, and how numbers are written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def title(metric: str) -> str:
    """A metric's name as tables print it."""
    return metric.replace("_", " ")


def number(value: float | None, sign: str = "") -> str:
    """Three decimals with a true minus sign, or a dash for what has no value: None, or NaN."""
    return "–" if value is None or value != value else f"{value:{sign}.3f}".replace("-", "−")


def spread(values: Mapping[str, Any], sign: str = "") -> str:
    """Mean ± sd; of one fold the value alone."""
    shown = number(values["mean"], sign)
    return shown if values["sd"] is None else f"{shown} ± {number(values['sd'])}"


def folds_of(summary: Mapping[str, Any]) -> str:
    """How many folds of an experiment are done, and of how many."""
    done, missing = len(summary["folds"]), len(summary["missing_folds"])
    if missing:
        return f"{done} of {done + missing} folds"
    return "1 fold" if done == 1 else f"{done} folds"


def render(template: str, **values: Any) -> str:
    """A text of a template in templates/, with one line end at its end."""
    return f"{_TEMPLATES.get_template(template).render(**values).rstrip()}\n"


def say(template: str, **values: Any) -> None:
    """Prints the same."""
    print(render(template, **values), end="", flush=True)


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"spaced": title, "number": number, "spread": spread, "folds": folds_of}
