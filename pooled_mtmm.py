"""What MTMM tells from states that are pooled over time; training fits it, and no gradient changes it.

The linear path is a regression beside the fusion: what a ridge regression on frozen states gives, kept
inside the model. The mean over time, and the deviation, of chosen layers of each modality are multiplied
by one matrix, fitted in closed form (`--linear_path`). There are two: one for recordings like the training
data's, and one, of few means and strongly shrunk, for another domain, where the fusion does not count.

Familiarity is how near an input is to what training had. A sound that is no speech, another language or a
poor line give an encoder states that training never had, and the model answers all the same. Its states'
mean over time is therefore compared with those of the training split: along the principal directions of
these, and apart from them, in units of their spread.

A leaf file: it is uploaded to the Hub with the others and imports none of them.

Source: Lee et al. 2018, arXiv 1807.03888 (the distance); Tipping & Bishop 1999 (the rest's variance).
"""

from typing import Any

import torch
from torch import Tensor, nn

MODALITIES = ("audio", "text")
MARGIN = 1e-3  # a logit of the ends themselves is infinite
DIRECTIONS = 16
STATISTICS = ("center", "scale", "directions", "weights")
LEAST = 1e-3
ROUNDING = 2**-10  # of a state, in half precision
ROOM = 1.01  # the furthest of few sentences is the limit itself: rounding must not put it beyond
PER_DIRECTION = 10  # utterances at least
STIFF = 3.0  # of the regression for another domain: penalty in mean squared lengths of an input row
# Of what it learns without labels: how many recordings count as few, and how often it learns anew.
FEW, ROUNDS = 50, 6


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
        for modality, width in zip(MODALITIES, widths, strict=True):
            given = config.linear_path.get(modality)
            if given is None:
                continue
            mixed = config.mixed_layers(modality)
            places = [mixed.index(layer) for layer in given["layers"]] if mixed else [0]
            self.pooled[modality] = (places, given["deviation"])
            inputs = len(places) * width * (1 + given["deviation"])
            self.register_buffer(f"{modality}_center", torch.zeros(inputs))
            self.register_buffer(f"{modality}_weight", torch.zeros(2 * outputs, inputs))
        self.register_buffer("bias", torch.zeros(2 * outputs))
        # How much of each dimension's score is the regression's: the rest is the fusion's.
        self.register_buffer("dimension_shares", torch.zeros(len(config.dimension_names)))
        self.dimension_range = tuple(config.dimension_range)

    def forward(
        self, streams: dict[str, tuple[Tensor, Tensor]], away: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is added to the logits of emotions (batch, emotions) and of the dimensions.

        Both are float32 at least. A dimension's logit is that of its place in
        `config.dimension_range`.

        Args:
            streams: As of the fusion.
            away: (batch,) of booleans, or one: which are of another domain than the training data.
        """
        scores = self.bias
        for modality, (places, deviation) in self.pooled.items():
            states, mask = streams[modality]
            inputs = pool(states, mask, places, deviation) - getattr(self, f"{modality}_center")
            inputs = torch.where(mask.any(-1, keepdim=True), inputs, 0.0)
            scores = scores + inputs @ getattr(self, f"{modality}_weight").T.to(inputs.dtype)
        scores, far = scores.expand(streams["audio"][1].shape[0], -1).chunk(2, dim=-1)
        shares = self.dimension_shares
        if away is not None:
            away = away[:, None]
            scores, shares = torch.where(away, far, scores), torch.where(away, 1.0, shares)
        emotions = scores.shape[1] - len(self.dimension_shares)
        logits = as_logits(scores[:, emotions:], self.dimension_range)
        return scores[:, :emotions], logits * shares

    @torch.no_grad()
    def refit(self, means: Tensor) -> None:
        """Learn the other domain's emotions from its own recordings, without labels.

        The regression's answers are regressed on these recordings, which answers them anew, in turn. So
        a border between two emotions moves to where the recordings are few. Few recordings move little.

        Args:
            means: (recordings, layers, width): standardised states' means over time.
        """
        half = len(self.bias) // 2
        far = slice(half, 2 * half - len(self.dimension_shares))
        wide = means[:, self.pooled["audio"][0]].flatten(1).double()
        buffers = (self.get_buffer(f"audio_{name}") for name in ("center", "weight"))
        center, weight = (buffer[..., : wide.shape[1]] for buffer in buffers)
        seen = weight[far].any(0)
        inputs = (wide - center)[:, seen]
        first = inputs @ weight[far][:, seen].T.double() + self.bias[far]
        first = first - first.mean(1, keepdim=True)
        middle, scale = inputs.mean(0), inputs.std(0, correction=0).clamp(min=LEAST)
        inputs = (inputs - middle) / scale
        products, count = inputs.T @ inputs, len(inputs)
        stiff = STIFF * (1 + FEW / count) * products.trace() / count
        products.diagonal().add_(stiff.clamp(min=LEAST))
        spread = (first - first.mean(0)).std().clamp(min=1e-9)
        answers = first = first / spread  # alike sure in all places
        for _ in range(ROUNDS):
            likely = answers.softmax(1)
            likely = likely - likely.mean(0)
            wanted = likely / likely.std().clamp(min=1e-9) - first + first.mean(0)
            moved = torch.linalg.solve(products, inputs.T @ wanted)
            answers = first + inputs @ moved
        moved = (spread * moved / scale[:, None]).to(weight)
        weight[far, seen] += moved.T  # of the buffer, of which it is a view
        self.bias[far] -= middle.to(moved) @ moved

    def settle(self) -> None:
        """Make the other domain's regression that of all recordings."""
        for name, buffer in self.named_buffers():
            if name.endswith(("weight", "bias")):
                half = len(buffer) // 2
                buffer[:half] = buffer[half:].clone()
        self.dimension_shares.fill_(1.0)


def as_logits(values: Tensor, scale: tuple[float, float]) -> Tensor:
    """The logit of each value's place between the scale's ends, of which it keeps a thousandth."""
    low, high = scale
    return ((values - low) / (high - low)).clamp(MARGIN, 1 - MARGIN).logit()


# ---- familiarity ----------------------------------------------------------------------------------


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
        count = max(int((sizes[:most] > LEAST * wide.numel() ** 0.5).sum()), 1)
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
        """Count these two distances as just below 1 from now on."""
        weights = self.get_buffer(f"{modality}_weights")
        weights[:-1].div_(max(ROOM * along, LEAST))
        # Of two sentences said a thousand times nothing is left apart from one direction but rounding.
        center, scale = (self.get_buffer(f"{modality}_{name}") for name in ("center", "scale"))
        rounding = ROUNDING * float((center * scale).norm() * weights[-1])
        weights[-1].div_(max(ROOM * apart, rounding, LEAST))


# ---- pooling --------------------------------------------------------------------------------------


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


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over time of each layer: (batch, layers · width); as `pool`."""
    return pool(states, mask, slice(None), False)
