"""Recordings put together from a run's test utterances, and how well its model follows them.

An hour of speech has blocks of one emotion, of 20 s to a minute, one utterance after another with
short pauses; speakers change freely, neighbouring blocks differ in emotion. The run's model hears it
as one file, without a transcript, in the pipeline's own windows.

A call has two speakers, one on each channel with some crosstalk. The model hears it with its channels
apart, whose turns it finds itself, and mixed to one channel, with the turns told; each without and
with the speakers' own references.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile

from audio_mtmm import resample
from modeling_mtmm import MTMMPipeline
from mtmm_training.data import sounds
from mtmm_training.data.files import replacing, write_json
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures.of_answers import draw_timeline
from mtmm_training.pictures.style import save
from mtmm_training.scoring.metrics import confusion, unweighted_average_recall, weighted_accuracy
from mtmm_training.scoring.texts import say
from mtmm_training.studies.tables import write_csv
from mtmm_training.training.run import Run
from timeline_mtmm import WINDOW_S
from waveforms_mtmm import to_mono

RATE = 16000
BLOCK_S = (20.0, 60.0)  # a block ends with the utterance that reaches a length drawn from these
PAUSE_S = 0.3  # after every utterance
STEP_S = 0.1  # between the instants at which timeline and truth are compared
SHIFTS = 1000  # of the truth in time, to see what chance gives

TURNS, UTTERANCES = 24, 2  # of a call, and utterances to a turn, all of one emotion
CALL_PAUSE_S = 0.35
CROSSTALK = 0.03  # of the other channel's amplitude: 30 dB below
NOISE = 2e-4


class Span(NamedTuple):
    """An emotion from one time to another, in seconds."""

    start_s: float
    end_s: float
    emotion: str


def usable(run: Run) -> list[Utterance]:
    """The run's test utterances with audio and an emotion."""
    return [u for u in run.test_utterances() if u.audio is not None and u.emotion is not None]


def sound_of(utterance: Utterance) -> np.ndarray:
    """What an utterance sounds like, mono at `RATE`."""
    span = utterance.start_s, utterance.end_s
    waveform, rate = sounds.waveform(str(utterance.audio), *span)
    return resample(to_mono(waveform), rate, RATE)


def write_answer(
    answer: Mapping[str, Any], truth: Sequence[Span], pipe: MTMMPipeline, title: str, path: Path
) -> None:
    """Writes an answer with a timeline as PATH.json, and its picture beside the truth as PATH.png."""
    write_json(answer, path.with_suffix(".json"))
    figure = draw_timeline(answer, truth, title, pipe.model.config.dimension_range)
    save(figure, path.with_suffix(".png"))


# ---- an hour -----------------------------------------------------------------------------------


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
        raise ValueError(f"The only emotions are {emotions}; changes need two or more.")
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
                sound = np.concatenate([sound_of(next(turns[emotion])), pause])[: total - written]
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
    by_chance = [unweighted_average_recall(np.roll(labels, n), answers, emotions) for n in shifts]
    edges = np.array([block.end_s for block in truth])
    inside = [s for s in timeline if not ((s.start_s < edges) & (edges < s.end_s)).any()]
    middles = np.array([(span.start_s + span.end_s) / 2 for span in inside])
    own_labels, own_answers = (_emotions_at(middles, spans, emotions) for spans in (truth, inside))
    return {
        "confusion": STEP_S * confusion(labels, answers, emotions),
        "UAR": unweighted_average_recall(labels, answers, emotions),
        "WAR": weighted_accuracy(labels, answers),
        "windows": len(inside),
        "UAR_windows": unweighted_average_recall(own_labels, own_answers, emotions),
        "chance": float(np.mean(by_chance)),
        "chance_highest": max(by_chance),
    }


def _emotions_at(times: np.ndarray, spans: Sequence[Span], emotions: Sequence[str]) -> np.ndarray:
    """Index of the emotion at each time: of the last span that begins before it."""
    starts = [span.start_s for span in spans]
    indices = np.array([emotions.index(span.emotion) for span in spans], dtype=np.int64)
    return indices[np.searchsorted(starts, times, side="right") - 1]


def run_hour(folder: Path, out: Path, seconds: float = 3600.0, seed: int = 0) -> None:
    """Makes the recording, predicts it, and writes and prints what came out.

    Args:
        folder: A finished run.
        out: Gets recording.wav, truth.csv, timeline.json and timeline.png.
        seconds: Length of the recording; two minutes hold two blocks.
        seed: Seed of the recording's order.
    """
    run = Run.open(folder)
    test = usable(run)
    predict = run.pipeline()
    model, processor = predict.model, predict.processor
    if "emotion" not in model.config.trained_outputs:
        raise ValueError(f"The model of {folder} never saw an emotion; give a run that did.")
    import resource  # here: the call's study needs none, and Windows lacks it

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
    scores = score(windows, truth, emotions)
    title = f"{seconds / 60:g} minutes in {len(truth)} blocks of one emotion each"
    write_answer(result, truth, predict, title, out / "timeline")
    told = {"seconds": seconds, "took_s": took_s, "peak": peak, "shifts": SHIFTS, "out": out}
    say("hour.txt", windows=windows, scores=scores, emotions=emotions, **told)


# ---- a call ------------------------------------------------------------------------------------


def study_call(folder: Path, out: Path, seed: int) -> pd.DataFrame:
    """Makes the call, hears it in four ways, and writes all of it into a folder.

    Returns:
        A row for each way: channels, reference, entries of the timeline, UAR over utterances, and
        the share of utterances whose speaker is right.

    Raises:
        ValueError: The test split has fewer than two speakers with audio and emotions.
    """
    run = Run.open(folder)
    pipe = run.pipeline()
    truth = write_call(usable(run), out, seed)
    told = [{name: one[name] for name in ("start", "end", "speaker")} for one in truth]
    labels = [Span(one["start"], one["end"], one["emotion"]) for one in truth]
    references = ["none"] + (["speaker"] if pipe.model.config.reference == "speaker" else [])
    rows = []
    for channels, reference in product(("apart", "mixed"), references):
        given: Any = str(out / "call.wav")
        options: dict[str, Any] = {"channel": "each"}
        if channels == "mixed":
            given, options = {"audio": given, "segments": told}, {"by": "turn"}
        answer = pipe(given, reference=reference, batch_size=8, **options)
        name = f"{channels}_{reference}"
        title = f"call, channels {channels}, reference {reference}"
        write_answer(answer, labels, pipe, title, out / name)
        scores = score_call(answer["timeline"], truth)
        rows.append({"channels": channels, "reference": reference} | scores)
    write_csv(rows, out / "call.csv")
    return pd.DataFrame(rows)


def write_call(utterances: Sequence[Utterance], out: Path, seed: int) -> list[dict[str, Any]]:
    """Writes call.wav, of two channels, and truth.json: "start", "end", "speaker", "emotion"."""
    generator = np.random.default_rng(seed)
    speakers = sorted({u.speaker_id for u in utterances})[:2]
    if len(speakers) < 2:
        raise ValueError(f"A call needs two speakers; the test split has {len(speakers)}.")
    truth, blocks, now = [], [np.zeros((round(CALL_PAUSE_S * RATE), 2))], CALL_PAUSE_S
    for turn in range(TURNS):
        own = [u for u in utterances if u.speaker_id == speakers[turn % 2]]
        emotion = generator.choice(sorted({str(u.emotion) for u in own}))
        chosen = [u for u in own if u.emotion == emotion]
        for i in generator.choice(len(chosen), min(UTTERANCES, len(chosen)), replace=False):
            u = chosen[i]
            sound = trimmed(sound_of(u))
            block = np.stack([sound, CROSSTALK * sound], axis=1)
            blocks += [block if turn % 2 == 0 else block[:, ::-1], np.zeros_like(blocks[0])]
            end = now + len(sound) / RATE
            truth.append({"start": now, "end": end, "speaker": u.speaker_id, "emotion": emotion})
            now = end + CALL_PAUSE_S
    call = np.concatenate(blocks)
    call += generator.normal(0, NOISE, call.shape)
    with replacing(out / "call.wav") as temporary:
        soundfile.write(temporary, np.clip(call, -1, 1), RATE, subtype="PCM_16", format="WAV")
    write_json({"turns": truth}, out / "truth.json")
    return truth


def trimmed(sound: np.ndarray) -> np.ndarray:
    """Without the silence at both ends."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1] if len(loud) else sound


def score_call(
    entries: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Each utterance is answered by the entry that overlaps it most; channel 1 is the first speaker."""
    heard = []
    for one in truth:
        shared = [min(e["end"], one["end"]) - max(e["start"], one["start"]) for e in entries]
        heard.append(entries[int(np.argmax(shared))])
    names = sorted({one["emotion"] for one in truth} | {str(e["emotion"]) for e in entries})
    labels, answers = (
        np.array([names.index(str(one["emotion"])) for one in side]) for side in (truth, heard)
    )
    first = truth[0]["speaker"]
    right = [
        e["speaker"] in (one["speaker"], f"channel {1 if one['speaker'] == first else 2}")
        for e, one in zip(heard, truth, strict=True)
    ]
    uar = unweighted_average_recall(labels, answers, names)
    return {"entries": len(entries), "UAR": uar, "speaker right": float(np.mean(right))}
