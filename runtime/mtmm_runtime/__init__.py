"""Emotion, valence and arousal by an exported MTMM model, without torch and transformers.

`predict = mtmm_runtime.load("exported")` reads what `mtmm export MODEL exported` wrote; it is called as
the pipeline of transformers is, and answers the same.
"""

from mtmm_runtime.predictor import Predictor, load

__all__ = ["Predictor", "load"]
