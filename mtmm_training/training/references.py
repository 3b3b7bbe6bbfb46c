"""References in training: statistics of the training split, and those of validation and test speakers.

Training itself needs none: the model sees states that are standardised by its training split's
statistics. What references need besides is fitted here: the mean state that goes with each answer, and
how much speech a reference must have to count, which validation speakers tell.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.batches.cache import CachedStates
from mtmm_training.batches.collate import Loader
from mtmm_training.batches.fingerprint import text_digest, weights_digest
from mtmm_training.batches.sampler import FRAMES_PER_SECOND
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.regressions import label_columns
from mtmm_training.training.ridge import SKEWS, STRENGTHS
from reference_mtmm import LEAST_DEVIATION, SKEWED, Reference, as_answers, distance

ROUNDS = 3  # of fitting speakers' shifts and the states that go with answers, in turn
RIDGE = 1e-3  # times the number of frames: an answer without labels has no state of its own
# Of the best strength's gain: few validation speakers tell, and users give few recordings.
GAIN_KEPT = 0.75
HARM = 1.05  # times the loss without: a loss with references that is more stops their use
FIRST_STRENGTHS = (2.0, 2.0)  # of a speaker and of a domain
SPREAD = 1.25  # times the distance of the furthest speaker of training: another one may be further
# Of the configuration, filled by `fit`.
REFERENCE_FIELDS = tuple(
    f"reference{suffix}"
    for suffix in ("", "_encoder", "_strengths", "_answers", "_skew", "_spread")
)


Answer = Callable[[Any], Predictions]  # of a split, with references as `forward` takes them


@dataclass(frozen=True)
class References:
    """What references are made of: the cached states of utterances.

    Args:
        model: Its fusion and configuration are filled by [`fit`].
        states: The cache's.
        home: The training split's corpora, whose domain the model's own statistics are.
    """

    model: MTMMModel
    states: CachedStates
    home: Collection[str] = ()

    @classmethod
    def fitted(
        cls, config: TrainConfig, model: MTMMModel, loader: Loader, train: Sequence[Utterance]
    ) -> "References | None":
        """Those that `--reference` asks for, with the model's statistics filled; else None."""
        if config.reference == "none":
            return None
        states: Any = loader.collate_fn
        made = cls(model, states, {u.corpus for u in train})
        made.fit(train, config.reference)
        return made

    @torch.no_grad()
    def of(self, utterance: Utterance, answers: np.ndarray) -> Reference | None:
        """One utterance's; None without audio."""
        states = self.states.of("audio", utterance)
        if states is None:
            return None
        mask = torch.ones(1, states.shape[-2], dtype=torch.bool)
        encoder = str(self.model.config.reference_encoder)
        length = self.model.config.acoustic_stride / FRAMES_PER_SECOND * states.shape[-2]
        given = torch.from_numpy(answers)[None]
        return Reference.of_states(states[None].float(), mask, given, length, encoder)

    def summed(
        self,
        utterances: Sequence[Utterance],
        answers: np.ndarray,
        key: Callable[[Utterance], str | None],
    ) -> dict[str, Reference]:
        """The references of speakers, or of whatever `key` tells apart; None = nobody's."""
        sums: dict[str, Reference] = {}
        for utterance, answer in zip(utterances, answers, strict=True):
            name = key(utterance)
            own = None if name is None else self.of(utterance, answer)
            if name is not None and own is not None:
                _count(sums, name, own)
        return sums

    @torch.no_grad()
    def fit(self, train: Sequence[Utterance], kind: Any) -> None:
        """Fill the model's statistics of the training data."""
        config, fusion = self.model.config, self.model.fusion
        config.reference = kind
        mixed, stride = config.mixed_layers("audio"), config.acoustic_stride
        what = f"{weights_digest(self.model.audio_model)} {mixed} {stride}"
        config.reference_encoder = text_digest(what)
        answers = labelled_answers(train, config)
        labelled = answers[answers.any(1)]
        config.reference_answers = tuple(map(float, labelled.mean(0))) if len(labelled) else ()
        count, shape = answers.shape[1], fusion.reference_mean.shape
        whole: Reference | None = None
        speakers: dict[str, Reference] = {}  # of what has labels: the rest tells nothing of answers
        products, states = np.zeros((count, count)), np.zeros((count, *shape))
        for utterance, answer in zip(train, answers, strict=True):
            own = self.of(utterance, answer)
            if own is None:
                continue
            whole = own if whole is None else whole + own
            if answer.any():
                products += own.frames * np.outer(answer, answer)
                states += own.frames * answer[:, None, None] * own.mean
                _count(speakers, utterance.speaker_id, own)
        if whole is None:
            raise ValueError("`--reference` needs recordings, and the training split has none.")
        deviation = np.maximum(whole.deviation, LEAST_DEVIATION)
        fusion.reference_mean.copy_(torch.from_numpy(whole.mean))
        fusion.reference_deviation.copy_(torch.from_numpy(deviation))
        frames = whole.frames / whole.recordings
        config.reference_strengths = tuple(frames * strength for strength in FIRST_STRENGTHS)

        each = [self.model.standardisation(domain=own) for own in speakers.values()]
        apart = [
            distance(one["reference_deviation"][0], fusion.reference_deviation) for one in each
        ]
        config.reference_spread = SPREAD * max(map(float, apart), default=0.0)

        # Least squares of standardised states on answers, and speakers' shifts, in turn.
        heard = sum((own.frames * own.answers for own in speakers.values()), np.zeros(count))
        states = (states - heard[:, None, None] * whole.mean) / deviation
        products += RIDGE * frames * np.eye(count)
        expected = np.zeros_like(states)
        for _ in range(ROUNDS):
            moved = states.copy()
            for own in speakers.values():
                explained = np.einsum("a,alw->lw", own.answers, expected)
                shift = (own.mean - whole.mean) / deviation - explained
                shift *= own.frames / (own.frames + FIRST_STRENGTHS[0] * frames)
                moved -= own.frames * own.answers[:, None, None] * shift
            expected = np.linalg.solve(products, moved.reshape(count, -1)).reshape(states.shape)
        fusion.expected_states.copy_(torch.from_numpy(expected))

    def give_to(self, model: MTMMModel) -> "References":
        """The same of another model with this encoder, which gets the statistics that were fitted."""
        for name in REFERENCE_FIELDS:
            setattr(model.config, name, getattr(self.model.config, name))
        for name in ("reference_mean", "reference_deviation", "expected_states"):
            getattr(model.fusion, name).copy_(getattr(self.model.fusion, name))
        return replace(self, model=model)

    def fit_strengths(
        self, utterances: Sequence[Utterance], predictions: Predictions, answer: Answer
    ) -> dict[str, Any]:
        """Choose by the validation split's loss how much a reference counts, and what is a mood.

        Args:
            utterances: The validation split; its own recordings are the references.
            predictions: The model's for them, without references.
            answer: The same with references.

        Returns:
            The strengths, in utterances of mean length, by name, and the skew; a domain's strength is
            chosen where the validation split has a corpus that training did not hear.
        """
        config = self.model.config
        unit = config.reference_strengths[0] / FIRST_STRENGTHS[0]
        chosen = dict(zip(("speaker", "domain"), FIRST_STRENGTHS, strict=True))
        foreign = any(u.corpus not in self.home for u in utterances)
        kinds = ("domain",) * foreign + ("speaker",) * (config.reference == "speaker")
        domains = self.made(utterances, predictions, "domain")
        speakers: dict[str, Reference] = {}

        def loss() -> float:
            given = self.standardisations(utterances, domains, speakers)
            return float(answer(given).metrics(config)["loss"])

        for kind in kinds:
            losses = {}
            if kind == "speaker":
                speakers = self.made(utterances, predictions, kind)
            for strength in STRENGTHS:
                tried = chosen | {kind: strength}
                config.reference_strengths = (tried["speaker"] * unit, tried["domain"] * unit)
                losses[strength] = loss()
            best, none = min(losses.values()), losses[STRENGTHS[-1]]
            enough = none - GAIN_KEPT * (none - best)
            useful = [s for s in STRENGTHS[:-1] if losses[s] <= enough]
            harmful = min(losses[s] for s in STRENGTHS[:-1]) > HARM * none
            # Two validation speakers cannot show that references are useless, only that they harm.
            chosen[kind] = STRENGTHS[-1] if harmful else min(useful, default=STRENGTHS[0])
        config.reference_strengths = (chosen["speaker"] * unit, chosen["domain"] * unit)
        if speakers:

            def with_skew(skew: float) -> float:
                config.reference_skew = skew
                return loss()

            # The usual one comes first: it stays where all are alike.
            config.reference_skew = min(dict.fromkeys((SKEWED, *SKEWS)), key=with_skew)
        return {"strengths": chosen, "skew": config.reference_skew}

    def describe(self, utterances: Sequence[Utterance]) -> dict[str, Any]:
        """What the references of a split are made of, for results.json."""
        heard = [u for u in utterances if u.audio is not None]
        speakers = {u.speaker_id for u in heard}
        return {
            "kind": self.model.config.reference,
            "of": "the test split's own recordings, unlabelled",
            "recordings": len(heard),
            "speakers": len(speakers),
        }

    def given(
        self, utterances: Sequence[Utterance], predictions: Predictions, answer: Answer
    ) -> dict[str, dict[str, torch.Tensor]]:
        """By utterance id, what `forward` takes: references of all that is given, by predictions.

        Of each corpus that training did not hear, and of each speaker too if the model is for them.

        Args:
            utterances: A split, unlabelled for all that is done here.
            predictions: The model's for them, without references.
            answer: The model's with references: speakers of another domain are heard in theirs.
        """
        domains = self.made(utterances, predictions, "domain")
        alone = self.standardisations(utterances, domains, {})
        if self.model.config.reference == "domain":
            return alone
        heard = answer(alone) if domains else predictions
        return self.standardisations(utterances, domains, self.made(utterances, heard, "speaker"))

    def adapted(
        self,
        utterances: Sequence[Utterance],
        predictions: Predictions,
        answer: Callable[[MTMMModel], Predictions],
    ) -> Predictions | None:
        """A split answered by models that have learned its other corpora's places from its recordings.

        Args:
            utterances, predictions: As of [`given`].
            answer: The split's answers by a model, without references.

        Returns:
            None without a linear path, or another corpus. Utterances of a corpus that training heard are
            answered as before.
        """
        foreign = any(u.corpus not in self.home for u in utterances)
        if self.model.linear_path is None or not foreign:
            return None
        answers = predicted_answers(predictions, self.model.config)
        found = predictions.at(np.arange(len(utterances)))
        shared = {
            id(encoder): encoder for encoder in (self.model.audio_model, self.model.text_model)
        }
        for corpus in sorted({u.corpus for u in utterances}.difference(self.home)):
            rows = np.array([u.corpus == corpus for u in utterances])
            each = [self.of(utterances[i], answers[i]) for i in np.flatnonzero(rows).tolist()]
            heard = [replace(one, kind="domain") for one in each if one is not None]
            if not heard:
                continue
            model = copy.deepcopy(self.model, dict(shared))
            model.adopt_domain(sum(heard[1:], heard[0]), heard)
            by_it = answer(model)
            for name in ("emotion_logits", "dimensions"):
                getattr(found, name)[rows] = getattr(by_it, name)[rows]
        return found

    def made(
        self, utterances: Sequence[Utterance], predictions: Predictions, kind: str
    ) -> dict[str, Reference]:
        """The references of speakers by name, or of the corpora that training did not hear."""
        answers = predicted_answers(predictions, self.model.config)
        if kind == "speaker":
            return self.summed(utterances, answers, lambda u: u.speaker_id)
        return self.summed(
            utterances, answers, lambda u: None if u.corpus in self.home else u.corpus
        )

    def standardisations(
        self,
        utterances: Sequence[Utterance],
        domains: dict[str, Reference],
        speakers: dict[str, Reference],
    ) -> dict[str, dict[str, torch.Tensor]]:
        """By utterance id, what `forward` takes, with the strengths of now."""
        pairs = {(u.corpus, u.speaker_id) for u in utterances}
        made = self.model.standardisation
        by_pair = {(c, s): made(domains.get(c), speakers.get(s)) for c, s in pairs}
        return {u.utterance_id: by_pair[u.corpus, u.speaker_id] for u in utterances}


def _count(sums: dict[str, Reference], name: str, own: Reference) -> None:
    sums[name] = sums[name] + own if name in sums else own


def labelled_answers(utterances: Sequence[Utterance], config: MTMMConfig) -> np.ndarray:
    """(utterances, emotions + dimensions): labels as answers, zeros where there is none."""
    names = config.emotion_names
    labels = label_columns(names, config.dimension_names, utterances)
    emotions = (labels.pop("emotion")[:, None] == np.arange(len(names))).astype(float)
    middle = sum(config.dimension_range) / 2
    dimensions = np.nan_to_num(np.stack([*labels.values()], axis=1), nan=middle)
    return as_answers(config, emotions, dimensions)


def predicted_answers(predictions: Predictions, config: MTMMConfig) -> np.ndarray:
    """(utterances, emotions + dimensions): predictions as answers; see `as_answers`."""
    probabilities = softmax(predictions.emotion_logits / config.temperature, axis=-1)
    return as_answers(config, probabilities, predictions.dimensions)
