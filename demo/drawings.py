"""What the page draws itself, as HTML: messages, numbers and the valence–arousal plane.

All else is drawn by gradio's own components. style.css has the looks, and the palette the colours.
Words of users and models are escaped.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

CORNERS = {
    "tense": (0.25, 0.75),
    "excited": (0.75, 0.75),
    "gloomy": (0.25, 0.25),
    "calm": (0.75, 0.25),
}
MISSING = {"audio": "No recording was heard.", "text": "No words were read."}
UNFAMILIAR = {
    "audio": "The recording is unlike what the model was trained on.",
    "text": "The words are unlike what the model was trained on.",
}
SIDE, EDGE = 240, 30  # of the plane, and around it, in the drawing's own units

HINT = '<p class="hint">The answer comes here.</p>'


def message(text: str) -> str:
    """What went wrong."""
    return f'<p class="refused" role="alert">{escape(text)}</p>'


def summary(result: Mapping[str, Any], dimension_range: tuple[float, float]) -> str:
    """Dimensions as numbers, and what is missing in them."""
    low, high = dimension_range
    said = [
        f"<span>{escape(name)} <b>{value:.2f}</b></span>"
        for name, value in dimensions(result).items()
    ]
    if said:
        said.append(f"<span>on a scale from {low:g} to {high:g}</span>")
    notes = ["The model is not sure of an emotion."] if result.get("unsure") else []
    if "agreement" in result:
        notes.append(f"About {result['agreement']:.0%} of listeners would agree.")
    notes += ["The recording has no signal."] if result.get("no_signal") else []
    notes += [MISSING[modality] for modality in result["missing"]]
    notes += [UNFAMILIAR[modality] for modality in result.get("unfamiliar", ())]
    if result["untrained"]:
        notes.append(f"This model was never trained for: {', '.join(result['untrained'])}.")
    return f'<div class="numbers">{"".join(said)}</div><p>{escape(" ".join(notes))}</p>'


def dimensions(*entries: Mapping[str, Any]) -> dict[str, float]:
    """Valence, arousal and others by name, of the first entry that has a signal; those that were trained."""
    entry = next((entry for entry in entries if entry.get("scores")), entries[0])
    others = ("start", "end", "agreement")
    numbers = {k: v for k, v in entry.items() if isinstance(v, float) and k not in others}
    return {k: v for k, v in numbers.items() if not k.endswith("_sd")}


def plane(
    result: Mapping[str, Any], colours: Mapping[str, str], dimension_range: tuple[float, float]
) -> str:
    """The valence–arousal plane: the whole as a large dot, a timeline's windows as small ones.

    Args:
        result: of the pipeline, with valence and arousal.
        colours: of every emotion of the model.
        dimension_range: lowest and highest value of the scale.
    """
    low, high = dimension_range

    def dot(entry: Mapping[str, Any], radius: int, kind: str) -> str:
        right, up = ((entry[name] - low) / (high - low) for name in ("valence", "arousal"))
        x, y = EDGE + SIDE * right, EDGE + SIDE * (1 - up)
        emotion = entry.get("emotion") or ""  # None is unsure
        colour = colours.get(emotion, "currentColor")
        tip = f"{emotion} valence {entry['valence']:.2f}, arousal {entry['arousal']:.2f}"
        return (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">'
            f"<title>{escape(tip.strip())}</title></circle>"
        )

    end, middle = EDGE + SIDE, EDGE + SIDE / 2
    corners = "".join(
        f'<text class="corner" x="{EDGE + SIDE * x}" y="{EDGE + SIDE * (1 - y)}">{word}</text>'
        for word, (x, y) in CORNERS.items()
    )
    dots = "".join(dot(e, 4, "window") for e in result.get("timeline", []) if e["scores"])
    drawn = f"""<svg viewBox="0 0 {SIDE + 2 * EDGE} {SIDE + 2 * EDGE}" role="img"
      aria-label="valence {result["valence"]:.2f}, arousal {result["arousal"]:.2f}">
      <rect x="{EDGE}" y="{EDGE}" width="{SIDE}" height="{SIDE}" />
      <path d="M{EDGE} {middle}H{end}M{middle} {EDGE}V{end}" />{corners}
      <text x="{middle}" y="{end + 20}">valence: unpleasant → pleasant</text>
      <text transform="translate({EDGE - 12} {middle}) rotate(-90)">arousal: calm → excited</text>
      {dots}{dot(result, 9, "whole")}</svg>"""
    return f'<figure class="plane">{drawn}</figure>'
