"""Recipes: values of flags that belong together, for those that are not given."""

import json
from typing import Any

# Chosen on validation speakers of three of RAVDESS's grouped folds; docs/LOG.md has what else was tried.
SMALL = {"weight_decay": 1.0, "rmm_start": 0.5, "epochs": 30}
SMALL_SPEECH = {"augment": ["speed", "noise"], "augment_variants": 4, "epochs": 40}
SMALL_MODEL = {
    "encoder_layers": "weighted",
    "acoustic_stride": 25,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_bridge_tokens": 8,
    "hidden_dropout": 0.3,
    "attention_dropout": 0.3,
    "head_dropout": 0.3,
}
PRESETS = ("small", "paper")


def filled(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that are given, and those that --preset sets beside them.

    The fields of --model_config are filled one by one; a model that was trained before keeps its own.
    """
    if given.get("preset") != "small":  # the defaults are the paper's
        return given
    heard = "audio" in given.get("modalities", ["audio"])
    values = SMALL | (SMALL_SPEECH if heard else {}) | given
    if given.get("model") is None:
        own = given.get("model_config", "{}")
        try:
            values["model_config"] = json.dumps(SMALL_MODEL | json.loads(own))
        except (ValueError, TypeError):  # no JSON object, which is refused later
            values["model_config"] = own
    return values
