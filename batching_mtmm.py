"""What the model is given together: windows read ahead, and those of similar lengths in batches.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_PADDED = 1.25  # longest ÷ shortest audio of a batch: at most a fifth of it is padding
# Encoders whose states padding does not change where a mask hides it, if they use layer norm. Of others
# it was found to, or not tried.
UNCHANGED_BY_PADDING = {"hubert", "wav2vec2", "wavlm", "unispeech-sat", "whisper"}
# Least sizes that compiled code is given: rows, samples (1 s) and tokens.
ROWS, SAMPLES, TOKENS = 2, 16000, 16
PARTS = ("audio_model", "text_model", "fusion")  # of the model, that are compiled


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout, also in the midst of a training, which then goes on as it was.

    A model that is being trained must not predict in several threads at once.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def portions(windows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many; what came before an error comes before the error."""
    portion: list[Any] = []
    for window in windows:
        if isinstance(window, Exception):
            yield portion
            raise window
        portion.append(window)
        if len(portion) == size:
            yield portion
            portion = []
    yield portion


def similar(
    lengths: Sequence[tuple[int, ...]], batch_size: int, audio_config: Any
) -> Iterator[list[int]]:
    """Numbers of rows of similar lengths, of which all or none have a modality.

    An acoustic encoder that hears padding in spite of a mask (by group norm, or by convolutions
    between its layers) gets batches of one length of audio.

    Args:
        lengths: Samples or frames, and tokens, of each row; 0 of a missing modality.
        batch_size: Rows to a batch, at most.
        audio_config: The acoustic encoder's.
    """
    longest_by_shortest = MOST_PADDED if may_pad(audio_config) else 1.0
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i][1] > 0, lengths[i])):
        if batch:
            (audio, tokens), (shortest, others) = lengths[i], lengths[batch[0]]
            alike = shortest <= audio <= longest_by_shortest * shortest
            alike = alike and (tokens > 0) == (others > 0)
            if len(batch) == batch_size or not alike:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def may_pad(audio_config: Any) -> bool:
    """Whether the encoder of this configuration gives the same states beside padding."""
    has_layer_norm = getattr(audio_config, "feat_extract_norm", "layer") == "layer"
    return has_layer_norm and audio_config.model_type in UNCHANGED_BY_PADDING


def rounded(batch: dict[str, Tensor], processor: Any, audio_config: Any) -> dict[str, Tensor]:
    """A batch of the next of few sizes, so that compiled code meets few of them.

    Audio that must not be padded, and spectra, keep their length.

    Args:
        batch: Raw inputs of the model; rows that are added repeat the last one.
        processor: The model's.
        audio_config: The acoustic encoder's.
    """
    waveforms = "audio_attention_mask" in batch and batch["input_values"].dim() == 2
    pads = waveforms and may_pad(audio_config)
    made = {}
    for name, values in batch.items():
        if name in ("input_ids", "attention_mask"):
            size = min(next_size(values.shape[1], TOKENS), processor.max_tokens)
            fill = processor.tokenizer.pad_token_id if name == "input_ids" else 0
            values = F.pad(values, (0, max(size - values.shape[1], 0)), value=fill)
        elif name in ("input_values", "audio_attention_mask") and pads:
            values = F.pad(values, (0, next_size(values.shape[1], SAMPLES) - values.shape[1]))
        more = next_size(len(values), ROWS) - len(values)
        made[name] = torch.cat([values, *[values[-1:]] * more])
    return made


def rounded_states(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of cached states whose lengths are of few sizes."""
    made = dict(batch)
    for modality in ("acoustic", "linguistic"):
        states, mask = f"{modality}_states", f"{modality}_attention_mask"
        if states in batch:
            missing = next_size(batch[mask].shape[1], TOKENS) - batch[mask].shape[1]
            made[states] = F.pad(batch[states], (0, 0, 0, missing))
            made[mask] = F.pad(batch[mask], (0, missing))
    return made


def next_size(length: int, least: int) -> int:
    """The first of `least` times 1, 1.5, 2, 3, 4, 6, 8 and so on that is not below `length`."""
    size = least
    while size < length:
        size *= 2
    return max(least, size * 3 // 4 if size * 3 // 4 >= length else size)


def regions(model: Any, parts: Sequence[str] = PARTS) -> Iterator[Any]:
    """What is compiled for itself: each layer of the encoders, all of one kind once, and the rest.

    A whole model of twenty-four layers takes minutes to compile, one layer of them seconds.
    """
    for name, module in model.named_modules():
        part, _, inner = name.partition(".")
        if part in parts and (name == "fusion" or inner == "feature_extractor"):
            yield module
        elif part in parts and inner.endswith((".layer", ".layers")):
            yield from module.children()


def collate(rows: list[dict[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows (1, ...) of the same names as one batch, padded on the right."""
    if len(rows) == 1:
        return rows[0]
    batch = {}
    for name in rows[0]:
        longest = max(row[name].shape[-1] for row in rows)
        fill = pad_token_id if name == "input_ids" else 0
        padded = [F.pad(row[name], (0, longest - row[name].shape[-1]), value=fill) for row in rows]
        batch[name] = torch.cat(padded)
    return batch
