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

import numpy as np
import torch
from common import (
    Stopwatch,
    begin,
    iemocap_like_seconds,
    make_config,
    make_parser,
    print_result,
    real_data,
    tokens_of,
)
from transformers import DebertaV2Tokenizer, Wav2Vec2FeatureExtractor

from configuration_mtmm import DEBERTA_V3_LARGE, HUBERT_LARGE, MTMMConfig
from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor

TARGET, TOLERANCE = 2.0, 1e-4
RATE = 16000
MEDIUM = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODALITIES = {"both": ("audio", "text"), "audio": ("audio",), "text": ("text",)}


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--modalities", nargs="+", choices=list(MODALITIES), default=list(MODALITIES)
    )
    parser.add_argument("--encoders", choices=["medium", "real", "paper"], default="medium")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.utterances, arguments.rounds = 20, 1
    device = begin(arguments)
    predict = make_pipeline(arguments, device)
    inputs = make_inputs(arguments.utterances, predict.processor.longest_audio_s())
    seconds = sum(len(given["audio"]) for given in inputs) / RATE
    print(f"{len(inputs)} utterances of {seconds:.0f} s together")
    for modalities in arguments.modalities:
        name = " and ".join(MODALITIES[modalities])
        given = [only(each, *MODALITIES[modalities]) for each in inputs]
        compare(name, predict, given, Stopwatch(device), arguments)


def compare(
    modalities: str,
    predict: MTMMPipeline,
    inputs: list[dict[str, Any]],
    watch: Stopwatch,
    arguments: argparse.Namespace,
) -> None:
    """Time the same inputs in batches of both sizes, and print both results."""
    sizes = {"one by one": 1, f"batches of {arguments.batch_size}": arguments.batch_size}
    results: dict[str, list[dict[str, Any]]] = {}

    def run(name: str) -> None:
        results[name] = predict(inputs, batch_size=sizes[name])

    run("one by one")  # warm
    for number in range(arguments.rounds):
        watch.round(number, {name: partial(run, name) for name in sizes})
    watch.print_table()
    one, batched = sizes
    print_result(
        f"{modalities}: one by one ÷ {batched}",
        watch.ratio(one, batched),
        TARGET,
        f"of the minima {watch.ratio_of_minima(one, batched):.3g}",
        at_least=True,
    )
    largest = difference(results[one], results[batched])
    print_result(f"{modalities}: largest difference", largest, TOLERANCE)


def make_pipeline(arguments: argparse.Namespace, device: torch.device) -> MTMMPipeline:
    outputs: dict[str, Any] = {"trained_outputs": ("emotion", "valence", "arousal")}
    real = real_data()
    encoders = None if real is None else real / "encoders"
    if arguments.encoders == "real" and not arguments.quick:
        if encoders is None:
            raise SystemExit("no real encoders; set MTMM_REAL_DATA to the folder that has them")
        names = str(encoders / "whisper-base-6s"), str(encoders / "all-MiniLM-L6-v2")
        model = MTMMModel.from_encoders_pretrained(*names, **outputs)
        processor = MTMMProcessor.from_encoders_pretrained(*names)
    else:
        medium = arguments.encoders == "medium" and not arguments.quick
        config = medium_config(**outputs) if medium else make_config(arguments.quick, **outputs)
        model = MTMMModel(config)
        pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", *LETTERS, "[MASK]"]
        tokenizer = DebertaV2Tokenizer(vocab=[(piece, -1.0) for piece in pieces])
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        processor = MTMMProcessor(extractor, tokenizer, max_tokens=512)
    return MTMMPipeline(model=model.eval(), processor=processor, device=device)


def medium_config(**fields: object) -> MTMMConfig:
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}
    return MTMMConfig.paper(
        audio_config=HUBERT_LARGE | MEDIUM | {"model_type": "hubert"},
        text_config=DEBERTA_V3_LARGE | MEDIUM | {"model_type": "deberta-v2", "vocab_size": 1000},
        **sizes,
        **fields,
    )


def make_inputs(count: int, longest_s: float) -> list[dict[str, Any]]:
    """Noise and letters, about a token each."""
    generator = np.random.default_rng(0)
    inputs = []
    for seconds in np.minimum(iemocap_like_seconds(count), longest_s):
        letters = generator.choice(list(LETTERS), tokens_of(seconds) - 2)
        waveform = generator.uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)
        inputs.append({"audio": waveform, "sampling_rate": RATE, "text": "".join(letters)})
    return inputs


def only(given: dict[str, Any], *modalities: str) -> dict[str, Any]:
    return {name: given[name] for name in (*modalities, "sampling_rate")}


def difference(results: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """Of any probability or dimension."""
    return max(
        abs(a - b)
        for one, other in zip(results, others, strict=True)
        for a, b in zip(numbers(one), numbers(other), strict=True)
    )


def numbers(result: dict[str, Any]) -> list[float]:
    by_name = dict(sorted(result["scores"].items()))
    return [*by_name.values(), result["valence"], result["arousal"]]


if __name__ == "__main__":
    main()
