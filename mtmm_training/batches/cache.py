"""The cache of frozen encoders' states: each utterance goes through each encoder once, ever.

    cache = FeatureCache.open("cache", model, processor, dtype="float16")
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from modeling_mtmm import MTMMModel
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.batches.fingerprint import describe_states, encoder_of, text_digest
from mtmm_training.batches.sampler import FRAMES_PER_SECOND, LengthBatches, frame_lengths
from mtmm_training.batches.shards import StateShards, pad_states
from mtmm_training.data.utterances import Utterance, without_fields
from mtmm_training.files import file_digest, sweep, write_json
from processing_mtmm import MTMMProcessor

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
STATES = {"audio": "acoustic", "text": "linguistic"}  # what each modality's states are called
INPUTS = {
    "audio": ("input_values", "audio_attention_mask"),
    "text": ("input_ids", "attention_mask"),
}

# A shard is written when it is so large or so old; a killed process loses no more than one.
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 60.0
ENCODING_FRAMES = 6000  # padded positions in a batch of encoding, at most: two minutes of speech


class FeatureCache:
    """The states of a model's two frozen encoders on disk, for one setting of both.

    Made by [`open`]. Other weights, settings, versions, audio bytes or transcripts are other
    entries: they miss, and are encoded anew.
    """

    def __init__(
        self,
        model: MTMMModel,
        processor: MTMMProcessor,
        shards: dict[str, "StateShards"],
        dtype: torch.dtype,
    ) -> None:
        self.model, self.processor, self.shards, self.dtype = model, processor, shards, dtype
        self._file_digests: dict[tuple[str, int, int], str] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: MTMMModel,
        processor: MTMMProcessor,
        *,
        dtype: str = "float16",
    ) -> "FeatureCache":
        """The cache in `folder` that fits this model and processor; made if it is not there.

        Args:
            folder: One for all models, folds and runs.
            model: Not yet wrapped for several processes; both encoders frozen.
            processor: Of the model.
            dtype: In which states are kept: float16, bfloat16 or float32.

        Raises:
            ValueError: An encoder has trainable parameters, or the dtype is unknown.
        """
        if dtype not in DTYPES:
            raise ValueError(
                f"`dtype={dtype!r}` is no precision of the cache; use {', '.join(DTYPES)}."
            )
        for modality in trainable_encoders(model):
            raise ValueError(
                f"The {STATES[modality]} encoder (`{modality}_model`) has trainable parameters, so its "
                "states change in training and cannot be cached. Freeze it (no LoRA, "
                f'`"freeze_{modality}_encoder": true`), or train without a cache '
                "(`--cache_dir off`)."
            )
        shards = {}
        for modality in STATES:
            described = describe_states(modality, model, processor, dtype)
            name = f"{modality}-{text_digest(json.dumps(described, sort_keys=True))[:16]}"
            shards[modality] = StateShards(Path(folder, name))
            if not (description := Path(folder, name, "encoder.json")).exists():
                write_json(described, description)  # for people; nothing reads it
        return cls(model, processor, shards, DTYPES[dtype])

    def missing(self, utterances: Sequence[Utterance]) -> dict[str, dict[str, Utterance]]:
        """By modality and key, the utterances whose states are not there; equal content is one key.

        Raises:
            ValueError: A shard is damaged.
            FileNotFoundError: There is no audio file at an utterance's path.
        """
        missing: dict[str, dict[str, Utterance]] = {}
        for modality, shards in self.shards.items():
            shards.refresh()
            missing[modality] = {
                key: utterance
                for key, utterance in zip(self._keys(modality, utterances), utterances, strict=True)
                if key is not None and key not in shards.entries
            }
        return missing

    def encode(
        self,
        utterances: Sequence[Utterance],
        *,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 16,
        workers: int = 0,
    ) -> dict[str, int]:
        """Encode what is missing, this process its share; every process must have its turn.

        Encoders with group norm get one utterance at a time: in a batch, padding changes their states.

        Args:
            utterances: The same on every process; variants of one utterance (see augment.py) may
                be among them.
            rank, world_size: This process, and how many there are. They do not wait for each other.
            batch_size: Utterances at once, at most.
            workers: Processes that decode audio ahead of the encoder.

        Returns:
            How many entries this process encoded, by modality.

        Raises:
            ValueError: The disk cannot hold the states, a shard is damaged, an input cannot be
                read, or a state cannot be kept in the cache's dtype.
            OSError: The disk is full after all, or cannot be written to; what was written stays and
                is used next time.
        """
        missing = self.missing(utterances)
        positions = {
            modality: self._positions(modality, list(entries.values()))
            for modality, entries in missing.items()
        }
        self._check_space(positions, quiet=rank != 0)
        encoded = {}
        for modality, entries in missing.items():
            # By key, not by order: it holds however many of them the others have written by now.
            mine = [int(key[:16], 16) % world_size == rank for key in entries]
            share = dict(entry for entry, own in zip(entries.items(), mine, strict=True) if own)
            if share:
                lengths = positions[modality][mine]
                batches = LengthBatches(
                    lengths,
                    1 if self._group_norm(modality) else batch_size,
                    frame_budget=ENCODING_FRAMES,
                    shuffle=False,
                )
                self._encode(modality, share, batches, workers, quiet=rank != 0)
            encoded[modality] = len(share)
        return encoded

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
            ValueError: An utterance is not in the cache, or a shard is damaged.
        """
        for modality, entries in self.missing(utterances).items():
            if entries:
                ids = [utterance.utterance_id for utterance in entries.values()]
                raise ValueError(
                    f"The cache has no {STATES[modality]} states of {len(ids)} utterances ({ids[0]}, ...); "
                    "encode them first, in every process, and wait for all."
                )
        names = [u.utterance_id + (u.augmentation or "") for u in utterances]
        keys = {
            modality: dict(zip(names, self._keys(modality, utterances), strict=True))
            for modality in STATES
        }
        raw = RawInputs(self.processor, emotions, dimension_names)
        return CachedStates(raw, self.shards, keys)

    @torch.no_grad()
    def precision_line(self, utterances: Sequence[Utterance]) -> str:
        """What the cache's precision does to emotion logits, as one line to print.

        Args:
            utterances: A few that are in the cache; each goes through the model alone, twice.
        """
        cached, raw = self.collator(utterances, (), ()), RawInputs(self.processor, (), ())
        training = self.model.training
        self.model.eval()
        differences = []
        for row in to_dataset(utterances):
            logits = [self._logits(collate([row])) for collate in (cached, raw)]
            differences.append((logits[0] - logits[1]).abs())
        self.model.train(training)
        difference = torch.cat(differences)
        return (
            f"cache in {self._dtype_name()}: emotion logits differ from those of raw inputs by "
            f"{float(difference.max()):.1e} at most, {float(difference.mean()):.1e} on average "
            f"({len(utterances)} utterances)"
        )

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        labels = ("emotion_labels", "dimension_labels", "utterance_ids")
        inputs = {n: t.to(self.model.device) for n, t in batch.items() if n not in labels}
        return self.model(**inputs).emotion_logits.float()

    # Keys and sizes.

    def _keys(self, modality: str, utterances: Sequence[Utterance]) -> list[str | None]:
        """The key of each utterance's content, None where it lacks the modality."""
        if modality == "text":
            return [None if u.text is None else text_digest(u.text) for u in utterances]
        # One recording may hold many utterances.
        paths = list(dict.fromkeys(u.audio for u in utterances if u.audio is not None))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = dict(zip(paths, pool.map(self._file_digest, paths), strict=True))
        return [
            None
            if u.audio is None
            else text_digest(f"{files[u.audio]} {u.start_s or 0.0} {u.end_s}{u.augmentation or ''}")
            for u in utterances
        ]

    def _file_digest(self, path: str) -> str:
        """Of an audio file's bytes, read once as long as the file does not change."""
        try:
            stat = os.stat(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"No audio file at {path!r}; check the path.") from error
        known = (path, stat.st_size, stat.st_mtime_ns)
        if known not in self._file_digests:
            self._file_digests[known] = file_digest(path)
        return self._file_digests[known]

    def _positions(self, modality: str, utterances: Sequence[Utterance]) -> np.ndarray:
        """How many frames or tokens each utterance will have, to one or two: (utterances,)."""
        if not utterances:
            return np.zeros(0, dtype=np.int64)
        if modality == "text":
            tokens = self.processor.tokenizer([u.text for u in utterances], verbose=False)
            return np.array([len(ids) for ids in tokens["input_ids"]])
        extractor = self.processor.feature_extractor
        lengths = torch.from_numpy(frame_lengths([replace(u, text=None) for u in utterances]))
        lengths = lengths * extractor.sampling_rate // FRAMES_PER_SECOND
        if extractor.model_input_names[0] == "input_features":
            lengths = lengths // extractor.hop_length
        frames = self.model.audio_model._get_feat_extract_output_lengths(lengths).clamp(min=1)
        return -(-frames // self.model.config.acoustic_stride).numpy()

    def _check_space(self, positions: dict[str, np.ndarray], quiet: bool) -> None:
        """Say how large the missing states are; refuse them if the disk cannot hold them."""
        sizes = {}
        for modality, counts in positions.items():
            config = encoder_of(self.model, modality).config
            layers = max(len(self.model.config.mixed_layers(modality)), 1)
            numbers = int(counts.sum()) * layers * config.hidden_size
            sizes[modality] = numbers * self.dtype.itemsize
            if not quiet and len(counts):
                print(
                    f"cache {self.shards[modality].folder}: {len(counts)} {modality} entries to encode, "
                    f"{counts.sum():,} positions x {layers} layer{'s' * (layers > 1)} x "
                    f"{config.hidden_size} in "
                    f"{self._dtype_name()}: {_gib(sizes[modality])}",
                    flush=True,
                )
        folder = self.shards["audio"].folder.parent
        needed, free = sum(sizes.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"The cache needs {_gib(needed)} more, and the disk of {folder} has {_gib(free)} free. "
                "Choose another disk, a 16-bit dtype, or the encoders' last layer alone "
                '(`"encoder_layers": "last"`) or a few (`audio_layers`, `text_layers`), or a larger '
                "`acoustic_stride`; or train without a cache (`--cache_dir off`)."
            )

    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    # Encoding.

    def _group_norm(self, modality: str) -> bool:
        config = encoder_of(self.model, modality).config
        return getattr(config, "feat_extract_norm", None) == "group"

    def _encode(
        self,
        modality: str,
        entries: dict[str, Utterance],
        batches: LengthBatches,
        workers: int,
        quiet: bool,
    ) -> None:
        """Encode the entries from the longest to the shortest, shard by shard."""
        shards = self.shards[modality]
        sweep(shards.folder)
        keys = list(entries)
        other = next(name for name in STATES if name != modality)
        rows = to_dataset([without_fields(u, [other]) for u in entries.values()])
        loader = make_loader(rows, batches, RawInputs(self.processor, (), ()), workers=workers)
        progress = tqdm(
            total=len(keys),
            desc=f"encoding {modality}",
            disable=True if quiet else None,  # None: where nobody watches
            leave=False,
        )
        pending: dict[str, Tensor] = {}
        began = time.monotonic()
        for indices, batch in zip(batches, loader, strict=True):
            states = self._states(modality, batch)
            pending |= zip([keys[index] for index in indices], states, strict=True)
            progress.update(len(batch["utterance_ids"]))
            size = sum(entry.nbytes for entry in pending.values())
            if size >= SHARD_BYTES or time.monotonic() - began >= SHARD_SECONDS:
                shards.write(pending)
                pending, began = {}, time.monotonic()
        if pending:
            shards.write(pending)
        progress.close()

    @torch.no_grad()
    def _states(self, modality: str, batch: dict[str, Any]) -> list[Tensor]:
        """States of a batch of raw inputs, each without padding, in the cache's dtype."""
        encode = self.model.encode_audio if modality == "audio" else self.model.encode_text
        states, mask = encode(*(batch[name].to(self.model.device) for name in INPUTS[modality]))
        kept, lengths = states.to(self.dtype).cpu(), mask.sum(-1).tolist()
        entries = []
        for utterance_id, row, length in zip(batch["utterance_ids"], kept, lengths, strict=True):
            # A copy: a view would keep, and write, the padding of the whole batch.
            entry = row[..., :length, :].clone(memory_format=torch.contiguous_format)
            if length == 0:
                raise ValueError(
                    f"The {modality} of utterance {utterance_id} is shorter than one position of its "
                    "encoder; leave the utterance out."
                )
            if not entry.isfinite().all():
                raise ValueError(
                    f"The {STATES[modality]} states of utterance {utterance_id} are not finite in "
                    f"{self._dtype_name()}; use a cache in bfloat16 or float32, and check the input."
                )
            entries.append(entry)
        return entries


class CachedStates:
    """Collates rows of `to_dataset` into cached encoder states, with labels, as RawInputs does.

    States keep the cache's dtype, which the model converts: less memory and less to copy. Works in
    workers of a loader, forked or spawned; all of them read the same memory-mapped files.

    Args:
        raw: Makes the labels.
        shards: By modality.
        keys: By modality, and by utterance id with its augmentation, if any, behind it.
    """

    def __init__(
        self,
        raw: RawInputs,
        shards: dict[str, "StateShards"],
        keys: dict[str, dict[str, str | None]],
    ) -> None:
        self.labels, self.shards, self.keys = raw.labels, shards, keys

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """`acoustic_states` (batch, frames, width), or (batch, layers, frames, width) of all layers,
        `acoustic_attention_mask` (batch, frames), the same linguistic, and the labels.

        The pair of a modality that the whole batch lacks is left out; mask rows of one that an
        utterance lacks are all False.
        """
        batch: dict[str, Any] = {}
        for modality, name in STATES.items():
            entries = [self._entry(modality, row) for row in rows]
            if any(entry is not None for entry in entries):
                states, mask = pad_states(entries)
                batch |= {f"{name}_states": states, f"{name}_attention_mask": mask}
        return batch | self.labels(rows)

    def _entry(self, modality: str, row: dict[str, Any]) -> Tensor | None:
        if row[modality] is None:
            return None
        name = row["utterance_id"] + (row["augmentation"] or "")
        key = self.keys[modality][name]
        assert key is not None, name
        return self.shards[modality][key]


def trainable_encoders(model: MTMMModel) -> list[str]:
    """The modalities whose encoder trains, wholly or in part (LoRA); they cannot be cached."""
    return [
        modality
        for modality in STATES
        if any(parameter.requires_grad for parameter in encoder_of(model, modality).parameters())
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
