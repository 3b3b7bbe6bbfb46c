"""The cache of frozen encoders' states: each utterance goes through each encoder once, ever.

    cache = FeatureCache("cache", model, processor, Recordings("cache"))
    cache.encode(utterances, rank=0, world_size=1)  # what is there already is skipped
    collate = cache.collator(utterances, emotions, dimension_names)  # in the place of RawInputs

On disk: FOLDER/MODALITY-FINGERPRINT/SHA256.safetensors. The fingerprint stands for all that decides
an encoder's states but the input; a shard is named by its own checksum and its header is its index,
so nothing on disk is ever changed and any number of processes may write at once.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from batching_mtmm import regions, rounded
from explanation_mtmm import FEATURES
from modeling_mtmm import MTMMModel
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.encoding import batches_within, fill, one_behind
from mtmm_training.batches.fingerprint import describe_states, text_digest
from mtmm_training.batches.sampler import FRAMES_PER_SECOND, LengthBatches, frame_lengths
from mtmm_training.batches.shards import StateShards, pad_states
from mtmm_training.data import sounds
from mtmm_training.data.files import sweep, write_json
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance, UtteranceError, few, without_fields
from processing_mtmm import MTMMProcessor

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
STATES = {"audio": "acoustic", "text": "linguistic"}  # what each modality's states are called

# A shard is written when it is so large or so old; a killed process loses no more than one.
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 60.0
ENCODING_FRAMES = 6000  # padded positions in a batch of encoding on a CPU: two minutes of speech


class FeatureCache:
    """The states of a model's two frozen encoders on disk, for one setting of both.

    Other weights, settings, versions, audio bytes or transcripts are other entries: they miss, and are
    encoded anew. Nothing that is there is read yet.

    Args:
        folder: One for all models, folds and runs; made if it is not there.
        model: Not yet wrapped for several processes; both encoders frozen.
        processor: The model's.
        recordings: What is known of the audio files; `folder` is where it is remembered.
        dtype: In which states are kept: float16, bfloat16 or float32.

    Raises:
        ValueError: An encoder has trainable parameters.
    """

    def __init__(
        self,
        folder: str | Path,
        model: MTMMModel,
        processor: MTMMProcessor,
        recordings: Recordings,
        dtype: str = "float16",
    ) -> None:
        if trained := trainable_encoders(model):
            raise ValueError(
                f"{trained[0]}_model trains, so its states are not cached; freeze it, or set --cache_dir off."
            )
        self.model, self.processor = model, processor
        self.recordings, self.dtype = recordings, dtype
        self.shards: dict[str, StateShards] = {}
        for modality in STATES:
            described = describe_states(modality, model, processor, dtype)
            name = f"{modality}-{text_digest(json.dumps(described, sort_keys=True))[:16]}"
            self.shards[modality] = StateShards(Path(folder, name))
            if not (description := Path(folder, name, "encoder.json")).exists():
                write_json(described, description)  # for people; nothing reads it

    def missing(self, utterances: Sequence[Utterance]) -> dict[str, dict[str, Utterance]]:
        """By modality and key, the utterances whose states are not there; equal content is one key.

        Raises:
            ValueError: A shard cannot be read.
            FileNotFoundError: There is no audio file at an utterance's path.
        """
        missing: dict[str, dict[str, Utterance]] = {}
        for modality, shards in self.shards.items():
            shards.refresh()
            keys = zip(self._keys(modality, utterances), utterances, strict=True)
            missing[modality] = {key: u for key, u in keys if key and key not in shards.entries}
        return missing

    def verify(self) -> None:
        """Reads all states of these encoders and compares them with their checksums.

        Raises:
            ValueError: Some are damaged.
        """
        for shards in self.shards.values():
            shards.verify()

    def encode(
        self,
        utterances: Sequence[Utterance],
        *,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 16,
        workers: int = 0,
        compiled: bool = False,
    ) -> dict[str, int]:
        """Encode what is missing, this process its share; every process must have its turn.

        Encoders with group norm get one utterance at a time: in a batch, padding changes their states.

        Args:
            utterances: The same on every process; variants of one utterance (see augment.py) may
                be among them.
            rank, world_size: This process, and how many there are. They do not wait for each other.
            batch_size: Utterances at once, at most; on CUDA as many as fill the card.
            workers: Processes that decode audio ahead of the encoder.
            compiled: Run the encoders by torch.compile.

        Returns:
            How many entries this process encoded, by modality.

        Raises:
            ValueError: The disk cannot hold the states, or a shard cannot be read.
            UtteranceError: An input cannot be read, or a state cannot be kept in the cache's dtype.
            OSError: The disk is full after all, or cannot be written to; what was written stays and
                is used next time.
        """
        missing = self.missing(utterances)
        positions = {}
        for modality, entries in missing.items():
            counts = self._positions(modality, list(entries.values())).tolist()
            positions[modality] = dict(zip(entries, counts, strict=True))
        self._check_space(positions, quiet=rank != 0)
        done = {}
        for modality, entries in missing.items():
            # By key, not by order: it holds however many of them the others have written by now. What
            # lies in one block of a table, which is read as a whole, is one process's, wherever the
            # table is for each of them.
            parts: dict[str, dict[str, Utterance]] = {}
            for key, u in entries.items():
                block = sounds.block_of(u.audio) if modality == "audio" and u.audio else None
                owner = int(text_digest(os.path.basename(block))[:16] if block else key[:16], 16)
                if owner % world_size == rank:
                    parts.setdefault(block or "", {})[key] = u
            done[modality] = sum(map(len, parts.values()))
            if parts:
                own, known = list(parts.values()), positions[modality]
                self._encode(modality, own, known, batch_size, workers, compiled, rank != 0)
        return done

    def collator(
        self,
        utterances: Sequence[Utterance],
        emotions: Sequence[str],
        dimension_names: Sequence[str],
    ) -> "CachedStates":
        """What collates rows of these utterances into encoder states and labels.

        Args:
            utterances: All that rows may come from.
            emotions, dimension_names: As of [`RawInputs`].

        Raises:
            ValueError: An utterance is not in the cache, or a shard cannot be read.
        """
        names = [u.utterance_id + (u.augmentation or "") for u in utterances]
        keys: dict[str, dict[str, str | None]] = {}
        for modality, shards in self.shards.items():
            shards.refresh()
            keys[modality] = dict(zip(names, self._keys(modality, utterances), strict=True))
            wanted = {name: key for name, key in keys[modality].items() if key}
            if absent := [name for name, key in wanted.items() if key not in shards.entries]:
                raise ValueError(
                    f"The cache has no {STATES[modality]} states of {few(absent)}; encode them."
                )
        return CachedStates(RawInputs(self.processor, emotions, dimension_names), self.shards, keys)

    # Keys and sizes.

    def _keys(self, modality: str, utterances: Sequence[Utterance]) -> list[str | None]:
        """The key of each utterance's content, None where it lacks the modality."""
        contents = [u.text for u in utterances]
        if modality == "audio":
            files = self.recordings.of(u.audio for u in utterances if u.audio is not None)
            contents = [
                u.audio
                and f"{files[u.audio].digest} {u.start_s or 0.0} {u.end_s}{u.augmentation or ''}"
                for u in utterances
            ]
        return [None if content is None else text_digest(content) for content in contents]

    def _positions(self, modality: str, utterances: Sequence[Utterance]) -> np.ndarray:
        """How many frames or tokens each utterance will have, to one or two: (utterances,)."""
        if not utterances:
            return np.zeros(0, dtype=np.int64)
        if modality == "text":
            tokens = self.processor.tokenizer([u.text for u in utterances], verbose=False)
            return np.array([len(ids) for ids in tokens["input_ids"]])
        extractor = self.processor.feature_extractor
        lengths = torch.from_numpy(frame_lengths(utterances, self.recordings))
        lengths = lengths * extractor.sampling_rate // FRAMES_PER_SECOND
        if extractor.model_input_names[0] == "input_features":
            lengths = lengths // extractor.hop_length
        frames = self.model.audio_model._get_feat_extract_output_lengths(lengths).clamp(min=1)
        return -(-frames // self.model.config.acoustic_stride).numpy()

    def _check_space(self, positions: dict[str, dict[str, int]], quiet: bool) -> None:
        """Says how large the missing states are; refuses them if the disk cannot hold them."""
        needed = 0
        for modality, lengths in positions.items():
            width = self.model.encoder_of(modality).config.hidden_size
            layers = max(len(self.model.config.mixed_layers(modality)), 1)
            total = sum(lengths.values())
            size = total * layers * width * DTYPES[self.dtype].itemsize
            needed += size
            if not quiet and lengths:
                print(
                    f"cache {self.shards[modality].folder}: {len(lengths)} {modality} entries to encode, "
                    f"{total:,} positions x {layers} layer{'s' * (layers > 1)} x {width} in "
                    f"{self.dtype}: {_gib(size)}",
                    flush=True,
                )
        folder = self.shards["audio"].folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"The cache needs {_gib(needed)} more, {folder} has {_gib(free)}; choose another --cache_dir."
            )

    # Encoding.

    @torch.no_grad()
    def _encode(
        self,
        modality: str,
        parts: list[dict[str, Utterance]],
        positions: dict[str, int],
        batch_size: int,
        workers: int,
        compiled: bool,
        quiet: bool,
    ) -> None:
        """Encodes part by part, each from the longest entry to the shortest; writes behind."""
        shards, device = self.shards[modality], self.model.device
        entries = {key: u for part in parts for key, u in part.items()}
        keys, lengths = list(entries), np.array([positions[key] for key in entries])
        sweep(shards.folder)
        other = next(name for name in STATES if name != modality)
        rows = to_dataset([without_fields(u, [other]) for u in entries.values()])
        raw = RawInputs(self.processor, (), ())
        encode: Any = self.model.encode_audio if modality == "audio" else self.model.encode_text
        for region in regions(self.model, (f"{modality}_model",)) if compiled else ():
            region.compile(dynamic=True)
        norm = getattr(self.model.encoder_of(modality).config, "feat_extract_norm", None)
        size, budget = 1 if norm == "group" else batch_size, ENCODING_FRAMES
        if device.type == "cuda" and norm != "group":
            longest = next(iter(LengthBatches(lengths, size, frame_budget=budget, shuffle=False)))
            first = self._inputs(modality, raw(rows.__getitems__(longest)), compiled)
            given = [tensor.to(device) for tensor in first.values()]
            budget = fill(device, lambda: encode(*given), len(given[0]) * int(lengths.max()))
            size = len(keys)
        batches = batches_within([len(part) for part in parts], lengths, size, budget)
        loader = make_loader(rows, batches, raw, workers=workers)
        progress = tqdm(
            total=len(keys),
            desc=f"encoding {modality}",
            disable=True if quiet else None,  # None: where nobody watches
            leave=False,
        )
        inputs = (self._inputs(modality, batch, compiled) for batch in loader)
        pending: dict[str, Tensor] = {}
        # One at most, so that no more than two shards are in memory.
        writes: list[Future[None]] = []

        def write() -> None:
            if writes:
                writes.pop().result()
            if pending:
                writes.append(writer.submit(shards.write, dict(pending)))
                pending.clear()

        began = time.monotonic()
        made = one_behind(inputs, encode, device, DTYPES[self.dtype])
        with progress, ThreadPoolExecutor(1) as writer:
            for indices, (padded, found) in zip(batches, made, strict=True):
                # Compiled, there may be more rows than were asked for.
                for index, row, length in zip(indices, padded, found, strict=not compiled):
                    key = keys[index]
                    pending[key] = self._kept(modality, row[..., :length, :], entries[key])
                progress.update(len(indices))
                size = sum(entry.nbytes for entry in pending.values())
                if size >= SHARD_BYTES or time.monotonic() - began >= SHARD_SECONDS:
                    write()
                    began = time.monotonic()
            write()
            write()  # waits for the last one

    def _inputs(self, modality: str, batch: dict[str, Any], compiled: bool) -> dict[str, Tensor]:
        """Of a batch what the encoder takes; of few sizes where it is compiled."""
        given = {name: batch[name] for name in FEATURES[modality]}
        if not compiled:
            return given
        return rounded(given, self.processor, self.model.config.audio_config)

    def _kept(self, modality: str, state: Tensor, utterance: Utterance) -> Tensor:
        """A copy of one utterance's states: a view would keep, and write, the padding of its batch.

        Raises:
            UtteranceError: There are none, or they are not finite.
        """
        problem = None
        if state.shape[-2] == 0:
            problem = f"its {modality} is shorter than one position of its encoder."
        elif not state.isfinite().all():
            problem = f"its {STATES[modality]} states are not finite in {self.dtype}; try float32."
        if problem:
            raise UtteranceError(utterance.utterance_id, problem)
        return state.clone(memory_format=torch.contiguous_format)


@dataclass(eq=False)
class CachedStates:
    """Collates rows of `to_dataset` into cached encoder states, with labels, as RawInputs does.

    States keep the cache's dtype, which the model converts: less memory and less to copy. Works in
    workers of a loader, forked or spawned; all of them read the same memory-mapped files.

    Args:
        raw: Makes the labels.
        shards: States by modality.
        keys: Keys by modality, and by utterance id with its augmentation, if any, behind it.
    """

    raw: RawInputs
    shards: dict[str, StateShards]
    keys: dict[str, dict[str, str | None]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """`acoustic_states` (batch, frames, width), or (batch, layers, frames, width) of all layers,
        `acoustic_attention_mask` (batch, frames), the same linguistic, and the labels.

        The pair of a modality that the whole batch lacks is left out; mask rows of one that an
        utterance lacks are all False.
        """
        batch: dict[str, Any] = {}
        for modality, name in STATES.items():
            names = [row["utterance_id"] + (row["augmentation"] or "") for row in rows]
            entries = [
                None if row[modality] is None else self._states(modality, name)
                for row, name in zip(rows, names, strict=True)
            ]
            if any(entry is not None for entry in entries):
                states, mask = pad_states(entries)
                batch |= {f"{name}_states": states, f"{name}_attention_mask": mask}
        return batch | self.raw.labels(rows)

    def of(self, modality: str, utterance: Utterance) -> Tensor | None:
        """(frames, width), or (layers, frames, width); None where the utterance lacks the modality."""
        return self._states(modality, utterance.utterance_id + (utterance.augmentation or ""))

    def _states(self, modality: str, name: str) -> Tensor | None:
        key = self.keys[modality][name]
        return None if key is None else self.shards[modality][key]


def encoded(
    utterances: Sequence[Utterance],
    raw: RawInputs,
    folder: Path,
    model: MTMMModel,
    recordings: Recordings,
    accelerator: Accelerator,
    *,
    dtype: str,
    verify: bool,
    batch_size: int,
    workers: int,
    compiled: bool = False,
) -> CachedStates:
    """What collates the states of these utterances, encoded now by all processes where they never were.

    Args:
        utterances, batch_size, workers, compiled: See [`FeatureCache.encode`].
        raw: Has the model's processor, and makes the labels.
        folder, model, dtype, recordings: See [`FeatureCache`].
        accelerator: The processes; the main one says what was encoded.
        verify: Compare the checksum of every shard first.
    """
    cache = FeatureCache(
        folder, model.to(accelerator.device), raw.processor, recordings, dtype=dtype
    )
    if verify and accelerator.is_main_process:
        cache.verify()
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    made = cache.encode(
        utterances, **share, batch_size=batch_size, workers=workers, compiled=compiled
    )
    accelerator.wait_for_everyone()
    counts = gather_object([made])
    collate = cache.collator(utterances, list(raw.emotions), raw.dimension_names)
    if accelerator.is_main_process:
        for modality, shards in cache.shards.items():
            present = sum(getattr(u, modality) is not None for u in utterances)
            print(
                f"cache {shards.folder}: {present} {modality} inputs, "
                f"{sum(count[modality] for count in counts)} encoded now"
            )
    return collate


def trainable_encoders(model: MTMMModel) -> list[str]:
    """The modalities whose encoder trains, wholly or in part (LoRA); they cannot be cached."""
    return [
        modality
        for modality in STATES
        if any(parameter.requires_grad for parameter in model.encoder_of(modality).parameters())
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
