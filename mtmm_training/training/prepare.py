"""From flags to the utterances, folds and splits of a run."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from configuration_mtmm import MTMMConfig
from mtmm_training.batches.collate import find_bad, unusable
from mtmm_training.data.corpora import CORPORA, read_corpus
from mtmm_training.data.files import read_json, without_collection
from mtmm_training.data.folds import (
    Fold,
    fold_from_speakers,
    load_folds,
    make_folds,
    script_of,
    select,
)
from mtmm_training.data.manifest import UNKNOWN_SPEAKER, column_of, read_manifests
from mtmm_training.data.record import settings_of
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import (
    OTHER,
    RATINGS,
    SPLITS,
    Utterance,
    digest,
    few,
    without_fields,
)
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import load_processor, planned


@dataclass(frozen=True)
class FoldData:
    """The data of one fold, read and checked.

    Args:
        name: The fold's name.
        splits: Utterances by split, with the labels of trained outputs alone.
        outputs: Names of the outputs that train.
        counts: What [`describe_split`] says of each split.
        bad: What is wrong with utterances that --on_error skip left out, by id.
        recordings: What is known of the audio files.
        settings: What results depend on: the flags, who was skipped, and digests of the splits.
    """

    name: str
    splits: dict[str, list[Utterance]]
    outputs: tuple[str, ...]
    counts: dict[str, dict[str, Any]]
    bad: dict[str, str]
    recordings: Recordings
    settings: dict[str, Any]

    def ids(self, split: str) -> list[str]:
        """The utterance ids of a split, in order."""
        return [u.utterance_id for u in self.splits[split]]


@dataclass(frozen=True)
class Data:
    """All that the flags name, read.

    Args:
        utterances: All that can be used, with the modalities that the model may see alone.
        bad: What is wrong with utterances that --on_error skip left out, by id.
        folds: All folds that the flags describe, of which --fold chooses one.
        recordings: What is known of the audio files.
    """

    utterances: list[Utterance]
    bad: dict[str, str]
    folds: list[Fold]
    recordings: Recordings


@without_collection()
def prepare_fold(config: TrainConfig) -> FoldData:
    """Read the data, choose the fold, and refuse one that does not suit the settings.

    With `encode_only` it is what is encoded for all folds, labelled or not: as "train" what trains in
    any of them, as "others" the rest.
    """
    known = planned(config)
    data = read_data(config)
    if config.encode_only:
        training = {name for fold in data.folds for name in fold.train}
        splits: dict[str, list[Utterance]] = {"train": [], "others": []}
        for u in data.utterances:
            splits["train" if u.utterance_id in training else "others"].append(u)
        outputs = tuple(known.loss_weights)
        return FoldData("all", splits, outputs, {}, data.bad, data.recordings, {})
    if config.fold >= len(data.folds):
        raise ValueError(
            f"`--fold {config.fold}` does not exist: there are {len(data.folds)}, counted from 0."
        )
    fold = data.folds[config.fold]
    chosen = select(data.utterances, fold)
    settings = settings_of(config) | {"skipped": sorted(data.bad)}
    settings |= {f"{name} split": digest(members) for name, members in chosen.items()}
    outputs, splits, counts = check_fold(config, known, chosen)
    return FoldData(fold.name, splits, outputs, counts, data.bad, data.recordings, settings)


def read_data(config: TrainConfig) -> Data:
    """Read what the flags name, leave out what --on_error skip leaves out, and make the folds."""
    folder = cache_folder(config)
    processor = load_processor(config) if config.on_error == "skip" else None
    utterances, bad = read_all(config), dict[str, str]()
    if processor is not None:  # before any folds are made: all that follows is of these utterances
        bad = find_bad(utterances, processor, config.workers)
        if len(bad) == len(utterances):
            raise ValueError(unusable(bad, utterances))
        if bad and PartialState().is_main_process:
            print(f"skipped: {unusable(bad, utterances)}")
        utterances = [u for u in utterances if u.utterance_id not in bad]
    recordings = Recordings(folder)
    how: dict[str, Any] = {"recordings": recordings, "script_disjoint": config.script_disjoint}
    if config.test_speakers:
        speakers = config.validation_speakers, config.test_speakers
        folds = [fold_from_speakers(utterances, *speakers, recordings=recordings)]
    elif config.folds_file is not None:
        folds = load_folds(config.folds_file, utterances, **how)
    else:
        how |= {"k": config.k, "seed": config.seed, "improvised_only": config.improvised_only}
        folds = make_folds(utterances, config.protocol, **how)
    return Data(utterances, bad, folds, recordings)


def read_named(config: TrainConfig, audio_exists: bool = False) -> list[Utterance]:
    """The utterances of the manifests, or the corpus, that the flags name, as they are there.

    Args:
        config: The flags.
        audio_exists: Whether to refuse a manifest's rows whose audio file is missing.
    """
    if config.manifest is None:
        options, official = json.loads(config.corpus_options), config.protocol == "official"
        place = str(config.corpus), str(config.corpus_dir)
        return read_corpus(*place, official_split=official, **options)
    names = None if config.label_map is None else read_json(Path(config.label_map))
    found = read_manifests(
        config.manifest, audio_dir=config.audio_dir, audio_exists=audio_exists, label_map=names,
        dimension_range=tuple(config.dimension_range), groups=config.group_by or (),
        speakers=not config.speakers_unknown,
    )  # fmt: skip
    return [
        replace(u, speaker_id=u.utterance_id) if u.speaker_id == UNKNOWN_SPEAKER else u
        for u in found
    ]


def read_all(config: TrainConfig) -> list[Utterance]:
    """The utterances that the flags name, usable or not."""
    utterances = read_named(config, audio_exists=config.on_error == "stop")
    hidden = {"audio", "text"} - set(config.modalities)
    kept = [u for u in utterances if any(getattr(u, n) is not None for n in config.modalities)]
    if left := len(utterances) - len(kept):
        print(f"{left} of {len(utterances)} utterances have no {config.modalities[0]}: left out")
    for column in config.group_by or ():
        if all(column_of(u, column) is None for u in kept):
            raise ValueError(f"`--group_by` names {column!r}, of which no utterance has a value.")
    found = Counter(u.emotion for u in kept if u.emotion is not None)
    unknown = sorted(set(found) - set(config.emotions))
    if unknown and not config.encode_only:  # the model has no output for them
        counts = ", ".join(f"{name} ({found[name]})" for name in unknown)
        raise ValueError(
            f"The data has emotions that are not among --emotions {' '.join(config.emotions)}: {counts}."
        )
    kept = votes_among(kept, config.emotions)
    if config.script_disjoint and "text" in hidden:  # folds are by words that the model may not see
        kept = [replace(u, script_id=script_of(u)) if u.text is not None else u for u in kept]
    return [without_fields(u, hidden) for u in kept]


def votes_among(utterances: list[Utterance], emotions: Sequence[str]) -> list[Utterance]:
    """The utterances with votes for these emotions, all others together as "other"; prints which.

    Raises:
        ValueError: There are votes, and none is for one of the emotions.
    """
    others: Counter[str] = Counter()
    found = list[Utterance]()
    any_known = False
    for u in utterances:
        if u.votes is not None:
            known = {name: float(u.votes[name]) for name in emotions if u.votes.get(name)}
            rest = {name: n for name, n in u.votes.items() if n and name not in known}
            others.update(rest)
            any_known |= bool(known)
            u = replace(u, votes=known | ({OTHER: math.fsum(rest.values())} if rest else {}))
        found.append(u)
    if others:
        shown = ", ".join(f"{name} ({count:g})" for name, count in others.most_common())
        if not any_known:
            raise ValueError(f"No vote is for one of --emotions {' '.join(emotions)}: {shown}.")
        print(f"votes that are for none of --emotions, and do not train: {shown}")
    return found


def cache_folder(config: TrainConfig) -> Path | None:
    """Where the states of frozen encoders are, and what is known of recordings; None = nowhere."""
    if config.cache_dir == "off":
        return None
    return Path(config.cache_dir or Path(config.out).parent / "cache")


def describe_split(utterances: Sequence[Utterance], config: TrainConfig) -> dict[str, Any]:
    """Counts and speakers of a split, as results.json keeps them; corpora where there are several."""
    corpora = Counter(u.corpus for u in utterances)
    emotions = Counter(u.emotion for u in utterances if u.emotion is not None)
    votes: Counter[str] = Counter()
    for u in utterances:
        votes.update(u.votes or ({} if u.emotion is None else {u.emotion: 1.0}))
    told = {
        "utterances": len(utterances),
        "with_audio": sum(u.audio is not None for u in utterances),
        "with_text": sum(u.text is not None for u in utterances),
        "emotions": dict(emotions.most_common()),
        "dimensions": {
            n: sum(getattr(u, n) is not None for u in utterances) for n in config.dimensions
        },
        "speakers": sorted({u.speaker_id for u in utterances}),
    }
    if len(corpora) > 1:
        told["corpora"] = dict(corpora)
    if any(u.votes for u in utterances):  # a label without votes is one vote
        told["votes"] = dict(votes.most_common())
    return told


def check_fold(
    config: TrainConfig, known: MTMMConfig, splits: dict[str, list[Utterance]]
) -> tuple[tuple[str, ...], dict[str, list[Utterance]], dict[str, dict[str, Any]]]:
    """Refuse a fold whose speakers or labels do not suit the flags, without building the model.

    Args:
        config: The flags.
        known: What the flags say of the model, see `planned`.
        splits: The fold's utterances.

    Returns:
        The outputs that train, the splits with their labels alone, and what `describe_split` says.
    """
    outputs = trained_outputs(known, splits["train"], config.labels == "votes")
    check_scale(config, outputs)
    splits = {name: hide_labels(splits[name], config, outputs) for name in SPLITS}
    counts = {name: describe_split(splits[name], config) for name in SPLITS}
    # Now, not after an epoch.
    chosen_by = ["UAR", "WAR", "macro_F1"] if counts["validation"]["emotions"] else []
    labelled = counts["validation"]["dimensions"].items()
    chosen_by += [f"CCC_{name}" for name, count in labelled if count >= 2]
    if chosen_by:
        chosen_by.append("mean")
    if config.select_by not in (*chosen_by, "last"):
        raise ValueError(
            f"`--select_by` is {config.select_by!r}; it may be {', '.join([*chosen_by, 'last'])}."
        )
    seen = sorted(speakers_behind(config.model) & {u.speaker_id for u in splits["test"]})
    if seen:
        raise ValueError(f"`--model` {config.model!r} has seen {few(seen)} of the test split.")
    return outputs, splits, counts


def check_scale(config: TrainConfig, outputs: Iterable[str]) -> None:
    """Refuse to train dimensions on ratings of a corpus whose scale is not the model's."""
    if config.corpus is None or not set(config.dimensions) & set(outputs):
        return
    own, scale = CORPORA[config.corpus].get("dimension_range"), list(config.dimension_range)
    if own != scale:
        raise ValueError(f"`--dimension_range` is {scale}, but {config.corpus} is rated in {own}.")


def speakers_behind(model: str | None) -> set[str]:
    """Who a run's model, and those that it went on from, were trained or selected on, if known."""
    speakers: set[str] = set()
    followed = set()
    while model is not None and model not in followed:
        followed.add(model)
        try:
            past = json.loads((Path(model).parent / "results.json").read_text())
            for split in ("train", "validation"):
                speakers.update(past["splits"][split]["speakers"])
            model = past["config"]["model"]
        except (OSError, ValueError, KeyError, TypeError):  # no run's, or another program's
            break
    return speakers


def trained_outputs(
    model_config: MTMMConfig, utterances: Sequence[Utterance], by_votes: bool = False
) -> tuple[str, ...]:
    """The outputs that this training split has labels for and that count in the loss."""
    weights = model_config.loss_weights
    voted = by_votes and any(set(u.votes or ()) - {OTHER} for u in utterances)
    outputs = tuple(
        name
        for name, weight in weights.items()
        if weight > 0
        and (voted and name == "emotion" or any(getattr(u, name) is not None for u in utterances))
    )
    if not outputs:
        raise ValueError(f"No training label counts in the loss, whose weights are {weights}.")
    return outputs


def hide_labels(
    utterances: Iterable[Utterance], config: TrainConfig, outputs: Sequence[str]
) -> list[Utterance]:
    """Utterances without the labels of outputs that are not trained: no score is about chance."""
    hidden = {"emotion", *config.dimensions} - set(outputs)
    hidden |= {{"emotion": "votes", **RATINGS}[name] for name in hidden}
    return [without_fields(u, hidden) for u in utterances]


def class_weights(config: TrainConfig, counts: dict[str, Any]) -> Tensor | None:
    """Weights (emotions,) that give every emotion of the training split the same total, or None."""
    kind = "votes" if config.labels == "votes" and "votes" in counts else "emotions"
    found = {n: count for n, count in counts[kind].items() if n != OTHER}
    if config.class_weights == "none" or not found:
        return None
    total, present = sum(found.values()), len(found)
    return torch.tensor([total / (present * found.get(n, math.inf)) for n in config.emotions])
