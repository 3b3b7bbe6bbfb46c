"""Which encoder families of transformers work in MTMM: forward, save, load; and why not.

    python benchmarks/encoder_families.py                   # every family, some minutes
    python benchmarks/encoder_families.py hubert bert t5    # these only

Every model type of AutoModel that takes waveforms (input_values), mel frames (input_features) or tokens
(input_ids) is built from its default configuration with the sizes cut down, as one encoder of a tiny
model. A family that fails by itself, outside MTMM too, is marked so.
"""

import argparse
import collections
import copy
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.data.files import read_toml

LIMIT_S = 30
LARGEST = 20_000_000  # parameters of an encoder whose sizes were cut down
SIZES = read_toml(Path(__file__).with_suffix(".toml"))
MODALITIES = {"input_values": "audio", "input_features": "audio", "input_ids": "text"}


def cut_down(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same kind of model with the sizes of SIZES."""
    values = config.to_dict()
    layers = values.get("num_hidden_layers")
    for name, value in values.items():
        part = next((part for part in SIZES if part in name), None)
        if isinstance(vars(config).get(name), PreTrainedConfig):
            values[name] = cut_down(vars(config)[name]).to_dict()
        elif isinstance(value, (list, tuple)) and len(value) == layers:  # something of each layer
            values[name] = value[: SIZES["layers"]]
        elif "feat_extract" in name or "conv" in name:
            values[name] = [32] * len(value) if name == "conv_dim" else value
        elif type(value) is int and part is not None:
            values[name] = min(value, SIZES[part])
        elif type(value) is int and name.endswith("_token_id"):
            values[name] = min(value, 3)
    return type(config)(**values)


def families() -> dict[str, str]:
    """Model type: its modality."""
    found = {}
    for model_type, names in MODEL_MAPPING_NAMES.items():
        try:
            kind = getattr(transformers, names if isinstance(names, str) else names[0])
            modality = MODALITIES.get(str(kind.main_input_name))
        except (AttributeError, ImportError):  # it needs a library that is not installed
            continue
        if modality is not None:
            found[model_type] = modality
    return found


def stop(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT_S} s")


def inputs_of(model: MTMMModel, modality: str) -> dict[str, torch.Tensor]:
    """Two utterances, random."""
    torch.manual_seed(0)
    if modality == "text":
        return {"input_ids": torch.randint(4, 100, (2, 12))}
    shape = model._audio_input.empty(torch.device("cpu"), 0).shape[1:]
    return {"input_values": torch.randn(2, *(shape if len(shape) == 2 else (16000,)))}


def small_config(model_type: str) -> PreTrainedConfig:
    """The family's default configuration, cut down.

    Raises:
        MemoryError: It is large all the same.
    """
    config = cut_down(CONFIG_MAPPING[model_type]())
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModel.from_config(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise MemoryError(f"{size:,} parameters after the sizes were cut down")
    return config


def steps(model_type: str, modality: str) -> Iterator[str]:
    """Go through one model's life; yields the name of each step that was done."""
    config = small_config(model_type)
    yield "builds"
    torch.manual_seed(0)
    model = MTMMModel(MTMMConfig.tiny(**{f"{modality}_config": config})).eval()
    inputs = inputs_of(model, modality)
    encoder, takes = getattr(model, f"{modality}_model"), getattr(model, f"_{modality}_input")
    values = next(iter(inputs.values()))
    mask = torch.ones(2, values.shape[takes.time_axis(values)], dtype=torch.bool)
    with torch.no_grad():
        states = encoder(**takes.arguments(values, mask)).last_hidden_state
        assert states.dim() == 3, f"its states are {tuple(states.shape)}"
        yield "alone"
        expected = model(**inputs).emotion_logits
    yield "forward"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield "saves"
        loaded = MTMMModel.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).emotion_logits, expected, rtol=0, atol=1e-6)
    yield "loads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model_types", nargs="*", help="all of AutoModel's if none")
    wanted = parser.parse_args().model_types
    warnings.filterwarnings("ignore")
    # Of computing, not of waiting, which depends on what else the machine does.
    signal.signal(signal.SIGPROF, stop)
    transformers.logging.set_verbosity(50)
    print("| family | modality | alone | forward | saves | loads | why not |")
    print("|---|---|---|---|---|---|---|")
    counts: collections.Counter[str] = collections.Counter()
    for model_type, modality in sorted(families().items(), key=lambda item: item[1]):
        if wanted and model_type not in wanted:
            continue
        done: list[str] = []
        reason = ""
        try:
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            for step in steps(model_type, modality):
                done.append(step)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        cells = ["yes" if step in done else "no" for step in ("alone", "forward", "saves", "loads")]
        counts.update(done)
        print(f"| {model_type} | {modality} | {' | '.join(cells)} | {reason} |", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
