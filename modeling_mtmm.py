"""MTMM: two pretrained encoders, refinement, bridge fusion, two heads, and the loss of training.

The architecture of Ispas, Deschamps-Berger and Devillers 2023 (arXiv 2401.00536), uploaded to the Hub
beside the weights. Reading waveforms and transcripts is in processing_mtmm.py, training elsewhere.

Shapes: "frames" are the acoustic encoder's output positions (50 a second for HuBERT and Whisper),
"tokens" the linguistic one's, "keys" the longer of the two, "width" an encoder's hidden size.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput, can_return_tuple

# The only import among the Hub files. Relative first: as remote code these are neighbours in a
# package; in a checkout they are top-level modules. Processor and pipeline are named here so that
# saving a model takes their files along: transformers copies what a model's file imports.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .configuration_mtmm import MTMMConfig
        from .pipeline_mtmm import MTMMPipeline
        from .processing_mtmm import MTMMProcessor, receptive_field
except ImportError:
    from configuration_mtmm import MTMMConfig
    from pipeline_mtmm import MTMMPipeline
    from processing_mtmm import MTMMProcessor, receptive_field

FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors calls them
# Weights that no forward pass reads; the second one only where there is no SpecAugment.
UNREAD = ("text_model.pooler.", "audio_model.masked_spec_embed")
ABSENT_EMOTION = -100  # the emotion label of an utterance that has none; an absent dimension is NaN


@dataclass
class MTMMOutput(ModelOutput):
    """What [`MTMMModel`] returns; every field is None where it was not asked for or has no input.

    Args:
        loss (`Tensor`, ()): `emotion_loss + dimension_loss`; None without labels.
        emotion_loss (`Tensor`, ()): Weighted cross-entropy; 0 where the batch has no emotion label.
        dimension_loss (`Tensor`, ()): Sum over the dimensions of weight · (1 − CCC); a dimension with
            fewer than two labels, or without any spread, adds 0.
        emotion_logits (`Tensor`, (batch, emotions)): Unnormalised scores, in the order of
            `config.id2label`; not divided by `config.temperature`.
        dimensions (`Tensor`, (batch, dimensions)): In the order of `config.dimension_names`, on the
            labels' scale: inside `config.dimension_range`.
        fused_state (`Tensor`, (batch, hidden)): The vector that feeds both heads.
        bridge_states (`Tensor`, (batch, 2 · bridges, hidden)): The bridge tokens after the
            interaction, acoustic set first; zeros for a set whose modality is absent in direct
            wiring; None without bridge tokens.
        acoustic_bridge_attentions (`tuple[Tensor]`, each (batch, heads, queries, keys)): One per
            interaction layer. In crossed wiring a weight on a key stands for the value that
            `align_values` brought there. Zeros where the keys' modality is absent.
        linguistic_bridge_attentions (`tuple[Tensor]`): The same for the linguistic set.
        hidden_states (`tuple[Tensor, Tensor]`): Refined acoustic (batch, frames, hidden) and
            linguistic (batch, tokens, hidden) states; zeros at padding and for absent modalities.
    """

    loss: Tensor | None = None
    emotion_loss: Tensor | None = None
    dimension_loss: Tensor | None = None
    emotion_logits: Tensor | None = None
    dimensions: Tensor | None = None
    fused_state: Tensor | None = None
    bridge_states: Tensor | None = None
    acoustic_bridge_attentions: tuple[Tensor, ...] | None = None
    linguistic_bridge_attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


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
        scaling: Of the products of query and key.
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

    def __init__(self, config: MTMMConfig) -> None:
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
        output, weights = attend(
            self,
            self._heads(self.query_projection(queries)),
            self._heads(self.key_projection(keys)),
            self._heads(self.value_projection(values)),
            self._mask(implementation, queries, keys, key_mask),
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        output = self.output_projection(output.reshape(*queries.shape[:2], -1))
        return output, weights if output_attentions else None

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, implementation: str, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Any:
        if implementation in ("eager", "sdpa"):
            return key_mask[:, None, None, :]
        return create_bidirectional_mask(
            self.config, inputs_embeds=queries, attention_mask=key_mask, encoder_hidden_states=keys
        )


class MTMMFeedForward(nn.Module):
    """Two layers with an activation between them, at every position: (..., hidden) to the same."""

    def __init__(self, config: MTMMConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.output(self.activation(self.input(states)))


# ---- fusion ------------------------------------------------------------------------------------


class MTMMInput(nn.Module):
    """An encoder's states to the fusion's width; mixes `layers` of them (0 = there is the last only)."""

    def __init__(self, config: MTMMConfig, width: int, layers: int) -> None:
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

    def __init__(self, config: MTMMConfig) -> None:
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
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (batch, queries, hidden) after reading keys and values (batch, keys, hidden).

        An utterance without any key reads nothing: its queries pass through the feed-forward alone.
        """
        present = key_mask.any(dim=-1)
        attended, weights = self.attention(
            self.attention_norm(queries), keys, values, _unmask_absent(key_mask), output_attentions
        )
        queries = queries + self.dropout(_zero_unless(present, attended))
        queries = self._feed_forward(queries)
        return queries, None if weights is None else _zero_unless(present, weights)


class MTMMFusion(nn.Module):
    """Everything new but the heads: layer weights, refinement, bridge tokens and interaction.

    One module, so that `modules_to_save=["fusion", "emotion_head", "dimension_head"]` names all that
    LoRA must train in full (peft overlooks a bare parameter).
    """

    def __init__(self, config: MTMMConfig) -> None:
        super().__init__()
        self.config = config
        self.acoustic_input = MTMMInput(
            config, config.encoder_config("audio").hidden_size, len(config.mixed_layers("audio"))
        )
        self.linguistic_input = MTMMInput(
            config, config.encoder_config("text").hidden_size, len(config.mixed_layers("text"))
        )
        refinement_layers = config.num_refinement_layers if config.use_refinement else 0
        self.acoustic_refinement = _layers(MTMMRefinementLayer, config, refinement_layers)
        self.linguistic_refinement = _layers(MTMMRefinementLayer, config, refinement_layers)
        self.acoustic_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.linguistic_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.use_bridge_tokens:
            shape = (config.num_bridge_tokens, config.hidden_size)
            self.acoustic_bridge_tokens = nn.Parameter(torch.zeros(shape))
            self.linguistic_bridge_tokens = nn.Parameter(torch.zeros(shape))
        self.acoustic_interaction = _layers(
            MTMMInteractionLayer, config, config.num_interaction_layers
        )
        self.linguistic_interaction = _layers(
            MTMMInteractionLayer, config, config.num_interaction_layers
        )
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        acoustic_states: Tensor,
        acoustic_mask: Tensor,
        linguistic_states: Tensor,
        linguistic_mask: Tensor,
        output_attentions: bool = False,
    ) -> MTMMOutput:
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
        acoustic = self.acoustic_input(acoustic_states)
        acoustic = _refine(self.acoustic_refinement, self.acoustic_norm, acoustic, acoustic_mask)
        linguistic = self.linguistic_input(linguistic_states)
        linguistic = _refine(
            self.linguistic_refinement, self.linguistic_norm, linguistic, linguistic_mask
        )
        if self.config.use_bridge_tokens:
            streams = self._bridge(
                acoustic, acoustic_mask, linguistic, linguistic_mask, output_attentions
            )
        else:
            streams = self._query_each_other(
                acoustic, acoustic_mask, linguistic, linguistic_mask, output_attentions
            )
        (a_states, a_mask, a_weights), (l_states, l_mask, l_weights) = streams
        a_states, l_states = self.output_norm(a_states), self.output_norm(l_states)
        bridge_states = None
        if self.config.use_bridge_tokens:
            bridge_states = torch.cat(
                [_zero_unless(a_mask.any(-1), a_states), _zero_unless(l_mask.any(-1), l_states)],
                dim=1,
            )
        return MTMMOutput(
            fused_state=_mean_of_present(a_states, a_mask, l_states, l_mask),
            bridge_states=bridge_states,
            acoustic_bridge_attentions=a_weights,
            linguistic_bridge_attentions=l_weights,
            hidden_states=(acoustic, linguistic),
        )

    def _bridge(
        self,
        acoustic: Tensor,
        a_mask: Tensor,
        linguistic: Tensor,
        l_mask: Tensor,
        output_attentions: bool,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Both bridge sets read: e_a = MultiHead(Q_a, K, V), e_t likewise (paper, section 3)."""
        crossed = self.config.bridge_wiring == "crossed"
        a_values, l_values = acoustic, linguistic
        if crossed:
            # An absent modality's place is taken by the present one, so every set has keys and values.
            acoustic, a_mask, linguistic, l_mask = _substitute_absent(
                acoustic, a_mask, linguistic, l_mask
            )
            a_values = align_values(linguistic, l_mask, a_mask)
            l_values = align_values(acoustic, a_mask, l_mask)
        batch = acoustic.shape[0]
        a_tokens = self.acoustic_bridge_tokens.expand(batch, -1, -1)
        l_tokens = self.linguistic_bridge_tokens.expand(batch, -1, -1)
        a_states, a_weights = _interact(
            self.acoustic_interaction, a_tokens, acoustic, a_values, a_mask, output_attentions
        )
        l_states, l_weights = _interact(
            self.linguistic_interaction, l_tokens, linguistic, l_values, l_mask, output_attentions
        )
        # In direct wiring a set whose modality is absent is left out of the mean.
        a_present = a_mask.any(-1, keepdim=True).expand(-1, a_states.shape[1])
        l_present = l_mask.any(-1, keepdim=True).expand(-1, l_states.shape[1])
        return (a_states, a_present, a_weights), (l_states, l_present, l_weights)

    def _query_each_other(
        self,
        acoustic: Tensor,
        a_mask: Tensor,
        linguistic: Tensor,
        l_mask: Tensor,
        output_attentions: bool,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Without bridge tokens: acoustic states query linguistic ones, and the other way round."""
        a_states, a_weights = _interact(
            self.acoustic_interaction, acoustic, linguistic, linguistic, l_mask, output_attentions
        )
        l_states, l_weights = _interact(
            self.linguistic_interaction, linguistic, acoustic, acoustic, a_mask, output_attentions
        )
        return (a_states, a_mask, a_weights), (l_states, l_mask, l_weights)


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
    dtype = _exact_dtype(device)
    n_v, n_k = value_lengths[:, None, None].to(dtype), key_lengths[:, None, None].to(dtype)
    i = torch.arange(keys, device=device, dtype=dtype)[None, :, None]
    j = torch.arange(values, device=device, dtype=dtype)[None, None, :]
    position = ((i + 0.5) * n_v / n_k - 0.5).clamp(min=0).minimum(n_v - 1)
    interpolated = (1 - (position - j).abs()).clamp(min=0)
    start, stop = i * n_v / n_k, (i + 1) * n_v / n_k
    overlap = (torch.minimum(stop, j + 1) - torch.maximum(start, j)).clamp(min=0)
    return torch.where(n_v <= n_k, interpolated, overlap * n_k / n_v)


def _exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have


def align_values(values: Tensor, value_mask: Tensor, key_mask: Tensor) -> Tensor:
    """Bring `values` (batch, values, hidden) onto the keys' time axis: (batch, keys, hidden).

    Args:
        values: Zeros at padding.
        value_mask, key_mask: (batch, values) and (batch, keys) of booleans, True first in each row.
    """
    lengths = value_mask.sum(-1).clamp(min=1), key_mask.sum(-1).clamp(min=1)
    weights = align_weights(*lengths, value_mask.shape[1], key_mask.shape[1])
    return weights.to(values.dtype) @ values


def _layers(layer: type[nn.Module], config: MTMMConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(layer(config) for _ in range(count))


def _refine(layers: nn.ModuleList, norm: nn.LayerNorm, states: Tensor, mask: Tensor) -> Tensor:
    """Refined states; zeros at padding and for absent modalities."""
    kernel_mask = _unmask_absent(mask)
    for layer in layers:
        states = layer(states, kernel_mask)
    return torch.where(mask[..., None], norm(states), 0.0)


def _interact(
    layers: nn.ModuleList,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_mask: Tensor,
    output_attentions: bool,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    all_weights: tuple[Tensor, ...] = ()
    for layer in layers:
        queries, weights = layer(queries, keys, values, key_mask, output_attentions)
        all_weights += (weights,)
    return queries, all_weights if output_attentions else None


def _unmask_absent(mask: Tensor) -> Tensor:
    """No kernel sees a fully masked row (SDPA would give zeros, eager the mean, some NaN)."""
    return mask | ~mask.any(dim=-1, keepdim=True)


def _zero_unless(present: Tensor, states: Tensor) -> Tensor:
    """`states` (batch, ...) with zeros where `present` (batch,) is False."""
    return torch.where(present.view(-1, *[1] * (states.dim() - 1)), states, 0.0)


def _substitute_absent(
    acoustic: Tensor, a_mask: Tensor, linguistic: Tensor, l_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both streams padded to one length, an absent one replaced by the present one."""
    keys = max(acoustic.shape[1], linguistic.shape[1])
    acoustic = F.pad(acoustic, (0, 0, 0, keys - acoustic.shape[1]))
    linguistic = F.pad(linguistic, (0, 0, 0, keys - linguistic.shape[1]))
    # As numbers: of padded booleans torch 2.13 makes C++ code that does not compile.
    a_mask = F.pad(a_mask.long(), (0, keys - a_mask.shape[1])) != 0
    l_mask = F.pad(l_mask.long(), (0, keys - l_mask.shape[1])) != 0
    a_present, l_present = a_mask.any(-1, keepdim=True), l_mask.any(-1, keepdim=True)
    # Masks by logic: onnxruntime has no `where` of booleans.
    return (
        torch.where(a_present[..., None], acoustic, linguistic),
        a_mask | (l_mask & ~a_present),
        torch.where(l_present[..., None], linguistic, acoustic),
        l_mask | (a_mask & ~l_present),
    )


def _mean_of_present(a_states: Tensor, a_mask: Tensor, l_states: Tensor, l_mask: Tensor) -> Tensor:
    """Mean over each stream's real positions, then over the streams that are there: (batch, hidden)."""
    means, present = [], []
    for states, mask in ((a_states, a_mask), (l_states, l_mask)):
        total = torch.where(mask[..., None], states, 0.0).sum(1)
        means.append(total / mask.sum(-1, keepdim=True).clamp(min=1))
        present.append(mask.any(-1, keepdim=True).to(states.dtype))
    return (means[0] * present[0] + means[1] * present[1]) / (present[0] + present[1]).clamp(min=1)


# ---- heads and loss ----------------------------------------------------------------------------


class MTMMHead(nn.Module):
    """Dense, activation, projection; the paper leaves the shape of its heads open."""

    def __init__(self, config: MTMMConfig, outputs: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.projection = nn.Linear(config.hidden_size, outputs)

    def forward(self, fused_state: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, outputs)."""
        states = self.activation(self.dense(self.dropout(fused_state)))
        return self.projection(self.dropout(states))


def multi_task_loss(
    config: MTMMConfig,
    emotion_logits: Tensor,
    dimensions: Tensor,
    emotion_labels: Tensor | None = None,
    dimension_labels: Tensor | None = None,
    class_weights: Tensor | None = None,
    reduce_sum: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy and weighted 1 − CCC, from sums over all utterances of a global batch.

    Args:
        config: Has the weights of the terms and the label smoothing.
        emotion_logits: (batch, emotions).
        dimensions: (batch, dimensions), on the labels' scale.
        emotion_labels: (batch,), −100 = absent; None = all absent.
        dimension_labels: (batch, dimensions), NaN = absent; None = all absent.
        class_weights: (emotions,), weights of the emotions in the cross-entropy, or None; only their
            ratios count.
        reduce_sum: Adds a vector of sums over all processes, differentiably; None = one process.

    Returns:
        The two terms of the loss, float32, (). Absent labels add a zero that is still connected to
        the graph.

    Source: paper, training; CCC: Lin 1989, population moments.
    """
    with torch.autocast(emotion_logits.device.type, enabled=False):
        logits, predictions = _at_least_float32(emotion_logits), _at_least_float32(dimensions)
        sums = torch.cat(
            [
                _emotion_sums(config, logits, emotion_labels, class_weights),
                _dimension_sums(config, predictions, dimension_labels).flatten(),
            ]
        )
        if reduce_sum is not None:
            sums = reduce_sum(sums)
        cross_entropy, weight = sums[0], sums[1]
        emotion_loss = cross_entropy / torch.where(weight > 0, weight, 1.0)
        concordance, defined = _concordance(sums[2:].view(6, -1))
        weights = concordance.new_tensor(config.dimension_loss_weights)
        dimension_loss = (weights * torch.where(defined, 1 - concordance, concordance)).sum()
        emotion_loss = config.emotion_loss_weight * emotion_loss
        return emotion_loss.to(logits), dimension_loss.to(predictions)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _emotion_sums(
    config: MTMMConfig, logits: Tensor, labels: Tensor | None, class_weights: Tensor | None
) -> Tensor:
    """Sum of the cross-entropies and of the labels' weights: (2,)."""
    if labels is None:
        labels = torch.full(logits.shape[:1], ABSENT_EMOTION, device=logits.device)
    weights = (
        logits.new_ones(logits.shape[1]) if class_weights is None else class_weights.to(logits)
    )
    # Their common factor cancels below, where sums of huge weights would have overflown before.
    weights = weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny)
    cross_entropy = F.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=ABSENT_EMOTION,
        label_smoothing=config.label_smoothing,
        reduction="sum",
    )
    present = labels != ABSENT_EMOTION
    weight = torch.where(present, weights[labels.clamp(min=0)], 0.0).sum()
    return torch.stack([cross_entropy, weight])


def _dimension_sums(config: MTMMConfig, predictions: Tensor, labels: Tensor | None) -> Tensor:
    """Count, sums, squares and products of the pairs that have a label: (6, dimensions), float64.

    In float32 the variance of nearly constant predictions would be a difference of rounding errors.
    Centred and scaled by the dimension range, to which CCC is indifferent, for the limit below which
    there is no spread.
    """
    predictions = predictions.to(_exact_dtype(predictions.device))
    if labels is None:
        labels = torch.full_like(predictions, torch.nan)
    present = ~labels.isnan()
    low, high = config.dimension_range
    middle, half_range = (low + high) / 2, (high - low) / 2
    x = torch.where(present, (predictions - middle) / half_range, predictions * 0)
    y = torch.where(present, (labels.to(predictions) - middle) / half_range, 0.0)
    return torch.stack([present.to(x).sum(0), *(v.sum(0) for v in (x, y, x * x, y * y, x * y))])


def _concordance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """CCC of each dimension, and whether it is defined; where not, a connected zero."""
    count, x, y, xx, yy, xy = sums
    n = count.clamp(min=1)
    mean_x, mean_y = x / n, y / n
    covariance = xy / n - mean_x * mean_y
    spread = (xx / n - mean_x**2) + (yy / n - mean_y**2) + (mean_x - mean_y) ** 2
    # In units of half the dimension range: below this, labels and predictions are one constant.
    defined = (count >= 2) & (spread > 1e-8)
    return 2 * torch.where(defined, covariance, xy * 0) / torch.where(defined, spread, 1.0), defined


# ---- the model ---------------------------------------------------------------------------------


class EncoderStatesRecorder:
    """Keeps the chosen ones of an encoder's hidden states: 0 = its first layer's input, i = layer i's output.

    `output_hidden_states=True` would do the same, but takes a lock that a first
    `torch.compile(fullgraph=True)` cannot trace.
    """

    def __init__(self, encoder: PreTrainedModel, chosen: tuple[int, ...]) -> None:
        self.chosen = chosen
        self.states: dict[int, list[Tensor]] = {}  # by thread: several may run one model
        layers = _encoder_layers(encoder)
        layers[0].register_forward_pre_hook(self._keep_input)
        for layer in layers:
            layer.register_forward_hook(self._keep_output)

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if (states := self.states.get(_thread())) is not None:
            states.append(args[0])

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (states := self.states.get(_thread())) is not None:
            states.append(output[0] if isinstance(output, tuple) else output)

    def run(self, encoder: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        """(batch, chosen, time, width), a last layer's as the encoder's last hidden state."""
        thread = _thread()
        self.states[thread] = []
        try:
            last = encoder(**inputs).last_hidden_state
            states = [*self.states[thread][:-1], last]
            return torch.stack([states[layer] for layer in self.chosen], dim=1)
        finally:
            del self.states[thread]


def _thread() -> int:
    """Which thread this is; 0 in a traced graph, which has no word for it."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _encoder_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The encoder's transformer layers: the ModuleList as long as its configuration says."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == encoder.config.num_hidden_layers:
            if "Layer" in type(module[0]).__name__ and "Conv" not in type(module[0]).__name__:
                return module
    raise ValueError(
        f"`encoder_layers='weighted'` finds no list of {encoder.config.num_hidden_layers} layers in "
        f"{type(encoder).__name__}; use encoder_layers='last' with this encoder."
    )


def _build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder from its configuration; of an encoder-decoder (Whisper) the encoder alone."""
    if type(config) not in AutoModel._model_mapping:
        raise ValueError(f"A {config.model_type!r} model is no encoder; give one of audio or text.")
    if not getattr(AutoModel._model_mapping[type(config)], "_supports_sdpa", False):
        config._attn_implementation = "eager"  # DeBERTa refuses what the other parts can use
    if not config.is_encoder_decoder:
        return AutoModel.from_config(config)
    with torch.device("meta"):  # names the encoder's class without making a decoder
        encoder_class = type(AutoModel.from_config(config).get_encoder())
    return encoder_class(config)


def _load_encoder(name_or_path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained encoder, without layer drop and SpecAugment (see configuration_mtmm.py)."""
    config = AutoConfig.from_pretrained(name_or_path)
    for field in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    model = AutoModel.from_pretrained(name_or_path, config=config, dtype=dtype, weights_only=True)
    return model.get_encoder() if config.is_encoder_decoder else model


class MTMMPreTrainedModel(PreTrainedModel):
    """What transformers must know of every MTMM model: its configuration, inputs and attention kinds."""

    config: MTMMConfig
    config_class = MTMMConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MTMMRefinementLayer", "MTMMInteractionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = float(self.config.initializer_range or 0)  # None is filled in when it is made
        if isinstance(module, MTMMFusion) and module.config.use_bridge_tokens:
            init.normal_(module.acoustic_bridge_tokens, std=std)
            init.normal_(module.linguistic_bridge_tokens, std=std)
        if isinstance(module, MTMMInput) and module.weighted:
            init.zeros_(module.layer_weights)  # all layers count alike


class MTMMModel(MTMMPreTrainedModel):
    """Emotions and dimensions of utterances, from audio, text or both.

    Built from a configuration alone, with random weights. [`from_encoders_pretrained`] starts from
    pretrained encoders, [`from_pretrained`] loads a trained model.

    Args:
        config ([`MTMMConfig`]): Checked again, since fields may have been set after it was made.
    """

    # Trainer must not divide by the number of labelled items: CCC is no sum over items.
    accepts_loss_kwargs = False

    audio_model: Any  # of any family: PreTrainedModel names little of what they share
    text_model: Any

    def __init__(self, config: MTMMConfig) -> None:
        config.check()
        super().__init__(config)
        self.audio_model = _build_encoder(config.encoder_config("audio"))
        self.text_model = _build_encoder(config.encoder_config("text"))
        self.fusion = MTMMFusion(config)
        self.emotion_head = MTMMHead(config, len(config.emotion_names))
        self.dimension_head = MTMMHead(config, len(config.dimension_names))
        self._adopt_encoders()
        self.post_init()

    def _forget_outputs(self, drawn: set[str]) -> None:
        """Weights of these names are random now, so what is predicted through them is untrained."""
        of_heads = {"emotion_head": ("emotion",), "dimension_head": self.config.dimension_names}
        lost: set[str] = set()
        for key in drawn:
            if key.startswith(UNREAD):
                continue
            lost.update(of_heads.get(key.partition(".")[0], self.config.output_names))
        if lost:
            kept = [name for name in self.config.trained_outputs if name not in lost]
            self.config.trained_outputs = tuple(kept)

    def _adopt_encoders(self) -> None:
        """What must hold for the encoders, wherever they came from."""
        config = self.config
        if not hasattr(self.audio_model, "_get_feat_extract_output_lengths"):
            raise ValueError(
                f"{type(self.audio_model).__name__} is no acoustic encoder of waveforms or log-mel "
                "spectra; use HuBERT, wav2vec 2.0, WavLM or Whisper."
            )
        if self.text_model.main_input_name != "input_ids":
            raise ValueError(
                f"{type(self.text_model).__name__} is no linguistic encoder; use BERT, RoBERTa, DeBERTa "
                "or another that takes input_ids."
            )
        for encoder in (self.audio_model, self.text_model):
            encoder.config._name_or_path = ""  # else a private path is saved and published
            encoder.config.return_dict = True  # its outputs are read by name
        self._freeze_encoders()
        self._recorders = {}
        if config.encoder_layers == "weighted":
            audio, text = config.mixed_layers("audio"), config.mixed_layers("text")
            self._recorders["audio"] = EncoderStatesRecorder(self.audio_model, audio)
            self._recorders["text"] = EncoderStatesRecorder(self.text_model, text)

    def _freeze_encoders(self) -> None:
        if self.config.freeze_audio_encoder:
            self.audio_model.requires_grad_(False)
        if self.config.freeze_text_encoder:
            self.text_model.requires_grad_(False)
        # What no forward pass reads gets no gradient, and DistributedDataParallel would stop.
        augmented = getattr(self.audio_model.config, "apply_spec_augment", True)
        for name, parameter in self.named_parameters():
            if name.startswith(UNREAD) and not (name.startswith("audio_model.") and augmented):
                parameter.requires_grad_(False)
        if self.audio_model.main_input_name == "input_features":  # Whisper's sinusoids are fixed
            self.audio_model.embed_positions.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> "MTMMModel":
        """Load a saved model; as `PreTrainedModel.from_pretrained`, with its frozen encoders frozen.

        transformers draws weights that it does not find at random, and goes on with a warning. Here
        that must be asked for: by `ignore_mismatched_sizes=True`, or by `output_loading_info=True`
        where weights are missing or left over, since the caller is then told.

        Raises:
            ValueError: The configuration is not allowed; the weights are others than it describes,
                or not finite.
            OSError: A file is missing or damaged.
        """
        name = pretrained_model_name_or_path
        if name is not None and os.path.exists(name):
            _refuse_damaged_files(name)
        told = kwargs.pop("output_loading_info", False)
        drawn = kwargs.pop("ignore_mismatched_sizes", False)
        options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(name, *args, **options, **kwargs)
        model, found = loaded
        if not drawn:
            _refuse_other_weights(name, found, told)
        model._forget_outputs(
            {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
        )
        _refuse_infinite_weights(name, model)
        model._freeze_encoders()  # loading makes new parameters, all of them with gradients
        answer: Any = (model, found) if told else model
        return answer

    @classmethod
    def from_encoders_pretrained(
        cls, audio: str, text: str, *, dtype: torch.dtype = torch.float32, **config_fields: Any
    ) -> "MTMMModel":
        """A model with pretrained encoders and new fusion and heads.

        Args:
            audio: Folder or Hub id of the acoustic encoder (of Whisper only the encoder is kept).
            text: Folder or Hub id of the linguistic encoder.
            dtype: Of all weights. Checkpoints often are float16, in which training fails; so
                float32 unless asked otherwise.
            config_fields: Fields of [`MTMMConfig`].

        Raises:
            ValueError: A field is not allowed.
            OSError: An encoder cannot be found.
        """
        audio_model, text_model = _load_encoder(audio, dtype), _load_encoder(text, dtype)
        config = MTMMConfig(
            audio_config=audio_model.config,
            text_config=text_model.config,
            dtype=dtype,
            **config_fields,
        )
        with torch.device("meta"):  # random encoders would be made only to be replaced
            model = cls(config)
        for module in (model.fusion, model.emotion_head, model.dimension_head):
            module.to_empty(device="cpu").to(dtype).apply(model._init_weights)
        model.audio_model, model.text_model = audio_model, text_model
        model._adopt_encoders()
        return model.eval()

    def get_input_embeddings(self) -> Any:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "MTMMModel":
        """Frozen encoders stay in eval mode: no dropout, whatever the rest does."""
        super().train(mode)
        for encoder in (self.audio_model, self.text_model):
            encoder.train(mode and _is_trainable(encoder))
        return self

    def encode_audio(
        self, input_values: Tensor, audio_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The acoustic encoder's states, as `forward` takes them back.

        Args:
            input_values: Waveforms (batch, time) or log-mel spectra (batch, mels, frames).
            audio_attention_mask: (batch, time or frames), 1 = real, real positions first; None = all.

        Returns:
            `acoustic_states` (batch, frames, width), or (batch, layers, frames, width) with
            `encoder_layers="weighted"`, and `acoustic_attention_mask` (batch, frames) of booleans;
            with an `acoustic_stride`, a frame is the mean of so many of the encoder's.
        """
        encoder = self.audio_model
        self._refuse_other_audio(input_values)
        mask = _as_mask(audio_attention_mask, input_values, axes=(0, -1))
        if input_values.dim() == 2:  # waveforms: the encoder fails on less than one frame
            missing = max(receptive_field(encoder.config) - input_values.shape[1], 0)
            input_values, mask = F.pad(input_values, (0, missing)), F.pad(mask, (0, missing))
        inputs = {encoder.main_input_name: input_values.to(encoder.dtype)}
        # Log-mel encoders take no mask. Waveform encoders with group norm were trained without one:
        # they normalise over the padded time axis, mask or no mask, so padding changes their result.
        if getattr(encoder.config, "feat_extract_norm", None) == "layer":
            inputs["attention_mask"] = _unmask_absent(mask).long()
        states = self._run_encoder("audio", inputs)
        lengths = encoder._get_feat_extract_output_lengths(mask.sum(-1))
        frames = torch.arange(states.shape[-2], device=states.device)
        return _average_frames(states, frames < lengths[:, None], self.config.acoustic_stride)

    def _refuse_other_audio(self, input_values: Tensor) -> None:
        """A processor of another acoustic encoder gives other inputs."""
        if self.audio_model.main_input_name == "input_features":
            mels = self.audio_model.config.num_mel_bins
            fits, wanted = input_values.shape[1:-1] == (mels,), f"(batch, {mels}, frames)"
        else:
            fits, wanted = input_values.dim() == 2, "(batch, time)"
        if not fits:
            raise ValueError(
                f"`input_values` are {tuple(input_values.shape)}, but {type(self.audio_model).__name__} "
                f"takes {wanted}; use the processor that was saved with this model."
            )

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The linguistic encoder's states, as `forward` takes them back.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 1 = real, real positions first; None = all.

        Returns:
            `linguistic_states` (batch, tokens, width), or (batch, layers, tokens, width) with
            `encoder_layers="weighted"`, and `linguistic_attention_mask` (batch, tokens) of booleans.
        """
        if not torch.compiler.is_compiling():  # reads values, which a traced graph cannot
            _refuse_unknown_tokens(input_ids, self.get_input_embeddings().num_embeddings)
        mask = _as_mask(attention_mask, input_ids, axes=(0, -1))
        inputs = {"input_ids": input_ids, "attention_mask": _unmask_absent(mask).long()}
        return self._run_encoder("text", inputs), mask

    def _run_encoder(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        encoder = self.audio_model if modality == "audio" else self.text_model
        trainable = _is_trainable(encoder)
        if encoder.training and not trainable:
            encoder.eval()  # frozen after the last call of train()
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            if modality in self._recorders:
                return self._recorders[modality].run(encoder, inputs)
            return encoder(**inputs).last_hidden_state

    @can_return_tuple  # type: ignore[untyped-decorator]  # of transformers
    def forward(
        self,
        input_values: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        acoustic_states: Tensor | None = None,
        acoustic_attention_mask: Tensor | None = None,
        linguistic_states: Tensor | None = None,
        linguistic_attention_mask: Tensor | None = None,
        emotion_labels: Tensor | None = None,
        dimension_labels: Tensor | None = None,
        class_weights: Tensor | None = None,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MTMMOutput:
        """Predict, and compute the loss where labels are given.

        A modality is absent for the batch if neither its inputs nor its states are given, and for
        one utterance if its mask row is all zero; either way the result is the same.

        Args:
            input_values: Waveforms (batch, time), −1 to 1 before the processor's normalisation, or
                log-mel spectra (batch, mels, frames).
            audio_attention_mask: (batch, time or frames), 1 = real, real positions first.
            input_ids: (batch, tokens).
            attention_mask: The text's: (batch, tokens), 1 = real, real positions first.
            acoustic_states: Instead of `input_values`: what [`encode_audio`] returned.
            acoustic_attention_mask: (batch, frames).
            linguistic_states: Instead of `input_ids`: what [`encode_text`] returned.
            linguistic_attention_mask: (batch, tokens).
            emotion_labels: (batch,), −100 = absent.
            dimension_labels: (batch, dimensions), on the scale of `config.dimension_range`,
                NaN = absent.
            class_weights: (emotions,), weights of the emotions in the cross-entropy.
            reduce_sum: Adds a vector over all processes, differentiably; see [`multi_task_loss`].
            output_attentions: Return the bridge tokens' attention weights.
            output_hidden_states: Return the refined states.

        Raises:
            ValueError: No modality at all, for the batch or for one utterance; both inputs and
                states of one modality; audio shorter than the encoder's receptive field; padding
                on the left; labels of another shape.
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        _refuse_both("input_values", input_values, "acoustic_states", acoustic_states)
        _refuse_both("input_ids", input_ids, "linguistic_states", linguistic_states)
        inputs = (input_values, input_ids, acoustic_states, linguistic_states)
        given = next((tensor for tensor in inputs if tensor is not None), None)
        if given is None:
            raise ValueError(
                "MTMMModel got neither audio nor text; give `input_values` (or `acoustic_states`), "
                "`input_ids` (or `linguistic_states`), or both."
            )
        acoustic, acoustic_mask = self._states(
            "audio",
            given,
            input_values,
            audio_attention_mask,
            acoustic_states,
            acoustic_attention_mask,
        )
        linguistic, linguistic_mask = self._states(
            "text", given, input_ids, attention_mask, linguistic_states, linguistic_attention_mask
        )
        if acoustic.shape[0] != linguistic.shape[0]:
            raise ValueError(
                f"MTMMModel got {acoustic.shape[0]} utterances of audio and {linguistic.shape[0]} of "
                "text; give the same number, with zero mask rows where one is absent."
            )
        if not torch.compiler.is_compiling():  # reads values, which a traced graph cannot
            _refuse_gaps(
                audio_attention_mask=audio_attention_mask,
                attention_mask=attention_mask,
                acoustic_attention_mask=acoustic_attention_mask,
                linguistic_attention_mask=linguistic_attention_mask,
            )
            if input_values is not None:
                claimed = _as_mask(audio_attention_mask, input_values, axes=(0, -1)).any(-1)
                _refuse_too_short(claimed & ~acoustic_mask.any(-1))
            _refuse_absent(~(acoustic_mask.any(-1) | linguistic_mask.any(-1)))
            if self.training:
                self._record_trained_outputs(emotion_labels, dimension_labels)
        fused = self.fusion(acoustic, acoustic_mask, linguistic, linguistic_mask, output_attentions)
        logits = self.emotion_head(fused.fused_state)
        low, high = self.config.dimension_range
        scores = _at_least_float32(self.dimension_head(fused.fused_state))
        dimensions = low + (high - low) * scores.sigmoid()
        _refuse_other_labels("emotion_labels", emotion_labels, logits.shape[:1])
        _refuse_other_labels("dimension_labels", dimension_labels, dimensions.shape)
        loss = emotion_loss = dimension_loss = None
        if emotion_labels is not None or dimension_labels is not None:
            emotion_loss, dimension_loss = multi_task_loss(
                self.config,
                logits,
                dimensions,
                emotion_labels,
                dimension_labels,
                class_weights,
                reduce_sum,
            )
            loss = emotion_loss + dimension_loss
        return MTMMOutput(
            loss=loss,
            emotion_loss=emotion_loss,
            dimension_loss=dimension_loss,
            emotion_logits=logits,
            dimensions=dimensions,
            fused_state=fused.fused_state,
            bridge_states=fused.bridge_states,
            acoustic_bridge_attentions=fused.acoustic_bridge_attentions,
            linguistic_bridge_attentions=fused.linguistic_bridge_attentions,
            hidden_states=fused.hidden_states if output_hidden_states else None,
        )

    def bridge_contributions(
        self, output: MTMMOutput, acoustic_attention_mask: Tensor, linguistic_attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the states came from that the interaction read, by its attention weights.

        The mean over heads, bridge tokens and layers. In crossed wiring a weight on a key stands for
        values of the other modality, and is carried to them.

        Args:
            output: Of [`forward`] with `output_attentions=True`.
            acoustic_attention_mask: As [`encode_audio`] gave it: (batch, frames).
            linguistic_attention_mask: As [`encode_text`] gave it: (batch, tokens).

        Returns:
            Shares (batch, frames) and (batch, tokens); 0 at padding; the two rows of an utterance
            sum to 1 together.

        Raises:
            ValueError: The model has no bridge tokens.

        Source: ours; attention weights say what was read, not what decided (Jain & Wallace 2019).
        """
        if not self.config.use_bridge_tokens:
            raise ValueError(
                "Contributions are read from bridge tokens, which this model was built without "
                "(`use_bridge_tokens=False`)."
            )
        a_mask, l_mask = acoustic_attention_mask != 0, linguistic_attention_mask != 0
        a_read = _mean_attention(output.acoustic_bridge_attentions)
        l_read = _mean_attention(output.linguistic_bridge_attentions)
        acoustic, linguistic = a_read, l_read
        if self.config.bridge_wiring == "crossed":
            acoustic, linguistic = _carry_to_values(a_read, a_mask, l_read, l_mask)
        acoustic, linguistic = acoustic[:, : a_mask.shape[1]], linguistic[:, : l_mask.shape[1]]
        total = (acoustic.sum(-1) + linguistic.sum(-1))[:, None]
        return acoustic / total, linguistic / total

    def _states(
        self,
        modality: str,
        given: Tensor,
        inputs: Tensor | None,
        inputs_mask: Tensor | None,
        states: Tensor | None,
        states_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One modality's encoder states and mask, whichever way it was given; zeros if absent."""
        encode = self.encode_audio if modality == "audio" else self.encode_text
        encoder = self.audio_model if modality == "audio" else self.text_model
        dtype = self.fusion.output_norm.weight.dtype
        if states is not None:
            return states.to(dtype), _as_mask(states_mask, states, axes=(0, -2))
        if inputs is not None:
            states, mask = encode(inputs, inputs_mask)
            return states.to(dtype), mask
        batch = given.shape[0]
        if torch.is_grad_enabled() and _is_trainable(encoder):
            # Every trainable parameter must get a gradient, and under FSDP every process must enter
            # the encoder, so one empty utterance passes through it; its mask hides it.
            states = encode(self._empty_input(modality, given.device))[0].to(dtype)
            states = states.expand(batch, *states.shape[1:])
        else:
            layers = len(self.config.mixed_layers(modality))
            shape = (batch, *([layers] if layers else []), 1, encoder.config.hidden_size)
            states = torch.zeros(shape, dtype=dtype, device=given.device)
        return states, torch.zeros(batch, states.shape[-2], dtype=torch.bool, device=given.device)

    def _empty_input(self, modality: str, device: torch.device) -> Tensor:
        if modality == "text":
            return torch.full((1, 1), self.text_model.config.pad_token_id or 0, device=device)
        config = self.audio_model.config
        if self.audio_model.main_input_name == "input_features":
            window = 2 * config.max_source_positions
            return torch.zeros(1, config.num_mel_bins, window, device=device)
        return torch.zeros(1, receptive_field(config), device=device)

    def _record_trained_outputs(
        self, emotion_labels: Tensor | None, dimension_labels: Tensor | None
    ) -> None:
        """Note in the config which outputs have now seen labels; reads a value at most until then."""
        untrained = [
            name
            for name, weight in self.config.loss_weights.items()
            if weight > 0 and name not in self.config.trained_outputs
        ]
        for name in untrained:
            if name == "emotion":
                seen = emotion_labels is not None and bool((emotion_labels != ABSENT_EMOTION).any())
            else:
                column = self.config.dimension_names.index(name)
                seen = dimension_labels is not None and not bool(
                    dimension_labels[:, column].isnan().all()
                )
            if seen:
                self.config.trained_outputs = (*self.config.trained_outputs, name)


def _mean_attention(layers: tuple[Tensor, ...] | None) -> Tensor:
    """Over layers, heads and bridge tokens: (batch, keys), float32 at least."""
    assert layers is not None, "without `output_attentions`"
    return _at_least_float32(torch.stack(layers)).mean(dim=(0, 2, 3))


def _carry_to_values(
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
    acoustic = _zero_unless(a_there, l_set) + _zero_unless(~l_there, a_set)
    linguistic = _zero_unless(l_there, a_set) + _zero_unless(~a_there, l_set)
    return acoustic, linguistic


def _average_frames(states: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Means over `stride` consecutive real frames; the last one may be over fewer.

    `states` (batch[, layers], frames, width) and `mask` (batch, frames), of ⌈frames / stride⌉ after.
    """
    if stride == 1:
        return states, mask
    missing = -states.shape[-2] % stride
    states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    shares = mask.unflatten(-1, (-1, stride)).to(states.dtype)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1)
    if states.dim() == 4:
        shares = shares[:, None]
    averages = torch.einsum("...fsw,...fs->...fw", states.unflatten(-2, (-1, stride)), shares)
    return averages, mask[:, ::stride]


def _is_trainable(encoder: nn.Module) -> bool:
    """By its parameters, not by the config: LoRA trains an encoder that the config calls frozen."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def _as_mask(mask: Tensor | None, values: Tensor, axes: tuple[int, int]) -> Tensor:
    """`mask` as booleans, or all True over two axes of `values`."""
    if mask is None:
        return torch.ones(
            *(values.shape[axis] for axis in axes), dtype=torch.bool, device=values.device
        )
    return mask != 0


def _refuse_both(
    inputs_name: str, inputs: Tensor | None, states_name: str, states: Tensor | None
) -> None:
    if inputs is not None and states is not None:
        raise ValueError(
            f"MTMMModel got both `{inputs_name}` and `{states_name}`; give the input or its encoder states."
        )


def _refuse_gaps(**masks: Tensor | None) -> None:
    """(batch, time): padding before or between real positions would be heard as real ones."""
    gaps = {
        name: ((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any(-1)
        for name, mask in masks.items()
        if mask is not None
    }
    if not gaps or not bool(torch.stack([rows.any() for rows in gaps.values()]).any()):
        return
    name = next(name for name, rows in gaps.items() if bool(rows.any()))
    raise ValueError(
        f"`{name}` has zeros before ones in rows {gaps[name].nonzero().flatten().tolist()}; real "
        'positions must come first: pad on the right (padding_side="right").'
    )


def _refuse_other_labels(name: str, labels: Tensor | None, shape: torch.Size) -> None:
    if labels is not None and labels.shape != shape:
        raise ValueError(f"`{name}` are {tuple(labels.shape)}; they must be {tuple(shape)}.")


def _refuse_too_short(too_short: Tensor) -> None:
    """(batch,): has audio, but not enough of it for one frame."""
    if bool(too_short.any()):
        rows = too_short.nonzero().flatten().tolist()
        raise ValueError(
            f"The audio of utterances {rows} of this batch is shorter than one frame of the acoustic "
            "encoder; leave them out, or zero their mask rows to use their text alone."
        )


def _refuse_unknown_tokens(input_ids: Tensor, known: int) -> None:
    """On a GPU an id beyond the embeddings would end the process."""
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < known:
        raise ValueError(
            f"`input_ids` go from {int(input_ids.min())} to {int(input_ids.max())}, but the linguistic "
            f"encoder knows 0 to {known - 1}; use the processor that was saved with this model."
        )


def _refuse_absent(absent: Tensor) -> None:
    """(batch,): has neither modality."""
    if bool(absent.any()):
        rows = absent.nonzero().flatten().tolist()
        raise ValueError(
            f"Utterances {rows} of this batch have neither audio nor text; each needs at least one "
            "(a mask row that is all zero means absent)."
        )


def _refuse_damaged_files(folder: str) -> None:
    """Weights that are cut off, or no safetensors at all, or whose numbers are no floats."""
    again = "Copy or save them again."
    try:
        files = get_local_safetensors_metadata(folder).files_metadata
    except NotASafetensorsRepoError:
        return  # transformers says what it looked for
    except (SafetensorsParsingError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise OSError(
            f"The weights in {folder} are damaged: {str(error).rstrip('.')}. {again}"
        ) from error
    for file, content in files.items():
        path = f"{folder}/{file}"
        # The length of the header comes first, eight bytes; then the header, then the tensors.
        header = torch.from_file(path, size=8, dtype=torch.uint8).view(torch.int64).item()
        ends = [tensor.data_offsets[1] for tensor in content.tensors.values()]
        size, whole = os.path.getsize(path), 8 + header + max(ends, default=0)
        if size != whole:
            raise OSError(
                f"The weights in {path} are damaged: {size:,} bytes of {whole:,}. {again}"
            )
        kinds = {tensor.dtype for tensor in content.tensors.values()} - FLOATS
        if kinds:
            raise ValueError(
                f"The weights in {path} are of type {', '.join(sorted(kinds))}, which would be cast; "
                "save the model again as float32, float16 or bfloat16."
            )


def _refuse_other_weights(name: Any, found: dict[str, Any], told: bool) -> None:
    """`found` is what transformers tells of loading; `told`: the caller will read of it."""
    problems = []
    for words, keys in (
        ("missing", () if told else found["missing_keys"]),
        ("of another shape", {key for key, *_ in found["mismatched_keys"]}),
        ("left over", () if told else found["unexpected_keys"]),
    ):
        if keys:
            problems.append(f"{len(keys)} {words}, such as {min(keys)!r}")
    if problems:
        raise ValueError(
            f"{name} does not have the weights that its configuration describes: {'; '.join(problems)}. "
            "Give the folder as it was saved; to draw new weights in their place, and train them, give "
            "ignore_mismatched_sizes=True."
        )


def _refuse_infinite_weights(name: Any, model: nn.Module) -> None:
    for key, weights in model.named_parameters():
        # A training that diverged ruins these first. The encoders are nearly all of the file, which is
        # read when it is used: to look through them would double the time that loading takes.
        if key.startswith(("audio_model.", "text_model.")):
            continue
        if weights.is_meta or not weights.numel() or weights.element_size() < 2:
            continue  # kept on disk, or quantised
        if not bool(torch.stack(weights.detach().aminmax()).isfinite().all()):
            raise ValueError(
                f"The weights {key!r} of {name} are NaN or infinite: its training diverged, or the file "
                "is damaged. Give an earlier checkpoint, or train again with a lower learning rate."
            )


MTMMModel.register_for_auto_class("AutoModel")  # saving the model saves the four Hub files with it

__all__ = ["MTMMModel", "MTMMOutput", "MTMMPipeline", "MTMMProcessor"]
