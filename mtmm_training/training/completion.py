"""What a trained fusion gets beside it, and its answers for validation and test.

The linear path and the references of --linear_path and --reference, without which the answers are
those of the best epoch, and the statistics by which it knows unfamiliar inputs.

These statistics are of the training split. From which distance on an input is unfamiliar, new speakers
say: those of the validation split, and groups of training speakers by the statistics of the others, since
one or two validation speakers tell little. A stated share is beyond the limit; the test split says how
often that is so for speakers that nothing was chosen by.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object, send_to_device

from modeling_mtmm import MTMMModel
from mtmm_training.batches.collate import groups_of, make_loader
from mtmm_training.scoring.predictions import Predictions, calibrate, predict
from mtmm_training.training.job import Job
from mtmm_training.training.linear import add_linear_path
from pooled_mtmm import MODALITIES, pooled

FALSE_FLAGS = 0.05  # share of new speakers' utterances that is called unfamiliar
MOST = 2048  # utterances of the training split; they are drawn at random
FEWEST = 40  # utterances of new speakers: of fewer the highest distance is the limit
GROUPS = 4  # of training speakers, each measured by the statistics of the others

Rows = dict[str, torch.Tensor]


class _Pooled(Exception):
    """Ends a forward pass once its states are pooled: fusion and heads are not asked."""


@torch.no_grad()
def complete(job: Job, model: MTMMModel) -> tuple[dict[str, Predictions], dict[str, Any]]:
    """Fit what the flags ask for beside the trained fusion, and predict both splits.

    Args:
        job: What was trained.
        model: The best epoch; gets the linear path and the statistics for references.

    Returns:
        Predictions of "validation", of "test" and, where references are used, of
        "test_without_reference" and "test_adapted"; and what was fitted, for results.json.
    """
    config, data = job.config, job.data
    references = None if job.references is None else job.references.give_to(model)

    def answer(split: str, given: Any = None, by: MTMMModel = model) -> Predictions:
        ids = data.ids(split)
        found = predict(by, job.loaders[split], ids, job.accelerator, given=given)
        return found.with_votes(data.splits[split], model.config.emotion_names)

    validation = answer("validation")
    told: dict[str, Any] = {}
    if references is not None:
        utterances = data.splits["validation"]
        told["reference"] = references.fit_strengths(
            utterances, validation, lambda given: answer("validation", given)
        )
    if config.linear_path:
        states: Any = job.loaders["validation"].collate_fn
        validation, told["linear_path"] = add_linear_path(
            config, model, data.splits, states, validation
        )
        model.to(job.accelerator.device)
        strength = told["linear_path"].get("speaker_strength")
        if config.reference == "speaker" and strength:  # of more speakers than validation has
            frames, domain = model.config.reference_strengths
            chosen = told["reference"]["strengths"]
            model.config.reference_strengths = (frames * strength / chosen["speaker"], domain)
            chosen["speaker"] = strength
            told["reference"]["skew"] = model.config.reference_skew
    told["unfamiliar"] = learn_familiarity(job, model)
    test = answer("test")
    told["unfamiliar"]["test"] = unfamiliar_shares(model, test.unfamiliarity)
    calibrate(model.config, validation)
    path = told.get("linear_path", {}).get("emotion")
    if path and not path["fusion"] and validation.votes is None:
        model.config.temperature = 1.0  # inner folds have calibrated it, of more speakers
    if references is None:
        return {"validation": validation, "test": test}, told
    given = references.given(data.splits["test"], test, partial(answer, "test"))
    told["reference"] |= references.describe(data.splits["test"])
    predictions = {"validation": validation, "test": answer("test", given)}
    predictions["test_without_reference"] = test
    adapted = references.adapted(data.splits["test"], test, partial(answer, "test", None))
    return predictions | ({} if adapted is None else {"test_adapted": adapted}), told


# ---- unfamiliar inputs --------------------------------------------------------------------------


def learn_familiarity(job: Job, model: MTMMModel) -> dict[str, Any]:
    """Fill the model's statistics of its training data.

    Returns:
        For results.json: "stated", the share that may be called unfamiliar, and "validation", by
        modality the share that is; nothing of a modality that training or validation lacks.
    """
    familiarity = model.add_familiarity() if model.familiarity is None else model.familiarity
    familiarity.to(job.accelerator.device)
    train, validation = (_rows_of(job, model, split) for split in ("train", "validation"))
    speakers = [job.data.splits["train"][i].speaker_id for i in _drawn(job)]
    groups = np.unique(speakers, return_inverse=True)[1] % GROUPS
    for modality in MODALITIES:
        there = ~train[modality].isnan().any(1).cpu()
        if there.sum() < 2:
            continue
        known, pairs = train[modality][there], []
        for group in range(GROUPS):  # speakers as new as those to come
            own = torch.from_numpy(groups == group)[there]
            if own.any() and (~own).sum() >= 2:
                familiarity.fit(modality, known[~own])
                pairs.append(familiarity.distances(modality, known[own]))
        familiarity.fit(modality, known)
        pairs.append(familiarity.distances(modality, validation[modality]))
        new = _limits(torch.cat(pairs, 1))
        # Directions of few utterances suit these better than new ones, which lie nearer along them.
        limits = np.maximum(new, _limits(familiarity.distances(modality, known)))
        familiarity.limit(modality, *map(float, limits))
    distances = [familiarity.distances(name, validation[name]).amax(0) for name in MODALITIES]
    shares = unfamiliar_shares(model, torch.stack(distances, 1).cpu().numpy())
    return {"stated": FALSE_FLAGS, "validation": shares}


def unfamiliar_shares(model: MTMMModel, distances: np.ndarray | None) -> dict[str, float]:
    """By modality, the share of utterances that the model calls unfamiliar.

    Args:
        model: Has the statistics.
        distances: (utterances, 2), as of its output.
    """
    familiarity = model.familiarity
    assert familiarity is not None and distances is not None
    known = [n for n in MODALITIES if familiarity.get_buffer(f"{n}_weights").any()]
    flags = np.where(np.isnan(distances), np.nan, distances > 1)
    return dict(pd.DataFrame(flags, columns=MODALITIES)[known].mean().dropna())


@torch.no_grad()
def _rows_of(job: Job, model: MTMMModel, split: str) -> Rows:
    """By modality (utterances, layers · width), the pooled states of a split, NaN where one is absent.

    Of the training split they are at most `MOST`, without augmentation. Those of one process stand
    behind those of another.
    """
    loader = job.loaders[split]
    if split == "train":
        own = _drawn(job, job.accelerator.process_index)
        batches = list(groups_of(job.config.batch_size, own))
        collate: Any = getattr(loader.collate_fn, "collate", loader.collate_fn)
        loader = make_loader(loader.dataset, batches, collate, workers=job.config.workers)
    rows: dict[str, list[np.ndarray]] = {modality: [] for modality in MODALITIES}

    def keep(module: Any, given: Any) -> None:
        for modality, (states, mask) in given[0].items():
            means = torch.where(mask.any(-1, keepdim=True), pooled(states, mask), torch.nan)
            rows[modality].extend(means.float().cpu().numpy())
        raise _Pooled

    model.eval()
    hook = model.fusion.register_forward_pre_hook(keep)
    try:
        for batch in loader:
            batch.pop("utterance_ids")
            with suppress(_Pooled):
                model(**send_to_device(batch, job.accelerator.device))
    finally:
        hook.remove()
    gathered = {name: np.array(gather_object(own), np.float32) for name, own in rows.items()}
    device = job.accelerator.device
    return {name: torch.from_numpy(own).to(device) for name, own in gathered.items()}


def _drawn(job: Job, process: int | None = None) -> list[int]:
    """Places in the training split of at most `MOST` utterances: a process's share, or all in turn."""
    drawn = np.random.default_rng(job.config.seed).permutation(len(job.data.splits["train"]))[:MOST]
    count = job.accelerator.num_processes
    shares = [drawn[i::count].tolist() for i in range(count)]
    return sum(shares, []) if process is None else shares[process]


def _limits(distances: torch.Tensor) -> np.ndarray:
    """(2,): what a stated share of the utterances exceeds, half of it in each of the two distances."""
    known = distances[:, ~distances[0].isnan()].double().cpu().numpy()
    rate = FALSE_FLAGS / 2 if known.shape[1] >= FEWEST else 0.0
    limits: np.ndarray = np.quantile(known, 1 - rate, axis=1, method="higher")
    return limits
