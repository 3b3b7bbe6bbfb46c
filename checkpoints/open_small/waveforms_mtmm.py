"""Arrays of samples: their scale, their channels, and whether there is a signal in them.

A leaf file: it is uploaded to the Hub with the others, is part of the runtime, and imports none of them.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)
# Full scale of integer PCM, by NumPy's type names; uint8 is centred on 128.
PCM_SCALE = {"int8": 2**7, "uint8": 2**7, "int16": 2**15, "int32": 2**31}
MAX_CHANNELS = 32
LOWEST_RATE, HIGHEST_RATE = 1000, 10**6  # Hz; 16 is meant to be kHz
MAX_AMPLITUDE = 8.0  # float waveforms lie in −1 to 1; far above, somebody forgot to scale PCM
CHUNK = 16000  # samples in which channels are compared: about a second
DEAD = 1e-4  # of the loudest channel's power: below, a channel carries nothing
CANCELLED = 0.25  # power of the sum of channels ÷ sum of their powers; 1 of those that differ
SILENT = 1e-4  # amplitude about the mean; dither of 16 bits has 3e-5 to 6e-5
# The amplitude of two steps where they are coarser: idle noise and dither of old codings and of 8 bits.
COARSE = dict.fromkeys(("uint8", "int8", "PCM_U8", "PCM_S8"), 2**-6)
COARSE |= dict.fromkeys(("ULAW", "ALAW", "GSM610"), 2**-11)
EDGE = 200  # samples where a filter rings at a constant's beginning and end


def refuse(wrong: Mapping[str, bool], place: str = "") -> None:
    """Raise a ValueError of the first text whose condition holds, with the place in front of it."""
    for text, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{place}{text}.")


class Channels:
    """Which channels of a recording are averaged, from what was heard of them so far.

    Those that carry nothing are left out, as they would halve the level. Where channels cancel each
    other, since one is inverted, the loudest is heard alone.

    Args:
        name: What the warning calls the recording.
        only: The channel to be heard, from 0; None = their mean.
    """

    def __init__(self, name: str = "The audio", only: int | None = None) -> None:
        self.name, self.only = name, only
        self.powers: Any = None  # of each channel, over all that was heard
        self.loudest: Any = 0.0  # of each channel's loudest chunk
        self.cancelled = 0.0

    def add(self, blocks: Iterable[np.ndarray]) -> "Channels":
        """Take account of arrays (time, channels)."""
        for block in blocks if self.only is None else ():
            for first in range(0, len(block), CHUNK):
                chunk = block[first : first + CHUNK].astype(np.float64)
                chunk -= chunk.mean(axis=0)
                powers = np.square(chunk).sum(axis=0)
                both = np.square(chunk.sum(axis=1)).sum()
                self.cancelled += powers.sum() * (both < CANCELLED * powers.sum())
                self.loudest = np.maximum(self.loudest, powers)
                self.powers = powers if self.powers is None else self.powers + powers
        return self

    def mix(self, array: np.ndarray) -> np.ndarray:
        """The channels (time, channels) that are heard, as one (time,).

        Raises:
            ValueError: There is no such channel.
        """
        count = array.shape[1]
        if self.only is not None:
            if self.only not in range(count):
                raise ValueError(f"There is no channel {self.only}; there are {count}, from 0.")
            return array[:, self.only].astype(np.float64)
        if count > 1 and self.cancelled > np.sum(self.powers) / 10:
            best = int(np.argmax(self.powers))
            logger.warning(
                "%s: its channels cancel each other, as when one is inverted; channel %d is heard alone",
                self.name, best,
            )  # fmt: skip
            self.only = best
            return self.mix(array)
        live = np.flatnonzero(self.loudest > DEAD * np.max(self.loudest))
        heard = array[:, live] if 0 < len(live) < count else array
        return heard.mean(axis=1, dtype=np.float64)


def to_mono(waveform: Any, channel: int | None = None) -> np.ndarray:
    """A waveform as float32 (time,), −1 to 1; integer PCM is scaled.

    Args:
        waveform: Array, tensor or sequence: (time,), (time, channels) or (channels, time), the
            shorter axis being the channels.
        channel: The one to take, from 0; None = the mean of those that carry something.

    Raises:
        TypeError: Not an array of numbers.
        ValueError: Empty, not finite, of unknown scale, or of an impossible shape.
    """
    array = as_array(waveform)
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    return mix(array, Channels(only=channel))


def as_array(waveform: Any) -> np.ndarray:
    """Numbers (time,), (time, channels) or (channels, time)."""
    if hasattr(waveform, "detach"):  # torch's, which is not imported for it
        waveform = waveform.detach().cpu().resolve_neg()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    array = np.asarray(waveform)
    if array.dtype.kind == "O":  # channels, as pandas keeps them
        array = np.asarray(array.tolist())
    # A file's bytes would pass for integers.
    is_bytes = isinstance(waveform, (bytes, bytearray, memoryview))
    if is_bytes or array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        kind = f"{type(waveform).__name__}, {array.dtype} of shape {array.shape}"
        raise TypeError(f"The audio is {kind}; give numbers (time,) or (time, channels).")
    return array


def mix(array: np.ndarray, channels: Channels, place: str = "") -> np.ndarray:
    """Numbers (time,) or (time, channels) as `to_mono` gives them.

    Args:
        array: The numbers.
        channels: What is known of the recording's; where nothing is, this is all of it.
        place: Where in a recording they are, which what is wrong begins with.
    """
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
    peak = float(np.abs(array).max())
    wrong = {
        "the audio has samples that are NaN or infinite": not np.isfinite(peak),
        f"the audio reaches {peak:g}, but floats lie in −1 to 1": peak > MAX_AMPLITUDE,
    }
    refuse(wrong, place)
    if array.ndim == 2 or channels.only is not None:
        array = array.reshape(len(array), -1)
        if channels.powers is None:
            channels.add([array])
        array = channels.mix(array)
    return np.ascontiguousarray(array, dtype=np.float32)


def has_signal(waveform: np.ndarray, idle: float = 0.0) -> bool:
    """Whether a waveform (time,) is more than silence, a constant, dither, or a click in those."""
    heard = waveform[EDGE:-EDGE]  # shorter ones are too short in any case
    level = np.quantile(np.abs(heard - np.median(heard)), 0.99) if len(heard) else 1.0
    return bool(level > max(idle, SILENT))


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
