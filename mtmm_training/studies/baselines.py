"""Baselines in the folds of training: linear models on what frozen encoders say of a whole utterance.

Every utterance becomes one vector: the mean (and standard deviation) over time of chosen encoder
layers, or the eGeMAPS functionals. Emotions get a logistic regression (on eGeMAPS a linear SVM),
each dimension a ridge regression, both from scikit-learn, see `regressions`. Fold i goes to OUT/fold-i
as results.json and predictions.csv, as a run of training leaves them.

A fold's test split is predicted once, by a model that was chosen and fitted on all other speakers.
Predictions of the validation split come from the model of the inner cross-validation that did not see
their speaker.

With --reference, features are standardised as MTMM standardises states. The regressions are fitted on
states that the training data's statistics standardise, which changes nothing for them. So training
needs no references, and other recordings are moved to where the regression expects them: what MTMM
standardises by their reference is put back on the training data's scale.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import FeatureCache
from mtmm_training.batches.sampler import FRAMES_PER_SECOND
from mtmm_training.data import hub, sounds
from mtmm_training.data.files import write_json
from mtmm_training.data.folds import Fold, select
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import SPLITS, Utterance
from mtmm_training.scoring.predictions import (
    Predictions,
    calibrate,
    calibrated_scores,
    write_predictions,
)
from mtmm_training.studies.protocol import Plan, chosen_folds
from mtmm_training.training import prepare
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import build_model
from mtmm_training.training.references import References
from mtmm_training.training.regressions import (
    Features,
    Regression,
    Task,
    fit_regression,
    inner_splits,
    label_columns,
)
from mtmm_training.training.report import metric_parts, versions
from mtmm_training.training.run import PREDICTIONS, RESULTS, flags_record
from reference_mtmm import Reference
from waveforms_mtmm import to_mono


@dataclass(frozen=True)
class Baseline:
    """What a baseline needs beside the settings that it shares with training.

    Args:
        features: "encoders", or "egemaps" for the 88 functionals of openSMILE.
        layers: ["best"] (one, chosen inside the fold), ["last"], or numbers to put side by side: 0 is
            the first layer's input, 1 its output.
        pooling: "mean" over time, or "mean_std" with the standard deviation behind it.
    """

    features: str = "encoders"
    layers: tuple[str, ...] = ("best",)
    pooling: str = "mean"


def run_baseline(
    config: TrainConfig, baseline: Baseline, folds: Collection[int] | None = None
) -> None:
    """Fits the folds that are missing, and prints a line for each.

    Args:
        config: The settings of data, folds, outputs and encoders; others are not read.
        baseline: The features.
        folds: Indices from 0; all if None.

    Raises:
        ValueError: A setting is not allowed, or `config.out` was begun with others.
    """
    if config.cache_dir == "off":
        raise ValueError("`--cache_dir` is 'off'; baselines need a cache.")
    # Every layer is in the cache of "weighted"; that of "last" is smaller.
    mixed = "last" if baseline.layers == ("last",) else "weighted"
    config = replace(config, model_config=json.dumps({"encoder_layers": mixed}))
    config.check()
    config = config.resolve()
    data = prepare.read_data(config)
    utterances, made = data.utterances, data.folds
    plan = Plan(Path(config.out), config, utterances, made, chosen_folds(made, folds))
    plan.keep(baseline=asdict(baseline))
    missing, wanted = plan.unfinished(), len(plan.chosen)
    if len(missing) < wanted:
        print(f"{wanted - len(missing)} of {wanted} folds are there already")
    features = read_features(config, baseline, utterances) if missing else {}
    for index in missing:
        own = replace(config, out=str(plan.folder(index)), fold=index)
        results = run_fold(own, baseline, made[index], utterances, features)
        chosen = []
        for output, choice in results["chosen"].items():
            layers = [f"{m} layers {list(numbers)}" for m, numbers in choice["layers"].items()]
            strength = [f"{name} {choice[name]:g}" for name in ("C", "alpha") if name in choice]
            chosen.append(f"{output}: {', '.join(layers + strength)}")
        parts = "  ".join(metric_parts(results["test"]))
        print(f"fold {index:>2} {results['fold']}: {parts}  ({'; '.join(chosen)})", flush=True)
    print(f"results and predictions are in {plan.out}")


# ---- one vector per utterance ------------------------------------------------------------------


def read_features(
    config: TrainConfig, baseline: Baseline, utterances: Sequence[Utterance]
) -> dict[str, Features]:
    """Features of all utterances by modality, or by "egemaps"; nothing of what none of them has."""
    if baseline.features == "egemaps":
        return {"egemaps": Features(egemaps_functionals(utterances)[:, None], (0,))}
    model, processor = build_model(config)
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    folder = prepare.cache_folder(config)
    assert folder is not None  # it is not off
    moved: Any = model.to(device)  # type: ignore[arg-type]  # its decorator hides `self` from mypy
    cache = FeatureCache(folder, moved, processor, Recordings(folder), config.cache_dtype)
    cache.encode(utterances, batch_size=config.batch_size, workers=config.workers)
    states, features = cache.collator(utterances, (), ()), {}
    for modality in config.modalities:
        # A reference has deviations, whatever the regression sees.
        referred = modality == "audio" and config.reference != "none"
        pooling = "mean_std" if referred else baseline.pooling
        vectors, frames = [], []
        for u in utterances:  # one at a time: no padding, and little memory
            own = states.of(modality, u)
            vectors.append(None if own is None else pool(own, pooling))
            frames.append(0 if own is None else own.shape[-2])
        if not any(frames):
            continue
        last = model.encoder_of(modality).config.num_hidden_layers
        numbers = (last,) if baseline.layers == ("last",) else tuple(range(last + 1))
        absent = np.full_like(next(v for v in vectors if v is not None), np.nan)
        values = np.stack([absent if v is None else v for v in vectors])
        features[modality] = Features(values, numbers, np.array(frames))
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
    import opensmile  # the extra egemaps: free for research, not for commercial products

    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    functionals = []
    for u in tqdm(utterances, desc="eGeMAPS", disable=None, leave=False):
        waveform, rate = sounds.waveform(str(u.audio), u.start_s, u.end_s)
        functionals.append(smile.process_signal(to_mono(waveform), rate).to_numpy()[0])
    return np.stack(functionals).astype(np.float32)


# ---- folds -------------------------------------------------------------------------------------


def run_fold(
    config: TrainConfig,
    baseline: Baseline,
    fold: Fold,
    utterances: Sequence[Utterance],
    features: dict[str, Features],
) -> dict[str, Any]:
    """Fit every output that the train split has labels of, and write both files into `config.out`."""
    began = time.monotonic()
    known = MTMMConfig(
        id2label=dict(enumerate(config.emotions)),
        dimension_names=config.dimensions,
        dimension_range=config.dimension_range,
    )
    known.trained_outputs = prepare.trained_outputs(known, select(utterances, fold)["train"])
    utterances = prepare.hide_labels(utterances, config, known.trained_outputs)
    splits = select(utterances, fold)
    row_of = {u.utterance_id: row for row, u in enumerate(utterances)}
    rows = {name: np.array([row_of[u.utterance_id] for u in splits[name]]) for name in SPLITS}
    fitted = Fitted(config, baseline, known, utterances, features, rows)
    predictions = {name: fitted.predict(features, rows[name]) for name in ("validation", "test")}
    told: dict[str, Any] = {}
    calibrate(known, predictions["validation"])
    if config.reference != "none":
        home = {u.corpus for u in splits["train"]}
        audio = features["audio"]
        model = Statistics(known, audio)
        references = PooledReferences(model=model, home=home, pooled=audio, rows=row_of)
        references.fit(splits["train"], config.reference)

        def answer(split: str, given: Any) -> Predictions:
            moved = features | {"audio": references.standardised(given)}
            return fitted.predict(moved, rows[split])

        plain = dict(predictions)
        told["reference"] = references.fit_strengths(
            splits["validation"], plain["validation"], partial(answer, "validation")
        ) | references.describe(splits["test"])
        given = references.given(splits["test"], plain["test"], partial(answer, "test"))
        predictions |= {"test": answer("test", given), "test_without_reference": plain["test"]}
    scores = calibrated_scores(predictions, splits["test"], known, config.group_by)
    results = {
        "fold": fold.name,
        "config": flags_record(config),
        "model_config": known.to_dict(),
        "baseline": asdict(baseline),
        "datasets": hub.described(config.manifest or ()),
        "splits": {name: prepare.describe_split(splits[name], config) for name in SPLITS},
        "chosen": fitted.chosen,
        **scores,
        **told,
        "versions": versions() | {"scikit-learn": version("scikit-learn")},
        "wall_time_s": time.monotonic() - began,
    }
    folder = Path(config.out)
    write_predictions(folder / PREDICTIONS, predictions, utterances, known, config.group_by)
    write_json(results, folder / RESULTS)
    return results


class Fitted:
    """The regressions of a fold: of each trained output one, on the rows of train and validation.

    Args:
        config, baseline: The settings.
        known: Names the outputs that are trained; the labels of others must be absent.
        utterances: Those of all splits.
        features: Theirs.
        rows: By split.

    Attributes:
        chosen: By output, layers and strength.
    """

    def __init__(
        self,
        config: TrainConfig,
        baseline: Baseline,
        known: MTMMConfig,
        utterances: Sequence[Utterance],
        features: dict[str, Features],
        rows: dict[str, np.ndarray],
    ) -> None:
        self.config, self.baseline, self.utterances = config, baseline, utterances
        self.labels = label_columns(config.emotions, config.dimensions, utterances)
        self.regressions: dict[str, Regression] = {}
        self.chosen: dict[str, dict[str, Any]] = {}
        speakers, seen = np.array([u.speaker_id for u in utterances]), self._shown(features)
        for output in known.trained_outputs:
            balanced, svm = config.class_weights == "balanced", baseline.features == "egemaps"
            task = Task(output, self.labels[output], config.emotions, balanced, svm)
            own = {name: split[task.known[split]] for name, split in rows.items()}
            inner = inner_splits(config, own["train"], own["validation"], speakers)
            fitted = fit_regression(task, seen, list(baseline.layers), inner)
            self.regressions[output], self.chosen[output] = fitted

    def predict(self, features: dict[str, Features], rows: np.ndarray) -> Predictions:
        """Predictions for some rows; an output that is not trained is 0 everywhere."""
        config, seen = self.config, self._shown(features)
        logits = np.zeros((len(rows), len(config.emotions)))
        dimensions = np.zeros((len(rows), len(config.dimensions)))
        for output, regression in self.regressions.items():
            predicted = regression.predict(seen, rows)
            if output == "emotion":
                logits = predicted
            else:
                dimensions[:, config.dimensions.index(output)] = predicted
        own = [self.utterances[row] for row in rows]
        ids = [u.utterance_id for u in own]
        values = np.stack([self.labels[name][rows] for name in config.dimensions], axis=1)
        labels = self.labels["emotion"][rows]
        made = Predictions(ids, logits, dimensions, labels, values)
        return made.with_votes(own, config.emotions)

    def _shown(self, features: dict[str, Features]) -> dict[str, Features]:
        """What a regression sees: with references, features have deviations that it may not see."""
        if self.config.reference == "none" or self.baseline.pooling == "mean_std":
            return features
        audio = features["audio"]
        means = audio.values[..., : audio.values.shape[-1] // 2]
        return features | {"audio": replace(audio, values=means)}


# ---- references ---------------------------------------------------------------------------------


class Statistics:
    """What references need of a model: its configuration, and the statistics of its training data.

    Args:
        config: The baseline's.
        pooled: Features with deviations, all of one encoder.
    """

    standardisation: Any = MTMMModel.standardisation

    def __init__(self, config: MTMMConfig, pooled: Features) -> None:
        answers = len(config.emotion_names) + len(config.dimension_names)
        _, layers, width = pooled.values.shape
        shape = layers, width // 2
        self.config, self.device = config, "cpu"
        self.audio_model = nn.Module()
        self.fusion = SimpleNamespace(
            reference_mean=torch.zeros(shape),
            reference_deviation=torch.ones(shape),
            expected_states=torch.zeros(answers, *shape),
        )


@dataclass(frozen=True, kw_only=True)
class PooledReferences(References):
    """References of pooled states; see [`References`].

    Args:
        pooled: Mean and deviation of the acoustic states of all utterances, and how many these are.
        rows: Row of each utterance, by id.
    """

    model: Any  # a `Statistics`
    states: Any = None  # all there is of them is pooled
    pooled: Features
    rows: Mapping[str, int]

    def of(self, utterance: Utterance, answers: np.ndarray) -> Reference | None:
        """One utterance's; None without audio."""
        row = self.rows[utterance.utterance_id]
        assert self.pooled.frames is not None
        frames = int(self.pooled.frames[row])
        if not frames:
            return None
        mean, deviation = np.split(self.pooled.values[row].astype(np.float64), 2, axis=-1)
        config = self.model.config
        seconds = config.acoustic_stride / FRAMES_PER_SECOND * frames
        squares, encoder = frames * deviation**2, str(config.reference_encoder)
        return Reference(1, seconds, frames, mean, squares, answers, encoder)

    def standardised(self, given: Mapping[str, Mapping[str, torch.Tensor]]) -> Features:
        """The features with those of some utterances standardised by their references.

        Args:
            given: By utterance id, as of [`References.given`].
        """
        values, fusion = self.pooled.values.copy(), self.model.fusion
        for name, reference in given.items():
            row = self.rows[name]
            mean, deviation = reference["reference_mean"][0], reference["reference_deviation"][0]
            scale = (fusion.reference_deviation / deviation).numpy()
            means, deviations = np.split(values[row], 2, axis=-1)
            moved = fusion.reference_mean.numpy() + scale * (means - mean.numpy())
            values[row] = np.concatenate([moved, scale * deviations], axis=-1)
        return replace(self.pooled, values=values)
