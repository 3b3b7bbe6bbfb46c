"""Mean and deviation by which the graph standardises acoustic states, from saved references."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from mtmm_runtime.arrays import read_arrays

LEAST_DEVIATION = 1e-4
Place = str | PathLike[str]


class References:
    """References that `mtmm reference` saved, of a domain, of a speaker, or of both.

    Args:
        places: Files of references.
        config: The export's configuration.
        arrays: The export's: "reference_mean", "reference_deviation" (layers, width) and
            "expected_states" (answers, layers, width).

    Raises:
        ValueError: A file is no reference, or of another encoder; or the model takes none.
    """

    def __init__(
        self, places: Place | Sequence[Place], config: Any, arrays: Mapping[str, np.ndarray]
    ) -> None:
        if "reference_mean" not in arrays:
            raise ValueError("This model was trained without references, so it takes none.")
        self.arrays, self.strengths = arrays, config.reference_strengths
        self.told: dict[str, dict[str, float]] = {}
        kinds: dict[str, Any] = {}
        for place in [places] if isinstance(places, (str, PathLike)) else places:
            found, metadata = read_arrays(place)
            try:
                one = json.loads(metadata["mtmm_reference"]) | found
                kind = one["kind"]
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"{place} is no reference; make it by `mtmm reference`."
                ) from error
            if one["encoder"] != config.reference_encoder or kind in kinds:
                raise ValueError(f"{place} is of another encoder, or one more of a {kind}.")
            kinds[kind] = one
            seconds = round(one["seconds"], 2)
            self.told[kind] = {"recordings": one["recordings"], "seconds": seconds}
        self.inputs = self._standardisation(kinds.get("domain"), kinds.get("speaker"))

    def _standardisation(self, domain: Any, speaker: Any) -> dict[str, np.ndarray]:
        """Inputs of the graph, (1, layers, width) each; as `reference_mtmm.standardisation`."""
        mean = self.arrays["reference_mean"].astype(np.float64)
        deviation = self.arrays["reference_deviation"].astype(np.float64)
        if domain is not None:
            share = domain["frames"] / (domain["frames"] + self.strengths[1])
            apart = domain["mean"] - mean
            variance = share * domain["squares"] / domain["frames"] + (1 - share) * deviation**2
            mean = mean + share * apart
            deviation = np.sqrt(variance + share * (1 - share) * apart**2)
        deviation = np.maximum(deviation, LEAST_DEVIATION)
        if speaker is not None:
            expected = self.arrays["expected_states"].astype(np.float64)
            explained = np.einsum("a,alw->lw", speaker["answers"], expected)
            share = speaker["frames"] / (speaker["frames"] + self.strengths[0])
            mean = mean + share * (speaker["mean"] - mean - deviation * explained)
        pairs = {"reference_mean": mean, "reference_deviation": deviation}
        return {name: values.astype(np.float32)[None] for name, values in pairs.items()}
