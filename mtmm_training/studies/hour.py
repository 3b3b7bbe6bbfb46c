"""An hour of speech whose changes of emotion are known, and how well a model's timeline finds them.

The recording is put together from a run's test utterances: blocks of one emotion, of 20 s to a
minute, one utterance after another with short pauses; speakers change freely, neighbouring blocks
differ in emotion. The run's model hears it as one file, without a transcript, in the pipeline's
own windows.
"""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from audio_mtmm import resample, to_mono
from mtmm_training.data import sounds
from mtmm_training.data.files import replacing, write_json
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures.of_answers import draw_timeline
from mtmm_training.pictures.style import save
from mtmm_training.scoring.metrics import confusion, unweighted_average_recall, weighted_accuracy
from mtmm_training.studies.tables import write_csv
from mtmm_training.training.run import Run
from timeline_mtmm import WINDOW_S

RATE = 16000
BLOCK_S = (20.0, 60.0)  # a block ends with the utterance that reaches a length drawn from these
PAUSE_S = 0.3  # after every utterance
STEP_S = 0.1  # between the instants at which timeline and truth are compared
SHIFTS = 1000  # of the truth in time, to see what chance gives


class Span(NamedTuple):
    """An emotion from one time to another, in seconds."""

    start_s: float
    end_s: float
    emotion: str


# ---- the recording -----------------------------------------------------------------------------


def write_recording(
    utterances: Sequence[Utterance], path: Path, seconds: float, seed: int
) -> list[Span]:
    """Put utterances together to a wav file of 16 kHz, one at a time in memory.

    Args:
        utterances: With audio and emotion, of two emotions or more. All of an emotion are heard once,
            in random order, before any is heard again.
        path: The file; written under a temporary name first.
        seconds: Length of the file; its last utterance is cut there.
        seed: Seed of lengths, emotions and order.

    Returns:
        The blocks, in order and without gaps.

    Raises:
        ValueError: Fewer than two emotions.
    """
    generator = np.random.default_rng(seed)
    emotions = sorted({u.emotion for u in utterances if u.emotion is not None})
    if len(emotions) < 2:
        raise ValueError(
            f"The utterances have {emotions or 'no emotion'} only; changes need two emotions or more."
        )
    turns = {
        emotion: _in_turn([u for u in utterances if u.emotion == emotion], generator)
        for emotion in emotions
    }
    pause = np.zeros(round(PAUSE_S * RATE), np.float32)
    blocks: list[Span] = []
    emotion, written, total = None, 0, round(seconds * RATE)
    with (
        replacing(path) as temporary,
        soundfile.SoundFile(temporary, "w", RATE, 1, "PCM_16", format="WAV") as file,
    ):
        while written < total:
            emotion = str(generator.choice([name for name in emotions if name != emotion]))
            start, length = written, RATE * generator.uniform(*BLOCK_S)
            while written < min(start + length, total):
                heard = next(turns[emotion])
                span = heard.start_s, heard.end_s
                waveform, rate = sounds.waveform(str(heard.audio), *span)
                sound = resample(to_mono(waveform), rate, RATE)
                sound = np.concatenate([sound, pause])[: total - written]
                file.write(sound)
                written += len(sound)
            blocks.append(Span(start / RATE, written / RATE, emotion))
    return blocks


def _in_turn(
    utterances: Sequence[Utterance], generator: np.random.Generator
) -> Iterator[Utterance]:
    """All in random order, then all in another, without end."""
    while True:
        yield from (utterances[i] for i in generator.permutation(len(utterances)))


# ---- the timeline against the truth ------------------------------------------------------------


def score(
    timeline: Sequence[Span], truth: Sequence[Span], emotions: Sequence[str]
) -> dict[str, Any]:
    """Compare the emotions of a timeline with the truth, at instants 0.1 s apart.

    Args:
        timeline: In order, over the whole recording; where two overlap, the later one counts.
        truth: In order and without gaps.
        emotions: Names, of all that may occur.

    Returns:
        "confusion": (emotions, emotions) seconds, rows are the truth. "UAR", "WAR": over time.
        "windows", "UAR_windows": how many windows lie in one block, and the UAR of those alone (NaN
        without any). "chance", "chance_highest": mean and maximum of the UAR that the same
        timeline has where the truth is shifted in time, in a circle, by `SHIFTS` random amounts.
    """
    times = np.arange(STEP_S / 2, truth[-1].end_s, STEP_S)
    labels, answers = (_emotions_at(times, spans, emotions) for spans in (truth, timeline))
    shifts = np.random.default_rng(0).integers(1, len(times), SHIFTS)
    by_chance = [
        unweighted_average_recall(np.roll(labels, shift), answers, emotions) for shift in shifts
    ]
    edges = np.array([block.end_s for block in truth])
    inside = [s for s in timeline if not ((s.start_s < edges) & (edges < s.end_s)).any()]
    middles = np.array([(span.start_s + span.end_s) / 2 for span in inside])
    inside_labels, inside_answers = (
        _emotions_at(middles, spans, emotions) for spans in (truth, inside)
    )
    return {
        "confusion": STEP_S * confusion(labels, answers, emotions),
        "UAR": unweighted_average_recall(labels, answers, emotions),
        "WAR": weighted_accuracy(labels, answers),
        "windows": len(inside),
        "UAR_windows": unweighted_average_recall(inside_labels, inside_answers, emotions),
        "chance": float(np.mean(by_chance)),
        "chance_highest": max(by_chance),
    }


def _emotions_at(times: np.ndarray, spans: Sequence[Span], emotions: Sequence[str]) -> np.ndarray:
    """Index of the emotion at each time: of the last span that begins before it."""
    starts = [span.start_s for span in spans]
    indices = np.array([emotions.index(span.emotion) for span in spans], dtype=np.int64)
    return indices[np.searchsorted(starts, times, side="right") - 1]


# ---- the study ---------------------------------------------------------------------------------


def run_hour(folder: Path, out: Path, seconds: float = 3600.0, seed: int = 0) -> None:
    """Makes the recording, predicts it, and writes and prints what came out.

    Args:
        folder: A finished run.
        out: Gets recording.wav, truth.csv, timeline.json and timeline.png.
        seconds: Length of the recording; two minutes hold two blocks.
        seed: Seed of the recording's order.
    """
    run = Run.open(folder)
    test = [u for u in run.test_utterances() if u.audio is not None and u.emotion is not None]
    predict = run.pipeline()
    model, processor = predict.model, predict.processor
    if "emotion" not in model.config.trained_outputs:
        raise ValueError(f"The model of {folder} never saw an emotion; give a run that did.")
    emotions = list(model.config.emotion_names)
    truth = write_recording(test, out / "recording.wav", seconds, seed)
    write_csv(truth, out / "truth.csv")
    lengths = [block.end_s - block.start_s for block in truth]
    print(
        f"{seconds:g} s: {len(truth)} blocks of {min(lengths):.0f} to {max(lengths):.0f} s, from "
        f"{len(test)} test utterances of {', '.join(sorted({u.speaker_id for u in test}))}"
    )
    began = time.perf_counter()
    window_s = min(WINDOW_S, processor.longest_audio_s())  # its own, for a short recording too
    result = predict(str(out / "recording.wav"), window_s=window_s)
    took_s = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    windows = [Span(e["start"], e["end"], e["emotion"]) for e in result["timeline"]]
    print(
        f"{len(windows)} windows of {windows[0].end_s:g} s, predicted in {took_s:.0f} s "
        f"({seconds / took_s:.1f} times as fast as speech); peak memory {peak / 2**20:.0f} MiB"
    )
    scores = score(windows, truth, emotions)
    print(f"{'truth ↓, seconds as →':<22}" + "".join(f"{name:>10}" for name in emotions))
    for name, row in zip(emotions, scores["confusion"], strict=True):
        print(f"{name:<22}" + "".join(f"{seconds:>10.0f}" for seconds in row))
    print(
        f"over time: UAR {scores['UAR']:.3f}, WAR {scores['WAR']:.3f}; of the {scores['windows']} windows "
        f"that lie in one block: UAR {scores['UAR_windows']:.3f}"
    )
    print(
        f"chance, the truth shifted {SHIFTS} times: UAR {scores['chance']:.3f} on average, "
        f"{scores['chance_highest']:.3f} at most"
    )
    write_json(result, out / "timeline.json")
    title = f"{seconds / 60:g} minutes in {len(truth)} blocks of one emotion each"
    figure = draw_timeline(result, truth, title, model.config.dimension_range)
    save(figure, out / "timeline.png")
    print(f"recording.wav, truth.csv, timeline.json and timeline.png are in {out}")
