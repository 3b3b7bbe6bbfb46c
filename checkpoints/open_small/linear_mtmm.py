"""The linear path of MTMM: a regression on pooled encoder states, beside the fusion.

What a logistic or ridge regression on frozen states gives, kept inside the model: the mean over time,
and the deviation, of chosen layers of each modality, times one matrix. Training fits it in closed form
or to convergence (`--linear_path`); no gradient changes it. A leaf file: it is
uploaded to the Hub with the others and imports none of them.
"""

from typing import Any

import torch
from torch import Tensor, nn

MARGIN = 1e-3  # a logit of the ends themselves is infinite


class MTMMLinearPath(nn.Module):
    """Scores of all outputs from pooled states; an absent modality adds nothing.

    Args:
        config: `config.linear_path` names by modality the layers that are pooled, and whether their
            deviation over time stands behind the mean.
        widths: Width of the acoustic and of the linguistic encoder's states.
    """

    bias: Tensor
    dimension_shares: Tensor

    def __init__(self, config: Any, widths: tuple[int, int]) -> None:
        super().__init__()
        outputs = len(config.emotion_names) + len(config.dimension_names)
        self.pooled: dict[str, tuple[list[int], bool]] = {}
        for modality, width in zip(("audio", "text"), widths, strict=True):
            given = config.linear_path.get(modality)
            if given is None:
                continue
            mixed = config.mixed_layers(modality)
            places = [mixed.index(layer) for layer in given["layers"]] if mixed else [0]
            self.pooled[modality] = (places, given["deviation"])
            inputs = len(places) * width * (1 + given["deviation"])
            self.register_buffer(f"{modality}_center", torch.zeros(inputs))
            self.register_buffer(f"{modality}_weight", torch.zeros(outputs, inputs))
        self.register_buffer("bias", torch.zeros(outputs))
        # How much of each dimension's score is the regression's: the rest is the fusion's.
        self.register_buffer("dimension_shares", torch.zeros(len(config.dimension_names)))
        self.dimension_range = tuple(config.dimension_range)

    def forward(self, streams: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What is added to the logits of emotions (batch, emotions) and of the dimensions.

        Both are float32 at least. A dimension's logit is that of its place in
        `config.dimension_range`.

        Args:
            streams: As of the fusion.
        """
        scores = self.bias
        for modality, (places, deviation) in self.pooled.items():
            states, mask = streams[modality]
            inputs = pool(states, mask, places, deviation) - getattr(self, f"{modality}_center")
            inputs = torch.where(mask.any(-1, keepdim=True), inputs, 0.0)
            scores = scores + inputs @ getattr(self, f"{modality}_weight").T.to(inputs.dtype)
        scores = scores.expand(streams["audio"][1].shape[0], -1)
        dimensions = len(self.dimension_shares)
        values = scores[:, scores.shape[1] - dimensions :]
        logits = as_logits(values, self.dimension_range)
        return scores[:, : scores.shape[1] - dimensions], logits * self.dimension_shares


def as_logits(values: Tensor, scale: tuple[float, float]) -> Tensor:
    """The logit of each value's place between the scale's ends, of which it keeps a thousandth."""
    low, high = scale
    return ((values - low) / (high - low)).clamp(MARGIN, 1 - MARGIN).logit()


def pool(states: Tensor, mask: Tensor, places: list[int] | slice, deviation: bool) -> Tensor:
    """The mean over real positions, and the population's standard deviation behind it.

    Args:
        states: (batch, time, width), or (batch, layers, time, width).
        mask: (batch, time) of booleans.
        places: Places of the layers among those that the states have; `slice(None)` = all.
        deviation: Whether the deviation is wanted too.

    Returns:
        (batch, layers · width), or (batch, 2 · layers · width), float32 at least.
    """
    layered = states[:, places] if states.dim() == 4 else states[:, None]
    layered = layered.to(torch.promote_types(states.dtype, torch.float32))
    real = mask[:, None, :, None]
    count = mask.sum(-1).clamp(min=1)[:, None, None]
    mean = torch.where(real, layered, 0.0).sum(-2) / count
    pooled = [mean]
    if deviation:
        apart = torch.where(real, layered - mean[:, :, None], 0.0)
        pooled.append(((apart**2).sum(-2) / count).sqrt())
    return torch.cat([part.flatten(1) for part in pooled], dim=-1)
