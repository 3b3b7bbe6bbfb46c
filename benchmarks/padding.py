"""Padding share of random batches against batches by length, on IEMOCAP-like lengths.

    python benchmarks/padding.py [--utterances 5531] [--batch_size 16] [--epochs 20]

Lengths are log-normal, median 3.6 s, 0.6 to 34 s. Counted is the share of padded frames over whole
epochs, the same way for both; nothing is timed.
"""

import statistics

import numpy as np
from common import IEMOCAP_UTTERANCES, begin, iemocap_like_frames, make_parser, print_result

from mtmm_training.batches.sampler import FRAMES_PER_SECOND, LengthBatches

TARGET = 5.0


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--utterances", type=int, default=IEMOCAP_UTTERANCES)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.utterances, arguments.epochs = 1000, 3
    begin(arguments)
    lengths = iemocap_like_frames(arguments.utterances)
    seconds = lengths / FRAMES_PER_SECOND
    print(
        f"{len(lengths)} utterances, {seconds.min():.1f} to {seconds.max():.1f} s, median "
        f"{np.median(seconds):.1f} s, {seconds.sum() / 3600:.1f} h; {arguments.epochs} epochs"
    )
    print(f"{'padding, %':<44}{'median':>8}{'min':>8}{'max':>8}")
    size = arguments.batch_size
    random = [random_share(lengths, size, epoch) for epoch in range(arguments.epochs)]
    print_shares(f"random batches of {size}", random)
    bucketed = {}
    for world_size, frame_budget in ((1, None), (2, None), (1, 3000)):
        batches = LengthBatches(
            lengths, size, frame_budget=frame_budget, world_size=world_size, seed=0
        )
        shares = []
        for epoch in range(arguments.epochs):
            batches.set_epoch(epoch)
            shares.append(100 * batches.padding_share())
        budget = f", {frame_budget} frames" if frame_budget else ""
        print_shares(f"by length, {world_size} x {size}{budget}", shares)
        bucketed[world_size, frame_budget] = shares
    worst = max(max(shares) for shares in bucketed.values())
    ratio = statistics.median(random) / statistics.median(bucketed[1, None])
    print_result(
        "padding of batches by length, %, in the worst epoch",
        worst,
        TARGET,
        f"random batches have {ratio:.0f} times that of the median epoch",
    )


def random_share(lengths: np.ndarray, size: int, epoch: int) -> float:
    """Padding of shuffled batches, in %."""
    order = np.random.default_rng([0, epoch]).permutation(len(lengths))
    batches = [lengths[order[start : start + size]] for start in range(0, len(order), size)]
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    return 100 * (1 - int(lengths.sum()) / padded)


def print_shares(name: str, shares: list[float]) -> None:
    print(f"{name:<44}{statistics.median(shares):>8.2f}{min(shares):>8.2f}{max(shares):>8.2f}")


if __name__ == "__main__":
    main()
