"""The batches of a fold: raw inputs, or the frozen encoders' states from the cache."""

from typing import Any

from accelerate import Accelerator

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.augment import add_variants
from mtmm_training.batches.cache import encoded, trainable_encoders
from mtmm_training.batches.collate import Loader, RawInputs, find_bad, make_loader, to_dataset
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.utterances import listing
from mtmm_training.training.config import TrainConfig
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
    folder = cache_folder(config) if uses_cache(config, model) else None
    if config.mask_frames and folder is None:
        raise ValueError(
            f"`--mask_frames` is {config.mask_frames}, but it hides cached states, and there is no "
            "cache: it is off, or an encoder trains."
        )
    own = [utterance for split in data.splits.values() for utterance in split]
    # Encoding reads all of them, and says itself what is bad.
    if folder is None and config.on_error == "stop":
        bad = find_bad(own, processor, config.workers)
        if bad:
            what = f"{len(bad)} of {len(own)} utterances cannot be used"
            raise ValueError(
                f"{listing(what, [': '.join(item) for item in bad.items()])}\nRepair their files or take "
                "them out of the data, or add --on_error skip, which leaves them out."
            )
    variants = add_variants(
        data.splits["train"], config.augment, config.augment_variants, config.seed
    )
    shown = data.splits | {"train": [u for variant in variants for u in variant]}
    collate: Any = RawInputs(processor, config.emotions, config.dimensions)
    if folder is not None:
        collate = encoded(
            [utterance for split in shown.values() for utterance in split],
            collate,
            folder,
            model,
            data.recordings,
            accelerator,
            dtype=config.cache_dtype,
            verify=config.verify_cache,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    if config.encode_only:
        return {}
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
        workers = config.workers if folder is None else 0
        loaders[name] = make_loader(to_dataset(shown[name]), batches, collate, workers=workers)
    return loaders


def uses_cache(config: TrainConfig, model: MTMMModel) -> bool:
    """Whether training is from the cache: not where it is off, or where an encoder trains."""
    optional = config.cache_dir is None and not config.encode_only
    return config.cache_dir != "off" and not (optional and trainable_encoders(model))
