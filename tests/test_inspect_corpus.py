"""python -m pytest tests/test_inspect.py -q"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from mtmm_training.data.utterances import Utterance, write_manifest
from mtmm_training.studies.inspect_corpus import durations, main, plot_corpus, table


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
    listed = table(corpus(tmp_path), "tiny")
    for line in (
        "tiny: 8 utterances, 4 speakers",
        "8 utterances, 0.00 h; each 0.5 to 0.5 s, median 0.5 s",
        "16,000 Hz 8",
        "1: u0 = u7",
        "8 utterances, 2 different; 1 to 2 words, median 1.5",
        "4 yes, 4 no, 0 not known",
        "8 utterances, 1 to 4.5, mean 2.75",
    ):
        assert line in listed
    rows = [line.split() for line in listed.splitlines()]
    assert ["train", "4", "1", "2", "1"] in rows
    assert ["tiny_3", "2", "1", "1", "0"] in rows
    assert ["all", "8", "3", "3", "2"] in rows
    assert "gender" not in listed and "dominance" not in listed


def test_table_sums_up_many_speakers() -> None:
    speakers = [
        Utterance(utterance_id=f"{i}", corpus="c", text="a", speaker_id=f"s{i // 2}")
        for i in range(201)
    ]
    listed = table(speakers, "many")
    assert "speaker (101)" in listed
    assert "1 to 2, median 2" in listed


def test_durations_follow_start_and_end(tmp_path: Path) -> None:
    whole = corpus(tmp_path, 2)[0]
    stretch = replace(whole, utterance_id="part", start_s=0.1, end_s=0.3)
    late = replace(whole, utterance_id="late", start_s=0.4, end_s=9.0)
    assert durations([whole, stretch, late]) == pytest.approx({"u0": 0.5, "part": 0.2, "late": 0.1})


def test_recordings_that_cannot_be_described_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = corpus(tmp_path, 2)
    manifest = tmp_path / "manifest.csv"
    write_manifest([replace(utterances[0], start_s=20.0), utterances[1]], manifest)
    assert main(["--manifest", str(manifest)]) == 1
    assert "Utterance 'u0' begins at 20 s, but" in capsys.readouterr().err
    write_manifest(utterances, manifest)
    Path(str(utterances[1].audio)).write_bytes(b"")
    assert main(["--manifest", str(manifest)]) == 1
    assert "is no audio that can be read" in capsys.readouterr().err


def test_options_of_a_reader_are_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", "meld", "--corpus_dir", str(tmp_path)]
    assert main([*words, "--corpus_options", '{"audio": "x"}']) == 1
    assert "`audio` is not an option of meld; its options are" in capsys.readouterr().err


def test_picture_suits_what_there_is(tmp_path: Path) -> None:
    full = corpus(tmp_path)
    plot_corpus(full, tmp_path / "full.png", "tiny")
    assert imread(tmp_path / "full.png").shape[0] > 1000
    text = [
        Utterance(utterance_id=f"{i}", corpus="c", text="a b", speaker_id=f"s{i}", valence=3.0)
        for i in range(60)
    ]
    plot_corpus(text, tmp_path / "text.png", "text")
    assert imread(tmp_path / "text.png").shape[2] == 4


def test_command_inspects_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "tiny" / "manifest.csv"
    manifest.parent.mkdir()
    write_manifest(corpus(manifest.parent), manifest)
    assert main(["--manifest", str(manifest), "--out", str(tmp_path / "out")]) == 0
    assert "tiny: 8 utterances, 4 speakers" in capsys.readouterr().out
    assert (tmp_path / "out" / "tiny.png").is_file()
    assert "u0 = u7" in (tmp_path / "out" / "tiny.txt").read_text()


def test_command_reports_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--corpus", "iemocap", "--corpus_dir", str(tmp_path)]) == 1
    assert "has no folder Session1" in capsys.readouterr().err
    for words, message in (
        ([], "one of the arguments --corpus --manifest is required"),
        (["--corpus", "esd"], "--corpus and --corpus_dir go together"),
        (["--manifest", "m.csv", "--labels", "all"], "are for --corpus"),
        (["--corpus", "emobank", "--corpus_dir", "x", "--labels", "all"], "has no emotion labels"),
        (["--manifest", "m.csv", "--corpus_options", '{"a": 1}'], "are for --corpus"),
        (["--corpus", "esd", "--corpus_options", "[]"], "[] is no JSON object"),
        (["--corpus", "esd", "--corpus_options", "{a:1}"], "{a:1} is not JSON (Expecting"),
        (
            [
                "--corpus",
                "esd",
                "--corpus_dir",
                "x",
                "--corpus_options",
                '{"official_split": true}',
            ],
            "--corpus_options cannot have 'official_split': give --official_split",
        ),
        (
            ["--corpus", "emobank", "--corpus_dir", "x", "--dimension_range", "0", "1"],
            "--dimension_range is for --manifest",
        ),
        (["--manifest", "m.csv", "--dimension_range", "5", "1"], "5 1; it must be two finite"),
        (["--manifest", "m.csv", "--dimension_range", "nan", "1"], "nan 1; it must be two finite"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert message in capsys.readouterr().err


def test_refused_output_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "manifest.csv"
    write_manifest(corpus(tmp_path), manifest)
    (tmp_path / "file").touch()
    for out in ("file", "file/out"):
        assert main(["--manifest", str(manifest), "--out", str(tmp_path / out)]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and "choose another place" in error


def test_help_names_corpora_and_label_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "msp_podcast" in shown and "angry, happy, neutral, sad" in shown


@pytest.mark.parametrize(
    ("name", "folder", "line"),
    [
        ("ravdess", "ravdess4", "ravdess_03-01-03-01-02-01-07 = ravdess_03-01-03-01-02-02-07"),
        ("emobank", "emobank", "valence    10,062 utterances, 1.2 to 4.6"),
    ],
)
def test_real_corpora_are_described(
    real_data: Path, capsys: pytest.CaptureFixture[str], name: str, folder: str, line: str
) -> None:
    assert main(["--corpus", name, "--corpus_dir", str(real_data / folder)]) == 0
    assert line in capsys.readouterr().out
