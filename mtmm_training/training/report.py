"""What a run prints and what it leaves."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.data.corpora.synthetic import CORPUS as SYNTHETIC
from mtmm_training.data.files import write_json, writing
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures import of_runs
from mtmm_training.scoring.predictions import Predictions, write_predictions
from mtmm_training.training.adapters import FAMILIARITY_FILE
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.prepare import FoldData


def versions() -> dict[str, str]:
    """Of what decides a run's numbers: packages and Python."""
    packages = ("torch", "transformers", "accelerate")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def training_data(utterances: Sequence[Utterance], before: dict[str, Any] | None) -> dict[str, Any]:
    """What a model was trained on, as `MTMMConfig.training_data` has it.

    Args:
        utterances: The training split's.
        before: The same of the model that the run went on from; None = there was none.
    """
    corpora = Counter(u.corpus for u in utterances)
    before = before or {"corpora": {}, "speakers": 0, "artificial": []}
    speakers = len({u.speaker_id for u in utterances})
    artificial = {*before["artificial"], *({SYNTHETIC} & set(corpora))}
    return {
        "corpora": before["corpora"] | dict(corpora.most_common()),
        "speakers": max(speakers, before["speakers"]),  # who was in both is not known
        "artificial": sorted(artificial),
    }


def write_run(
    out: Path,
    model: MTMMModel,
    processor: MTMMProcessor,
    results: dict[str, Any],
    predictions: dict[str, Predictions],
    data: FoldData,
) -> None:
    """Model folder, predictions, pictures, and results.json last: where it is, all is."""
    with writing(out):
        model.save_pretrained(out / "model")
        processor.save_pretrained(out / "model")
        if results["config"]["lora_rank"]:
            model.config.save_pretrained(out / "adapter")  # again: the temperature is known now
            processor.save_pretrained(out / "adapter")
            if model.familiarity is not None:
                statistics = model.familiarity.cpu().state_dict()
                save_file(statistics, out / "adapter" / FAMILIARITY_FILE)
    utterances = [*data.splits["validation"], *data.splits["test"]]
    group_by = results["config"]["group_by"]
    write_predictions(out / "predictions.csv", predictions, utterances, model.config, group_by)
    draw(out / "figures", model.config, results, predictions["test"])
    write_json(results, out / "results.json")


def draw(folder: Path, config: MTMMConfig, results: dict[str, Any], test: Predictions) -> None:
    """Curves of training; what the test split confuses, and its valence and arousal, where labelled."""
    of_runs.plot_curves(results["epochs"], folder / "curves.png", results["select_by"])
    title = f"Test split, {len(test.utterance_ids)} utterances"
    draw_test(folder, config, results["test"], test, title)


def draw_test(
    folder: Path, config: MTMMConfig, metrics: dict[str, Any], test: Predictions, title: str
) -> None:
    """What a split confuses, and its valence and arousal, where labelled.

    Args:
        folder: Gets the pictures.
        config: The model's.
        metrics: As of `Predictions.metrics`.
        test: The predictions.
        title: Printed above the confusion matrix.
    """
    names = list(config.emotion_names)
    confusion = metrics["confusion"]
    if confusion is not None:
        of_runs.plot_confusion(confusion, names, folder / "confusion.png", title)
    columns = [i for i, n in enumerate(config.dimension_names) if n in ("valence", "arousal")]
    if len(columns) == 2:
        both = test.dimension_labels[:, columns], test.dimensions[:, columns]
        emotions = [names[label] if label >= 0 else None for label in test.emotion_labels]
        path = folder / "valence_arousal.png"
        of_runs.plot_dimensions(*both, path, config.dimension_range, emotions)


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


def tracked(epoch: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's record as a tracker takes them."""
    train = epoch["train"] | {"rmm_probability": epoch["rmm_probability"]}
    cccs = {f"CCC_{name}": ccc for name, ccc in epoch["validation"]["CCC"].items()}
    return {
        f"{split}/{name}": value
        for split, numbers in (("train", train), ("validation", epoch["validation"] | cccs))
        for name, value in numbers.items()
        if isinstance(value, float)
    }
