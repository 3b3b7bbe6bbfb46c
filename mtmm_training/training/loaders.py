"""The batches of a fold: raw inputs, or the frozen encoders' states from the cache."""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.augment import add_variants
from mtmm_training.batches.cache import CachedStates, FeatureCache, trainable_encoders
from mtmm_training.batches.collate import Loader, RawInputs, make_loader, to_dataset
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import leave_cores_to
from mtmm_training.training.prepare import FoldData, cache_folder


def make_loaders(
    config: TrainConfig,
    data: FoldData,
    model: MTMMModel,
    processor: MTMMProcessor,
    accelerator: Accelerator,
) -> dict[str, Loader]:
    """A loader for each split; training goes round variants, if there are any.

    States that were never encoded before are encoded now; with `encode_only` that is all.
    """
    variants = add_variants(
        data.splits["train"], config.augment, config.augment_variants, config.seed
    )
    shown = data.splits | {"train": [u for variant in variants for u in variant]}
    everything = [utterance for split in shown.values() for utterance in split]
    cached = cached_states(config, model, processor, everything, data.recordings, accelerator)
    if config.encode_only:
        return {}
    collate = cached or RawInputs(processor, config.emotions, config.dimensions)
    if cached is not None:
        leave_cores_to(0, accelerator)
    loaders = {}
    for name, utterances in data.splits.items():
        batches = LengthBatches(
            frame_lengths(shown[name], data.recordings).reshape(-1, len(utterances)),
            config.batch_size,
            frame_budget=config.frame_budget,
            seed=config.seed,
            shuffle=name == "train",
            corpora=[u.corpus for u in utterances],
            exponent=config.corpus_exponent,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        # Reading cached states is a copy: a core kept for a worker would lie idle.
        workers = config.workers if cached is None else 0
        loaders[name] = make_loader(to_dataset(shown[name]), batches, collate, workers=workers)
    return loaders


def uses_cache(config: TrainConfig, model: MTMMModel) -> bool:
    """Whether training is from the cache: not where it is off, or where an encoder trains."""
    optional = config.cache_dir is None and not config.encode_only
    return config.cache_dir != "off" and not (optional and trainable_encoders(model))


def cached_states(
    config: TrainConfig,
    model: MTMMModel,
    processor: MTMMProcessor,
    utterances: Sequence[Utterance],
    recordings: Recordings,
    accelerator: Accelerator,
) -> CachedStates | None:
    """The frozen encoders' states of these utterances, encoded now where they never were.

    None where training goes without a cache: it is off, or an encoder trains.
    """
    if not uses_cache(config, model):
        if config.mask_frames:
            raise ValueError(
                f"`--mask_frames` is {config.mask_frames}, but it hides cached states, and there is no "
                "cache: it is off, or an encoder trains."
            )
        return None
    folder = cache_folder(config)
    assert folder is not None
    cache = FeatureCache.open(
        folder,
        model.to(accelerator.device),
        processor,
        dtype=config.cache_dtype,
        recordings=recordings,
    )
    if config.verify_cache and accelerator.is_main_process:
        cache.verify()
    encoded = cache.encode(
        utterances,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    accelerator.wait_for_everyone()
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
    return cache.collator(utterances, config.emotions, config.dimensions)
