"""What decides an encoder's states beside the input; its digest names a folder of the cache."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from modeling_mtmm import MTMMModel
from processing_mtmm import MTMMProcessor

FORMAT = 1  # part of every fingerprint: raise it when the same input would give other states

# Fields of configurations that saving and loading changes, and that change no state.
_PASSING = {"_name_or_path", "architectures", "auto_map", "dtype", "processor_class"}
_PASSING |= {"transformers_version", "id2label", "label2id"}


def describe_states(
    modality: str, model: MTMMModel, processor: MTMMProcessor, dtype: str
) -> dict[str, Any]:
    """All that decides an encoder's states but the input, as JSON; its digest is the fingerprint."""
    encoder = model.encoder_of(modality)
    packages = ["torch", "transformers"]
    if modality == "audio":
        packages += ["soundfile", "soxr"]
        extractor = processor.feature_extractor
        described = _lasting(extractor.to_dict()) | {
            "class": type(extractor).__name__,
            "min_duration_s": processor.min_duration_s,
            "max_duration_s": processor.max_duration_s,
        }
    else:
        packages += ["tokenizers"]
        tokenizer = processor.tokenizer
        rules = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
        if tokenizer.is_fast:
            rules |= json.loads(tokenizer.backend_tokenizer.to_str())
            # Each call of the tokenizer sets these two anew.
            rules |= {"padding": None, "truncation": None}
        described = {
            "class": type(tokenizer).__name__,
            "max_tokens": processor.max_tokens,
            "rules": text_digest(json.dumps(rules, sort_keys=True, default=str)),
        }
    return {
        "format": FORMAT,
        "modality": modality,
        "dtype": dtype,
        "layers": model.config.mixed_layers(modality),  # none: the last alone
        "stride": model.config.acoustic_stride if modality == "audio" else 1,
        "encoder": type(encoder).__name__,
        "attention": encoder.config._attn_implementation,
        "config": _lasting(encoder.config.to_dict()),
        "weights": weights_digest(encoder),
        "processor": described,
        "versions": {name: version(name) for name in packages},
    }


def _lasting(fields: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration can change a state, as it comes back from JSON."""
    kept = {name: value for name, value in fields.items() if name not in _PASSING}
    return json.loads(json.dumps(kept, default=str))


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all names, shapes, dtypes and bytes of a module's state."""

    def digest(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        described = f"{name} {tuple(tensor.shape)} {tensor.dtype} "
        return described + hashlib.sha256(numbers).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return text_digest(pool.map(digest, sorted(module.state_dict().items())))


def text_digest(text: str | Iterable[str]) -> str:
    """SHA-256 of a text, or of lines, in hexadecimal digits."""
    lines = text if isinstance(text, str) else "\n".join(text)
    return hashlib.sha256(lines.encode()).hexdigest()
