"""Faster ways through encoders of transformers, with the same weights and numbers; CUDA graphs.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

import math
from collections.abc import Callable
from types import MethodType
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
        rows: (2 · tokens − 1,), the rows of the table of relative embeddings, farthest left first.
        of_queries: (batch · tokens, tokens), for each query the places in `rows` of the distances to
            all keys.
        of_keys: The same shape, for each key those of the distances from all queries.
    """

    rows: Tensor
    of_queries: Tensor
    of_keys: Tensor


class FastDebertaEncoder(DebertaV2Encoder):
    """DebertaV2Encoder that finds the distances in the form that [`FastDebertaAttention`] takes."""

    def get_rel_pos(
        self, hidden_states: Any, query_states: Any = None, relative_pos: Any = None
    ) -> Any:
        """Distances between the tokens of states (batch, tokens, hidden), as [`Distances`]."""
        batch, tokens = hidden_states.shape[:2]
        span = self.rel_embeddings.num_embeddings // 2
        distances = torch.arange(1 - tokens, tokens, device=hidden_states.device)
        if self.position_buckets > 0:
            distances = in_buckets(distances, self.position_buckets, self.max_relative_positions)
        place = torch.arange(tokens, device=distances.device)
        places = place[:, None] - place + tokens - 1
        both = torch.stack([places, places.T])[:, None].expand(-1, batch, -1, -1).flatten(1, 2)
        return Distances((distances + span).clamp(0, 2 * span - 1), both[0], both[1])


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
            return super().forward(  # which finds the distances itself
                hidden_states, attention_mask, output_attentions, query_states, None, rel_embeddings
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


def in_buckets(distances: Tensor, buckets: int, farthest: int) -> Tensor:
    """Near distances as they are, far ones in logarithmic buckets, as transformers' function does it.

    That one copies a number from the host, which no CUDA graph can record.
    """
    middle = buckets // 2
    far = distances.abs().clamp(min=middle - 1)
    whole = torch.log(torch.tensor((farthest - 1) / middle))
    logarithmic = torch.ceil(torch.log(far / middle) / whole * (middle - 1)) + middle
    return torch.where(far <= middle, distances, logarithmic * distances.sign()).long()


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(rows, hidden) -> (heads, rows, head width)."""
    # Not len(): torch.export would take the number of rows for a constant.
    return rows.view(rows.shape[0], heads, -1).transpose(0, 1)


def use_fast_ways(encoder: PreTrainedModel) -> None:
    """Give an encoder what is faster here; of other families nothing changes.

    DeBERTa-v2 and v3 get the faster attention; HuBERT's kind, wav2vec 2.0 and WavLM among them, a mask
    that CUDA graphs can record.
    """
    modules: Any = encoder.modules()
    for module in modules:
        if hasattr(module, "_get_feature_vector_attention_mask"):
            module._get_feature_vector_attention_mask = MethodType(_frames_mask, module)
        elif type(module) is DebertaV2Encoder:
            _use_fast_attention(module)


def _use_fast_attention(module: Any) -> None:
    attentions = [layer.attention.self for layer in module.layer]
    if all(a.relative_attention and a.share_att_key for a in attentions) and all(
        sorted(a.pos_att_type) == ["c2p", "p2c"] for a in attentions
    ):
        module.__class__ = FastDebertaEncoder
        for attention in attentions:
            attention.__class__ = FastDebertaAttention


# ---- HuBERT's mask ------------------------------------------------------------------------------


def _frames_mask(encoder: Any, frames: int, mask: Tensor, **adapter: Any) -> Tensor:
    """(batch, frames) of booleans from one over samples; transformers' own copies from the host."""
    counts = encoder._get_feat_extract_output_lengths(mask.sum(-1), **adapter)
    counts = torch.where(counts < 1, frames, counts)  # as there: no row is masked whole
    return torch.arange(frames, device=mask.device) < counts[:, None]


# ---- CUDA graphs ---------------------------------------------------------------------------------


class Graphs:
    """What a GPU does for inputs of one size, launched at once: recorded when a size comes again.

    A host needs longer to launch the operations of a small batch one by one than a GPU to do them.

    Args:
        work: Takes tensors of one GPU by name, gives others by name, and reads no value on the host.
        around: Runs the recording, which calls `work` three times, and leaves no trace of that.
    """

    def __init__(
        self,
        work: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        around: Callable[[Callable[[], None]], None] = lambda record: record(),
    ) -> None:
        self.work, self.around = work, around
        self.made: dict[Any, Any] = {}

    def __call__(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `work` gives; of the memory that is returned nothing is used again."""
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in given.items())
        if key not in self.made:
            self.made[key] = None
            return self.work(given)
        if self.made[key] is None:
            self.around(lambda: self._record(key, given))
        graph, inputs, outputs = self.made[key]
        for name, tensor in given.items():
            inputs[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return {name: tensor.clone() for name, tensor in outputs.items()}

    def _record(self, key: Any, given: dict[str, Tensor]) -> None:
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        for name, tensor in inputs.items():
            # transformers leaves out a mask without padding, but not where a graph is recorded: what
            # is compiled must have met one before.
            if name.endswith("attention_mask"):
                tensor[:, (tensor.shape[1] + 1) // 2 :] = 0
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # what libraries make at first use must not be recorded
            for _ in range(2):
                self.work(inputs)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = next((made[0].pool() for made in self.made.values() if made), None)
        # Other threads, such as a loader's that pins memory, may go on while this one records.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = self.work(inputs)
        self.made[key] = graph, inputs, outputs
