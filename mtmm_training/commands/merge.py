"""Write a plain model folder from a LoRA run's adapter.

examples:
mtmm merge out/run/adapter out/merged
mtmm merge out/run/adapter out/merged --base out/before/model
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", help="folder adapter/ of a run with --lora_rank")
    parser.add_argument("out", help="folder of the merged model")
    moved = parser.add_argument_group("where its parts are now, if they were folders")
    moved.add_argument("--base", help="the MTMM model that the run began from")
    moved.add_argument("--audio_encoder", help="the run's acoustic encoder")
    moved.add_argument("--text_encoder", help="the run's linguistic encoder")


def run(options: argparse.Namespace) -> None:
    from mtmm_training.training.adapters import merge

    moved = {name: getattr(options, name) for name in ("base", "audio_encoder", "text_encoder")}
    merge(options.adapters, options.out, **moved)
    print(f"{options.out} holds the merged model")
