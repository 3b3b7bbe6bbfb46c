"""How many recordings of a speaker help, and of which emotions: a curve with intervals.

Test speakers' references are drawn from their own test recordings, at random or of one emotion alone;
then all of their utterances are answered with them. The labels choose what is drawn, and score; the
references do not see them. Two kinds have as many recordings of each emotion as can be, and answer half
of a speaker's recordings by references of the other half: "mixed", which do not see the labels either,
and "told", which do.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from tqdm.auto import tqdm

from mtmm_training.batches.cache import FeatureCache
from mtmm_training.batches.collate import groups_of, make_loader, to_dataset
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures.of_runs import plot_reference_curve
from mtmm_training.scoring.intervals import paired_bootstrap
from mtmm_training.scoring.metrics import by_rows, difference, unweighted_average_recall
from mtmm_training.scoring.predictions import Predictions, predict
from mtmm_training.studies.experiments import FOLD_PREFIX
from mtmm_training.studies.tables import write_csv
from mtmm_training.training.prepare import cache_folder
from mtmm_training.training.references import References, predicted_answers
from mtmm_training.training.run import Run

SIZES = (1, 2, 4, 8, 16)
RANDOM, MIXED, TOLD = "random", "mixed", "told"
BATCH_SIZE = 32
RESAMPLES = 1000


Drawn = tuple[str, int | None]  # kind, and how many recordings of it; None = all, 0 = none


def reference_curve(folder: Path, out: Path, cache_dir: Path | None, seed: int = 0) -> pd.DataFrame:
    """Answer a run's test split with references of several sizes and kinds.

    Args:
        folder: A run that was trained with --reference speaker, an experiment of such runs, or a folder
            of experiments, such as seeds.
        out: Gets references.csv and references.png.
        cache_dir: Where the states of the test recordings are kept; the run's own if None.
        seed: Seed of what is drawn, with that of each run.

    Returns:
        The table: kind, size, UAR, its interval, and the difference to none with its interval.

    Raises:
        ValueError: A run was trained without references, or learned no emotion.
    """
    rows: dict[Drawn, list[Predictions]] = {}
    speakers: list[str] = []
    names: Sequence[str] = ()
    folds = sorted(folder.rglob(f"{FOLD_PREFIX}*")) or [folder]
    for place in tqdm(folds, desc="folds", disable=None, leave=False):
        run = Run.open(place)
        test = [u for u in run.test_utterances() if u.audio is not None]
        for drawn, predictions in answers(run, test, cache_dir, seed):
            rows.setdefault(drawn, []).append(predictions)
        speakers += [u.speaker_id for u in test]
        names = run.flags.emotions
    table = score_all(rows, speakers, names)
    write_csv(table, out / "references.csv")
    plot_reference_curve(table, out / "references.png", f"{len(set(speakers))} test speakers")
    return table


def answers(
    run: Run, test: Sequence[Utterance], cache_dir: Path | None, seed: int
) -> Iterator[tuple[Drawn, Predictions]]:
    """One run's predictions of its test split, for everything that references are drawn from."""
    model, processor = run.model(), run.processor()
    config = model.config
    if config.reference != "speaker" or "emotion" not in config.trained_outputs:
        raise ValueError(f"{run.folder} was not trained with --reference speaker and emotions.")
    place = cache_dir or cache_folder(run.flags)
    if place is None:
        raise ValueError("The run kept no states; give --cache_dir.")
    dtype = run.results["cached_states"]
    cache = FeatureCache(place, model, processor, Recordings(place), dtype=dtype)
    cache.encode(test)
    states = cache.collator(test, config.emotion_names, config.dimension_names)
    batches = list(groups_of(BATCH_SIZE, range(len(test))))
    ids, accelerator = [u.utterance_id for u in test], Accelerator(cpu=True)

    def answer(given: Any = None) -> Predictions:
        loader = make_loader(to_dataset(test), batches, states, workers=0)
        return predict(model, loader, ids, accelerator, given=given)

    plain = answer()
    yield (RANDOM, 0), plain
    references = References(model, states)
    said = predicted_answers(plain, config)
    each = [references.of(u, own) for u, own in zip(test, said, strict=True)]
    known = {name: number for number, name in enumerate(config.emotion_names)}
    told = [
        one.of_emotion(known[str(u.emotion)]) if one and u.emotion in known else one
        for u, one in zip(test, each, strict=True)
    ]
    who = np.array([u.speaker_id for u in test])

    def given(kind: str, size: int | None) -> dict[str, Any]:
        """By utterance id, what `forward` takes; without a recording of the kind, nobody's."""
        found: dict[str, Any] = {}
        for name in np.unique(who):
            own = np.flatnonzero(who == name)
            draw = np.random.default_rng([seed + run.flags.seed, len(own), *name.encode()])
            for rows, order in drawn_from(test, own, kind, draw):
                heard = [(told if kind == TOLD else each)[i] for i in order[:size]]
                whole = sum(one for one in heard if one is not None)
                arguments = model.standardisation(None, whole or None)
                found |= {test[i].utterance_id: arguments for i in rows}
        return found

    for kind in (RANDOM, *config.emotion_names, MIXED, TOLD):
        for size in (*SIZES, None):
            yield (kind, size), answer(given(kind, size))


def drawn_from(
    test: Sequence[Utterance], own: np.ndarray, kind: str, draw: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to answer, and those of the speaker in the order in which their reference takes them."""
    emotions = np.array([str(u.emotion) for u in test])
    if kind not in (MIXED, TOLD):
        return [(own, draw.permutation(own[(kind == RANDOM) | (emotions[own] == kind)]))]

    def evenly(rows: np.ndarray) -> np.ndarray:
        """Each emotion's first recording, then each one's second."""
        number = [int((emotions[rows[:i]] == emotions[row]).sum()) for i, row in enumerate(rows)]
        return rows[np.argsort(number, kind="stable")]

    first, second = np.array_split(draw.permutation(own), 2)
    return [(first, evenly(second)), (second, evenly(first))]


def score_all(
    rows: dict[Drawn, list[Predictions]], speakers: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """UAR of each kind and size over all folds together, with intervals by speaker."""
    labels = np.concatenate([p.emotion_labels for p in rows[RANDOM, 0]])
    predicted = {
        drawn: np.concatenate([p.emotion_logits.argmax(1) for p in parts])
        for drawn, parts in rows.items()
    }
    table = []
    uar = partial(unweighted_average_recall, emotions=names)
    without = by_rows(uar, labels, predicted[RANDOM, 0])
    for (kind, size), own in predicted.items():
        score = by_rows(uar, labels, own)
        line: dict[str, Any] = {"kind": kind, "size": size}
        for name, metric in (("UAR", score), ("gain", difference(score, without))):
            found = paired_bootstrap(metric, np.array(speakers), RESAMPLES)
            line |= {name: found.point, f"{name}_low": found.low, f"{name}_high": found.high}
        table.append(line)
    return pd.DataFrame(table).astype({"size": "Int64"})
