"""The model card, from results.json and the template in model_card/."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mtmm_training.data.files import facts_beside
from mtmm_training.publishing.stage import is_hub_id
from mtmm_training.training.run import Run

# At the root of a checkout; in a wheel beside this package's rooms.
PLACES = [folder / "model_card" / "template.md" for folder in Path(__file__).parents[2:0:-1]]
TEMPLATE = next((place for place in PLACES if place.is_file()), PLACES[0])
FACTS = facts_beside(__file__, "card.toml")  # how metrics and figures are called
# What folds of one protocol have in common.
SHARED_FLAGS = ("protocol", "k", "corpus", "modalities", "emotions", "dimensions")


@dataclass(frozen=True)
class Facts:
    """What the card says and no run can know.

    Args:
        licence: of the weights, as the Hub names it, such as cc-by-nc-4.0.
        language: ISO 639-1 codes of the speech.
        corpus_name: the training data's, as readers know it.
        corpus_licence: licence or terms of the training data.
        datasets: Hub ids of the training data, if it is on the Hub.
        base_model: Hub ids that the model derives from, if they are not the run's encoders; for an
            adapter: the MTMM model that it belongs to.
        folds: folders of the other folds' runs, for mean and spread.
        example: recording for the card's example; a tone if not given.
        example_text: its transcript.
        name_speakers: keep speakers' ids in results.json.
    """

    licence: str | None = None
    language: Sequence[str] = ("en",)
    corpus_name: str | None = None
    corpus_licence: str | None = None
    datasets: Sequence[str] = ()
    base_model: Sequence[str] = ()
    folds: Sequence[str | Path] = ()
    example: str | Path | None = None
    example_text: str | None = None
    name_speakers: bool = False


class Metric(NamedTuple):
    """One number of a split, and how the Hub and the card call it."""

    type: str
    title: str
    value: float
    args: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Subject:
    """What a card describes.

    Args:
        repo_id: the model's on the Hub.
        results: of the run, without private paths and with numbers of speakers.
        config: of the published model.
        facts: what the run does not know.
        folds: results of all folds, this run's first.
        adapter: whether a LoRA run's adapter is published alone.
    """

    repo_id: str
    results: Mapping[str, Any]
    config: Any
    facts: Facts
    folds: Sequence[Mapping[str, Any]]
    adapter: bool = False

    @property
    def trained(self) -> list[str]:
        """The outputs that training saw labels for."""
        return list(self.config.trained_outputs)

    @property
    def corpus(self) -> str:
        """What the card calls the training data."""
        known = self.facts.corpus_name or self.results["config"].get("corpus")
        return known or "a private manifest"

    @property
    def datasets(self) -> list[str]:
        """Hub ids of the training data: what is said of it, else what the run knows."""
        known = [one["id"] for one in self.results.get("datasets", ()) if is_hub_id(one["id"])]
        return list(self.facts.datasets) or known

    @property
    def base_models(self) -> list[str]:
        """Hub ids that the model derives from."""
        flags = self.results["config"]
        said = ("model",) if flags.get("model") else ("audio_encoder", "text_encoder")
        sources = (flags[name] for name in said)
        return list(self.facts.base_model) or [name for name in sources if is_hub_id(name)]

    @cached_property
    def spreads(self) -> dict[str, tuple[float, float]]:
        """Mean and sample sd of each test metric that all folds have; {} of one fold."""
        if len(self.folds) < 2:
            return {}
        values = [metric_values(results["test"], self.trained) for results in self.folds]
        shared = [key for key in values[0] if all(key in fold for fold in values)]
        columns = {key: [fold[key].value for fold in values] for key in shared}
        return {k: (statistics.mean(c), statistics.stdev(c)) for k, c in columns.items()}


def metric_values(metrics: Mapping[str, Any], trained: Sequence[str]) -> dict[str, Metric]:
    """Every metric of a split that has a number, of trained outputs only, by its key.

    Args:
        metrics: "validation" or "test" of results.json.
        trained: `trained_outputs` of the configuration.
    """
    found: dict[str, Metric] = {}
    if "emotion" in trained:
        for key, about in FACTS["emotion"].items():
            found[key] = Metric(**about, value=metrics.get(key, math.nan))
        for emotion, value in (metrics.get("recall") or {}).items():
            title = f"recall of {emotion}"
            found[title] = Metric("recall", title, value, {"label": emotion})
    for key, about in FACTS["dimension"].items():
        for name, value in metrics.get(key, {}).items():
            if name in trained:
                title = f"{about['title']} of {name}"
                found[f"{key}_{name}"] = Metric(about["type"], title, value, {"output": name})
    return {k: m for k, m in found.items() if m.value is not None and math.isfinite(m.value)}


def read_folds(run: Run, others: Sequence[str | Path]) -> list[dict[str, Any]]:
    """results.json of all folds, the published run's first.

    Raises:
        ValueError: The runs differ in more than their fold, or one comes twice.
    """
    folds = [run.results, *(Run.open(other).results for other in others)]
    names = [results["fold"] for results in folds]
    shared = [{name: results["config"].get(name) for name in SHARED_FLAGS} for results in folds]
    if len(set(names)) < len(names) or any(flags != shared[0] for flags in shared):
        raise ValueError(
            f"`folds` needs runs that differ in their fold and have the same {', '.join(SHARED_FLAGS)}; "
            f"given are the folds {', '.join(map(str, names))}, of {shared}."
        )
    return folds


def card_data(subject: Subject) -> ModelCardData:
    """The card's metadata, as the Hub documents it."""
    facts, flags, bases = subject.facts, subject.results["config"], subject.base_models
    slug = re.sub(r"\W+", "-", subject.corpus.lower())
    shown = ("protocol", "k", "fold", "modalities")
    protocol = {name: flags[name] for name in shown if flags.get(name) is not None}
    evaluations = []
    for split in ("validation", "test"):
        for key, metric in metric_values(subject.results[split], subject.trained).items():
            args = dict(metric.args)
            if split == "test" and key in subject.spreads:
                mean, deviation = subject.spreads[key]
                args |= {"folds": len(subject.folds), "mean": mean, "standard_deviation": deviation}
            evaluations.append(
                EvalResult(
                    task_type="audio-classification", task_name="Speech emotion recognition",
                    dataset_type=(subject.datasets or [slug])[0], dataset_name=subject.corpus,
                    dataset_split=split, dataset_args=protocol, metric_type=metric.type,
                    metric_name=metric.title, metric_value=round(metric.value, 6),
                    metric_args=args or None,
                )
            )  # fmt: skip
    return ModelCardData(
        language=list(facts.language),
        license=facts.licence,
        library_name="peft" if subject.adapter else "transformers",
        pipeline_tag="audio-classification",
        base_model=bases or None,
        # Of several bases the Hub would otherwise conclude that they were merged.
        base_model_relation=("adapter" if subject.adapter else "finetune") if bases else None,
        datasets=subject.datasets or None,
        metrics=sorted({result.metric_type for result in evaluations}) or None,
        tags=["speech-emotion-recognition", "mtmm", "multimodal", "custom_code", *subject.trained],
        model_name=subject.repo_id.split("/")[1],
        eval_results=evaluations or None,
    )


def make_card(subject: Subject, figures: Sequence[str], code: str, printed: str) -> ModelCard:
    """The card, from the template.

    Args:
        subject: what it describes.
        figures: file names in figures/.
        code: the example.
        printed: what it printed.
    """
    return ModelCard.from_template(
        card_data(subject),
        template_path=str(TEMPLATE),
        subject=subject,
        code=code,
        printed=printed,
        metrics_of=partial(metric_values, trained=subject.trained),
        figures=[
            (name, FACTS["figures"].get(Path(name).stem, Path(name).stem)) for name in figures
        ],
        seconds=[fold["wall_time_s"] * fold.get("processes", 1) for fold in subject.folds],
    )
