"""Transcripts that are not what they ought to be."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bad_inputs import tiny
from bad_inputs.case import Case

LONG = r"transcript has \d+ tokens; at most 64 are taken at once. Cut it into utterances"
ABSENT = "neither audio nor text"
NO_STRING = "it must be a string, or None if absent"
NO_UNICODE = "is not valid Unicode .*decode it with the right encoding"

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
    "bytes": (b"hello", f"type bytes; {NO_STRING}"),
    "a number": (5, f"type int; {NO_STRING}"),
    "NaN, as tables have it": (float("nan"), f"type float; {NO_STRING}"),
    "True": (True, f"type bool; {NO_STRING}"),
    "None": (None, ABSENT),
    "a dict": ({"text": "hi"}, f"type dict; {NO_STRING}"),
}


def predict(text: Any, **options: Any) -> Any:
    return tiny.pipe()({"text": text}, **options)


def process(text: Any, **given: Any) -> Any:
    return tiny.processor()(text=text, **given)


def at_once(feed: Callable[[Any], Any], text: Any, folder: Path) -> Any:
    return feed(text)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pipeline": predict,
    "processor": process,
    "explained": lambda text: predict(text, explain=True),
}
CASES = [
    Case(
        f"text: {name}, {way}",
        partial(at_once, feed, text),
        error,
        heavy=name == "100,000 words" and way != "pipeline",
    )
    for name, (text, error) in TEXTS.items()
    for way, feed in WAYS.items()
]


def bad_one(folder: Path) -> Any:
    return tiny.pipe()([{"text": "a"}, {"text": "b"}, {"text": 5}])


def second_of_processor(text: Any) -> Any:
    return lambda folder: process(["a", text, "c"])


CASES += [
    Case("text: bad one in a batch", bad_one, "^Input 2: The transcript is of type int"),
    Case(
        "text: bad one for the processor",
        second_of_processor(5),
        "^Utterance 1 of this batch: the t",
    ),
    Case(
        "text: long one for the processor", second_of_processor("a " * 99), f"^Utterance 1 .*{LONG}"
    ),
    Case(
        "text: absent from one of the batch", second_of_processor(" "), r"^Utterances \[1\] of this"
    ),
    Case(
        "text: no texts", lambda folder: process([]), "`text` is an empty list; give at least one"
    ),
    Case("text: a list in a list", lambda folder: process([["a"]]), f"type list; {NO_STRING}"),
    Case("text: nothing at all", lambda folder: process(None), "got neither audio nor text; give"),
    Case(
        "text: in a string of its own",
        lambda folder: tiny.pipe()("i am happy"),
        "A transcript is giv",
    ),
    Case(
        "text: a list to the pipeline",
        lambda folder: predict(["a", "b"]),
        f"type list; {NO_STRING}",
    ),
]
