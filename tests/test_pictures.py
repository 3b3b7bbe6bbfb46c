"""python -m pytest tests/test_pictures.py -q"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread

from mtmm_training.pictures.of_answers import (
    MOST_WORDS,
    draw_explanation,
    draw_plane,
    draw_timeline,
)
from mtmm_training.pictures.palette import COLOURS, DIMENSIONS, EMOTIONS, colours, looks
from mtmm_training.pictures.style import save

FOUR = ["angry", "happy", "neutral", "sad"]


def an_entry(
    start: float,
    end: float,
    emotion: str | None = "sad",
    dimensions: bool = True,
    missing: tuple[str, ...] = (),
) -> dict[str, Any]:
    entry: dict[str, Any] = {"start": start, "end": end}
    if emotion is not None:
        scores = {name: 0.1 for name in FOUR} | {emotion: 0.7}
        entry |= {"emotion": emotion, "scores": scores}
    if dimensions:
        entry |= {"valence": 2.0 + start / 1e4, "arousal": 4.0}
    return entry | {"missing": list(missing)}


def an_explanation(words: int, stretches: int, of: str = "sad") -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def described(shares: np.ndarray, **modalities: float | None) -> dict[str, Any]:
        return {
            "modalities": modalities,
            "time": [
                {"start": 10 + i / 2, "end": 10.5 + i / 2, "share": float(shares[i])}
                for i in range(stretches)
            ],
            "words": [
                {"text": f"w{i}", "start_char": i, "end_char": i + 1, "share": float(share)}
                for i, share in enumerate(shares[stretches:])
            ],
        }

    read = generator.dirichlet(np.ones(words + stretches))
    falls = generator.normal(0, 1, words + stretches)
    occlusion = {"of": of} | described(falls, audio=None if not words else 0.5, text=0.0)
    agreement = {
        "time": 0.5 if stretches > 2 else None,
        "words": -0.25 if words > 2 else None,
    }
    return described(read, audio=0.5, text=0.5) | {"occlusion": occlusion, "agreement": agreement}


def texts(figure: Figure) -> list[str]:
    """Everything that is written in the picture, as far as it is shown."""
    figure.canvas.draw()
    found: list[Any] = figure.findobj(lambda a: hasattr(a, "get_text") and a.get_visible())
    return [artist.get_text() for artist in found if artist.get_text()]


HOUR = {"timeline": [an_entry(6.0 * i, 6.0 * i + 6, FOUR[i % 4]) for i in range(600)]}
THREE = {"timeline": [an_entry(0, 6), an_entry(3, 9, "happy"), an_entry(9, 12, "angry", True)]}
DRAWN = {
    "hour": lambda: draw_timeline(HOUR, [(0, 1800, "sad"), (1800, 3600, "bored")], "a"),
    "three": lambda: draw_timeline(THREE),
    "no dimensions": lambda: draw_timeline({"timeline": [an_entry(0, 6, dimensions=False)]}),
    "no emotion": lambda: draw_timeline({"timeline": [an_entry(0, 6, None)]}),
    "explanation": lambda: draw_explanation(
        an_entry(10, 13) | {"explanation": an_explanation(5, 6)}, np.ones(20 * 800), 800
    ),
    "silence": lambda: draw_explanation(
        an_entry(10, 11) | {"explanation": an_explanation(0, 2)}, np.zeros(20 * 800), 800
    ),
    "one word": lambda: draw_explanation({"explanation": an_explanation(1, 0, "valence")}),
    "plane": lambda: draw_plane([an_entry(0, 6), an_entry(0, 6, None)], ["a $b$", "c"]),
    "many points": lambda: draw_plane(HOUR["timeline"]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_picture_is_one_whole_png(name: str, tmp_path: Path) -> None:
    path = tmp_path / "made" / "picture.png"
    save(DRAWN[name](), path)
    assert imread(path)[..., :3].std() > 0.01
    assert {file.name for file in path.parent.iterdir()} == {"picture.png", "picture.pdf"}


def test_bars_lie_where_their_emotion_is_said() -> None:
    entries = [an_entry(0, 6, "sad"), an_entry(4, 10, "happy"), an_entry(12, 18, "sad")]
    axes = draw_timeline({"timeline": entries}, truth=[(0, 10, "angry")]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == FOUR
    bars: dict[str, list[tuple[Any, ...]]] = {}
    for bar in axes.collections:
        for path in bar.get_paths():
            (left, low), (right, high) = path.get_extents().get_points()
            colour = tuple(np.asarray(bar.get_facecolor())[0])
            emotion = FOUR[round((low + high) / 2)]
            bars.setdefault(emotion, []).append((left, right, colour))
    sad, happy = (to_rgba(EMOTIONS[name].colour) for name in ("sad", "happy"))
    # A window is drawn until the next one begins.
    assert bars == {"sad": [(0, 4, sad), (12, 18, sad)], "happy": [(4, 10, happy)]}
    (line,) = axes.lines
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert list(x) == [0, 10] and round(y[0] - 0.42) == 0


def test_curves_break_where_nothing_is_said() -> None:
    entries = [an_entry(0, 6), an_entry(6, 12), an_entry(20, 26)]
    axes = draw_timeline({"timeline": entries}).axes[2]
    curve = next(line for line in axes.lines if line.get_label() == "valence")
    points = np.column_stack([curve.get_xdata(), curve.get_ydata()])
    whole = points[~np.isnan(points[:, 1])]
    assert set(whole[:, 0]) == {0, 6, 12, 20, 26}
    broken = np.flatnonzero(np.isnan(points[:, 1]))
    assert points[broken[0] - 1, 0] == 12 and points[broken[0] + 1, 0] == 20


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([an_entry(0, 6, missing=("text",))] * 2, "no text"),
        ([an_entry(0, 6, missing=("text",)), an_entry(6, 9)], "no text in 1 of 2 windows"),
        ([an_entry(0, 6, missing=("audio",)), an_entry(6, 9)], "no audio in 1 of 2 windows"),
    ],
)
def test_what_is_missing_is_written(windows: list[dict[str, Any]], expected: str) -> None:
    figure = draw_timeline({"timeline": windows}, title="50$ and 60$")
    assert figure.get_suptitle() == r"50\$ and 60\$" + f"\n{expected}"


@pytest.mark.parametrize(
    ("end", "label"), [(12, "time (s)"), (600, "time (min:s)"), (3600, "time (h:min:s)")]
)
def test_time_is_written_in_the_unit_of_its_length(end: float, label: str) -> None:
    figure = draw_timeline({"timeline": [an_entry(0, end / 2), an_entry(end / 2, end)]})
    written = texts(figure)
    assert label in written
    ticks = [t.get_text() for t in figure.axes[-1].get_xticklabels()]
    assert len(ticks) <= 15
    if end == 3600:
        assert "0:30:00" in ticks and "1:00:00" in ticks
    elif end == 600:
        assert "5:00" in ticks


def test_explanation_shows_both_sides() -> None:
    explanation = an_explanation(4, 6)
    figure = draw_explanation(an_entry(10, 13) | {"explanation": explanation}, title="a.wav")
    grid: Any = np.reshape(np.array(figure.axes[:6]), (3, 2))
    (_, _), (read_time, left_time), (read_words, left_words) = grid
    for axes, shares in (
        (read_time, explanation["time"]),
        (left_time, explanation["occlusion"]["time"]),
    ):
        drawn = [
            (bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches
        ]
        assert drawn == pytest.approx(np.array([[*s.values()] for s in shares]))
    for axes, shares in (
        (read_words, explanation["words"]),
        (left_words, explanation["occlusion"]["words"]),
    ):
        assert [bar.get_width() for bar in axes.patches] == [word["share"] for word in shares]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first word is on top
        hatched = [bar.get_hatch() is not None for bar in axes.patches]
        assert hatched == [word["share"] < 0 for word in shares]
    written = texts(figure)
    assert "time; agreement ρ = 0.50" in written and "words; agreement ρ = −0.25" in written
    assert "mattered: fall of the log probability of sad without it" in written


def test_waveform_is_cut_to_the_stretches() -> None:
    waveform = np.zeros(20 * 800)
    waveform[11 * 800 : 12 * 800] = 0.3  # of the 13 s from 10 s on
    figure = draw_explanation(
        an_entry(10, 13) | {"explanation": an_explanation(0, 6)}, waveform, 800
    )
    behind = [axes for axes in figure.axes if axes.collections]
    assert len(behind) == 2
    for axes in behind:
        outline = np.asarray(axes.collections[0].get_paths()[0].vertices)
        loud = outline[np.abs(outline[:, 1]) > 0.5]
        assert loud[:, 0].min() == pytest.approx(11, abs=0.02)
        assert loud[:, 0].max() == pytest.approx(12, abs=0.02)


def test_long_transcripts_show_what_mattered() -> None:
    explanation = an_explanation(100, 0)
    explanation["occlusion"]["words"][70]["share"] = -9.0
    figure = draw_explanation({"explanation": explanation})
    written = texts(figure)
    assert "w70" in written and f"the {MOST_WORDS} words of 100 that mattered most" in written
    assert sum(text[0] == "w" and text[1:].isdigit() for text in written) == MOST_WORDS


def test_only_modality_has_words_instead_of_a_bar() -> None:
    figure = draw_explanation(an_entry(10, 11) | {"explanation": an_explanation(0, 2)})
    assert "  nothing would be left" in texts(figure)


def test_points_lie_at_their_values() -> None:
    results = [an_entry(0, 6, "sad"), an_entry(100, 106, "happy")]
    axes = draw_plane(results, ["a", "b"]).axes[0]
    points = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines[2:]}
    assert points == {"happy": [[2.01, 4.0]], "sad": [[2.0, 4.0]]}
    assert axes.get_xlim() == axes.get_ylim()
    assert [note.get_text() for note in axes.texts] == ["a", "b"]


def test_emotions_look_the_same_in_every_picture() -> None:
    many = [*FOUR, "anger", *(f"e{i}" for i in range(10))]
    found = looks(many)
    assert all(found[name] == EMOTIONS[name] for name in FOUR)
    assert found["anger"] == EMOTIONS["angry"]  # MELD's word for it
    assert len(set(found.values())) == len(many) - 1
    for name in ("e3", "proud"):
        alone = looks([name])[name]
        assert looks([*FOUR, name])[name] == alone and alone.colour in COLOURS
    assert colours(["sad"]) == {"sad": "#0072B2"}


@pytest.mark.parametrize("deficiency", ["none", "protanopia", "deuteranopia"])
def test_emotions_and_dimensions_differ_without_a_cone(deficiency: str) -> None:
    """The four emotions that most models know, and the dimensions, by distance in linear RGB."""
    # Viénot, Brettel and Mollon, "Digital video colourmaps", 1999.
    red_green = {
        "none": np.eye(3),
        "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }[deficiency]
    for hexes in (list(colours(FOUR).values()), [colour for colour, _ in DIMENSIONS.values()]):
        seen = [np.asarray(red_green) @ np.array(to_rgb(colour)) ** 2.2 for colour in hexes]
        apart = [np.linalg.norm(x - y) for i, x in enumerate(seen) for y in seen[:i]]
        assert min(apart) > 0.1


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda: draw_timeline({"emotion": "sad"}), "`timeline`"),
        (lambda: draw_explanation(HOUR), "`explanation`"),
        (lambda: draw_plane([{"valence": 3.0}]), "arousal"),
        (lambda: draw_plane(THREE["timeline"], ["a"]), None),  # three results, one name
    ],
)
def test_picture_says_what_is_missing(draw: Callable[[], Figure], named: str | None) -> None:
    with pytest.raises(ValueError, match=named):
        draw()


def test_values_beyond_the_scale_are_in_sight() -> None:
    axes = draw_plane([an_entry(0, 6) | {"arousal": 5.5}]).axes[0]
    assert axes.get_ylim()[0] < 1 and axes.get_ylim()[1] > 5.5
