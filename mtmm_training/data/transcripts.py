"""Transcript files of other programs, as the pipeline takes them: subtitles, tables, TextGrids, CTM, RTTM.

JSON is read in turns.py and by `mtmm predict`.
"""

import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

from mtmm_training.data.tables import unquoted

Timed = dict[str, Any]  # "start", "end" (seconds), and "text" and "speaker" where there are any

CLOCK = r"((?:\d+:)?\d+:\d\d(?:[.,]\d+)?|\d+\.\d+(?=s? -)|(?<=> )\d+\.\d+)s?"
# SubRip and WebVTT, with hours or without; SBV; and, in brackets, what whisper and faster-whisper print.
CUE = re.compile(rf"\[?{CLOCK}\s*(?:--?>|,)\s*{CLOCK}(\])?(.*)")
SPEAKER = re.compile(r"<v(?:\.[^ >]*)? ([^>]+)>|\[?(SPEAKER_\d+)\]?:")  # WebVTT's, and whisperX's
MARKUP = re.compile(r"<[^<>|]*>|\{\\[^}]*\}")
UNSPOKEN = {"", "sp", "sil", "spn", "<eps>", "<sil>", "SIL"}  # labels of aligners
PHONES = ("phones", "phonemes", "phone")


def read_timed(text: str, suffix: str) -> dict[str, Any] | None:
    """The segments or words of a file's text.

    Args:
        text: What is in the file.
        suffix: The end of its name, in lower case: .srt, .vtt, .sbv, .tsv, .textgrid, .ctm, .rttm; or
            .txt, which may have the first ones' lines.

    Returns:
        {"segments": ...} or {"words": ...}; None of a .txt without times.

    Raises:
        ValueError: There is nothing of this format in it.
    """
    reader: Callable[[str], Iterator[Timed]] = READERS.get(suffix, _of_cues)
    if suffix == ".txt" and not any(map(CUE.match, text.splitlines())):
        if not re.fullmatch(r"(\s*[\d.]+\t[\d.]+\t.*\n?)+", text):
            return None
        reader = _of_table  # Audacity's labels
    try:
        found = list(reader(text))
    except (IndexError, ValueError) as error:
        raise ValueError(f"it is not what {suffix} files are ({error})") from error
    if not found and text.strip().removeprefix("WEBVTT").strip():
        raise ValueError(f"there is nothing in it of what {suffix} files have")
    is_words = suffix == ".ctm" or any([one.pop("is_word", False) for one in found])
    return {"words" if is_words else "segments": found} if found else {}


def _of_cues(text: str) -> Iterator[Timed]:
    cues: list[tuple[float, float, list[str]]] = []
    is_open = False
    for line in map(str.strip, text.splitlines()):
        if match := CUE.match(line):
            if is_open and cues[-1][2] and cues[-1][2][-1].isdecimal():
                cues[-1][2].pop()  # the number of this cue, where no empty line is before it
            start, end, bracket, rest = match.groups()
            cues.append((_seconds(start), _seconds(end), [rest] if bracket else []))
            is_open = True
        elif is_open and line:
            cues[-1][2].append(line)
        else:
            is_open = False
    for start_s, end_s, lines in cues:
        said = " ".join(lines)
        speaker = SPEAKER.search(said)
        said = " ".join(unescape(MARKUP.sub("", SPEAKER.sub("", said))).split())
        cue = {"start": start_s, "end": end_s, "text": said}
        yield cue | ({"speaker": speaker[1] or speaker[2]} if speaker else {})


def _seconds(clock: str) -> float:
    seconds = 0.0
    for part in clock.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _of_table(text: str) -> Iterator[Timed]:
    """Tab-separated: whisper's, in milliseconds, or with a header of its names; labels without any."""
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    names = [name.strip().lower() for name in rows[0]]
    has_header = "start" in names
    names = names if has_header else ["start", "end", "text"]
    rows = rows[has_header:]
    places = {
        name: names.index(name) for name in ("start", "end", "text", "speaker") if name in names
    }
    times = [row[places[name]] for row in rows for name in ("start", "end")]
    unit = 1000 if has_header and all(time.strip().isdecimal() for time in times) else 1
    for row in rows:
        there = {name: place for name, place in places.items() if place < len(row)}
        cells = {name: unquoted(row[place].strip()) for name, place in there.items()}
        yield cells | {name: float(cells[name]) / unit for name in ("start", "end")}


def _of_textgrid(text: str) -> Iterator[Timed]:
    """The tiers of words, or else all of intervals but phones; several tiers are speakers."""
    tokens = re.findall(r'"((?:[^"]|"")*)"|(?<![\w\[])(-?\d+(?:\.\d+)?)(?![\w\]])', text)
    values = iter([quoted if not number else float(number) for quoted, number in tokens][5:])
    tiers: dict[str, list[Timed]] = {}
    for kind in values:
        name, _, _, size = next(values), next(values), next(values), int(float(next(values)))
        width = 3 if kind == "IntervalTier" else 2
        rows = [[next(values) for _ in range(width)] for _ in range(size)]
        if width == 3 and not str(name).lower().endswith(PHONES):
            tiers[str(name)] = [
                {"start": start, "end": end, "text": str(said).replace('""', '"').strip()}
                for start, end, said in rows
                if str(said).strip() not in UNSPOKEN
            ]
    words = {name: tier for name, tier in tiers.items() if name.lower().endswith("words")}
    for name, tier in (words or tiers).items():
        by = (name[: -len("words")] if words else name).rstrip(" -_")
        speaker = {"speaker": by} if by and len(words or tiers) > 1 else {}
        yield from (one | speaker | ({"is_word": True} if words else {}) for one in tier)


def _of_ctm(text: str) -> Iterator[Timed]:
    """file channel start duration word [confidence]."""
    for line in text.splitlines():
        fields = line.split()
        if fields and not line.startswith(";;") and fields[4] not in UNSPOKEN:
            start = float(fields[2])
            yield {"start": start, "end": start + float(fields[3]), "text": fields[4]}


def _of_rttm(text: str) -> Iterator[Timed]:
    """SPEAKER file channel start duration <NA> <NA> name ..."""
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] == "SPEAKER":
            start = float(fields[3])
            yield {"start": start, "end": start + float(fields[4]), "speaker": fields[7]}


READERS = {".tsv": _of_table, ".textgrid": _of_textgrid, ".ctm": _of_ctm, ".rttm": _of_rttm}
SUFFIXES = (".json", ".TextGrid", ".vtt", ".srt", ".sbv", ".tsv", ".ctm", ".rttm", ".txt")
