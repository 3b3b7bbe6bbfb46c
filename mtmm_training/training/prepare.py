"""From flags to the utterances, folds and splits of a run."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMProcessor
from mtmm_training.batches.collate import find_bad
from mtmm_training.data.corpora import CORPORA, read_corpus
from mtmm_training.data.files import read_json
from mtmm_training.data.folds import (
    Fold,
    fold_from_speakers,
    load_folds,
    make_folds,
    script_of,
    select,
)
from mtmm_training.data.manifest import read_manifests
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import SPLITS, Utterance, few, listing, without_fields
from mtmm_training.scoring.metrics import selection_score
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
    """

    name: str
    splits: dict[str, list[Utterance]]
    outputs: tuple[str, ...]
    counts: dict[str, dict[str, Any]]
    bad: dict[str, str]
    recordings: Recordings

    def ids(self, split: str) -> list[str]:
        """The utterance ids of a split, in order."""
        return [u.utterance_id for u in self.splits[split]]


def prepare_fold(config: TrainConfig) -> FoldData:
    """Read the data, choose the fold, and refuse one that does not suit the settings.

    With `encode_only` it is what is encoded for all folds, labelled or not: as "train" what trains in
    any of them, as "others" the rest.
    """
    known = planned(config)
    folder = cache_folder(config)
    utterances, bad = read_usable(config)
    recordings = Recordings(folder)
    folds = folds_of(config, utterances, recordings)
    if config.encode_only:
        training = {name for fold in folds for name in fold.train}
        splits = {
            "train": [u for u in utterances if u.utterance_id in training],
            "others": [u for u in utterances if u.utterance_id not in training],
        }
        return FoldData("all", splits, tuple(known.loss_weights), {}, bad, recordings)
    if config.fold >= len(folds):
        raise ValueError(
            f"`--fold {config.fold}` does not exist: there are {len(folds)}, counted from 0."
        )
    fold = folds[config.fold]
    outputs, splits, counts = check_fold(config, known, select(utterances, fold))
    return FoldData(fold.name, splits, outputs, counts, bad, recordings)


def read_usable(config: TrainConfig) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances that the flags name, reduced to the modalities that the model may see.

    Under --on_error skip also what is wrong with those that are left out for it, by id: before any
    folds are made, so that all that follows is of the same utterances.
    """
    processor = load_processor(config) if config.on_error == "skip" else None
    utterances = read_all(config)
    if processor is None:
        return utterances, {}
    bad = find_bad(utterances, processor, config.workers)
    if len(bad) == len(utterances):
        what = f"None of the {len(utterances)} utterances can be used"
        raise ValueError(listing(what, [": ".join(item) for item in bad.items()]))
    return [u for u in utterances if u.utterance_id not in bad], bad


def read_all(config: TrainConfig) -> list[Utterance]:
    """The utterances that the flags name, usable or not."""
    if config.manifest is not None:
        utterances = read_manifests(
            config.manifest,
            audio_dir=config.audio_dir,
            dimension_range=tuple(config.dimension_range),
            audio_exists=config.on_error == "stop",
        )
    else:
        utterances = read_corpus(
            str(config.corpus),
            str(config.corpus_dir),
            official_split=config.protocol == "official",
            **json.loads(config.corpus_options),
        )
    hidden = {"audio", "text"} - set(config.modalities)
    kept = [
        u for u in utterances if any(getattr(u, name) is not None for name in config.modalities)
    ]
    if len(kept) < len(utterances):
        print(
            f"{len(utterances) - len(kept)} of {len(utterances)} utterances have no "
            f"{config.modalities[0]}: left out"
        )
    found = Counter(u.emotion for u in kept if u.emotion is not None)
    unknown = sorted(set(found) - set(config.emotions))
    if unknown and not config.encode_only:  # the model has no output for them
        counts = ", ".join(f"{name} ({found[name]})" for name in unknown)
        raise ValueError(
            f"The data has emotions that are not among --emotions {' '.join(config.emotions)}: {counts}."
        )
    if config.script_disjoint and "text" in hidden:  # folds are by words that the model may not see
        kept = [replace(u, script_id=script_of(u)) if u.text is not None else u for u in kept]
    return [without_fields(u, hidden) for u in kept]


def cache_folder(config: TrainConfig) -> Path | None:
    """Where the states of frozen encoders are, and what is known of recordings; None = nowhere."""
    if config.cache_dir == "off":
        return None
    return Path(config.cache_dir or Path(config.out).parent / "cache")


def folds_of(
    config: TrainConfig, utterances: Sequence[Utterance], recordings: Recordings | None = None
) -> list[Fold]:
    """All folds that the flags describe, of which `--fold` chooses one.

    Args:
        config: The settings.
        utterances: All that can be used.
        recordings: What is known of their audio files; None = nothing yet.
    """
    if config.test_speakers:
        speakers = config.validation_speakers, config.test_speakers
        return [fold_from_speakers(utterances, *speakers, recordings=recordings)]
    script_disjoint = config.script_disjoint
    if config.folds_file is not None:
        return load_folds(
            config.folds_file, utterances, script_disjoint=script_disjoint, recordings=recordings
        )
    return make_folds(
        utterances,
        config.protocol,
        k=config.k,
        seed=config.seed,
        improvised_only=config.improvised_only,
        script_disjoint=script_disjoint,
        recordings=recordings,
    )


def describe_split(utterances: Sequence[Utterance], config: TrainConfig) -> dict[str, Any]:
    """Counts and speakers of a split, as results.json keeps them; corpora where there are several."""
    corpora = Counter(u.corpus for u in utterances)
    return {
        "utterances": len(utterances),
        "with_audio": sum(u.audio is not None for u in utterances),
        "with_text": sum(u.text is not None for u in utterances),
        "emotions": dict(
            Counter(u.emotion for u in utterances if u.emotion is not None).most_common()
        ),
        "dimensions": {
            n: sum(getattr(u, n) is not None for u in utterances) for n in config.dimensions
        },
        "speakers": sorted({u.speaker_id for u in utterances}),
    } | ({"corpora": dict(corpora)} if len(corpora) > 1 else {})


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
    outputs = trained_outputs(known, splits["train"])
    check_scale(config, outputs)
    splits = {name: hide_labels(splits[name], config, outputs) for name in SPLITS}
    counts = {name: describe_split(splits[name], config) for name in SPLITS}
    # --select_by is refused now, not after an epoch, where validation has no labels for it.
    emotion = 0.0 if counts["validation"]["emotions"] else None
    scores: dict[str, Any] = dict.fromkeys(("UAR", "WAR", "macro_F1"), emotion)
    labelled = counts["validation"]["dimensions"].items()
    scores["CCC"] = {name: 0.0 if count >= 2 else None for name, count in labelled}
    selection_score(scores, config.select_by)
    seen = sorted(speakers_behind(config.model) & {u.speaker_id for u in splits["test"]})
    if seen:
        raise ValueError(
            f"`--model` is {config.model!r}, which was trained or selected on {few(seen)} of the test "
            "split. Give each fold the model of a run that left its test speakers out."
        )
    return outputs, splits, counts


def check_scale(config: TrainConfig, outputs: Iterable[str]) -> None:
    """Refuse to train dimensions on ratings of a corpus whose scale is not the model's."""
    if config.corpus is None or not set(config.dimensions) & set(outputs):
        return
    own = CORPORA[config.corpus].load().DIMENSION_RANGE
    if own != tuple(config.dimension_range):
        raise ValueError(
            f"The dimensions of {config.corpus} are rated from {own[0]:g} to {own[1]:g}, the model's go "
            "from {:g} to {:g}. Give --dimension_range, or begin with encoders.".format(
                *config.dimension_range
            )
        )


def speakers_behind(model: str | None) -> set[str]:
    """Who a run's model, and those that it went on from, were trained or selected on, if known."""
    speakers: set[str] = set()
    followed = set()
    while model is not None and model not in followed:
        followed.add(model)
        try:
            past = read_json(Path(model).parent / "results.json", "splits", "config")
            for split in ("train", "validation"):
                speakers.update(past["splits"][split]["speakers"])
            model = past["config"]["model"]
        except (OSError, ValueError, KeyError, TypeError):  # no run's, or another program's
            break
    return speakers


def check_augmentation(config: TrainConfig, processor: MTMMProcessor) -> None:
    """Refuse a change that the feature extractor undoes."""
    if "gain" in config.augment and getattr(processor.feature_extractor, "do_normalize", False):
        raise ValueError(
            f"`--augment` is {config.augment}, but this model's feature extractor brings every waveform "
            "to one loudness. Leave gain out."
        )


def trained_outputs(model_config: MTMMConfig, utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """The outputs that this training split has labels for and that count in the loss."""
    weights = model_config.loss_weights
    outputs = tuple(
        name
        for name, weight in weights.items()
        if weight > 0 and any(getattr(u, name) is not None for u in utterances)
    )
    if not outputs:
        raise ValueError(
            "The training split has no label that counts in the loss: labels may be of "
            f"{', '.join(weights)}, their weights in the loss are {', '.join(map(str, weights.values()))}."
        )
    return outputs


def hide_labels(
    utterances: Iterable[Utterance], config: TrainConfig, outputs: Sequence[str]
) -> list[Utterance]:
    """Utterances without the labels of outputs that are not trained: no score is about chance."""
    hidden = {"emotion", *config.dimensions} - set(outputs)
    return [without_fields(u, hidden) for u in utterances]


def class_weights(config: TrainConfig, counts: dict[str, Any]) -> Tensor | None:
    """Weights (emotions,) that give every emotion of the training split the same total, or None."""
    if config.class_weights == "none" or not counts["emotions"]:
        return None
    total, present = sum(counts["emotions"].values()), len(counts["emotions"])
    weights = [
        total / (present * counts["emotions"].get(name, math.inf)) for name in config.emotions
    ]
    return torch.tensor(weights)
