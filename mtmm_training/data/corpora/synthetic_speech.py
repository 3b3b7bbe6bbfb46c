"""The sound of the embedded corpus: babble whose pitch, rate, tilt and level follow the arousal."""

from dataclasses import dataclass

import numpy as np

MIDPOINT = 3.0  # of the 1-5 scale; above and below it lie the quadrants
SAMPLING_RATE = 16_000
SHORTEST_S, LONGEST_S = 1.2, 4.0
WINDOW, HOP = 512, 128  # samples: 32 ms and 8 ms
FREQUENCIES = np.fft.rfftfreq(WINDOW, 1 / SAMPLING_RATE)  # Hz
# First three formants in Hz of i, e, a, o, u, schwa of an adult male.
VOWELS = np.array(
    [[280, 2250, 2900], [450, 1900, 2550], [730, 1150, 2440], [520, 880, 2400], [310, 800, 2250]]
    + [[500, 1500, 2500]],
    dtype=float,
)
FORMANT_BANDWIDTHS = np.array([90.0, 120.0, 180.0])  # Hz
FORMANT_GAINS = np.array([1.0, 0.6, 0.35])
DELIVERY_NOISE = 0.15  # of an utterance around its arousal, where the scale's half is one


@dataclass(frozen=True)
class Voice:
    """What stays the same in everything that one speaker says."""

    pitch_hz: float
    tract: float  # scale of the formant frequencies
    level_db: float  # loudness, relative to full scale
    rate: float  # syllables per second
    tilt_db: float  # fall of the source's spectrum, dB per octave


def make_voice(rng: np.random.Generator, gender: str) -> Voice:
    """Draws the voice of a woman ("F") or a man ("M")."""
    female = gender == "F"
    pitch_hz = (195 if female else 115) * 2 ** rng.normal(0, 0.12)
    tract = (1.15 if female else 1.0) * 2 ** rng.normal(0, 0.06)
    level_db, rate = -27 + rng.normal(0, 1.5), 4.6 * 2 ** rng.normal(0, 0.08)
    return Voice(pitch_hz, tract, level_db, rate, tilt_db=-8 + rng.normal(0, 0.7))


def speak(rng: np.random.Generator, voice: Voice, arousal: float, words: int) -> np.ndarray:
    """Babble as long as a sentence, in the way that the arousal asks for.

    Args:
        rng: randomness of this utterance alone.
        voice: whose it is.
        arousal: 1-5; moves pitch, pitch range, rate, spectral tilt and level.
        words: how many words the sentence has; all that the audio knows of it.

    Returns:
        Waveform (time,) at 16 kHz, -1 to 1.
    """
    delivery = (arousal - MIDPOINT) / 2 + rng.normal(0, DELIVERY_NOISE)
    rate = voice.rate * 2 ** (0.35 * delivery + rng.normal(0, 0.08))
    starts, lengths = _syllables(rng, rate, count=round(words * 1.35 + rng.normal(0, 1)))
    duration_s = np.clip(starts[-1] + lengths[-1] + 0.15, SHORTEST_S, LONGEST_S)
    # A whole number of hops, so that overlapping windows add up to the same weight everywhere.
    samples = int(duration_s * SAMPLING_RATE) // HOP * HOP
    frame_times = (np.arange(samples // HOP + WINDOW // HOP - 1) - 1) * HOP / SAMPLING_RATE

    pitch_hz = voice.pitch_hz * 2 ** ((5.0 * delivery + rng.normal(0, 1.0)) / 12)
    pitch_range = 2.0 * 2 ** (0.7 * delivery + rng.normal(0, 0.3))  # semitones
    accents = rng.normal(0, pitch_range, len(starts)) - np.linspace(0, 2, len(starts))
    sample_times = np.arange(samples) / SAMPLING_RATE
    semitones = np.interp(sample_times, starts + lengths / 2, accents)

    pulses = _glottal_pulses(rng, pitch_hz * 2 ** (semitones / 12))
    source = pulses + rng.normal(0, 0.01, samples)  # a little breath in the voice
    tilt_db = voice.tilt_db + 3.5 * delivery + rng.normal(0, 0.7)
    vowels, consonants = _spectra(rng, voice.tract, tilt_db, starts, lengths, frame_times)
    level_db = voice.level_db + 3.2 * delivery + rng.normal(0, 2.0)
    speech = (
        _at_level(_filter(source, vowels), level_db)
        + _at_level(_filter(rng.normal(0, 1, samples), consonants), level_db - 12)
        + _at_level(_room_noise(rng, samples), level_db - rng.uniform(12, 30))
    )
    return np.clip(speech, -1, 1)


def _syllables(rng: np.random.Generator, rate: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths in seconds of as many of the syllables as fit into the longest audio."""
    lengths = rng.lognormal(0, 0.2, count) / rate
    lengths[-1] *= 1.4  # phrases end slowly
    pauses = np.where(rng.random(count) < 0.12, rng.uniform(0.08, 0.25, count), 0)
    pauses[0] = rng.uniform(0.08, 0.2)
    ends = np.cumsum(lengths + pauses)
    fits = ends < LONGEST_S - 0.1
    return (ends - lengths)[fits], lengths[fits]


def _glottal_pulses(rng: np.random.Generator, pitch_hz: np.ndarray) -> np.ndarray:
    """A train of unit pulses with jitter and shimmer; pitch_hz and result are (time,)."""
    jitter = np.repeat(rng.normal(1, 0.03, len(pitch_hz) // HOP), HOP)
    cycles = np.cumsum(pitch_hz * jitter / SAMPLING_RATE)
    at = np.flatnonzero(np.diff(np.floor(cycles)) > 0)
    # A pulse falls between two samples and is shared by them, or high voices would sound rough.
    share = (np.ceil(cycles[at]) - cycles[at]) / (cycles[at + 1] - cycles[at])
    height = rng.normal(1, 0.08, len(at))
    pulses = np.zeros(len(pitch_hz))
    pulses[at] += (1 - share) * height
    pulses[at + 1] += share * height
    return pulses


def _spectra(
    rng: np.random.Generator,
    tract: float,
    tilt_db: float,
    starts: np.ndarray,
    lengths: np.ndarray,
    frame_times: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes (frames, frequencies) of the vowels' and of the consonants' filter."""
    count = len(starts)
    onsets = starts + lengths * rng.uniform(0.2, 0.45, count)  # where the vowel begins
    centres = (onsets + starts + lengths) / 2
    targets = VOWELS[rng.integers(len(VOWELS), size=count)] * tract
    targets *= 2 ** rng.normal(0, 0.05, targets.shape)
    # Formants glide from one vowel's middle to the next one's.
    formants = np.stack([np.interp(frame_times, centres, f) for f in targets.T], axis=1)
    peaks = (FREQUENCIES - formants[..., None]) / FORMANT_BANDWIDTHS[:, None]
    vowels = FORMANT_GAINS @ (1 / (1 + peaks**2)) + 0.003  # (frames, frequencies)
    vowels *= (np.maximum(FREQUENCIES, 100) / 100) ** (tilt_db / 20 / np.log10(2))
    vowels *= _bumps(frame_times, onsets, starts + lengths, rng.normal(1, 0.15, count))[:, None]

    hiss_hz = rng.uniform(2500, 6000, count) * tract
    loudness = rng.choice([0.03, 0.3, 1.0], size=count) * rng.uniform(0.5, 1, count)
    hiss = np.interp(frame_times, starts, hiss_hz)
    consonants = 1 / (1 + ((FREQUENCIES - hiss[:, None]) / 900) ** 2)
    consonants *= _bumps(frame_times, starts, onsets, loudness)[:, None]
    return vowels, consonants


def _bumps(
    times: np.ndarray, starts: np.ndarray, ends: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """One raised arch per interval and silence between them, (times,)."""
    index = np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)
    place = np.clip((times - starts[index]) / (ends - starts)[index], 0, 1)
    return heights[index] * np.sin(np.pi * place) ** 0.7


def _filter(source: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """Shape the source (time,) by one spectrum per hop, (frames, frequencies): overlap-add."""
    parts = WINDOW // HOP
    padded = np.pad(source, WINDOW - HOP)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    frames = np.fft.irfft(np.fft.rfft(frames) * magnitudes).reshape(len(frames), parts, HOP)
    hops = np.zeros((len(frames) + parts - 1, HOP))
    for part in range(parts):
        hops[part : part + len(frames)] += frames[:, part]
    return hops.ravel()[WINDOW - HOP :][: len(source)]


def _room_noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise (time,) that is stronger at low frequencies."""
    spectrum = np.fft.rfft(rng.normal(0, 1, samples))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 20), samples)


def _at_level(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """Scale to a root mean square in dB relative to full scale."""
    return waveform * 10 ** (level_db / 20) / np.sqrt(np.mean(waveform**2))
