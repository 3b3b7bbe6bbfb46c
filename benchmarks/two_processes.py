"""Two processes against one with the same global batch: how far weights and losses come apart.

    python benchmarks/two_processes.py [--epochs 1] [--utterances 120]

One epoch of train_accelerate.py on the embedded corpus: float32, no dropout, random modality masking
on, the default learning rate; alone with batches of 8, then as two gloo processes with batches of 4.
Every loss is recorded, step by step.
"""

import json
import socket
import sys
import tempfile
from pathlib import Path

from accelerate import Accelerator
from common import begin, finish, make_parser, print_result, run_training, synthetic_flags
from safetensors.torch import load_file
from torch import Tensor

import train_accelerate
from mtmm_training.training import launch

TARGET = 1e-5
BATCH = 8
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--utterances", type=int, default=120)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.utterances = 50
    begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        flags = synthetic_flags(work, arguments.utterances, **NO_DROPOUT)
        flags += ["--epochs", str(arguments.epochs), "--cache_dir", "off"]
        train(work / "one", [*flags, "--batch_size", str(BATCH)], processes=1)
        train(work / "two", [*flags, "--batch_size", str(BATCH // 2)], processes=2)
        weights = [load_file(work / run / "model" / "model.safetensors") for run in ("one", "two")]
        losses = [json.loads((work / f"{run}-rank0.json").read_text()) for run in ("one", "two")]
        results = [json.loads((work / run / "results.json").read_text()) for run in ("one", "two")]
    assert [r["processes"] for r in results] == [1, 2] and len(losses[0]) == len(losses[1])
    name, difference = largest_difference(*weights)
    config = results[0]["config"]
    print(
        f"{results[0]['splits']['train']['utterances']} training utterances, {len(losses[0])} steps of "
        f"{BATCH}; learning rate {config['learning_rate']:g}, "
        f"RMM from {config['rmm_start']:g}; loss {losses[0][0]:.4f} to {losses[0][-1]:.4f}"
    )
    print(f"largest weight: {max(float(w.abs().max()) for w in weights[0].values()):.3f}")
    loss_difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    validation = [[e["validation"]["loss"] for e in r["epochs"]] for r in results]
    validation_difference = max(abs(a - b) for a, b in zip(*validation, strict=True))
    print_result("largest weight difference, two processes against one", difference, TARGET, name)
    print_result("largest difference of training losses, all steps", loss_difference, TARGET)
    print_result("largest difference of validation losses", validation_difference, TARGET)


def train(out: Path, flags: list[str], processes: int) -> None:
    """Train in so many processes that talk through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    log = out.with_suffix(".log")
    started = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        losses = out.with_name(f"{out.name}-rank{rank}.json")
        command = [__file__, "--record", str(losses), *flags, "--out", str(out)]
        started.append(run_training(command, log, **environment, **ranks))
    for process in started:
        finish(process, log)


def record(losses_file: Path, flags: list[str]) -> None:
    """Train, and write down the loss of every backward pass."""
    losses: list[float] = []

    class Recorder(Accelerator):
        def backward(self, loss: Tensor, **options: object) -> None:
            losses.append(float(loss.detach()))
            super().backward(loss, **options)

    launch.Accelerator = Recorder  # type: ignore[misc]  # as it imports it
    train_accelerate.main(flags)
    losses_file.write_text(json.dumps(losses))


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> tuple[str, float]:
    """Name of the parameter that differs most, and by how much."""
    assert one.keys() == two.keys()
    differences = {name: float((one[name] - two[name]).abs().max()) for name in one}
    name = max(differences, key=differences.__getitem__)
    return name, differences[name]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        record(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
