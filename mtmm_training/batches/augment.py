"""Augmentation: other recordings of the same utterance, and cached states with gaps.

Every training utterance has K variants beside the original. Which changes a variant has is drawn
from (seed, utterance id, variant) and written into `Utterance.augmentation`; what is done to its
waveform follows from that alone. So workers, processes, resumed runs and the cache agree.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import soxr

from audio_mtmm import resample
from mtmm_training.data.utterances import Utterance
from processing_mtmm import MTMMProcessor
from waveforms_mtmm import MAX_AMPLITUDE, to_mono

# Each change with the range that its strength is drawn from, evenly. All are small enough to leave
# the emotion what it is; pitch and pace, which carry it, move by no more than between two speakers.
CHANGES = {
    "speed": (0.8, 1.25),  # times as fast, and as high: played at another speed
    "noise": (15.0, 30.0),  # signal to noise in decibels; the noise is pink, as rooms' is
    "lowpass": (3400.0, 7000.0),  # Hz: from a telephone's band up
    "gain": (-6.0, 6.0),  # decibels; a feature extractor that normalises waveforms undoes it
}


def add_variants(
    utterances: Sequence[Utterance], changes: Sequence[str], variants: int, seed: int
) -> list[list[Utterance]]:
    """The utterances as they are, then each of their variants.

    Args:
        utterances: The training split; those without audio stay as they are.
        changes: Names of CHANGES; a variant has all of them, each in a strength of its own. None:
            no variants.
        variants: How many.
        seed: With utterance id and variant it decides what is drawn.

    Returns:
        1 + `variants` lists of the same utterances, in the same order.
    """
    numbers = range(1, 1 + variants) if changes else ()
    changed = [[_variant(u, changes, number, seed) for u in utterances] for number in numbers]
    return [list(utterances), *changed]


def _variant(utterance: Utterance, changes: Sequence[str], number: int, seed: int) -> Utterance:
    if utterance.audio is None:
        return utterance
    draw = random.Random(f"augmentation/{seed}/{utterance.utterance_id}/{number}")
    # All are drawn, so that one change does not depend on which others are asked for.
    drawn: dict[str, float] = {name: round(draw.uniform(*CHANGES[name]), 4) for name in CHANGES}
    kept: dict[str, Any] = {name: drawn[name] for name in CHANGES if name in changes}
    if "noise" in kept:
        kept |= {"noise_seed": draw.getrandbits(32), "numpy": np.__version__}
    return replace(utterance, augmentation=json.dumps(kept))


def speed_of(utterance: Utterance) -> float:
    """How many times as fast as the recording this utterance is, but for an encoder's limits."""
    return json.loads(utterance.augmentation or "{}").get("speed", 1.0)


def augment(
    waveform: np.ndarray, sampling_rate: int, augmentation: str, processor: MTMMProcessor
) -> np.ndarray:
    """What a variant sounds like, at the encoder's sampling rate: float32, (time,).

    What the processor takes without changes, it takes with them: where another speed would make it
    longer or shorter than the encoder takes, it is changed only so far as it still fits, and nothing
    is cut off; gain stops at the processor's limit. What is too short stays as it is.

    Args:
        waveform: As decoded, (time,) or (time, channels).
        sampling_rate: The waveform's, Hz.
        augmentation: What [`add_variants`] wrote into an utterance.
        processor: Knows the encoder's rate and limits.
    """
    changes, rate = json.loads(augmentation), processor.sampling_rate
    waveform = resample(to_mono(waveform), sampling_rate, rate)
    length, shortest = len(waveform), int(np.ceil(processor.min_duration_s * rate))
    if length < shortest:
        return waveform
    if "speed" in changes:
        longest = max(int(processor.longest_audio_s() * rate), length)
        wanted = np.clip(round(length / changes["speed"]), shortest, longest)
        waveform = _resized(waveform, int(wanted))
    if "noise" in changes:
        noise = pink_noise(len(waveform), changes["noise_seed"])
        ratio = 10 ** (-changes["noise"] / 20)
        waveform = waveform + ratio * np.sqrt(np.mean(np.square(waveform))) * noise
    if "lowpass" in changes:
        narrow = soxr.resample(waveform, rate, 2 * changes["lowpass"])
        waveform = _resized(narrow, len(waveform))
    if "gain" in changes:
        waveform = waveform * 10 ** (changes["gain"] / 20)
    return np.clip(waveform, -MAX_AMPLITUDE, MAX_AMPLITUDE).astype(np.float32)


def _resized(waveform: np.ndarray, length: int) -> np.ndarray:
    """The waveform resampled to so many samples."""
    return soxr.resample(waveform, len(waveform), length) if len(waveform) != length else waveform


def pink_noise(length: int, seed: int) -> np.ndarray:
    """Gaussian noise whose power falls with frequency, 1/f: float64, (length,), mean square 1."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(length))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, length)
    return noise / max(np.sqrt(np.mean(np.square(noise))), np.finfo(np.float64).tiny)
