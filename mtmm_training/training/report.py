"""What a run prints and what it leaves."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.data.utterances import (
    Utterance,
    digest,
)
from mtmm_training.files import replacing, writing
from mtmm_training.pictures import of_runs
from mtmm_training.scoring.metrics import fit_temperature
from mtmm_training.scoring.predictions import Predictions, write_predictions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.prepare import listing


def identity(
    config: TrainConfig, splits: dict[str, list[Utterance]], bad: dict[str, str]
) -> dict[str, Any]:
    """What makes a run this run: its flags, but for those that change no result, and its splits."""
    harmless = ["out", "cache_dir", "resume", "tracker", "checkpoint_steps", "keep_checkpoints"]
    harmless += ["workers", "on_error"]  # who is skipped counts, see below
    flags = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in harmless
    }
    digests = {f"{name} split": digest(members) for name, members in splits.items()}
    return flags | digests | {"skipped": sorted(bad)} | versions()


def metrics_by_corpus(
    predictions: Predictions, utterances: Sequence[Utterance], config: MTMMConfig
) -> dict[str, Any]:
    """Metrics of each corpus in a split by itself; nothing where there is one corpus."""
    corpora = np.array([u.corpus for u in utterances])  # in the order of the predictions
    names = np.unique(corpora).tolist()
    return {
        name: Predictions(
            *(np.asarray(column)[corpora == name] for column in vars(predictions).values())
        ).metrics(config, config.temperature)
        for name in (names if len(names) > 1 else ())
    }


def calibrate(validation: Predictions, outputs: Sequence[str]) -> float:
    """The temperature that fits the validation labels best; 1 without any."""
    if "emotion" not in outputs or not (validation.emotion_labels >= 0).any():
        return 1.0
    return fit_temperature(validation.emotion_logits, validation.emotion_labels)


def versions() -> dict[str, str]:
    """Of what decides a run's numbers: packages and Python."""
    packages = ("torch", "transformers", "accelerate")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def write_run(
    out: Path,
    model: MTMMModel,
    processor: MTMMProcessor,
    results: dict[str, Any],
    predictions: dict[str, Predictions],
    utterances: Sequence[Utterance],
) -> None:
    """Model folder, predictions, pictures, and results.json last: where it is, all is."""
    with writing(out):
        model.save_pretrained(out / "model")
        processor.save_pretrained(out / "model")
        if results["config"]["lora_rank"]:
            model.config.save_pretrained(out / "adapter")  # again: the temperature is known now
            processor.save_pretrained(out / "adapter")
    write_predictions(out / "predictions.csv", predictions, utterances, model.config)
    test = predictions["test"]
    of_runs.plot_curves(results["epochs"], out / "figures" / "curves.png", results["select_by"])
    names = list(model.config.emotion_names)
    if results["test"]["confusion"] is not None:
        title = f"Test split, {len(test.utterance_ids)} utterances"
        of_runs.plot_confusion(
            results["test"]["confusion"], names, out / "figures" / "confusion.png", title
        )
    columns = [i for i, n in enumerate(model.config.dimension_names) if n in ("valence", "arousal")]
    complete = ~np.isnan(test.dimension_labels[:, columns]).any(axis=1)
    if len(columns) == 2 and complete.any():  # rows that lack one are left out
        of_runs.plot_dimensions(
            test.dimension_labels[:, columns],
            test.dimensions[:, columns],
            out / "figures" / "valence_arousal.png",
            model.config.dimension_range,
            [names[label] if label >= 0 else None for label in test.emotion_labels],
        )
    with replacing(out / "results.json") as temporary:
        temporary.write_text(
            json.dumps(results, indent=2, default=str, allow_nan=False), encoding="utf-8"
        )


def print_summary(
    config: TrainConfig,
    fold: str,
    counts: dict[str, Any],
    bad: dict[str, str],
    parameters: dict[str, tuple[int, int]],
    accelerator: Accelerator,
    train: Any,
    steps: list[int],
) -> None:
    """Everything that follows from the flags, before the first step."""
    print(f"fold {fold}")
    for name, split in counts.items():
        emotions = ", ".join(f"{emotion} {count}" for emotion, count in split["emotions"].items())
        dimensions = ", ".join(
            f"{dimension} {count}" for dimension, count in split["dimensions"].items()
        )
        print(
            f"  {name:<10} {split['utterances']:>6} utterances ({split['with_audio']} audio, "
            f"{split['with_text']} text), speakers: {len(split['speakers'])}; "
            f"{emotions or 'no emotions'}; {dimensions}"
        )
        if "corpora" in split:
            print("  " * 7 + ", ".join(f"{name} {n}" for name, n in split["corpora"].items()))
    if bad:
        print(f"  skipped, as they cannot be used: {len(bad)} utterances{listing(bad)}")
    for part, (trained, frozen) in parameters.items():
        print(f"  {part:<15} {trained:>12,} parameters trained {frozen:>12,} frozen")
    print(
        f"  {config.epochs} epochs, {sum(steps)} steps; {accelerator.num_processes} x "
        f"{config.batch_size} x {config.accumulation} utterances a step at most; "
        f"{100 * train.batch_sampler.padding_share():.1f} % padding; {accelerator.device}, "
        f"precision {config.mixed_precision}",
        flush=True,
    )


def epoch_line(config: TrainConfig, epoch: dict[str, Any], best: bool) -> str:
    """One line: losses and validation metrics."""
    metrics = epoch["validation"]
    parts = [f"epoch {epoch['epoch']:>3}/{config.epochs}"]
    parts += [f"train loss {epoch['train']['loss']:.3f}", f"validation loss {metrics['loss']:.3f}"]
    return "  ".join(parts + metric_parts(metrics) + (["*"] if best else []))


def metric_parts(metrics: dict[str, Any]) -> list[str]:
    """UAR, WAR and every CCC that have a value, as words to print."""
    parts = [f"{name} {metrics[name]:.3f}" for name in ("UAR", "WAR") if metrics[name] is not None]
    return parts + [
        f"CCC {name} {ccc:.3f}" for name, ccc in metrics["CCC"].items() if ccc is not None
    ]


def print_test(results: dict[str, Any], out: Path) -> None:
    """Print the test metrics, those of each corpus, and where the results are."""
    print(
        f"test ({results['splits']['test']['utterances']} utterances of "
        f"{', '.join(results['splits']['test']['speakers'])}; epoch {results['best_epoch']}, "
        f"{'the last' if results['select_by'] == 'last' else 'by ' + results['select_by']}): "
        + "  ".join(metric_parts(results["test"]))
    )
    for name, metrics in results["by_corpus"].items():
        parts = metric_parts(metrics)
        print(f"  {name} ({metrics['utterances']} utterances): " + "  ".join(parts))
    untrained = set(results["config"]["dimensions"]) | {"emotion"}
    untrained -= set(results["model_config"]["trained_outputs"])
    if untrained:
        print(f"not trained (no labels, or weight 0 in the loss): {', '.join(sorted(untrained))}")
    print(
        f"{results['wall_time_s']:.0f} s; model, results, predictions and pictures are in {out}",
        flush=True,
    )


def trackable(config: TrainConfig) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in dataclasses.asdict(config).items()
    }


def flat(epoch: dict[str, Any]) -> dict[str, float]:
    """An epoch's record as a tracker takes it."""
    metrics = epoch["validation"]
    flat = {f"validation/{name}": metrics[name] for name in ("loss", "UAR", "WAR", "macro_F1")}
    flat |= {f"validation/CCC_{name}": ccc for name, ccc in metrics["CCC"].items()}
    flat |= {
        "train/loss": epoch["train"]["loss"],
        "train/gradient_norm": epoch["train"]["gradient_norm"],
        "train/rmm_probability": epoch["rmm_probability"],
    }
    return {name: value for name, value in flat.items() if value is not None}
