"""The model card, from results.json and the template in model_card/."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from mtmm_training.publishing.publication import TEMPLATE, Publication, read_results
from mtmm_training.publishing.stage import PATH

# Metric of results.json -> its id on the Hub, arguments, and the name that the card prints.
EMOTION_METRICS = {
    "UAR": ("recall", {"average": "macro"}, "UAR (unweighted average recall)"),
    "WAR": ("accuracy", None, "WAR (accuracy)"),
    "macro_F1": ("f1", {"average": "macro"}, "macro F1"),
    "ECE": ("expected_calibration_error", None, "ECE (calibration error, lower is better)"),
}
DIMENSION_METRICS = {
    "CCC": ("concordance_correlation_coefficient", "CCC"),
    "MAE": ("mae", "mean absolute error"),
    "RMSE": ("rmse", "root mean squared error"),
}


def stage_papers(
    options: Publication,
    results: dict[str, Any],
    config: Any,
    code: str,
    printed: str,
    folder: Path,
) -> None:
    """Card, results, figures, and evaluation results for a benchmark."""
    cleaned = clean_results(results, options.name_speakers)
    text = json.dumps(cleaned, indent=2, allow_nan=False)
    (folder / "results.json").write_text(text, encoding="utf-8")
    pictures = sorted((Path(options.run) / "figures").glob("*.png"))
    if pictures:
        (folder / "figures").mkdir()
    for picture in pictures:
        shutil.copy(picture, folder / "figures")
    card = make_card(options, cleaned, config, [p.name for p in pictures], code, printed)
    card.save(folder / "README.md")
    if options.benchmark:
        dataset, task, metric = options.benchmark
        values = metric_values(results["test"], list(results["model_config"]["trained_outputs"]))
        if metric not in values:
            raise ValueError(f"`--benchmark` metric {metric!r} is none of {', '.join(values)}.")
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=values[metric].value,
            source_url=f"https://huggingface.co/{options.repo_id}",
            source_name="results.json",
            notes=f"{metric}, {protocol_name(cleaned)}",
        )
        (folder / ".eval_results").mkdir()
        listing = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        (folder / ".eval_results" / "mtmm.yaml").write_text(listing, encoding="utf-8")


PATH_FIELDS = ("out", "manifest", "audio_dir", "corpus_dir", "cache_dir", "folds_file")
SOURCE_FIELDS = ("audio_encoder", "text_encoder", "model")


def clean_results(results: Mapping[str, Any], name_speakers: bool = False) -> dict[str, Any]:
    """results.json without private paths, and with numbers of speakers instead of their ids."""
    cleaned = _without_paths(dict(results))
    config = cleaned["config"]
    for name in PATH_FIELDS:
        if isinstance(config.get(name), list):
            config[name] = [_last_part(path) for path in config[name]]
        elif config.get(name):
            config[name] = _last_part(config[name])
    for name in SOURCE_FIELDS:
        if config.get(name) and not _is_hub_id(results["config"][name]):
            config[name] = _last_part(config[name])
    if name_speakers:
        return cleaned
    for split in cleaned["splits"].values():
        split["speakers"] = len(split["speakers"])
    for name in ("validation_speakers", "test_speakers"):
        if config.get(name):
            config[name] = len(config[name])
    cleaned["fold"] = f"{config.get('protocol')} {config.get('fold')}"
    return cleaned


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    if isinstance(value, str):
        return PATH.sub(lambda match: _last_part(match[0]), value)
    return value


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _is_hub_id(name: str) -> bool:
    """`owner/name`, and no folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


@dataclass(frozen=True)
class Metric:
    """One number of a split, and how the Hub and the card call it."""

    type: str
    args: dict[str, Any] | None
    title: str
    value: float


def metric_values(metrics: Mapping[str, Any], trained: Sequence[str]) -> dict[str, Metric]:
    """Every metric of a split that has a number, of trained outputs only, by its key.

    Args:
        metrics: "validation" or "test" of results.json.
        trained: `trained_outputs` of the configuration.
    """
    found: dict[str, Metric] = {}
    if "emotion" in trained:
        for key, (kind, args, title) in EMOTION_METRICS.items():
            found[key] = Metric(kind, args, title, metrics.get(key, math.nan))
        for emotion, value in (metrics.get("recall") or {}).items():
            title = f"recall of {emotion}"
            found[title] = Metric("recall", {"label": emotion}, title, value)
    for key, (kind, title) in DIMENSION_METRICS.items():
        for name, value in metrics.get(key, {}).items():
            if name in trained:
                found[f"{key}_{name}"] = Metric(kind, {"output": name}, f"{title} of {name}", value)
    return {
        key: metric
        for key, metric in found.items()
        if metric.value is not None and math.isfinite(metric.value)
    }


def read_folds(options: Publication) -> list[dict[str, Any]]:
    """results.json of all folds, the published run's first.

    Raises:
        ValueError: The runs are no folds of one protocol with the same outputs, or one comes twice.
    """
    runs = {run: read_results(run) for run in (options.run, *options.folds)}
    published = runs[options.run]["config"]
    for run, results in runs.items():
        for name in ("protocol", "k", "corpus", "modalities", "emotions", "dimensions"):
            if results["config"].get(name) != published.get(name):
                raise ValueError(
                    f"{run} has another {name} than {options.run}; `--folds` takes runs that "
                    "differ in their fold only."
                )
    names = [results["fold"] for results in runs.values()]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"Fold {', '.join(sorted(doubled))} comes twice in `--folds`.")
    return list(runs.values())


def spread_over_folds(
    runs: Sequence[Mapping[str, Any]], trained: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each test metric that all folds have; {} of one fold."""
    if len(runs) < 2:
        return {}
    folds = [metric_values(run["test"], trained) for run in runs]
    return {
        key: (
            statistics.mean(fold[key].value for fold in folds),
            statistics.stdev(fold[key].value for fold in folds),
        )
        for key in folds[0]
        if all(key in fold for fold in folds)
    }


def protocol_name(results: Mapping[str, Any]) -> str:
    """The kind of folds, in words."""
    config = results["config"]
    if config.get("test_speakers"):
        return "one fold with chosen test speakers"
    if config.get("folds_file"):
        return f"fold {config['fold']} of {Path(config['folds_file']).name}"
    folds = f" of {config['k']} folds" if config.get("k") else ""
    special = ", scripts apart too" if config.get("script_disjoint") else ""
    special += ", of improvised utterances alone" if config.get("improvised_only") else ""
    return (
        f"fold {config['fold']} (counted from 0){folds}, protocol {config['protocol']!r}{special}"
    )


def corpus_name(options: Publication, results: Mapping[str, Any]) -> str:
    """What the card calls the training data."""
    config = results["config"]
    if options.corpus_name or config.get("corpus"):
        return options.corpus_name or config["corpus"]
    return "a private manifest"


def base_models(options: Publication, results: Mapping[str, Any]) -> list[str]:
    """Hub ids that the model derives from."""
    config = results["config"]
    if options.base_model:
        return list(options.base_model)
    sources = (
        [config["model"]]
        if config.get("model")
        else [config["audio_encoder"], config["text_encoder"]]
    )
    return [source for source in sources if _is_hub_id(source)]


def card_data(options: Publication, results: Mapping[str, Any], config: Any) -> ModelCardData:
    """The card's metadata, as the Hub documents it."""
    trained = list(config.trained_outputs)
    corpus = corpus_name(options, results)
    dataset = options.datasets[0] if options.datasets else re.sub(r"\W+", "-", corpus.lower())
    folds = read_folds(options)
    spreads = spread_over_folds(folds, trained)
    protocol = {
        name: results["config"].get(name)
        for name in ("protocol", "k", "fold", "modalities")
        if results["config"].get(name) is not None
    }
    evaluations = []
    for split in ("validation", "test"):
        for key, metric in metric_values(results.get(split, {}), trained).items():
            args = dict(metric.args or {})
            if split == "test" and key in spreads:
                mean, deviation = spreads[key]
                args |= {"folds": len(folds), "mean": mean, "standard_deviation": deviation}
            evaluations.append(
                EvalResult(
                    task_type="audio-classification",
                    task_name="Speech emotion recognition",
                    dataset_type=dataset,
                    dataset_name=corpus,
                    dataset_split=split,
                    dataset_args=protocol,
                    metric_type=metric.type,
                    metric_name=metric.title,
                    metric_value=round(metric.value, 6),
                    metric_args=args or None,
                )
            )
    bases = base_models(options, results)
    return ModelCardData(
        language=options.language or ["en"],
        license=options.licence,
        library_name="peft" if options.adapter else "transformers",
        pipeline_tag="audio-classification",
        base_model=bases or None,
        # Of several bases the Hub would otherwise conclude that they were merged.
        base_model_relation=("adapter" if options.adapter else "finetune") if bases else None,
        datasets=options.datasets or None,
        metrics=sorted({result.metric_type for result in evaluations}) or None,
        tags=["speech-emotion-recognition", "mtmm", "multimodal", "custom_code", *trained],
        model_name=options.repo_id.split("/")[1],
        eval_results=evaluations or None,
    )


def make_card(
    options: Publication,
    results: Mapping[str, Any],
    config: Any,
    figures: Sequence[str],
    code: str,
    printed: str,
) -> ModelCard:
    """The card, from the template.

    Args:
        options: Name, licence and folds.
        results: Cleaned.
        config: The published model's.
        figures: File names in figures/.
        code: The example.
        printed: What it printed.
    """
    if not TEMPLATE.is_file():
        raise FileNotFoundError(
            f"The card's template is not at {TEMPLATE}; publish from a checkout of the repository."
        )
    data = card_data(options, results, config)
    trained = list(config.trained_outputs)
    folds = read_folds(options)
    spreads = spread_over_folds(folds, trained)
    validation, test = (metric_values(results.get(s, {}), trained) for s in ("validation", "test"))
    rows = [
        {
            "title": metric.title,
            "validation": _number(validation[key].value) if key in validation else "-",
            "test": _number(metric.value),
            "spread": "{} ± {}".format(*map(_number, spreads[key])) if key in spreads else "-",
        }
        for key, metric in test.items()
    ]
    seconds = [run["wall_time_s"] * run.get("processes", 1) for run in folds]
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=options.repo_id.split("/")[1],
        repo_id=options.repo_id,
        adapter=options.adapter,
        merged=bool(results["config"].get("lora_rank")) and not options.adapter,
        licence=options.licence,
        base_models=base_models(options, results),
        code=code,
        printed=printed,
        example=options.example is not None,
        config=config,
        emotions=list(config.emotion_names),
        trained=trained,
        outputs=_listed(["an emotion" if name == "emotion" else name for name in trained]),
        columns={name: i for i, name in enumerate(config.dimension_names)},
        untrained=[name for name in config.output_names if name not in trained],
        run=results["config"],
        results=results,
        protocol=protocol_name(results),
        speakers={name: _count(split["speakers"]) for name, split in results["splits"].items()},
        corpus=corpus_name(options, results),
        corpus_licence=options.corpus_licence,
        datasets=options.datasets,
        language=", ".join(options.language or ["en"]),
        rows=rows,
        folds=len(folds),
        figures=[(name, FIGURE_TITLES.get(Path(name).stem, Path(name).stem)) for name in figures],
        hours=seconds[0] / 3600,
        all_hours=sum(seconds) / 3600,
        device=options.device_name or results.get("device", "an unrecorded device"),
        parameters=results.get("parameters", {}),
    )


FIGURE_TITLES = {
    "confusion": "Confusion matrix of the test split",
    "curves": "Losses and validation metrics by epoch",
    "valence_arousal": "Predicted and labelled valence and arousal of the test split",
}


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + list(names[-1:]))


def _number(value: float) -> str:
    return f"{value:.3f}"


def _count(speakers: int | Sequence[str]) -> int:
    return speakers if isinstance(speakers, int) else len(speakers)
