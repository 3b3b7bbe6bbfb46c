"""The Utterance record's checks, and manifests read, refused and written."""

import json
import logging
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mtmm_training.data.manifest import read_manifest, read_manifests, write_manifest
from mtmm_training.data.utterances import Utterance, by_id, describe
from mtmm_training.files import replacing


@pytest.fixture(scope="module")
def real_data() -> Path:
    default = Path(__file__).parents[2] / "shared" / "real"
    folder = Path(os.environ.get("MTMM_REAL_DATA", default))
    if not (folder / "ravdess4" / "manifest.csv").is_file():
        pytest.skip("no real corpora; set MTMM_REAL_DATA to the folder that has ravdess4")
    return folder


def utterance(**changes: Any) -> Utterance:
    given: dict[str, Any] = {
        "utterance_id": "u1",
        "corpus": "test",
        "speaker_id": "anna",
        "text": "Hello.",
    }
    return Utterance(**given | changes)


def manifest(folder: Path, content: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "at least one"),
        ({"text": " "}, "`text`=' ' is blank"),
        ({"utterance_id": ""}, "`utterance_id`='' is blank"),
        ({"speaker_id": None}, "`speaker_id`=None is not a name"),
        ({"emotion": "sad "}, "white space"),
        ({"valence": float("nan")}, "`valence`=nan is not finite"),
        ({"dominance": float("inf")}, "`dominance`=inf is not finite"),
        ({"split": "dev"}, "`split`='dev'.*train, validation, test"),
        ({"start_s": 2.0, "end_s": 2.0}, "not after the start, 2.0 s"),
        ({"end_s": 0.0}, "not after the start"),
        ({"text": "a\0b"}, "`text`='a.x00b' has a NUL"),
        ({"emotion": "\ud800"}, "half a surrogate pair, which no text file holds"),
        ({"start_s": -1.0}, "negative"),
    ],
)
def test_utterance_refuses_bad_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        utterance(**changes)


def test_utterance_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError, match="emotion"):
        utterance().emotion = "sad"  # type: ignore[misc]  # it must not


def test_by_id_refuses_doubled_ids() -> None:
    with pytest.raises(ValueError, match="1 utterance id occurs more than once, first 'u1'"):
        by_id([utterance(), utterance(text="Bye.")])


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


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("valence", "3,5", "row 3: `valence`='3,5' is not a finite number.*decimal point"),
        ("valence", "NaN", "row 3: `valence`='NaN' is not a finite number"),
        ("arousal", "1_0", "`arousal`='1_0' is not a finite number"),
        ("arousal", "1e999", "not a finite number"),
        ("dominance", "7", "`dominance`='7' is outside 1.0 to 5.0"),
        ("improvised", "maybe", "`improvised`='maybe' is not a flag"),
        ("split", "dev", "`split`='dev' is not a split"),
        ("start", "-1", "negative"),
        ("id", "first", "'first' is already that of row 2"),
    ],
)
def test_bad_field_is_named(tmp_path: Path, column: str, value: str, message: str) -> None:
    good = "first" if column == "id" else ""
    path = manifest(tmp_path, f'text,speaker,{column}\nHi,anna,{good}\nHo,ben,"{value}"\n')
    with pytest.raises(ValueError, match=message):
        read_manifest(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Hi,,x", "row 3: `speaker` is empty"),
        (",ben,x", "row 3: .*at least one"),
        ("Hi,ben", "row 3: has 2 fields, the header has 3; separate fields by ','"),
        ("Hi;ben;x", "row 3: has 1 field, the header has 3; separate fields by ','"),
        ("Hi, there,ben,x", "row 3: has 4 fields, the header has 3"),
        ('"Hi,ben,x', "row 3: cannot be taken apart.*double quotes"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = manifest(tmp_path, f"text,speaker,emotion\nHi,anna,sad\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_manifest(path)


def test_all_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"Hi,anna,{value}\n" for value in [1, 9, 2, 8, 7, "x", 9, 9, 9])
    with pytest.raises(ValueError, match="7 bad rows, the first 5") as error:
        read_manifest(manifest(tmp_path, "text,speaker,valence\n" + rows))
    listed = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert listed == ["row 3", "row 5", "row 6", "row 7", "row 8"]


def test_dimension_range_can_be_set(tmp_path: Path) -> None:
    path = manifest(tmp_path, "text,speaker,valence\nHi,anna,7\n")
    assert read_manifest(path, dimension_range=(1, 7))[0].valence == 7.0


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,speaker,Emotion", "'Emotion' is not known; rename it to 'emotion'"),
        ("text,speaker,valance", "rename it to 'valence'"),
        ("text,speaker, start", "rename it to 'start'"),
        ("text,speaker,end_s", "rename it to 'end'"),
        ("text,speaker_id,emotion", "rename it to 'speaker'"),
        ("text,emotion,valence", "needs 'speaker'"),
        ("speaker,emotion,valence", "'audio' and 'text'"),
        ("text,speaker,text", "'text' occurs twice"),
    ],
)
def test_bad_header_is_refused(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(manifest(tmp_path, f"{header}\na,b,c\n"))


def test_ignored_columns_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = manifest(tmp_path, "text,speaker,intensity,original_emotion\nHi,anna,1,2\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_manifest(path)) == 1
    assert "ignored columns: 'intensity', 'original_emotion'" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "text,speaker\n", "no rows"),
        ("m.csv", "", "m.csv is empty; it needs utterances with 'speaker'"),
        ("m.csv", "\ufeff\n\n", "m.csv is empty"),
        ("m.csv", "t\0e\0x\0t\0", "NUL bytes, as UTF-16 and damaged files do"),
        ("m.jsonl", "", "m.jsonl is empty"),
        ("m.jsonl", '[{"text": "a", "speaker": "b"}]', "1 bad row:\n  row 1: is .*one JSON object"),
        ("m.jsonl", '{\n"text": "a"\n}', "3 bad rows:\n  row 1: is not JSON"),
        ("m.jsonl", '{"text": "a", "text": "b", "speaker": "c"}', "row 1: .*'text' occurs twice"),
        ("m.jsonl", "[" * 100_000, "row 1: is not JSON .*recursion"),
        ("m.jsonl", '{"speaker": ' + "1" * 5000 + "}", "row 1: is not JSON .*4300 digits"),
        ("m.parquet", "text,speaker\nHi,anna\n", "m.parquet cannot be read as Parquet"),
        ("m.parquet", "", "m.parquet cannot be read as Parquet"),
        ("m.xlsx", "text,speaker\nHi,anna\n", "must end in one of"),
        ("m.jsonl", '{"text": "a", "speaker": "b"}\n[1]\n', "row 2: .*one JSON object"),
        ("m.jsonl", '{"text": "a", "speaker": "b"}\n{"text"\n', "row 2: is not JSON"),
        ("m.jsonl", '{"text": "a", "speaker": "b", "valence": NaN}\n', "row 1: `valence`=nan"),
        ("m.jsonl", '{"text": "a", "speaker": "b", "valence": true}\n', "`valence`=True"),
        ("m.jsonl", '{"text": ["a"], "speaker": "b"}\n', r"`text`=\['a'\] is not text"),
    ],
)
def test_unreadable_manifest_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(manifest(tmp_path, content, name))


def test_blank_rows_are_skipped(tmp_path: Path) -> None:
    content = "\ntext,speaker\n  , \n   \nHi,anna\n,\n"
    (read,) = read_manifest(manifest(tmp_path, content))
    assert (read.text, read.utterance_id) == ("Hi", "m#5")


def test_one_bad_row_is_singular(tmp_path: Path) -> None:
    path = manifest(tmp_path, "text,speaker,valence\nHi,anna,9\n")
    with pytest.raises(ValueError, match="m.csv: 1 bad row:\n  row 2: `valence`='9' is outside"):
        read_manifest(path)
    path = manifest(tmp_path, "audio,speaker\nnone.wav,anna\n")
    with pytest.raises(FileNotFoundError, match="1 row whose audio file is missing:\n  row 2"):
        read_manifest(path)


def test_what_is_no_file_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")  # reading it would wait for ever
    for name in ("folder.csv", "pipe.csv"):
        with pytest.raises(ValueError, match=f"{name}' is a folder or a pipe"):
            read_manifest(tmp_path / name)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    rows = {"text": [f"words {i}" for i in range(1000)], "speaker": ["anna"] * 1000}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    whole = path.read_bytes()
    flipped = whole[:60] + bytes(byte ^ 255 for byte in whole[60:400]) + whole[400:]
    for damaged in (whole[:200], flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path} cannot be read as Parquet .*write it again"):
            read_manifest(path)


def test_doubled_parquet_column_is_named(tmp_path: Path) -> None:
    arrays = [pyarrow.array([word]) for word in ("a", "b", "c")]
    table = pyarrow.Table.from_arrays(arrays, names=["text", "speaker", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="column 'text' occurs twice"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("other", ["anna", "\uff21nna"])
def test_speakers_spelt_alike_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    path = manifest(tmp_path, f"text,speaker\nHi,Anna\nHo,{other}\nHa,ben\n")
    with caplog.at_level(logging.WARNING):
        assert len({u.speaker_id for u in read_manifest(path)}) == 3
    assert caplog.text.count("are spelt alike and taken for different people") == 1


def test_audio_may_lie_above_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "m").mkdir()
    path = manifest(tmp_path / "m", "audio,speaker\n../a.wav,anna\n")
    assert read_manifest(path)[0].audio == str(tmp_path / "a.wav")


def test_manifest_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("text,speaker\nGrüße,anna\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_manifest(path)


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no manifest at .*m.csv"):
        read_manifest(tmp_path / "m.csv")


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
    read = read_manifest(tmp_path / "m.parquet", corpus="mine")
    assert [(u.utterance_id, u.valence) for u in read] == [("m#1", None), ("a.wav", 3.5)]
    assert {u.corpus for u in read} == {"mine"}


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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest_round_trip_is_exact(tmp_path: Path, suffix: str) -> None:
    for name in ("inside.wav", "outside.wav"):
        folder = tmp_path / "m" if name == "inside.wav" else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    utterances = [
        utterance(text=' "NA";\r\n,\tüß\u2028 ', valence=1 / 3 + 1, improvised=False, split="test"),
        utterance(utterance_id="u2", text=None, audio=str(tmp_path / "m" / "inside.wav")),
        utterance(utterance_id="u3", audio=str(tmp_path / "outside.wav"), start_s=0.1, end_s=0.3),
        utterance(utterance_id="u4", corpus="other", session_id="1", dialogue_id="2", gender="f"),
    ]
    path = tmp_path / "m" / f"m{suffix}"
    write_manifest(utterances, path)
    assert read_manifest(path) == utterances
    assert sorted(p.name for p in path.parent.iterdir()) == ["inside.wav", path.name]


def test_written_audio_paths_move_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.wav").touch()
    audible = utterance(audio=str(tmp_path / "old" / "a.wav"))
    write_manifest([audible], tmp_path / "old" / "m.csv")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = replace(audible, audio=str(tmp_path / "new" / "a.wav"))
    assert read_manifest(tmp_path / "new" / "m.csv") == [moved]


def test_write_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in one of .csv, .jsonl, .parquet"):
        write_manifest([utterance()], tmp_path / "m.xlsx")


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = manifest(tmp_path, "old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_one_of_several_manifests_keeps_its_ids(tmp_path: Path) -> None:
    path = manifest(tmp_path, "id,speaker,text\nu1,anna,Hello.\n")
    assert read_manifests([path]) == read_manifest(path)


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
    with pytest.raises(ValueError, match="first 'manifest/u1'.*name the corpora apart"):
        read_manifests(paths)


def test_describe_counts() -> None:
    described = describe(
        [
            utterance(emotion="sad", valence=2.0),
            utterance(utterance_id="u2", emotion="happy", valence=4.5, speaker_id="ben"),
            utterance(utterance_id="u3", audio="a.wav", text=None, emotion="sad"),
        ]
    )
    assert described["utterances"] == 3
    assert (described["with_audio"], described["with_text"]) == (1, 2)
    assert described["emotions"] == {"happy": 1, "sad": 2}
    assert described["speakers"] == {"anna": 2, "ben": 1}
    assert described["dimensions"]["valence"] == {"labelled": 2, "lowest": 2.0, "highest": 4.5}
    assert described["dimensions"]["arousal"] == {"labelled": 0, "lowest": None, "highest": None}


def test_ravdess_manifest_has_known_totals(real_data: Path) -> None:
    described = describe(read_manifest(real_data / "ravdess4" / "manifest.csv", corpus="ravdess4"))
    assert described["utterances"] == described["with_audio"] == described["with_text"] == 864
    assert described["emotions"] == {"angry": 192, "happy": 192, "neutral": 288, "sad": 192}
    assert set(described["speakers"].values()) == {36} and len(described["speakers"]) == 24
