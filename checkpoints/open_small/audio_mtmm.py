"""Recordings: decoding, resampling, mixing down, and streams.

Uploaded to the Hub beside the weights, and part of the runtime, which has no torch. soundfile
(decoding) and soxr (resampling) are optional here: without them whatever does not need them still
works, and the rest says what to install.
"""

import io
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

import numpy as np

# Relative first, as in pipeline_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .containers_mtmm import INSTALL, corrected, medium, ogg_end, what_it_is
        from .waveforms_mtmm import COARSE, Channels, as_array, check_rate, mix, refuse, to_mono
except ImportError:
    from containers_mtmm import INSTALL, corrected, medium, ogg_end, what_it_is
    from waveforms_mtmm import COARSE, Channels, as_array, check_rate, mix, refuse, to_mono

try:
    import soundfile
except (ImportError, OSError):  # OSError: the package is there, the libsndfile it needs is not
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None
try:
    import av  # the extra "media": m4a, mp4, webm, amr, wma and what else FFmpeg reads
except ImportError:
    av = None

UNKNOWN_FRAMES = 2**62  # and more: libsndfile's count where the header has none
URL_TIMEOUT_S = 60.0  # without one, a server that stops answering stops us too
SHOWN = 300  # letters of an address in a message
BLOCK_S = 1.0  # of a file, read at a time
SAMPLES = ("array", "raw", "bytes", "path")  # of a dict; the first that is there counts
TRANSCRIPT = 'A transcript is given as {"text": ...}.'  # one may have come in a path's place
# What libsndfile's log says of a wav, rf64, w64, aiff, au, voc, svx or ogg that it reads as a shorter one.
HALF_PCM = re.compile(r"(?:data|SSND|BODY|[Ss]ize|length|riff)(?:\s*:)? (\d+) \(?should be (\d+)")
CUT_OFF = re.compile("Junk after the last page|a truncated file|to be truncated")
NO_END = "lacks an end-of-stream bit"  # also of what Android records, whose last page is whole
NIST_COUNT = re.compile(rb"NIST_1A\n.*?\nsample_count -i (\d+)", re.DOTALL)

# Whose headers tell a length; the others' are estimates.
TOLD = {"mp4", "webm", "caf", "wav", "w64", "flv", "rm", "avi", "nistsphere"}
DECODING_ERRORS = (RuntimeError, TypeError, MemoryError, *([av.FFmpegError] if av else []))

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
        idle: The amplitude that silence may have in its coding.
    """

    sampling_rate: int
    duration_s: float | None
    blocks: Callable[[int, int | None], Iterator[np.ndarray]]
    close: Callable[[], None] = lambda: None
    channels: "list[Recording]" = field(default_factory=list)
    idle: float = 0.0

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
        self.frames = 0
        with self._decoding():
            self._file = self._decoder()
        self.sampling_rate: int = self._file.samplerate
        self.frames = max(self.frames, self._file.frames)
        self.channels: int = self._file.channels
        self._position = 0
        self._mixed = Channels(self.name)
        check_rate(self.sampling_rate, f"{self.name}: ")
        refuse({"it has no audio, it lasts 0 s": self.frames == 0}, f"{self.name}: ")

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
            if start != self._position:
                self._seek(start)
            samples = self._file.read(stop - start, dtype="float32")
        self._position = start + len(samples)
        cut_off = stop == self.frames and _lacks_its_end(self._file.extra_info, self._opened)
        if self._position < stop or cut_off:
            end_s = self._position / self.sampling_rate
            raise ValueError(f"{self.name} is cut off after {end_s:.3f} s; its header says more.")
        return samples

    def recording(self, channel: int | None = None) -> Recording:
        """To be read block by block: a channel, from 0; None = the mean of those that carry something."""
        channels = self._mixed if channel is None else Channels(self.name, channel)

        def blocks(start: int, stop: int | None) -> Iterator[np.ndarray]:
            stop = self.frames if stop is None else min(stop, self.frames)
            if self.channels > 1 and channels.powers is None:
                channels.add(samples for _, samples in self._read_all(0, self.frames))
            for first, samples in self._read_all(start, stop):
                place = f"{self.name}, from {first / self.sampling_rate:g} s on: "
                yield mix(samples, channels, place)

        rate, idle = self.sampling_rate, COARSE.get(self._file.subtype, 0.0)
        return Recording(rate, self.frames / rate, blocks, self.close, idle=idle)

    def _read_all(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        size = round(BLOCK_S * self.sampling_rate)
        for first in range(start, stop, size):
            yield first, self.read(first, min(first + size, stop))

    def _seek(self, frame: int) -> None:
        """Also where a codec goes forward alone, as GSM's does."""
        try:
            self._file.seek(frame)
        except soundfile.SoundFileError:
            self._file.close()
            self._opened.seek(0)
            self._file = soundfile.SoundFile(self._opened)
            for first in range(0, frame, self.sampling_rate):
                self._file.read(min(self.sampling_rate, frame - first))

    def _decoder(self) -> Any:
        """The file opened by libsndfile, as wav where only FFmpeg reads it."""
        head = self._opened.read(1024)
        self._opened.seek(0)
        if head[:7] == b"NIST_1A" and len(head) < 1024:  # its text would be read as samples
            raise RuntimeError("it is cut off in its header")
        try:
            self._opened = corrected(self._opened)
            file = soundfile.SoundFile(self._opened)
            if count := NIST_COUNT.match(head):  # which libsndfile does not read
                self.frames = int(count[1])
            if not self._goes_on(file):
                return file
            is_told, lasts_s = file.frames < UNKNOWN_FRAMES, file.frames / file.samplerate
            told = f"{lasts_s:.3f} s" if is_told else "no"
            reason = f"its header says {told} length, and more is there; {INSTALL}"
        except (soundfile.SoundFileError, TypeError) as error:
            said = str(getattr(error, "error_string", error)).rstrip(".")
            has_no_end = head[:4] == b"OggS" and ogg_end(self._opened) == 0
            # Which FFmpeg would read as a shorter one.
            is_cut = "file is malformed" in said and not has_no_end
            reason = f"{said}; {'it is cut off or damaged' if is_cut else what_it_is(head[:64])}"
        if av is None or INSTALL not in reason:
            raise RuntimeError(reason)
        self._opened.seek(0)
        try:
            self._opened = _transcoded(self._opened)
        except av.FFmpegError as error:
            why = f"FFmpeg cannot read it: {error.strerror}; it may be cut off or damaged"
            raise RuntimeError(reason.replace(INSTALL, why)) from error
        return soundfile.SoundFile(self._opened)

    def _goes_on(self, file: Any) -> bool:
        """Whether there is more than the header says, as where radio stations join streams."""
        # The bytes of other formats were counted.
        if file.format != "OGG" or _lacks_its_end(file.extra_info, self._opened):
            return file.frames >= UNKNOWN_FRAMES
        file.seek(file.frames - 1)
        file.read(1)
        end = self._opened.tell()
        goes_on = self._opened.seek(0, io.SEEK_END) > end + 1024
        self._opened.seek(end)
        file.seek(0)
        return goes_on

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            yield
        # TypeError: headerless files, whose rate soundfile would have to be told
        # MemoryError: longer than the memory, or so it says
        except DECODING_ERRORS as error:
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
        for form in ("NFC", "NFD"):  # an accent is a character of its own on some disks
            other = unicodedata.normalize(form, path)
            if other != path and os.path.exists(other):
                return _open_path(other)
        shown = repr(path[:SHOWN])  # it may be a transcript
        raise type(error)(f"{shown} cannot be read ({error.strerror}). {TRANSCRIPT}") from error


def fetch(url: str) -> bytes:
    """What an http(s) or data: address has."""
    from huggingface_hub import constants, get_session  # here: nothing else needs it

    try:
        # The Hub's session answers nothing offline, where one's own server may well be there.
        if url[:5].lower() == "data:" or constants.HF_HUB_OFFLINE:
            with urlopen(url, timeout=URL_TIMEOUT_S) as inside:
                return inside.read()
        response = get_session().get(url, follow_redirects=True, timeout=URL_TIMEOUT_S)
        response.raise_for_status()
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        raise OSError(f"{url[:SHOWN]} cannot be fetched ({error}).") from error
    return response.content


def _transcoded(source: BinaryIO) -> BinaryIO:
    """The audio of any file that FFmpeg reads, as a wav without a limit of its size, on disk."""
    copy: Any = tempfile.TemporaryFile()  # closed with the file that is read from it
    with source, av.open(source, options={"protocol_whitelist": "none"}) as container:
        stream = next((one for one in container.streams.audio if one.codec_context), None)
        if stream is None:
            raise RuntimeError("it has no audio that FFmpeg decodes")
        count, resampler = stream.channels, av.AudioResampler(format="flt", rate=stream.rate)
        with soundfile.SoundFile(copy, "w", stream.rate, count, "FLOAT", format="W64") as out:
            for frame in container.decode(stream):
                for part in resampler.resample(frame):
                    out.write(part.to_ndarray().reshape(-1, count))
            end_s, told_s = out.frames / stream.rate, (container.duration or 0) / av.time_base
            is_told = TOLD & set(container.format.name.split(","))
            if is_told and end_s < told_s - 0.5:
                raise RuntimeError(f"it is cut off after {end_s:.3f} of {told_s:.3f} s")
            if container.format.name == "ogg" and ogg_end(source) is None:
                raise RuntimeError(f"it is cut off after {end_s:.3f} s")
    copy.seek(0)
    return copy


def _lacks_its_end(log: str, file: BinaryIO) -> bool:
    """Whether libsndfile found a file shorter than its header says.

    Writers that cannot know the size promise 2 GiB or more; some are wrong by a few bytes.
    """
    sizes = HALF_PCM.search(log)
    promised, found = map(int, sizes.groups()) if sizes else (0, 0)
    is_size = promised < 2**31 - 2**16 or 2**32 < promised < UNKNOWN_FRAMES  # of 64 bits: RF64, W64
    is_cut = CUT_OFF.search(log) or (NO_END in log and ogg_end(file) != 0)
    return (is_size and found + 1024 < promised) or bool(is_cut)


# ---- any form of audio ---------------------------------------------------------------------------


def open_recording(
    audio: Any, sampling_rate: int | None = None, channel: int | str | None = None
) -> Recording:
    """A recording of any length, to be read block by block.

    A file is read from its path as it goes. The bytes of a URL, of an open file, or given as such
    stay in memory as they are encoded; so does an array.

    Args:
        audio: A source as of `load_audio`, or an array or dict as of `MTMMProcessor.__call__`.
        sampling_rate: Rate of an array without its own, Hz.
        channel: The one to be heard, from 0; None = the mean of those that carry something; "each" =
            that, and each by itself as `channels`.

    Raises:
        As `load_audio` and `MTMMProcessor.__call__`; what is wrong inside a file, when it is read.
    """
    audio, sampling_rate = samples_of(audio, sampling_rate)
    if is_source(audio):
        file = AudioFile(audio)
        count, opened = file.channels, file.recording
    else:
        array, rate = as_array(audio), check_rate(sampling_rate)
        count = min(array.shape) if array.ndim == 2 else 1

        def opened(channel: int | None = None) -> Recording:
            waveform = to_mono(array, channel)
            idle, length_s = COARSE.get(array.dtype.name, 0.0), len(waveform) / rate
            return Recording(rate, length_s, lambda i, j: iter([waveform[i:j]]), idle=idle)

    if isinstance(channel, int):
        return opened(channel)
    recording = opened()
    if channel == "each":
        recording.channels = [opened(number) for number in range(count)]
    return recording


def is_audio(path: str | os.PathLike[str]) -> bool:
    """Whether a file is audio, or may be, by its content; a file that cannot be opened may be."""
    try:
        with open(path, "rb") as file:
            if medium(file.read(64)):
                return True
            file.seek(0)
            return soundfile is None or not soundfile.SoundFile(file).close()
    except (RuntimeError, TypeError):  # soundfile's are RuntimeErrors
        return False
    except OSError:
        return True


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
