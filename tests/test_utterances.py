"""The Utterance record's checks, and manifests read, refused and written."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mtmm_training.data.files import replacing
from mtmm_training.data.manifest import read_manifest, read_manifests, write_manifest
from mtmm_training.data.utterances import Utterance, by_id


def utterance(**changes: Any) -> Utterance:
    given = {"utterance_id": "u1", "corpus": "test", "speaker_id": "anna", "text": "Hello."}
    return Utterance(**given | changes)


def manifest(folder: Path, content: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": None}, "text"),
        ({"text": " "}, "text"),
        ({"utterance_id": ""}, "utterance_id"),
        ({"speaker_id": None}, "speaker_id"),
        ({"emotion": "sad "}, "emotion"),
        ({"valence": float("nan")}, "valence"),
        ({"dominance": float("inf")}, "dominance"),
        ({"split": "dev"}, "split"),
        ({"start_s": 2.0, "end_s": 2.0}, "end_s"),
        ({"end_s": 0.0}, "end_s"),
        ({"start_s": -1.0}, "start_s"),
        ({"text": "a\0b"}, "text"),
        ({"emotion": "\ud800"}, "emotion"),
        ({"votes": {}}, "votes"),
        ({"votes": {"sad": 0.0}}, "votes"),
        ({"votes": {"sad": 2, "angry": -1}}, "votes"),
        ({"votes": {"sad ": 2}}, "votes"),
        ({"valence_ratings": ()}, "valence_ratings"),
        ({"arousal_ratings": (3.0, 4.0), "raters": ("a",)}, "arousal_ratings"),
    ],
)
def test_utterance_refuses_bad_values(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"`{named}`="):
        utterance(**changes)


def test_by_id_refuses_doubled_ids() -> None:
    with pytest.raises(ValueError, match="'u1'"):
        by_id([utterance(), utterance(text="Bye.")])


def test_manifest_understands_columns_of_other_tables(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.wav").touch()
    table = manifest(tmp_path, "Path,label,sentence,speaker,file\na.wav,sad,Hm.,anna,b\n")
    with pytest.raises(ValueError, match="'Path' and 'file' may each be 'audio'"):
        read_manifest(table)
    (read,) = read_manifest(table, groups=["file"])
    assert (read.audio, read.emotion, read.text) == (str(tmp_path / "a.wav"), "sad", "Hm.")
    assert "'sentence' is read as 'text'" in caplog.text
    with pytest.raises(ValueError, match="column 'clip' has audio files"):
        read_manifest(manifest(tmp_path, "clip,sentence,speaker\na.MP3,Hm.,anna\n"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifest_delimiter_is_detected(tmp_path: Path, delimiter: str) -> None:
    lines = [["text", "speaker", "valence"], ["Well; so", "anna", "3.5"]]
    if delimiter == ";":
        lines[1][0] = '"Well; so"'
    path = manifest(tmp_path, "".join(delimiter.join(line) + "\n" for line in lines))
    (read,) = read_manifest(path)
    assert (read.text, read.speaker_id, read.valence) == ("Well; so", "anna", 3.5)


def test_manifest_survives_bom_crlf_and_quotes(tmp_path: Path) -> None:
    content = '\ufefftext,speaker\r\n"She said ""no"",\r\nthen left",anna\r\n\r\n,\r\nYes,ben\r\n'
    read = read_manifest(manifest(tmp_path, content))
    assert [u.text for u in read] == ['She said "no",\r\nthen left', "Yes"]
    assert [u.utterance_id for u in read] == ["m#2", "m#5"]


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "#N/A", "0"])
def test_missing_value_words_are_transcripts(tmp_path: Path, word: str) -> None:
    (read,) = read_manifest(manifest(tmp_path, f"text,speaker\n{word},anna\n"))
    assert read.text == word


def test_empty_fields_are_absent(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    header = "audio,text,emotion,valence,speaker,session,improvised,split,start"
    (read,) = read_manifest(manifest(tmp_path, f"{header}\na.wav,  ,,, anna ,,,,\n"))
    expected = Utterance(
        utterance_id="a.wav", corpus="m", audio=str(tmp_path / "a.wav"), speaker_id="anna"
    )
    assert read == expected


def test_all_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"Hi,anna,{value}\n" for value in [1, 9, 2, 8, 7, "x", 9, 9, 9])
    with pytest.raises(ValueError, match="7 bad rows") as error:
        read_manifest(manifest(tmp_path, "text,speaker,valence\n" + rows))
    listed = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert listed == ["row 3", "row 5", "row 6", "row 7", "row 8", "and 2 more"]


def test_ignored_columns_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = manifest(tmp_path, "text,speaker,intensity,original_emotion\nHi,anna,1,2\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_manifest(path)) == 1
    assert "ignored columns: 'intensity', 'original_emotion'" in caplog.text


@pytest.mark.parametrize("other", ["anna", "\uff21nna"])
def test_speakers_spelt_alike_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    path = manifest(tmp_path, f"text,speaker\nHi,Anna\nHo,{other}\nHa,ben\n")
    with caplog.at_level(logging.WARNING):
        assert len({u.speaker_id for u in read_manifest(path)}) == 3
    assert caplog.text.count("are spelt alike and taken for different people") == 1


def test_jsonl_takes_null_and_numbers(tmp_path: Path) -> None:
    row = {"text": "a\u2028b", "speaker": 7, "valence": 3, "arousal": 2.5, "improvised": False}
    content = json.dumps(row | {"emotion": None}, ensure_ascii=False)
    (read,) = read_manifest(manifest(tmp_path, content, "m.jsonl"))
    assert (read.text, read.speaker_id, read.valence, read.arousal) == ("a\u2028b", "7", 3.0, 2.5)
    assert read.improvised is False and read.emotion is None


def test_parquet_takes_null_and_numbers(tmp_path: Path) -> None:
    columns = {"text": ["a", None], "audio": [None, "a.wav"], "speaker": [1, 2]}
    table = pyarrow.table(columns | {"valence": pyarrow.array([None, 3.5])})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    (tmp_path / "a.wav").touch()
    read = read_manifest(tmp_path / "m.parquet")
    assert [(u.utterance_id, u.valence) for u in read] == [("m#1", None), ("a.wav", 3.5)]
    assert {u.corpus for u in read} == {"m"}


def test_audio_is_relative_to_manifest_or_audio_dir(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").touch()
    here = manifest(tmp_path, "audio,speaker\nsounds/a.wav,anna\n")
    there = manifest(tmp_path, "audio,speaker\na.wav,anna\n", "n.csv")
    expected = str(tmp_path / "sounds" / "a.wav")
    assert read_manifest(here)[0].audio == expected
    assert read_manifest(there, audio_dir=tmp_path / "sounds")[0].audio == expected


def test_missing_audio_is_listed(tmp_path: Path) -> None:
    rows = "".join(f"{index}.wav,anna\n" for index in range(7))
    with pytest.raises(FileNotFoundError, match="7 rows whose audio file is missing") as error:
        read_manifest(manifest(tmp_path, "audio,speaker\n" + rows))
    assert "row 2: no file" in str(error.value) and "row 7" not in str(error.value)


def test_repeated_audio_gets_row_ids(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    content = "audio,speaker,start,end\na.wav,anna,0,1.5\na.wav,ben,1.5,\n"
    read = read_manifest(manifest(tmp_path, content))
    assert [u.utterance_id for u in read] == ["a.wav#2", "a.wav#3"]
    assert [(u.start_s, u.end_s) for u in read] == [(0.0, 1.5), (1.5, None)]


def test_manifest_round_trip_is_exact(tmp_path: Path) -> None:
    for name in ("inside.wav", "outside.wav"):
        folder = tmp_path / "m" if name == "inside.wav" else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    utterances = [
        utterance(text=' "NA";\r\n,\tüß\u2028 ', valence=1 / 3 + 1, improvised=False, split="test"),
        utterance(utterance_id="u2", text=None, audio=str(tmp_path / "m" / "inside.wav")),
        utterance(utterance_id="u3", audio=str(tmp_path / "outside.wav"), start_s=0.1, end_s=0.3),
        utterance(utterance_id="u4", corpus="other", session_id="1", dialogue_id="2", gender="f"),
        utterance(
            utterance_id="u5", votes={"sad": 1.5, "other": 1.5}, raters=("a", "ü"),
            valence=3.2, valence_ratings=(3.0, 10 / 3),
        ),
    ]  # fmt: skip
    path = tmp_path / "m" / "m.csv"
    write_manifest(utterances, path)
    assert read_manifest(path) == utterances
    assert sorted(p.name for p in path.parent.iterdir()) == ["inside.wav", path.name]


def test_labels_follow_from_votes_and_ratings(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "speaker": "x", "votes": {"sad": 2, "angry": 1}, "valence_ratings": [1, 4]},
        {"text": "b", "speaker": "x", "votes": {"sad": 1, "angry": 1}, "arousal": 2},
        {"text": "c", "speaker": "x", "votes": {"sad": 1, "other": 2}},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = read_manifest(path)
    assert (one.emotion, one.valence, one.valence_ratings) == ("sad", 2.5, (1.0, 4.0))
    assert (two.emotion, three.emotion) == (None, None) and two.arousal == 2
    path.write_text(path.read_text() + '{"text": "d", "speaker": "x", "emotion": ""}\n')
    assert [u.emotion for u in read_manifest(path)] == [None] * 4  # nobody decided


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("votes", "angry", "votes"),
        ("votes", "[1, 2]", "votes"),
        ("valence_ratings", "3", "valence_ratings"),
        ("arousal_ratings", "[3, 7]", "arousal_ratings.*=7.0 is outside"),
    ],
)
def test_opinions_that_are_none_are_refused(
    tmp_path: Path, column: str, value: str, problem: str
) -> None:
    path = manifest(tmp_path, f"text\tspeaker\t{column}\nHello.\tanna\t{value}\n")
    with pytest.raises(ValueError, match=f"row 2: .*{problem}"):
        read_manifest(path)


def test_written_audio_paths_move_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.wav").touch()
    audible = utterance(audio=str(tmp_path / "old" / "a.wav"))
    write_manifest([audible], tmp_path / "old" / "m.csv")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = replace(audible, audio=str(tmp_path / "new" / "a.wav"))
    assert read_manifest(tmp_path / "new" / "m.csv") == [moved]


def test_write_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in one of .csv, .parquet"):
        write_manifest([utterance()], tmp_path / "m.xlsx")


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = manifest(tmp_path, "old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_several_manifests_come_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = manifest(tmp_path, "id,speaker,text,split\nu1,anna,Hello.,train\n", "one.csv")
    rows = '{"id": "u1", "speaker": "ben", "text": "Bye.", "corpus": "two"}\n'
    rows += '{"id": "u2", "speaker": "anna", "text": "No.", "valence": 6}\n'
    other = manifest(tmp_path, rows, "other.jsonl")
    with caplog.at_level(logging.WARNING):
        together = read_manifests([one, other], dimension_range=(1.0, 7.0))
    assert [(u.utterance_id, u.corpus, u.speaker_id) for u in together] == [
        ("one/u1", "one", "anna"),
        ("two/u1", "two", "ben"),
        ("other/u2", "other", "anna"),
    ]
    assert "taken for the same people: 1, first 'anna'" in caplog.text
    assert together[0].split == "train" and together[2].valence == 6


def test_manifests_of_one_name_and_ids_are_refused(tmp_path: Path) -> None:
    content = "id,speaker,text\nu1,anna,Hello.\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [manifest(tmp_path / name, content, "manifest.csv") for name in "ab"]
    with pytest.raises(ValueError, match="'manifest/u1'"):
        read_manifests(paths)


def test_ravdess_manifest_has_known_totals(real_data: Path) -> None:
    read = read_manifest(real_data / "ravdess4" / "manifest.csv")
    assert len(read) == sum(u.audio is not None and u.text is not None for u in read) == 864
    emotions = Counter(u.emotion for u in read)
    assert emotions == {"angry": 192, "happy": 192, "neutral": 288, "sad": 192}
    speakers = Counter(u.speaker_id for u in read)
    assert set(speakers.values()) == {36} and len(speakers) == 24
