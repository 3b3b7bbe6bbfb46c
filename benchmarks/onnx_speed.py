"""The exported model ÷ eager torch: ONNX, and ONNX in 8 bits; on the CPU.

    python benchmarks/onnx_speed.py [--threads 2] [--batch_size 1] [--rounds 20]

Whisper-base's encoder with a 6 s window and MiniLM (the folder that MTMM_REAL_DATA names, or
../shared/real) with new heads; without them HuBERT and DeBERTa-v3 of base size with
random weights. Utterances of 3.6 s with 15 tokens. Exporting is not timed; each round
times all, one after the other, on the same input.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import torch

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.publishing.export import export, quantise, size_of
from mtmm_training.publishing.exported import ExportedModel
from mtmm_training.publishing.parity import random_batch

TARGETS = {"ONNX": 1.0, "ONNX int8": 0.8}
# All that exporting asks a processor.
LIMITS: Any = SimpleNamespace(sampling_rate=16000, max_tokens=64)


def main() -> None:
    parser = common.make_parser(__doc__, rounds=20, batch_size=1)
    arguments, device = common.begin(parser)
    if device.type != "cpu":
        parser.error(f"--device is {arguments.device}; exported files run on the cpu here.")
    model = make_model(arguments)
    batch = random_batch(model, LIMITS, arguments.batch_size, common.MEDIAN_S, common.TOKENS)
    kinds = [model.config.encoder_config(part).model_type for part in ("audio", "text")]
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{' and '.join(kinds)}, {size / 1e6:.1f} M parameters; "
        f"{arguments.batch_size} utterances of {common.MEDIAN_S} s and {common.TOKENS} tokens"
    )
    steps: dict[str, Callable[[], object]] = {"eager": lambda: model(**batch)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        paths = {name: Path(folder, f"{name}.onnx") for name in ("ONNX", "ONNX int8")}
        export(model, LIMITS, paths["ONNX"])
        quantise(paths["ONNX"], paths["ONNX int8"])
        for name, path in paths.items():
            exported = ExportedModel(path)
            steps[name] = partial(exported, **batch)
            print(f"{name}: {size_of(path) / 1e6:.1f} MB")
        watch = common.Stopwatch(device)
        watch.rounds(arguments.rounds, steps)
    watch.print_table()
    for name in list(steps)[1:]:
        watch.print_ratio(f"{name} ÷ eager", name, "eager", TARGETS[name])


def make_model(arguments: argparse.Namespace) -> MTMMModel:
    if arguments.quick:
        return MTMMModel(MTMMConfig.tiny()).eval()
    if (folder := common.real_data()) is not None:
        sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}
        return common.real_model(folder, **sizes)[0]
    base = common.encoders_of_size(768, 12)
    return MTMMModel(MTMMConfig(**base, hidden_size=768, num_attention_heads=12)).eval()


if __name__ == "__main__":
    main()
