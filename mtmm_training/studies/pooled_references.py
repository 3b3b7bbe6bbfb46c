"""References of pooled states: a baseline's features are standardised as MTMM standardises states.

The regressions of a baseline are fitted on states that the training data's statistics standardise,
which changes nothing for them. So training needs no references, and other recordings are moved to
where the regression expects them: what MTMM standardises by their reference is put back on the
training data's scale.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.batches.sampler import FRAMES_PER_SECOND
from mtmm_training.data.utterances import Utterance
from mtmm_training.training.references import References
from mtmm_training.training.regressions import Features
from reference_mtmm import Reference


class Statistics:
    """What references need of a model: its configuration, and the statistics of its training data."""

    standardisation: Any = MTMMModel.standardisation

    def __init__(self, config: MTMMConfig, shape: tuple[int, int]) -> None:
        answers = len(config.emotion_names) + len(config.dimension_names)
        self.config, self.device = config, "cpu"
        self.audio_model = nn.Module()  # all features are of one encoder
        self.fusion = SimpleNamespace(
            reference_mean=torch.zeros(shape),
            reference_deviation=torch.ones(shape),
            expected_states=torch.zeros(answers, *shape),
        )


@dataclass(frozen=True, kw_only=True)
class PooledReferences(References):
    """References of pooled states; see [`References`].

    Args:
        pooled: Mean and deviation of the acoustic states of all utterances, and how many these are.
        rows: Row of each utterance, by id.
    """

    pooled: Features
    rows: Mapping[str, int]

    @classmethod
    def of_features(
        cls,
        config: MTMMConfig,
        pooled: Features,
        rows: Mapping[str, int],
        home: Collection[str] = (),
    ) -> "PooledReferences":
        """Those of these features, for a baseline's configuration; `home` as of [`References`]."""
        _, layers, width = pooled.values.shape
        model: Any = Statistics(config, (layers, width // 2))
        states: Any = None
        return cls(model, states, home, pooled=pooled, rows=rows)

    def of(self, utterance: Utterance, answers: np.ndarray) -> Reference | None:
        """One utterance's; None without audio."""
        row = self.rows[utterance.utterance_id]
        assert self.pooled.frames is not None
        frames = int(self.pooled.frames[row])
        if not frames:
            return None
        mean, deviation = np.split(self.pooled.values[row].astype(np.float64), 2, axis=-1)
        config = self.model.config
        seconds = config.acoustic_stride / FRAMES_PER_SECOND * frames
        squares, encoder = frames * deviation**2, str(config.reference_encoder)
        return Reference(1, seconds, frames, mean, squares, answers, encoder)

    def standardised(self, given: Mapping[str, Mapping[str, torch.Tensor]]) -> Features:
        """The features with those of some utterances standardised by their references.

        Args:
            given: By utterance id, as of [`References.given`].
        """
        values, fusion = self.pooled.values.copy(), self.model.fusion
        for name, reference in given.items():
            row = self.rows[name]
            mean, deviation = reference["reference_mean"][0], reference["reference_deviation"][0]
            scale = (fusion.reference_deviation / deviation).numpy()
            means, deviations = np.split(values[row], 2, axis=-1)
            moved = fusion.reference_mean.numpy() + scale * (means - mean.numpy())
            values[row] = np.concatenate([moved, scale * deviations], axis=-1)
        return replace(self.pooled, values=values)
