"""The pipeline in batches against one by one: seconds, and the largest difference of any number.

    python benchmarks/batched_pipeline.py [--batch_size 16] [--encoders medium] [--modalities text]

Utterances of IEMOCAP-like lengths in memory, in random order; the pipeline sorts them. One table for
audio with transcripts, one for each modality alone. A few seconds of audio are some hundred frames,
enough to keep a CPU's cores busy: batches gain little there, unlike on a GPU. A transcript is a dozen
tokens, for which the weights are read from memory as they are for sixteen transcripts.

`medium` has random weights: HuBERT with 4 layers of width 256 behind HuBERT's own seven
convolutions, DeBERTa-v3 with 4 of 256. `real` are the small real encoders where they are (Whisper
fills its 6 s window whatever the length; lengths are cut to it), `paper` the paper's shapes.
"""

import argparse
from functools import partial
from typing import Any

import common
import numpy as np
import torch
from transformers import DebertaV2Tokenizer, Wav2Vec2FeatureExtractor

from modeling_mtmm import MTMMPipeline, MTMMProcessor

TARGET, TOLERANCE = 2.0, 1e-4
RATE = 16000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODALITIES = {"both": ("audio", "text"), "audio": ("audio",), "text": ("text",)}


def main() -> None:
    parser = common.make_parser(__doc__, rounds=5, batch_size=16)
    parser.add_argument("--modalities", nargs="+", choices=[*MODALITIES], default=[*MODALITIES])
    add_encoders(parser)
    arguments, device = common.begin(parser)
    predict = make_pipeline(arguments, device)
    inputs = make_inputs(20 if arguments.quick else 64, predict.processor.longest_audio_s())
    seconds = sum(len(given["audio"]) for given in inputs) / RATE
    print(f"{len(inputs)} utterances of {seconds:.0f} s together")
    for modalities in arguments.modalities:
        names = MODALITIES[modalities]
        given = [{name: each[name] for name in (*names, "sampling_rate")} for each in inputs]
        answers = compare(" and ".join(names), predict, given, common.Stopwatch(device), arguments)
    if device.type != "cpu":  # the last of them
        on_cpu = MTMMPipeline(model=predict.model.to("cpu"), processor=predict.processor)
        largest = np.abs(numbers(answers) - numbers(on_cpu(given))).max()
        common.print_result("largest difference from the CPU's results", largest, TOLERANCE)


def compare(
    modalities: str,
    predict: MTMMPipeline,
    inputs: list[dict[str, Any]],
    watch: common.Stopwatch,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Time the same inputs in batches of both sizes, print both results, return the batches'."""
    sizes = {"one by one": 1, f"batches of {arguments.batch_size}": arguments.batch_size}
    results: dict[str, list[dict[str, Any]]] = {}

    def run(name: str) -> None:
        results[name] = predict(inputs, batch_size=sizes[name])

    watch.rounds(arguments.rounds, {name: partial(run, name) for name in sizes})
    watch.print_table()
    one, batched = sizes
    claim = f"{modalities}: one by one ÷ {batched}"
    watch.print_ratio(claim, one, batched, TARGET, at_least=True)
    largest = np.abs(numbers(results[one]) - numbers(results[batched])).max()
    common.print_result(f"{modalities}: largest difference", largest, TOLERANCE)
    return results[batched]


def add_encoders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoders", choices=["medium", "real", "paper"], default="medium")


def make_pipeline(arguments: argparse.Namespace, device: torch.device) -> MTMMPipeline:
    fields: dict[str, Any] = {"trained_outputs": ("emotion", "valence", "arousal")}
    if arguments.encoders == "real" and not arguments.quick:
        folder = common.real_data()
        if folder is None:
            raise SystemExit("no real encoders; set MTMM_REAL_DATA to the folder that has them")
        model, processor = common.real_model(folder, **fields)
    else:
        if arguments.encoders == "medium" and not arguments.quick:
            fields |= {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}
            fields |= common.encoders_of_size(256, 4, vocab_size=1000)
        model = common.build(arguments, torch.device("cpu"), **fields).eval()
        pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", *LETTERS, "[MASK]"]
        tokenizer = DebertaV2Tokenizer(vocab=[(piece, -1.0) for piece in pieces])
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        processor = MTMMProcessor(extractor, tokenizer, max_tokens=512)
    return MTMMPipeline(model=model, processor=processor, device=device)


def make_inputs(count: int, longest_s: float) -> list[dict[str, Any]]:
    """Noise and letters, about a token each."""
    generator = np.random.default_rng(0)
    inputs = []
    for seconds in np.minimum(common.iemocap_like_seconds(count), longest_s):
        letters = generator.choice(list(LETTERS), common.tokens_of(seconds) - 2)
        waveform = generator.uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)
        inputs.append({"audio": waveform, "sampling_rate": RATE, "text": "".join(letters)})
    return inputs


def numbers(results: list[dict[str, Any]]) -> np.ndarray:
    """(utterances, values): every probability and dimension."""
    names = sorted(results[0]["scores"])
    rows = [[r["scores"][name] for name in names] for r in results]
    dimensions = [[r["valence"], r["arousal"]] for r in results]
    return np.hstack([rows, dimensions])


if __name__ == "__main__":
    main()
