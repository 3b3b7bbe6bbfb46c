"""Pictures of what the pipeline answers: timelines, explanations, the valence–arousal plane.

    figure = draw_timeline(predict("meeting.wav"))
    style.save(figure, "meeting.png")

Each function takes results as the pipeline gives them and returns a figure.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from mtmm_training.pictures.palette import COLOURS, GREY, dimensions_of
from mtmm_training.pictures.style import (
    below,
    dimension_style,
    emotion_styles,
    new_figure,
    prepare_plane,
    scale_limits,
)

READ, MATTERED = COLOURS[0], COLOURS[1]  # of the two sides of an explanation
TICKS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
MOST_TICKS = 12
MOST_WORDS = 40  # of an explanation: as many as a page can hold
DIMENSION_RANGE = (1.0, 5.0)  # as in the configuration


# ---- the timeline ------------------------------------------------------------------------------


def draw_timeline(
    result: Mapping[str, Any],
    truth: Sequence[tuple[float, float, str]] | None = None,
    title: str | None = None,
    dimension_range: Sequence[float] = DIMENSION_RANGE,
) -> Figure:
    """Draws a recording's emotions, confidence and dimensions over time.

    A window is drawn from its start to its end, or to the start of the next one that overlaps it.

    Args:
        result: of the pipeline, with "timeline".
        truth: (start, end, emotion) of the labels, seconds, drawn as black lines below the bars of
            their emotion.
        title: printed above.
        dimension_range: lowest and highest value of the model's dimensions.

    Raises:
        ValueError: the result has no timeline.
    """
    if not result.get("timeline"):
        raise ValueError("the result has no `timeline`; predict with `window_s` or segments.")
    timeline = _Timeline(result["timeline"], truth or [], dimension_range)
    entries = timeline.entries
    speakers = sorted({entry["speaker"] for entry in entries if "speaker" in entry})
    panels: list[tuple[float, Callable[[Axes], None]]] = []  # height in inches, drawer
    if "emotion" in entries[0]:
        names = {name for entry in entries for name in (*entry["scores"], named(entry))}
        emotions = sorted(names | {name for _, _, name in timeline.truth})
        panels.append((0.32 * len(emotions) + 0.4, partial(timeline.draw_emotions, emotions)))
        panels.append((1.2, timeline.draw_confidence))
        if speakers:
            height = 0.42 * len(speakers) + 0.5
            panels.append((height, partial(timeline.draw_speakers, speakers)))
    if timeline.dimensions:
        panels += [(1.9, partial(timeline.draw_curves, who)) for who in speakers or [None]]

    heights = [height for height, _ in panels]
    shape = {"nrows": len(panels), "sharex": True, "squeeze": False, "height_ratios": heights}
    figure, grid = new_figure(10, sum(heights) + 0.9, **shape)
    axes = grid[:, 0]
    for panel, (_, draw) in zip(axes, panels, strict=True):
        draw(panel)
    axes[-1].set_xlim(timeline.spans[0, 0], max(entry["end"] for entry in entries))
    _time_axis(axes[-1])
    lines = filter(None, [title, _what_is_missing(entries)])
    figure.suptitle(_plain("\n".join(lines)), fontsize="medium")
    return figure


def named(entry: Mapping[str, Any]) -> str:
    """The emotion of an answer with emotions, or "unsure"."""
    return entry["emotion"] or ("unsure" if entry["scores"] else "no signal")


class _Timeline:
    """The entries of a timeline, and how each of its panels is drawn."""

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        truth: Sequence[tuple[float, float, str]],
        dimension_range: Sequence[float],
    ) -> None:
        self.entries, self.truth, self.dimension_range = entries, truth, dimension_range
        self.dimensions = dimensions_of(*entries)
        starts, ends = (np.array([entry[k] for entry in entries], float) for k in ("start", "end"))
        ends[:-1] = np.minimum(ends[:-1], np.maximum(starts[1:], starts[:-1]))
        self.spans = np.stack([starts, ends], axis=1)
        self.width = 1.5 if len(entries) <= 100 else 0.8  # of lines

    def draw_emotions(self, emotions: Sequence[str], axes: Axes) -> None:
        """A row per emotion."""
        styles = emotion_styles(emotions)
        for row, name in enumerate(emotions):
            said = np.array([named(entry) == name for entry in self.entries])
            bars = [(start, end - start) for start, end in self.spans[said]]
            axes.broken_barh(bars, (row - 0.3, 0.6), color=styles[name]["color"], linewidth=0)
            for start, end, label in self.truth:
                if label == name:
                    axes.plot([start, end], [row + 0.42] * 2, color="black", linewidth=2.5,
                              solid_capstyle="butt")  # fmt: skip
        _name_rows(axes, emotions)
        axes.set_ylabel("emotion")
        if self.truth:
            axes.set_title("bars: predicted; black lines: labelled", fontsize="small", loc="right")

    def draw_speakers(self, speakers: Sequence[str], axes: Axes) -> None:
        """A row per speaker, in the colours of their emotions; the first letter tells them apart too."""
        styles = emotion_styles({named(entry) for entry in self.entries})
        for entry, (start, end) in zip(self.entries, self.spans, strict=True):
            if "speaker" not in entry:
                continue
            row, name = speakers.index(entry["speaker"]), named(entry)
            axes.broken_barh([(start, end - start)], (row - 0.3, 0.6), color=styles[name]["color"])
            if end - start > 0.01 * self.spans[-1, 1]:
                axes.text((start + end) / 2, row, name[:1], ha="center", va="center",
                          color="white", fontsize="small", fontweight="bold")  # fmt: skip
        _name_rows(axes, speakers)
        axes.set_ylabel("speaker")

    def draw_confidence(self, axes: Axes) -> None:
        shares = np.array([max(entry["scores"].values(), default=np.nan) for entry in self.entries])
        axes.plot(*_steps(self.spans, shares), color="black", linewidth=self.width)
        axes.set(ylim=(0, 1.03), ylabel="confidence", yticks=[0, 0.5, 1])
        axes.grid(alpha=0.3)

    def draw_curves(self, speaker: str | None, axes: Axes) -> None:
        """The dimensions over time; of one speaker alone, in a panel with the name."""
        own = [i for i, entry in enumerate(self.entries)
               if speaker is None or entry.get("speaker") == speaker]  # fmt: skip
        low, high = self.dimension_range
        axes.axhline((low + high) / 2, color=GREY, linewidth=0.8, linestyle=":")
        drawn = []
        for name in self.dimensions:
            drawn.append(np.array([self.entries[i][name] for i in own], float))
            look = dimension_style(name) | {"linewidth": 1.3 * self.width}
            axes.plot(*_steps(self.spans[own], drawn[-1]), label=name, **look)
        axes.set(ylim=scale_limits(drawn, self.dimension_range), ylabel=f"{low:g} to {high:g}")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(alpha=0.3)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0
        )
        axes.set_title(_plain(speaker or ""), fontsize="small", loc="right")


def _steps(spans: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line that is level over each span, and broken where nothing was said between two."""
    gap = np.append(spans[1:, 0] > spans[:-1, 1] + 1e-6, True)
    times = np.column_stack([spans, spans[:, 1]])
    levels = np.column_stack([values, values, np.where(gap, np.nan, values)])
    return times.ravel(), levels.ravel()


def _what_is_missing(entries: Sequence[Mapping[str, Any]]) -> str:
    """In how many windows the text or the audio was missing."""
    said = []
    for modality in ("audio", "text"):
        count = sum(modality in entry["missing"] for entry in entries)
        if count:
            some = f" in {count} of {len(entries)} windows" if count < len(entries) else ""
            said.append(f"no {modality}{some}")
    return ", ".join(said)


# ---- the explanation ---------------------------------------------------------------------------


def draw_explanation(
    result: Mapping[str, Any],
    waveform: np.ndarray | None = None,
    sampling_rate: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draws what the bridge tokens read (left) and what mattered when left out (right).

    Args:
        result: of the pipeline with `explain`; of a timeline, one of its entries.
        waveform: (time,) of the whole recording, drawn behind the moments.
        sampling_rate: of the waveform, Hz.
        title: printed above.

    Raises:
        ValueError: the result has no explanation.
    """
    explanation = result.get("explanation")
    if explanation is None:
        raise ValueError("the result has no `explanation`; predict with `explain=True`.")
    # Numbers of the words; where there are too many, of those that mattered most.
    falls = [abs(word["share"] or 0) for word in explanation["occlusion"]["words"]]
    words = sorted(np.argsort(falls, kind="stable")[::-1][:MOST_WORDS].tolist())
    panels: list[tuple[float, str]] = [(0.9, "modalities")]
    panels += [(1.7, "time")] if explanation["time"] else []
    panels += [(0.22 * len(words) + 0.5, "words")] if words else []

    heights = [height for height, _ in panels]
    rows = {"nrows": len(panels), "ncols": 2, "squeeze": False, "height_ratios": heights}
    figure, grid = new_figure(10, sum(heights) + 1.4, **rows)
    sides = (explanation, READ), (explanation["occlusion"], MATTERED)
    for (_, kind), row in zip(panels, grid, strict=True):
        for axes, (side, colour) in zip(row, sides, strict=True):
            if kind == "modalities":
                _draw_bars(axes, side["modalities"].items(), colour)
            elif kind == "time":
                _draw_moments(axes, side["time"], colour, waveform, sampling_rate)
            else:
                drawn = [side["words"][i] for i in words]
                _draw_bars(axes, [(word["text"], word["share"]) for word in drawn], colour)
        row[1].tick_params(labelleft=kind == "time")
        if kind != "modalities":
            rho = explanation["agreement"][kind]
            agreement = "too few to compare" if rho is None else f"agreement ρ = {rho:.2f}"
            note = f"{kind}; {agreement}".replace("-", "−")
            row[1].set_title(note, fontsize="small", loc="right")
    of = explanation["occlusion"]["of"]
    grid[0, 0].set_title("read: share of the bridge tokens' attention", fontsize="medium")
    measure = f"log probability of {of}" if of == result.get("emotion") else of
    grid[0, 1].set_title(f"mattered: fall of the {measure} without it", fontsize="medium")
    if len(words) < len(explanation["words"]):
        note = f"the {len(words)} words of {len(explanation['words'])} that mattered most"
        grid[-1, 0].set_title(note, fontsize="small", loc="left")
    figure.suptitle(_plain(title or ""), fontsize="medium")
    return figure


def _draw_bars(axes: Axes, shares: Iterable[tuple[str, float | None]], colour: str) -> None:
    """Bars to the right, hatched where they go to the left; words where there is no value."""
    names, values = zip(*shares, strict=True)
    lengths = [value or 0.0 for value in values]
    bars = axes.barh(range(len(names)), lengths, color=colour, height=0.7)
    _hatch_below_zero(bars.patches, lengths)
    for row, value in enumerate(values):
        if value is None:
            axes.text(0, row, "  nothing would be left", va="center", color=GREY)
    _name_rows(axes, names)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(*_with_room(lengths))


def _draw_moments(
    axes: Axes,
    moments: Sequence[Mapping[str, float]],
    colour: str,
    waveform: np.ndarray | None,
    sampling_rate: int | None,
) -> None:
    starts, ends, shares = np.array([[s[k] for k in ("start", "end", "share")] for s in moments]).T
    low, high = _with_room(shares)
    if waveform is not None and sampling_rate is not None:
        _draw_waveform(axes, np.asarray(waveform), sampling_rate, (starts[0], ends[-1]))
    look: dict[str, Any] = {"color": colour, "alpha": 0.6, "edgecolor": "white"}
    bars = axes.bar(starts, shares, ends - starts, align="edge", **look)
    _hatch_below_zero(bars.patches, shares)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlim=(starts[0], ends[-1]), ylim=(low, high))
    _time_axis(axes)


def _draw_waveform(
    axes: Axes, waveform: np.ndarray, sampling_rate: int, span: tuple[float, float]
) -> None:
    """The waveform's envelope in grey behind everything, over the whole height."""
    first, last = (round(second * sampling_rate) for second in span)
    samples = np.abs(waveform[first:last])
    if not samples.size or not samples.max():
        return
    columns = np.array_split(samples, min(600, len(samples)))
    peaks = np.array([column.max() for column in columns]) / samples.max()
    behind = axes.twinx()
    behind.fill_between(np.linspace(*span, len(peaks)), -peaks, peaks, color="0.8", linewidth=0)
    behind.set(ylim=(-1.05, 1.05), yticks=[])
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)  # or it hides the waveform


def _hatch_below_zero(bars: Sequence[Patch], values: Sequence[float]) -> None:
    for bar, value in zip(bars, values, strict=True):
        if value < 0:
            bar.set(hatch="///", facecolor="white", edgecolor="black", linewidth=0.8)


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold zero and all values; never a range of nothing."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * (high - low) or 0.01
    return (low - room if low < 0 else 0.0), high + room


# ---- the plane ---------------------------------------------------------------------------------


def draw_plane(
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    dimension_range: Sequence[float] = DIMENSION_RANGE,
) -> Figure:
    """Draws each result as a point in the valence–arousal plane.

    Args:
        results: of the pipeline, or the entries of a timeline.
        names: written beside the points, one for each.
        dimension_range: lowest and highest value of the model's dimensions.

    Raises:
        ValueError: names are too few or too many, or the model is not trained for both dimensions.
    """
    if lacking := {"valence", "arousal"} - results[0].keys():
        raise ValueError(f"the results have no {' and no '.join(sorted(lacking))} to draw.")
    low, high = dimension_range
    figure, axes = new_figure(5.6, 5.6)
    prepare_plane(axes, dimension_range)
    points = np.array([[result["valence"], result["arousal"]] for result in results])
    emotions = np.array([named(result) if "emotion" in result else "" for result in results])
    few = len(points) <= 30
    size: dict[str, Any] = {"markersize": 9 if few else 5, "alpha": 1 if few else 0.6}
    styles: dict[str, dict[str, Any]] = {"": {"color": "black", "marker": ".", "linestyle": ""}}
    styles |= emotion_styles(set(emotions.tolist()) - {""})
    for emotion in sorted(set(emotions.tolist())):
        chosen = points[emotions == emotion]
        label = _plain(emotion) or "no emotion"
        axes.plot(*chosen.T, label=label, **size, **styles[emotion])
    names = [""] * len(results) if names is None else names
    for name, (valence, arousal) in zip(names, points, strict=True):
        left = valence > low + 0.75 * (high - low)  # to the right it would leave the plane
        axes.annotate(
            _plain(name), (valence, arousal), xytext=(-7 if left else 7, 4),
            textcoords="offset points", ha="right" if left else "left", fontsize="small",
        )  # fmt: skip
    limits = scale_limits([points], dimension_range)
    axes.set(xlim=limits, ylim=limits)
    below(figure, axes, columns=4)
    return figure


# ---- shared ------------------------------------------------------------------------------------


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A name for each row, the first on top."""
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)


def _plain(text: str) -> str:
    """Dollar signs as such: two of them would begin and end a formula."""
    return text.replace("$", r"\$")


def _time_axis(axes: Axes) -> None:
    """Ticks at whole seconds, minutes or hours; an hour reads 1:00:00."""
    first, last = axes.get_xlim()
    step = next((s for s in TICKS_S if (last - first) / s <= MOST_TICKS), TICKS_S[-1])
    while (last - first) / step > MOST_TICKS:
        step *= 2
    axes.xaxis.set_major_locator(MultipleLocator(step))
    if last <= 120:
        axes.set_xlabel("time (s)")
        return

    def clock(second: float, _: object) -> str:
        minutes, rest = divmod(math.floor(second + 0.5), 60)
        if last < 3600:
            return f"{minutes}:{rest:02d}"
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

    axes.xaxis.set_major_formatter(FuncFormatter(clock))
    axes.set_xlabel("time (h:min:s)" if last >= 3600 else "time (min:s)")
