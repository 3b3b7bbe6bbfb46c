"""What the page draws itself, as HTML: messages, numbers and the valence–arousal plane.

All else is drawn by gradio's own components. drawings.html has the shapes, style.css the looks, and the
palette the colours. Words of users and models are escaped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

HINT = '<p class="hint">The answer comes here.</p>'
_HTML = Path(__file__).with_name("drawings.html").read_text(encoding="utf-8")
_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_MACROS: Any = _ENVIRONMENT.from_string(_HTML).module


def message(text: str) -> str:
    """What went wrong."""
    return str(_MACROS.message(text))


def summary(
    result: Mapping[str, Any], numbers: Mapping[str, float], dimension_range: tuple[float, float]
) -> str:
    """Dimensions as numbers, and what is missing in them.

    Args:
        result: of the pipeline.
        numbers: its dimensions by name.
        dimension_range: lowest and highest value of the scale.
    """
    return str(_MACROS.summary(result, numbers, *dimension_range))


def plane(
    result: Mapping[str, Any], colours: Mapping[str, str], dimension_range: tuple[float, float]
) -> str:
    """The valence–arousal plane: the whole as a large dot, a timeline's windows as small ones.

    Args:
        result: of the pipeline, with valence and arousal.
        colours: of every emotion of the model.
        dimension_range: lowest and highest value of the scale.
    """
    return str(_MACROS.plane(result, colours, *dimension_range))
