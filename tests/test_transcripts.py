"""Transcripts as other programs write them, and odd items of recognisers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtmm_training.commands.predict_inputs import read_inputs, read_transcript
from pipeline_mtmm import MTMMPipeline
from timeline_mtmm import clean_transcript

RATE = 16000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE).astype(np.float32)
SRT = """1
00:00:00,500 --> 00:00:01,250
{\\an8}<i>So you</i> &amp; I
won

2
00:01:01,000 --> 01:00:02,000
[SPEAKER_01]: no
3
00:00:03,000 --> 00:00:04,000
3 of them
"""
VTT = """WEBVTT - a talk

NOTE nobody says this

intro
00:00.500 --> 00:01.250 align:start position:0%
<v.loud Anna Karenina>So <00:00:00.700><c>you</c> won</v>

00:00:03.000 --> 00:00:04.000
no
"""
GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 4
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "anna - words"
        xmin = 0
        xmax = 4
        intervals: size = 3
        intervals [1]:
            xmin = 0.5
            xmax = 1.25
            text = "say ""no"" 2"
        intervals [2]:
            xmin = 1.25
            xmax = 3
            text = "sp"
        intervals [3]:
            xmin = 3
            xmax = 4
            text = "now"
    item [2]:
        class = "IntervalTier"
        name = "anna - phones"
        xmin = 0
        xmax = 4
        intervals: size = 1
        intervals [1]:
            xmin = 0.5
            xmax = 1.25
            text = "N"
    item [3]:
        class = "TextTier"
        name = "bell"
        xmin = 0
        xmax = 4
        points: size = 1
        points [1]:
            number = 2
            mark = "ding"
"""
SHORT_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
4
<exists>
2
"IntervalTier"
"anna"
0
4
1
0.5
1.25
"no"
"IntervalTier"
"ben"
0
4
1
2
3
"yes"
"""


def segment(start: float, end: float, text: str, **others: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "text": text} | others


FILES: dict[str, tuple[str, Any]] = {
    "a.srt": (
        SRT,
        [segment(0.5, 1.25, "So you & I won"), segment(61, 3602, "no", speaker="SPEAKER_01"),
         segment(3, 4, "3 of them")],
    ),
    "a.vtt": (VTT, [segment(0.5, 1.25, "So you won", speaker="Anna Karenina"), segment(3, 4, "no")]),
    "a.sbv": ("0:00:00.500,0:00:01.250\nSo you won\n", [segment(0.5, 1.25, "So you won")]),
    "a.txt": ("[00:00.500 --> 00:01.250]  So you won\n[00:03.000 --> 00:04.000] no\n",
              [segment(0.5, 1.25, "So you won"), segment(3, 4, "no")]),
    "faster-whisper.txt": ("[0.50s -> 1.25s]  So you won\n[3.00s -> 4.00s] no, 1.5 or 2, 3\n",
                           [segment(0.5, 1.25, "So you won"), segment(3, 4, "no, 1.5 or 2, 3")]),
    "labels.txt": ("0.500000\t1.250000\tSo you\n3.0\t4.0\tno\n",
                   [segment(0.5, 1.25, "So you"), segment(3, 4, "no")]),
    "a.tsv": ("start\tend\ttext\n500\t1250\tSo you\n3000\t4000\tno\n",
              [segment(0.5, 1.25, "So you"), segment(3, 4, "no")]),
    "b.tsv": ("speaker\tstart\tend\ttext\nanna\t0.5\t1.25\tSo you\n",
              [segment(0.5, 1.25, "So you", speaker="anna")]),
    "a.TextGrid": (GRID, [segment(0.5, 1.25, 'say "no" 2'), segment(3, 4, "now")]),
    "b.TextGrid": (SHORT_GRID, [segment(0.5, 1.25, "no", speaker="anna"),
                                segment(2, 3, "yes", speaker="ben")]),
    "a.ctm": (";; c\ncall 1 0.5 0.75 so 0.9\ncall 1 1.25 0.1 <eps>\n", [segment(0.5, 1.25, "so")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_other_programs_files_become_segments(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_text(content)
    found = read_transcript(tmp_path / name)
    assert list(found) == ["words" if name in ("a.TextGrid", "a.ctm") else "segments"]
    assert list(found.values()) == [expected]


def test_textgrid_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_bytes(GRID.replace("say", "säg").encode("utf-16"))
    assert read_transcript(path)["words"][0]["text"] == 'säg "no" 2'


@pytest.mark.parametrize(
    "name, content",
    [("a.docx", "words"), ("a", "words"), ("a.ass", "Dialogue: 0,0:00:00.50"), ("a.srt", "words"),
     ("a.ctm", "a b c"), ("a.tsv", "start\tend\ttext\none\t2\tno\n"), ("a.TextGrid", "words")],
)  # fmt: skip
def test_anything_else_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        read_transcript(tmp_path / name)


def test_subtitles_beside_recordings_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "a.vtt").write_text(VTT)
    (tmp_path / "a.txt").write_text("So you won no")
    (one,) = read_inputs([str(tmp_path / "a.wav")], transcripts=tmp_path)
    assert one.transcript["segments"][1] == segment(3, 4, "no")


MARKED = {
    "<|en|><|HAPPY|><|Speech|><|withitn|>So you won": "So you won",
    "[00:12.50]So you [01:02:03] won [2] at 1:30": "So you won [2] at 1:30",
    "<|0.00|> So you<|2.40|>": "So you",
    "[_BEG_] So [BLANK_AUDIO] you[_TT_120]": "So you",
    "<|nospeech|>": None,
    "[LAUGHTER] a < b |> c": "[LAUGHTER] a < b |> c",
}


@pytest.mark.parametrize("said", MARKED)
def test_marks_of_recognisers_are_no_words(said: str, pipe: MTMMPipeline) -> None:
    expected = MARKED[said]
    assert (" ".join((clean_transcript(said) or "").split()) or None) == expected
    result = pipe({"audio": NOISE, "segments": [segment(0, 2, said)]}, sampling_rate=RATE)
    shown = result["timeline"][0].get("text")
    assert (shown and " ".join(shown.split())) == expected


# ---- odd items -----------------------------------------------------------------------------------

ITEMS = [segment(0, 1, "so"), segment(1, 2, "you"), segment(2, 3, "won")]
ODD: dict[str, tuple[dict[str, Any], list[tuple[float, float]], list[Any]]] = {
    "no length, with text": (segment(3, 3, "at last"), [(0, 1), (1, 2), (2, 3)], ["won at last"]),
    "10 ms": (segment(3, 3.01, "at"), [(0, 1), (1, 2), (2, 3.01)], ["won at"]),
    "no end": ({"start": 3, "end": None, "text": "x"}, [(0, 1), (1, 2), (2, 3), (3, 4)], ["x"]),
    "NaN as an end": (segment(3, float("nan"), "x"), [(0, 1), (1, 2), (2, 3), (3, 4)], ["x"]),
    "no times": ({"text": "x"}, [(0, 1), (1, 2), (2, 3), (3, 4)], ["x"]),
    "an end 3.6 s behind": (segment(3, 7.6, "x"), [(0, 1), (1, 2), (2, 3), (3, 4)], ["x"]),
    "a start 16 ms behind": (segment(4.016, 5, "x"), [(0, 1), (1, 2), (2, 4)], ["won x"]),
    "a start 3 s behind": (segment(7, 8, "x"), [(0, 1), (1, 2), (2, 4)], ["won x"]),
    "backwards": (segment(3.5, 3.2, "x"), [(0, 1), (1, 2), (2, 3.5)], ["won x"]),
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_segment_leaves_the_rest(name: str, pipe: MTMMPipeline) -> None:
    item, spans, texts = ODD[name]
    items = [*ITEMS, item]
    result = pipe({"audio": NOISE, "segments": items}, sampling_rate=RATE)
    found = [(e["start"], e["end"]) for e in result["timeline"]]
    assert found[: len(spans)] == spans or found[-1:] == spans
    assert result["timeline"][-1]["text"] == texts[-1]
    assert result["mended"] >= 1
    first = pipe({"audio": NOISE[:RATE], "text": "so"}, sampling_rate=RATE)
    (so,) = (entry for entry in result["timeline"] if entry.get("text") == "so")
    assert so["scores"] == pytest.approx(first["scores"], abs=1e-5)


def test_words_without_times_stand_between_their_neighbours(pipe: MTMMPipeline) -> None:
    words = [{"word": "in", "start": 0.1, "end": 0.5}, {"word": "2014."},
             {"word": "we", "start": 2.1, "end": 2.5}, segment(6.0, 6.5, "won")]  # fmt: skip
    result = pipe({"audio": NOISE, "words": words}, sampling_rate=RATE, window_s=2.0)
    assert [entry["text"] for entry in result["timeline"]] == ["in 2014.", "we won"]
    assert result["mended"] == 2


def test_silence_that_is_a_segment_is_left_out(pipe: MTMMPipeline) -> None:
    silence = {"start": 0.4, "end": 0.4, "text": " "}
    result = pipe({"audio": NOISE, "segments": [silence]}, sampling_rate=RATE)
    assert "timeline" not in result and result == pipe(NOISE, sampling_rate=RATE)


def test_regular_segments_are_not_mended(pipe: MTMMPipeline) -> None:
    items = [*ITEMS, {"start": 3.0, "end": 3.0, "text": " "}, {"start": 3.0, "end": 3.5}]
    result = pipe({"audio": NOISE, "segments": items}, sampling_rate=RATE)
    assert "mended" not in result and len(result["timeline"]) == 4


def test_a_transcript_of_another_recording_is_refused(pipe: MTMMPipeline) -> None:
    late = [segment(i, i + 1, "x") for i in range(8)]
    for given in ({"segments": late}, {"words": late}, {"segments": [segment(9, 10, "x")]}):
        with pytest.raises(ValueError, match="another recording"):
            pipe({"audio": NOISE} | given, sampling_rate=RATE)


def test_fields_that_nobody_reads_are_said(
    pipe: MTMMPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"segments": [segment(0, 1, "so", speeker="anna", id=3, no_speech_prob=0.1)]}
    pipe({"audio": NOISE} | given, sampling_rate=RATE)
    assert [r.getMessage() for r in caplog.records] == [
        '"segments" have speeker, which nobody reads.'
    ]
