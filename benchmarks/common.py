"""What the benchmarks share: flags, the machine's line, timing in turns, models, inputs."""

import argparse
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configuration_mtmm import DEBERTA_V3_LARGE, HUBERT_LARGE, MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.training.graphs import PassGraphs

ROOT = Path(__file__).parents[1]
MEDIAN_S, SPREAD, SHORTEST_S, LONGEST_S = 3.6, 0.7, 0.6, 34.0  # of IEMOCAP's utterances, about
IEMOCAP_UTTERANCES = 5531  # of its four emotions
TOKENS = 15  # of a median transcript
AUDIO, TEXT = ("input_values", "audio_attention_mask"), ("input_ids", "attention_mask")


# ---- flags and machine -------------------------------------------------------------------------


def make_parser(
    description: str, rounds: int | None = None, batch_size: int | None = None
) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have; --rounds and --batch_size where given."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: seconds, and no claim")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--layers", type=int, help="of each encoder; the paper's 24 if not given")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; its default if not given")
    if rounds is not None:
        text = f"timed turns of each side; {rounds} if not given"
        parser.add_argument("--rounds", type=int, default=rounds, help=text)
    if batch_size is not None:
        parser.add_argument("--batch_size", type=int, default=batch_size)
    return parser


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, torch.device]:
    """Parse the flags, set the threads, print the machine's line; flags and device."""
    arguments = parser.parse_args()
    device = begin_quietly(arguments)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(
        f"{cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}; torch {torch.__version__}; device {name}"
        f"{'; QUICK: tiny sizes' * arguments.quick}",
        flush=True,
    )
    return arguments, device


def begin_quietly(arguments: argparse.Namespace) -> torch.device:
    """Set the threads and the seed, return the device."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return torch.device(arguments.device)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


# ---- timing ------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds by name; in every round each name is timed once.

    Args:
        device: Waited for before and after; what it still does would be somebody else's time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def rounds(self, count: int, steps: dict[str, Callable[[], object]]) -> None:
        """Every step once to warm up, then once a round; every other round backwards."""
        for step in steps.values():
            step()
        for number in range(count):
            for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
                synchronise(self.device)
                began = time.perf_counter()
                steps[name]()
                synchronise(self.device)
                self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of one's time ÷ the other's: neighbours in time share the load."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def print_table(self) -> None:
        """Median and minimum of each, in milliseconds."""
        rounds = len(next(iter(self.seconds.values())))
        print(f"{f'ms, {rounds} rounds':<36}{'median':>12}{'min':>10}")
        for name, seconds in self.seconds.items():
            print(f"{name:<36}{1000 * self.median(name):>12.1f}{1000 * min(seconds):>10.1f}")

    def print_ratio(
        self, claim: str, name: str, base: str, target: float, at_least: bool = False
    ) -> None:
        minima = min(self.seconds[name]) / min(self.seconds[base])
        remark = f"of the minima {minima:.4g}"
        print_result(claim, self.ratio(name, base), target, remark, at_least)


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_process(words: Sequence[str], **options: Any) -> tuple[float, float]:
    """A command's seconds by the clock, and of the CPU: where others work too, those are what it takes."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, **options)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fresh process, whose peak memory is this function's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes(device: torch.device) -> int:
    """The largest that torch allocated on a GPU; else this process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_result(
    claim: str, value: float, target: float, remark: str = "", at_least: bool = False
) -> None:
    """The line that a benchmark is for: the number, its target, and whether it meets it."""
    met = value >= target if at_least else value <= target
    sign = ">=" if at_least else "<="
    remark = f" ({remark})" if remark else ""
    print(
        f"RESULT {claim}: {value:.4g}{remark}; target {sign} {target:g}: "
        f"{'met' if met else 'MISSED'}",
        flush=True,
    )


# ---- model and inputs --------------------------------------------------------------------------


def build(arguments: argparse.Namespace, device: torch.device, **fields: Any) -> MTMMModel:
    """A model of the paper's shapes with random weights, made on the device itself."""
    if arguments.layers and not arguments.quick:
        fields = encoders_of_size(1024, arguments.layers, vocab_size=1000) | fields
    make_config = MTMMConfig.tiny if arguments.quick else MTMMConfig.paper
    with device:
        model: Any = MTMMModel(make_config(**fields))
    made: MTMMModel = model.to(device)
    return made  # HuBERT makes one weight on the CPU, whatever it is told


def encoders_of_size(width: int, layers: int, **text: object) -> dict[str, Any]:
    """Configurations of HuBERT, behind its own convolutions, and DeBERTa-v3 in another size."""
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    return {
        "audio_config": HUBERT_LARGE | sizes | {"model_type": "hubert"},
        "text_config": DEBERTA_V3_LARGE | sizes | {"model_type": "deberta-v2"} | text,
    }


def real_data() -> Path | None:
    """The folder of small real encoders and recordings, or None."""
    folder = Path(os.environ.get("MTMM_REAL_DATA", ROOT.parent / "shared" / "real"))
    return folder if folder.is_dir() else None


def real_model(folder: Path, **fields: Any) -> tuple[MTMMModel, MTMMProcessor]:
    """Whisper-base with a 6 s window and MiniLM of `real_data()`, with a new fusion and heads."""
    names = ("whisper-base-6s", "all-MiniLM-L6-v2")
    audio, text = (str(folder / "encoders" / name) for name in names)
    model = MTMMModel.from_encoders_pretrained(audio, text, **fields).eval()
    return model, MTMMProcessor.from_encoders_pretrained(audio, text)


def trainer(
    model: torch.nn.Module, precision: str = "no", graphs: bool = False
) -> Callable[[dict[str, Tensor]], None]:
    """A step on a batch: forward, backward and optimiser; clips the gradient, as training does.

    With `graphs` the passes are CUDA graphs, as they are where training reads the cache.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def passes(batch: dict[str, Tensor]) -> Tensor:
        kind = batch["emotion_labels"].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    both = PassGraphs(passes, model) if graphs else passes

    def step(batch: dict[str, Tensor]) -> None:
        both(batch)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=not graphs)

    return step


def cached_batch(model: MTMMModel, rows: int, device: torch.device) -> dict[str, Tensor]:
    """Random states of median utterances, half precision as in the cache, and labels."""
    batch = raw_batch(model.config, [MEDIAN_S] * rows, device)
    frames = int(model.audio_model._get_feat_extract_output_lengths(int(MEDIAN_S * 16000)))
    states = {name: tensor for name, tensor in batch.items() if name.endswith("_labels")}
    for name, part, time_ in ("acoustic", "audio", frames), ("linguistic", "text", TOKENS):
        shape = rows, time_, model.config.encoder_config(part).hidden_size
        states[f"{name}_states"] = torch.randn(shape, device=device).half()
        real = torch.ones(shape[:2], dtype=torch.bool, device=device)
        states[f"{name}_attention_mask"] = real
    return states


def iemocap_like_seconds(count: int) -> np.ndarray:
    """Durations (count,) drawn from a log-normal like IEMOCAP's: median 3.6 s, 0.6 to 34 s."""
    draw = np.random.default_rng(0).lognormal(np.log(MEDIAN_S), SPREAD, count)
    return draw.clip(SHORTEST_S, LONGEST_S)


def tokens_of(seconds: float) -> int:
    """Of a transcript: about four a second, and two at its ends."""
    return max(round(seconds * (TOKENS - 2) / MEDIAN_S) + 2, 3)


def raw_batch(
    config: MTMMConfig, seconds: Sequence[float], device: torch.device
) -> dict[str, Tensor]:
    """Random waveforms of these durations, transcripts to match, and labels."""
    samples = [round(16000 * s) for s in seconds]
    tokens = [tokens_of(s) for s in seconds]
    ids = torch.randint(5, config.encoder_config("text").vocab_size, (len(tokens), max(tokens)))
    batch = {
        "input_values": torch.randn(len(samples), max(samples)),
        "audio_attention_mask": _mask(samples),
        "input_ids": ids,
        "attention_mask": _mask(tokens),
        "emotion_labels": torch.randint(0, 4, (len(samples),)),
        "dimension_labels": 1 + 4 * torch.rand(len(samples), 2),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
