"""What the page draws, as HTML from the pipeline's results: messages, plane, timeline, explanation.

A Space has no checkout, so mtmm_training/pictures/pictures.py is not at hand there; and what is drawn here
keeps its letters readable on a phone. style.css has the looks. As in the pictures, colour never
stands alone. Words of users and models are escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

# As in mtmm_training/pictures/pictures.py; emotions of other names take turns at what is left.
COLOURS = {
    "angry": "#D55E00",
    "happy": "#E69F00",
    "sad": "#0072B2",
    "neutral": "#737373",
    "fearful": "#CC79A7",
    "surprised": "#56B4E9",
    "disgusted": "#009E73",
}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#0072B2", "#D55E00", "#E69F00")
CORNERS = {
    "tense": (0.25, 0.75),
    "excited": (0.75, 0.75),
    "gloomy": (0.25, 0.25),
    "calm": (0.75, 0.25),
}
COLUMNS = 240  # of the waveform
MISSING = {"audio": "No recording was heard.", "text": "No words were read."}


def message(text: str) -> str:
    """What went wrong."""
    return f'<p class="refused" role="alert">{escape(text)}</p>'


def hint() -> str:
    """In the answer's place, while there is none."""
    return '<p class="hint">The answer comes here.</p>'


def summary(result: Mapping[str, Any], dimension_range: Sequence[float]) -> str:
    """Dimensions as numbers, and what is missing in them."""
    low, high = dimension_range
    said = [
        f"<span>{escape(name)} <b>{value:.2f}</b></span>"
        for name, value in dimensions(result).items()
    ]
    if said:
        said.append(f"<span>on a scale from {low:g} to {high:g}</span>")
    notes = [MISSING[modality] for modality in result["missing"]]
    if result["untrained"]:
        notes.append(f"This model was never trained for: {', '.join(result['untrained'])}.")
    return f'<div class="numbers">{"".join(said)}</div><p>{escape(" ".join(notes))}</p>'


def dimensions(entry: Mapping[str, Any]) -> dict[str, float]:
    """Valence, arousal and others by name."""
    times = ("start", "end")
    return {k: v for k, v in entry.items() if isinstance(v, float) and k not in times}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each emotion."""
    others = [name for name in names if name not in COLOURS]
    turns = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return COLOURS | turns


# ---- the plane -----------------------------------------------------------------------------------

SIDE, EDGE = 240, 30  # of the plane, and around it, in the drawing's own units


def plane(result: Mapping[str, Any], names: Sequence[str], dimension_range: Sequence[float]) -> str:
    """The valence–arousal plane: the whole as a large dot, a timeline's windows as small ones.

    Args:
        result: The pipeline's.
        names: All emotions of the model, in its order.
        dimension_range: Lowest and highest value of the scale.

    Returns:
        HTML; empty where valence or arousal is untrained.
    """
    if not {"valence", "arousal"} <= result.keys():
        return ""
    low, high = dimension_range
    paint = colours(names)

    def dot(entry: Mapping[str, Any], radius: int, kind: str) -> str:
        share = [(entry[name] - low) / (high - low) for name in ("valence", "arousal")]
        x, y = EDGE + SIDE * share[0], EDGE + SIDE * (1 - share[1])
        colour = paint[entry["emotion"]] if "emotion" in entry else "currentColor"
        tip = f"{entry.get('emotion', '')} valence {entry['valence']:.2f}, arousal {entry['arousal']:.2f}"
        return (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">'
            f"<title>{escape(tip.strip())}</title></circle>"
        )

    end, middle = EDGE + SIDE, EDGE + SIDE / 2
    corners = "".join(
        f'<text class="corner" x="{EDGE + SIDE * x}" y="{EDGE + SIDE * (1 - y)}">{word}</text>'
        for word, (x, y) in CORNERS.items()
    )
    dots = "".join(dot(entry, 4, "window") for entry in result.get("timeline", []))
    drawn = f"""<svg viewBox="0 0 {SIDE + 2 * EDGE} {SIDE + 2 * EDGE}" role="img"
      aria-label="valence {result["valence"]:.2f}, arousal {result["arousal"]:.2f}">
      <rect x="{EDGE}" y="{EDGE}" width="{SIDE}" height="{SIDE}" />
      <path d="M{EDGE} {middle}H{end}M{middle} {EDGE}V{end}" />{corners}
      <text x="{middle}" y="{end + 20}">valence: unpleasant → pleasant</text>
      <text transform="translate({EDGE - 12} {middle}) rotate(-90)">arousal: calm → excited</text>
      {dots}{dot(result, 9, "whole")}</svg>"""
    return f'<figure class="plane">{drawn}</figure>'


# ---- the timeline --------------------------------------------------------------------------------


def timeline(
    result: Mapping[str, Any], names: Sequence[str], dimension_range: Sequence[float]
) -> str:
    """A bar for each window, as high as its emotion is probable; curves of dimensions; the numbers.

    Args:
        result, names, dimension_range: As of `plane`.

    Returns:
        HTML; empty without a timeline.
    """
    entries = result.get("timeline")
    if not entries:
        return ""
    ends = [following["start"] for following in entries[1:]] + [entries[-1]["end"]]
    spans = [(e["start"], min(e["end"], end)) for e, end in zip(entries, ends, strict=True)]
    last_s = entries[-1]["end"]
    parts = [f"<h3>Over time</h3><p>{len(entries)} windows, each heard by itself.</p>"]
    if "emotion" in result:
        parts.append(_band(entries, spans, names, last_s))
    if dimensions(result):
        parts.append(_curves(entries, spans, dimension_range, last_s))
    times = "".join(f"<span>{clock(second)}</span>" for second in (0, last_s / 2, last_s))
    parts += [f'<div class="clock">{times}</div>', _table(entries)]
    return f'<figure class="timeline">{"".join(parts)}</figure>'


def _band(
    entries: Sequence[Mapping[str, Any]],
    spans: Sequence[tuple[float, float]],
    names: Sequence[str],
    last_s: float,
) -> str:
    paint = colours(names)
    bars = []
    for entry, (start, end) in zip(entries, spans, strict=True):
        emotion, share = entry["emotion"], entry["scores"][entry["emotion"]]
        place = f"left:{_percent(start / last_s)};width:{_percent((end - start) / last_s)}"
        look = f"height:{_percent(share)};background:{paint[emotion]}"
        tip = f"{clock(start)}–{clock(end)} {emotion} {share:.2f}"
        bars.append(f'<i style="{place};{look}" title="{escape(tip)}"></i>')
    heard = [name for name in names if any(entry["emotion"] == name for entry in entries)]
    key = "".join(f'<span><i style="background:{paint[n]}"></i>{escape(n)}</span>' for n in heard)
    return (
        f'<div class="key">{key}<span>height: its probability</span></div>'
        f'<div class="band">{"".join(bars)}</div>'
    )


def _curves(
    entries: Sequence[Mapping[str, Any]],
    spans: Sequence[tuple[float, float]],
    dimension_range: Sequence[float],
    last_s: float,
) -> str:
    low, high = dimension_range
    lines, key = [], []
    for i, name in enumerate(dimensions(entries[0])):
        heights = [100 * (1 - (entry[name] - low) / (high - low)) for entry in entries]
        steps = " ".join(
            f"{1000 * time / last_s:.1f},{height:.1f}"
            for span, height in zip(spans, heights, strict=True)
            for time in span
        )
        lines.append(f'<polyline class="line{i % 3}" points="{steps}" />')
        sample = f'<svg viewBox="0 0 30 8"><line class="line{i % 3}" x2="30" y1="4" y2="4" /></svg>'
        key.append(f"<span>{sample}{escape(name)}</span>")
    return (
        f'<div class="key">{"".join(key)}<span>from {low:g} (bottom) to {high:g} (top)</span></div>'
        '<svg class="curves" viewBox="0 0 1000 100" preserveAspectRatio="none">'
        f'<line class="middle" x2="1000" y1="50" y2="50" />{"".join(lines)}</svg>'
    )


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The same in numbers."""
    names = list(dimensions(entries[0]))
    has_emotion = "emotion" in entries[0]
    head = ["time"] + ["emotion", "probability"] * has_emotion + names
    rows = []
    for entry in entries:
        cells = [f"{clock(entry['start'])}–{clock(entry['end'])}"]
        if has_emotion:
            cells += [entry["emotion"], f"{entry['scores'][entry['emotion']]:.2f}"]
        rows.append(cells + [f"{entry[name]:.2f}" for name in names])
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return (
        "<details><summary>All windows in numbers</summary><div><table>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


# ---- the explanation -----------------------------------------------------------------------------


def explanation(result: Mapping[str, Any], peaks: np.ndarray | None) -> str:
    """What mattered when it was left out, and what the bridge tokens read, over waveform and words.

    Args:
        result: The pipeline's.
        peaks: (stretches,) largest amplitudes at equal distances over the whole recording.

    Returns:
        HTML; empty without an explanation.
    """
    found = result.get("explanation")
    if not found:
        return ""
    left_out, of = found["occlusion"], escape(found["occlusion"]["of"])
    parts = [
        f"<h3>Why {of}?</h3><p>Each part is left out once. The more its absence lowers the probability "
        f"of {of}, the stronger its colour; dashed: its absence raises it.</p>"
    ]
    if not result["missing"]:
        parts.append(_modalities(left_out["modalities"], of))
    if found["time"]:
        parts.append(_stretches(left_out["time"], peaks, "mattered"))
    if found["words"]:
        parts.append(_words(left_out["words"], "mattered"))
    parts.append(
        "<h4>What the model read</h4><p>Attention of its bridge tokens, which is no proof that it mattered."
    )
    agreement = {k: v for k, v in found["agreement"].items() if v is not None}
    if agreement:
        each = ", ".join(f"{_signed(f'{rho:.2f}')} over {name}" for name, rho in agreement.items())
        parts.append(f" Its agreement with the above (rank correlation, at most 1): {each}.")
    parts.append("</p>")
    if found["time"]:
        parts.append(_stretches(found["time"], peaks, "read"))
    if found["words"]:
        parts.append(_words(found["words"], "read"))
    return f'<figure class="why">{"".join(parts)}</figure>'


def change(fall: float | None) -> str:
    """A fall of the log probability as the probability's own change."""
    return "–" if fall is None else _signed(f"{100 * np.expm1(-fall):+.0f} %")


def _modalities(falls: Mapping[str, float | None], of: str) -> str:
    rows = "".join(
        f"<span>without {escape(name)}: <b>{change(fall)}</b></span>"
        for name, fall in falls.items()
    )
    return f'<div class="numbers">{rows}<span>of the probability of {of}</span></div>'


def _stretches(stretches: Sequence[Mapping[str, Any]], peaks: np.ndarray | None, kind: str) -> str:
    """Coloured stretches of time with the waveform over them."""
    last_s = stretches[-1]["end"]
    cells = []
    for stretch, strength in zip(stretches, strengths(stretches), strict=True):
        start, end = stretch["start"], stretch["end"]
        tip = f"{start:.1f}–{end:.1f} s: {_number(kind, stretch['share'])}"
        look = f"width:{_percent((end - start) / last_s)};--share:{strength:.3f}"
        cells.append(
            f'<i class="{_class(kind, stretch["share"])}" title="{tip}" style="{look}"></i>'
        )
    return (
        f'<div class="stretches">{"".join(cells)}{waveform(peaks)}</div>'
        f'<div class="clock"><span>0 s</span><span>{last_s:.1f} s</span></div>'
    )


def _words(words: Sequence[Mapping[str, Any]], kind: str) -> str:
    spans = []
    for word, strength in zip(words, strengths(words), strict=True):
        tip = _number(kind, word["share"])
        look = f'class="{_class(kind, word["share"])}" style="--share:{strength:.3f}"'
        spans.append(f'<span {look} title="{tip}">{escape(word["text"])}</span>')
    return f'<p class="words">{" ".join(spans)}</p>'


def strengths(places: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Sizes of the shares, of the largest one; 0 where there is none."""
    sizes = np.abs([place["share"] or 0.0 for place in places])
    return sizes / (sizes.max() or 1.0)


def _class(kind: str, share: float | None) -> str:
    return f"{kind} against" if share is not None and share < 0 else kind


def _number(kind: str, share: float | None) -> str:
    if kind == "read" and share is not None:
        return f"{100 * share:.0f} % of the attention"
    return change(share)


def waveform(peaks: np.ndarray | None) -> str:
    """The envelope, from peaks at equal distances."""
    if peaks is None:
        return ""
    columns = np.array_split(peaks, min(COLUMNS, len(peaks)))
    heights = 46 * np.array([column.max() for column in columns]) / peaks.max()
    edge = [(x + 0.5, 50 - height) for x, height in enumerate(heights)]
    edge += [(x, 100 - y) for x, y in reversed(edge)]
    points = " ".join(f"{x},{y:.1f}" for x, y in edge)
    return (
        f'<svg viewBox="0 0 {len(heights)} 100" preserveAspectRatio="none">'
        f'<polygon points="{points}" /></svg>'
    )


# ---- shared --------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """75.2 → "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _signed(number: str) -> str:
    return number.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
