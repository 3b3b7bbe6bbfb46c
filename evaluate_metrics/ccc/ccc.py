"""Lin's concordance correlation coefficient as a metric of Hugging Face `evaluate`, offline.

    >>> evaluate.load("evaluate_metrics/ccc").compute(predictions=[1, 2, 3], references=[2, 3, 4])
    {'ccc': 0.5714285714285714}

How closely predictions follow the references on the references' own scale: 2 cov(x, y) / (var x +
var y + (mean x - mean y)^2) with population moments. Unlike Pearson's correlation it punishes a wrong
mean or spread. The formula is `mtmm_training.scoring.metrics.concordance_correlation`; mtmm must be
installed.

Args:
    predictions (list of float): One dimension (valence, arousal or dominance) of every utterance,
        on the scale of the references.
    references (list of float): The labels of the same dimension; NaN = absent, left out.

Returns:
    ccc (float): -1 to 1 over all utterances at once; NaN with fewer than two labels, or where all
        labels and predictions are one same number.
"""

# One import a line: evaluate reads these lines, and takes the first word for what to install.
import datasets
import evaluate

from mtmm_training.scoring.metrics import concordance_correlation

CITATION = """\
Lawrence I-Kuei Lin. A Concordance Correlation Coefficient to Evaluate Reproducibility.
Biometrics 45(1), 1989, pp. 255-268.
"""


class CCC(evaluate.Metric):
    """CCC of one dimension; for several, one call each."""

    def _info(self) -> evaluate.MetricInfo:
        # float64: evaluate casts what it is given, and float32 would change the score.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"ccc": concordance_correlation(predictions, references)}
