"""Streams of audio that are heard while they come.

Uploaded to the Hub beside the weights.
"""

import io
import wave
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

# Relative first, as in pipeline_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .audio_mtmm import Recording
        from .waveforms_mtmm import Channels, as_array, check_rate, mix, refuse
except ImportError:
    from audio_mtmm import Recording
    from waveforms_mtmm import Channels, as_array, check_rate, mix, refuse

LIVE_BLOCK_S = 0.1  # nobody waits longer for a block than this


def open_stream(
    source: Any, sampling_rate: int | None = None, channel: int | None = None
) -> Recording:
    """A stream of audio that is heard while it comes; it can be read once.

    Args:
        source: An open binary file, such as `sys.stdin.buffer`: wav, or with `sampling_rate` raw
            16-bit little-endian mono samples. Or an iterator of arrays, (time,) or
            (time, channels), at `sampling_rate`.
        sampling_rate: Hz; of a wav stream None, it says so itself.
        channel: As of `open_recording`.

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
    return Recording(rate, None, lambda first, stop: _stream_blocks(chunks, rate, channel))


def _stream_blocks(chunks: Iterable[Any], rate: int, channel: int | None) -> Iterator[np.ndarray]:
    start, channels = 0, Channels("The stream", channel)
    for chunk in chunks:
        array = as_array(chunk)
        if array.size:
            known = channels.add([array]) if array.ndim == 2 else Channels(only=channel)
            yield mix(array, known, f"The stream, from {start / rate:g} s on: ")
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


__all__ = ["open_stream"]
