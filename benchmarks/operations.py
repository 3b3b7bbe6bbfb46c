"""Count the operations that torch dispatches: each is a launch or a view that a GPU's host must make.

    python benchmarks/operations.py                  # the working tree
    python benchmarks/operations.py 499aabd HEAD     # two commits, a column each

The fusion, heads and loss have the paper's layers, on states of four utterances; DeBERTa has 24 layers.
Widths are small: the counts do not depend on them. Launches are counted without views. A host waits
where a value leaves the device; the encoders' own waits are named by the line that waits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGETS = {"the same and the loss": 246, "DeBERTa, 24 layers": 1729}
VIEWS = """view _unsafe_view t transpose expand slice select unsqueeze squeeze permute alias detach unbind
split split_with_sizes chunk""".split()


# By name: operations, those that are no views, and lines that wait.
Counts = dict[str, tuple[int, int, list[str]]]


def count(work: Any) -> tuple[int, int, list[str]]:
    """Operations that `work` dispatches, those of them that are not views, and lines that wait."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []
    waits: list[str] = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.append(func.overloadpacket.__name__)
            if names[-1] == "_local_scalar_dense":
                frames = [f for f in traceback.extract_stack()[:-1] if "/torch/" not in f.filename]
                waits.append(f"{Path(frames[-1].filename).name}: {frames[-1].line}")
            return func(*args, **(kwargs or {}))

    with Counter():
        work()
    return len(names), sum(name not in VIEWS for name in names), waits


def measure() -> Counts:
    """The counts of the modules that this interpreter imports."""
    import torch

    from configuration_mtmm import DEBERTA_V3_LARGE, MTMMConfig
    from modeling_mtmm import MTMMModel

    narrow: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    text = DEBERTA_V3_LARGE | narrow | {"num_attention_heads": 4, "vocab_size": 100}
    audio = MTMMConfig.tiny().encoder_config("audio")
    encoders: dict[str, Any] = {"audio_config": audio.to_dict(), "text_config": text}
    # The paper's numbers of layers and bridge tokens are the defaults.
    config = MTMMConfig(**encoders, **narrow, num_attention_heads=16)
    torch.manual_seed(0)
    model = MTMMModel(config).eval()
    states = {
        "acoustic_states": torch.randn(4, 180, audio.hidden_size),
        "acoustic_attention_mask": torch.ones(4, 180, dtype=torch.bool),
        "linguistic_states": torch.randn(4, 15, 64),
        "linguistic_attention_mask": torch.ones(4, 15, dtype=torch.bool),
    }
    labels = {
        "emotion_labels": torch.zeros(4, dtype=torch.long),
        "dimension_labels": torch.rand(4, len(config.dimension_names)) + 2,
    }
    ids, mask = torch.ones(4, 15, dtype=torch.long), torch.ones(4, 15, dtype=torch.long)
    found = {}
    with torch.no_grad():
        found["fusion and heads"] = count(lambda: model(**states))
        found["the same and the loss"] = count(lambda: model(**states, **labels))
        found["DeBERTa, 24 layers"] = count(lambda: model.encode_text(ids, mask))
        sound = torch.randn(4, 8000), torch.ones(4, 8000, dtype=torch.long)
        found["HuBERT, tiny, padded"] = count(lambda: model.encode_audio(*sound))
    model.train()
    found["training pass and backward"] = count(lambda: model(**states, **labels).loss.backward())
    return found


def measured_at(commit: str | None) -> Counts:
    """The counts of a commit, or of the working tree, by an interpreter of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = folder if commit else str(ROOT)
        if commit:
            archive = subprocess.check_output(["git", "-C", str(ROOT), "archive", commit])
            subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
        environment, command = os.environ | {"PYTHONPATH": place}, [sys.executable, __file__]
        said = subprocess.check_output([*command, "--here"], env=environment, cwd=place)
    found: Counts = json.loads(said)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commits", nargs="*", help="the working tree if none is given")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure()))
        return
    from common import print_result

    commits = arguments.commits or [None]
    columns = {commit or "working tree": measured_at(commit) for commit in commits}
    print(f"{'dispatched operations (launches)':<34}" + "".join(f"{name:>20}" for name in columns))
    for row in next(iter(columns.values())):
        cells = "".join(f"{f'{c[row][0]:,} ({c[row][1]:,})':>20}" for c in columns.values())
        print(f"{row:<34}{cells}")
    newest = next(reversed(columns.values()))
    for row, most in TARGETS.items():
        print_result(f"operations, {row}", newest[row][0], most)
    for row, (_, _, waits) in newest.items():
        print(f"{row}: {len(waits)} waits {'; '.join(waits)}")


if __name__ == "__main__":
    main()
