"""How long commands take to start, each in a process of its own ÷ the bare libraries' start.

    python benchmarks/start_up.py --model out/demo/fused/model --audio speech.wav [--rounds 5]

The bare start is `import torch, transformers` and loading the model's two encoders, its tokenizer and
its feature extractor, from folders of their own. Seconds of the wall clock; a first round that is not
counted fills the file cache.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import ROOT, Stopwatch, begin, make_parser, print_result

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
    arguments = parser.parse_args()
    device = begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        save(arguments.model, Path(folder))

        def run(*words: str) -> Callable[[], object]:
            return lambda: subprocess.run(
                [sys.executable, *words], cwd=ROOT, check=True, capture_output=True
            )

        mtmm = ("-m", "mtmm_training")
        steps = {
            "bare encoders": run("-c", BARE, folder),
            "import modeling_mtmm": run("-c", "import modeling_mtmm"),
            "mtmm predict": run(*mtmm, "predict", arguments.audio, "--model", arguments.model),
            "mtmm --help": run(*mtmm, "--help"),
            "mtmm predict --help": run(*mtmm, "predict", "--help"),
        }
        watch = Stopwatch(device)
        watch.rounds(arguments.rounds, steps)
    watch.print_table()
    for name in ("import modeling_mtmm", "mtmm predict"):
        watch.print_ratio(f"{name} ÷ bare encoders", name, "bare encoders", TARGET)
    for name in ("mtmm --help", "mtmm predict --help"):
        print_result(f"{name}, s", watch.median(name), HELP_S, "")


def save(model: str, folder: Path) -> None:
    """The two encoders with what prepares their inputs, by themselves."""
    whole, processor = MTMMModel.from_pretrained(model), MTMMProcessor.from_pretrained(model)
    whole.audio_model.save_pretrained(folder / "audio")
    whole.text_model.save_pretrained(folder / "text")
    processor.feature_extractor.save_pretrained(folder / "audio")
    processor.tokenizer.save_pretrained(folder / "text")


if __name__ == "__main__":
    main()
