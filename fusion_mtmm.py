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


class Stream(NamedTuple):
    """States (batch, time, hidden), which are real (batch, time), whether any is (batch, 1), weights."""

    states: Tensor
    mask: Tensor
    present: Tensor
    attentions: tuple[Tensor, ...] | None = None

    @property
    def kernel_mask(self) -> Tensor:
        """No kernel sees a fully masked row (SDPA would give zeros, eager the mean, some NaN)."""
        return self.mask | ~self.present


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
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        key_mask: Tensor,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            queries: (batch, queries, hidden).
            keys, values: (batch, keys, hidden).
            key_mask: (batch, keys) of booleans, at least one True in each row.
            output_attentions: Return the weights; computed eagerly, whatever the configuration says.

        Returns:
            Output (batch, queries, hidden) and, if asked for, weights (batch, heads, queries, keys).
        """
        implementation = "eager" if output_attentions else self.config._attn_implementation
        # transformers' flash path cuts a key mask to the queries' length as if padding were on the
        # left, which is wrong for cross-attention; these queries are few, and SDPA is exact.
        if "flash" in implementation and queries.shape[1] != keys.shape[1]:
            implementation = "sdpa"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        # Rows of all utterances below each other: a linear layer would fold and unfold them itself.
        query_rows = queries.flatten(0, 1)
        key_rows = query_rows if keys is queries else keys.flatten(0, 1)
        value_rows = key_rows if values is keys else values.flatten(0, 1)
        batch = queries.shape[0]
        output, weights = attend(
            self,
            self._heads(self.query_projection(query_rows), batch),
            self._heads(self.key_projection(key_rows), batch),
            self._heads(self.value_projection(value_rows), batch),
            self._mask(implementation, queries, keys, key_mask),
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        output = self.output_projection(output.reshape(-1, self.num_heads * self.head_dim))
        return output.view(queries.shape), weights if output_attentions else None

    def _heads(self, rows: Tensor, batch: int) -> Tensor:
        return rows.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, implementation: str, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Any:
        if implementation in ("eager", "sdpa"):
            return key_mask.unflatten(0, (-1, 1, 1))
        return create_bidirectional_mask(
            self.config, inputs_embeds=queries, attention_mask=key_mask, encoder_hidden_states=keys
        )


class MTMMFeedForward(nn.Module):
    """Two layers with an activation between them, at every position: (..., hidden) to the same."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        rows = self.output(self.activation(self.input(states.flatten(0, -2))))
        return rows.view(states.shape)


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
        """(batch, time, width), or (batch, layers, time, width) if weighted, to (batch, time, hidden)."""
        if self.weighted:
            # Deeper layers have larger states; normalised, the weights alone say how much each counts.
            normalised = F.layer_norm(states, states.shape[-1:])
            shares = self.layer_weights.softmax(dim=0).to(normalised.dtype)
            states = torch.einsum("l,bltw->btw", shares, normalised)
        return self.projection(self.norm(states))


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

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (batch, time, hidden), `mask` (batch, time) -> (batch, time, hidden)."""
        normed = self.attention_norm(states)
        states = states + self.dropout(self.attention(normed, normed, normed, mask)[0])
        return self._feed_forward(states)


class MTMMInteractionLayer(MTMMLayer):
    """Cross-attention from bridge tokens (or one modality) to keys and values; pre-norm."""

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        key_mask: Tensor,
        absent: Tensor | None,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Read.

        Args:
            queries: (batch, queries, hidden).
            keys, values: (batch, keys, hidden).
            key_mask: (batch, keys) of booleans, True somewhere in each row.
            absent: (batch, 1) of booleans: an utterance without any key reads nothing, its queries
                pass through the feed-forward alone. None = every utterance has keys.
            output_attentions: Return the weights too.
        """
        normed = self.attention_norm(queries)
        attended, weights = self.attention(normed, keys, values, key_mask, output_attentions)
        if absent is not None:
            attended = attended.masked_fill(absent[..., None], 0.0)
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
        self,
        acoustic_states: Tensor,
        acoustic_mask: Tensor,
        linguistic_states: Tensor,
        linguistic_mask: Tensor,
        output_attentions: bool = False,
    ) -> FusionOutput:
        """Merge the two modalities of each utterance into one vector.

        Args:
            acoustic_states: (batch, frames, width), or (batch, layers, frames, width) if weighted.
            acoustic_mask: (batch, frames) of booleans; a row without True: audio is absent.
            linguistic_states: (batch, tokens, width), or (batch, layers, tokens, width) if weighted.
            linguistic_mask: (batch, tokens) of booleans; a row without True: text is absent.
            output_attentions: Compute the interaction eagerly and return its weights.

        Returns:
            An output with `fused_state`, `bridge_states`, the two attentions and `hidden_states`.
        """
        there = acoustic_mask.any(-1, keepdim=True), linguistic_mask.any(-1, keepdim=True)
        acoustic = Stream(self.acoustic_input(acoustic_states), acoustic_mask, there[0])
        acoustic = _refine(self.acoustic_refinement, self.acoustic_norm, acoustic)
        linguistic = Stream(self.linguistic_input(linguistic_states), linguistic_mask, there[1])
        linguistic = _refine(self.linguistic_refinement, self.linguistic_norm, linguistic)
        bridge = self.config.use_bridge_tokens
        read = self._bridge if bridge else self._query_each_other
        read_streams = read(acoustic, linguistic, output_attentions)
        streams = [_zero_padding(self.output_norm(s.states), s) for s in read_streams]
        return FusionOutput(
            fused_state=_mean_of_present(*streams),
            bridge_states=torch.cat([s.states for s in streams], dim=1) if bridge else None,
            acoustic_bridge_attentions=streams[0].attentions,
            linguistic_bridge_attentions=streams[1].attentions,
            hidden_states=(acoustic.states, linguistic.states),
        )

    def _bridge(
        self, acoustic: Stream, linguistic: Stream, output_attentions: bool
    ) -> tuple[Stream, Stream]:
        """Both bridge sets read: e_a = MultiHead(Q_a, K, V), e_t likewise (paper, section 3)."""
        a_values, l_values = acoustic.states, linguistic.states
        if self.config.bridge_wiring == "crossed":
            # An absent modality's place is taken by the present one, so every set has keys and values.
            acoustic, linguistic = _substitute_absent(acoustic, linguistic)
            a_values, l_values = _swap_values(acoustic, linguistic)
        a_tokens = _bridge_set(self.acoustic_bridge_tokens, acoustic)
        l_tokens = _bridge_set(self.linguistic_bridge_tokens, linguistic)
        return (
            _interact(self.acoustic_interaction, a_tokens, acoustic, a_values, output_attentions),
            _interact(
                self.linguistic_interaction, l_tokens, linguistic, l_values, output_attentions
            ),
        )

    def _query_each_other(
        self, acoustic: Stream, linguistic: Stream, output_attentions: bool
    ) -> tuple[Stream, Stream]:
        """Without bridge tokens: acoustic states query linguistic ones, and the other way round."""
        layers, others = self.acoustic_interaction, self.linguistic_interaction
        return (
            _interact(layers, acoustic, linguistic, linguistic.states, output_attentions),
            _interact(others, linguistic, acoustic, acoustic.states, output_attentions),
        )


def align_weights(value_lengths: Tensor, key_lengths: Tensor, values: int, keys: int) -> Tensor:
    """Weights that bring a value sequence onto another sequence's time axis.

    With n_v values and n_k keys, key i reads at (i + ½)·n_v/n_k − ½, clamped and linearly
    interpolated, where n_v ≤ n_k; where n_v > n_k it reads the mean over its own span, from
    i·n_v/n_k to (i + 1)·n_v/n_k, values cut by the span's ends counting in part. Equal lengths give
    the identity. Padding takes no part.

    Args:
        value_lengths, key_lengths: (batch,) numbers of real positions, at least 1.
        values, keys: The padded lengths.

    Returns:
        (batch, keys, values); a real key's row sums to 1 over the real values.

    Source: ours (the paper is silent; a re-implementation pads the shorter sequence with zeros).
    """
    device = value_lengths.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
    n_v, n_k = value_lengths[:, None, None].to(dtype), key_lengths[:, None, None].to(dtype)
    i = torch.arange(keys, device=device, dtype=dtype)[None, :, None]
    j = torch.arange(values, device=device, dtype=dtype)[None, None, :]
    position = ((i + 0.5) * n_v / n_k - 0.5).clamp(min=0).minimum(n_v - 1)
    # In place: on a CPU, fresh memory for (batch, keys, values) costs as much as the arithmetic.
    interpolated = (position - j).abs_().neg_().add_(1).clamp_(min=0)
    start, stop = i * n_v / n_k, (i + 1) * n_v / n_k
    overlap = torch.minimum(stop, j + 1).sub_(torch.maximum(start, j)).clamp_(min=0)
    return torch.where(n_v <= n_k, interpolated, overlap.mul_(n_k).div_(n_v))


def _swap_values(acoustic: Stream, linguistic: Stream) -> tuple[Tensor, Tensor]:
    """Linguistic states on the acoustic time axis, and acoustic ones on the linguistic axis.

    Both streams have one padded length, so that one calculation serves both directions.
    """
    a_length, l_length = (s.mask.sum(-1).clamp(min=1) for s in (acoustic, linguistic))
    padded = acoustic.mask.shape[1]
    lengths = torch.cat([l_length, a_length]), torch.cat([a_length, l_length])
    weights = align_weights(*lengths, padded, padded).to(acoustic.states.dtype)
    to_acoustic, to_linguistic = weights.unflatten(0, (2, -1)).unbind()
    return to_acoustic @ linguistic.states, to_linguistic @ acoustic.states


def _layers(layer: type[nn.Module], config: Any, count: int) -> nn.ModuleList:
    return nn.ModuleList(layer(config) for _ in range(count))


def _refine(layers: nn.ModuleList, norm: nn.LayerNorm, stream: Stream) -> Stream:
    """Refined states; zeros at padding and for absent modalities."""
    states, kernel_mask = stream.states, stream.kernel_mask
    for layer in layers:
        states = layer(states, kernel_mask)
    return _zero_padding(norm(states), stream)


def _zero_padding(states: Tensor, stream: Stream) -> Stream:
    return stream._replace(states=states.masked_fill(~stream.mask[..., None], 0.0))


def _bridge_set(tokens: Tensor, keys: Stream) -> Stream:
    """Bridge tokens for each utterance; where it has no keys, the set is left out of the mean."""
    # Not len(): torch.export would take the batch for a constant.
    expanded = tokens.expand(keys.mask.shape[0], -1, -1)
    return Stream(expanded, keys.present.expand(-1, len(tokens)), keys.present)


def _interact(
    layers: nn.ModuleList, queries: Stream, keys: Stream, values: Tensor, output_attentions: bool
) -> Stream:
    """The queries after reading `values`, with the attention weights of each layer if asked for."""
    states, attentions = queries.states, []
    kernel_mask, absent = keys.kernel_mask, ~keys.present
    for layer in layers:
        states, weights = layer(states, keys.states, values, kernel_mask, absent, output_attentions)
        attentions.append(weights)
    return queries._replace(
        states=states, attentions=tuple(attentions) if output_attentions else None
    )


def _substitute_absent(acoustic: Stream, linguistic: Stream) -> tuple[Stream, Stream]:
    """Both streams padded to one length, an absent one replaced by the present one."""
    longest = max(acoustic.states.shape[1], linguistic.states.shape[1])
    acoustic, linguistic = _padded(acoustic, longest), _padded(linguistic, longest)
    present = acoustic.present | linguistic.present
    return _or_else(acoustic, linguistic, present), _or_else(linguistic, acoustic, present)


def _padded(stream: Stream, length: int) -> Stream:
    missing = length - stream.states.shape[1]
    # As numbers: of padded booleans torch 2.13 makes C++ code that does not compile.
    mask = F.pad(stream.mask.long(), (0, missing)) != 0
    return stream._replace(states=F.pad(stream.states, (0, 0, 0, missing)), mask=mask)


def _or_else(stream: Stream, other: Stream, present: Tensor) -> Stream:
    # The mask by logic: onnxruntime has no `where` of booleans.
    mask = stream.mask | (other.mask & ~stream.present)
    states = torch.where(stream.present[..., None], stream.states, other.states)
    return Stream(states, mask, present)


def _mean_of_present(*streams: Stream) -> Tensor:
    """Mean over each stream's real positions, then over the streams that are there: (batch, hidden).

    NaN for an utterance without either: what nobody said must not get an emotion in silence. States
    are zeros at padding.
    """
    means = [s.states.sum(1) / s.mask.sum(-1, keepdim=True).clamp(min=1) for s in streams]
    counts = [s.present.to(s.states.dtype) for s in streams]
    return (means[0] + means[1]) / (counts[0] + counts[1])


def carry_to_values(
    a_read: Tensor, a_mask: Tensor, l_read: Tensor, l_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Crossed wiring: weights on keys (batch, keys) as weights on the acoustic and linguistic values.

    Where a modality is absent, its keys and its values were those of the present one.
    """
    a_there, l_there = a_mask.any(-1), l_mask.any(-1)
    a_length, l_length = a_mask.sum(-1), l_mask.sum(-1)
    a_keys = torch.where(a_there, a_length, l_length)
    l_keys = torch.where(l_there, l_length, a_length)
    keys = a_read.shape[-1]
    a_set = (a_read[:, None] @ align_weights(l_keys, a_keys, keys, keys).to(a_read))[:, 0]
    l_set = (l_read[:, None] @ align_weights(a_keys, l_keys, keys, keys).to(l_read))[:, 0]
    a_there, l_there = a_there[:, None], l_there[:, None]
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
