"""Peak memory and utterances a second of training: frozen from the cache, frozen, LoRA, in full.

    python benchmarks/memory_throughput.py [--device cuda] [--batch_size 4]

The paper's shapes with random weights; utterances of 3.6 s; each way in a process of its own. One
step warms up, then two are timed. On a CPU the peak is the process's largest resident size,
libraries included; on a GPU it is what torch allocated there.
"""

import argparse
import time
from functools import partial

import common
import torch
from torch import nn

from modeling_mtmm import MTMMModel
from mtmm_training.training.adapters import add_lora

MODES = ("frozen, cached", "frozen", "LoRA", "full fine-tuning")
STEPS = 2


def main() -> None:
    parser = common.make_parser(__doc__, batch_size=4)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = parser.parse_args()
    common.begin(arguments)
    print(f"batches of {arguments.batch_size} x {common.MEDIAN_S} s")
    print(f"{'':<18}{'peak memory, GiB':>18}{'utterances/s':>14}{'trained parameters':>20}")
    rows = {}
    for mode in arguments.modes:
        try:
            peak, rate, trained = common.in_own_process(measure, arguments, mode)
        except (RuntimeError, MemoryError) as error:
            # Also where it was killed for its memory: the table goes on.
            print(f"{mode:<18}  failed: {error}")
            continue
        rows[mode] = peak, rate
        print(f"{mode:<18}{peak / 2**30:>18.2f}{rate:>14.3f}{trained:>20,}", flush=True)
    if "frozen, cached" in rows and len(rows) > 1:
        least, fastest = rows.pop("frozen, cached")
        parts = [
            f"{mode} {fastest / rate:.1f} x the speed, {peak / least:.2f} x the memory"
            for mode, (peak, rate) in rows.items()
        ]
        print(f"RESULT training from the cache has, against {'; '.join(parts)}")


def measure(arguments: argparse.Namespace, mode: str) -> tuple[int, float, int]:
    """Train a few steps in one way; peak bytes, utterances a second, trained parameters."""
    device = common.begin_quietly(arguments)
    frozen = mode != "full fine-tuning"
    config = common.make_config(
        arguments.quick, freeze_audio_encoder=frozen, freeze_text_encoder=frozen
    )
    plain = MTMMModel(config)
    lora = mode == "LoRA"
    model: nn.Module = add_lora(plain, rank=8, alpha=16.0, dropout=0.05) if lora else plain
    model.to(device).train()
    optimiser = common.make_optimiser(model)
    batch = common.raw_batch(config, [common.MEDIAN_S] * arguments.batch_size, device)
    if mode == "frozen, cached":
        batch = in_place_of_encoders(plain, batch)
    step = partial(common.train_step, model, optimiser, batch)
    step()
    common.synchronise(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    common.synchronise(device)
    rate = STEPS * arguments.batch_size / (time.perf_counter() - began)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return common.peak_bytes(device), rate, trained


def in_place_of_encoders(
    model: MTMMModel, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The batch with random states, half precision as in the cache, for its raw inputs."""
    samples = batch["audio_attention_mask"].sum(-1)
    lengths = {
        "acoustic": model.audio_model._get_feat_extract_output_lengths(samples),
        "linguistic": batch["attention_mask"].sum(-1),
    }
    encoders = {"acoustic": model.audio_model, "linguistic": model.text_model}
    states = {}
    for name, length in lengths.items():
        shape = (len(length), int(length.max()), encoders[name].config.hidden_size)
        states[f"{name}_states"] = torch.randn(shape, device=model.device).half()
    return states | {name: tensor for name, tensor in batch.items() if name.endswith("_labels")}


if __name__ == "__main__":
    main()
