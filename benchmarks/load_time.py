"""Loading a whole model ÷ loading its two encoders by themselves, from local folders.

    python benchmarks/load_time.py [--rounds 5]

The paper's shapes with random weights, saved first (about 6 GB in the temporary folder), float32. The
model is loaded as a user does, `AutoModel.from_pretrained(folder, trust_remote_code=True)`, the
encoders by `AutoModel.from_pretrained`. A first round that is not counted fills the file cache.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from common import Stopwatch, begin, build, make_parser
from transformers import AutoModel

TARGET = 1.2


def main() -> None:
    arguments, device = begin(make_parser(__doc__, rounds=5))
    with tempfile.TemporaryDirectory() as folder:
        save(arguments, Path(folder))

        def load(name: str, **options: bool) -> object:
            return AutoModel.from_pretrained(Path(folder, name), **options).to(device)

        steps = {
            "two bare encoders": lambda: [load("audio"), load("text")],
            "whole model": lambda: load("mtmm", trust_remote_code=True),
        }
        watch = Stopwatch(device)
        watch.rounds(arguments.rounds, steps)
    watch.print_table()
    claim = "loading the whole model ÷ two bare encoders"
    watch.print_ratio(claim, "whole model", "two bare encoders", TARGET)


def save(arguments: argparse.Namespace, folder: Path) -> None:
    """The model, and its encoders beside it; in a function, so that no copy stays in memory."""
    model = build(arguments, torch.device("cpu"))
    for name, part in ("mtmm", model), ("audio", model.audio_model), ("text", model.text_model):
        print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.1f} M parameters")
        part.save_pretrained(folder / name)


if __name__ == "__main__":
    main()
