"""What a trained fusion gets beside it, and its answers for validation and test.

The linear path and the references of --linear_path and --reference, without which the answers are
those of the best epoch, and the statistics by which it knows unfamiliar inputs.
"""

from dataclasses import dataclass
from typing import Any

import torch

from modeling_mtmm import MTMMModel
from mtmm_training.scoring.predictions import Predictions, calibrate, predict
from mtmm_training.training.familiarity import (
    learn_familiarity,
    pooled_inputs,
    unfamiliar_shares,
)
from mtmm_training.training.job import Job
from mtmm_training.training.linear import add_linear_path


@dataclass(frozen=True)
class Answers:
    """Answers of a finished model.

    Args:
        validation, test: Its predictions.
        without_reference: Those of the test split without references; None where none are used.
        told: What was fitted, for results.json.
    """

    validation: Predictions
    test: Predictions
    without_reference: Predictions | None
    told: dict[str, Any]


@torch.no_grad()
def complete(job: Job, model: MTMMModel) -> Answers:
    """Fit what the flags ask for beside the trained fusion, and predict both splits.

    Args:
        job: What was trained.
        model: The best epoch; gets the linear path and the statistics for references.
    """
    config, data = job.config, job.data
    references = None if job.references is None else job.references.give_to(model)

    def answer(split: str, given: Any = None) -> Predictions:
        ids = data.ids(split)
        found = predict(model, job.loaders[split], ids, job.accelerator, given=given)
        return found.with_votes(data.splits[split], model.config.emotion_names)

    validation = answer("validation")
    told: dict[str, Any] = {}
    if references is not None:
        utterances = data.splits["validation"]
        told["reference"] = references.fit_strengths(
            utterances, validation, lambda given: answer("validation", given)
        )
    if config.linear_path:
        states: Any = job.loaders["validation"].collate_fn
        validation, told["linear_path"] = add_linear_path(
            config, model, data.splits, states, validation
        )
        model.to(job.accelerator.device)
    told["unfamiliar"] = learn_familiarity(job, model)
    with pooled_inputs(job, model) as rows:
        test = answer("test")
    told["unfamiliar"]["test"] = unfamiliar_shares(model, rows)
    if references is None:
        return Answers(validation, test, None, told)
    calibrate(model.config, validation)
    given = references.given(data.splits["test"], test, config.reference)
    told["reference"] |= references.describe(data.splits["test"])
    return Answers(validation, answer("test", given), test, told)
