"""Recordings, arrays, streams and options that are not what they ought to be."""

import io
import os
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from audio_mtmm import read_blocks
from bad_inputs import tiny
from bad_inputs.case import Case
from processing_mtmm import MTMMProcessor

RATE = 16000
NOBODY = 65534  # a user that owns nothing


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


def flac_of_samples(count: int) -> bytes:
    """Whose header has this count of samples, 36 bits; 0 says that nobody knows."""
    data = bytearray(encoded("FLAC"))
    field = int.from_bytes(data[18:26], "big") >> 36 << 36 | count
    data[18:26] = field.to_bytes(8, "big")
    return bytes(data)


def unfinished(form: str) -> bytes:
    """A wav whose recorder was killed before it wrote how many samples there are."""
    data = bytearray(encoded(form))
    size = data.index(b"data") + 4
    data[size : size + 4] = bytes(4)
    return bytes(data)


def wav_with_words() -> bytes:
    """No samples, and a chunk of comments behind them."""
    return wav(b"") + b"LIST" + struct.pack("<I", 204) + b"INFOICMT" + bytes(196)


def joined(form: str, subtype: str | None = None) -> bytes:
    """The same file twice, end to end, as `cat a.ogg a.ogg` writes it."""
    return 2 * encoded(form, subtype=subtype)


# ---- how it is fed -------------------------------------------------------------------------------


def predict(audio: Any, sampling_rate: Any = None, **options: Any) -> Any:
    """The pipeline's answer; nothing is left to be computed."""
    answer = tiny.pipe()(audio, sampling_rate=sampling_rate, **options)
    return answer if isinstance(answer, dict) else list(answer)


def predict_array(array: Any, sampling_rate: Any = RATE, **options: Any) -> Any:
    return predict({"audio": array}, sampling_rate, **options)


def process(audio: Any, **options: Any) -> Any:
    return tiny.processor()(audio=audio, **({"sampling_rate": RATE} | options))


def stream(source: Any, sampling_rate: Any = None, **options: Any) -> Any:
    return list(tiny.pipe().stream(source, sampling_rate, **options))


def read_whole(data: Any) -> Any:
    return MTMMProcessor.load_audio(data)


def read_in_blocks(data: Any) -> Any:
    return list(read_blocks(data, RATE))


READERS: dict[str, Callable[[Any], Any]] = {
    "pipeline": predict,
    "load_audio": read_whole,
    "read_blocks": read_in_blocks,
}

ARRAY_READERS: dict[str, Callable[..., Any]] = {"pipeline": predict_array, "processor": process}


def every_reader(name: str, data: Callable[[], bytes], error: str | None) -> list[Case]:
    """The same bytes in a file, by each way of reading it."""

    def attempt(read: Callable[[Any], Any], folder: Path) -> Any:
        (folder / "speech.wav").write_bytes(data())
        return read(folder / "speech.wav")

    return [
        Case(f"audio: {name}, {way}", partial(attempt, read), error)
        for way, read in READERS.items()
    ]


def every_array(name: str, array: Callable[[], Any], error: str | None) -> list[Case]:
    """The same array by the pipeline and by the processor."""

    def attempt(feed: Callable[[Any], Any], folder: Path) -> Any:
        return feed(array())

    return [
        Case(f"audio: {name}, {way}", partial(attempt, feed), error)
        for way, feed in ARRAY_READERS.items()
    ]


# ---- files ---------------------------------------------------------------------------------------


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("speech.wav", encoded("WAV"))
    return file.getvalue()


UNDECODABLE = r"speech.wav' cannot be decoded as audio \(.*not wav, flac, ogg or mp3. Fetch"
CUT_OFF = r"speech.wav' (is cut off|cannot be decoded).*(Fetch it again|Convert it)"
UNFINISHED = r"has \d+ bytes, and a header that says 0 s.*Repair it, for example with `ffmpeg"
JOINED = r"several Ogg recordings joined.* only the first, 2.000 s.*convert it to one"
NO_AUDIO = r"speech.wav' has no audio.* lasts 0(.000)? s"

CASES = [
    *every_reader("empty file", bytes, r"speech.wav' is empty \(0 bytes\); give"),
    *every_reader("wav, header only", partial(wav, b""), NO_AUDIO),
    *every_reader("wav, header and comments only", wav_with_words, NO_AUDIO),
    *every_reader("wav of a killed recorder", partial(unfinished, "WAV"), UNFINISHED),
    *every_reader("extensible wav of a killed recorder", partial(unfinished, "WAVEX"), UNFINISHED),
    *every_reader("Vorbis files joined", partial(joined, "OGG", "VORBIS"), JOINED),
    *every_reader("Opus files joined", partial(joined, "OGG", "OPUS"), JOINED),
    *every_reader("wav of GSM 6.10", partial(encoded, "WAV", subtype="GSM610", rate=8000), None),
    *every_reader("text", lambda: b"only words\n" * 1000, UNDECODABLE),
    *every_reader("random bytes", lambda: np.random.default_rng(0).bytes(9999), UNDECODABLE),
    *every_reader("renamed zip", zipped, UNDECODABLE),
    *every_reader("mp3 named .wav", partial(encoded, "MP3"), None),
    *every_reader("flac named .wav", partial(encoded, "FLAC"), None),
    *every_reader("wav of 0 Hz", partial(wav, rate=0), UNDECODABLE),
    *every_reader(
        "wav of 1 Hz", partial(wav, rate=1), "has a sampling rate of 1 Hz; .* 1000 to 1000000"
    ),
    *every_reader(
        "wav of 2147483647 Hz",
        partial(wav, rate=2**31 - 1),
        "a sampling rate of 2147483647 Hz; .*Conv",
    ),
    *every_reader("wav of 4294967295 Hz", partial(wav, rate=2**32 - 1), UNDECODABLE),
    *every_reader("wav without channels", partial(wav, channels=0), UNDECODABLE),
    *every_reader("wav of 64 bits", partial(wav, width=8), UNDECODABLE),
    *every_reader("wav that says it is longer", partial(wav, size=10 * RATE), CUT_OFF),
    *every_reader("wav that says it is shorter", partial(wav, size=RATE // 2), None),
    *every_reader("wav of unknown size", partial(wav, size=2**32 - 1), None),
    *every_reader("flac of unknown length", partial(flac_of_samples, 0), "does not say how long"),
    *every_reader("flac that says 49 days", partial(flac_of_samples, 2**36 - 1), UNDECODABLE),
    *every_reader("flac that says 17 hours", partial(flac_of_samples, 10**9), UNDECODABLE),
]


def cut(form: str, share: float) -> bytes:
    return encoded(form)[: int(len(encoded(form)) * share)]


for form in ("WAV", "FLAC", "OGG", "MP3"):
    for place in (0.0002, 0.005, 0.3, 0.6, 0.95):
        CASES += every_reader(
            f"{form.lower()} cut at {place:.4g} of it",
            partial(cut, form, place),
            f"({CUT_OFF}|{NO_AUDIO}|is empty)",
        )
for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"):
    CASES += every_reader(f"wav of {subtype}", partial(encoded, "WAV", subtype=subtype), None)
for channels in (2, 6):
    CASES += every_reader(f"{channels} channels", partial(encoded, "WAV", channels=channels), None)
for rate in (4000, 11025, 44100, 192000, 768000, 12347):
    CASES += every_reader(f"wav of {rate} Hz", partial(encoded, "WAV", rate=rate), None)


def not_finite(folder: Path) -> Any:
    """A float wav whose damage lies far into it."""
    waveform = np.tile(noise(1.0), 50)
    waveform[30 * RATE] = np.nan
    soundfile.write(folder / "long.wav", waveform, RATE, subtype="FLOAT")
    return predict(folder / "long.wav", batch_size=4)


def cut_in_the_middle(folder: Path) -> Any:
    data = encoded("FLAC", 50.0)
    (folder / "long.flac").write_bytes(data[: len(data) // 2])
    return predict(folder / "long.flac", batch_size=4)


def growing(folder: Path) -> Any:
    """Another process is still writing it: what was there when it was opened counts."""
    path, full = folder / "growing.wav", wav(bytes(100 * RATE), size=2**32 - 1)
    path.write_bytes(full[: 50 * RATE])
    windows = tiny.processor()
    recording = windows.open_recording(path)
    read = windows.windows(recording, 1.0, 1.0)
    first = next(read)
    path.write_bytes(full)
    times = [first[:2], *((start, end) for start, end, _ in read)]
    assert times[-1][1] <= 25.1, times[-1]
    return times


def shrinking(folder: Path) -> Any:
    path = folder / "shrinking.wav"
    path.write_bytes(wav(bytes(100 * RATE)))
    windows = tiny.processor()
    read = windows.windows(windows.open_recording(path), 1.0, 1.0)
    next(read)
    path.write_bytes(wav(bytes(100 * RATE))[: 50 * RATE])
    return list(read)


def three_hours(folder: Path, silence: bool) -> Any:
    """Sparse: it takes no room on the disk."""
    size = 3 * 3600 * RATE * 2
    with open(folder / "long.wav", "wb") as file:
        file.write(wav(b"", size=size))
        file.truncate(44 + size)
    heard = sum(len(block) for block in read_blocks(folder / "long.wav", RATE))
    assert heard == size // 2
    return heard / RATE if silence else process(read_whole(folder / "long.wav")[0])


# ---- places that are no files --------------------------------------------------------------------


def at(make: Callable[[Path], Any], folder: Path) -> Any:
    """What lies at a path, made there first."""
    path = folder / "speech.wav"
    make(path)
    return predict(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def under_a_file(folder: Path) -> Any:
    (folder / "a.wav").write_bytes(wav())
    return predict(folder / "a.wav" / "b.wav")


def foreign_name(folder: Path) -> Any:
    """Latin-1, as old archives have it."""
    path = os.path.join(os.fsencode(folder), b"J\xfcrgen.wav")
    with open(path, "wb") as file:
        file.write(wav())
    return predict(os.fsdecode(path))


def as_nobody(action: Callable[[], Any]) -> Any:
    """In a process that may read only what everybody may, since root reads everything."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(NOBODY)
            action()
            said = "it was read"
        except OSError as error:
            said = str(error)
        finally:
            os.write(sending, said.encode())
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    raise OSError(said)


def no_permission(locked: str, folder: Path) -> Any:
    path = folder / "closed" / "speech.wav"
    path.parent.mkdir()
    path.write_bytes(wav())
    for parent in folder.parents:  # whoever made them may have kept them to itself
        if parent.stat().st_uid == os.getuid() and len(parent.parts) > 2:
            parent.chmod(0o755)
    folder.chmod(0o755)
    os.chmod(folder / locked, 0)
    try:
        return as_nobody(lambda: read_whole(path))
    finally:
        os.chmod(folder / locked, 0o700)


def closed_file(folder: Path) -> Any:
    path = folder / "speech.wav"
    path.write_bytes(wav())
    with open(path, "rb") as file:
        pass
    return predict(file)


CASES += [
    Case("audio: NaN far into a long file", not_finite, "from 30 s on: .* NaN .*Repair or leave"),
    Case(
        "audio: long flac cut in the middle", cut_in_the_middle, "long.flac' (is cut|cannot be d)"
    ),
    Case("audio: file that grows", growing),
    Case("audio: file that shrinks", shrinking, "shrinking.wav' is cut off: it ends after"),
    Case("audio: 3 hours in blocks", partial(three_hours, silence=True), heavy=True),
    Case("audio: 3 hours at once", partial(three_hours, silence=False), "most 40 s", heavy=True),
    Case(
        "audio: missing path", partial(at, lambda path: None), "No audio file at .*check the path"
    ),
    Case("audio: directory", partial(at, Path.mkdir), "is not a regular file; give"),
    Case("audio: FIFO", partial(at, os.mkfifo), "is not a regular file; give"),
    Case("audio: symlink loop", partial(at, loop), r"cannot be read \(Too many levels .*check the"),
    Case("audio: endless device", lambda folder: predict("/dev/zero"), "is not a regular file"),
    Case("audio: path under a file", under_a_file, r"cannot be read \(Not a directory\); check"),
    Case("audio: name that is not UTF-8", foreign_name),
    Case("audio: path with NUL", lambda folder: predict("a\0.wav"), "No audio file at 'a.x00.wav'"),
    Case("audio: path with a surrogate", lambda folder: predict("\ud800.wav"), "No audio file at"),
    Case(
        "audio: 5,000 letters as a path",
        lambda folder: predict("a" * 5000),
        r"^'a{100}… \(5000 characters\)' cannot be read .* A transcript is given as",
    ),
    Case("audio: empty path", lambda folder: predict(""), "No audio file at ''; check the path"),
    Case(
        "audio: file of somebody else",
        partial(no_permission, "closed/speech.wav"),
        r"speech.wav' cannot be read \(Permission denied\); check the path and its perm",
    ),
    Case(
        "audio: folder of somebody else",
        partial(no_permission, "closed"),
        r"speech.wav' cannot be read \(Permission denied\); check the path and its perm",
    ),
    Case("audio: closed file", closed_file, "closed file"),
    Case("audio: text file", lambda folder: predict(io.StringIO("a")), "open it with mode 'rb'"),
    Case("audio: no bytes", lambda folder: predict(b""), "no bytes to read; give a whole wav"),
]


# ---- arrays --------------------------------------------------------------------------------------


def memory_mapped(folder: Path) -> Any:
    np.save(folder / "speech.npy", noise())
    return predict_array(np.load(folder / "speech.npy", mmap_mode="r"))


def same(given: Callable[[], Any], expected: Callable[[], Any] = noise) -> Callable[[Path], Any]:
    """The tensors, which must be those of another form of the same samples."""

    def attempt(folder: Path) -> Any:
        tensors, wanted = process(given()), process(expected())
        difference = (tensors["input_values"] - wanted["input_values"]).abs().max()
        assert difference < 0.05, f"another waveform was read: {difference:.3g} away"
        return tensors

    return attempt


def integers(kind: str) -> np.ndarray:
    full_scale = 2 ** (np.iinfo(kind).bits - 1)
    offset = full_scale if kind.startswith("u") else 0
    return (noise().astype(np.float64) * full_scale + offset).round().astype(kind)


def imaginary_part() -> torch.Tensor:
    """Whose numbers lie negated in memory."""
    return (
        torch.view_as_complex(torch.tensor(-noise()).repeat_interleave(2).view(-1, 2)).conj().imag
    )


SHORT = r"lasts .* s \(.* samples at .* Hz\); the acoustic encoder needs at least 0.025 s. Leave it"
NUMBERS = r"it must be numbers of shape \(time,\) or \(time, channels\)"
AS_INPUTS = r"\. Several recordings are given to the pipeline as a list of inputs"
NOT_FINITE = (
    r"has samples that are NaN or infinite \(\d+ of \d+\); all must be finite. Repair or leave out"
)

ARRAYS: dict[str, tuple[Callable[[], Any], str | None]] = {
    "silence": (lambda: np.zeros(RATE, np.float32), None),
    "constant": (lambda: np.full(RATE, 0.7), None),
    "DC offset": (lambda: noise() + 0.5, None),
    "clipped": (lambda: np.clip(noise() * 10, -1, 1), None),
    "denormals": (lambda: np.full(RATE, 1e-40), None),
    "one sample": (lambda: np.zeros(1), SHORT),
    "shorter than the receptive field": (lambda: noise()[:399], SHORT),
    "as long as the receptive field": (lambda: noise()[:400], None),
    "no samples": (lambda: np.zeros((0, 2)), "audio is empty; leave it out, or give None"),
    "NaN": (lambda: np.full(RATE, np.nan), NOT_FINITE),
    "one infinity": (lambda: np.append(noise(), np.inf), NOT_FINITE),
    "1e30": (lambda: np.full(RATE, 1e30), r"reaches 1e\+30; floats lie in −1 to 1. Divide"),
    "1e300": (lambda: np.full(RATE, 1e300), r"reaches 1e\+300; floats lie"),
    "PCM as floats": (lambda: noise() * 32768, "floats lie in −1 to 1. Divide integer"),
    "int64": (
        lambda: integers("int16").astype(int),
        "type int64, whose full scale is unknown; conv",
    ),
    "uint16": (lambda: integers("uint16"), "type uint16, whose full scale is unknown; convert"),
    "bool": (lambda: noise() > 0, f"type bool .*{NUMBERS}"),
    "complex": (lambda: noise() + 0j, f"type complex64 .*{NUMBERS}"),
    "objects": (lambda: noise().astype(object), f"type object .*{NUMBERS}"),
    "paths": (lambda: np.array(["a.wav", "b.wav"]), f"type <U5 .*{NUMBERS}{AS_INPUTS}"),
    "paths of pathlib": (
        lambda: np.array([Path("a.wav")] * 2),
        f"type object .*{NUMBERS}{AS_INPUTS}",
    ),
    "masked": (lambda: np.ma.masked_greater(noise(), 0.4), "is a masked array, .*without mask"),
    "dates": (lambda: np.zeros(RATE, "datetime64[s]"), NUMBERS),
    "0-d": (lambda: np.array(0.5), rf"shape \(\); {NUMBERS}"),
    "3-d": (lambda: np.zeros((1, 2, RATE)), rf"shape \(1, 2, 16000\); {NUMBERS}"),
    "40 channels": (
        lambda: np.zeros((RATE, 40)),
        "no axis can be channels .*mix more channels down",
    ),
    "a list with a hole": (lambda: [0.1, None] * RATE, f"type object .*{NUMBERS}"),
    "a ragged list": (lambda: [0.1, [0.2, 0.3]], "no array of numbers"),
    "a list of integers": (lambda: [1, 2] * RATE, "full scale is unknown"),
    "a tensor without numbers": (
        lambda: torch.zeros(RATE, device="meta"),
        "on 'meta'.*give a dense",
    ),
    "a sparse tensor": (lambda: torch.zeros(RATE).to_sparse(), "sparse_coo.*give a dense tensor"),
    "a tensor of another kind": (lambda: torch.zeros(RATE, dtype=torch.cfloat), NUMBERS),
    "a number": (lambda: 0.5, r"(shape \(\)|type float cannot be read; give a path)"),
    "no array at all": (object, "type object"),
    "a dict without array": (lambda: {"samples": noise()}, r"keys \['sam.*it must be \{\"array\""),
}
CASES += [
    case for name, (array, error) in ARRAYS.items() for case in every_array(name, array, error)
]

FORMS: dict[str, Callable[[], Any]] = {
    **{kind: partial(integers, kind) for kind in ("int8", "uint8", "int16", "int32")},
    "(time, channels)": lambda: np.stack([noise()] * 6, 1),
    "(channels, time)": lambda: np.stack([noise()] * 6),
    "Fortran order": lambda: np.asfortranarray(np.stack([noise()] * 2)),
    "strides": lambda: np.repeat(noise(), 3)[::3],
    "negative strides": lambda: noise()[::-1].copy()[::-1],
    "big-endian": lambda: noise().astype(">f4"),
    "half precision": lambda: noise().astype(np.float16),
    "long doubles": lambda: noise().astype(np.longdouble),
    "a list": lambda: noise().tolist(),
    "a tensor that wants gradients": lambda: torch.tensor(noise(), requires_grad=True),
    "a tensor in bfloat16": lambda: torch.tensor(noise()).bfloat16(),
    "a tensor that is negated": imaginary_part,
}
CASES += [Case(f"audio: {name} is the same", same(form)) for name, form in FORMS.items()]
CASES.append(Case("audio: memory-mapped array", memory_mapped))

RATE_WANTED = "is not allowed; it must be a whole number of Hz from 1000 to 1000000"
BAD_RATES: list[Any] = [0, 1, 16, -RATE, 10**9, 10**400]
BAD_RATES += [16000.5, float("nan"), float("inf"), "16000", True, []]


def at_rate(feed: Callable[..., Any], rate: Any, folder: Path) -> Any:
    return feed(noise(), sampling_rate=rate)


for bad_rate in BAD_RATES:
    for way, feed in ARRAY_READERS.items():
        CASES.append(
            Case(
                f"audio: rate {str(bad_rate)[:12]} of type {type(bad_rate).__name__}, {way}",
                partial(at_rate, feed, bad_rate),
                RATE_WANTED,
            )
        )


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


HUGE = 10**400  # more than a float can be


def segment(start: Any, end: Any) -> Callable[[Path], Any]:
    return timed(segments=[{"start": start, "end": end}])


def stretch(start_s: Any, end_s: Any) -> Callable[[Path], Any]:
    return lambda folder: MTMMProcessor.load_audio(wav(), start_s, end_s)


def gsm_segment(folder: Path) -> Any:
    data = encoded("WAV", subtype="GSM610", rate=8000)
    return predict({"audio": data, "segments": [{"start": 1, "end": 2}]})


def no_bytes_yet(sampling_rate: int | None, folder: Path) -> Any:
    """A pipe that does not wait for its writer."""
    receiving, sending = os.pipe()
    os.set_blocking(receiving, False)
    try:
        with open(receiving, "rb", buffering=0) as file:
            return stream(file, sampling_rate)
    finally:
        os.close(sending)


def endless_samples() -> Any:
    while True:
        yield noise()


def slow_writer(folder: Path) -> Any:
    """Half a wav comes through a FIFO, and then nobody writes any more."""
    path = folder / "live"
    os.mkfifo(path)

    def write() -> None:
        with open(path, "wb") as file:
            file.write(wav(bytes(10 * RATE))[: 5 * RATE])
            file.flush()
            time.sleep(0.1)

    threading.Thread(target=write).start()
    with open(path, "rb") as file:
        return stream(file, window_s=1.0)


CASES += [
    Case(
        "audio: no rate", lambda folder: predict_array(noise(), None), "`sampling_rate` is missing"
    ),
    Case(
        "audio: a dict without rate",
        lambda folder: process({"array": noise()}, sampling_rate=None),
        "`sampling_rate` is missing; give .* for example `sampling_rate=16000`",
    ),
    Case("audio: bad one in a batch", batch(noise()[:9]), "^Input 1: The audio lasts"),
    Case(
        "audio: missing file in a batch", batch("gone.wav"), "^Input 1: No audio file at 'gone.wav'"
    ),
    Case(
        "audio: bad one among four at a time",
        batch(np.full(RATE, np.nan), batch_size=4),
        "^Input 1",
    ),
    Case(
        "audio: bad one for two workers", batch(b"RIFF", num_workers=2), "^Input 1: The audio", True
    ),
    Case(
        "audio: bad one in the processor's batch",
        lambda folder: process([noise(), noise()[:9], None], text=["a", "b", "c"]),
        "^Utterance 1 of this batch: the audio lasts",
    ),
    Case("audio: nothing in a batch", batch(None), "^Input 1: The utterance has neither audio nor"),
    Case(
        "audio: text for bytes", lambda folder: predict({"bytes": "a"}), '"bytes" of type str; give'
    ),
    Case(
        "audio: no bytes, no path", lambda folder: predict({"bytes": None}), "neither bytes nor a p"
    ),
    Case(
        "audio: unknown keys", lambda folder: predict({"wav": noise()}), r"unknown keys \['wav'\]"
    ),
    *(
        Case(f"audio: {name} is {value!r:.20}", option(**{name: value}), rf"`{name}=.*{wanted}")
        for name, wanted, values in (
            ("batch_size", "whole number of at least 1", (0, -1, 2.5, "4", True)),
            ("num_workers", "whole number of at least 0", (-1, 1.5, "2")),
            ("top_k", "whole number of at least 1", (0, "2")),
            ("window_s", "must be seconds, more than 0", (0, -1, float("nan"), "6", True)),
            ("window_s", "must be seconds, more than 0", (HUGE,)),
            ("hop_s", "must be seconds, more than 0", (HUGE,)),
            ("window_s", "must be from 0.025 to 40 s", (1e-9, 41, 1e300)),
            ("hop_s", "must be seconds, more than 0", (0, -1, float("nan"), float("inf"))),
            ("hop_s", "must be from 0.025 to 6 s", (7,)),
            ("explain", "name of an output that this model was trained for", ("dominance", 1.5)),
        )
        for value in values
    ),
    Case(
        "audio: NumPy's numbers as options",
        option(batch_size=np.int64(2), window_s=np.float32(0.3)),
    ),
    Case("audio: unknown option", option(windows=3), r"no options \['windows'\]; it has"),
    Case("audio: words backwards", timed(words=[word(1.0, 0.5)]), "at place 0; give a list"),
    Case("audio: words before the beginning", timed(words=[word(-1.0)]), "at place 0; give a list"),
    Case(
        "audio: words at NaN", timed(words=[word(), word(float("nan"))]), "at place 1; give a list"
    ),
    Case(
        "audio: words at infinity", timed(words=[word(0, float("inf"))]), "at place 0; give a list"
    ),
    Case("audio: words at a text", timed(words=[word("0", "1")]), "at place 0; give a list"),
    Case("audio: a word of None", timed(words=[word(text=None)]), "at place 0; give a list"),
    Case("audio: words without times", timed(words=["hi"]), "at place 0; give a list"),
    Case("audio: words at 400 digits", timed(words=[word(HUGE, HUGE)]), "at place 0; give a list"),
    Case("audio: segments at 400 digits", segment(0, HUGE), "at place 0; give a list"),
    Case("audio: segment to 1e305 s", segment(1, 1e305)),
    Case("audio: segment from 1e305 s", segment(1e305, 1.1e305), r"1e\+305 s begins after the rec"),
    Case(
        "audio: words at 1e308 s", timed(words=[word(1e308, 1.1e308)]), "The transcript has words"
    ),
    Case("audio: stretch to 1e306 s", stretch(0.1, 1e306)),
    Case(
        "audio: stretch from 1e306 s", stretch(1e306, None), r"no audio from 1e\+306 s to its end"
    ),
    Case("audio: stretch to 400 digits", stretch(0, HUGE), "is not allowed; it must be seconds"),
    Case(
        "audio: stretch from 400 digits", stretch(HUGE, None), "is not allowed; it must be seconds"
    ),
    Case("audio: segment of GSM 6.10", gsm_segment, "only be read from its beginning, .*convert"),
    Case("audio: words out of order", timed(words=[word(1.0, 2.0, "b"), word(0.0, 1.0, "a")])),
    Case("audio: words that overlap", timed(words=[word(0.0, 2.0), word(0.5, 1.0)])),
    Case(
        "audio: words of a longer recording",
        timed(words=[word(9, 10)]),
        "words at 9.5 s, and the rec",
    ),
    Case("audio: words and text", timed(words=[word()], text="hi"), "give one"),
    Case("audio: no segments", timed(segments=[]), "at least one"),
    Case("audio: segments that overlap", timed(segments=[word(0, 1), word(0.5, 2)])),
    Case("audio: segment of no time", timed(segments=[word(1, 1)]), "the end after the start"),
    Case(
        "audio: segment of no samples",
        timed(segments=[word(0, 1), word(1, 1.000001)]),
        "no audio from 1 s to 1 s, or next to none; .* needs at least 0.025 s",
    ),
    Case(
        "audio: segment after the end",
        timed(segments=[{"start": 5, "end": 6}]),
        "from 5 s begins after the rec",
    ),
    Case(
        "audio: long recording with text alone",
        lambda folder: predict({"audio": np.tile(noise(), 100), "text": "hi"}, RATE),
        "its transcript has no times. Give them",
    ),
    *(
        Case(f"audio: transcriber gives {answer!r}", said(answer), f"transcriber gave .*{wanted}")
        for answer in (None, 5, "hi", {}, {"text": None}, [{"text": "hi"}])
        for wanted in (r"it must give \{\"text\": transcript\}",)
    ),
    Case("audio: transcriber gives a surrogate", said({"text": "\ud800"}), "is not valid Unicode"),
    Case("audio: transcriber raves", said({"text": "a " * 999}), "1999 tokens|2000 tokens"),
    Case(
        "audio: transcriber fails",
        lambda folder: predict(
            [noise()], RATE, transcriber=lambda audio: int(audio["raw"][:0].size or "x")
        ),
        "^Input 0: invalid literal",
    ),
    Case(
        "audio: transcriber is a number", option(transcriber=5), "`transcriber` is of type int; it"
    ),
    Case("audio: transcriber is empty", option(transcriber=""), "names no model; give the repo id"),
    Case(
        "audio: 1 sample at 768 kHz", lambda folder: predict_array(np.zeros(1), 768000), "no audio"
    ),
    Case(
        "audio: stream of nothing", lambda folder: stream(io.BytesIO(b"")), "it is empty.; send wav"
    ),
    Case(
        "audio: stream of no arrays", lambda folder: stream(iter([]), RATE), "has no audio from 0 s"
    ),
    Case(
        "audio: wav stream of no samples",
        lambda folder: stream(io.BytesIO(wav(b""))),
        "has no audio",
    ),
    Case("audio: wav stream of 0 Hz", lambda folder: stream(io.BytesIO(wav(rate=0))), RATE_WANTED),
    Case(
        "audio: wav stream of 64 bits",
        lambda folder: stream(io.BytesIO(wav(width=8))),
        "send 8, 16",
    ),
    Case("audio: wav stream that breaks off", slow_writer, "stream is cut off: it ends after 2.49"),
    Case(
        "audio: stream that breaks off in a sample",
        lambda folder: stream(io.BytesIO(bytes(RATE + 1)), RATE),
        "ends in the middle of a sample",
    ),
    Case(
        "audio: raw stream of text",
        lambda folder: stream(io.StringIO("abc"), RATE),
        "with mode 'rb'",
    ),
    Case("audio: wav stream of text", lambda folder: stream(io.StringIO("abc")), "with mode 'rb'"),
    Case("audio: raw stream that does not wait", partial(no_bytes_yet, RATE), "one that waits"),
    Case("audio: wav stream that does not wait", partial(no_bytes_yet, None), "one that waits"),
    Case("audio: stream with a hole", lambda folder: stream(iter([noise(), None]), RATE), NUMBERS),
    Case(
        "audio: stream with segments",
        lambda folder: stream({"audio": endless_samples(), "segments": [word()]}, RATE),
        "A stream is cut into windows",
    ),
]
