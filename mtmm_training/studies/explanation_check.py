"""Whether explanations point at what was planted, on the embedded corpus, where that is known.

It counts how often the word on top of an explanation is one that carries the valence, and how often
the piece of time on top lies in one second of speech that was put into silence, or into calm speech;
the arousal of an utterance itself is spread over all of it. On top is the place with the largest
share, or whose absence changes the output most. Beside every rate stands that of an explanation that
knows nothing. Then: how far each dimension moves without each modality.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """One input, and which of its places were planted: spans of time, or None for valence words."""

    given: dict[str, Any]
    planted: tuple[float, float] | None


@dataclass
class Hits:
    """How often the place on top was planted, and how often a place is."""

    rate: float
    chance: float
    agreement: float


def words_probes(utterances: Sequence[Utterance]) -> list[Probe]:
    """Each utterance as it is; the words that carry its valence count as planted."""
    return [Probe({"audio": u.audio, "text": u.text}, None) for u in utterances]


def silence_probes(utterances: Sequence[Utterance], with_text: bool) -> list[Probe]:
    """A second of each utterance, somewhere in silence."""
    generator = np.random.default_rng(0)
    samples = round(LONGEST_S * SAMPLING_RATE)
    probes = []
    for utterance in utterances:
        silence = generator.normal(0, NOISE, samples).astype(np.float32)
        text = utterance.text if with_text else None
        probes.append(_plant(_middle(utterance), silence, text, generator))
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
            probes.append(_plant(_middle(aroused), background, calm.text, generator))
    return probes


def _middle(utterance: Utterance) -> np.ndarray:
    """A second of speech; none of the corpus' utterances is shorter."""
    waveform: np.ndarray = soundfile.read(utterance.audio, dtype="float32")[0]
    first = (len(waveform) - round(PLANTED_S * SAMPLING_RATE)) // 2
    return waveform[first:][: round(PLANTED_S * SAMPLING_RATE)]


def _plant(
    speech: np.ndarray, background: np.ndarray, text: str | None, generator: np.random.Generator
) -> Probe:
    start = int(generator.integers(len(background) - len(speech) + 1))
    waveform = background.copy()
    waveform[start : start + len(speech)] = speech
    audio = {"array": waveform, "sampling_rate": SAMPLING_RATE}
    seconds = start / SAMPLING_RATE, (start + len(speech)) / SAMPLING_RATE
    return Probe({"audio": audio, "text": text}, seconds)


def explain(pipe: MTMMPipeline, probes: Sequence[Probe], output: str) -> list[dict[str, Any]]:
    """The pipeline's explanation of an output, for each probe."""
    results = pipe([probe.given for probe in probes], explain=output, batch_size=BATCH_SIZE)
    return [result["explanation"] for result in results]


def count_hits(
    probes: Sequence[Probe], explanations: Sequence[dict[str, Any]], occluded: bool
) -> Hits:
    """Of the attention's shares, or of the changes by occlusion."""
    hits, chances = [], []
    for probe, explanation in zip(probes, explanations, strict=True):
        places = (explanation["occlusion"] if occluded else explanation)[_kind(probe)]
        planted = [is_planted(place, probe.planted) for place in places]
        hits.append(planted[int(np.argmax([abs(place["share"]) for place in places]))])
        chances.append(np.mean(planted))
    kind = _kind(probes[0])
    rhos = [e["agreement"][kind] for e in explanations if e["agreement"][kind] is not None]
    return Hits(float(np.mean(hits)), float(np.mean(chances)), float(np.mean(rhos)))


def _kind(probe: Probe) -> str:
    return "words" if probe.planted is None else "time"


def is_planted(place: dict[str, Any], planted: tuple[float, float] | None) -> bool:
    """A valence word, or a piece of time of which at least half is planted."""
    if planted is None:
        return re.sub(r"\W", "", place["text"]).lower() in VALENCE_WORDS
    start, end = float(place["start"]), float(place["end"])
    inside = min(end, planted[1]) - max(start, planted[0])
    return inside >= (end - start) / 2


def hit_rows(
    pipe: MTMMPipeline, utterances: Sequence[Utterance], explained: dict[str, list[dict[str, Any]]]
) -> Iterator[tuple[str, Hits]]:
    """What was planted and how it was looked for, and the hits; `explained` by output, as they are."""
    of_words = {output: explained[output] for output in ("emotion", "valence")}
    yield from _rows_of("valence words", words_probes(utterances), of_words)
    kinds = {
        "speech in silence, no text": (silence_probes(utterances, False), ("emotion", "arousal")),
        "speech in silence, text": (silence_probes(utterances, True), ("emotion", "arousal")),
        "aroused in calm speech": (arousal_probes(utterances), ("arousal",)),
    }
    for planted, (probes, outputs) in kinds.items():
        found = {output: explain(pipe, probes, output) for output in outputs}
        yield from _rows_of(planted, probes, found)


def _rows_of(
    planted: str, probes: Sequence[Probe], explained: dict[str, list[dict[str, Any]]]
) -> Iterator[tuple[str, Hits]]:
    for number, (output, explanations) in enumerate(explained.items()):
        if number == 0:  # what was read is the same for all outputs
            yield f"{planted}: attention", count_hits(probes, explanations, False)
        yield f"{planted}: occlusion, {output}", count_hits(probes, explanations, True)


def modality_rows(explained: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, float, float]]:
    """Each output's mean absolute change without audio, and without text."""
    for output, explanations in explained.items():
        changes = [e["occlusion"]["modalities"] for e in explanations]
        audio, text = (np.mean([abs(row[m]) for row in changes]) for m in ("audio", "text"))
        yield output, float(audio), float(text)


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
        raise ValueError(
            f"{folder} was not trained on the embedded corpus alone; what carries the labels of other "
            "corpora is not known."
        )
    pipe = run.pipeline()
    explained = {output: explain(pipe, words_probes(test), output) for output in OUTPUTS}
    print(f"{'place on top was planted':<46} {'rate':>6} {'chance':>7} {'agreement':>10}")
    for name, hits in hit_rows(pipe, test, explained):
        print(f"{name:<46} {hits.rate:6.3f} {hits.chance:7.3f} {hits.agreement:10.3f}", flush=True)
    print(f"\n{'mean change of the output':<46} {'no audio':>9} {'no text':>9}")
    for name, audio, text in modality_rows(explained):
        print(f"{name:<46} {audio:9.3f} {text:9.3f}", flush=True)
    print(f"{len(test)} utterances of the test split of {folder}")
