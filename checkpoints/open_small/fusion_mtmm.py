"""The fusion of MTMM: attention, refinement, alignment, bridge tokens, and the two heads.

The architecture of Ispas, Deschamps-Berger and Devillers 2023 (arXiv 2401.00536). A leaf file: it is
uploaded to the Hub with the others and imports none of them, so a configuration is any object that has
the fields of MTMMConfig.

Shapes: "frames" are the acoustic encoder's output positions (50 a second for HuBERT and Whisper),
"tokens" the linguistic one's, "keys" the longer of the two, "width" an encoder's hidden size.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class FusionOutput(NamedTuple):
    """What [`MTMMFusion`] returns; the fields are those of the same names in MTMMOutput."""

    fused_state: Tensor
    bridge_states: Tensor | None
    acoustic_bridge_attentions: tuple[Tensor, ...] | None
    linguistic_bridge_attentions: tuple[Tensor, ...] | None
    hidden_states: tuple[Tensor, Tensor] | None


class Keys(NamedTuple):
    """What a set of queries reads.

    Args:
        states, values: (batch, keys, hidden).
        real: (batch, keys) of booleans, True somewhere in each row: no kernel sees a fully masked row
            (SDPA would give zeros, eager the mean, some NaN).
        absent: (batch, 1) of booleans: there is nothing to read; None = nowhere.
    """

    states: Tensor
    values: Tensor
    real: Tensor
    absent: Tensor | None


# ---- attention ---------------------------------------------------------------------------------


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention with the signature of transformers' attention interface.

    Args:
        module: Says whether this is training, where there is dropout.
        query, key, value: (batch, heads, queries or keys, head width).
        attention_mask: (batch, 1, 1, keys) of booleans, True = take part; None = all take part.
        scaling: Factor on the products of query and key.
        dropout: On the weights, 0 up to 1.
        kwargs: What other implementations take; not used.

    Returns:
        Output (batch, queries, heads, head width) and weights (batch, heads, queries, keys).
    """
    scores = (query * scaling) @ key.transpose(2, 3)  # scaled first, or float16 overflows earlier
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    half = scores.dtype in (torch.float16, torch.bfloat16)
    weights = scores.softmax(dim=-1, dtype=torch.float32 if half else None).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


class Seen(NamedTuple):
    """Which keys the queries of each utterance see: found once, for all layers.

    Args:
        implementation: Name of the kind of attention, as `attn_implementation` takes it.
        mask: What it takes.
        batch: Number of utterances.
    """

    implementation: str
    mask: Any
    batch: int

    @classmethod
    def of(
        cls, config: Any, real: Tensor, queries: Tensor, keys: Tensor, eager: bool = False
    ) -> "Seen":
        """From booleans (batch, keys), at least one True in each row, and rows of queries and keys."""
        implementation = "eager" if eager else config._attn_implementation
        # transformers' flash path cuts a key mask to the queries' length as if padding were on the
        # left, which is wrong for cross-attention; these queries are few, and SDPA is exact.
        if "flash" in implementation and queries.shape[0] != keys.shape[0]:
            implementation = "sdpa"
        batch = real.shape[0]
        if implementation not in ("eager", "sdpa"):
            embeds, others = (rows.unflatten(0, (batch, -1)) for rows in (queries, keys))
            mask = create_bidirectional_mask(
                config, inputs_embeds=embeds, attention_mask=real, encoder_hidden_states=others
            )
            return cls(implementation, mask, batch)
        mask = real.unflatten(0, (-1, 1, 1))
        if implementation == "sdpa":
            mask = mask.log().to(queries.dtype)  # 0 and -inf, which SDPA would make in every layer
        return cls(implementation, mask, batch)


class MTMMAttention(nn.Module):
    """Multi-head attention whose queries, keys and values may come from three places.

    Keys have no bias: it adds the same to all scores of a query, so its true gradient is zero and
    Adam would only amplify rounding noise.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        # Names that no encoder uses: LoRA's patterns for encoders must not find these.
        self.query_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; rows of all utterances are below each other.

        Args:
            queries: (batch · queries, hidden).
            keys, values: (batch · keys, hidden).
            seen: Which keys take part.

        Returns:
            Output (batch · queries, hidden), and weights (batch, heads, queries, keys) if eager.
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(seen.implementation, eager_attention_forward)
        output, weights = attend(
            self,
            self._heads(self.query_projection(queries), seen.batch),
            self._heads(self.key_projection(keys), seen.batch),
            self._heads(self.value_projection(values), seen.batch),
            seen.mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.output_projection(output.reshape(queries.shape)), weights

    def _heads(self, rows: Tensor, batch: int) -> Tensor:
        return rows.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)


class MTMMFeedForward(nn.Module):
    """Two layers with an activation between them: rows (positions, hidden) to the same."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.output(self.activation(self.input(states)))


# ---- fusion ------------------------------------------------------------------------------------


class MTMMInput(nn.Module):
    """An encoder's states to the fusion's width; mixes `layers` of them (0 = there is the last only)."""

    def __init__(self, config: Any, width: int, layers: int) -> None:
        super().__init__()
        self.weighted = layers > 0
        if self.weighted:
            self.layer_weights = nn.Parameter(torch.zeros(layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """(batch, time, width), or (batch, layers, time, width) if weighted: (batch · time, hidden)."""
        if self.weighted:
            # Deeper layers have larger states; normalised, the weights alone say how much each counts.
            normalised = F.layer_norm(states, states.shape[-1:])
            shares = self.layer_weights.softmax(dim=0).to(normalised.dtype)
            states = torch.einsum("l,bltw->btw", shares, normalised)
        return self.projection(self.norm(states.flatten(0, 1)))


class MTMMLayer(GradientCheckpointingLayer):
    """The parts of a pre-norm transformer layer; what attends to what is the subclass's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MTMMAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = MTMMFeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def _feed_forward(self, states: Tensor) -> Tensor:
        return states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))


class MTMMRefinementLayer(MTMMLayer):
    """Self-attention within one modality (paper, uni-modal feature refinement); pre-norm."""

    def forward(self, states: Tensor, seen: Seen) -> Tensor:
        """Rows (batch · time, hidden) to the same."""
        normed = self.attention_norm(states)
        states = states + self.dropout(self.attention(normed, normed, normed, seen)[0])
        return self._feed_forward(states)


class MTMMInteractionLayer(MTMMLayer):
    """Cross-attention from bridge tokens (or one modality) to keys and values; pre-norm."""

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, seen: Seen, absent: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Read.

        Args:
            queries: (batch · queries, hidden).
            keys, values: (batch · keys, hidden).
            seen: Which keys take part.
            absent: (batch, 1) of booleans: an utterance without any key reads nothing, its queries
                pass through the feed-forward alone. None = every utterance has keys.
        """
        attended, weights = self.attention(self.attention_norm(queries), keys, values, seen)
        if absent is not None:
            of_utterances = attended.unflatten(0, (seen.batch, -1))
            attended = of_utterances.masked_fill(absent[..., None], 0.0).flatten(0, 1)
            if weights is not None:
                weights = weights.masked_fill(absent[..., None, None], 0.0)
        return self._feed_forward(queries + self.dropout(attended)), weights


class MTMMFusion(nn.Module):
    """Everything new but the heads: layer weights, refinement, bridge tokens and interaction.

    One module, so that `modules_to_save=["fusion", "emotion_head", "dimension_head"]` names all that
    LoRA must train in full (peft overlooks a bare parameter).
    """

    reference_mean: Tensor
    reference_deviation: Tensor
    expected_states: Tensor

    def __init__(self, config: Any, acoustic_width: int, linguistic_width: int) -> None:
        super().__init__()
        self.config = config
        mixed = len(config.mixed_layers("audio")), len(config.mixed_layers("text"))
        self.acoustic_input = MTMMInput(config, acoustic_width, mixed[0])
        self.linguistic_input = MTMMInput(config, linguistic_width, mixed[1])
        refinement_layers = config.num_refinement_layers if config.use_refinement else 0
        self.acoustic_refinement = _layers(MTMMRefinementLayer, config, refinement_layers)
        self.linguistic_refinement = _layers(MTMMRefinementLayer, config, refinement_layers)
        self.acoustic_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.linguistic_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.use_bridge_tokens:
            shape = (config.num_bridge_tokens, config.hidden_size)
            self.acoustic_bridge_tokens = nn.Parameter(torch.zeros(shape))
            self.linguistic_bridge_tokens = nn.Parameter(torch.zeros(shape))
        interaction_layers = config.num_interaction_layers
        self.acoustic_interaction = _layers(MTMMInteractionLayer, config, interaction_layers)
        self.linguistic_interaction = _layers(MTMMInteractionLayer, config, interaction_layers)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Of the training data, for references (reference_mtmm.py); training without leaves them.
        shape = (max(mixed[0], 1), acoustic_width)
        answers = len(config.emotion_names) + len(config.dimension_names)
        self.register_buffer("reference_mean", torch.zeros(shape))
        self.register_buffer("reference_deviation", torch.ones(shape))
        self.register_buffer("expected_states", torch.zeros(answers, *shape))

    def forward(
        self, streams: dict[str, tuple[Tensor, Tensor]], output_attentions: bool = False
    ) -> FusionOutput:
        """Merge the two modalities of each utterance into one vector.

        Args:
            streams: {"audio": (states, mask), "text": (states, mask)}, in this order: states
                (batch, time, width), or (batch, layers, time, width) if weighted, and masks (batch,
                time) of booleans; in a row without True the modality is absent. Time is in frames or
                tokens.
            output_attentions: Compute the interaction eagerly and return its weights.

        Returns:
            An output with `fused_state`, `bridge_states`, the two attentions and `hidden_states`.
        """
        config, (given, masks) = self.config, zip(*streams.values(), strict=True)
        bridge, batch = config.use_bridge_tokens, masks[0].shape[0]
        exact = _exact_dtype(masks[0])
        lengths = torch.stack([mask.sum(-1, keepdim=True, dtype=exact) for mask in masks])
        present = lengths > 0  # (2, batch, 1), as the lengths
        there = present.unbind()
        refined = [
            _refine(config, layers, norm, rows, mask, here)
            for layers, norm, rows, mask, here in zip(
                (self.acoustic_refinement, self.linguistic_refinement),
                (self.acoustic_norm, self.linguistic_norm),
                (self.acoustic_input(given[0]), self.linguistic_input(given[1])),
                masks,
                there,
                strict=True,
            )
        ]
        count: Any = 2  # of the means that are there
        if bridge and config.bridge_wiring == "crossed":
            keys = _crossed(refined[0], refined[1], lengths, present)
        else:
            own = zip(refined, masks, there, strict=True)
            keys = [Keys(states, states, mask == here, ~here) for states, mask, here in own]
            count = present.sum(0)
        if bridge:
            sets = self.acoustic_bridge_tokens, self.linguistic_bridge_tokens
            queries = [tokens.repeat(batch, 1) for tokens in sets]
        else:  # acoustic states query linguistic ones, and the other way round
            queries, keys = [states.flatten(0, 1) for states in refined], keys[::-1]
        interaction = self.acoustic_interaction, self.linguistic_interaction
        outputs, attentions, means = [], [], []
        for layers, rows, read, mask in zip(interaction, queries, keys, masks, strict=True):
            rows, weights = _interact(config, layers, rows, read, output_attentions)
            states = self.output_norm(rows).unflatten(0, (batch, -1))
            if not bridge:
                states = states.masked_fill(~mask[..., None], 0.0)
                means.append(states.sum(1) / mask.sum(-1, keepdim=True).clamp(min=1))
            else:
                if read.absent is not None:
                    states = states.masked_fill(read.absent[..., None], 0.0)
                means.append(states.mean(1))
            outputs.append(states)
            attentions.append(weights)
        return FusionOutput(
            # NaN where nobody said anything: that must not get an emotion in silence.
            fused_state=(means[0] + means[1]) / count,
            bridge_states=torch.cat(outputs, dim=1) if bridge else None,
            acoustic_bridge_attentions=attentions[0],
            linguistic_bridge_attentions=attentions[1],
            hidden_states=(refined[0], refined[1]),
        )


def align_weights(value_lengths: Tensor, key_lengths: Tensor, values: int, keys: int) -> Tensor:
    """Weights that bring a value sequence onto another sequence's time axis.

    With n_v values and n_k keys, key i reads at (i + ½)·n_v/n_k − ½, clamped and linearly
    interpolated, where n_v ≤ n_k; where n_v > n_k it reads the mean over its own span, from
    i·n_v/n_k to (i + 1)·n_v/n_k, values cut by the span's ends counting in part. Equal lengths give
    the identity. Padding takes no part.

    Args:
        value_lengths, key_lengths: (..., 1) numbers of real positions, at least 1.
        values, keys: The padded lengths.

    Returns:
        (..., keys, values); a real key's row sums to 1 over the real values.

    Source: ours (the paper is silent; a re-implementation pads the shorter sequence with zeros).
    """
    dtype = _exact_dtype(value_lengths)
    n_v, n_k = value_lengths.to(dtype), key_lengths.to(dtype)
    # Both are overlaps of a span on the values' axis with each value's own unit: the span is n_v/n_k
    # long or 1, whichever is more, and cut where the values end.
    half = n_v / (2 * n_k)
    middle = torch.arange(1, 2 * keys, 2, device=n_v.device, dtype=dtype) * half
    reach = half.clamp(min=0.5)
    start = (middle - reach).clamp(min=0)[..., None]
    stop = (middle + reach).minimum(n_v)[..., None]
    j = torch.arange(values, device=n_v.device, dtype=dtype)
    # In place: on a CPU, fresh memory for (batch, keys, values) costs as much as the arithmetic.
    overlap = stop.minimum(j + 1).sub_(start.maximum(j)).clamp_(min=0)
    return overlap.div_((stop - start).clamp(min=0.5))  # of padded keys nothing is left


def _exact_dtype(tensor: Tensor) -> torch.dtype:
    """For numbers of positions and their quotients: MPS has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _crossed(acoustic: Tensor, linguistic: Tensor, lengths: Tensor, present: Tensor) -> list[Keys]:
    """Acoustic keys with linguistic values on their time axis, and the other way round.

    An absent modality's place is taken by the present one, so every set has keys and values. Both are
    padded to one length, so that one calculation serves both directions.

    Args:
        acoustic, linguistic: (batch, frames, hidden) and (batch, tokens, hidden).
        lengths, present: (2, batch, 1).
    """
    longest = max(acoustic.shape[1], linguistic.shape[1])
    heard, said = (F.pad(s, (0, 0, 0, longest - s.shape[1])) for s in (acoustic, linguistic))
    a_there, t_there = present[..., None].unbind()
    a, t = torch.where(a_there, heard, said), torch.where(t_there, said, heard)
    n_k = torch.where(present, lengths, lengths.flip(0))
    place = torch.arange(longest, device=a.device, dtype=n_k.dtype)
    real = (place < n_k.clamp(min=1)).unbind()
    # Of an utterance without either, 0 / 0 makes all values NaN.
    to_a, to_t = align_weights(n_k.flip(0), n_k, longest, longest).to(a.dtype).unbind()
    return [Keys(a, torch.bmm(to_a, t), real[0], None), Keys(t, torch.bmm(to_t, a), real[1], None)]


def _layers(layer: type[nn.Module], config: Any, count: int) -> nn.ModuleList:
    return nn.ModuleList(layer(config) for _ in range(count))


def _refine(
    config: Any,
    layers: nn.ModuleList,
    norm: nn.LayerNorm,
    rows: Tensor,
    mask: Tensor,
    there: Tensor,
) -> Tensor:
    """Refined states (batch, time, hidden) of rows; zeros at padding and for absent modalities."""
    seen = Seen.of(config, mask == there, rows, rows) if layers else None
    for layer in layers:
        rows = layer(rows, seen)
    return norm(rows).view(*mask.shape, -1).masked_fill(~mask[..., None], 0.0)


def _interact(
    config: Any, layers: nn.ModuleList, rows: Tensor, read: Keys, output_attentions: bool
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Rows of queries after reading, with the attention weights of each layer if asked for."""
    keys, values, attentions = read.states.flatten(0, 1), read.values.flatten(0, 1), []
    seen = Seen.of(config, read.real, rows, keys, output_attentions)
    for layer in layers:
        rows, weights = layer(rows, keys, values, seen, read.absent)
        attentions.append(weights)
    return rows, tuple(attentions) if output_attentions else None


def carry_to_values(
    a_read: Tensor, a_mask: Tensor, l_read: Tensor, l_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Crossed wiring: weights on keys (batch, keys) as weights on the acoustic and linguistic values.

    Where a modality is absent, its keys and its values were those of the present one.
    """
    a_length, l_length = a_mask.sum(-1, keepdim=True), l_mask.sum(-1, keepdim=True)
    a_there, l_there = a_length > 0, l_length > 0
    a_keys = torch.where(a_there, a_length, l_length)
    l_keys = torch.where(l_there, l_length, a_length)
    keys = a_read.shape[-1]
    a_set = (a_read[:, None] @ align_weights(l_keys, a_keys, keys, keys).to(a_read))[:, 0]
    l_set = (l_read[:, None] @ align_weights(a_keys, l_keys, keys, keys).to(l_read))[:, 0]
    acoustic = l_set.masked_fill(~a_there, 0.0) + a_set.masked_fill(l_there, 0.0)
    linguistic = a_set.masked_fill(~l_there, 0.0) + l_set.masked_fill(a_there, 0.0)
    return acoustic, linguistic


# ---- heads ---------------------------------------------------------------------------------------


class MTMMHead(nn.Module):
    """Dense, activation, projection; the paper leaves the shape of its heads open."""

    def __init__(self, config: Any, outputs: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.projection = nn.Linear(config.hidden_size, outputs)

    def forward(self, fused_state: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, outputs)."""
        states = self.activation(self.dense(self.dropout(fused_state)))
        return self.projection(self.dropout(states))

    @torch.no_grad()
    def scale(self, factor: float, rows: slice = slice(None)) -> None:
        """Multiply what the head gives for these outputs."""
        self.projection.weight[rows] *= factor
        self.projection.bias[rows] *= factor
