"""Recordings: decoding, resampling, mixing down, and streams.

Uploaded to the Hub beside the weights, and part of the runtime, which has no torch. soundfile
(decoding) and soxr (resampling) are optional here: without them whatever does not need them still
works, and the rest says what to install.
"""

import io
import os
import re
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

import numpy as np

try:
    import soundfile
except (ImportError, OSError):  # OSError: the package is there, the libsndfile it needs is not
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

# Full scale of integer PCM, by NumPy's type names; uint8 is centred on 128.
PCM_SCALE = {"int8": 2**7, "uint8": 2**7, "int16": 2**15, "int32": 2**31}
MAX_CHANNELS = 32
LOWEST_RATE, HIGHEST_RATE = 1000, 10**6  # Hz; 16 is meant to be kHz
UNKNOWN_FRAMES = 2**62  # and more: libsndfile's count where the header has none
MAX_AMPLITUDE = 8.0  # float waveforms lie in −1 to 1; far above, somebody forgot to scale PCM
URL_TIMEOUT_S = 60.0  # without one, a server that stops answering stops us too
SHOWN = 300  # letters of an address in a message
BLOCK_S = 1.0  # of a file, read at a time
LIVE_BLOCK_S = 0.1  # of a stream: nobody waits longer for a block than this
SAMPLES = ("array", "raw", "bytes", "path")  # of a dict; the first that is there counts
TRANSCRIPT = 'A transcript is given as {"text": ...}.'  # one may have come in a path's place
# What libsndfile's log says of a wav, aiff, au, caf or ogg file that it reads as a shorter one.
HALF_PCM = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
HALF_OGG = re.compile("lacks an end-of-stream bit|Junk after the last page")

# Where a recording is read from: a path, a URL, the bytes of a file, or an open binary file.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | io.RawIOBase


class InputError(ValueError):
    """One of several inputs cannot be used.

    Args:
        index: Its number among them, from 0.
        reason: What is wrong with it.
    """

    def __init__(self, index: int, reason: object) -> None:
        super().__init__(index, reason)  # what pickle makes it again from
        self.index = index
        self.reason = str(reason)

    def __str__(self) -> str:
        return f"Input {self.index}: {self.reason}"


def refuse(wrong: Mapping[str, bool], place: str = "") -> None:
    """Raise a ValueError of the first text whose condition holds, with the place in front of it."""
    for text, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{place}{text}.")


@contextmanager
def numbered(index: int | None) -> Iterator[None]:
    """Name an input that is refused by its number; None = it is the only one."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if index is None or isinstance(error, InputError):
            raise
        raise InputError(index, error) from error


@dataclass
class Recording:
    """One recording of any length, to be read block by block.

    Args:
        sampling_rate: Samples a second, Hz.
        duration_s: Seconds; None of a stream, whose end nobody knows.
        blocks: From which sample, to which (None = to the end): arrays (time,), mono, float32.
        close: To be called when it has been read.
        channels: Each by itself, where they were opened so.
    """

    sampling_rate: int
    duration_s: float | None
    blocks: Callable[[int, int | None], Iterator[np.ndarray]]
    close: Callable[[], None] = lambda: None
    channels: "list[Recording]" = field(default_factory=list)

    def resampled(
        self, sampling_rate: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        """The blocks at another rate, Hz; as `resample` of them in one."""
        blocks = self.blocks(start, stop)
        if sampling_rate == self.sampling_rate:
            yield from blocks
            return
        rates = self.sampling_rate, sampling_rate
        stream = _soxr(*rates).ResampleStream(*rates, 1, dtype="float32")
        for block in blocks:
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)

    def whole(self, sampling_rate: int) -> np.ndarray:
        """All of it, (time,), at this rate, Hz."""
        return np.concatenate(list(self.resampled(sampling_rate)))


# ---- files ---------------------------------------------------------------------------------------


class AudioFile:
    """A file that soundfile decodes, opened once; errors have its name.

    Args:
        source: A path, an http(s) URL, the bytes of a file, or an open binary file.

    Raises:
        ImportError: soundfile is not installed.
        OSError: It cannot be opened, or fetched.
        ValueError: It cannot be decoded, or has no audio.
        TypeError: No source of audio.
    """

    def __init__(self, source: Source) -> None:
        if soundfile is None:
            raise ImportError("Decoding audio files needs soundfile; run `pip install soundfile`.")
        self.name, self._opened = _open(source)
        with self._decoding():
            self._file = soundfile.SoundFile(self._opened)
        self.sampling_rate: int = self._file.samplerate
        self.frames: int = self._file.frames
        self._position = 0
        check_rate(self.sampling_rate, f"{self.name}: ")
        wrong = {
            "it does not say how long it is; convert it to wav": self.frames >= UNKNOWN_FRAMES,
            "it has no audio, it lasts 0 s": self.frames == 0,
        }
        refuse(wrong, f"{self.name}: ")

    def close(self) -> None:
        """As `Recording.close`."""
        self._file.close()
        self._opened.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples from one to before another, float32, (time,) or (time, channels).

        Raises:
            ValueError: They cannot be decoded, or the file is cut off before them.
        """
        with self._decoding():
            if start != self._position:  # some files refuse even a step to where they stand
                self._file.seek(start)
            samples = self._file.read(stop - start, dtype="float32")
        self._position = start + len(samples)
        cut_off = stop == self.frames and _lacks_its_end(self._file.extra_info)
        if self._position < stop or cut_off:
            end_s = self._position / self.sampling_rate
            raise ValueError(f"{self.name} is cut off after {end_s:.3f} s; its header says more.")
        return samples

    def blocks(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        """As `Recording.blocks`."""
        stop = self.frames if stop is None else min(stop, self.frames)
        size = round(BLOCK_S * self.sampling_rate)
        for first in range(start, stop, size):
            samples = self.read(first, min(first + size, stop))
            yield _mix(samples, f"{self.name}, from {first / self.sampling_rate:g} s on: ")

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            yield
        # TypeError: headerless files, whose rate soundfile would have to be told
        # MemoryError: longer than the memory, or so it says
        except (soundfile.SoundFileError, RuntimeError, TypeError, MemoryError) as error:
            reason = getattr(error, "error_string", error)
            raise ValueError(f"{self.name} cannot be decoded as audio ({reason}).") from error


def load_audio(
    source: Source, start_s: float | None = None, end_s: float | None = None
) -> tuple[np.ndarray, int]:
    """Decode a recording with soundfile: wav, flac, ogg, mp3 and what else libsndfile reads.

    Args:
        source: A path, an http(s) URL, the bytes of a file, or an open binary file, which is read
            from where it stands.
        start_s, end_s: The segment to read, seconds from the beginning; None = from the beginning,
            to the end. A segment that goes past the end stops there.

    Returns:
        The waveform, float32, (time,) or (time, channels), and its sampling rate in Hz.

    Raises:
        ImportError: soundfile is not installed.
        FileNotFoundError: No file at this path.
        OSError: A URL that does not answer.
        ValueError: The file cannot be decoded, ends early, or has no audio in this segment.
        TypeError: No source of audio.
    """
    with closing(AudioFile(source)) as file:
        rate, frames = file.sampling_rate, file.frames
        start = round(min((start_s or 0) * rate, frames))
        stop = frames if end_s is None else round(min(end_s * rate, frames))
        if not 0 <= start < stop:
            segment = f"from {start_s or 0} s to {'its end' if end_s is None else f'{end_s} s'}"
            raise ValueError(f"{file.name} has no audio {segment}; it lasts {frames / rate:.3f} s.")
        return file.read(start, stop), rate


def read_blocks(source: Source, sampling_rate: int) -> Iterator[np.ndarray]:
    """A recording of any length from its beginning to its end, in blocks of about a second.

    Args:
        source: As `load_audio` takes it; a path is read from disk as it goes.
        sampling_rate: Rate of the blocks, Hz.

    Returns:
        Blocks (time,), mono, float32.

    Raises:
        As `load_audio`.
    """
    with closing(open_recording(source)) as recording:
        yield from recording.resampled(sampling_rate)


def _open(source: Any) -> tuple[str, BinaryIO]:
    """A name for messages, and the open file."""
    name = "The audio"
    if hasattr(source, "read"):
        name += f" ({getattr(source, 'name', 'an open file')})"
        source = source.read()  # soundfile itself would need it to be seekable
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        scheme = path[:8].lower().partition(":")[0]
        if scheme == "file":
            path = url2pathname(urlsplit(path).path)
        if scheme not in ("http", "https", "data"):
            return repr(path), _open_path(path)
        name, source = path[:SHOWN], fetch(path)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        kind = type(source).__name__
        raise TypeError(f"{name} is {kind}; give a path, a URL, bytes or an open binary file.")
    return name, io.BytesIO(source)


def _open_path(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        shown = repr(path[:SHOWN])  # it may be a transcript
        raise type(error)(f"{shown} cannot be read ({error.strerror}). {TRANSCRIPT}") from error


def fetch(url: str) -> bytes:
    """What an http(s) or data: address has."""
    from huggingface_hub import get_session  # here: nothing else needs it

    try:
        if url[:5].lower() == "data:":
            with urlopen(url) as inside:
                return inside.read()
        response = get_session().get(url, follow_redirects=True, timeout=URL_TIMEOUT_S)
        response.raise_for_status()
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        raise OSError(f"{url[:SHOWN]} cannot be fetched ({error}).") from error
    return response.content


def _lacks_its_end(log: str) -> bool:
    """Whether libsndfile found a file shorter than its header says.

    Writers that cannot know the size promise 2 GiB or more; some are wrong by a few bytes.
    """
    sizes = HALF_PCM.search(log)
    promised, found = map(int, sizes.groups()) if sizes else (0, 0)
    return found + 1024 < promised < 2**31 - 2**16 or bool(HALF_OGG.search(log))


# ---- any form of audio ---------------------------------------------------------------------------


def open_recording(audio: Any, sampling_rate: int | None = None) -> Recording:
    """A recording of any length, to be read block by block.

    A file is read from its path as it goes. The bytes of a URL, of an open file, or given as such
    stay in memory as they are encoded; so does an array.

    Args:
        audio: A source as of `load_audio`, or an array or dict as of `MTMMProcessor.__call__`.
        sampling_rate: Rate of an array without its own, Hz.

    Raises:
        As `load_audio` and `MTMMProcessor.__call__`; what is wrong inside a file, when it is read.
    """
    audio, sampling_rate = samples_of(audio, sampling_rate)
    if is_source(audio):
        file = AudioFile(audio)
        duration_s = file.frames / file.sampling_rate
        return Recording(file.sampling_rate, duration_s, file.blocks, file.close)
    waveform, rate = to_mono(audio), check_rate(sampling_rate)
    return Recording(rate, len(waveform) / rate, lambda first, stop: iter([waveform[first:stop]]))


def open_stream(source: Any, sampling_rate: int | None = None) -> Recording:
    """A stream of audio that is heard while it comes; it can be read once.

    Args:
        source: An open binary file, such as `sys.stdin.buffer`: wav, or with `sampling_rate` raw
            16-bit little-endian mono samples. Or an iterator of arrays, (time,) or
            (time, channels), at `sampling_rate`.
        sampling_rate: Hz; of a wav stream None, it says so itself.

    Raises:
        ValueError: No wav; what is wrong later in the stream, when it is read.
    """
    if isinstance(source, io.RawIOBase):
        source = io.BufferedReader(source)  # reads as much as is asked for
    if not hasattr(source, "read"):
        rate, chunks = check_rate(sampling_rate), source
    elif sampling_rate is not None:
        rate = check_rate(sampling_rate)
        chunks = _raw_chunks(source, rate)
    else:
        try:
            file = wave.Wave_read(source)
        except (wave.Error, EOFError) as error:
            reason = str(error) or "it is empty"
            raise ValueError(f"The stream is no wav of integer samples ({reason}).") from error
        rate = check_rate(file.getframerate())
        chunks = _wav_chunks(file)
    return Recording(rate, None, lambda first, stop: _stream_blocks(chunks, rate))


def _stream_blocks(chunks: Iterable[Any], rate: int) -> Iterator[np.ndarray]:
    start = 0
    for chunk in chunks:
        array = _as_array(chunk)
        if array.size:
            yield _mix(array, f"The stream, from {start / rate:g} s on: ")
        start += len(array)


def _raw_chunks(file: BinaryIO, rate: int) -> Iterator[np.ndarray]:
    """16-bit little-endian mono samples."""
    while data := file.read(2 * round(LIVE_BLOCK_S * rate)):
        refuse({"The stream is wav, which has its own `sampling_rate`": data.startswith(b"RIFF")})
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2")


def _wav_chunks(file: wave.Wave_read) -> Iterator[np.ndarray]:
    width, channels = file.getsampwidth(), file.getnchannels()
    while data := file.readframes(round(LIVE_BLOCK_S * file.getframerate())):
        data = data[: len(data) // (width * channels) * width * channels]  # whole frames
        if width == 3:  # NumPy has no 24-bit integers: shifted up, they are 32-bit ones
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data = padded.tobytes()
        kind = {1: "u1", 2: "<i2", 3: "<i4", 4: "<i4"}[width]
        yield np.frombuffer(data, kind).reshape(-1, channels)


def is_source(audio: Any) -> bool:
    """Whether it is a file of some kind, which is to be decoded."""
    files = (str, bytes, bytearray, memoryview, os.PathLike)
    return isinstance(audio, files) or hasattr(audio, "read")


def samples_of(audio: Any, sampling_rate: Any = None) -> tuple[Any, Any]:
    """An array, or a source of audio, out of any form; and the rate that came with it.

    Raises:
        ValueError: A dict that has no audio, or keys of something else.
    """
    if hasattr(audio, "get_all_samples"):  # torchcodec's decoder, which datasets gives
        samples = audio.get_all_samples()
        return samples.data, samples.sample_rate
    if not isinstance(audio, Mapping):
        return audio, sampling_rate
    fields = dict(audio)  # datasets gives rows whose values are made when they are asked for
    found = [fields[key] for key in SAMPLES if fields.get(key) is not None]
    if not found or set(fields) - {*SAMPLES, "sampling_rate"}:
        keys = f"{sorted(map(str, fields))!s:.{SHOWN}}"
        raise ValueError(f"An audio dict has the keys {keys}; give one of {', '.join(SAMPLES)}.")
    return found[0], fields.get("sampling_rate", sampling_rate)


# ---- arrays --------------------------------------------------------------------------------------


def to_mono(waveform: Any) -> np.ndarray:
    """A waveform as float32 (time,), −1 to 1; channels are averaged, integer PCM is scaled.

    Args:
        waveform: Array, tensor or sequence: (time,), (time, channels) or (channels, time), the
            shorter axis being the channels.

    Raises:
        TypeError: Not an array of numbers.
        ValueError: Empty, not finite, of unknown scale, or of an impossible shape.
    """
    array = _as_array(waveform)
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    return _mix(array)


def _as_array(waveform: Any) -> np.ndarray:
    if hasattr(waveform, "detach"):  # torch's, which is not imported for it
        waveform = waveform.detach().cpu().resolve_neg()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    array = np.asarray(waveform)
    # A file's bytes would pass for integers.
    if is_source(waveform) or array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        kind = f"{type(waveform).__name__}, {array.dtype} of shape {array.shape}"
        raise TypeError(f"The audio is {kind}; give numbers (time,) or (time, channels).")
    return array


def _mix(array: np.ndarray, place: str = "") -> np.ndarray:
    """Numbers (time,) or (time, channels) as `to_mono` gives them; what is wrong begins with `place`."""
    kind, shape = array.dtype.name, array.shape
    is_pcm = array.dtype.kind in "iu"
    wrong = {
        "the audio is empty": array.size == 0,
        f"the full scale of {kind} is unknown; give floats in −1 to 1, or int16": (
            is_pcm and kind not in PCM_SCALE
        ),
        f"no axis of shape {shape} can be channels": array.ndim == 2 and shape[1] > MAX_CHANNELS,
    }
    refuse(wrong, place)
    if is_pcm:
        centre = 128 if kind == "uint8" else 0
        array = (array.astype(np.float64) - centre) / PCM_SCALE[kind]
    if array.ndim == 2:
        array = array.mean(axis=1, dtype=np.float64)
    peak = float(np.abs(array).max())
    wrong = {
        "the audio has samples that are NaN or infinite": not np.isfinite(peak),
        f"the audio reaches {peak:g}, but floats lie in −1 to 1": peak > MAX_AMPLITUDE,
    }
    refuse(wrong, place)
    return np.ascontiguousarray(array, dtype=np.float32)


def check_rate(sampling_rate: Any, place: str = "") -> int:
    """The rate as an int.

    Raises:
        ValueError: It is missing, or no whole number of Hz that audio can have.
    """
    try:
        rate = int(sampling_rate)
    except (TypeError, ValueError, OverflowError):
        rate = 0
    if rate != sampling_rate or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        allowed = f"a whole number of Hz from {LOWEST_RATE} to {HIGHEST_RATE}"
        raise ValueError(f"{place}`sampling_rate={sampling_rate!r}` is not {allowed}.")
    return rate


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample (time,) with soxr, quality HQ.

    Args:
        waveform: float32, (time,).
        from_rate, to_rate: Hz, whole numbers above 0.

    Raises:
        ImportError: The rates differ and soxr is not installed.
    """
    if from_rate == to_rate:
        return waveform
    return _soxr(from_rate, to_rate).resample(waveform, from_rate, to_rate)


def _soxr(from_rate: int, to_rate: int) -> Any:
    if soxr is None:
        rates = f"{from_rate} to {to_rate} Hz"
        raise ImportError(f"Resampling from {rates} needs soxr; run `pip install soxr`.")
    return soxr


__all__ = ["InputError", "Recording", "load_audio", "open_recording", "read_blocks"]
