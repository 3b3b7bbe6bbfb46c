"""A recording with known changes of emotion, and how a timeline is compared with them.

Run alone: python -m pytest tests/test_hour.py
"""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hub_server import trained_run
from matplotlib.image import imread

from mtmm_training.data.utterances import Utterance
from mtmm_training.studies.composed import BLOCK_S, RATE, Span, run_hour, score, write_recording

EMOTIONS = ["angry", "happy", "sad", "neutral"]
LOUDNESS = {"angry": 0.8, "happy": 0.4, "sad": 0.2}  # the samples tell the emotion
SECONDS = 400.0


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Three of each emotion, of 2 to 4 s, at another sampling rate; each as loud as no other."""
    folder, made = tmp_path_factory.mktemp("utterances"), []
    for emotion, loudness in LOUDNESS.items():
        for number in range(3):
            path = folder / f"{emotion}-{number}.wav"
            level = loudness + number / 100
            soundfile.write(path, np.full(RATE // 2 * (2 + number), level, np.float32), RATE // 2)
            made.append(
                Utterance(
                    utterance_id=path.stem,
                    corpus="test",
                    audio=str(path),
                    emotion=emotion,
                    speaker_id="s",
                )
            )
    return made


def test_blocks_are_what_the_recording_holds(utterances: list[Utterance], tmp_path: Path) -> None:
    blocks = write_recording(utterances, tmp_path / "a.wav", SECONDS, seed=0)
    waveform, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == RATE and len(waveform) == SECONDS * RATE
    assert blocks[0].start_s == 0 and blocks[-1].end_s == SECONDS and len(blocks) > 5
    for block, following in pairwise(blocks):
        assert block.end_s == following.start_s and block.emotion != following.emotion
        assert BLOCK_S[0] <= block.end_s - block.start_s < BLOCK_S[1] + 4.0 + 0.3
    assert {block.emotion for block in blocks} == set(LOUDNESS)
    for block in blocks:
        sound = waveform[round(block.start_s * RATE) : round(block.end_s * RATE)]
        speech = sound[np.abs(sound) > 0.1]
        assert 0.8 < len(speech) / len(sound) < 0.95  # the rest are the pauses
        assert np.median(speech) == pytest.approx(LOUDNESS[block.emotion] + 0.01, abs=0.015)


def test_every_utterance_has_its_turn(utterances: list[Utterance], tmp_path: Path) -> None:
    blocks = write_recording(utterances, tmp_path / "a.wav", SECONDS, seed=0)
    waveform, _ = soundfile.read(tmp_path / "a.wav")
    for emotion, loudness in LOUDNESS.items():
        heard = np.concatenate(
            [
                waveform[round(b.start_s * RATE) : round(b.end_s * RATE)]
                for b in blocks
                if b.emotion == emotion
            ]
        )
        seconds = [
            np.sum(np.abs(heard - loudness - number / 100) < 0.004) / RATE for number in range(3)
        ]
        turns = np.array(seconds) / [2, 3, 4]  # of utterances as long as this
        assert turns.min() > 1 and turns.max() - turns.min() < 1.5


def test_seed_says_the_order(utterances: list[Utterance], tmp_path: Path) -> None:
    blocks = [
        write_recording(utterances, tmp_path / f"{number}.wav", 130.0, seed)
        for number, seed in enumerate((0, 0, 1))
    ]
    assert blocks[0] == blocks[1] != blocks[2]
    assert (tmp_path / "0.wav").read_bytes() == (tmp_path / "1.wav").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.wav", "1.wav", "2.wav"]


def test_one_emotion_is_refused(utterances: list[Utterance], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="angry"):
        write_recording(utterances[:3], tmp_path / "a.wav", SECONDS, seed=0)
    assert not list(tmp_path.iterdir())


def test_score_counts_seconds() -> None:
    truth = [Span(0, 9, "sad"), Span(9, 15, "angry"), Span(15, 20, "sad")]
    timeline = [
        Span(0, 6, "sad"),  # right, in one block
        Span(6, 12, "sad"),  # 3 s right, 3 s of "angry" missed
        Span(12, 18, "happy"),  # wrong
        Span(14, 20, "sad"),  # the last, over the one before: 1 s of "angry" missed, 5 s right
    ]
    scores = score(timeline, truth, EMOTIONS)
    expected = np.zeros((4, 4))
    expected[0, 1], expected[0, 2], expected[2, 2] = 2, 4, 14
    np.testing.assert_allclose(scores["confusion"], expected)
    assert scores["UAR"] == pytest.approx((1 + 0) / 2)
    assert scores["WAR"] == pytest.approx(14 / 20)
    assert scores["windows"] == 1 and scores["UAR_windows"] == 1


def test_chance_is_what_a_timeline_without_knowledge_has() -> None:
    generator = np.random.default_rng(0)
    truth = [Span(30.0 * i, 30.0 * i + 30, EMOTIONS[i % 4]) for i in range(100)]
    guesses = [Span(6.0 * i, 6.0 * i + 6, str(generator.choice(EMOTIONS))) for i in range(500)]
    scores = score(guesses, truth, EMOTIONS)
    assert scores["chance"] == pytest.approx(0.25, abs=0.01)
    assert scores["UAR"] == pytest.approx(0.25, abs=0.06) and scores["chance_highest"] < 0.35
    assert scores["windows"] == 500
    known = score(truth, truth, EMOTIONS)
    assert known["UAR"] == known["WAR"] == known["UAR_windows"] == 1
    assert known["chance"] == pytest.approx(0.25, abs=0.03)


def test_command_leaves_recording_truth_timeline_and_picture(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_run(tmp_path_factory.getbasetemp())
    run_hour(run, tmp_path, seconds=120)
    printed = capsys.readouterr().out
    with open(tmp_path / "truth.csv", newline="") as file:
        truth = list(csv.DictReader(file))
    assert list(truth[0]) == ["start_s", "end_s", "emotion"] and len(truth) >= 2
    timeline = json.loads((tmp_path / "timeline.json").read_text())["timeline"]
    assert len(timeline) == 30 and timeline[-1]["end"] == float(truth[-1]["end_s"]) == 120
    assert soundfile.info(tmp_path / "recording.wav").duration == 120
    assert imread(tmp_path / "timeline.png").shape[1] > 500
    # The printed UAR, by another way: each window of 4 s in steps of 0.1 s, from the two files.
    hits: dict[str, list[bool]] = {}
    for instant in np.arange(0.05, 120, 0.1):
        label = next(row["emotion"] for row in truth if float(row["end_s"]) > instant)
        hits.setdefault(label, []).append(timeline[int(instant / 4)]["emotion"] == label)
    expected = np.mean([np.mean(each) for each in hits.values()])
    assert f"over time: UAR {expected:.3f}" in printed
    assert "30 windows of 4 s" in printed and "peak memory" in printed and "chance" in printed
    speakers = json.loads((run / "results.json").read_text())["splits"]["test"]["speakers"]
    assert f"test utterances of {', '.join(speakers)}\n" in printed
