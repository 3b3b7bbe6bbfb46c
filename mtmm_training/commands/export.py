"""Write a model as a folder that answers without torch, or as one torch program.

examples:
  mtmm export out/run/model exported
  mtmm export out/run/model exported --precision int8 --run out/run
  mtmm export out/run/model exported --precision int8 --page
  mtmm export out/run/model out/mtmm.pt2

The folder has the graph (model.onnx), the tokenizer, and a manifest of all else that it takes.
The package in runtime/ reads it with onnxruntime: `pip install ./runtime`.
"""

import argparse

from mtmm_training.commands.flags import declare, refuse


def add_flags(parser: argparse.ArgumentParser) -> None:
    declare(parser, "export")


def run(options: argparse.Namespace) -> None:
    refuse(
        (options.out.endswith(".onnx"), f"{options.out} is a file's name; give a folder, such as exported"),
        (options.out.endswith(".pt2") and options.precision != "float32",
         "--precision is for a folder; a .pt2 has float32"),
        (options.out.endswith(".pt2") and options.page, "--page is for a folder"),
    )  # fmt: skip
    from mtmm_training.publishing.folder import export_model

    print(export_model(options.model, options.out, options.precision, options.run, options.page))
