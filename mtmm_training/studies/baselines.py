"""Baselines in the folds of training: linear models on what frozen encoders say of a whole utterance.

    python -m mtmm_training.studies.baselines --corpus ravdess --corpus_dir DIR --out out/layer3 --layers 3 \\
        --protocol leave_one_speaker_out --modalities audio --audio_encoder A --text_encoder T
    python -m mtmm_training.studies.baselines ... --features egemaps   (needs the extra egemaps)

Every utterance becomes one vector: the mean (and standard deviation) over time of chosen encoder
layers, or the eGeMAPS functionals. Emotions get a logistic regression (on eGeMAPS a linear SVM),
each dimension a ridge regression, both from scikit-learn. Fold i goes to OUT/fold-i as
results.json and predictions.csv, in the form in which train_accelerate.py writes them.

A fold's test split is predicted once, by a model that was chosen and fitted on all other speakers:
layer and regularisation by cross-validation over the speakers of train and validation together (the
two or so of a validation split are too few to choose by, and too good to waste). Predictions of the
validation split come from the model of that cross-validation that did not see their speaker. In the
one fold of protocol official, the choice is made on its validation split, the fit on train alone.
Ridge regression shrinks its predictions towards their mean, which CCC punishes, so they are stretched
to the mean and spread that the labels have where the choice was made.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor
from tqdm.auto import tqdm
from transformers.hf_argparser import DataClassType, HfArgumentParser

from audio_mtmm import to_mono
from configuration_mtmm import MTMMConfig
from mtmm_training.batches.cache import STATES, FeatureCache
from mtmm_training.batches.collate import to_dataset
from mtmm_training.data.folds import Fold, keep_folds, refuse_change, select
from mtmm_training.data.utterances import SPLITS, Utterance
from mtmm_training.files import read_json, write_json
from mtmm_training.scoring.metrics import (
    ABSENT_EMOTION,
    concordance_correlation,
    unweighted_average_recall,
)
from mtmm_training.scoring.predictions import Predictions, write_predictions
from mtmm_training.studies.experiments import fold_folder
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import build_model
from mtmm_training.training.prepare import (
    describe_split,
    folds_of,
    hide_labels,
    read_utterances,
    trained_outputs,
)
from mtmm_training.training.report import calibrate, metric_parts, metrics_by_corpus, versions
from processing_mtmm import MTMMProcessor

# Of inputs with mean 0 and variance 1; C is the inverse of a strength, alpha a strength.
EMOTION_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
DIMENSION_GRID = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
INNER_FOLDS = 5
HARMLESS = {"out", "folds", "cache_dir", "batch_size", "workers"}  # flags that change no result
Splits = list[tuple[np.ndarray, np.ndarray]]  # rows to fit on, rows to score
UNSEEN = 30.0  # so far below the lowest logit is that of an emotion without training labels


def _as_in_training(name: str, text: str | None = None) -> Any:
    """A field with the default, and the help text if not given, that its flag has in training."""
    same = TrainConfig.__dataclass_fields__[name]
    metadata = same.metadata | ({"help": text} if text else {})
    return field(default=same.default, default_factory=same.default_factory, metadata=metadata)


@dataclass
class BaselineConfig:
    """All that a baseline needs; flags that training has too mean the same."""

    out: str = field(
        default="out/baseline", metadata={"help": "Folder that gets fold-00, fold-01, ..."}
    )
    seed: int = field(default=0, metadata={"help": "Of the groups of protocol grouped."})

    manifest: list[str] | None = _as_in_training("manifest")
    audio_dir: str | None = _as_in_training("audio_dir")
    on_error: str = _as_in_training("on_error")
    corpus: str | None = _as_in_training("corpus")
    corpus_dir: str | None = _as_in_training("corpus_dir")
    corpus_options: str = _as_in_training("corpus_options")
    emotions: list[str] = _as_in_training(
        "emotions", "Emotions to predict; angry happy sad neutral if not given."
    )
    dimensions: list[str] = _as_in_training(
        "dimensions", "Dimensions to predict; valence arousal if not given."
    )
    dimension_range: list[float] = _as_in_training(
        "dimension_range",
        "Lowest and highest value of their labels; that of the corpus, else 1 5, if not given.",
    )
    modalities: list[str] = _as_in_training("modalities")
    protocol: str = _as_in_training("protocol")
    k: int | None = _as_in_training("k")
    folds_file: str | None = _as_in_training("folds_file")
    script_disjoint: bool = _as_in_training("script_disjoint")
    improvised_only: bool = _as_in_training("improvised_only")
    folds: list[int] | None = field(
        default=None, metadata={"help": "Which folds, from 0; all if not given."}
    )

    features: str = field(
        default="encoders",
        metadata={
            "help": "encoders: pooled states; egemaps: the 88 functionals of openSMILE.",
            "choices": ["encoders", "egemaps"],
        },
    )
    layers: list[str] = field(
        default_factory=lambda: ["best"],
        metadata={
            "help": "best (one, chosen inside the fold), last, or numbers to concatenate: 0 is the first "
            "layer's input, 1 its output."
        },
    )
    pooling: str = field(
        default="mean",
        metadata={
            "help": "Statistics over time; mean_std puts both side by side.",
            "choices": ["mean", "mean_std"],
        },
    )
    class_weights: str = _as_in_training("class_weights")

    audio_encoder: str = _as_in_training("audio_encoder")
    text_encoder: str = _as_in_training("text_encoder")
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the encoders' states, shared with training; cache/ beside --out if not given."
        },
    )
    cache_dtype: str = _as_in_training("cache_dtype")
    batch_size: int = _as_in_training("batch_size")
    workers: int = _as_in_training("workers")

    def check(self) -> None:
        """Raise ValueError for the first flag whose value is not allowed."""
        self.training().check()
        named = self.layers in (["best"], ["last"])
        if not named and not (self.layers and all(layer.isdecimal() for layer in self.layers)):
            raise ValueError(
                f"`--layers` is {' '.join(self.layers)!r}; it must be best, last, or numbers from 0."
            )
        if self.features == "egemaps" and self.modalities != ["audio"]:
            raise ValueError(
                f"`--modalities` is {self.modalities!r}; it must be audio with --features egemaps."
            )
        if self.cache_dir == "off":
            raise ValueError("`--cache_dir` is 'off'; it must be a folder: baselines use a cache.")

    def training(self) -> TrainConfig:
        """The same flags as training has them."""
        shared = {f.name for f in dataclasses.fields(TrainConfig)}
        flags = {name: value for name, value in vars(self).items() if name in shared}
        # Every layer is in the cache of "weighted"; that of "last" is smaller.
        mixed = "last" if self.layers == ["last"] else "weighted"
        return TrainConfig(**flags, model_config=json.dumps({"encoder_layers": mixed}))

    def resolve(self) -> "BaselineConfig":
        """The same flags with the outputs' defaults filled in."""
        known = self.training().resolve()
        names = ("emotions", "dimensions", "dimension_range")
        return dataclasses.replace(self, **{name: getattr(known, name) for name in names})


# ---- one vector per utterance ------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What a modality says of each utterance as a whole.

    Args:
        values: (utterances, layers, width), float32; NaN for an utterance without the modality.
        layers: The number of each layer: 0 = the input of the encoder's first one.
    """

    values: np.ndarray
    layers: tuple[int, ...]

    def of(self, layers: Sequence[int]) -> np.ndarray:
        """The layers' vectors side by side: (utterances, layers · width)."""
        columns = [self.layers.index(layer) for layer in layers]
        return self.values[:, columns].reshape(len(self.values), -1)

    def candidates(self, wanted: Sequence[str]) -> list[tuple[int, ...]]:
        """The sets of layers that `--layers` lets choose from."""
        if wanted == ["best"]:
            return [(layer,) for layer in self.layers]
        chosen = self.layers[-1:] if wanted == ["last"] else tuple(map(int, wanted))
        if not set(chosen) <= set(self.layers):
            raise ValueError(
                f"`--layers` is {' '.join(wanted)!r}; it must name layers from {self.layers[0]} to "
                f"{self.layers[-1]} here."
            )
        return [chosen]


def read_features(config: BaselineConfig, utterances: Sequence[Utterance]) -> dict[str, Features]:
    """Features of all utterances by modality, or by "egemaps"; nothing of what none of them has."""
    if config.features == "egemaps":
        return {"egemaps": Features(egemaps_functionals(utterances)[:, None], (0,))}
    training = config.training()
    model, processor = build_model(training)
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    cache = FeatureCache.open(
        config.cache_dir or Path(config.out).parent / "cache",
        model.to(device),  # type: ignore[arg-type]  # its decorator hides `self` from mypy
        processor,
        dtype=config.cache_dtype,
    )
    cache.encode(utterances, batch_size=config.batch_size, workers=config.workers)
    given = [m for m in config.modalities if any(getattr(u, m) is not None for u in utterances)]
    pooled: dict[str, list[np.ndarray | None]] = {modality: [] for modality in given}
    collate = cache.collator(utterances, (), ())
    for row in to_dataset(utterances):
        batch = collate([row])  # one at a time: no padding, and little memory
        for modality, vectors in pooled.items():
            states = batch.get(f"{STATES[modality]}_states")
            vectors.append(None if states is None else pool(states[0], config.pooling))
    features = {}
    for modality, vectors in pooled.items():
        encoder = model.audio_model if modality == "audio" else model.text_model
        last = encoder.config.num_hidden_layers
        numbers = (last,) if config.layers == ["last"] else tuple(range(last + 1))
        absent = np.full_like(next(v for v in vectors if v is not None), np.nan)
        features[modality] = Features(
            np.stack([absent if v is None else v for v in vectors]), numbers
        )
    return features


def pool(states: Tensor, pooling: str) -> np.ndarray:
    """Statistics over time.

    Args:
        states: (time, width) or (layers, time, width), without padding.
        pooling: "mean", or "mean_std" (the population's standard deviation behind the mean).

    Returns:
        (layers, width) or (layers, 2 · width), float32; one layer where there is no such axis.
    """
    states = states.float().reshape(-1, *states.shape[-2:])
    statistics = [states.mean(-2)]
    if pooling == "mean_std":
        statistics.append(states.std(-2, correction=0))
    return torch.cat(statistics, dim=-1).numpy()


def egemaps_functionals(utterances: Sequence[Utterance]) -> np.ndarray:
    """The extended Geneva minimalistic acoustic parameter set: (utterances, 88), float32.

    Source:
        Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set (GeMAPS) for Voice Research and
        Affective Computing", IEEE Transactions on Affective Computing 2016; its version 2.
    """
    try:
        import opensmile
    except ImportError as error:
        raise ValueError(
            '`--features egemaps` needs openSMILE: pip install -e ".[egemaps]" (free for research, '
            "not for commercial products)."
        ) from error
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    functionals = []
    for u in tqdm(utterances, desc="eGeMAPS", disable=None, leave=False):
        waveform, rate = MTMMProcessor.load_audio(u.audio, u.start_s, u.end_s)
        functionals.append(smile.process_signal(to_mono(waveform), rate).to_numpy()[0])
    return np.stack(functionals).astype(np.float32)


# ---- one output in one fold --------------------------------------------------------------------


def make_search(config: BaselineConfig, output: str, inner: Splits) -> GridSearchCV:
    """The linear model of an output, its strengths of regularisation, and what they are chosen by."""
    if output != "emotion":
        scorer = make_scorer(_concordance)
        return _search(Ridge(), "alpha", DIMENSION_GRID, scorer, inner)
    balanced = "balanced" if config.class_weights == "balanced" else None
    if config.features == "egemaps":
        classifier = LinearSVC(class_weight=balanced)
    else:
        classifier = LogisticRegression(class_weight=balanced, max_iter=2000)
    scorer = make_scorer(unweighted_average_recall, emotions=config.emotions)
    return _search(classifier, "C", EMOTION_GRID, scorer, inner)


def _search(
    model: BaseEstimator, name: str, strengths: Sequence[float], scorer: Any, inner: Splits
) -> GridSearchCV:
    # An absent modality is NaN, and becomes the mean of the training split: it says nothing.
    pipeline = Pipeline(
        [
            ("impute", SimpleImputer(keep_empty_features=True)),
            ("scale", StandardScaler()),
            ("model", model),
        ]
    )
    grid = {f"model__{name}": strengths}
    return GridSearchCV(pipeline, grid, scoring=scorer, cv=inner, refit=False, error_score="raise")


def _concordance(labels: ArrayLike, predictions: ArrayLike) -> float:
    return concordance_correlation(predictions, labels)  # scikit-learn's order of arguments


def inner_splits(
    config: BaselineConfig, rows: dict[str, np.ndarray], speakers: np.ndarray
) -> Splits:
    """Where layer and regularisation are chosen: pairs of rows to fit on and rows to score.

    Args:
        config: Its protocol decides, see the module's docstring.
        rows: Of the labelled utterances of each split; those of test are not looked at.
        speakers: (utterances,).

    Returns:
        The pairs; none where there is nobody to score but who was fitted on.
    """
    train, validation = rows["train"], rows["validation"]
    if config.protocol == "official" and config.folds_file is None:
        return [(train, validation)] if len(validation) else []
    known = np.concatenate([train, validation])
    present = len(set(speakers[known]))
    if present < 2:
        return []
    folds = GroupKFold(min(INNER_FOLDS, present)).split(known, groups=speakers[known])
    return [(known[fitted], known[scored]) for fitted, scored in folds]


def predict_output(
    config: BaselineConfig,
    output: str,
    features: dict[str, Features],
    labels: np.ndarray,
    inner: Splits,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Choose and fit the model of an output, looking at the rows of `inner` alone; predict all.

    With two modalities each one's layer is chosen alone, then both are put side by side.

    Args:
        config: Which layers and models there are to choose from.
        output: "emotion", or a dimension's name.
        features: By modality, of all utterances.
        labels: (utterances,) of the output.
        inner: As of [`inner_splits`]. Their rows to score are predicted by the model of their pair,
            all others by one that is fitted on the rows to fit of all pairs.

    Returns:
        Logits (utterances, emotions), or the dimension (utterances,), and what was chosen.

    Raises:
        ValueError: The labels are too few to choose by.
    """
    too_few = ValueError(
        f"{output} has too few labels to choose layer and regularisation by; use folds with more "
        f"labelled utterances, or leave {output} out."
    )
    least = 2 if output == "emotion" else 1  # different labels
    if not inner or any(len(np.unique(labels[fitted])) < least for fitted, _ in inner):
        raise too_few

    def search(inputs: np.ndarray) -> GridSearchCV:
        found = make_search(config, output, inner).fit(inputs, labels)
        if not np.isfinite(found.best_score_):
            raise too_few
        return found

    layers = {}
    for modality, block in features.items():
        candidates = block.candidates(config.layers)
        if len(candidates) > 1:
            scores = [search(block.of(candidate)).best_score_ for candidate in candidates]
            candidates = [candidates[int(np.argmax(scores))]]
        layers[modality] = candidates[0]
    inputs = np.concatenate([features[name].of(layers[name]) for name in layers], axis=1)
    found = search(inputs)
    model = found.estimator.set_params(**found.best_params_)

    def predict(fitted: np.ndarray, wanted: np.ndarray | slice) -> np.ndarray:
        model.fit(inputs[fitted], labels[fitted])
        if output == "emotion":
            return emotion_logits(model, inputs[wanted], len(config.emotions))
        predicted: np.ndarray = model.predict(inputs[wanted])
        return predicted

    predictions = predict(np.unique(np.concatenate([fitted for fitted, _ in inner])), slice(None))
    for fitted, scored in inner:
        predictions[scored] = predict(fitted, scored)
    if output != "emotion":
        seen = np.concatenate([scored for _, scored in inner])
        predictions = stretch(predictions, predictions[seen], labels[seen])
    strength = {name.removeprefix("model__"): value for name, value in found.best_params_.items()}
    return predictions, {"layers": layers, **strength, "inner_score": found.best_score_}


def stretch(predictions: np.ndarray, seen: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predictions (utterances,) by the line that gives those `seen` the mean and sd of their labels."""
    if np.ptp(seen) == 0:
        return predictions
    return labels.mean() + (predictions - seen.mean()) * labels.std() / seen.std()


def emotion_logits(model: Pipeline, inputs: np.ndarray, emotions: int) -> np.ndarray:
    """(utterances, emotions): decision values, whose softmax is the logistic regression's probability.

    An SVM's are distances from its planes; their softmax is no calibrated probability.
    """
    decisions = model.decision_function(inputs)
    if decisions.ndim == 1:  # two emotions: the second one's advantage
        decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
    logits = np.tile(decisions.min(axis=1, keepdims=True) - UNSEEN, emotions)
    logits[:, model.classes_] = decisions
    return logits


# ---- folds -------------------------------------------------------------------------------------


def run_fold(
    config: BaselineConfig,
    fold: Fold,
    utterances: Sequence[Utterance],
    features: dict[str, Features],
    folder: Path,
) -> dict[str, Any]:
    """Fit every output that the train split has labels of, and write both files."""
    began = time.monotonic()
    training = config.training()
    known = MTMMConfig(
        id2label=dict(enumerate(config.emotions)),
        dimension_names=config.dimensions,
        dimension_range=config.dimension_range,
    )
    known.trained_outputs = trained_outputs(known, select(utterances, fold)["train"])
    utterances = hide_labels(utterances, training, known.trained_outputs)
    splits = select(utterances, fold)
    row_of = {u.utterance_id: row for row, u in enumerate(utterances)}
    rows = {name: np.array([row_of[u.utterance_id] for u in splits[name]]) for name in SPLITS}
    everything, chosen = predict_all(config, known.trained_outputs, utterances, features, rows)
    predictions = {name: _part(everything, rows[name]) for name in ("validation", "test")}
    known.temperature = calibrate(predictions["validation"], known.trained_outputs)
    results = {
        "fold": fold.name,
        "config": dataclasses.asdict(config),
        "splits": {name: describe_split(splits[name], training) for name in SPLITS},
        "chosen": chosen,
        "temperature": known.temperature,
        "validation": predictions["validation"].metrics(known, known.temperature),
        "test": predictions["test"].metrics(known, known.temperature),
        "test_ECE_before_temperature": predictions["test"].metrics(known)["ECE"],
        "by_corpus": metrics_by_corpus(predictions["test"], splits["test"], known),
        "versions": versions() | {"scikit-learn": version("scikit-learn")},
        "wall_time_s": time.monotonic() - began,
    }
    write_predictions(folder / "predictions.csv", predictions, utterances, known)
    write_json(results, folder / "results.json")
    return results


def predict_all(
    config: BaselineConfig,
    outputs: Sequence[str],
    utterances: Sequence[Utterance],
    features: dict[str, Features],
    rows: dict[str, np.ndarray],
) -> tuple[Predictions, dict[str, dict[str, Any]]]:
    """Predictions for all utterances, in their order, and what was chosen for each output.

    An output that is not among `outputs` is 0 everywhere; its labels must be absent.
    """
    speakers = np.array([u.speaker_id for u in utterances])
    labels = label_columns(config, utterances)
    logits = np.zeros((len(utterances), len(config.emotions)))
    dimensions = np.zeros((len(utterances), len(config.dimensions)))
    chosen = {}
    for output in outputs:
        column = labels[output]
        absent = column == ABSENT_EMOTION if output == "emotion" else np.isnan(column)
        labelled = {name: split[~absent[split]] for name, split in rows.items()}
        inner = inner_splits(config, labelled, speakers)
        predicted, chosen[output] = predict_output(config, output, features, column, inner)
        if output == "emotion":
            logits = predicted
        else:
            dimensions[:, config.dimensions.index(output)] = predicted
    dimension_labels = np.stack([labels[name] for name in config.dimensions], axis=1)
    ids = [u.utterance_id for u in utterances]
    return Predictions(ids, logits, dimensions, labels["emotion"], dimension_labels), chosen


def label_columns(config: BaselineConfig, utterances: Sequence[Utterance]) -> dict[str, np.ndarray]:
    """By output, (utterances,): −100 and NaN where absent."""
    number: dict[str | None, int] = {name: i for i, name in enumerate(config.emotions)}
    emotions = [number.get(u.emotion, ABSENT_EMOTION) for u in utterances]
    return {"emotion": np.array(emotions)} | {
        name: np.array([getattr(u, name) for u in utterances], dtype=np.float64)  # None is NaN
        for name in config.dimensions
    }


def _part(predictions: Predictions, rows: np.ndarray) -> Predictions:
    ids = [predictions.utterance_ids[row] for row in rows]
    arrays = (f.name for f in dataclasses.fields(Predictions) if f.name != "utterance_ids")
    return Predictions(ids, **{name: getattr(predictions, name)[rows] for name in arrays})


def is_finished(config: BaselineConfig, folder: Path) -> bool:
    """Whether this baseline's results are in the folder.

    Raises:
        ValueError: Those of another baseline are.
    """
    path = folder / "results.json"
    if not path.exists():
        return False
    before = read_json(path, "config")["config"]
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in sorted(now.keys() - HARMLESS):
        if before.get(name) != now[name]:
            refuse_change(folder, f"--{name}", before.get(name), now[name])
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(
        DataClassType(BaselineConfig),
        prog="python -m mtmm_training.studies.baselines",
        description=__doc__.split("\n")[0],
    )
    (config,) = parser.parse_args_into_dataclasses(arguments)
    config.check()
    config = config.resolve()
    utterances = read_utterances(config.training())
    folds = folds_of(config.training(), utterances)
    folders = [fold_folder(Path(config.out), index, len(folds)) for index in range(len(folds))]
    wanted = range(len(folds)) if config.folds is None else config.folds
    for index in wanted:
        if not 0 <= index < len(folds):
            raise ValueError(
                f"`--folds {index}` does not exist: there are {len(folds)}, counted from 0."
            )
    keep_folds(folds, utterances, Path(config.out, "folds.json"))
    missing = [index for index in wanted if not is_finished(config, folders[index])]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} folds are there already")
    features = read_features(config, utterances) if missing else {}
    for index in missing:
        results = run_fold(config, folds[index], utterances, features, folders[index])
        print_fold(index, results)
    print(f"results and predictions are in {config.out}")


def print_fold(index: int, results: dict[str, Any]) -> None:
    """One line: the test metrics and what was chosen."""
    chosen = []
    for output, choice in results["chosen"].items():
        layers = [f"{m} layers {list(numbers)}" for m, numbers in choice["layers"].items()]
        strength = [f"{name} {choice[name]:g}" for name in ("C", "alpha") if name in choice]
        chosen.append(f"{output}: {', '.join(layers + strength)}")
    parts = "  ".join(metric_parts(results["test"]))
    print(f"fold {index:>2} {results['fold']}: {parts}  ({'; '.join(chosen)})", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
