"""A finished run, read back from its folder: what training, or a baseline, leaves of one fold."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor
from mtmm_training.data.files import read_json
from mtmm_training.data.utterances import Utterance, by_id
from mtmm_training.scoring.predictions import read_predictions
from mtmm_training.training import places
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.prepare import read_all

RESULTS = "results.json"  # written last: where it is, all is
PREDICTIONS = "predictions.csv"
NEEDED = ("fold", "config", "splits", "temperature", "validation", "test", "wall_time_s")


@dataclass(frozen=True)
class Run:
    """One fold's finished run; make it with `Run.open`.

    Args:
        folder: The run's folder: results.json and predictions.csv; of training also model/,
            figures/ and, with LoRA, adapter/.
        results: The content of results.json:

            - "fold": the fold's name; "config": the flags, see `flags`.
            - "model_config": the fields of MTMMConfig, of a baseline those of the outputs alone.
            - "splits": by split "utterances", "with_audio", "with_text" (counts), "emotions" and
              "dimensions" (counts of labels by name), "speakers" (ids), and "corpora" (counts by
              name) where there are several.
            - "skipped": what was wrong with utterances that were left out, by id.
            - "temperature"; "validation" and "test": as of `Predictions.metrics`;
              "test_ECE_before_temperature"; "by_corpus": test metrics by corpus;
              "test_without_reference", where references were used.
            - "by_group": test metrics by column (such as gender) and value; "group_gaps" and
              "by_speaker", see `scoring.groups`; "listener_ceiling", see `scoring.votes`;
              "raters_spread", see `scoring.votes`.
            - "versions", by package; "wall_time_s", seconds.
            - of training: "unfamiliar" ("stated", "validation", "test": shares that are called so),
              "parameters" ([trained, frozen] by part), "epochs" (one record each),
              "best_epoch", "select_by", "device", "processes", "cached_states" (their precision, or
              None where the encoders ran in every epoch).
            - of a baseline: "baseline" (its own flags), "chosen" (layers and strength by output).
    """

    folder: Path
    results: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Reads a finished run's results.json.

        Raises:
            FileNotFoundError: The folder has none.
            ValueError: It is damaged, or of another program or version.
        """
        folder = Path(folder)
        return cls(folder, read_json(folder / RESULTS, *NEEDED))

    @cached_property
    def flags(self) -> TrainConfig:
        """The flags that the run was trained with; data is looked for from the run's folder first.

        Raises:
            ValueError: This version has other flags.
        """
        try:
            flags = TrainConfig.from_record(places.found(self.results["config"], self.folder))
        except TypeError as error:  # it names the flag
            raise ValueError(
                f"{self.folder / RESULTS} is of another version ({error}); use that one, or train again."
            ) from error
        return flags

    def predictions(self, split: str = "test") -> pd.DataFrame:
        """What the run predicted for a split: one row per utterance.

        Args:
            split: "validation", "test" or "test_without_reference".

        Returns:
            The columns of `scoring.predictions.read_predictions`.

        Raises:
            FileNotFoundError, ValueError: predictions.csv is absent, damaged or cut off.
        """
        rows = read_predictions(self.folder / PREDICTIONS)
        rows = rows[rows["split"] == split].reset_index(drop=True)
        expected = self.results["splits"][split.partition("_")[0]]["utterances"]
        if len(rows) != expected:
            raise ValueError(
                f"{self.folder / PREDICTIONS} has {len(rows)} {split} utterances of {expected}; run it again."
            )
        return rows

    def test_utterances(self) -> list[Utterance]:
        """The utterances that the run was tested on, as predictions.csv names them.

        Not those of its fold made anew: speakers who came or went since would make another one.

        Raises:
            FileNotFoundError, ValueError: The data is not where it was, or changed.
        """
        known = by_id(read_all(self.flags))
        rows = self.predictions()
        tested = dict(zip(rows["id"], rows["speaker"], strict=True))
        changed = [n for n, who in tested.items() if n not in known or known[n].speaker_id != who]
        if changed:
            raise ValueError(
                f"{len(changed)} of {len(tested)} test utterances of {self.folder} changed: {changed[0]!r}."
            )
        return [known[name] for name in tested]

    def model(self) -> MTMMModel:
        """The trained model, in eval mode."""
        return MTMMModel.from_pretrained(self.folder / "model")

    def processor(self) -> MTMMProcessor:
        """The model's processor."""
        return MTMMProcessor.from_pretrained(self.folder / "model")

    def pipeline(self) -> MTMMPipeline:
        """Model and processor as a user of the Hub has them."""
        return MTMMPipeline(model=self.model(), processor=self.processor())


def is_finished(folder: Path) -> bool:
    """Whether the folder has a run's results; a run that was stopped has none."""
    return (folder / RESULTS).is_file()


def flags_record(config: TrainConfig) -> dict[str, Any]:
    """The flags for results.json and settings.json, see `places.written`."""
    return places.written(asdict(config), config.out)
