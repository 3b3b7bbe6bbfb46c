"""The whole model's forward pass ÷ the two bare encoders alone: what refinement, fusion, heads cost.

    python benchmarks/forward_overhead.py [--device cuda] [--batch_size 4] [--rounds 7]

The paper's shapes with random weights; utterances of 3.6 s with 15 tokens, IEMOCAP's median; no
gradient. Each round times both, one after the other, on the same input.
"""

import torch
from common import MEDIAN_S, TOKENS, Stopwatch, begin, make_config, make_parser, move, raw_batch

from modeling_mtmm import MTMMModel

TARGET = 1.04


def main() -> None:
    arguments = make_parser(__doc__, rounds=7, batch_size=4).parse_args()
    device = begin(arguments)
    config = make_config(arguments.quick)
    model = move(MTMMModel(config), device).eval()
    batch = raw_batch(config, [MEDIAN_S] * arguments.batch_size, device)
    raw = {name: tensor for name, tensor in batch.items() if "labels" not in name}
    print(f"{arguments.batch_size} utterances of {MEDIAN_S} s and {TOKENS} tokens")

    def encoders() -> None:
        model.audio_model(batch["input_values"], attention_mask=batch["audio_attention_mask"])
        model.text_model(batch["input_ids"], attention_mask=batch["attention_mask"])

    steps = {"bare encoders": encoders, "whole forward": lambda: model(**raw)}
    watch = Stopwatch(device)
    with torch.no_grad():
        watch.rounds(arguments.rounds, steps)
    watch.print_table()
    watch.print_ratio("whole forward ÷ bare encoders", "whole forward", "bare encoders", TARGET)


if __name__ == "__main__":
    main()
