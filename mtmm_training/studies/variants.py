"""The variants of the paper's ablations; light to import, so that commands know their names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtmm_training.data.files import facts_beside

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


VARIANTS = {name: Variant(**own) for name, own in facts_beside(__file__, "variants.toml").items()}
