"""A call of two speakers whose turns and emotions are known, and how well a model follows it.

It is put together from a run's test utterances, a speaker on each channel with some crosstalk. The
model hears it with its channels apart, whose turns it finds itself, and mixed to one channel, with the
turns told; each without and with the speakers' own references.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from audio_mtmm import resample, to_mono
from mtmm_training.data import sounds
from mtmm_training.data.files import replacing, write_json
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures.of_answers import draw_timeline
from mtmm_training.pictures.style import save
from mtmm_training.scoring.metrics import unweighted_average_recall
from mtmm_training.studies.tables import write_csv
from mtmm_training.training.run import Run

RATE = 16000
TURNS, UTTERANCES = 24, 2  # and utterances to a turn, all of one emotion
PAUSE_S = 0.35
CROSSTALK = 0.03  # of the other channel's amplitude: 30 dB below
NOISE = 2e-4


def study_call(folder: Path, out: Path, seed: int) -> pd.DataFrame:
    """Makes the call, hears it in four ways, and writes all of it into a folder.

    Returns:
        A row for each way: channels, reference, entries of the timeline, UAR over utterances, and
        the share of utterances whose speaker is right.

    Raises:
        ValueError: The test split has fewer than two speakers with audio and emotions.
    """
    run = Run.open(folder)
    pipe, out = run.pipeline(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    usable = [u for u in run.test_utterances() if u.audio is not None and u.emotion is not None]
    truth = write_call(usable, out, seed)
    told = [{name: one[name] for name in ("start", "end", "speaker")} for one in truth]
    references = ["none"] + (["speaker"] if pipe.model.config.reference == "speaker" else [])
    rows = []
    for channels, reference in product(("apart", "mixed"), references):
        given: Any = str(out / "call.wav")
        options: dict[str, Any] = {"channel": "each"}
        if channels == "mixed":
            given, options = {"audio": given, "segments": told}, {"by": "turn"}
        answer = pipe(given, reference=reference, batch_size=8, **options)
        name = f"{channels}_{reference}"
        write_json(answer, out / f"{name}.json")
        labels = [(one["start"], one["end"], one["emotion"]) for one in truth]
        scale = pipe.model.config.dimension_range
        figure = draw_timeline(
            answer, labels, f"call, channels {channels}, reference {reference}", scale
        )
        save(figure, out / f"{name}.png")
        rows.append(
            {"channels": channels, "reference": reference} | score(answer["timeline"], truth)
        )
    write_csv(rows, out / "call.csv")
    return pd.DataFrame(rows)


def write_call(utterances: Sequence[Utterance], out: Path, seed: int) -> list[dict[str, Any]]:
    """Writes call.wav, of two channels, and truth.json: "start", "end", "speaker", "emotion"."""
    generator = np.random.default_rng(seed)
    speakers = sorted({u.speaker_id for u in utterances})[:2]
    if len(speakers) < 2:
        raise ValueError(f"A call needs two speakers; the test split has {len(speakers)}.")
    truth, blocks, now = [], [np.zeros((round(PAUSE_S * RATE), 2))], PAUSE_S
    for turn in range(TURNS):
        own = [u for u in utterances if u.speaker_id == speakers[turn % 2]]
        emotion = generator.choice(sorted({str(u.emotion) for u in own}))
        chosen = [u for u in own if u.emotion == emotion]
        for i in generator.choice(len(chosen), min(UTTERANCES, len(chosen)), replace=False):
            u = chosen[i]
            waveform, rate = sounds.waveform(str(u.audio), u.start_s, u.end_s)
            sound = trimmed(resample(to_mono(waveform), rate, RATE))
            block = np.stack([sound, CROSSTALK * sound], axis=1)
            blocks += [block if turn % 2 == 0 else block[:, ::-1], np.zeros_like(blocks[0])]
            end = now + len(sound) / RATE
            truth.append({"start": now, "end": end, "speaker": u.speaker_id, "emotion": emotion})
            now = end + PAUSE_S
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


def score(entries: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
