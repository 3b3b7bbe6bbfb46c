"""Unweighted average recall as a metric of Hugging Face `evaluate`, offline.

    >>> evaluate.load("evaluate_metrics/uar").compute(predictions=[0, 1, 1], references=[0, 0, 1])
    {'uar': 0.75}

The mean over the emotions of the share of each one's utterances that are recognised, whatever its
number of utterances. Emotions without references are left out. The formula is
`mtmm_training.scoring.metrics.unweighted_average_recall`; mtmm must be installed.

Args:
    predictions (list of int): The emotion's number of every utterance, from 0.
    references (list of int): The labels; -100 = absent, left out.

Returns:
    uar (float): 0 to 1 over all utterances at once; NaN without labels.
"""

# One import a line: evaluate reads these lines, and takes the first word for what to install.
import datasets
import evaluate

from mtmm_training.scoring.metrics import unweighted_average_recall

CITATION = """\
Björn Schuller, Stefan Steidl, Anton Batliner. The INTERSPEECH 2009 Emotion Challenge.
Proceedings of Interspeech 2009, pp. 312-315.
"""


class UAR(evaluate.Metric):
    """UAR over the emotions that occur in the references."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        emotions = [str(i) for i in range(max([*predictions, *references], default=-1) + 1)]
        return {"uar": unweighted_average_recall(references, predictions, emotions)}
