"""Faster ways through encoders of transformers, with the same weights and numbers.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
)

# ---- DeBERTa's attention -------------------------------------------------------------------------


class Distances(NamedTuple):
    """Distances between tokens, found once for all layers.

    Args:
        buckets: (1, tokens, tokens), what transformers' own attention takes.
        rows: (2 · tokens − 1,), the rows of the table of relative embeddings, farthest left first.
        of_queries: (batch · tokens, tokens), for each query the places in `rows` of the distances to
            all keys.
        of_keys: The same shape, for each key those of the distances from all queries.
    """

    buckets: Tensor
    rows: Tensor
    of_queries: Tensor
    of_keys: Tensor


class FastDebertaEncoder(DebertaV2Encoder):
    """DebertaV2Encoder that finds the distances in the form that [`FastDebertaAttention`] takes."""

    def get_rel_pos(
        self, hidden_states: Any, query_states: Any = None, relative_pos: Any = None
    ) -> Any:
        """Distances between the tokens of states (batch, tokens, hidden), as [`Distances`]."""
        buckets = super().get_rel_pos(hidden_states, query_states, relative_pos)
        batch, tokens = hidden_states.shape[:2]
        span = self.rel_embeddings.num_embeddings // 2
        distances = torch.cat([buckets[0, 0, 1:].flip(0), buckets[0, :, 0]])
        place = torch.arange(tokens, device=buckets.device)
        places = place[:, None] - place + tokens - 1
        both = torch.stack([places, places.T])[:, None].expand(-1, batch, -1, -1).flatten(1, 2)
        return Distances(buckets, (distances + span).clamp(0, 2 * span - 1), both[0], both[1])


class FastDebertaAttention(DisentangledSelfAttention):
    """DisentangledSelfAttention by the fused kernel, its position terms as an additive mask.

    Only the relative embeddings of distances that occur are projected, 2 · tokens − 1 in the place of
    512 rows, together with the states. Equal to transformers' own within rounding.
    """

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any,
        output_attentions: bool = False,
        query_states: Any = None,
        relative_pos: Any = None,
        rel_embeddings: Any = None,
    ) -> Any:
        if output_attentions or query_states is not None:
            buckets = relative_pos.buckets
            return super().forward(
                hidden_states,
                attention_mask,
                output_attentions,
                query_states,
                buckets,
                rel_embeddings,
            )
        batch, tokens, _ = hidden_states.shape
        heads = self.num_attention_heads
        flat = hidden_states.flatten(0, 1)
        embeddings = self.pos_dropout(rel_embeddings[relative_pos.rows])
        sizes = [batch * tokens, 2 * tokens - 1]
        rows = torch.cat([flat, embeddings])
        # Scaled here, content and position alike: three terms are added to one score.
        scale = 1 / math.sqrt(3 * self.attention_head_size)
        query, position_query = (self.query_proj(rows) * scale).split(sizes)
        key, position_key = self.key_proj(rows).split(sizes)
        # What a query says of the distance to a key, and a key of the distance to a query.
        told = (
            (query, position_key, relative_pos.of_queries),
            (key, position_query, relative_pos.of_keys),
        )
        of_query, of_key = (
            torch.bmm(_by_head(content, heads), _by_head(position, heads).transpose(1, 2))
            .gather(-1, places.expand(heads, -1, -1))
            .view(heads, batch, tokens, tokens)
            for content, position, places in told
        )
        # Half of the least number: the sum with a score must not become infinite in 16 bits.
        least = torch.finfo(query.dtype).min / 2
        bias = (of_query + of_key.transpose(2, 3)).transpose(0, 1)
        query, key, value = (
            states.view(batch, tokens, heads, -1).transpose(1, 2)
            for states in (query, key, self.value_proj(flat))
        )
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.masked_fill(~attention_mask.bool(), least),
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=1.0,
        )
        return context.transpose(1, 2).reshape(batch, tokens, -1), None


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(rows, hidden) -> (heads, rows, head width)."""
    # Not len(): torch.export would take the number of rows for a constant.
    return rows.view(rows.shape[0], heads, -1).transpose(0, 1)


def use_fast_attention(encoder: PreTrainedModel) -> None:
    """Give DeBERTa-v2 and v3 the faster attention, with the same weights; others have it already."""
    for module in encoder.modules():
        if type(module) is not DebertaV2Encoder:
            continue
        layers: Any = module.layer
        attentions = [layer.attention.self for layer in layers]
        if all(a.relative_attention and a.share_att_key for a in attentions) and all(
            sorted(a.pos_att_type) == ["c2p", "p2c"] for a in attentions
        ):
            module.__class__ = FastDebertaEncoder
            for attention in attentions:
                attention.__class__ = FastDebertaAttention
