"""python -m pytest tests/test_inspect_corpus.py -q"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from mtmm_training.commands.cli import main
from mtmm_training.data.manifest import write_manifest
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance, UtteranceError
from mtmm_training.studies.inspect_corpus import describe, inspect, table

Capture = pytest.CaptureFixture[str]


def corpus(folder: Path, count: int = 8) -> list[Utterance]:
    """Half seconds of noise; the last repeats the first."""
    generator = np.random.default_rng(0)
    utterances = []
    for i in range(count):
        path = folder / f"{i}.wav"
        noise = generator.normal(0, 0.1, 8000)
        soundfile.write(
            path, noise if i < count - 1 else soundfile.read(folder / "0.wav")[0], 16000
        )
        utterances.append(
            Utterance(
                utterance_id=f"u{i}",
                corpus="tiny",
                audio=str(path),
                text="same words" if i % 2 else "other",
                emotion=("angry", "sad", None)[i % 3],
                valence=1.0 + i / 2,
                arousal=4.5 - i / 4,
                speaker_id=f"tiny_{i % 4}",
                session_id=f"s{i % 2}",
                split=("train", "train", "validation", "test")[i % 4],
                improvised=bool(i % 2),
            )
        )
    return utterances


def test_table_counts_everything(tmp_path: Path) -> None:
    listed = inspect(corpus(tmp_path), "tiny")
    for line in (
        "tiny: 8 utterances, 4 speakers",
        "8 utterances, 0.00 h; each 0.5 to 0.5 s, median 0.5 s",
        "16,000 Hz 8",
        "1: u0 = u7",
        "8 utterances, 2 different; 1 to 2 words, median 1.5",
        "4 yes, 4 no, 0 not known",
        "8 utterances, 1 to 4.5, mean 2.75, sd 1.15",
    ):
        assert line in listed
    rows = [line.split() for line in listed.splitlines()]
    assert ["split", "all", "angry", "sad", "no", "emotion", "label"] in rows
    assert ["train", "4", "1", "2", "1"] in rows
    assert ["tiny_3", "2", "1", "1", "0"] in rows
    assert ["all", "8", "3", "3", "2"] in rows
    assert "gender" not in listed and "dominance" not in listed
    order = [row[0] for row in rows if row and row[0] in ("train", "validation", "test")]
    assert order == ["train", "validation", "test"]


def test_table_sums_up_many_speakers() -> None:
    speakers = [
        Utterance(utterance_id=f"{i}", corpus="c", text="a", speaker_id=f"s{i // 2}")
        for i in range(201)
    ]
    listed = table(describe(speakers, Recordings()), "many")
    assert "speaker (101)" in listed
    assert "1 to 2, median 2" in listed


def test_values_that_are_not_known_are_counted(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    utterances[0] = replace(utterances[0], split=None, improvised=None)
    listed = inspect(utterances, "tiny")
    assert "4 yes, 3 no, 1 not known" in listed
    assert ["not", "known", "1", "1", "0", "0"] in [line.split() for line in listed.splitlines()]


def test_durations_follow_start_and_end(tmp_path: Path) -> None:
    whole = corpus(tmp_path, 2)[0]
    part = replace(whole, utterance_id="part", start_s=0.1, end_s=0.3)
    late = replace(whole, utterance_id="late", start_s=0.4, end_s=9.0)
    assert describe([whole, part, late], Recordings())["seconds"].tolist() == pytest.approx(
        [0.5, 0.2, 0.1]
    )
    with pytest.raises(UtteranceError, match="begins at 20 s"):
        inspect([replace(whole, start_s=20.0)], "tiny")


def test_picture_suits_what_there_is(tmp_path: Path) -> None:
    full = corpus(tmp_path)
    text = [
        Utterance(utterance_id=f"{i}", corpus="c", text="a b", speaker_id=f"s{i}", valence=3.0)
        for i in range(60)
    ]
    for name, utterances in (("full", full), ("text", text), ("one", full[:1])):
        inspect(utterances, name, tmp_path / "out")
        assert imread(tmp_path / "out" / f"{name}.png")[..., :3].std() > 0.01
        assert (tmp_path / "out" / f"{name}.pdf").is_file()


def test_command_inspects_a_manifest(tmp_path: Path, capsys: Capture) -> None:
    manifest = tmp_path / "tiny" / "manifest.csv"
    manifest.parent.mkdir()
    write_manifest(corpus(manifest.parent), manifest)
    assert main(["inspect", "--manifest", str(manifest), "--out", str(tmp_path / "out")]) == 0
    assert "tiny: 8 utterances, 4 speakers" in capsys.readouterr().out
    assert (tmp_path / "out" / "tiny.png").is_file()
    assert "u0 = u7" in (tmp_path / "out" / "tiny.txt").read_text()
    (tmp_path / "file").touch()
    assert main(["inspect", "--manifest", str(manifest), "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_command_reads_a_corpus_with_its_options(tmp_path: Path, capsys: Capture) -> None:
    words = ["inspect", "--corpus", "meld", "--corpus_dir", str(tmp_path)]
    assert main([*words, "--corpus_options", '{"audio": "x"}']) == 1
    assert "`audio` is not an option of meld" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--manifest"),
        (["--corpus", "esd"], "--corpus_dir"),
        (["--corpus", "esdd"], "esdd"),
        (["--manifest", "m.csv", "--labels", "all"], "--labels"),
        (["--manifest", "m.csv", "--corpus_options", '{"a": 1}'], "--corpus_options"),
        (["--corpus", "emobank", "--corpus_dir", "x", "--labels", "all"], "emobank"),
        (["--corpus", "esd", "--corpus_options", "[]"], "[]"),
        (["--corpus", "esd", "--corpus_options", "{a:1}"], "{a:1}"),
        (["--corpus", "esd", "--corpus_dir", "x", "--corpus_options", '{"official_split": 1}'],
         "--official_split"),
        (["--corpus", "emobank", "--corpus_dir", "x", "--dimension_range", "0", "1"],
         "--dimension_range"),
    ],
)  # fmt: skip
def test_wrong_use_is_named(
    words: list[str], named: str, ended: Callable[[list[str]], int], capsys: Capture
) -> None:
    assert ended(["inspect", *words]) == 2
    assert named in capsys.readouterr().err


@pytest.fixture
def ended() -> Callable[[list[str]], int]:
    """The exit status of a command, which the parser ends by an exception."""

    def status(words: list[str]) -> int:
        try:
            return main(words)
        except SystemExit as left:
            return int(left.code or 0)

    return status


@pytest.mark.parametrize(
    ("name", "folder", "line"),
    [
        ("ravdess", "ravdess4", "ravdess_03-01-03-01-02-01-07 = ravdess_03-01-03-01-02-02-07"),
        ("emobank", "emobank", "10,062 utterances, 1.2 to 4.6, mean"),
    ],
)
def test_real_corpora_are_described(
    real_data: Path, capsys: Capture, name: str, folder: str, line: str
) -> None:
    assert main(["inspect", "--corpus", name, "--corpus_dir", str(real_data / folder)]) == 0
    assert line in capsys.readouterr().out
