"""Write a plain model folder from a LoRA run's adapter.

examples:
mtmm merge out/run/adapter out/merged
mtmm merge out/run/adapter out/merged --base out/before/model
"""

import argparse

from mtmm_training.commands.flags import declare


def add_flags(parser: argparse.ArgumentParser) -> None:
    declare(parser, "merge")


def run(options: argparse.Namespace) -> None:
    from mtmm_training.training.adapters import merge

    moved = {name: getattr(options, name) for name in ("base", "audio_encoder", "text_encoder")}
    merge(options.adapters, options.out, **moved)
    print(f"{options.out} holds the merged model")
