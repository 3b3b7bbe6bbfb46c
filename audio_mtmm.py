"""Recordings: decoding, resampling, mono, streams, and their windows.

Uploaded to the Hub beside the weights.
"""

import io
import os
import re
import stat
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from huggingface_hub import get_session

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
WAV_HEADER = 1024  # bytes, at most, with a few words about the recording
LATEST_S = 1e12  # later than any recording's end, and its samples can still be counted
MAX_AMPLITUDE = 8.0  # float waveforms lie in −1 to 1; far above, somebody forgot to scale PCM
LONGEST_PATH = 4096  # characters; Linux takes no more
# Where a transcript may have been taken for a path.
TRANSCRIPT = 'A transcript is given as {"text": ...}, on the command line by --transcript.'
SEVERAL_PATHS = (
    " Several recordings are given to the pipeline as a list of inputs, such as "
    '["a.wav", "b.wav"] or [{"audio": "a.wav"}, {"audio": "b.wav"}].'
)
URL_TIMEOUT_S = 60.0  # without one, a server that stops answering stops us too
BLOCK_S = 1.0  # of a file, read at a time
LIVE_BLOCK_S = 0.1  # of a stream: nobody waits longer for a block than this
# Where a recording is read from: a path, a URL, the bytes of a file, or an open binary file.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | io.RawIOBase
Audio = np.ndarray | torch.Tensor | Sequence[float] | dict[str, Any]


@dataclass
class Recording:
    """One recording of any length, to be read block by block.

    Args:
        sampling_rate: Its own, Hz.
        duration_s: Seconds; None of a stream, whose end nobody knows.
        blocks: From which sample, to which (None = to the end): arrays (time,), mono, float32.
    """

    sampling_rate: int
    duration_s: float | None
    blocks: Callable[[int, int | None], Iterator[np.ndarray]]


def _cut(
    blocks: Iterable[np.ndarray], window: int, hop: int, shortest: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Windows of a stream of samples, each with the number of its first; see `windows`."""
    kept, first = np.zeros(0, np.float32), 0  # samples in hand, and the number of the first
    start = heard = 0  # where the next window begins; where the last one ended
    for block in blocks:
        kept = np.concatenate([kept, block])
        while first + len(kept) >= start + window:
            yield start, kept[start - first : start - first + window]
            start, heard = start + hop, start + window
        reach = max(start - window, first)  # the last window may reach back so far
        kept, first = kept[reach - first :], reach
    end = first + len(kept)
    if end - heard >= shortest or heard == 0 < end:
        start = max(end - window, 0)
        yield start, kept[start - first :]


def read_blocks(source: Source, sampling_rate: int) -> Iterator[np.ndarray]:
    """A recording of any length from its beginning to its end, in blocks of about a second.

    Args:
        source: As of `MTMMProcessor.load_audio`; a path is read from disk as it goes.
        sampling_rate: Of the blocks, Hz.

    Returns:
        Blocks (time,), mono, float32.

    Raises:
        As `MTMMProcessor.load_audio`.
    """
    recording = _file_recording(source)
    blocks = recording.blocks(0, None)
    yield from _resampled(blocks, recording.sampling_rate, sampling_rate)


def _resampled(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """As `resample` of the whole."""
    if from_rate == to_rate:
        yield from blocks
        return
    _require_soxr(from_rate, to_rate)
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


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
    if array.size == 0:
        raise ValueError("the audio is empty; leave it out, or give None for absent audio.")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    return _mix(array)


def _mix(array: np.ndarray) -> np.ndarray:
    """Numbers (time,) or (time, channels) as `to_mono` gives them."""
    if array.dtype.kind in "iu":
        if array.dtype.name not in PCM_SCALE:
            raise ValueError(
                f"the audio is of type {array.dtype.name}, whose full scale is unknown; convert it to "
                "floats in −1 to 1, or to int16."
            )
        offset = 128 if array.dtype.name == "uint8" else 0
        array = (array.astype(np.float64) - offset) / PCM_SCALE[array.dtype.name]
    if array.ndim == 2:
        if array.shape[1] > MAX_CHANNELS:
            raise ValueError(
                f"the audio has shape {array.shape}: no axis can be channels (at most {MAX_CHANNELS}). "
                "Give several waveforms as a list, and mix more channels down."
            )
        array = array.mean(axis=1, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(
            f"the audio has samples that are NaN or infinite ({int((~np.isfinite(array)).sum())} of "
            f"{array.size}); all must be finite. Repair or leave out the recording."
        )
    peak = float(np.abs(array).max())
    if peak > MAX_AMPLITUDE:
        raise ValueError(
            f"the audio reaches {peak:g}; floats lie in −1 to 1. Divide integer samples by their full "
            "scale (32768 for 16 bits) before they become floats."
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _as_array(waveform: Any) -> np.ndarray:
    if isinstance(waveform, torch.Tensor):
        waveform = _tensor_array(waveform)
    if isinstance(waveform, (str, bytes, bytearray, memoryview, os.PathLike)):
        raise TypeError(
            f"the audio is of type {type(waveform).__name__}; the processor takes waveforms. Decode a file "
            "first with `MTMMProcessor.load_audio`, or give it to the pipeline; a transcript is `text=`."
        )
    if isinstance(waveform, np.ma.MaskedArray):
        raise TypeError(
            "the audio is a masked array, whose masked samples would be heard; give an array without "
            "mask, such as `audio.filled(0)`, or cut them out."
        )
    try:
        array = np.asarray(waveform)
    except ValueError as error:
        raise TypeError(
            f"the audio is no array of numbers ({error}); it must be numbers of shape (time,) or "
            "(time, channels)."
        ) from error
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise TypeError(
            f"the audio is of type {array.dtype} and shape {array.shape}; it must be numbers of shape "
            f"(time,) or (time, channels).{SEVERAL_PATHS if _are_paths(array) else ''}"
        )
    return array


def _are_paths(array: np.ndarray) -> bool:
    kinds = str, bytes, os.PathLike
    return array.ndim == 1 and all(isinstance(item, kinds) for item in array.flat)


def _tensor_array(tensor: torch.Tensor) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu().resolve_neg()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (RuntimeError, TypeError) as error:  # on "meta", sparse, quantised
        raise TypeError(
            f"the audio is a tensor on {str(tensor.device)!r}, of layout {tensor.layout} and type "
            f"{tensor.dtype}, whose numbers cannot be read; give a dense tensor with numbers in it."
        ) from error


def _check_rate(sampling_rate: Any) -> int:
    try:
        rate = int(sampling_rate)
        allowed = rate == sampling_rate and LOWEST_RATE <= rate <= HIGHEST_RATE
    except (TypeError, ValueError, OverflowError):
        allowed = False
    if not allowed:
        raise ValueError(
            f"`sampling_rate={sampling_rate!r}` is not allowed; it must be a whole number of Hz from "
            f"{LOWEST_RATE} to {HIGHEST_RATE} (16 kHz are 16000)."
        )
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
    _require_soxr(from_rate, to_rate)
    return soxr.resample(waveform, from_rate, to_rate)


def _require_soxr(from_rate: int, to_rate: int) -> None:
    if soxr is None:
        raise ImportError(
            f"Resampling from {from_rate} to {to_rate} Hz needs soxr; run `pip install soxr`, or give audio "
            f"at {to_rate} Hz."
        )


def _check_stretch(start_s: float | None, end_s: float | None) -> None:
    for name, value in (("start_s", start_s), ("end_s", end_s)):
        if value is None:
            continue
        try:
            allowed = 0 <= value and float(value) < np.inf
        except (TypeError, OverflowError):  # OverflowError: of more digits than a float has
            allowed = False
        if not allowed:
            raise ValueError(
                f"`{name}={value!r}` is not allowed; it must be seconds from the beginning, 0 or more."
            )
    if end_s is not None and end_s <= (start_s or 0):
        raise ValueError(
            f"`end_s={end_s!r}` is not allowed; it must be after the start, {start_s or 0} s."
        )


def _sample_at(time_s: float, rate: int) -> int:
    """Number of the sample at this time; of one after every recording's end, some sample there."""
    return round(min(time_s, LATEST_S) * rate)


def _seek(name: str, file: Any, start: int) -> None:
    """To this sample of a file that was just opened."""
    if start == 0:  # where it stands; some kinds of files refuse even this step
        return
    if not file.seekable():
        raise ValueError(
            f"{name} is of a kind ({file.format}, {file.subtype}) that can only be read from its "
            f"beginning, and a stretch from {start / file.samplerate:g} s is asked for; convert it, for "
            "example with `ffmpeg -i FILE out.wav`."
        )
    file.seek(start)


def _check_end(name: str, file: Any, opened: BinaryIO) -> None:
    """Refuses what libsndfile takes for a shorter file than it is; nothing can be read afterwards."""
    duration_s = file.frames / file.samplerate
    opened.seek(0)
    if _has_second_ogg(opened):
        raise ValueError(
            f"{name} is several Ogg recordings joined end to end, of which only the first, "
            f"{duration_s:.3f} s, would be heard; convert it to one, for example with `ffmpeg -i FILE "
            "out.wav`, or give each by itself."
        )
    if _is_cut_off(file.extra_info):
        raise _cut_off(name, duration_s)


def _has_second_ogg(file: BinaryIO) -> bool:
    """Whether an Ogg file's pages, of which only the headers are read, hold a second recording.

    Pages that begin a stream (flag 2) come before all others, so a later one begins a recording.
    """
    begun = False
    while len(head := file.read(27)) == 27 and head.startswith(b"OggS"):
        begins = bool(head[5] & 2)
        if begun and begins:
            return True
        begun = not begins
        file.seek(sum(file.read(head[26])), io.SEEK_CUR)  # the last byte counts the body's pieces
    return False


def _is_cut_off(log: str) -> bool:
    """Whether a wav, aiff, au, caf or ogg file lacks its end, from libsndfile's log.

    libsndfile reads such a file as a shorter one. The last page of ogg is marked as the last, and
    half a page is junk.
    """
    sizes = re.search(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log)
    promised, found = map(int, sizes.groups()) if sizes else (0, 0)
    half_ogg = re.search("lacks an end-of-stream bit|Junk after the last page", log)
    return _lacks_bytes(promised, found) or half_ogg is not None


def _lacks_bytes(promised: int, found: int) -> bool:
    """Writers that cannot know the size promise 2 GiB or more; some are wrong by a few bytes."""
    return found + 1024 < promised < 2**31 - 2**16


def _cut_off(name: str, found_s: float) -> ValueError:
    return ValueError(
        f"{name} is cut off: it ends after {found_s:.3f} s, before the end that its header says. "
        "Fetch it again, convert it, or leave it out."
    )


@contextmanager
def _sound_file(name: str, source: str | bytes) -> Iterator[tuple[Any, BinaryIO]]:
    """The file opened by soundfile, and its bytes.

    What soundfile cannot do is a ValueError with the file's name.
    """
    if soundfile is None:
        raise ImportError(
            "Decoding audio files needs soundfile; run `pip install soundfile`, or give "
            '{"array": waveform, "sampling_rate": rate}.'
        )
    try:
        # soundfile itself opens no path that is not UTF-8, and does not say what it may not read
        opened = open(source, "rb") if isinstance(source, str) else io.BytesIO(source)
    except OSError as error:
        raise _unreadable(name, error) from error
    try:
        with opened, soundfile.SoundFile(opened) as file:
            _check_header(name, file, opened)
            yield file, opened
    # TypeError: headerless files, whose rate soundfile would have to be told
    # MemoryError: longer than the memory, or so it says
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError, MemoryError) as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(
            f"{name} cannot be decoded as audio ({reason}): it is damaged, or not wav, flac, ogg or "
            "mp3. Fetch it again, convert it, or leave it out."
        ) from error


def _check_header(name: str, file: Any, opened: BinaryIO) -> None:
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise ValueError(
            f"{name} has a sampling rate of {file.samplerate} Hz; it must be from {LOWEST_RATE} "
            f"to {HIGHEST_RATE} Hz. Convert it, or leave it out."
        )
    if file.frames >= UNKNOWN_FRAMES:
        raise ValueError(
            f"{name} does not say how long it is, as if written into a pipe; convert it to wav, for "
            "example with `ffmpeg -i FILE out.wav`."
        )
    if file.frames == 0 and file.format in ("WAV", "WAVEX"):
        _check_unfinished(name, file, opened)


def _check_unfinished(name: str, file: Any, opened: BinaryIO) -> None:
    """A recorder writes the sizes last, so when it is killed they are 0, and the samples are there."""
    size = opened.seek(0, io.SEEK_END)  # nothing is read of 0 frames
    promised = re.search(r"^data : (\d+)", file.extra_info, re.MULTILINE)
    if promised and promised[1] == "0" and size > WAV_HEADER:
        raise ValueError(
            f"{name} has {size} bytes, and a header that says 0 s of audio: its recorder was stopped "
            "before it finished the header. Repair it, for example with `ffmpeg -i FILE out.wav` or `sox "
            "--ignore-length FILE out.wav`, or leave it out."
        )


def _file_recording(source: Any) -> Recording:
    name, source = _open_source(source)
    with _sound_file(name, source) as (file, opened):
        rate, frames = file.samplerate, file.frames
        _check_end(name, file, opened)
    if frames == 0:
        raise ValueError(f"{name} has no audio: it lasts 0 s. Leave it out.")
    return Recording(rate, frames / rate, partial(_file_blocks, name, source))


def _file_blocks(
    name: str, source: str | bytes, start: int, stop: int | None
) -> Iterator[np.ndarray]:
    with _sound_file(name, source) as (file, _):
        rate, stop = file.samplerate, file.frames if stop is None else min(stop, file.frames)
        if start < stop:
            _seek(name, file, start)
        while start < stop:
            size = min(round(BLOCK_S * rate), stop - start)
            block = file.read(size, dtype="float32", always_2d=True)
            if len(block):
                yield _mix_block(block, name, start / rate)
            start += len(block)
            if len(block) < size:
                raise _cut_off(name, start / rate)


def _array_blocks(chunks: Iterable[Any], rate: int) -> Iterator[np.ndarray]:
    start = 0
    for chunk in chunks:
        array = _as_array(chunk)
        if array.size:
            yield _mix_block(array, "The stream", start / rate)
        start += len(array)


class _Bytes:
    """An open file whose `read` gives bytes, or says why it cannot."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if data is None:
            raise ValueError(
                "The stream has nothing to read yet and does not wait for more; give one that waits, "
                "for example after `os.set_blocking(stream.fileno(), True)`."
            )
        if not isinstance(data, (bytes, bytearray)):
            raise TypeError(
                f"The stream gives {type(data).__name__}, not bytes; open it with mode 'rb' (of standard "
                "input, `sys.stdin.buffer`)."
            )
        return bytes(data)


def _raw_blocks(file: _Bytes, rate: int) -> Iterator[np.ndarray]:
    """16-bit little-endian mono samples."""
    rest = None
    while data := file.read(2 * round(LIVE_BLOCK_S * rate)):
        if rest is None and data.startswith(b"RIFF"):
            raise ValueError(
                "The stream is a wav file; leave `sampling_rate` out, it says so itself."
            )
        data = (rest or b"") + data
        whole = len(data) // 2 * 2
        if whole:
            yield _mix(np.frombuffer(data[:whole], "<i2"))
        rest = data[whole:]
    if rest:
        raise _split_sample()


def _wav_blocks(file: wave.Wave_read) -> Iterator[np.ndarray]:
    width, channels, found = file.getsampwidth(), file.getnchannels(), 0
    while data := file.readframes(round(LIVE_BLOCK_S * file.getframerate())):
        if len(data) % (width * channels):
            raise _split_sample()
        if width == 3:  # NumPy has no 24-bit integers: shifted up, they are 32-bit ones
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            samples = padded.view("<i4")[:, 0]
        else:
            samples = np.frombuffer(data, {1: "u1", 2: "<i2", 4: "<i4"}[width])
        yield _mix(samples.reshape(-1, channels))
        found += len(data)
    if _lacks_bytes(file.getnframes() * width * channels, found):
        raise _cut_off("The stream", found / (width * channels * file.getframerate()))


def _mix_block(block: np.ndarray, name: str, start_s: float) -> np.ndarray:
    """As `_mix`; what it refuses is named by the file and the place in it."""
    try:
        return _mix(block)
    except ValueError as error:
        raise ValueError(f"{name}, from {start_s:g} s on: {error}") from error


def _split_sample() -> ValueError:
    return ValueError(
        "The stream ends in the middle of a sample; was it cut off, or is it not what it says? "
        "Raw audio is 16-bit little-endian mono."
    )


def _open_source(source: Any) -> tuple[str, str | bytes]:
    """A name for messages, and a path or the bytes of a file."""
    if hasattr(source, "read"):
        name = f"The audio ({getattr(source, 'name', 'an open file')})"
        source = source.read()  # soundfile itself would need it to be seekable
        if isinstance(source, str):
            raise TypeError(f"{name} is a text file; open it with mode 'rb'.")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f"The audio ({len(source)} bytes)"
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if not path.lower().startswith(("http://", "https://")):
            return _shown(path), _check_file(path)
        name, source = path, _fetch(path)
    else:
        raise TypeError(
            f"the audio is of type {type(source).__name__}; give a path, a URL, bytes or an open file."
        )
    if not source:
        raise ValueError(f"{name} has no bytes to read; give a whole wav, flac, ogg or mp3 file.")
    return name, bytes(source)


def _check_file(path: str) -> str:
    name = _shown(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, ValueError) as error:  # ValueError: no file can have such a name
        raise FileNotFoundError(f"No audio file at {name}; check the path. {TRANSCRIPT}") from error
    except OSError as error:
        raise _unreadable(name, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is not a regular file; give a wav, flac, ogg or mp3 file.")
    if status.st_size == 0:
        raise ValueError(f"{name} is empty (0 bytes); give a wav, flac, ogg or mp3 file.")
    return path


def _unreadable(name: str, error: OSError) -> OSError:
    return OSError(
        f"{name} cannot be read ({error.strerror}); check the path and its permissions. {TRANSCRIPT}"
    )


def _shown(path: str) -> str:
    """For messages; what is long is a transcript, or data, that came as a path."""
    return repr(path if len(path) <= LONGEST_PATH else f"{path[:100]}… ({len(path)} characters)")


def _fetch(url: str) -> bytes:
    try:
        response = get_session().get(url, follow_redirects=True, timeout=URL_TIMEOUT_S)
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        raise OSError(
            f"{url} cannot be fetched ({error}); check the address and the network."
        ) from error
    if response.status_code != 200:
        raise OSError(
            f"{url} cannot be fetched (HTTP {response.status_code} {response.reason_phrase}); check the "
            "address, or download the file yourself and give its path."
        )
    return response.content


def _array_and_rate(audio: Any, sampling_rate: Any) -> tuple[Any, Any]:
    """The samples, and their rate where the audio has its own."""
    if hasattr(audio, "get_all_samples"):  # torchcodec's decoder, which datasets gives
        samples = audio.get_all_samples()
        return samples.data, samples.sample_rate
    if not isinstance(audio, dict):
        return audio, sampling_rate
    if "array" not in audio or set(audio) - {"array", "sampling_rate", "path"}:
        raise ValueError(
            f"an audio dict has the keys {sorted(map(str, audio))}; it must be "
            '{"array": waveform, "sampling_rate": Hz}. Decode files with `MTMMProcessor.load_audio`; '
            "a transcript stands beside the dict, not in it."
        )
    return audio["array"], audio.get("sampling_rate", sampling_rate)
