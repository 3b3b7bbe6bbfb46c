"""Who speaks: timelines by speaker, of transcripts and of channels.

Run alone: python -m pytest tests/test_speakers.py -q
"""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import RATE, audio, noise

from mtmm_training.commands.cli import main
from mtmm_training.commands.predict_inputs import read_transcript
from mtmm_training.data.turns import of_diariser, of_json
from pipeline_mtmm import MTMMPipeline
from speakers_mtmm import joined
from transcript_mtmm import TimedText

SEGMENTS = [
    {"start": 0.0, "end": 1.0, "text": "so", "speaker": "ann"},
    {"start": 1.2, "end": 2.0, "text": "you won", "speaker": "ann"},
    {"start": 1.8, "end": 3.0, "text": "no", "speaker": "bob"},
    {"start": 4.5, "end": 5.0, "text": "at last", "speaker": "ann"},
]


def told(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(e["start"], e["end"], e.get("speaker"), e.get("text")) for e in result["timeline"]]


def call(folder: Path) -> Path:
    """One channel speaks from 0 to 2 s and from 5 to 6 s, the other from 2.5 to 4.5 s, with crosstalk."""
    waveform = np.zeros((6 * RATE, 2), np.float32)
    for channel, start, end in ((0, 0, 2), (1, 2.5, 4.5), (0, 5, 6)):
        first, last = round(start * RATE), round(end * RATE)
        waveform[first:last, channel] = noise(6)[: last - first]
        waveform[first:last, 1 - channel] = 0.03 * noise(6)[: last - first]
    soundfile.write(folder / "call.wav", waveform, RATE, subtype="FLOAT")
    return folder / "call.wav"


def test_units_are_segments_turns_or_windows(pipe: MTMMPipeline) -> None:
    given = {"audio": audio(noise(6.0)), "segments": SEGMENTS}
    assert told(pipe(given)) == told(pipe(given, by="segment"))
    assert told(pipe(given))[:2] == [(0, 1, "ann", "so"), (1.2, 2, "ann", "you won")]
    turns = pipe(given, by="turn", window_s=2.0)
    assert told(turns) == [
        (0, 2, "ann", "so you won"), (1.8, 3, "bob", "no"), (4.5, 5, "ann", "at last"),
    ]  # fmt: skip
    windows = pipe(given, by="window", window_s=2.0)
    assert told(windows) == [
        (0, 2, "ann", "so you won"), (2, 4, "bob", "no"), (4, 6, "ann", "at last"),
    ]  # fmt: skip
    open_ended = [*SEGMENTS[:-1], {**SEGMENTS[-1], "end": None}]
    assert told(pipe(given | {"segments": open_ended}, by="window", window_s=2.0)) == told(windows)
    both = turns["speakers"]
    assert {name: own["seconds"] for name, own in both.items()} == {"ann": 2.5, "bob": 1.2}
    assert both["bob"]["valence"] == turns["timeline"][1]["valence"]
    first, last = turns["timeline"][0]["arousal"], turns["timeline"][2]["arousal"]
    assert both["ann"]["arousal"] == pytest.approx((2 * first + 0.5 * last) / 2.5)
    with pytest.raises(ValueError, match="`by='word'`"):
        pipe(given, by="word")
    with pytest.raises(ValueError, match='needs "segments"'):
        pipe({"audio": audio(noise(3.0))}, by="turn")


def test_words_with_speakers_make_turns(pipe: MTMMPipeline) -> None:
    words = [{"text": t, "start": s, "end": s + 0.2, "speaker": by}
             for t, s, by in (("so", 0.0, "1"), ("you", 0.4, "1"), ("no", 0.8, 2))]  # fmt: skip
    result = pipe({"audio": audio(noise(2.0)), "words": words}, by="turn")
    assert told(result)[0] == (0.0, pytest.approx(0.6), "1", "so you")
    assert told(result)[1][2:] == ("2", "no")
    long = pipe({"audio": audio(noise(2.0)), "words": words}, window_s=1.0)
    assert [entry.get("speaker") for entry in long["timeline"]] == ["1", None]


def test_each_channel_is_a_speaker(pipe: MTMMPipeline, tmp_path: Path) -> None:
    path = call(tmp_path)
    result = pipe(str(path), channel="each", window_s=2.0)
    rows = [(round(s, 1), round(e, 1), by) for s, e, by, _ in told(result)]
    assert rows == [(0, 2, "channel 1"), (2.5, 4.5, "channel 2"), (5, 6, "channel 1")]
    waveform, _ = soundfile.read(path, dtype="float32")
    alone = pipe(audio(waveform[40000:72000, 1]))  # one channel, not the mean of both
    assert result["timeline"][1]["valence"] == pytest.approx(alone["valence"], abs=1e-4)
    array = pipe(waveform.T, sampling_rate=RATE, channel="each", window_s=2.0)
    assert told(array) == told(result)
    segments = [{"start": 0, "end": 1, "channel": 1, "speaker": "agent", "text": "so"}]
    (entry,) = pipe({"audio": str(path), "segments": segments}, channel="each")["timeline"]
    quiet = pipe({"audio": audio(waveform[:16000, 1]), "text": "so"})
    assert entry["speaker"] == "agent"
    assert entry["valence"] == pytest.approx(quiet["valence"], abs=1e-4)
    with pytest.raises(ValueError, match="it has one"):
        pipe(audio(noise(1.0)), channel="each")
    with pytest.raises(ValueError, match="Nobody speaks"):
        pipe(np.zeros((RATE, 2), np.float32), sampling_rate=RATE, channel="each")


def test_a_pause_ends_a_turn() -> None:
    said = [
        TimedText(0.0, 1.0, "a", "x"),
        TimedText(2.0, 3.0, None, "x"),
        TimedText(4.1, 5.0, "b", "x"),
    ]
    assert joined(said) == [TimedText(0.0, 3.0, "a", "x"), TimedText(4.1, 5.0, "b", "x")]


def test_files_of_other_programs_say_who_speaks(tmp_path: Path) -> None:
    (tmp_path / "a.rttm").write_text(
        ";; made by hand\nSPEAKER a 1 0.50 1.25 <NA> <NA> ann <NA> <NA>\nLEXEME a 1 0 1 x\n"
    )
    (turn,) = read_transcript(tmp_path / "a.rttm")["segments"]
    assert turn == {"start": 0.5, "end": 1.75, "speaker": "ann"}
    (tmp_path / "bad.rttm").write_text("SPEAKER a 1 half\n")
    with pytest.raises(ValueError, match="rttm"):
        read_transcript(tmp_path / "bad.rttm")
    word = {"word": "so", "start": 0.1, "end": 0.3, "speaker": 0}
    utterance = {"transcript": "So.", "start": 0.1, "end": 0.3, "speaker": 1, "channel": 0}
    segment = {"start": 0.1, "end": 0.3, "text": "So.", "speaker": "1", "channel": 0}
    assert of_json({"results": {"utterances": [utterance]}}) == [segment]
    channels = [{"alternatives": [{"words": [word]}]}]
    assert of_json({"results": {"channels": channels}}) == [
        {"start": 0.1, "end": 0.3, "text": "so", "speaker": "0", "channel": 0}
    ]
    found = [{"start": 0.0, "end": 1.0, "speaker": "SPEAKER_00"}]
    assert of_json({"diarization": found}) == of_json({"output": {"diarization": found}}) == found
    tracks = [(SimpleNamespace(start=0.0, end=1.0), "A", "SPEAKER_00")]
    annotation = SimpleNamespace(itertracks=lambda yield_label: iter(tracks))
    for given in (found, annotation, SimpleNamespace(speaker_diarization=annotation)):
        assert of_diariser(given) == found
    whisperx = {"segments": [{"start": 0, "end": 1, "text": "so", "speaker": "A", "words": []}]}
    (tmp_path / "w.json").write_text(json.dumps(whisperx))
    assert read_transcript(tmp_path / "w.json")["segments"][0]["speaker"] == "A"


def test_command_prints_and_draws_speakers(
    pipe: MTMMPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    words = [
        "predict",
        str(call(tmp_path)),
        "--model",
        str(tmp_path / "model"),
        "--channel",
        "each",
    ]
    capsys.readouterr()
    assert main([*words, "--timeline", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["speaker"] for row in rows] == ["channel 1", "channel 2", "channel 1"]
    assert main([*words, "--timeline", "--plot", str(tmp_path / "pictures")]) == 0
    first, one, two, *entries = capsys.readouterr().out.splitlines()
    assert one.startswith("  channel 1, 3.0 s: ") and two.startswith("  channel 2, 2.0 s: ")
    assert len(entries) == 3 and "s  channel 1: " in entries[0]
    assert len(list((tmp_path / "pictures").glob("*timeline.png"))) == 1
