"""What the model returns, by name.

A leaf file: it is uploaded to the Hub with the others and imports none of them.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput


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
        dimension_deviations (`Tensor`, (batch, dimensions)): Standard deviation of what raters say, on
            the labels' scale; None where `config.rated_dimensions` names no dimension, and untrained
            for those that it does not name.
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
        unfamiliarity (`Tensor`, (batch, 2)): Distance of audio and text from the training data; above
            1 is unfamiliar, NaN absent. None in training, and of models without such statistics.
        logits (`Tensor`, (batch, emotions)): `emotion_logits / config.temperature`, by the name that
            tools for audio classification know.
    """

    loss: Tensor | None = None
    emotion_loss: Tensor | None = None
    dimension_loss: Tensor | None = None
    emotion_logits: Tensor | None = None
    dimensions: Tensor | None = None
    dimension_deviations: Tensor | None = None
    fused_state: Tensor | None = None
    bridge_states: Tensor | None = None
    acoustic_bridge_attentions: tuple[Tensor, ...] | None = None
    linguistic_bridge_attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    unfamiliarity: Tensor | None = None
    logits: Tensor | None = None
