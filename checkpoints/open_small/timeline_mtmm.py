"""Inputs of the pipeline, their transcripts with times, and how recordings are cut into windows.

Uploaded to the Hub beside the weights, and part of the runtime, which has no torch.
"""

import logging
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

# Relative first, as in pipeline_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .transcript_mtmm import TimedText, Transcript, fitted, parse_timed, spoken, warn_once
        from .waveforms_mtmm import has_signal
except ImportError:
    from transcript_mtmm import TimedText, Transcript, fitted, parse_timed, spoken, warn_once
    from waveforms_mtmm import has_signal

try:  # transformers asks whether inputs are a dataset; the runtime has neither
    from torch.utils.data import Dataset
except ImportError:
    Dataset = object  # type: ignore[assignment,misc]

logger = logging.getLogger(__name__)
AUDIO_KEYS = {"array", "raw", "bytes", "path"}  # a dict with one of these is audio
UTTERANCE_KEYS = {"audio", "text", "words", "segments"}
BESIDE_KEYS = {"sampling_rate", "speaker"}  # of an utterance that has one of the others
INPUT_FORMS = (
    "a path or URL, the bytes of an audio file, an array together with `sampling_rate`, "
    '{"array": waveform, "sampling_rate": Hz}, or {"audio": any of these, "text": transcript} with '
    'either key alone; a transcript with times is "words" or "segments"; "speaker" may say who speaks'
)
# Unless `window_s` is given: a little more than a mean utterance of the training corpora.
WINDOW_S = 6.0


def plain(given: Any) -> Any:
    """What other libraries hold, in forms of their own, as lists and dicts; anything else as it is.

    Series and frames of pandas, polars and pyarrow become lists, their [] goes by label; one row of
    pandas a dict. Samples of integers keep their type, which tells their scale. Audio columns of datasets
    are not decoded by it, which would need torchcodec.
    (array, rate), as librosa gives it, and (rate, array), as gradio does, become a dict.
    """
    if hasattr(given, "iloc"):
        if given.ndim == 2:
            columns = [plain(given.iloc[:, place]) for place in range(given.shape[1])]
            return [dict(zip(given, row, strict=True)) for row in zip(*columns, strict=True)]
        if hasattr(given.dtype, "pyarrow_dtype"):
            return plain(given.array.__arrow_array__())
        if given.dtype.kind in "iu":
            return given.to_numpy()  # samples, whose type tells their scale
        is_row = not (AUDIO_KEYS | UTTERANCE_KEYS).isdisjoint(given.index)
        return given.to_dict() if is_row else given.tolist()
    if hasattr(given, "cast_column"):
        for name, feature in (getattr(given, "features", None) or {}).items():
            if type(feature).__name__ == "Audio" and feature.decode:
                given = given.cast_column(name, replace(feature, decode=False))
        return given
    if isinstance(given, np.ndarray) and given.dtype.kind in "OU":  # a column's values
        return given.tolist()
    if hasattr(given, "to_arrow"):  # polars
        has_objects = "Object" in str(getattr(given, "schema", 0) or given.dtype)
        with suppress(ImportError):  # without pyarrow samples are lists, of floats alone
            given = given if has_objects else given.to_arrow()
    if hasattr(given, "to_pylist"):
        if hasattr(given, "to_struct_array"):
            given = given.to_struct_array()
        is_int = str(given.type).startswith(("int", "uint"))
        return given.to_numpy(zero_copy_only=False) if is_int else [*map(_of_arrow, given)]
    for name in ("to_dicts", "to_list"):
        if hasattr(given, name):
            return getattr(given, name)()
    if isinstance(given, tuple) and len(given) == 2:
        numbers = [item for item in given if isinstance(item, Real)]
        if len(numbers) == 1:
            return {"array": given[isinstance(given[0], Real)], "sampling_rate": numbers[0]}
    elif hasattr(given, "__getitem__") or hasattr(given, "batch_sampler"):
        # A column of datasets, KeyDataset, torch's Subset, ConcatDataset, ChainDataset and DataLoader.
        for name in ("source", "dataset", "datasets"):
            if hasattr(given, name):
                given, inner = copy(given), getattr(given, name)
                several = isinstance(inner, (list, tuple))
                made = [*map(plain, inner)] if several else plain(inner)
                object.__setattr__(given, name, made)  # a DataLoader refuses its own
    return given


def _of_arrow(value: Any, name: str = "audio") -> Any:
    """A value of pyarrow's as Python's; samples as an array of their type."""
    if not value.is_valid:
        return None
    if isinstance(value, Mapping):
        return {key: _of_arrow(value[key], key) for key in value}
    is_list = hasattr(value, "values") and name in {*AUDIO_KEYS, "audio"}
    return value.values.to_numpy(zero_copy_only=False) if is_list else value.as_py()


def is_missing(value: Any) -> bool:
    """None, or what pandas has in an empty cell."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


class Inputs(Dataset):  # type: ignore[type-arg]
    """Several inputs: the items of a list, dataset, generator or anything else to iterate over."""

    def __init__(self, items: Any) -> None:
        self.items = items

    @classmethod
    def of(cls, given: Any) -> "Inputs | None":
        """The inputs of anything to iterate over; None of a single input."""
        one = (str, bytes, bytearray, memoryview, Mapping, np.ndarray)
        iterable = hasattr(given, "__iter__") or isinstance(given, Dataset)
        is_tensor = hasattr(given, "detach")  # torch's
        is_one = isinstance(given, one) or is_tensor or hasattr(given, "read") or not iterable
        return None if is_one else cls(given)

    def repeatable(self) -> "Inputs":
        """The same for two passes: what can be iterated over once alone is held in memory."""
        return Inputs(list(self.items)) if iter(self) is self.items else self

    def __iter__(self) -> Iterator[Any]:
        if hasattr(self.items, "__len__") and not hasattr(self.items, "__iter__"):  # torch's
            return (self.items[index] for index in range(len(self.items)))
        return iter(self.items)


@dataclass
class Results:
    """Results of a list or dataset; every pass over them predicts again."""

    predict: Callable[[], Iterator[dict[str, Any]]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.predict()


class Part(NamedTuple):
    """Of an input: a waveform (time,), its text, and its start and end, seconds.

    Each may be None: the times are those of the whole input then. `untimed`: the text is the whole
    input's, of which this is a window. `silent`: there is audio without a signal, so no waveform.
    `mended`: how many words and segments of the input had odd times.
    """

    waveform: np.ndarray | None
    text: str | None
    times: tuple[float, float] | None
    untimed: bool = False
    speaker: str | None = None
    silent: bool = False
    mended: int = 0

    @classmethod
    def heard(cls, waveform: np.ndarray, idle: float, *others: Any) -> "Part":
        """A part with this audio, or, where it has no signal above its coding's idle noise, without."""
        silent = not has_signal(waveform, idle)
        return cls(None if silent else waveform, *others)._replace(silent=silent)


class Windows(NamedTuple):
    """How recordings are cut.

    Args:
        sampling_rate: Rate of the windows, Hz.
        window_s, hop_s: How long a window is, and how far the next begins behind it, seconds.
        shortest_s: An end that brings less new audio than this gets no window.
    """

    sampling_rate: int
    window_s: float
    hop_s: float
    shortest_s: float

    @classmethod
    def of(
        cls, processor: Any, window_s: float | None, hop_s: float | None, segments: Any = None
    ) -> "Windows":
        """How a recording is cut, or its segments where they are too long.

        Args:
            processor: Says how long the audio may be: `MTMMProcessor`, or the runtime's.
            window_s, hop_s: As the pipeline's options.
            segments: The input's, where it has any.

        Raises:
            ValueError: Windows that the model does not take, or that leave gaps.
        """
        longest_s, shortest_s = processor.longest_audio_s(), processor.min_duration_s
        if window_s is None:
            window_s = longest_s if segments else min(WINDOW_S, longest_s)
        hop_s = window_s if hop_s is None else hop_s
        if not shortest_s <= hop_s <= window_s <= longest_s:
            raise ValueError(
                f"`window_s={window_s!r}` and `hop_s={hop_s!r}` are not allowed; windows last from "
                f"{shortest_s:g} to {longest_s:g} s, and a hop is at most a window."
            )
        return cls(processor.sampling_rate, window_s, hop_s, shortest_s)

    def cut(
        self, recording: Any, start_s: float = 0.0, end_s: float | None = None
    ) -> Iterator[tuple[float, float, np.ndarray]]:
        """Cut a recording, or a segment of it, into windows while reading it.

        The last window ends where the segment ends: it begins earlier than a hop after the one
        before, and is as long, or as the whole segment where that is shorter.

        Args:
            recording: A `Recording`; a stream is cut as a whole.
            start_s, end_s: The segment, seconds; None = to the end.

        Returns:
            Start and end in the recording, seconds, and the waveform (time,).

        Raises:
            ValueError: The segment has no audio.
        """
        first = round(start_s * recording.sampling_rate)
        stop = None if end_s is None else round(end_s * recording.sampling_rate)
        begin_s = first / recording.sampling_rate
        end = None
        for start, waveform in self._numbered(recording.resampled(self.sampling_rate, first, stop)):
            end = start + len(waveform)
            yield begin_s + start / self.sampling_rate, begin_s + end / self.sampling_rate, waveform
        if end is None:
            last = "its end" if end_s is None else f"{end_s:g} s"
            raise ValueError(f"The recording has no audio from {start_s:g} s to {last}.")

    def _numbered(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """The windows, each with the number of its first sample."""
        window, hop, shortest = (round(s * self.sampling_rate) for s in self[1:])
        kept, first = np.zeros(0, np.float32), 0  # samples in hand, and the number of the first
        start = heard = 0  # where the next window begins; where the last one ended
        for block in blocks:
            kept = np.concatenate([kept, block])
            while first + len(kept) >= start + window:
                yield start, kept[start - first : start - first + window]
                start, heard = start + hop, start + window
            reach = max(start - window, first)  # the last window may reach back so far
            kept, first = kept[reach - first :], reach
        end = first + len(kept)
        if end - heard >= shortest or heard == 0 < end:
            start = max(end - window, 0)
            yield start, kept[start - first :]


@dataclass
class Given:
    """One input of the pipeline, taken apart."""

    audio: Any = None
    sampling_rate: int | None = None
    text: str | None = None
    transcript: Transcript | None = None  # with times
    segments: list[TimedText] | None = None
    speaker: str | None = None
    turns: list[TimedText] = field(default_factory=list)  # who speaks when, beside the segments
    channel: int | None = None  # that is heard alone
    mended: int = 0  # words and segments whose times were odd
    in_segments: bool = False  # the transcript is what the segments say

    def texts(self) -> Iterator[Part]:
        """The parts of an input without audio."""
        if self.segments is None:
            yield Part(None, self.text, None)
        for one in self.segments or []:
            end_s = one.end_s if one.end_s < math.inf else one.start_s + 1.0  # nobody knows
            times = one.start_s, end_s
            yield Part(None, one.text, times, speaker=one.speaker, mended=self.mended)

    def cut(self, recording: Any, windows: Windows, whole_s: float) -> Iterator[Part]:
        """The parts of an input with audio, while it is read.

        Args:
            recording: The audio, a `Recording`.
            windows: How it is cut.
            whole_s: What lasts no longer, and has no segments, stays whole.

        Raises:
            ValueError: The transcript does not belong to the recording.
        """
        duration_s, transcript = recording.duration_s, self.transcript
        ends_s = math.inf if duration_s is None else duration_s
        begins = [] if transcript is None or self.in_segments else transcript.middles
        begins = [*begins, *(segment.start_s for segment in self.segments or [])]
        segments, odd = fitted(self.segments, begins, ends_s, windows.shortest_s)
        if transcript is not None and self.in_segments and segments != self.segments:
            transcript = Transcript([segment for segment in segments if segment.text is not None])
        mended = self.mended + odd
        if ends_s <= whole_s and self.segments is None:
            text = self.text if transcript is None else transcript.between(0, math.inf)
            part = Part.heard(recording.whole(windows.sampling_rate), recording.idle, text, None)
            yield part._replace(mended=mended)
            return
        if self.segments and duration_s is None:
            raise ValueError('A stream is cut into windows; "segments" need a whole recording.')
        untimed = self.text is not None and ends_s > windows.window_s
        if untimed:
            warn_once(
                f"A recording is cut into windows of {windows.window_s:g} s, but its transcript has no "
                'times: every window is given all of its words. "words" or "segments" say when each was '
                "said, or a `transcriber`."
            )
        for segment in segments or [TimedText(0.0, math.inf, None)]:
            end = None if segment.end_s == math.inf else segment.end_s
            source = recording
            if segment.channel is not None:
                if segment.channel not in range(len(recording.channels)):
                    raise ValueError(
                        f'A segment is on channel {segment.channel!r:.50}; give `channel="each"`, and a '
                        "recording that has it."
                    )
                source = recording.channels[segment.channel]
            for start_s, end_s, waveform in windows.cut(source, segment.start_s, end):
                speaker = segment.speaker or self._speaking(start_s, end_s)
                text = self.text
                if transcript is not None:
                    # Words behind the recording's end are the last window's.
                    is_last = ends_s - end_s < windows.shortest_s
                    text = transcript.between(
                        start_s, math.inf if is_last else end_s, segment.speaker
                    )
                times = start_s, end_s
                part = Part.heard(waveform, recording.idle, text, times, untimed, speaker)
                yield part._replace(mended=mended)

    def _speaking(self, start_s: float, end_s: float) -> str | None:
        """Who speaks for most of this time; None = nobody who is known."""
        seconds: dict[str, float] = {}
        for turn in self.turns:
            shared_s = min(end_s, turn.end_s) - max(start_s, turn.start_s)
            if turn.speaker is not None and shared_s > 0:
                seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + shared_s
        return max(seconds, key=seconds.__getitem__) if seconds else None


def clean_transcript(text: str | None) -> str | None:
    """NFKC-normalised transcript, None if absent or blank.

    DeBERTa-v3's tokenizer in transformers 5 does NFC only, where the original does NFKC.
    """
    if is_missing(text):
        return None
    if not isinstance(text, str):
        raise TypeError(f"The transcript is {type(text).__name__}; it must be a string, or None.")
    text.encode()  # raises on half a surrogate pair, which tokenizers do not name
    text = unicodedata.normalize("NFKC", spoken(text)).strip()
    # Zero-width and control characters, which str.strip leaves, are blank too.
    return text if any(map(str.isprintable, text.replace(" ", ""))) else None


def check_pair(processor: Any, waveform: np.ndarray | None, transcript: str | None) -> None:
    """Raises ValueError where there is neither audio nor text, or too little audio.

    Args:
        processor: Says how short the audio may be: `MTMMProcessor`, or the runtime's.
        waveform: (time,), at its `sampling_rate`.
        transcript: As `clean_transcript` gives it.
    """
    if waveform is None and transcript is None:
        raise ValueError("There is neither audio nor text; blank text is absent text.")
    least_s, rate = processor.min_duration_s, processor.sampling_rate
    if waveform is not None and len(waveform) < round(least_s * rate):
        lasts_s = len(waveform) / rate
        raise ValueError(f"The audio lasts {lasts_s:.4g} s; at least {least_s:.4g} s are needed.")


def parse_input(given: Any, sampling_rate: int | None = None) -> Given:
    """Take one input of the pipeline apart.

    Args:
        given: In any of the forms that `MTMMPipeline` names.
        sampling_rate: Rate of an array that comes without its own, Hz.

    Raises:
        ValueError: Unknown keys, a transcript in two forms, times that are none.
    """
    given = plain(given)
    if not isinstance(given, Mapping) or AUDIO_KEYS & set(given):
        return Given(given, sampling_rate)
    fields = dict(given)  # datasets gives rows whose values are made when they are asked for
    keys = set(fields)
    if not keys & UTTERANCE_KEYS or keys - UTTERANCE_KEYS - BESIDE_KEYS:
        told = f"{sorted(map(str, keys))!s:.200}"
        raise ValueError(f"An utterance has the keys {told}; give {INPUT_FORMS}.")
    fields = {name: value for name, value in fields.items() if not is_missing(value)}
    text = fields.get("text")
    if isinstance(text, str):
        text = spoken(text) if spoken(text).strip() else None
    words, odd_words = parse_timed("words", fields)
    segments, odd_segments = parse_timed("segments", fields)
    if text is not None and (words is not None or segments is not None):
        raise ValueError('An utterance has "text" and a transcript with times; give one.')
    audio, rate = plain(fields.get("audio")), fields.get("sampling_rate", sampling_rate)
    if words is not None and audio is None:
        raise ValueError('"words" have times in a recording, and there is none; give "text".')
    in_segments = words is None
    if words is None:  # what the segments say, if anything
        words = [segment for segment in segments or [] if segment.text is not None] or None
    transcript, speaker = None if words is None else Transcript(words), fields.get("speaker")
    named = speaker is not None and str(speaker).strip()
    # Who said each word, unless the segments say it.
    turns = [word for word in words or [] if word.speaker is not None] if segments is None else []
    mended = odd_words + odd_segments
    by = str(speaker) if named else None
    return Given(audio, rate, text, transcript, segments, by, turns, None, mended, in_segments)
