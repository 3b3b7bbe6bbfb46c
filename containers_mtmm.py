"""How much is in an audio file: what its header says, compared with the bytes behind it.

A leaf file: it is uploaded to the Hub with the others, is part of the runtime, and imports none of them.
"""

import io
import mmap
import struct
import tempfile
from typing import Any

TO_THE_END = b"\xff" * 4  # the size that recorders write which cannot know it
MP3_IN_WAV = b"\x55"  # a wav's format tag
# kbit/s by MPEG version (3 = 1, others 2) and layer (2 = II, 1 = III), as an mp3's headers have them.
LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MIDDLE = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
HIGH = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
KBITS = {(3, 2): HIGH, (3, 1): MIDDLE, (2, 2): LOW, (2, 1): LOW}
FLAC_BLOCKS = (0, 192, *(576 << n for n in range(4)), 0, 0, *(256 << n for n in range(8)))
# What files begin with that libsndfile may not read, and PyAV does; words of four from a later byte on, too.
MEDIA = {b"OggS": "ogg", b"AVI ": "avi",
         b"ftyp": "mp4 or m4a", b"\x1aE\xdf\xa3": "webm or Matroska", b"#!AMR": "amr", b"FLV": "flv",
         b"0&\xb2u\x8ef": "wma or asf", b"\xff\xf1": "aac", b"\xff\xf9": "aac", b"ADIF": "aac",
         b"MAC ": "Monkey's Audio", b"wvpk": "WavPack", b"caff": "caf of a codec that libsndfile lacks",
         b"wide": "QuickTime", b"mdat": "QuickTime", b"moov": "QuickTime", b"G@": "an MPEG stream",
         b"\0\0\1\xba": "MPEG", b"\x0bw": "ac3", b"TTA1": "True Audio", b".RMF": "RealMedia", b"BW64": "BW64",
         b"\x7f\xfe\x80\1": "DTS", b"DSD ": "DSD", b"MPCK": "Musepack", b"MP+": "Musepack"}  # fmt: skip
# What it reads with the codecs that it knows.
SOUNDS = (b"RIFF", b"RF64", b"riff", b"FORM", b"OggS", b"fLaC", b"ID3", b"NIST_1A")
INSTALL = "install the extra `media` (`pip install av`), or convert it to wav"
TABLE = "a manifest ends in .csv, .tsv, .jsonl or .parquet"
PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh", b"(\xb5/\xfd")
OTHERS = {b"version https://git-lfs": "a pointer of Git LFS; run `git lfs pull`",
          b"/annex/": "a pointer of git-annex; run `git annex get`",
          b"<": "a web page or XML, and no audio; look where it was fetched", b"%PDF": "a PDF",
          b"{": f"JSON; {TABLE}", b"[": f"JSON; {TABLE}", b"PAR1": f"a Parquet table; {TABLE}",
          **dict.fromkeys(PACKED, "an archive, as zip and gzip are; unpack it"),
          **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), "a picture"),
          b"\x93NUMPY": "an array of NumPy; give the array", b"MThd": "MIDI, which has no sound",
          b"\0\5\x16\7": "what macOS keeps beside a file of this name; leave it out",
          b"#EXTM3U": "a playlist; give what it names",
          bytes(16): "zeros, as a copy that broke off leaves them; fetch it again", b"": "text"}  # fmt: skip


def medium(head: bytes) -> str | None:
    """What PyAV may read of it, by a file's first bytes; None = nothing, as of text."""
    inside = head[4:8], head[8:12]
    found = (name for magic, name in MEDIA.items() if head.startswith(magic) or magic in inside)
    return None if _is_text(head) and head[:5] != b"#!AMR" else next(found, None)


def _is_text(head: bytes) -> bool:
    return all(byte > 31 or byte in b"\t\n\r" for byte in head)


def what_it_is(head: bytes) -> str:
    """What a file is that cannot be decoded, by its first bytes, and what to do."""
    if head.startswith(SOUNDS):
        return f"it is audio of a codec that libsndfile lacks, or damaged; {INSTALL}"
    if name := medium(head):
        return f"it is {name}; {INSTALL}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = next(magic for magic in OTHERS if text.startswith(magic))
    if not known and not _is_text(head):
        return "it is of no known kind"
    return f"it is {OTHERS[known] if head else 'empty'}"


def corrected(file: Any) -> Any:
    """The file; or one that says how much is in it, where its own header says less, or nothing.

    mp3, also inside wav, is counted by its frames, flac by its last one; wav, aiff, caf and au go on to the
    end of the file where no chunks follow. A header that says more than there is stays: the file is cut off.
    """
    try:
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # not in memory at once
    except (OSError, ValueError):  # there already, or empty
        data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    if data[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        return _chunked(file, data, ">4sI" if data[:4] == b"FORM" else "<4sI", 12)
    if data[:4] == b"caff":
        return _chunked(file, data, ">4sq", 8)
    if data[:4] == b".snd" and len(data) > 24:
        return _to_the_end(file, data, 8, sum(struct.unpack_from(">II", data, 4)), TO_THE_END)
    if data[:4] == b"fLaC":
        return _flac(file, data)
    return _mp3(file, data) if data[:3] == b"ID3" or _frame(data[:4]) else file


def _chunked(file: Any, data: Any, form: str, place: int) -> Any:
    is_mp3, large, head = False, 0, struct.calcsize(form)
    while place + head <= len(data):
        name, size = struct.unpack_from(form, data, place)
        begin, end = place + head, place + head + size + (size % 2 if head == 8 else 0)
        if name == b"fmt ":
            is_mp3 = data[begin : begin + 1] == MP3_IN_WAV
        elif name == b"ds64":  # of an RF64, which has the size of its data here
            large = begin + 8
        elif name == b"data" and is_mp3:
            return _mp3(file, data[begin : begin + size])
        elif name == b"data" and large and size == 2**32 - 1:
            end = begin + int.from_bytes(data[large : large + 8], "little")
            return _to_the_end(file, data, large, end, struct.pack("<Q", len(data) - begin))
        elif name in (b"data", b"SSND"):
            big = TO_THE_END if form[0] == "<" else struct.pack(form, name, len(data) - begin)[4:]
            return _to_the_end(file, data, place + 4, end, big)
        place = max(begin, end)  # a caf's size may be -1
    return file


def _to_the_end(file: Any, data: Any, place: int, end: int, size: bytes) -> Any:
    """With this size at its place, where the file goes on behind the end that it tells."""
    rest = data[end : end + 4]
    is_chunk = rest.isascii() and rest.decode().isprintable() and rest != b"RIFF"
    # A writer that cannot seek back, or was stopped; zeros are room that it left.
    if is_chunk or len(data) < end + 1024 or not any(data[end : end + 2**16]):
        return file
    return _written(data[:place] + size, memoryview(data)[place + len(size) :])


def _flac(file: Any, data: Any) -> Any:
    """With a count of samples to the end of its last frame; of files in a row with none."""
    told, block = int.from_bytes(data[18:26], "big"), int.from_bytes(data[8:10], "big")
    is_fixed = data[8:10] == data[10:12]  # else frames have the number of a sample, not their own
    at, end = len(data) - 5, 0
    while not end and (at := data.rfind(b"\xff\xf8" if is_fixed else b"\xff\xf9", 42, at)) > 0:
        end = _flac_end(data[at : at + 17], block if is_fixed else 1)
    is_joined = data.find(data[:8], 42) > 0
    if not is_joined and told & 2**36 - 1 >= end:
        return file
    count = told >> 36 << 36 | end * (not is_joined)
    return _written(data[:18] + count.to_bytes(8, "big"), memoryview(data)[26:])


def _flac_end(head: bytes, block: int) -> int:
    """The sample behind a flac's frame; 0 where these bytes begin none."""
    code, ones = head[2] >> 4, 8 - (head[4] ^ 255).bit_length()
    number, end = head[4] & 127 >> ones, 5 + max(ones - 1, 0)  # as UTF-8 writes it
    for byte in head[5:end]:
        number = number << 6 | byte & 63
    own = head[end : end + code - 5] if code in (6, 7) else b""
    samples = 1 + int.from_bytes(own, "big") if own else FLAC_BLOCKS[code]
    end += len(own) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    rest = int.from_bytes(head[: end + 1], "big")
    while rest > 255:  # the checksum behind the header is what makes it divisible
        rest ^= 0x107 << rest.bit_length() - 9
    return 0 if rest or not samples else number * block + samples


def ogg_end(file: Any) -> int | None:
    """What the last page says: above 0 that it is the last, 0 nothing; None = it is not whole."""
    place = file.tell()
    file.seek(-min(file.seek(0, io.SEEK_END), 2**16), io.SEEK_END)
    page = file.read().rpartition(b"OggS")[2]
    file.seek(place)
    is_whole = len(page) > 22 and len(page) >= 23 + page[22] + sum(page[23 : 23 + page[22]])
    return page[1] & 4 if is_whole else None


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
        place += 10 + sum(byte << 21 - 7 * i for i, byte in enumerate(data[place + 6 : place + 10]))
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
    if kind is None or kind[1] == 2 or frames >= count - 1:  # layer II has a constant rate
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
