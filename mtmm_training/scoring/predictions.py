"""A model on a split: predictions, their metrics, and the files that hold them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from scipy.special import softmax

from configuration_mtmm import MTMMConfig
from loss_mtmm import multi_task_loss
from mtmm_training.data.files import replacing
from mtmm_training.data.utterances import DIMENSIONS, Utterance
from mtmm_training.scoring import metrics, votes
from mtmm_training.scoring.groups import extremes, gaps, group_values
from mtmm_training.scoring.metrics import Score
from pooled_mtmm import MODALITIES

GROUP = "group_"  # begins the name of a group's column in predictions.csv


@dataclass(frozen=True)
class Predictions:
    """A model's outputs for one split, in the order of the split's utterances.

    Args:
        utterance_ids: One for each row.
        emotion_logits: (utterances, emotions), float64.
        dimensions: (utterances, dimensions), on the labels' scale, float64.
        emotion_labels: (utterances,), −100 = absent.
        dimension_labels: (utterances, dimensions), NaN = absent.
        votes: (utterances, emotions), how many listeners heard each, see `scoring.votes`; None =
            nothing is known of them.
        deviations: (utterances, dimensions), the predicted spread of raters; None = not learned.
        unfamiliarity: (utterances, 2), as of the model's output; None = it has no statistics.
    """

    utterance_ids: list[str]
    emotion_logits: np.ndarray
    dimensions: np.ndarray
    emotion_labels: np.ndarray
    dimension_labels: np.ndarray
    votes: np.ndarray | None = None
    deviations: np.ndarray | None = None
    unfamiliarity: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> "Predictions":
        """Those of some rows, by position or as a boolean mask."""
        columns = {n: np.asarray(own)[rows] for n, own in vars(self).items() if own is not None}
        return Predictions(columns.pop("utterance_ids").tolist(), **columns)

    def with_votes(self, utterances: Sequence[Utterance], emotions: Sequence[str]) -> "Predictions":
        """The same beside the votes of its utterances, which come in its order."""
        table = votes.vote_table((u.votes for u in utterances), emotions)
        return self if np.isnan(table).all() else replace(self, votes=table)

    def metrics(self, config: MTMMConfig, temperature: float = 1.0) -> dict[str, Any]:
        """Loss and scores of both tasks over the whole split, ready for JSON: None where no value.

        Args:
            config: The model's. Of an output that was never trained the labels must be absent.
            temperature: Divides the logits; changes only what is of probabilities.

        Returns:
            "loss", "utterances", "emotion_labels" (how many), "UAR", "WAR", "top2", "macro_F1",
            "weighted_F1", "ECE", "recall" (by emotion) and "confusion" (rows are labels, columns
            predictions, both in the order of the emotions); "CCC", "MAE", "RMSE" and "labels" (how
            many), each a dict by dimension; where there are votes those of `vote_scores`, and "votes",
            how many utterances have some.

        Raises:
            ValueError: An output is not finite, or a label is none of the emotions.
        """
        metrics.check_finite("emotion logits", self.emotion_logits)
        emotions, everything = list(config.emotion_names), np.arange(len(self.utterance_ids))
        answers = self.emotion_labels, self.emotion_logits.argmax(axis=1)
        present = int((self.emotion_labels != metrics.ABSENT_EMOTION).sum())
        recalls = map(metrics.or_none, metrics.recall_per_emotion(*answers, emotions))
        told: dict[str, Any] = {"utterances": len(everything), "emotion_labels": present}
        by_dimension: dict[str, Any] = {kind: {} for kind in metrics.DIMENSION_SCORES}
        for name, score in self._all_scores(config, temperature).items():
            kind, _, dimension = name.partition("_")
            own, key = (by_dimension[kind], dimension) if kind in by_dimension else (told, name)
            own[key] = metrics.or_none(score(everything))
        told["recall"] = dict(zip(emotions, recalls, strict=True))
        told["confusion"] = metrics.confusion(*answers, emotions).tolist() if present else None
        counts = (~np.isnan(self.dimension_labels)).sum(0).tolist()
        told |= by_dimension
        told["labels"] = dict(zip(config.dimension_names, counts, strict=True))
        if self.votes is not None:
            told["votes"] = int((~np.isnan(self.votes[:, 0])).sum())
        outputs = self.emotion_logits, self.dimensions, self.emotion_labels, self.dimension_labels
        logits, dimensions, labels, rated = map(torch.from_numpy, outputs)
        losses = multi_task_loss(config, logits, dimensions, labels, rated)
        return {"loss": float(sum(losses))} | told

    def targets(self) -> np.ndarray:
        """What probabilities are calibrated to: shares of votes, a label in their absence.

        Labels (utterances,) where there are no votes, else (utterances, emotions), NaN = absent.
        """
        if self.votes is None:
            return self.emotion_labels
        labelled = np.eye(self.votes.shape[1])[np.maximum(self.emotion_labels, 0)]
        labelled[self.emotion_labels == metrics.ABSENT_EMOTION] = np.nan
        return np.where(np.isnan(self.votes), labelled, votes.shares_of(self.votes))

    def spread(self, config: MTMMConfig) -> dict[str, np.ndarray]:
        """By dimension, the predicted spread of raters, of those for which it was learned."""
        if self.deviations is None:
            return {}
        columns = dict(zip(config.dimension_names, self.deviations.T, strict=True))
        return {name: own for name, own in columns.items() if name in config.rated_dimensions}

    def scores(self, config: MTMMConfig) -> dict[str, Score]:
        """Each score of trained outputs, as a function of row positions."""
        found = self._all_scores(config, config.temperature)
        return {n: s for n, s in found.items() if metrics.output_of(n) in config.trained_outputs}

    def _all_scores(self, config: MTMMConfig, temperature: float) -> dict[str, Score]:
        labels, logits = self.emotion_labels, self.emotion_logits
        shares, names = softmax(logits / temperature, axis=1), list(config.emotion_names)
        found = metrics.emotion_scores(labels, logits.argmax(axis=1), shares, names)
        found |= votes.vote_scores(shares, self.votes)
        rated = self.dimensions, self.dimension_labels
        return found | metrics.dimension_scores(*rated, config.dimension_names)


def calibrate(config: MTMMConfig, validation: Predictions) -> float:
    """Sets the configuration's temperature by the validation split: 1 without trained or labelled emotions.

    It is fitted to the votes where there are any, and the configuration says so.
    """
    config.temperature, config.calibrated_on = 1.0, "labels"
    if "emotion" in config.trained_outputs:
        config.temperature = metrics.fit_temperature(
            validation.emotion_logits, validation.targets()
        )
        config.calibrated_on = "labels" if validation.votes is None else "votes"
    return config.temperature


def calibrated_scores(
    predictions: Mapping[str, Predictions],
    utterances: Sequence[Utterance],
    config: MTMMConfig,
    group_by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Scores both splits, by the configuration's temperature.

    Args:
        predictions: "validation" and "test"; others, such as "test_without_reference", are scored too.
        utterances: The test split's.
        config: The model's.
        group_by: As of `group_values`.

    Returns:
        "temperature", a split's metrics by its name, "test_ECE_before_temperature", "by_corpus",
        "by_group", "group_gaps", "by_speaker" and "listener_ceiling", as results.json has them (see
        `Run`); "by_corpus" is empty where the test split has one corpus.
    """
    test = predictions["test"]
    return {
        "temperature": config.temperature,
        **{split: rows.metrics(config, config.temperature) for split, rows in predictions.items()},
        "test_ECE_before_temperature": test.metrics(config)["ECE"],
        **scores_by_group(test, utterances, config, group_by),
    }


def scores_by_group(
    test: Predictions,
    utterances: Sequence[Utterance],
    config: MTMMConfig,
    group_by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What results.json has of groups, speakers, and the ceiling and spread of those who labelled.

    Args:
        test: The predictions.
        utterances: Theirs, in their order.
        config: The model's, with its temperature.
        group_by: As of `group_values`.
    """
    corpora = np.array([u.corpus for u in utterances])
    speakers = np.array([u.speaker_id for u in utterances])
    groups, scores = group_values(utterances, group_by), metrics.headline(test.scores(config))

    def by_value(values: np.ndarray) -> dict[str, dict[str, Any]]:
        names = sorted(set(values.tolist()) - {""})
        return {n: test.at(values == n).metrics(config, config.temperature) for n in names}

    return {
        "by_corpus": by_value(corpora) if len(set(corpora)) > 1 else {},
        "by_group": {column: by_value(values) for column, values in groups.items()},
        "group_gaps": {n: gaps(scores, values, speakers) for n, values in groups.items()},
        "by_speaker": extremes(scores, speakers),
        "listener_ceiling": votes.listener_ceiling(utterances, config.emotion_names),
        "raters_spread": votes.spread_scores(test.spread(config), utterances),
    }


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    loader: Iterable[dict[str, Any]],
    utterance_ids: Sequence[str],
    accelerator: Accelerator,
    whole: bool = True,
    given: dict[str, dict[str, torch.Tensor]] | None = None,
) -> Predictions:
    """Run a model over a loader, every process its share, and put the rows in order.

    Args:
        model: Prepared by `accelerator`, or not; left in eval mode.
        loader: Batches with labels and `utterance_ids`.
        utterance_ids: The split's, in order.
        accelerator: Gathers the shares.
        whole: Whether all of them must come.
        given: By utterance id, further arguments of `forward`: the references.

    Raises:
        RuntimeError: An utterance came twice, or not at all, or has outputs that are not finite.
    """
    model.eval()
    rows: list[tuple[Any, ...]] = []
    for batch in loader:
        ids = batch.pop("utterance_ids")
        if given:
            own = [given[i] for i in ids]
            batch |= {name: torch.cat([row[name] for row in own]) for name in own[0]}
        output = model(**send_to_device(batch, accelerator.device))
        columns = [
            output.emotion_logits.double(),
            output.dimensions.double(),
            batch["emotion_labels"],
            batch["dimension_labels"].double(),
        ]
        for name in ("dimension_deviations", "unfamiliarity"):
            told = getattr(output, name, None)
            columns.append(columns[0][:, :0] if told is None else told.double())
        rows += zip(ids, *(column.cpu().numpy() for column in columns), strict=True)
    rows = gather_object(rows)
    infinite = [row[0] for row in rows if not all(np.isfinite(row[i]).all() for i in (1, 2))]
    if infinite:
        raise RuntimeError(
            f"The model's outputs for {len(infinite)} of {len(rows)} utterances are not finite, such as "
            f"{', '.join(infinite[:3])}; lower --learning_rate, or take --mixed_precision bf16 or no."
        )
    by_id = {row[0]: row for row in rows}
    if len(by_id) != len(rows) or (whole and set(by_id) != set(utterance_ids)):
        raise RuntimeError(
            f"{len(rows)} predictions of {len(by_id)} utterances came for a split of "
            f"{len(utterance_ids)}; each must come exactly once."
        )
    ordered = [by_id[i] for i in utterance_ids if i in by_id]
    ids, *arrays = zip(*ordered, strict=True)
    logits, dimensions, labels, rated, *more = (np.stack(column) for column in arrays)
    optional = [column if column.size else None for column in more]
    return Predictions(list(ids), logits, dimensions, labels, rated, None, *optional)


def write_predictions(
    path: str | Path,
    predictions: dict[str, Predictions],
    utterances: Sequence[Utterance],
    config: MTMMConfig,
    group_by: Sequence[str] | None = None,
) -> None:
    """Write one row per utterance as CSV: labels, probabilities and dimensions, by name.

    Args:
        path: The file; written under a temporary name first.
        predictions: By split.
        utterances: All that the predictions may name.
        config: The model's; its `trained_outputs` are written, others are left out.
        group_by: As of `group_values`; each column is written as "group_NAME".
    """
    about = pd.DataFrame({"speaker": [u.speaker_id for u in utterances]})
    for name, values in group_values(utterances, group_by).items():
        about[f"{GROUP}{name}"] = values
    if any(u.votes for u in utterances):
        about["votes"] = [u.votes and json.dumps(u.votes, ensure_ascii=False) for u in utterances]
    about.index = pd.Index([u.utterance_id for u in utterances])
    tables = [_table(split, rows, about, config) for split, rows in predictions.items()]
    with replacing(path) as temporary:
        pd.concat(tables).to_csv(temporary, index=False)


def _table(split: str, rows: Predictions, about: pd.DataFrame, config: MTMMConfig) -> pd.DataFrame:
    columns: dict[str, Any] = {"id": rows.utterance_ids, "split": split}
    columns |= about.loc[rows.utterance_ids].to_dict("list")
    if "emotion" in config.trained_outputs:
        names = dict(enumerate(config.emotion_names)) | {metrics.ABSENT_EMOTION: ""}
        probabilities = softmax(rows.emotion_logits / config.temperature, axis=-1)
        columns["emotion_label"] = [names[label] for label in rows.emotion_labels]
        columns["emotion"] = [names[index] for index in probabilities.argmax(axis=1)]
        for name, column in zip(config.emotion_names, probabilities.T, strict=True):
            # Digits of small ones too: without temperature they are p^T.
            columns[f"p_{name}"] = [f"{p:.7g}" for p in column]
    for i, name in enumerate(config.dimension_names):
        if name in config.trained_outputs:
            labels = rows.dimension_labels[:, i]
            columns[f"{name}_label"] = ["" if np.isnan(x) else f"{x:g}" for x in labels]
            columns[name] = [f"{x:.6f}" for x in rows.dimensions[:, i]]
    for name, own in rows.spread(config).items():
        columns[f"{name}_sd"] = [f"{x:.6f}" for x in own]
    if rows.unfamiliarity is not None:
        for name, own in zip(MODALITIES, rows.unfamiliarity.T, strict=True):
            columns[f"unfamiliar_{name}"] = np.where(np.isnan(own), np.nan, own > 1)
    return pd.DataFrame(columns)


def read_predictions(path: Path) -> pd.DataFrame:
    """Reads what `write_predictions` wrote.

    Returns:
        One row per utterance, with the columns "id", "split", "speaker", "group_NAME" of groups and
        "votes", where there are any, as a manifest has them; "emotion_label", "emotion" and "p_NAME" of
        each emotion (after the temperature); "NAME_label", "NAME" and maybe "NAME_sd" of each
        dimension, on the labels' scale; "unfamiliar_audio" and "unfamiliar_text", 1 or 0. Outputs that
        were not trained have no columns; an absent label or modality is NaN.

    Raises:
        FileNotFoundError, ValueError: The file is absent or damaged, or has an utterance twice.
    """
    # Only an empty field is absent; an utterance, speaker or emotion may be called "NA" or "1".
    names = ("id", "split", "speaker", "votes", "emotion_label", "emotion")
    try:
        header = pd.read_csv(path, nrows=0)
        texts = {name: str for name in header if name in names or name.startswith(GROUP)}
        rows = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
        known = [f"{name}{end}" for name in DIMENSIONS for end in ("", "_label", "_sd")]
        numbers = [name for name in rows if name.startswith("p_") or name in known]
        rows[numbers] = rows[numbers].apply(pd.to_numeric)
        doubled = rows["id"][rows[["split", "id"]].duplicated()]
    except (ValueError, KeyError) as error:  # of pandas' parser, or a column that is not there
        raise ValueError(f"{path} cannot be read ({error}); run this fold again.") from error
    if len(doubled):
        raise ValueError(f"{path} has utterance {doubled.iloc[0]!r} twice; run this fold again.")
    return rows
