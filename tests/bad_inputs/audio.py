"""Recordings, arrays, streams and options that are not what they ought to be."""

import io
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
from torch.utils.data import ConcatDataset, DataLoader

from audio_mtmm import load_audio, open_recording
from bad_inputs import tiny
from bad_inputs.case import Case, at_once
from timeline_mtmm import Windows

RATE = 16000


@cache
def noise(seconds: float = 0.5) -> np.ndarray:
    samples = round(seconds * RATE)
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
    waveform.flags.writeable = False
    return waveform


@cache
def encoded(
    form: str, seconds: float = 2.0, subtype: str | None = None, channels: int = 1, rate: int = RATE
) -> bytes:
    file = io.BytesIO()
    waveform = np.repeat(noise(seconds)[:, None], channels, axis=1)
    soundfile.write(file, waveform, rate, format=form, subtype=subtype)
    return file.getvalue()


def wav(
    data: bytes = bytes(RATE), rate: int = RATE, width: int = 2, channels: int = 1, size: int = -1
) -> bytes:
    """A wav file by hand, whose header may say anything; `size` of the samples, bytes."""
    size = len(data) if size < 0 else size
    bytes_a_second = rate * width * channels % 2**32
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, bytes_a_second, width * channels % 2**16, 8 * width
    )
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", (36 + size) % 2**32) + head + data


def rf64_that_says_half() -> bytes:
    data = encoded("RF64")
    return data[:28] + struct.pack("<Q", RATE) + data[36:]


def without_end(ogg: bytes) -> bytes:
    """Without the mark of the last page, as Android records it."""
    at = ogg.rindex(b"OggS")
    page = bytearray(ogg[at:])
    page[5], page[22:26] = page[5] & ~4, bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = checksum << 1 ^ (0x104C11DB7 if checksum >> 31 else 0)
    page[22:26] = checksum.to_bytes(4, "little")
    return ogg[:at] + bytes(page)


def flac_of_unknown_length() -> bytes:
    data = bytearray(encoded("FLAC"))
    field = int.from_bytes(data[18:26], "big") >> 36 << 36  # a count of 36 bits; 0: nobody knows
    data[18:26] = field.to_bytes(8, "big")
    return bytes(data)


# ---- how it is fed -------------------------------------------------------------------------------


def predict(audio: Any, sampling_rate: Any = None, **options: Any) -> Any:
    """The pipeline's answer; nothing is left to be computed."""
    answer = tiny.pipe()(audio, sampling_rate=sampling_rate, **options)
    return answer if isinstance(answer, dict) else list(answer)


def predict_array(array: Any, sampling_rate: Any = RATE, **options: Any) -> Any:
    return predict({"audio": array}, sampling_rate, **options)


def process(audio: Any, **options: Any) -> Any:
    return tiny.processor()(audio=audio, **({"sampling_rate": RATE} | options))


READERS: dict[str, Callable[[Any], Any]] = {
    "pipeline": predict,
    "load_audio": load_audio,
    "open_recording": lambda data: open_recording(data).whole(RATE),
}

ARRAY_READERS: dict[str, Callable[..., Any]] = {"pipeline": predict_array, "processor": process}


# ---- files ---------------------------------------------------------------------------------------


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("speech.wav", encoded("WAV"))
    return file.getvalue()


UNDECODABLE = "speech.wav' cannot be decoded as audio"
CUT_OFF = "speech.wav' (is cut off|cannot be decoded)"
NO_AUDIO = "speech.wav': it has no audio"
RATE_WANTED = "a whole number of Hz from 1000 to 1000000"

FILES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "empty file": (bytes, UNDECODABLE),
    "wav, header only": (partial(wav, b""), NO_AUDIO),
    "text": (lambda: b"only words\n" * 1000, UNDECODABLE),
    "random bytes": (lambda: np.random.default_rng(0).bytes(9999), UNDECODABLE),
    "renamed zip": (zipped, UNDECODABLE),
    "mp3 named .wav": (partial(encoded, "MP3"), None),
    "flac named .wav": (partial(encoded, "FLAC"), None),
    "wav of GSM 6.10": (partial(encoded, "WAV", subtype="GSM610", rate=8000), None),
    "wav of 0 Hz": (partial(wav, rate=0), UNDECODABLE),
    "wav of 2147483647 Hz": (partial(wav, rate=2**31 - 1), f"=2147483647` is not {RATE_WANTED}"),
    "wav without channels": (partial(wav, channels=0), UNDECODABLE),
    "wav that says it is longer": (partial(wav, size=10 * RATE), CUT_OFF),
    "wav that says it is shorter": (partial(wav, size=RATE // 2), None),
    "wav of unknown size": (partial(wav, size=2**32 - 1), None),
    "mp3 without its first frame, which counts the others": (lambda: encoded("MP3")[288:], None),
    "two mp3 in one": (lambda: encoded("MP3") * 2, None),
    "wav that says nothing is there": (lambda: wav(noise().tobytes(), size=0), None),
    "two wav in one": (lambda: wav() + wav(), None),
    "pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (lambda: b"<!DOCTYPE html><html>", "web page"),
    "JSON": (lambda: b'{"audio_filepath": "a.wav"}', "JSON"),
    "m4a, header only": (lambda: b"\0\0\0\x20ftypM4A " + bytes(99), UNDECODABLE),
    "amr, header only": (lambda: b"#!AMR\n", f"({UNDECODABLE}|{NO_AUDIO})"),
    "ogg without a mark of its end": (lambda: without_end(encoded("OGG")), None),
    "rf64 that says it is shorter": (rf64_that_says_half, None),
    "flac of unknown length": (flac_of_unknown_length, None),
}


def cut(form: str, share: float) -> bytes:
    return encoded(form)[: int(len(encoded(form)) * share)]


for form in ("WAV", "FLAC", "OGG", "MP3", "RF64", "W64", "NIST"):
    for place in (0.0002, 0.005, 0.3, 0.95):
        name = f"{form.lower()} cut at {place:.4g} of it"
        FILES[name] = partial(cut, form, place), f"({CUT_OFF}|{NO_AUDIO})"
for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"):
    FILES[f"wav of {subtype}"] = partial(encoded, "WAV", subtype=subtype), None
for channels in (2, 6):
    FILES[f"{channels} channels"] = partial(encoded, "WAV", channels=channels), None
for rate in (4000, 44100, 768000, 12347):
    FILES[f"wav of {rate} Hz"] = partial(encoded, "WAV", rate=rate), None


def from_file(data: Callable[[], bytes], read: Callable[[Any], Any], folder: Path) -> Any:
    (folder / "speech.wav").write_bytes(data())
    return read(folder / "speech.wav")


CASES = [
    Case(f"audio: {name}, {way}", partial(from_file, data, read), error)
    for name, (data, error) in FILES.items()
    for way, read in READERS.items()
]


def not_finite(folder: Path) -> Any:
    """A float wav whose damage lies far into it."""
    waveform = np.tile(noise(1.0), 50)
    waveform[30 * RATE] = np.nan
    soundfile.write(folder / "long.wav", waveform, RATE, subtype="FLOAT")
    return predict(folder / "long.wav", batch_size=4)


def cut_in_the_middle(folder: Path) -> Any:
    data = encoded("FLAC", 50.0)
    return from_file(lambda: data[: len(data) // 2], partial(predict, batch_size=4), folder)


def growing(folder: Path) -> Any:
    """Another process goes on writing while it is read: what was there when it was opened counts."""
    path, whole = folder / "growing.wav", wav(bytes(100 * RATE), size=2**32 - 1)
    path.write_bytes(whole[: 50 * RATE])
    with closing(open_recording(path)) as recording:
        read = Windows(RATE, 1.0, 1.0, 0.025).cut(recording)
        next(read)
        path.write_bytes(whole)
        assert [end for _, end, _ in read][-1] <= 25.1
    return 0.0


def three_hours(folder: Path) -> Any:
    """Sparse: it takes no room on the disk."""
    size = 3 * 3600 * RATE * 2
    with open(folder / "long.wav", "wb") as file:
        file.write(wav(b"", size=size))
        file.truncate(44 + size)
    blocks = open_recording(folder / "long.wav").resampled(RATE)
    assert sum(len(block) for block in blocks) == size // 2
    return process(load_audio(folder / "long.wav")[0])


def of_datasets(join: Callable[[Any], Any], folder: Path) -> Any:
    """An audio column that datasets itself could decode with torchcodec alone."""
    (folder / "speech.wav").write_bytes(wav())
    rows = datasets.Dataset.from_dict({"audio": [str(folder / "speech.wav")]})
    return predict(join(rows.cast_column("audio", datasets.Audio())))


def directory(folder: Path) -> Any:
    (folder / "speech.wav").mkdir()
    return predict(folder / "speech.wav")


def foreign_name(folder: Path) -> Any:
    """Latin-1, as old archives have it."""
    path = os.path.join(os.fsencode(folder), b"J\xfcrgen.wav")
    with open(path, "wb") as file:
        file.write(wav())
    return predict(os.fsdecode(path))


CASES += [
    Case("audio: NaN far into a long file", not_finite, "from 30 s on: .* NaN"),
    Case("audio: long flac cut in the middle", cut_in_the_middle, CUT_OFF),
    Case("audio: file that grows", growing),
    Case("audio: 3 hours at once", three_hours, "most 40 s", heavy=True),
    Case("audio: missing path", lambda folder: predict(folder / "a.wav"), "a.wav.*No such file"),
    Case("audio: directory", directory, "speech.wav.*Is a directory"),
    Case("audio: name that is not UTF-8", foreign_name),
    Case("audio: of datasets", partial(of_datasets, lambda d: d)),
    Case("audio: column of datasets", partial(of_datasets, lambda d: d["audio"])),
    Case(
        "audio: of datasets, in torch's joined sets",
        partial(of_datasets, lambda d: ConcatDataset([d])),
    ),
    Case(
        "audio: of datasets, in torch's loader",
        partial(of_datasets, lambda d: DataLoader(d, batch_size=None)),
    ),
    at_once("audio: path with NUL", predict, "a\0.wav", "null"),
    at_once("audio: 5,000 letters as a path", predict, "a" * 5000, "^'a{300}' .*A transcript is"),
    at_once("audio: empty path", predict, "", "No such file"),
    at_once("audio: text file", predict, io.StringIO("a"), "str; give"),
    at_once("audio: no bytes", predict, b"", "cannot be decoded"),
]


# ---- arrays --------------------------------------------------------------------------------------


def integers(kind: str) -> np.ndarray:
    full_scale = 2 ** (np.iinfo(kind).bits - 1)
    offset = full_scale if kind.startswith("u") else 0
    return (noise().astype(np.float64) * full_scale + offset).round().astype(kind)


SHORT = "lasts .* s; at least 0.025 s"
NUMBERS = r"give numbers \(time,\)"
SCALE = "full scale of u?int.. is unknown"
ARRAYS: dict[str, tuple[Any, str | None]] = {
    "silence": (np.zeros(RATE, np.float32), None),
    "constant": (np.full(RATE, 0.7), None),
    "DC offset": (noise() + 0.5, None),
    "dither": (np.random.default_rng(0).integers(-1, 2, RATE) / 2**15, None),
    "a click": (np.eye(1, RATE, 99)[0], None),
    "opposite channels": (np.stack([noise(), -noise()], axis=1), None),
    "one channel of two": (np.stack([noise(), 0 * noise()], axis=1), None),
    "silence in six channels": (np.zeros((RATE, 6)), None),
    "clipped": (np.clip(noise() * 10, -1, 1), None),
    "denormals": (np.full(RATE, 1e-40), None),
    "one sample": (np.ones(1), SHORT),
    "shorter than the receptive field": (noise()[:399], SHORT),
    "as long as the receptive field": (noise()[:400], None),
    "no samples": (np.zeros((0, 2)), "the audio is empty"),
    "NaN": (np.full(RATE, np.nan), "NaN or infinite"),
    "one infinity": (np.append(noise(), np.inf), "NaN or infinite"),
    "1e300": (np.full(RATE, 1e300), r"reaches 1e\+300"),
    "PCM as floats": (noise() * 32768, "reaches 163.*floats lie in −1 to 1"),
    "int64": (integers("int16").astype(int), SCALE),
    "uint16": (integers("uint16"), SCALE),
    "complex": (noise() + 0j, f"complex64 .*{NUMBERS}"),
    "3-d": (np.zeros((1, 2, RATE)), rf"shape \(1, 2, 16000\); {NUMBERS}"),
    "40 channels": (np.zeros((RATE, 40)), r"shape \(16000, 40\) can be channels"),
    "a list with a hole": ([0.1, None] * RATE, f"object .*{NUMBERS}"),
    "a list of integers": ([1, 2] * RATE, SCALE),
    "no array at all": (object(), NUMBERS),
    "a dict without array": ({"samples": noise()}, r"keys \['samples'\]"),
    "a dict of nothing": ({"array": None, "sampling_rate": RATE}, "keys"),
}
CASES += [
    at_once(f"audio: {name}, {way}", feed, array, error)
    for name, (array, error) in ARRAYS.items()
    for way, feed in ARRAY_READERS.items()
]

BAD_RATES: list[Any] = [0, 1, 16, -RATE, 10**9, 16000.5, float("nan"), "16000", True, [], None]


def at_rate(feed: Callable[..., Any], rate: Any) -> Any:
    return feed(noise(), sampling_rate=rate)


CASES += [
    at_once(f"audio: rate {rate!r}, {way}", partial(at_rate, feed), rate, RATE_WANTED)
    for rate in BAD_RATES
    for way, feed in ARRAY_READERS.items()
]


# ---- batches, options, transcripts with times, transcribers --------------------------------------


def batch(item: Any, **options: Any) -> Callable[[Path], Any]:
    """One bad input among good ones."""
    return lambda folder: predict([noise(), item, noise()], RATE, **options)


def timed(**given: Any) -> Callable[[Path], Any]:
    return lambda folder: predict({"audio": noise(2.0)} | given, RATE)


def said(answer: Any) -> Callable[[Path], Any]:
    return lambda folder: predict_array(noise(), transcriber=lambda audio: answer)


def option(**given: Any) -> Callable[[Path], Any]:
    return lambda folder: predict([noise()], RATE, **given)


def word(start: Any = 0.0, end: Any = 1.0, text: Any = "hi") -> dict[str, Any]:
    return {"text": text, "start": start, "end": end}


def from_stream(make: Callable[[], Any], rate: int | None, folder: Path) -> Any:
    return list(tiny.pipe().stream(make(), rate))


WORDS, SEGMENTS = '"words" has', '"segments" has'
EXPLAINABLE = "one of the outputs .*: emotion, valence, arousal"
OPTIONS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("batch_size", "", (0, -1)),
    ("window_s", "windows last from 0.025 to 40 s", (0, -1, float("nan"), 1e-9, 41)),
    ("window_s", "", ("6",)),
    ("hop_s", "a hop is at most a window", (0, -1, float("nan"), 7)),
    ("explain", EXPLAINABLE, ("dominance", 1.5)),
    ("channel", "channel", (1, -1, True, "left")),
    ("windows", r"no options \['windows'\]", (3,)),
]
CASES += [
    Case(f"audio: {name} is {value!r}", option(**{name: value}), wanted)
    for name, wanted, values in OPTIONS
    for value in values
]
CASES += [
    Case("audio: bad one in a batch", batch(noise()[:9]), "^Input 1: .*lasts"),
    Case("audio: missing file in a batch", batch("gone.wav"), "^Input 1: 'gone.wav'"),
    Case("audio: bad one of four", batch(np.full(RATE, np.nan), batch_size=4), "^Input 1"),
    Case("audio: bad one for a worker", batch(b"RIFF", num_workers=2), "^Input 1: .*decoded", True),
    Case("audio: nothing in a batch", batch(None), "^Input 1: There is neither"),
    at_once("audio: no bytes, no path", predict, {"bytes": None}, "keys"),
    at_once("audio: unknown keys", predict, {"wav": noise()}, r"keys \['wav'\]"),
    at_once("audio: text beside an array", predict, {"array": noise(), "text": "a"}, "keys.*text"),
]
TIMED: list[tuple[str, dict[str, Any], str | None]] = [
    ("words backwards", {"words": [word(1.0, 0.5)]}, WORDS),
    ("words before the beginning", {"words": [word(-1.0)]}, WORDS),
    ("words at NaN", {"words": [word(), word(float("nan"))]}, None),
    ("words at a text", {"words": [word("0", "1")]}, WORDS),
    ("a word of None", {"words": [word(text=None)]}, WORDS),
    ("words without times", {"words": ["hi"]}, f"{WORDS} 'hi'"),
    ("words in a string", {"words": "so you won"}, f"{WORDS} 'so you won'"),
    ("words out of order", {"words": [word(1.0, 2.0, "b"), word(0.0, 1.0, "a")]}, None),
    ("words that overlap", {"words": [word(0.0, 2.0), word(0.5, 1.0)]}, None),
    ("words and text", {"words": [word()], "text": "hi"}, "give one"),
    ("no segments", {"segments": []}, rf"{SEGMENTS} \[\]; .*at least one"),
    ("one word without times", {"words": [word(), {"word": "2014"}, word(1, 1.5)]}, None),
    ("one segment backwards", {"segments": [word(), word(1.5, 1.2), word(1.5, 2)]}, None),
    ("one segment far behind", {"segments": [word(), word(1, 2), word(9, 9.5)]}, None),
    ("marks alone", {"segments": [word(text="<|en|><|HAPPY|>")]}, None),
    ("segments that overlap", {"segments": [word(0, 1), word(0.5, 2)]}, None),
    ("segment of no time", {"segments": [word(1, 1)]}, None),
    ("segment without end", {"segments": [{"start": 1, "end": None}]}, None),
    ("short segment", {"segments": [word(1, 1.01)]}, None),
    ("segment after the end", {"segments": [{"start": 5, "end": 6}]}, "behind the end .* at 5 s"),
]
CASES += [Case(f"audio: {name}", timed(**given), error) for name, given, error in TIMED]
LONG = np.tile(noise(), 100)
STREAMS: list[tuple[str, Callable[[], Any], int | None, str | None]] = [
    ("of nothing", lambda: io.BytesIO(b""), None, "no wav .*it is empty"),
    ("of flac", lambda: io.BytesIO(encoded("FLAC")), None, "no wav"),
    ("of float wav", lambda: io.BytesIO(encoded("WAV", subtype="FLOAT")), None, "format: 3"),
    ("of no arrays", lambda: iter([]), RATE, "has no audio from 0 s"),
    ("of arrays without rate", lambda: iter([noise()]), None, RATE_WANTED),
    ("of wav without samples", lambda: io.BytesIO(wav(b"")), None, "has no audio"),
    ("of wav at 0 Hz", lambda: io.BytesIO(wav(rate=0)), None, RATE_WANTED),
    ("of wav as raw samples", lambda: io.BytesIO(wav()), RATE, "is wav"),
    ("that breaks off in a sample", lambda: io.BytesIO(bytes(RATE + 1)), RATE, None),
    ("with a hole", lambda: iter([noise(), None]), RATE, NUMBERS),
    ("with NaN", lambda: iter([noise(), np.full(9, np.nan)]), RATE, "from 0.5 s on: .* NaN"),
    ("of channels first", lambda: iter([np.zeros((2, 1600))]), RATE, "can be channels"),
    ("with text", lambda: {"audio": iter([noise()]), "text": "a"}, RATE, None),
    ("with segments", lambda: {"audio": cycle([noise()]), "segments": [word()]}, RATE, "segments"),
]
CASES += [
    Case(f"audio: stream {name}", partial(from_stream, make, rate), error)
    for name, make, rate, error in STREAMS
]
CASES += [
    Case(
        "audio: long recording with text alone",
        lambda folder: predict({"audio": LONG, "text": "hi"}, RATE),
        None,
    ),
    Case("audio: transcriber gives a surrogate", said({"text": "\ud800"}), "surrogates"),
    Case("audio: transcriber raves", said({"text": "a " * 999}), "1999 tokens|2000 tokens"),
]
PARTS: list[tuple[str, float, float | None, str | None]] = [
    ("of no seconds", 1.0, 1.0, "no audio from 1.0 s to 1.0 s"),
    ("before the beginning", -0.5, None, "no audio from -0.5 s"),
    ("behind the end", 3.0, 4.0, "no audio from 3.0 s to 4.0 s"),
    ("to 1e306 s", 0.1, 1e306, None),
]
CASES += [
    at_once(f"audio: segment {name}", partial(load_audio, wav(), start), end, error)
    for name, start, end, error in PARTS
]
