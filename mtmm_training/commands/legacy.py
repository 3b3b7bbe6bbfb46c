"""Verbs whose modules are still to come: the `main(words)` of the modules that do their work."""

import importlib
import sys
from types import SimpleNamespace
from typing import Any

from mtmm_training.commands.flags import Verb

# Verb -> module with a `main(words)`, words before the user's, words after them, summary.
OLD: dict[str, tuple[str, list[str], list[str], str]] = {
    "encode": ("train_accelerate", [], ["--encode_only", "True"],
               "run the frozen encoders once over a corpus and keep their states"),
    "train": ("train_accelerate", [], [], "train on one fold, and test once"),
    "evaluate": ("mtmm_training.studies.protocol", [], [],
                 "run a whole protocol, put its folds into a table, compare experiments"),
    "baselines": ("mtmm_training.studies.baselines", [], [],
                  "linear models on pooled states, as a baseline of the same folds"),
    "ablation": ("mtmm_training.studies.ablation", [], [], "the paper's ablations"),
    "export": ("mtmm_training.publishing.export", [], [], "write a model as ONNX or for torch.export"),
    "publish": ("mtmm_training.publishing.publish", [], [],
                "write the model card and upload a model to the Hub"),
    "merge": ("mtmm_training.training.adapters", ["merge"], [], "merge LoRA's adapter into its model"),
    "inspect": ("mtmm_training.studies.inspect_corpus", [], [],
                "count what is in a corpus or a manifest"),
    "demo": ("mtmm_training.studies.demo", [], [], "write and train on the embedded corpus"),
}  # fmt: skip
STUDIES = {
    "hour": "mtmm_training.studies.hour",
    "transcript-errors": "mtmm_training.studies.transcript_errors",
    "explanation-check": "mtmm_training.studies.explain_check",
}


def module_of(name: str) -> Any:
    """What stands in for a verb's module."""
    if name == "study":
        return SimpleNamespace(
            SUMMARY="what a trained model does in other conditions",
            VERBS={n: Verb(n, lambda parser: None, lambda options: 0) for n in STUDIES},
            main=lambda words: _run(STUDIES[words[0].replace("_", "-")], "study", words[1:]),
        )
    path, before, after, summary = OLD[name]
    return SimpleNamespace(
        SUMMARY=summary, main=lambda words: _run(path, name, [*before, *words, *after])
    )


def _run(path: str, name: str, words: list[str]) -> int | None:
    module = importlib.import_module(path)
    sys.argv[0] = f"mtmm {name}"
    try:
        return module.main(words)
    except SystemExit as left:
        if str(left.code).startswith("SIGINT: "):
            raise KeyboardInterrupt(str(left.code)) from left
        raise
    except RuntimeError as error:
        raise RuntimeError(getattr(module, "explain", str)(error)) from error
