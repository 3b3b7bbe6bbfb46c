"""LoRA on the small real encoders: trains on recordings, merges, and leaves files of these sizes.

    python benchmarks/lora_real.py [--real FOLDER] [--speakers 4] [--epochs 1] [--rank 8]

A run of train_accelerate.py with --lora_rank on Whisper-base's encoder and MiniLM (--real, else
MTMM_REAL_DATA or ../shared/real); the last two speakers validate and test. Then the emotion logits
and dimensions of the saved plain model, of the adapters on the encoders, and of both merged again
are compared.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from common import ROOT, begin, finish, make_parser, print_result, real_data, run_training
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.batches.collate import RawInputs, to_dataset
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.training.adapters import merge

TARGET = 1e-4
COMPARED = 4  # utterances


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--real", type=Path, default=real_data(), help="folder of encoders/, ravdess4/"
    )
    parser.add_argument("--speakers", type=int, default=4, help="at least 3")
    parser.add_argument("--utterances", type=int, help="of each speaker; all if not given")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.speakers, arguments.utterances = 3, 4
    begin(arguments)
    if arguments.real is None:
        print("no small real encoders here; name their folder with --real or MTMM_REAL_DATA")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        train(arguments, Path(folder))
        compare(arguments, out)
        print_sizes(out)


def encoders(arguments: argparse.Namespace) -> dict[str, str]:
    names = {"audio_encoder": "whisper-base-6s", "text_encoder": "all-MiniLM-L6-v2"}
    return {flag: str(arguments.real / "encoders" / name) for flag, name in names.items()}


def train(arguments: argparse.Namespace, folder: Path) -> None:
    """Train on a few speakers; print the run's own summary, parameters and scores."""
    utterances = read_manifest(arguments.real / "ravdess4" / "manifest.csv")
    speakers = sorted({u.speaker_id for u in utterances})[: arguments.speakers]
    kept = []
    for speaker in speakers:  # spread over a speaker's emotions
        own = [u for u in utterances if u.speaker_id == speaker]
        count = arguments.utterances or len(own)
        kept += own[:: max(len(own) // count, 1)][:count]
    write_manifest(kept, folder / "manifest.jsonl")
    flags = encoders(arguments) | {
        "manifest": folder / "manifest.jsonl",
        "validation_speakers": speakers[-2],
        "test_speakers": speakers[-1],
        "lora_rank": arguments.rank,
        "epochs": arguments.epochs,
        "batch_size": 8,
        "tracker": "none",
        "out": folder / "run",
        "model_config": json.dumps({"hidden_size": 256, "num_attention_heads": 4}),
    }
    command = [str(ROOT / "train_accelerate.py")]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = {} if arguments.device != "cpu" else {"ACCELERATE_USE_CPU": "true"}
    log = folder / "log.txt"
    finish(run_training(command, log, **environment), log)
    for line in log.read_text().splitlines():
        if line.startswith(("fold", "  ", "epoch", "test")) and "warn" not in line:
            print(f"  | {line}")


def compare(arguments: argparse.Namespace, out: Path) -> None:
    """The same inputs through the model as saved, with its adapters apart, and merged anew."""
    saved = MTMMModel.from_pretrained(out / "model")
    own = set(MTMMConfig.__annotations__) - {"audio_config", "text_config"}
    fields = {name: getattr(saved.config, name) for name in own}
    names = encoders(arguments)
    base = MTMMModel.from_encoders_pretrained(*names.values(), **fields)
    utterances = read_manifest(out.parent / "manifest.jsonl")[:COMPARED]
    collate = RawInputs(MTMMProcessor.from_pretrained(out / "model"), (), ())
    batch = collate(list(to_dataset(utterances)))
    inputs = {n: t for n, t in batch.items() if "labels" not in n and n != "utterance_ids"}
    reference = outputs(saved, inputs)
    untrained = difference(outputs(base, inputs), reference)
    others: dict[str, torch.nn.Module] = {
        "adapters apart": PeftModel.from_pretrained(base, out / "adapter"),
        "merged anew": merge(out / "adapter", **names),
    }
    differences = {name: difference(outputs(m, inputs), reference) for name, m in others.items()}
    parts = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"differ from the saved model by, at most: {parts}; before training {untrained:.1e}")
    print_result(
        "largest difference of outputs, adapters against merged", max(differences.values()), TARGET
    )


@torch.no_grad()
def outputs(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Emotion logits and dimensions side by side."""
    output = model.eval()(**inputs)
    return torch.cat([output.emotion_logits, output.dimensions], dim=-1)


def print_sizes(out: Path) -> None:
    """Of the files of weights, and what of the adapter's are adapters."""
    for part in ("model", "adapter"):
        for file in sorted((out / part).glob("*.safetensors")):
            print(f"{part + '/' + file.name:<40}{file.stat().st_size / 2**20:>9.2f} MiB")
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    own = sum(tensor.nbytes for name, tensor in weights.items() if "lora_" in name)
    print(f"{'  of it adapters, else fusion and heads':<40}{own / 2**20:>9.2f} MiB")


def difference(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


if __name__ == "__main__":
    main()
