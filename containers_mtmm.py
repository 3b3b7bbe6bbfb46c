"""How much is in an audio file: what its header says, compared with the bytes behind it.

A leaf file: it is uploaded to the Hub with the others, is part of the runtime, and imports none of them.
"""

import io
import mmap
import struct
import tempfile
from typing import Any

TO_THE_END = b"\xff" * 4  # the size that recorders write which cannot know it
MP3_IN_WAV = 0x55  # a wav's format tag
# kbit/s by MPEG version (3 = 1, others 2) and layer (2 = II, 1 = III), as an mp3's headers have them.
LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MIDDLE = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
HIGH = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
KBITS = {(3, 2): HIGH, (3, 1): MIDDLE, (2, 2): LOW, (2, 1): LOW}
# What files begin with that libsndfile does not read, and PyAV does; from the first or fifth byte on.
MEDIA = {b"ftyp": "mp4 or m4a", b"\x1aE\xdf\xa3": "webm or Matroska", b"#!AMR": "amr", b"FLV": "flv",
         b"0&\xb2u\x8ef": "wma or asf", b"\xff\xf1": "aac", b"\xff\xf9": "aac", b"ADIF": "aac",
         b"MAC ": "Monkey's Audio", b"wvpk": "WavPack"}  # fmt: skip
INSTALL = "install the extra `media` (`pip install av`), or convert it to wav"
TABLE = "a manifest ends in .csv, .tsv, .jsonl or .parquet"
OTHERS = {b"version https://git-lfs": "a pointer of Git LFS; run `git lfs pull`",
          b"<": "a web page or XML, and no audio; look where it was fetched", b"%PDF": "a PDF",
          b"{": f"JSON; {TABLE}", b"[": f"JSON; {TABLE}", b"PAR1": f"a Parquet table; {TABLE}",
          b"PK\x03\x04": "a zip archive; unpack it", b"\x1f\x8b": "a gzip archive; unpack it",
          b"": "text"}  # fmt: skip


def what_it_is(head: bytes) -> str:
    """What a file is that cannot be decoded, by its first bytes, and what to do."""
    for magic, name in MEDIA.items():
        if head.startswith(magic) or head.startswith(magic, 4):
            return f"it is {name}; {INSTALL}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = next(magic for magic in OTHERS if text.startswith(magic))
    is_text = all(byte > 31 or byte in b"\t\n\r" for byte in head)
    return (
        f"it is {OTHERS[known] if head else 'empty'}"
        if known or is_text
        else "it is of no known kind"
    )


def corrected(file: Any) -> Any:
    """The file; or one that says how much is in it, where its own header says less, or nothing.

    mp3, also inside wav, is counted by its frames; wav and aiff go on to the end of the file where no
    chunks follow. A header that says more than there is stays: the file is cut off.
    """
    try:
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # not in memory at once
    except (OSError, ValueError):  # there already, or empty
        data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    if data[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        return _chunked(file, data)
    return _mp3(file, data) if data[:3] == b"ID3" or _frame(data[:4]) else file


def _chunked(file: Any, data: Any) -> Any:
    order, place, is_mp3 = (">" if data[:4] == b"FORM" else "<"), 12, False
    while place + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, place)
        begin, end = place + 8, place + 8 + size + size % 2
        if name == b"fmt ":
            is_mp3 = data[begin] == MP3_IN_WAV
        elif name == b"data" and is_mp3:
            return _mp3(file, data[begin : begin + size])
        elif name in (b"data", b"SSND"):
            rest = data[end : end + 4]
            is_chunk = rest.isascii() and rest.decode().isprintable() and rest != b"RIFF"
            # A writer that cannot seek back, or was stopped; zeros are room that it left.
            if is_chunk or len(data) < end + 1024 or not any(data[end : end + 2**16]):
                break
            to_end = TO_THE_END if order == "<" else struct.pack(">I", len(data) - begin)
            return _written(data[: begin - 4] + to_end, memoryview(data)[begin:])
        place = end
    return file


def _frame(head: bytes) -> tuple[int, int, tuple[int, int, int]] | None:
    """Of an mp3 frame's header: its bytes, its samples, and what all frames of a file share."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer, code = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 2 & 3
    if version == 1 or layer in (0, 3) or code == 3 or head[2] >> 4 in (0, 15):
        return None
    rate = (44100, 48000, 32000)[code] >> (0 if version == 3 else 1 if version == 2 else 2)
    bits = 1000 * KBITS[3 if version == 3 else 2, layer][(head[2] >> 4) - 1]
    samples = 576 if layer == 1 and version != 3 else 1152
    return samples // 8 * bits // rate + (head[2] >> 1 & 1), samples, (version, layer, rate)


def _mp3(file: Any, data: Any) -> Any:
    """With a header in front that counts the frames, where the file's own does not."""
    place = 0
    while data[place : place + 3] == b"ID3":  # whose sizes have seven bits in a byte
        a, b, c, d = data[place + 6 : place + 10]
        place += 10 + (a << 21 | b << 14 | c << 7 | d)
    count, first, kind, in_step = 0, 0, None, False
    while 0 <= place <= len(data) - 4:
        found = _frame(data[place : place + 4])
        behind = _frame(data[place + found[0] : place + found[0] + 4]) if found else None
        # Out of step two in a row are wanted, for such bytes occur by chance.
        if found and kind in (None, found[2]) and (in_step or (behind and behind[2] == found[2])):
            first = first if kind else place
            count, kind, in_step = count + (place + found[0] <= len(data)), found[2], True
            place += found[0]
        else:
            in_step, place = False, data.find(b"\xff", place + 1)
    head = data[first : first + 4]
    size, *_ = _frame(head) or (0,)
    frame = data[first : first + size]
    told = max(frame.find(b"Xing", 0, 48), frame.find(b"Info", 0, 48))
    frames = int.from_bytes(frame[told + 8 : told + 12], "big") if told > 0 else 0
    if kind is None or frames >= count - 1:
        return file
    begin, is_mono = first + (size if told > 0 or b"VBRI" in frame[:48] else 0), head[3] >> 6 == 3
    aside = (17 if is_mono else 32) if head[1] & 8 else (9 if is_mono else 17)
    own = bytes([255, head[1] | 1, *head[2:]]) + bytes(aside) + b"Xing"
    own += struct.pack(">III", 3, count - (begin > first), len(data) - begin + size)
    return _written(own.ljust(size, b"\0"), memoryview(data)[begin:])


def _written(head: bytes, rest: memoryview) -> Any:
    """A file of its own, on disk; a view of the old one would hold it open."""
    with rest:
        copy: Any = tempfile.TemporaryFile()
        copy.write(head)
        copy.write(rest)
    copy.seek(0)
    return copy
