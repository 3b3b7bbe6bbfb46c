"""How far an input is from what training had: the distance of its pooled states.

A sound that is no speech, another language or a poor line give an encoder states that training never
had, and the model answers all the same. Its states' mean over time is therefore compared with those of
the training split: along the principal directions of these, and apart from them, in units of their
spread. Uploaded to the Hub with the others.

Source: Lee et al. 2018, arXiv 1807.03888 (the distance); Tipping & Bishop 1999 (the rest's variance).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

# Relative first, as in modeling_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .linear_mtmm import pool
except ImportError:
    from linear_mtmm import pool

DIRECTIONS = 16
MODALITIES = ("audio", "text")
STATISTICS = ("center", "scale", "directions", "weights")
LEAST = 1e-3
PER_DIRECTION = 10  # utterances at least


class MTMMFamiliarity(nn.Module):
    """Distances of the modalities; filled by training, and changed by no gradient.

    Args:
        sizes: How many numbers [`pooled`] gives of an acoustic and of a linguistic input.
    """

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        for modality, size in zip(MODALITIES, sizes, strict=True):
            self.register_buffer(f"{modality}_center", torch.zeros(size))
            self.register_buffer(f"{modality}_scale", torch.zeros(size))
            self.register_buffer(f"{modality}_directions", torch.zeros(DIRECTIONS, size))
            # 1 / spread along each direction, and of the rest; 0 = does not count.
            self.register_buffer(f"{modality}_weights", torch.zeros(DIRECTIONS + 1))

    def forward(self, streams: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """(batch, 2), audio and text; above 1 is further than training allows, NaN is absent.

        Args:
            streams: As of the fusion.
        """
        distances = [
            torch.where(mask.any(-1), self.distances(modality, pooled(states, mask)), torch.nan)
            for modality, (states, mask) in streams.items()
        ]
        return torch.stack([pair.amax(0) for pair in distances], dim=-1)

    def distances(self, modality: str, means: Tensor) -> Tensor:
        """(2, batch): along the directions, and apart from them, of what [`pooled`] gave."""
        center, scale, directions, weights = (
            self.get_buffer(f"{modality}_{name}").to(means) for name in STATISTICS
        )
        apart = (means - center) * scale
        along = apart @ directions.T
        rest = apart - along @ directions
        return torch.stack([(along * weights[:-1]).norm(dim=-1), rest.norm(dim=-1) * weights[-1]])

    @torch.no_grad()
    def fit(self, modality: str, means: Tensor) -> None:
        """Fill a modality's statistics.

        Args:
            modality: "audio" or "text".
            means: (utterances, layers · width), of the training split.
        """
        center = means.mean(0)
        # What hardly changes, as of two sentences said a thousand times, is not blown up.
        scale = 1 / (means.std(0) + LEAST * means.std())
        apart = (means - center) * scale
        # Through products of utterances, of which there are few; the largest first.
        wide = apart.double()
        squares, turns = torch.linalg.eigh(wide @ wide.T)
        sizes = squares.clamp(min=1e-12).sqrt().flip(0)[:DIRECTIONS]
        turned = (turns.flip(1)[:, :DIRECTIONS].T @ wide / sizes[:, None]).to(means)
        sizes = sizes.to(means)
        # Their signs mean nothing: the largest number is made positive.
        turned = turned * turned.gather(1, turned.abs().argmax(1, keepdim=True)).sign()
        most = min(DIRECTIONS, max(len(means) // PER_DIRECTION, 1))
        count = int((sizes[:most] > LEAST * sizes[0]).sum())
        directions = torch.zeros(DIRECTIONS, means.shape[1]).to(means)
        weights = torch.zeros(DIRECTIONS + 1).to(means)
        directions[:count] = turned[:count]
        weights[:count] = (len(means) / count) ** 0.5 / sizes[:count]
        rest = (apart - apart @ directions.T @ directions).norm(dim=-1).square().mean().sqrt()
        weights[-1] = 1 / (rest + LEAST * means.shape[1] ** 0.5)
        for name, found in zip(STATISTICS, (center, scale, directions, weights), strict=True):
            self.get_buffer(f"{modality}_{name}").copy_(found)

    @torch.no_grad()
    def limit(self, modality: str, along: float, apart: float) -> None:
        """Count these two distances as 1 from now on."""
        weights = self.get_buffer(f"{modality}_weights")
        weights[:-1].div_(max(along, LEAST))
        weights[-1].div_(max(apart, LEAST))


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over time of each layer: (batch, layers · width); as `pool`."""
    return pool(states, mask, slice(None), False)
