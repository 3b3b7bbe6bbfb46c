"""How much a trained model loses when its transcripts have errors: the test split at word error rates.

Words of the test transcripts are replaced, left out and added at random, by words of the same split;
the saved model predicts each version. The last row is the model without any transcript, where every
utterance has audio. Nothing is chosen by these numbers.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures.palette import GREY
from mtmm_training.pictures.style import new_figure, save, series_style
from mtmm_training.scoring.predictions import predict
from mtmm_training.studies.tables import write_csv
from mtmm_training.training.run import Run

# Shares of all errors, about as recognisers of conversations make them.
KINDS = {"substitution": 0.6, "deletion": 0.25, "insertion": 0.15}


def degrade(transcripts: Sequence[str], rate: float, seed: int) -> list[str]:
    """Transcripts with errors at this rate over all their words.

    Args:
        transcripts: Words are what white space separates.
        rate: Errors per word, 0 to 1.
        seed: Seed of places, kinds and words.

    Returns:
        The transcripts in their order; one whose every word is left out is "".
    """
    generator = np.random.default_rng(seed)
    texts = [transcript.split() for transcript in transcripts]
    vocabulary = sorted({word for words in texts for word in words})
    places = [(i, j) for i, words in enumerate(texts) for j in range(len(words))]
    chosen = generator.permutation(len(places))[: round(rate * len(places))]
    for place in chosen:
        i, j = places[place]
        kind = generator.choice(list(KINDS), p=list(KINDS.values()))
        word = texts[i][j]
        other = next((w for w in generator.choice(vocabulary, 2) if w != word), vocabulary[0])
        # A place keeps its number until the end: what stands there is a string of words.
        errors = {"substitution": other, "deletion": "", "insertion": f"{other} {word}"}
        texts[i][j] = errors[str(kind)]
    return [" ".join(word for word in words if word) for words in texts]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Fewest substitutions, deletions and insertions, over the references' words."""
    pairs = [(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True)]
    return sum(edit_distance(*pair) for pair in pairs) / sum(len(words) for words, _ in pairs)


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein's, in words."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        before, row = row, [i]
        for j, other in enumerate(hypothesis, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


def with_texts(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Utterance]:
    """The utterances with these transcripts; "" is none, or the old one where there is no audio."""
    return [
        dataclasses.replace(u, text=text or (None if u.audio is not None else u.text))
        for u, text in zip(utterances, texts, strict=True)
    ]


def measure(
    model: MTMMModel, processor: MTMMProcessor, utterances: Sequence[Utterance], batch_size: int
) -> dict[str, float]:
    """Metrics of the model on these utterances, by name, without those that have no value."""
    config = model.config
    raw = RawInputs(processor, list(config.emotion_names), config.dimension_names)
    batches = LengthBatches(frame_lengths(utterances), batch_size, shuffle=False)
    loader = make_loader(to_dataset(utterances), batches, raw)
    ids = [utterance.utterance_id for utterance in utterances]
    metrics = predict(model, loader, ids, Accelerator()).metrics(config, config.temperature)
    flat = {name: metrics[name] for name in ("UAR", "WAR", "macro_F1")}
    flat |= {f"CCC {name}": ccc for name, ccc in metrics["CCC"].items()}
    return {name: value for name, value in flat.items() if value is not None}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw each metric over the word error rate; dotted: without a transcript."""
    figure, axes = new_figure(6.4, 4.4)
    names = [name for name in rows[0] if name not in ("rate", "WER")]
    degraded = [row for row in rows if row["WER"] is not None]
    for i, name in enumerate(names):
        style = series_style(i)
        x, y = ([row[key] for row in degraded] for key in ("WER", name))
        axes.plot(x, y, label=name, **style)
        if rows[-1]["WER"] is None:
            axes.axhline(rows[-1][name], color=style["color"], linestyle=":", linewidth=1)
    axes.set(xlabel="word error rate of the test transcripts", ylabel="metric on the test split")
    axes.set_title("dotted: without transcripts", fontsize="medium", color=GREY)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def measure_errors(
    folder: Path, out: Path, rates: Sequence[float], *, seed: int = 0, batch_size: int = 16
) -> None:
    """Measures a run's model at every rate, and writes and prints what came out.

    Args:
        folder: A finished run, of a model that reads text.
        out: Gets wer.csv and wer.png.
        rates: Shares of the words to get wrong, 0 to 1.
        seed: Seed of places, kinds and words of the errors.
        batch_size: Utterances at once.

    Raises:
        FileNotFoundError, ValueError: There is no such run, or its test split has no transcripts.
    """
    run = Run.open(folder)
    test = run.test_utterances()
    true = [utterance.text or "" for utterance in test]
    if not any(true):
        raise ValueError(f"No test utterance of {folder} has a transcript that its model reads.")
    model, processor = run.model(), run.processor()
    rows: list[dict[str, Any]] = []
    for rate in rates:
        texts = degrade(true, rate, seed)
        metrics = measure(model, processor, with_texts(test, texts), batch_size)
        rows.append({"rate": rate, "WER": word_error_rate(true, texts)} | metrics)
    if all(utterance.audio is not None for utterance in test):
        silent = with_texts(test, [""] * len(test))
        metrics = measure(model, processor, silent, batch_size)
        rows.append({"rate": None, "WER": None} | metrics)
    write_csv(rows, out / "wer.csv")
    plot(rows, out / "wer.png")
    table = pd.DataFrame(rows, dtype=float)
    print(table.to_string(index=False, col_space=13, na_rep="–", float_format="{:.3f}".format))
    print(f"{len(test)} test utterances; wer.csv and wer.png are in {out}")
