"""What commands take to start, each in a process of its own ÷ the bare libraries' start.

    python benchmarks/start_up.py --model out/demo/fused/model --audio speech.wav [--rounds 5]

The bare start is `import torch, transformers` and loading the model's two encoders, its tokenizer and
its feature extractor, from folders of their own. A first round that is not counted fills the file cache.
Claims are of CPU seconds, on one thread; the clock's stand beside them.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, begin, make_parser, print_result, time_process

from modeling_mtmm import MTMMModel
from processing_mtmm import MTMMProcessor

BARE = """
import sys, torch, transformers
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer
audio, text = f"{sys.argv[1]}/audio", f"{sys.argv[1]}/text"
AutoModel.from_pretrained(audio), AutoFeatureExtractor.from_pretrained(audio)
AutoModel.from_pretrained(text), AutoTokenizer.from_pretrained(text)
"""
TARGET, HELP_S = 1.3, 0.3


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--model", required=True, help="folder of an MTMM model")
    parser.add_argument("--audio", required=True, help="a short recording")
    arguments, _ = begin(parser)
    with tempfile.TemporaryDirectory() as folder:
        save(arguments.model, Path(folder))
        mtmm = ("-m", "mtmm_training")
        steps = {
            "bare encoders": ("-c", BARE, folder),
            "import modeling_mtmm": ("-c", "import modeling_mtmm"),
            "mtmm predict": (*mtmm, "predict", arguments.audio, "--model", arguments.model),
            "mtmm --help": (*mtmm, "--help"),
            "mtmm predict --help": (*mtmm, "predict", "--help"),
        }
        print(f"{'seconds, medians':<24}{'clock':>8}{'CPU':>8}")
        used = {name: measure(name, words, arguments.rounds) for name, words in steps.items()}
    for name in ("import modeling_mtmm", "mtmm predict"):
        print_result(f"{name} ÷ bare encoders", used[name] / used["bare encoders"], TARGET)
    for name in ("mtmm --help", "mtmm predict --help"):
        print_result(f"{name}, s", used[name], HELP_S)


def measure(name: str, words: tuple[str, ...], rounds: int) -> float:
    """Print a row, and return the CPU seconds."""
    how: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    words = (sys.executable, *words)
    runs = [time_process(words, capture_output=True, **how) for _ in range(rounds + 1)]
    clock, used = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    print(f"{name:<24}{clock:>8.2f}{used:>8.2f}", flush=True)
    return used


def save(model: str, folder: Path) -> None:
    """The two encoders with what prepares their inputs, by themselves."""
    whole, processor = MTMMModel.from_pretrained(model), MTMMProcessor.from_pretrained(model)
    whole.audio_model.save_pretrained(folder / "audio")
    whole.text_model.save_pretrained(folder / "text")
    processor.feature_extractor.save_pretrained(folder / "audio")
    processor.tokenizer.save_pretrained(folder / "text")


if __name__ == "__main__":
    main()
