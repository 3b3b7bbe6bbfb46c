"""Loading a whole model ÷ loading its two encoders by themselves, from local folders.

    python benchmarks/load_time.py [--rounds 5]

The paper's shapes with random weights, saved first (about 6 GB in the temporary folder), float32. The
model is loaded as a user does, `AutoModel.from_pretrained(folder, trust_remote_code=True)`, the
encoders by `AutoModel.from_pretrained`. A first round that is not counted fills the file cache.
"""

import tempfile
from pathlib import Path

from common import Stopwatch, begin, make_config, make_parser
from transformers import AutoModel

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel

TARGET = 1.2


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    arguments = parser.parse_args()
    device = begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        save(make_config(arguments.quick), Path(folder))
        steps = {
            "two bare encoders": lambda: [
                AutoModel.from_pretrained(Path(folder, name)).to(device)
                for name in ("audio", "text")
            ],
            "whole model": lambda: AutoModel.from_pretrained(
                Path(folder, "mtmm"), trust_remote_code=True
            ).to(device),
        }
        watch = Stopwatch(device)
        watch.rounds(arguments.rounds, steps)
    watch.print_table()
    watch.print_ratio(
        "loading the whole model ÷ two bare encoders", "whole model", "two bare encoders", TARGET
    )


def save(config: MTMMConfig, folder: Path) -> None:
    """The model, and its encoders beside it; in a function, so that no copy stays in memory."""
    model = MTMMModel(config)
    parameters = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in (
            ("whole", model),
            ("audio", model.audio_model),
            ("text", model.text_model),
        )
    }
    print(", ".join(f"{name} {count:.1f} M parameters" for name, count in parameters.items()))
    model.save_pretrained(folder / "mtmm")
    model.audio_model.save_pretrained(folder / "audio")
    model.text_model.save_pretrained(folder / "text")


if __name__ == "__main__":
    main()
