"""The frozen encoders' states of a run, from the cache."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import (
    gather_object,
)

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.cache import CachedStates, FeatureCache, trainable_encoders
from mtmm_training.data.utterances import (
    Utterance,
)
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import check_augmentation
from mtmm_training.training.model import build_model, choose_trained
from mtmm_training.training.prepare import folds_of, with_variants


def uses_cache(config: TrainConfig, model: MTMMModel) -> bool:
    """Whether training is from the cache: not where it is off, or where an encoder trains."""
    optional = config.cache_dir is None and not config.encode_only
    return config.cache_dir != "off" and not (optional and trainable_encoders(model))


def cached_states(
    config: TrainConfig,
    model: MTMMModel,
    processor: MTMMProcessor,
    utterances: Sequence[Utterance],
    accelerator: Accelerator,
) -> CachedStates | None:
    """The frozen encoders' states of these utterances, encoded now where they never were.

    None where training goes without a cache: it is off, or an encoder trains.
    """
    if not uses_cache(config, model):
        if config.mask_frames:
            raise ValueError(
                f"`--mask_frames` is {config.mask_frames}, but it hides cached states, and there is no "
                "cache: it is off, or an encoder trains. Leave it out, or freeze both encoders."
            )
        return None
    folder = config.cache_dir or Path(config.out).parent / "cache"
    cache = FeatureCache.open(
        folder, model.to(accelerator.device), processor, dtype=config.cache_dtype
    )
    encoded = cache.encode(
        utterances,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    accelerator.wait_for_everyone()
    print_cache(cache, encoded, utterances, accelerator)
    return cache.collator(utterances, config.emotions, config.dimensions)


def encode_all(
    config: TrainConfig, utterances: Sequence[Utterance], accelerator: Accelerator
) -> None:
    """Fill the cache for every fold: all utterances, and variants of those that train in any."""
    model, processor = build_model(config)
    choose_trained(config, model)  # what trains cannot be cached, and is refused
    check_augmentation(config, processor)
    training = {name for fold in folds_of(config, utterances) for name in fold.train}
    trained = [u for u in utterances if u.utterance_id in training]
    variants = with_variants(config, trained)[len(trained) :]
    cached_states(config, model, processor, [*utterances, *variants], accelerator)


def print_cache(
    cache: FeatureCache,
    encoded: dict[str, int],
    utterances: Sequence[Utterance],
    accelerator: Accelerator,
) -> None:
    """How much of the cache is new, and what its precision does."""
    counts = gather_object([encoded])
    if accelerator.is_main_process:
        for modality, shards in cache.shards.items():
            present = sum(getattr(u, modality) is not None for u in utterances)
            print(
                f"cache {shards.folder}: {present} {modality} inputs, "
                f"{sum(count[modality] for count in counts)} encoded now"
            )
        if line := cache.precision_line():
            print(line, flush=True)
