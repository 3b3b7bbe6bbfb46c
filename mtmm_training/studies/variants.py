"""The variants of the paper's ablations; light to import, so that commands know their names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REFERENCE = "full"


@dataclass(frozen=True)
class Variant:
    """What a variant changes of the reference.

    Args:
        label: its row in the table.
        flags: settings by name.
        model_config: fields of MTMMConfig; one number of `dimension_loss_weights` is every
            dimension's. An output whose loss has weight 0 is not trained, and has no scores.
    """

    label: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    REFERENCE: Variant("multi-task, audio and text, all parts"),
    "categories_only": Variant("categories only", model_config={"dimension_loss_weights": 0.0}),
    "dimensions_only": Variant("dimensions only", model_config={"emotion_loss_weight": 0.0}),
    "audio_only": Variant("audio only", flags={"modalities": ["audio"]}),
    "text_only": Variant("text only", flags={"modalities": ["text"]}),
    "no_refinement": Variant("without refinement", model_config={"use_refinement": False}),
    "no_bridge_tokens": Variant("without bridge tokens", model_config={"use_bridge_tokens": False}),
    "no_masking": Variant("without random modality masking", flags={"rmm_start": 0.0}),
    "crossed": Variant("crossed wiring", model_config={"bridge_wiring": "crossed"}),
    "direct": Variant("direct wiring", model_config={"bridge_wiring": "direct"}),
    "last_layer": Variant("encoders' last layer", model_config={"encoder_layers": "last"}),
    "weighted_layers": Variant(
        "encoders' layers, weighted", model_config={"encoder_layers": "weighted"}
    ),
} | {
    f"bridge_tokens_{n}": Variant(f"bridge tokens: {n}", model_config={"num_bridge_tokens": n})
    for n in (1, 8, 30, 60)
}
