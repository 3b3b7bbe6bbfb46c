"""Manifests as spreadsheets, scripts and disks spoil them; most of them are made of two good rows."""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from bad_inputs.case import Case
from mtmm_training.data.folds import make_folds
from mtmm_training.data.manifest import read_manifest

HEADER = "text,speaker,emotion,valence\n"
GOOD = HEADER + "Hi,anna,sad,3\nHo,ben,happy,4\n"
NOT_NUMBERS = "- . inf 1e400 3,5 3.0.0 0x3 3%"


def written(name: str, content: str | bytes, file: str = "m.csv", error: str | None = None) -> Case:
    """A manifest of this content."""

    def write(path: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return made(name, write, file, error)


def made(
    name: str, make: Callable[[Path], object], file: str = "m.csv", error: str | None = None
) -> Case:
    """A manifest that a function makes."""

    def attempt(folder: Path) -> Any:
        make(folder / file)
        return list(map(asdict, read_manifest(folder / file)))

    return Case(f"manifest: {name}", attempt, error)


def listed(name: str, *lines: object, error: str | None = None) -> Case:
    """A JSONL manifest of these lines, texts as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return written(f"JSONL, {name}", "\n".join(texts), "m.jsonl", error)


def columns(name: str, error: str | None = None, **values: Any) -> Case:
    """A Parquet manifest of these columns, one row unless said otherwise."""
    table = {"text": ["a"], "speaker": ["b"]} | values

    def write(path: Path) -> None:
        pyarrow.parquet.write_table(pyarrow.table(table), path)

    return made(f"Parquet, {name}", write, "m.parquet", error)


def _doubled_column(path: Path) -> None:
    arrays = [pyarrow.array([word]) for word in "abc"]
    table = pyarrow.Table.from_arrays(arrays, names=["text", "speaker", "text"])
    pyarrow.parquet.write_table(table, path)


def _damaged_parquet(path: Path) -> None:
    rows = {"text": [f"words {i}" for i in range(1000)], "speaker": ["anna"] * 1000}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    path.write_bytes(path.read_bytes()[:200])


def _with_audio(audio: str, rows: str = "") -> Callable[[Path], None]:
    """A manifest in a folder of its own; a.wav lies above it."""

    def write(path: Path) -> None:
        (path.parent.parent / "a.wav").touch()
        audio_path = audio.replace("ABOVE", str(path.parent.parent))
        path.write_text(f"audio,speaker,start,end\n{audio_path},anna,,\n{rows}")

    return write


def audible(name: str, audio: str, rows: str = "", error: str | None = None) -> Case:
    def attempt(folder: Path) -> Any:
        (folder / "m").mkdir()
        _with_audio(audio, rows)(folder / "m" / "m.csv")
        return list(map(asdict, read_manifest(folder / "m" / "m.csv")))

    return Case(f"manifest: {name}", attempt, error)


def folded(name: str, speakers: str, error: str | None, **protocol: Any) -> Case:
    """Folds of one utterance for each letter, which is its speaker."""

    def attempt(folder: Path) -> Any:
        rows = "".join(f"Hi {i},{name},sad\n" for i, name in enumerate(speakers))
        (folder / "m.csv").write_text("text,speaker,emotion\n" + rows)
        return list(map(asdict, make_folds(read_manifest(folder / "m.csv"), **protocol)))

    return Case(f"manifest: {name}", attempt, error)


def _million_rows(folder: Path) -> int:
    with (folder / "m.csv").open("w") as file:
        file.write(HEADER)
        file.writelines(f"Hello {i},speaker {i % 1000},sad,{i % 5}\n" for i in range(1, 1_000_001))
    return len(read_manifest(folder / "m.csv", dimension_range=(0, 4)))


def _all_bad(folder: Path) -> Any:
    (folder / "m.csv").write_text(HEADER + "Hi,anna,sad,9\n" * 200_000)
    return read_manifest(folder / "m.csv")


NO_TABLE = "needs the columns 'speaker', and 'audio' or 'text'"
NO_PARQUET = "m.parquet cannot be read"
NO_TEXT = "m.csv cannot be read"

CASES = [
    # ---- encodings and ends of lines
    written("byte order mark", GOOD.encode("utf-8-sig")),
    written("UTF-16", GOOD.encode("utf-16"), error=NO_TEXT),
    written("UTF-16 without its mark", GOOD.encode("utf-16-le"), error=NO_TABLE),
    written("Latin-1", GOOD.replace("Hi", "Grüße").encode("latin-1"), error=NO_TEXT),
    written("NUL byte", GOOD.replace("Hi", "H\0i"), error="row 2: `text`="),
    written("CR alone", GOOD.replace("\n", "\r")),
    written("no end of line at its end", GOOD.rstrip()),
    # ---- separators and quotes
    written("semicolons", GOOD.replace(",", ";")),
    written("tabs", GOOD.replace(",", "\t"), "m.tsv"),
    written("a lone quote between tabs", GOOD.replace(",", "\t").replace("Hi", chr(34) + "Hi"), "m.tsv"),
    written("bars", GOOD.replace(",", "|"), error=NO_TABLE),
    written("semicolons in the header only", GOOD.replace(",", ";", 3), error="row 2: .* 1,.* 4;"),
    written("quotes, commas and newlines in fields", HEADER + '"She said ""no"",\nleft",a,sad,3\n'),
    written("quote inside a field", HEADER + 'So "x,anna,sad,3\n'),
    written("unbalanced quote", HEADER + '"Hi,anna,sad,3\nHo,ben,sad,3\n', error="row 2: .*quotes"),
    written("letters after a quote", HEADER + '"Hi"x,anna,sad,3\n', error="row 2: .*quotes"),
    # ---- columns
    written("missing speakers", "text,emotion\nHi,sad\n", error=NO_TABLE),
    written("neither audio nor text", "speaker,emotion\nanna,sad\n", error=NO_TABLE),
    written("extra column", "text,speaker,mood\nHi,anna,1\n"),
    written("doubled column", "text,speaker,text\nHi,anna,Ho\n", error="'text' occurs twice"),
    *(
        written(f"column {misspelt}", f"text,speaker,{misspelt}\nHi,anna,1\n", error=f"'{meant}' meant")
        for misspelt, meant in {"valance": "valence", "Emotion": "emotion", "end_s": "end"}.items()
    ),
    written("column of the record", "text,speaker_id\nHi,anna\n"),
    written("space before a column", "text, speaker\nHi,anna\n", error="'speaker' meant"),
    written("no header", "Hi,anna,sad,3\n", error=NO_TABLE),
    written("comment before the header", "# of 2024\n" + GOOD, error=NO_TABLE),
    # ---- rows
    written("empty", "", error=NO_TABLE),
    written("header alone", HEADER, error="m.csv has no rows"),
    written("blank lines", "\n" + HEADER + "\n   \n,,,\n ,,,\nHi,anna,sad,3\n\n"),
    written("too few fields", HEADER + "Hi,anna\n", error="row 2: .* 2, in the header 4"),
    written("too many fields", HEADER + "Hi,a,sad,3,5\n", error="row 2: .* 5, in the header 4"),
    # ---- values
    written("speaker missing in a row", HEADER + "Hi,,sad,3\n", error="row 2: `speaker_id`=None"),
    written("neither in a row", HEADER + ",anna,sad,3\n", error="row 2: `text`=None"),
    written("doubled id", "id,text,speaker\nu,Hi,a\nu,Ho,b\n", error="row 3: id 'u' .* of row 2"),
    written("ids that differ by case", "id,text,speaker\nu,Hi,a\nU,Ho,b\n"),
    written("ids of two Unicode forms", "id,text,speaker\né,Hi,a\ne\u0301,Ho,b\n"),
    written("speakers that differ by case", "text,speaker\nHi,anna\nHo,Anna\n"),
    written("labels with spaces and another case", HEADER + "Hi,anna, sad ,3\nHo,ben,SAD,3\n"),
    written("valence below the scale", HEADER + "Hi,anna,sad,0.99\n", error="outside 1.0 to 5.0"),
    written("valence above the scale", HEADER + "Hi,anna,sad,5.01\n", error="outside 1.0 to 5.0"),
    *(
        written(f"valence {word}", HEADER + f'Hi,anna,sad,"{word}"\n', error="row 2: `valence`=")
        for word in NOT_NUMBERS.split()
    ),
    written("unknown split", "text,speaker,split\nHi,anna,dev\n", error="row 2: `split`='dev'"),
    written("unknown flag", "text,speaker,improvised\nHi,anna,maybe\n", error="`improvised`='maybe'"),
    # ---- audio
    audible("path above its folder", "../a.wav"),
    audible("absolute path", "ABOVE/a.wav"),
    audible("one file spelt in two ways", "../a.wav", "../m/../a.wav,ben,,\n"),
    audible("missing audio", "b.wav", error="row 2: no file '.*b.wav'"),
    audible("audio that is a folder", "..", error="row 2: no file"),
    audible("audio with backslashes", "..\\a.wav", error="row 2: no file"),
    audible("audio path of 5,000 letters", "a" * 5000, error="row 2: no file"),
    audible("part that ends before it begins", "../a.wav", "../a.wav,anna,3,2\n",
            error="row 3: `end_s`=2.0"),
    audible("part that begins before the file", "../a.wav", "../a.wav,anna,-1,2\n",
            error="row 3: `start_s`=-1.0"),
    # ---- JSONL
    listed("array", [{"text": "a", "speaker": "b"}], error="row 1: is .*one JSON object per line"),
    listed("comma at the end", '{"text": "a", "speaker": "b"},', error="row 1: is not JSON"),
    listed("object over several lines", '{"text": "a",\n"speaker": "b"}', error="2 bad rows:\n"),
    listed("half a surrogate pair", {"text": "\ud800", "speaker": "b"}, error="`text`=.*surrogate"),
    listed("list as text", {"text": ["a"], "speaker": "b"}, error=r"`text`=\['a'\] is not text"),
    listed("list as audio", {"audio": ["a"], "speaker": "b"}, error=r"`audio`=\['a'\] is not text"),
    listed("flag as emotion", {"text": "a", "speaker": "b", "emotion": True}, error="is not text"),
    listed("flag as valence", {"text": "a", "speaker": "b", "valence": True}, error="`valence`=True"),
    listed("whole number as speaker", {"text": "a", "speaker": 3}),
    listed("NaN", '{"text": "a", "speaker": "b", "valence": NaN}'),
    listed("empty", error=NO_TABLE),
    # ---- Parquet
    made("Parquet, cut off", _damaged_parquet, "m.parquet", NO_PARQUET),
    written("Parquet that is CSV", GOOD, "m.parquet", NO_PARQUET),
    made("Parquet, doubled column", _doubled_column, "m.parquet", "'text' occurs twice"),
    columns("lists", "`text`=.* is not text", text=[["a"]]),
    columns("bytes", "`text`=.* is not text", text=[b"a\xff"]),
    columns("dates", "`text`=.* is not text", text=[date(2020, 1, 1)]),
    columns("flags as emotions", "`emotion`=True is not text", emotion=[True]),
    columns("whole numbers as emotions", emotion=[1]),
    columns("NaN", valence=[float("nan")]),
    columns("no rows", "has no rows", text=pyarrow.array([], "string"),
            speaker=pyarrow.array([], "string")),
    columns("nothing but null", "row 1: `text`=None", text=pyarrow.nulls(1)),
    # ---- what is no manifest
    written("of a spreadsheet", b"PK", "m.xlsx", "must end in one of .csv, .tsv, .jsonl, .parquet"),
    made("directory", Path.mkdir, error="m.csv"),
    made("missing", lambda path: None, error="m.csv"),
    # ---- folds
    folded("one speaker", "aaaa", "is empty", protocol="leave_one_speaker_out"),
    folded("one speaker, grouped", "aaaa", "is empty", protocol="grouped", k=3),
    folded("one class", "abcd", None, protocol="leave_one_speaker_out"),
    folded("no sessions", "abcd", "session", protocol="session"),
    folded("no splits", "abcd", "split", protocol="official"),
    # ---- much
    Case("manifest: a million rows", _million_rows, heavy=True),
    Case("manifest: 200,000 bad rows", _all_bad, "200000 bad rows", heavy=True),
]  # fmt: skip
