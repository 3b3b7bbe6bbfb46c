"""References: what some recordings of one speaker, or of one place, have in common; no labels needed.

A reference holds statistics of the acoustic encoder's states, and neither audio nor words. A model that
was trained with references standardises its states by those it is given:

    anna = predict.reference(["a.wav", "b.wav"])   # of a pipeline; see also `mtmm reference`
    predict("c.wav", reference=anna)
    both = anna + predict.reference("d.wav")       # references add up

A domain's reference (a corpus, a call centre, a room) replaces mean and deviation of the training data,
a speaker's moves the mean. What moves it is the part that the emotions of its recordings do not
explain: from the mean of the recordings, the mean is subtracted that the training data has for the
emotions that the model hears in them. So a speaker who was only recorded in anger keeps the anger. Where
what it hears is nearly as mixed as the training data, it explains nothing: what is left of a difference
is mostly the model's errors with a new voice.

A leaf file: it is uploaded to the Hub with the others, is part of the runtime, which has no torch, and
imports none of them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("speaker", "domain")
# Of a model's fusion, or of an export: its training data's.
STATISTICS = ("reference_mean", "reference_deviation", "expected_states")
DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}  # of safetensors' files
LEAST_DEVIATION = 1e-4  # a feature that never changes is not blown up
SKEWED = 0.2  # distance of mean answers, of which a half is then believed, where none was fitted
SHRUNK = 1.2  # moods are further from the usual ones than unsure answers are


@dataclass(frozen=True)
class Reference:
    """Statistics of an acoustic encoder's states over some recordings; they add up.

    Args:
        recordings: How many there were.
        seconds: Their length together.
        frames: Acoustic states that were counted; padding is none.
        mean: (layers, width), float64: the mean over frames of each mixed layer; one layer where the
            model takes the last alone.
        squares: (layers, width), float64: summed squared deviations from the mean.
        answers: (answers,), float64: the mean over frames of what the model answered, see
            [`as_answers`].
        encoder: What tells the encoder from others: `config.reference_encoder`.
        kind: "speaker" or "domain": what the recordings have in common.
        told: The share of frames whose emotion was told instead of heard.

    Source of the formula for sums: Chan, Golub and LeVeque 1979.
    """

    STATES: ClassVar = ("state_mean", "state_deviation", "state_frames")  # outputs of an export

    recordings: int
    seconds: float
    frames: int
    mean: np.ndarray
    squares: np.ndarray
    answers: np.ndarray
    encoder: str
    kind: str = "speaker"
    told: float = 0.0

    @classmethod
    def of_states(
        cls, states: "Tensor", mask: "Tensor", answers: "Tensor", seconds: float, encoder: str
    ) -> "Reference":
        """The reference of a batch of recordings.

        Args:
            states, mask: What `encode_audio` returned.
            answers: (batch, answers), what the model answered; see [`as_answers`].
            seconds: Their length together.
            encoder: `config.reference_encoder`.
        """
        layered = states if states.dim() == 4 else states[:, None]
        counts = mask.sum(-1).double()
        rows = layered.double().movedim(1, 2)[mask]  # (frames of all, layers, width)
        mean = rows.mean(0)
        weighted = (counts[:, None] * answers.double()).sum(0) / counts.sum()
        parts = (mean, ((rows - mean) ** 2).sum(0), weighted)
        center, squares, heard = (part.cpu().numpy() for part in parts)
        count = int(mask.any(-1).sum())
        return cls(count, seconds, len(rows), center, squares, heard, encoder)

    def __add__(self, other: "Reference") -> "Reference":
        if (self.encoder, self.kind) != (other.encoder, other.kind):
            raise ValueError("References add up within one encoder and one kind; these are of two.")
        frames = self.frames + other.frames
        share = other.frames / frames
        apart = other.mean - self.mean
        counts = self.recordings + other.recordings, self.seconds + other.seconds, frames
        squares = self.squares + other.squares + apart**2 * self.frames * share
        answers = self.answers + share * (other.answers - self.answers)
        told = self.told + share * (other.told - self.told)
        mean = self.mean + share * apart
        return Reference(*counts, mean, squares, answers, self.encoder, self.kind, told)

    def __radd__(self, start: int) -> "Reference":
        return self  # `sum` begins with 0

    def of_emotion(self, number: int) -> "Reference":
        """The same of recordings that are known to have this emotion of the model's."""
        return replace(self, answers=np.eye(len(self.answers))[number], told=1.0)

    @property
    def deviation(self) -> np.ndarray:
        """(layers, width): the standard deviation over frames."""
        return np.sqrt(self.squares / self.frames)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the reference as one safetensors file, under a temporary name first."""
        from safetensors.numpy import save_file  # here: the runtime has none

        values = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {n: v for n, v in values.items() if isinstance(v, np.ndarray)}
        others = {name: value for name, value in values.items() if name not in arrays}
        temporary = f"{os.fspath(path)}.unfinished"
        save_file(arrays, temporary, metadata={"mtmm_reference": json.dumps(others)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Reference":
        """Reads what [`save`] wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no reference, or is damaged.
        """
        arrays, metadata = read_arrays(path)
        try:
            told: dict[str, Any] = json.loads(metadata["mtmm_reference"]) | arrays
            reference = cls(**told)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no reference ({error}); make it anew.") from error
        numbers = (value for value in told.values() if not isinstance(value, str))
        if not all(np.isfinite(value).all() for value in numbers):
            raise ValueError(f"{path} has numbers that are not finite; make it anew.")
        return reference


@dataclass
class References:
    """Which reference each input of a call gets: those that are given, and those made of the inputs.

    Args:
        given: By kind, "speaker" or "domain": what every input gets.
        made: The kinds that are made of the call's own inputs.
        speakers: By name, what each speaker's inputs get; it goes before the one that is given.
    """

    given: dict[str, Reference] = field(default_factory=dict)
    made: frozenset[str] = frozenset()
    speakers: dict[str, Reference] = field(default_factory=dict)
    _known: dict[str | None, dict[str, Any]] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, given: Any) -> "References | None":
        """What a user gave: references, paths, "speaker", "domain", "none", or a list of these.

        Several of one kind are added up. None where there is nothing.
        """
        if isinstance(given, cls):
            return given
        references = cls()
        for item in given if isinstance(given, (list, tuple)) else [given]:
            if item is None or item == "none":
                continue
            if isinstance(item, str) and item in KINDS:
                references.made |= {item}
                continue
            one = item if hasattr(item, "squares") else Reference.load(item)
            references._count(references.given, one.kind, one)
        return references if references.given or references.made else None

    def begun(self) -> "tuple[References, References | None]":
        """A copy that counts a call's inputs, and the given ones, by which these are heard meanwhile."""
        made = replace(self, given=dict(self.given), speakers=dict(self.speakers))
        return made, References(dict(self.given)) if self.given else None

    def ended(self) -> "References":
        """The same once all inputs are counted: one kind less is to be made.

        Raises:
            ValueError: No recording among the inputs, or none that says who speaks.
        """
        kind = min(self.made)
        if kind == "domain" and kind not in self.given:
            raise ValueError("A domain's reference is made of recordings, and none is given.")
        if kind == "speaker" and not self.speakers:
            raise ValueError('No recording says who speaks: {"audio": ..., "speaker": "anna"}.')
        return replace(self, made=self.made - {kind})

    def add(self, speaker: str | None, one: Reference) -> None:
        """Count one recording of this speaker: for the domain first, which speakers are heard in."""
        kind = min(self.made)
        if kind == "domain":
            self._count(self.given, kind, replace(one, kind=kind))
        elif speaker is not None:
            self._count(self.speakers, speaker, replace(one, kind=kind))

    def _count(self, sums: dict[str, Reference], name: str, one: Reference) -> None:
        sums[name] = sums[name] + one if name in sums else one
        self._known.clear()

    def used(self, speaker: str | None) -> dict[str, Reference]:
        """By kind, what an input of this speaker gets; empty where it gets nothing."""
        own = {} if speaker not in self.speakers else {"speaker": self.speakers[str(speaker)]}
        return self.given | own

    def told(self, speaker: str | None) -> dict[str, Any]:
        """The same in numbers, for the result."""
        shown = {
            kind: {"recordings": one.recordings, "seconds": round(one.seconds, 2)}
            for kind, one in self.used(speaker).items()
        }
        return {"reference": shown} if shown else {}

    def standardisation(self, model: Any, speaker: str | None) -> dict[str, Any]:
        """What `forward` takes for an input of this speaker; see `MTMMModel.standardisation`."""
        name = speaker if speaker in self.speakers else None
        if name not in self._known:
            self._known[name] = model.standardisation(**self.used(name))
        return self._known[name]


def as_answers(config: Any, probabilities: ArrayLike, dimensions: ArrayLike) -> np.ndarray:
    """(..., answers): the probability of each emotion; of a model that has learned no emotion, the
    dimensions from −1 to 1 behind zeros.

    Args:
        config: The model's.
        probabilities: (..., emotions), calibrated.
        dimensions: (..., dimensions), on the scale of `config.dimension_range`.
    """
    low, high = config.dimension_range
    centred = (np.asarray(dimensions) - (low + high) / 2) / ((high - low) / 2)
    heard = "emotion" in config.trained_outputs
    parts = [np.asarray(probabilities) * heard, centred * (not heard)]
    return np.concatenate(parts, axis=-1)


def believed(
    answers: np.ndarray, usual: Sequence[float], told: float = 0.0, skew: float = SKEWED
) -> np.ndarray:
    """What of a speaker's mean answers is taken for the mood of the recordings.

    Args:
        answers: (answers,), see [`as_answers`].
        usual: (answers,), the training data's mean; without any, all is taken.
        told: See [`Reference`]: so much is taken as it is.
        skew: The distance from the usual of which a half is believed.
    """
    if not len(usual):
        return answers
    apart = answers - np.asarray(usual)
    far = float((apart**2).sum()) ** 2
    mood: np.ndarray = SHRUNK * apart * far / (far + skew**4)
    mood /= max(1.0, np.abs(mood + usual).max())  # no more than what is labelled so
    return told * apart + (1 - told) * mood


def distance(deviation: "Tensor", own: "Tensor") -> "Tensor":
    """How far apart two domains are: the mean over layers and features of |log ratio| of deviations.

    Args:
        deviation: (..., layers, width).
        own: (layers, width).
    """
    return (deviation / own.clamp(min=LEAST_DEVIATION)).log().abs().mean((-2, -1))


def standardisation(
    config: Any,
    own: Mapping[str, np.ndarray],
    domain: Reference | None = None,
    speaker: Reference | None = None,
) -> dict[str, np.ndarray]:
    """Mean and deviation by which an utterance's states are standardised.

    The domain's statistics count against `config.reference_strengths[1]` frames of the training data,
    as if these had been recorded too; the speaker's shift counts against `config.reference_strengths[0]`
    frames without any shift.

    Args:
        config: The model's.
        own: The training data's `STATISTICS`.
        domain: Reference of recordings of the same kind; None = the training data's.
        speaker: Reference of the same speaker's recordings; None = nobody's.

    Returns:
        "reference_mean" and "reference_deviation", (1, layers, width) each, float32.

    Raises:
        ValueError: The model takes no references, or one is of another encoder.
    """
    if config.reference == "none":
        raise ValueError("This model was trained without references; train with --reference.")
    if any(one and one.encoder != config.reference_encoder for one in (domain, speaker)):
        raise ValueError("This reference is of another encoder or other layers; make it anew.")
    strengths = config.reference_strengths
    mean, deviation, expected = (own[name].astype(np.float64) for name in STATISTICS)
    if domain is not None:
        share = domain.frames / (domain.frames + strengths[1])
        apart = domain.mean - mean
        variance = share * domain.deviation**2 + (1 - share) * deviation**2
        mean = mean + share * apart
        deviation = np.sqrt(variance + share * (1 - share) * apart**2)
    deviation = np.maximum(deviation, LEAST_DEVIATION)
    if speaker is not None:
        # The standardised mean state that the training data has for these answers. Older exports do
        # not know the usual ones.
        usual = getattr(config, "reference_answers", ())
        # How speakers of the training data were recorded says nothing of another place.
        skew = SKEWED if domain else getattr(config, "reference_skew", SKEWED)
        mood = believed(speaker.answers, usual, speaker.told, skew)
        explained = np.einsum("a,alw->lw", mood, expected)
        share = speaker.frames / (speaker.frames + strengths[0])
        mean = mean + share * ((speaker.mean - mean) - deviation * explained)
    pairs = zip(STATISTICS, (mean, deviation), strict=False)
    return {name: values.astype(np.float32)[None] for name, values in pairs}


def standardise(states: "Tensor", mean: "Tensor", deviation: "Tensor") -> "Tensor":
    """(states − mean) / deviation, in float32 at least.

    Args:
        states: (batch, frames, width), or (batch, layers, frames, width).
        mean, deviation: (layers, width), or (batch, layers, width); one layer for the former.
    """
    mean, deviation = mean[..., None, :], deviation[..., None, :]
    if states.dim() == 3:
        mean, deviation = mean.squeeze(-3), deviation.squeeze(-3)
    wide = states.float() if states.dtype.itemsize < 4 else states
    return ((wide - mean) / deviation).to(states.dtype)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file of safetensors by name, and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of safetensors, or cut off.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        begins = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begins])
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, told in header.items():
            first, last = told["data_offsets"]
            flat = np.frombuffer(content[begins + first : begins + last], DTYPES[told["dtype"]])
            arrays[name] = flat.reshape(told["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or no file of safetensors ({error}).") from error
    return arrays, metadata
