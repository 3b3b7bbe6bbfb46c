"""Whether explanations point at what was planted, on the embedded corpus, where that is known.

It counts how often the word on top of an explanation is one that carries the valence, and how often
the piece of time on top lies in one second of speech that was put into silence, or into calm speech;
the arousal of an utterance itself is spread over all of it. On top is the place with the largest
share, or whose absence changes the output most. Beside every rate stands that of an explanation that
knows nothing. Then: how far each dimension moves without each modality.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from modeling_mtmm import MTMMPipeline
from mtmm_training.data.corpora.synthetic import CORPUS, POLAR_WORDS
from mtmm_training.data.corpora.synthetic_speech import LONGEST_S, MIDPOINT, SAMPLING_RATE
from mtmm_training.data.utterances import Utterance
from mtmm_training.training.run import Run

# All words that say something about the valence: the opinions, and what turns them round.
VALENCE_WORDS = {"not", *(w for levels in POLAR_WORDS.values() for level in levels for w in level)}
PLANTED_S = 1.0
NOISE = 1e-4  # of the silence, as of a microphone
OUTPUTS = ("emotion", "valence", "arousal")
BATCH_SIZE = 32


@dataclass
class Probe:
    """One input, and which of its places were planted: a span of time, or None for valence words."""

    given: dict[str, Any]
    planted: tuple[float, float] | None


class Hits(NamedTuple):
    """How often the place on top was planted, and how often a place is."""

    rate: float
    chance: float
    agreement: float


def silence_probes(utterances: Sequence[Utterance], with_text: bool) -> list[Probe]:
    """A second of each utterance, somewhere in silence."""
    generator = np.random.default_rng(0)
    samples = round(LONGEST_S * SAMPLING_RATE)
    probes = []
    for utterance in utterances:
        silence = generator.normal(0, NOISE, samples).astype(np.float32)
        text = utterance.text if with_text else None
        probes.append(_plant(utterance, silence, text, generator))
    return probes


def arousal_probes(utterances: Sequence[Utterance]) -> list[Probe]:
    """A second of an aroused utterance, somewhere in a calm one of the same speaker."""
    generator = np.random.default_rng(0)
    probes = []
    calm_ones = [u for u in utterances if u.arousal is not None and u.arousal < MIDPOINT]
    aroused_ones = [u for u in utterances if u.arousal is not None and u.arousal > MIDPOINT]
    for calm in calm_ones:
        own = [u for u in aroused_ones if u.speaker_id == calm.speaker_id]
        if own:
            aroused = own[generator.integers(len(own))]
            background = soundfile.read(calm.audio, dtype="float32")[0]
            probes.append(_plant(aroused, background, calm.text, generator))
    return probes


def _plant(
    utterance: Utterance, background: np.ndarray, text: str | None, generator: np.random.Generator
) -> Probe:
    """The middle second of an utterance, somewhere in the background."""
    speech: np.ndarray = soundfile.read(utterance.audio, dtype="float32")[0]
    size = round(PLANTED_S * SAMPLING_RATE)  # none of the corpus's utterances is shorter
    start = int(generator.integers(len(background) - size + 1))
    waveform = background.copy()
    waveform[start : start + size] = speech[(len(speech) - size) // 2 :][:size]
    audio = {"array": waveform, "sampling_rate": SAMPLING_RATE}
    seconds = start / SAMPLING_RATE, (start + size) / SAMPLING_RATE
    return Probe({"audio": audio, "text": text}, seconds)


def explain(pipe: MTMMPipeline, probes: Sequence[Probe], output: str) -> list[dict[str, Any]]:
    """The pipeline's explanation of an output, for each probe."""
    results = pipe([probe.given for probe in probes], explain=output, batch_size=BATCH_SIZE)
    return [result["explanation"] for result in results]


def count_hits(
    probes: Sequence[Probe], explanations: Sequence[dict[str, Any]], occluded: bool
) -> Hits:
    """Of the attention's shares, or of the changes by occlusion."""
    kind = "words" if probes[0].planted is None else "time"
    hits, chances = [], []
    for probe, explanation in zip(probes, explanations, strict=True):
        places = (explanation["occlusion"] if occluded else explanation)[kind]
        planted = [is_planted(place, probe.planted) for place in places]
        hits.append(planted[int(np.argmax([abs(place["share"]) for place in places]))])
        chances.append(np.mean(planted))
    rhos = [e["agreement"][kind] for e in explanations if e["agreement"][kind] is not None]
    return Hits(float(np.mean(hits)), float(np.mean(chances)), float(np.mean(rhos)))


def is_planted(place: dict[str, Any], planted: tuple[float, float] | None) -> bool:
    """A valence word, or a piece of time of which at least half is planted."""
    if planted is None:
        return re.sub(r"\W", "", place["text"]).lower() in VALENCE_WORDS
    start, end = float(place["start"]), float(place["end"])
    inside = min(end, planted[1]) - max(start, planted[0])
    return inside >= (end - start) / 2


def check_explanations(folder: Path, utterances: int | None = None) -> None:
    """Explains a run's test utterances, and prints the rates.

    Args:
        folder: A finished run on the embedded corpus.
        utterances: At most so many; all of the split if None.

    Raises:
        FileNotFoundError, ValueError: There is no such run, or it was on other data.
    """
    run = Run.open(folder)
    test = run.test_utterances()[:utterances]
    if any(utterance.corpus != CORPUS for utterance in test):
        raise ValueError(f"{folder} was not trained on the embedded corpus alone.")
    pipe = run.pipeline()
    words = [Probe({"audio": u.audio, "text": u.text}, None) for u in test]
    explained = {output: explain(pipe, words, output) for output in OUTPUTS}
    kinds = {
        "valence words": (words, ("emotion", "valence")),
        "speech in silence, no text": (silence_probes(test, False), ("emotion", "arousal")),
        "speech in silence, text": (silence_probes(test, True), ("emotion", "arousal")),
        "aroused in calm speech": (arousal_probes(test), ("arousal",)),
    }
    print(f"{'place on top was planted':<46} {'rate':>6} {'chance':>7} {'agreement':>10}")
    for planted, (probes, outputs) in kinds.items():
        found = explained
        if probes is not words:
            found = {output: explain(pipe, probes, output) for output in outputs}
        ways = {"attention": (outputs[0], False)}  # what was read is the same for all outputs
        ways |= {f"occlusion, {output}": (output, True) for output in outputs}
        for way, (output, occluded) in ways.items():
            hits = count_hits(probes, found[output], occluded)
            numbers = "{:6.3f} {:7.3f} {:10.3f}".format(*hits)
            print(f"{f'{planted}: {way}':<46} {numbers}", flush=True)
    print(f"\n{'mean change of the output':<46} {'no audio':>9} {'no text':>9}")
    for output, explanations in explained.items():
        changes = [e["occlusion"]["modalities"] for e in explanations]
        audio, text = (np.mean([abs(row[m]) for row in changes]) for m in ("audio", "text"))
        print(f"{output:<46} {audio:9.3f} {text:9.3f}", flush=True)
    print(f"{len(test)} utterances of the test split of {folder}")
