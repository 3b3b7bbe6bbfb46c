"""Transcripts that are not what they ought to be."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bad_inputs import tiny
from bad_inputs.case import Case, at_once
from mtmm_training.commands.predict_inputs import read_transcript

LONG = r"\d+ tokens; at most 64"
ABSENT = "neither audio nor text"
NO_STRING = "it must be a string"
NO_UNICODE = "surrogates not allowed"

# The text, and the error it must get; None: an answer.
TEXTS: dict[str, tuple[Any, str | None]] = {
    "empty": ("", ABSENT),
    "blanks": (" \t\r\n\v\f ", ABSENT),
    "blanks of other scripts": ("\u00a0\u3000\u2003\u2028\u2029\u1680", ABSENT),
    "zero-width characters alone": ("\u200b\u200c\u200d\ufeff\u2060", ABSENT),
    "control characters alone": ("\x00\x01\x1b\x7f", ABSENT),
    "NUL alone": ("\0", ABSENT),
    "NUL among letters": ("a\0b", None),
    "control characters among letters": ("\x1b[31mred\x07", None),
    "zero-width characters among letters": ("a\u200bb \u200d c", None),
    "a byte order mark": ("\ufeffhello", None),
    "100,000 words": ("word " * 100_000, LONG),
    "10,000 letters": ("x" * 10_000, LONG),
    "10,000 combining marks": ("a" + "\u0301" * 10_000, None),
    "a letter that becomes 18": ("\ufdfa", None),
    "emoji": ("😀👩‍👩‍👧‍👦🏳️‍🌈", None),
    "right-to-left": ("שלום مرحبا", None),
    "directions": ("\u202eabc\u202c", None),
    "full-width and ligatures": ("ＡＢＣ ﬁne ½ ㎏", None),
    "another language": ("你好，世界。これは日本語です", None),
    "letters beyond 16 bits": ("𝕳𝖊𝖑𝖑𝖔 𐍈", None),
    "special tokens": ("[CLS] [SEP] [PAD] [MASK]", None),
    "punctuation alone": ("?!...", None),
    "half a surrogate pair": ("hi \ud83d", NO_UNICODE),
    "undecoded bytes": (b"J\xfcrgen".decode("utf-8", "surrogateescape"), NO_UNICODE),
    "bytes": (b"hello", f"bytes; {NO_STRING}"),
    "a number": (5, f"int; {NO_STRING}"),
    "NaN, as tables have it": (float("nan"), ABSENT),
    "True": (True, f"bool; {NO_STRING}"),
    "None": (None, ABSENT),
    "a dict": ({"text": "hi"}, f"dict; {NO_STRING}"),
}


def predict(text: Any, **options: Any) -> Any:
    return tiny.pipe()({"text": text}, **options)


def pipe(given: Any) -> Any:
    return tiny.pipe()(given)


def process(text: Any) -> Any:
    return tiny.processor()(text=text)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pipeline": predict,
    "processor": process,
    "explained": lambda text: predict(text, explain=True),
}
CASES = [
    at_once(f"text: {name}, {way}", feed, text, error)
    for name, (text, error) in TEXTS.items()
    for way, feed in WAYS.items()
    if way == "pipeline" or name != "100,000 words"  # which takes seconds
]
OTHERS: list[tuple[str, Callable[[Any], Any], Any, str]] = [
    ("bad one in a batch", pipe, [{"text": "a"}, {"text": "b"}, {"text": 5}], "^Input 2: "),
    ("bad one for the processor", process, ["a", 5, "c"], "^Input 1: "),
    ("long one for the processor", process, ["a", "a " * 99, "c"], f"^Input 1: .*{LONG}"),
    ("absent from one of the batch", process, ["a", " ", "c"], "^Input 1: "),
    ("no texts", process, [], ABSENT),
    ("a list in a list", process, [["a"]], f"list; {NO_STRING}"),
    ("nothing at all", process, None, ABSENT),
    ("in a string of its own", pipe, "i am happy", "A transcript is given"),
    ("a list to the pipeline", predict, ["a", "b"], f"list; {NO_STRING}"),
]
CASES += [at_once(f"text: {name}", feed, text, error) for name, feed, text, error in OTHERS]

# Transcripts of other programs: the file's name, what is in it, and the error it must get.
LINES = "[0.50s -> 1.25s]  So you won\n[1.50s -> 9.00s] no, 1.5 or 2, 3\n[9.00s -> 9.00s]\n"
FILES: list[tuple[str, str, str | None]] = [
    ("faster-whisper.txt", LINES, None),
    ("label.txt", "0.5\t1.25\tSo you\n3.0\t3.0\tno\n", None),
    (
        "vosk.json",
        '{"result": [{"conf": 1, "end": 1, "start": 0, "word": "no"}], "text": "no"}',
        None,
    ),
    ("no times.json", '{"text": "no", "timestamps": [0.1]}', None),
    ("no words.json", '{"results": []}', "has no transcript"),
    ("words.srt", "words", "nothing in it of what .srt"),
    ("words.ctm", "a b c", "not what .ctm files are"),
    ("a word as a time.tsv", "start\tend\ttext\none\t2\tno\n", "not what .tsv files are"),
    ("subtitles.ass", "Dialogue: 0,0:00:00.50", "is no transcript"),
]


def from_file(name: str, content: str, folder: Path) -> Any:
    (folder / name).write_text(content)
    said = read_transcript(folder / name)
    return tiny.pipe()({"audio": np.sin(np.arange(32000.0)), **said}, sampling_rate=16000)


CASES += [
    Case(f"text: {name}", partial(from_file, name, text), error) for name, text, error in FILES
]
