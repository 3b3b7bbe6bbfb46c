"""Recipes: values of flags that belong together, for those that are not given."""

import json
from typing import Any

from mtmm_training.data.files import facts_beside

RECIPES = facts_beside(__file__, "presets.toml")
PRESETS = ("small", "paper")


def filled(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that are given, and those that --preset sets beside them.

    The fields of --model_config are filled one by one; a model that was trained before keeps its own.
    """
    if given.get("preset") != "small":  # the defaults are the paper's
        return given
    heard = "audio" in given.get("modalities", ["audio"])
    values = RECIPES["small"] | (RECIPES["small_speech"] if heard else {}) | given
    if given.get("model") is None:
        own = given.get("model_config", "{}")
        try:
            values["model_config"] = json.dumps(RECIPES["small_model"] | json.loads(own))
        except (ValueError, TypeError):  # no JSON object, which is refused later
            values["model_config"] = own
    return values
