"""Write a model as one file that runs without this code: ONNX, or torch.export's.

examples:
mtmm export out/run/model out/mtmm.onnx
mtmm export out/run/model out/mtmm.int8.onnx --int8 --run out/run
mtmm export out/run/model out/mtmm.pt2
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id of an MTMM model")
    parser.add_argument("out", help="file to write, .onnx or .pt2")
    parser.add_argument("--int8", action="store_true", help="8 bits for linear layers; .onnx only")
    parser.add_argument("--run", help="run folder on whose test split to measure the cost")


def run(options: argparse.Namespace) -> None:
    from mtmm_training.publishing.export import export_model

    print(export_model(options.model, options.out, int8=options.int8, run=options.run))
