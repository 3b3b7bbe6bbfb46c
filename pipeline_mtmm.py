"""`pipeline(model=..., trust_remote_code=True)`: a recording and/or transcript to named numbers.

Uploaded to the Hub beside the weights.
"""

import io
import math
import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import pipeline
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

# Relative first: as remote code these are neighbours in a package; in a checkout they are top-level
# modules.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .explanation_mtmm import (
            FEATURES,
            Places,
            Word,
            _rank_correlation,
            _silenced,
            _without,
            _without_tokens,
        )
        from .timeline_mtmm import (
            TimedText,
            Transcript,
            _shares_of_time,
            _timed,
        )
except ImportError:
    from explanation_mtmm import (
        FEATURES,
        Places,
        Word,
        _rank_correlation,
        _silenced,
        _without,
        _without_tokens,
    )
    from timeline_mtmm import (
        TimedText,
        Transcript,
        _shares_of_time,
        _timed,
    )

logger = logging.get_logger(__name__)

WINDOW_S = (
    6.0  # unless `window_s` is given: a little more than a mean utterance of the training corpora
)
LOOK_AHEAD = 8  # batches that are read, and sorted by length, before the first of them is predicted
MOST_PADDED = 1.25  # longest ÷ shortest audio of a batch: at most a fifth of it is padding
# With layer norm these hear nothing of the padding that a mask hides; others were found to, or not tried.
DEAF_TO_PADDING = {"hubert", "wav2vec2", "wavlm", "unispeech-sat", "whisper"}
LATE_S = 1.0  # recognisers' times may lie so far behind the end of the audio
EXPLAINED_S = 0.5  # about as long are the stretches of time of an explanation, equal in a window
LEAST = 1e-300  # of a probability whose logarithm is taken

INPUT_FORMS = (
    "a path or URL, the bytes of an audio file, an array together with `sampling_rate`, "
    '{"array": waveform, "sampling_rate": Hz}, or {"audio": any of these, "text": transcript} with '
    'either key alone; a transcript with times is "words" or "segments"'
)
OPTIONS = ("sampling_rate", "window_s", "hop_s", "transcriber", "explain", "top_k", "progress")
AUDIO_KEYS = {"array", "raw", "bytes", "path"}  # a dict with one of these is audio
UTTERANCE_KEYS = ("audio", "text", "words", "segments")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout, also in the midst of a training, which then goes on as it was.

    A model that is being trained must not predict in several threads at once.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass
class NumberedInput:
    """One of several inputs, with its number, for messages."""

    number: int
    item: Any


class NumberedDataset(torch.utils.data.Dataset[Any]):
    """Any dataset, its utterances numbered and read one at a time."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> NumberedInput:
        return NumberedInput(index, self.items[index])


@dataclass
class Utterance:
    """One input, taken apart."""

    audio: Any = None
    sampling_rate: int | None = None
    text: str | None = None
    words: list[TimedText] | None = None
    segments: list[TimedText] | None = None

    def timed_text(self) -> "Transcript | None":
        """What was said when, by words or else by segments; None where no times are given."""
        if self.words is not None:
            return Transcript(self.words)
        said = [segment for segment in self.segments or [] if segment.text is not None]
        return Transcript(said) if said else None


@dataclass
class Stretch:
    """A whole input, or what lies between two times in it.

    Args:
        start_s, end_s: Seconds from the recording's beginning; None of a whole input.
        missing: Modalities that are not there.
        shown: What the result has beside the numbers: "text", "transcribed", "explanation".
    """

    start_s: float | None
    end_s: float | None
    missing: list[str]
    shown: dict[str, Any]


@dataclass
class Window:
    """What the model is given at once: tensors (1, ...), without those of a missing modality.

    `places` is None unless an explanation is asked for.
    """

    stretch: Stretch
    features: dict[str, Tensor]
    places: Places | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        """Samples or frames, and tokens; 0 of a missing modality."""
        masks = (self.features.get(mask) for _, mask in FEATURES.values())
        audio, text = (0 if mask is None else mask.shape[-1] for mask in masks)
        return audio, text


@dataclass
class Prediction:
    """The model's answer: a probability per emotion, a value per dimension."""

    stretch: Stretch
    probabilities: list[float]
    dimensions: list[float]


class MTMMPipeline(ChunkPipeline):
    """Emotion, scores and dimensions of utterances and long recordings, as plain Python numbers.

    Input: a path or http(s) URL, the bytes of an audio file, an array with `sampling_rate`,
    {"array": ..., "sampling_rate": ...}, audio as datasets gives it, decoded or not, or
    {"audio": any of these, "text": transcript} with either key alone; or a list, generator, dataset
    or pandas Series of these. Instead of "text", a transcript with times: "words", a list of
    {"text", "start", "end"} in seconds, or of {"text", "timestamp": (start, end)} as transformers'
    speech recognisers give it; or "segments", the same, which are then the units of the timeline
    (their text may be left out, or come from "words").

    Output, for each utterance: {"emotion": name, "scores": {name: probability, ...} from the highest
    to the lowest, one number for each dimension by its name on the scale of `config.dimension_range`,
    "missing": names of the modalities that were not there ("audio", "text"), "untrained": names of
    outputs that training never saw labels for, which are left out}. Where a `transcriber` wrote the
    transcript, also {"text": its words, "transcribed": True}.

    A recording that is longer than the model takes at once (`processor.longest_audio_s()`), or that
    comes with `window_s`, `hop_s` or "segments", also gets "timeline": for each window or segment
    {"start", "end" (seconds), "emotion", "scores", the dimensions, "missing", and "text", where there
    is a transcript: the words whose middle lies in it}. The numbers beside the timeline are its mean
    over time: every instant counts once, shared by the windows that overlap there; the emotion is the
    one with the highest mean probability, and a modality is missing that no window had. Files are
    read block by block, so memory does not grow with their length; URLs, bytes and arrays are held.

    With `explain`, each utterance, or each entry of its timeline (the mean over them has none), also
    gets "explanation": {"modalities": {"audio": share, "text": share}, "time": [{"start", "end"
    (seconds from the recording's beginning), "share"}, ...], "words": [{"text", "start_char",
    "end_char" (in the transcript; of "words", joined by spaces), "share"}, ...], "occlusion": {"of":
    the predicted emotion or the dimension, and again "modalities", "time", "words"}, "agreement":
    {"time", "words"}}.

    The first shares say what the bridge tokens read: their attention, carried to the modality of
    the values (`MTMMModel.bridge_contributions`), which is no proof that it mattered. Over time and
    words together they sum to 1; what the tokenizer's special tokens got is shared by the words in
    proportion. The two sets of bridge tokens count alike, so where both modalities are there each
    has a half.

    The shares under "occlusion" say what mattered: how far the emotion's log probability, or the
    dimension, falls when this one is left out of the same input and the rest stays; below 0, it
    rises. A modality is then absent, and a word's tokens are removed. A stretch becomes silent in
    what the encoder hears: 0, the mean of a normalised waveform, or the lowest value of a log-mel
    spectrum; the rest keeps its level. An absent modality has 0, and None stands where nothing would
    be left. "agreement" is Spearman's correlation between the shares and the sizes of the falls, None
    of fewer than 3 places.
    """

    # Of transformers' own types they are neither: the model's and the processor's classes are not
    # imported here.
    model: Any
    processor: Any
    _load_processor: Any = (
        None  # where it cannot be loaded, __init__ says more than transformers would
    )
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transcribers: dict[str, Any] = {}  # loaded, by repo id or folder
        if self.processor is None:
            raise ValueError(
                "MTMMPipeline needs the model's processor, and could load none. Save it beside the model "
                "with `processor.save_pretrained(folder)`, or give `processor=`; if there is one, "
                "`AutoProcessor.from_pretrained(folder, trust_remote_code=True)` says what is wrong with it."
            )

    def _sanitize_parameters(
        self, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise TypeError(f"MTMMPipeline has no options {unknown}; it has {', '.join(OPTIONS)}.")
        given = {name: value for name, value in options.items() if value is not None}
        top_k, transcriber = given.get("top_k"), given.get("transcriber")
        if top_k is not None:
            _require_count("top_k", top_k)
        for name in ("window_s", "hop_s"):
            _require_seconds(name, given.get(name, 1.0))
        if not (transcriber is None or callable(transcriber)) and not isinstance(
            transcriber, (str, os.PathLike)
        ):
            raise TypeError(
                f"`transcriber` is of type {type(transcriber).__name__}; it must be a speech recognition "
                "pipeline of transformers, its repo id or folder, or a function from "
                '{"raw": waveform, "sampling_rate": Hz} to {"text": transcript}.'
            )
        if isinstance(transcriber, str) and not transcriber.strip():
            raise ValueError(
                f"`transcriber={transcriber!r}` names no model; give the repo id or folder of a speech "
                "recogniser, or None for none."
            )
        self._check_explain(given.get("explain", False))
        after = {name: given.pop(name) for name in ("top_k",) if name in given}
        around = {name: given.pop(name) for name in ("progress",) if name in given}
        return given, around, after

    def _check_explain(self, explain: Any) -> None:
        config = self.model.config
        if explain is False:
            return
        if ("emotion" if explain is True else explain) not in config.trained_outputs:
            raise ValueError(
                f"`explain={explain!r}` is not allowed; it must be True, for the emotion, or the name of "
                f"an output that this model was trained for: {', '.join(config.trained_outputs) or 'none'}."
            )
        if not config.use_bridge_tokens:
            raise ValueError(
                f"`explain={explain!r}` reads the attention of bridge tokens, which this model was built "
                "without (`use_bridge_tokens=False` in its configuration); leave it out."
            )

    # Pipelines of transformers, its own too, narrow what the base class declares.
    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Predict.

        Args:
            inputs: One utterance or recording, or many; the forms are listed in the class's docstring.
            sampling_rate (`int`): Of arrays that come without their own, Hz.
            window_s (`float`): Cut recordings, short ones too, into windows of so many seconds. Not
                given: only recordings that are too long for the model, into windows of 6 s, or of as
                much as the model takes, if that is less.
            hop_s (`float`): How far a window begins after the one before, seconds; `window_s` if not
                given. The last window ends with the recording and is as long as the others.
            transcriber: Writes the transcript of every window whose input has none: a speech
                recognition pipeline of transformers, its repo id or folder, or a function from
                {"raw": waveform, "sampling_rate": Hz} to {"text": transcript}.
            explain (`bool` or `str`): Say what the answer came from: of the emotion (True), or of the
                dimension of this name. Takes one more forward pass for each word and each half second
                of audio, and three more, `batch_size` of them at a time.
            top_k (`int`): How many of the scores to return; all if not given.
            batch_size (`int`): Utterances or windows at a time, at most; 1 if not given. With more, 8
                batches are read ahead and sorted by length, and only audio of similar length shares
                one; results come in the order of the inputs.
            num_workers (`int`): Processes that read ahead; a generator is read by one at most.
            progress (`bool`): Show a bar of the inputs done; of a single recording, of its windows.

        Returns:
            A dict; for a list or Series a list of dicts; for a dataset or generator something to
            iterate over, which predicts as it goes.

        Raises:
            ValueError, TypeError, OSError: Input that cannot be read, named by its number where
                there are several; see `MTMMProcessor.__call__` and `MTMMProcessor.load_audio`.
        """
        inputs = _by_position(inputs)
        if isinstance(inputs, (list, tuple)):
            inputs = [NumberedInput(i, item) for i, item in enumerate(inputs)]
            if not inputs:
                return []
        elif _is_dataset(inputs):
            inputs = NumberedDataset(inputs)
        elif _is_many(inputs):
            inputs = (NumberedInput(i, item) for i, item in enumerate(inputs))
        return super().__call__(inputs, **kwargs)

    def stream(
        self, source: Any, sampling_rate: int | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Predict windows while the audio comes: each result follows its window's last sample.

        The delay is the window's length, 0.1 s of reading, and the time to compute one window.

        Args:
            source: An open binary file such as `sys.stdin.buffer`, with wav, or raw 16-bit
                little-endian mono samples at `sampling_rate`; an iterator of arrays, (time,) or
                (time, channels), at `sampling_rate`; or any single input that the pipeline takes.
            sampling_rate: Of raw samples and arrays, Hz.
            options: `window_s`, `hop_s`, `transcriber`, `explain`, `top_k`, as in `__call__`.

        Yields:
            What `__call__` gives as an entry of "timeline".

        Raises:
            As `__call__`.
        """
        options["sampling_rate"] = sampling_rate
        preprocess, _, postprocess = self._sanitize_parameters(**options)
        preprocess = self._preprocess_params | preprocess
        self._window_lengths(preprocess.get("window_s"), preprocess.get("hop_s"))
        for window in self.preprocess(source, **preprocess, live=True):
            (prediction,) = self._answers([window], 1)
            yield self._entry(prediction, **self._postprocess_params | postprocess)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterable[dict[str, Any]]:
        """Results in the order of the inputs; called by `__call__` of transformers."""
        _require_count("batch_size", batch_size)
        _require_count("num_workers", num_workers, least=0)
        self._window_lengths(preprocess_params.get("window_s"), preprocess_params.get("hop_s"))
        count = len(inputs) if hasattr(inputs, "__len__") else None
        if num_workers and preprocess_params.get("transcriber") is not None:
            raise ValueError(
                f"`num_workers={num_workers}` cannot be had with a `transcriber`, which runs where the "
                "model runs; leave one of them out."
            )
        if num_workers > 1 and count is None:
            logger.warning("A generator is read by one process: `num_workers` is 1 here.")
            num_workers = 1
        windows = DataLoader(
            _Windows(inputs, self.preprocess, preprocess_params),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            generator=torch.Generator(),  # leaves the caller's random numbers alone
        )
        progress = forward_params.get("progress", False)

        def predict() -> Iterator[dict[str, Any]]:
            bar = logging.tqdm(total=count if count != 1 else None, disable=not progress)
            return self._results(windows, batch_size, postprocess_params, bar, count == 1)

        return predict() if count is None else Results(predict, count)

    def _results(
        self,
        windows: Iterable[tuple[int, Window, bool] | Exception],
        batch_size: int,
        postprocess_params: dict[str, Any],
        bar: Any,
        bar_counts_windows: bool,
    ) -> Iterator[dict[str, Any]]:
        begun: dict[int, list[Prediction]] = {}  # by number of the input
        done: dict[int, dict[str, Any]] = {}
        number_out = 0
        for read in _portions(_raised(windows), batch_size * LOOK_AHEAD if batch_size > 1 else 1):
            predictions = self._answers([window for _, window, _ in read], batch_size)
            for (number, _, is_last), prediction in zip(read, predictions, strict=True):
                begun.setdefault(number, []).append(prediction)
                if is_last:
                    done[number] = self.postprocess(begun.pop(number), **postprocess_params)
                bar.update(bar_counts_windows or is_last)
            while number_out in done:  # several workers finish their inputs in any order
                yield done.pop(number_out)
                number_out += 1
        bar.close()

    # ---- one input to windows ----

    def preprocess(  # type: ignore[override]
        self,
        inputs: Any,
        sampling_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        transcriber: Any = None,
        explain: bool | str = False,
        live: bool = False,
    ) -> Iterator[Window]:
        utterance = self._split(inputs, sampling_rate)
        recording = self._open(utterance, live)
        words = utterance.timed_text()
        if utterance.text is not None or words is not None:
            transcriber = None
        if recording is None:
            yield from self._without_audio(utterance, explain)
            return
        end_s = recording.duration_s
        if words is not None and end_s is not None and words.last_s() > end_s + LATE_S:
            raise ValueError(
                f"The transcript has words at {words.last_s():g} s, and the recording lasts {end_s:.3f} s; "
                "its times must be seconds from the beginning of this recording."
            )
        asked = live or any(x is not None for x in (window_s, hop_s, utterance.segments))
        if not asked and end_s <= self.processor.longest_audio_s():
            window_s = end_s + 1
            ((_, _, waveform),) = self.processor.windows(recording, window_s, window_s)
            text = utterance.text if words is None else words.between(0, math.inf)
            yield self._window(waveform, text, transcriber=transcriber, explain=explain)
            return
        units = self._units(utterance, recording, window_s, hop_s)
        for start_s, stop_s, waveform in units:
            text = utterance.text
            if words is not None:
                at_end = end_s is not None and end_s - stop_s < self.processor.min_duration_s
                text = words.between(start_s, math.inf if at_end else stop_s)
            yield self._window(waveform, text, start_s, stop_s, transcriber, explain)

    def _units(
        self, utterance: Utterance, recording: Any, window_s: float | None, hop_s: float | None
    ) -> Iterator[tuple[float, float, np.ndarray]]:
        """The windows of a recording, or its segments, those that are too long cut into windows."""
        if utterance.segments is None:
            window_s, hop_s = self._window_lengths(window_s, hop_s)
            end_s = recording.duration_s
            if utterance.text is not None and (end_s is None or end_s > window_s):
                lasts = "has no known end" if end_s is None else f"lasts {end_s:.3f} s"
                raise ValueError(
                    f"The recording {lasts} and is cut into windows of {window_s:g} s, but its transcript "
                    'has no times. Give them ("words" or "segments" instead of "text"), a '
                    "`transcriber`, or the audio alone."
                )
            yield from self.processor.windows(recording, window_s, hop_s)
            return
        if recording.duration_s is None:
            raise ValueError('A stream is cut into windows; "segments" need a whole recording.')
        window_s, hop_s = self._window_lengths(
            self.processor.longest_audio_s() if window_s is None else window_s, hop_s
        )
        for segment in utterance.segments:
            yield from self.processor.windows(
                recording, window_s, hop_s, segment.start_s, segment.end_s
            )

    def _without_audio(self, utterance: Utterance, explain: bool | str) -> Iterator[Window]:
        if utterance.words is not None:
            raise ValueError(
                '"words" have times in a recording, and there is none; give "audio" too, or the words as '
                '"text".'
            )
        if utterance.segments is None:
            yield self._window(None, utterance.text, explain=explain)
        for segment in utterance.segments or []:
            times = segment.start_s, segment.end_s
            yield self._window(None, segment.text, *times, explain=explain)

    def _window_lengths(self, window_s: float | None, hop_s: float | None) -> tuple[float, float]:
        """Window and hop in seconds, checked against what the model takes."""
        shortest, longest = self.processor.min_duration_s, self.processor.longest_audio_s()
        window_s = min(WINDOW_S, longest) if window_s is None else window_s
        hop_s = window_s if hop_s is None else hop_s
        for name, value, most in (("window_s", window_s, longest), ("hop_s", hop_s, window_s)):
            if not shortest <= value <= most:
                raise ValueError(
                    f"`{name}={value!r}` is not allowed; it must be from {shortest:g} to {most:g} s."
                )
        return window_s, hop_s

    def _window(
        self,
        waveform: np.ndarray | None,
        text: str | None,
        start_s: float | None = None,
        end_s: float | None = None,
        transcriber: Any = None,
        explain: bool | str = False,
    ) -> Window:
        shown: dict[str, Any] = {}
        if transcriber is not None and waveform is not None:
            text = self._transcribe(transcriber, waveform)
            shown = {"text": text, "transcribed": True}
        elif start_s is not None and text:
            shown = {"text": text}
        try:
            features = self.processor(
                audio=[waveform], text=[text], sampling_rate=self.processor.sampling_rate
            )
        except ValueError as error:
            if start_s is None:
                raise
            raise ValueError(f"From {start_s:g} to {end_s:g} s: {error}") from error
        missing = [modality for modality, (key, _) in FEATURES.items() if key not in features]
        window = Window(Stretch(start_s, end_s, missing, shown), dict(features))
        if explain:
            of = "emotion" if explain is True else explain
            words = [] if "text" in missing else self._words(text or "", features["input_ids"])
            window.places = Places(of, *self._stretches(waveform, start_s or 0.0, features), words)
        return window

    def _stretches(
        self, waveform: np.ndarray | None, start_s: float, features: Mapping[str, Tensor]
    ) -> tuple[list[int], list[float]]:
        """Edges of equal stretches of time, in positions of the mask and in seconds."""
        if waveform is None:
            return [], []
        duration_s = len(waveform) / self.processor.sampling_rate
        count = max(round(duration_s / EXPLAINED_S), 1)
        positions = int(features["audio_attention_mask"].sum())  # a log-mel window has padding
        edges = np.linspace(0, positions, count + 1).round().astype(int)
        return edges.tolist(), (start_s + np.linspace(0, duration_s, count + 1)).tolist()

    def _words(self, text: str, input_ids: Tensor) -> list[Word]:
        """What white space separates; a word that the tokenizer has no token for is left out."""
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise ValueError(
                f"`explain` needs to know which characters each token stands for, and the tokenizer "
                f"{type(tokenizer).__name__} cannot say; give a model with a fast tokenizer."
            )
        read = unicodedata.normalize("NFKC", text).strip()  # as the processor does
        offsets = tokenizer(read, return_offsets_mapping=True)["offset_mapping"]
        assert len(offsets) == input_ids.shape[1], "the processor tokenizes in another way"
        found = list(re.finditer(r"\S+", text))
        # Normalising may change lengths, so the words' ends are looked up in what was read.
        ends = [len(unicodedata.normalize("NFKC", text[: w.end()]).lstrip()) for w in found]
        tokens: list[list[int]] = [[] for _ in found]
        for token, (start, end) in enumerate(offsets):
            if start < end <= ends[-1]:  # special tokens stand for no characters
                tokens[bisect_left(ends, end)].append(token)
        return [Word(w.group(), *w.span(), t) for w, t in zip(found, tokens, strict=True) if t]

    def _transcribe(self, transcriber: Any, waveform: np.ndarray) -> str:
        if isinstance(transcriber, (str, os.PathLike)):
            name = os.fspath(transcriber)
            if name not in self._transcribers:
                self._transcribers[name] = self._load_transcriber(name)
            transcriber = self._transcribers[name]
        said = transcriber({"raw": waveform, "sampling_rate": self.processor.sampling_rate})
        if not isinstance(said, Mapping) or not isinstance(said.get("text"), str):
            raise TypeError(f'The transcriber gave {said!r}; it must give {{"text": transcript}}.')
        return said["text"].strip()

    def _load_transcriber(self, name: str) -> Any:
        try:
            return pipeline(
                "automatic-speech-recognition",
                model=name,
                device=self.device,
                trust_remote_code=False,  # else a model with its own code asks at a prompt
            )
        except ValueError as error:
            raise ValueError(
                f"`transcriber={name!r}` cannot be loaded as a speech recogniser of transformers; give "
                f'another, or the pipeline itself, loaded with `pipeline("automatic-speech-recognition", '
                "...)` and, if you trust its own code, `trust_remote_code=True`. transformers says: "
                f"{' '.join(str(error).split())}"
            ) from error

    def _split(self, inputs: Any, sampling_rate: int | None) -> Utterance:
        """An utterance in any form, taken apart."""
        if not isinstance(inputs, Mapping) or AUDIO_KEYS & set(inputs):
            return Utterance(inputs, sampling_rate)
        inputs = dict(inputs)  # datasets gives rows whose values are made when they are asked for
        unknown = sorted(map(str, set(inputs) - {*UTTERANCE_KEYS, "sampling_rate"}))
        if unknown or not set(UTTERANCE_KEYS) & set(inputs):
            wrong = f"the unknown keys {unknown}" if unknown else f"only the keys {sorted(inputs)}"
            raise ValueError(f"An utterance has {wrong}; give {INPUT_FORMS}.")
        text = inputs.get("text")
        if isinstance(text, str) and not text.strip():
            text = None
        words, segments = _timed("words", inputs), _timed("segments", inputs)
        if text is not None and (words is not None or segments is not None):
            raise ValueError('An utterance has "text" and a transcript with times; give one.')
        rate = inputs.get("sampling_rate", sampling_rate)
        return Utterance(inputs.get("audio"), rate, text, words, segments)

    def _open(self, utterance: Utterance, live: bool) -> Any:
        """The recording of any form of audio, None if there is none."""
        audio, sampling_rate = utterance.audio, utterance.sampling_rate
        if audio is None:
            return None
        if live and (hasattr(audio, "read") or hasattr(audio, "__next__")):
            return self.processor.open_stream(audio, sampling_rate)
        if isinstance(audio, Mapping):
            audio = dict(audio)
            if "raw" in audio:
                audio = {"array" if key == "raw" else key: value for key, value in audio.items()}
            if "array" in audio or not AUDIO_KEYS & set(audio):
                return self.processor.open_recording({"sampling_rate": sampling_rate} | audio)
            audio = _undecoded(audio)
        known = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray, Tensor, list, tuple)
        # torchcodec's decoder, which datasets gives, has get_all_samples.
        if isinstance(audio, known) or hasattr(audio, "read") or hasattr(audio, "get_all_samples"):
            return self.processor.open_recording(audio, sampling_rate)
        raise TypeError(f"Audio of type {type(audio).__name__} cannot be read; give {INPUT_FORMS}.")

    # ---- windows through the model ----

    def _answers(self, windows: list[Window], batch_size: int) -> Iterator[Prediction]:
        """As `_predict`, explained where that is asked for."""
        for window, prediction in zip(windows, self._predict(windows, batch_size), strict=True):
            if window.places is not None:
                explanation = self._explain(window, window.places, prediction, batch_size)
                prediction.stretch.shown["explanation"] = explanation
            yield prediction

    def _predict(self, windows: list[Window], batch_size: int) -> Iterator[Prediction]:
        """The model's answers, in the order of the windows."""
        predictions: dict[int, Prediction] = {}
        for batch in self._batches(windows, batch_size):
            outputs = self.forward(self._collate([windows[i].features for i in batch]))
            if not all(output.isfinite().all() for output in outputs.values()):
                kind = str(self.model.dtype).removeprefix("torch.")
                remedy = "fetch the weights again"
                if kind != "float32":
                    remedy = f'load it with dtype="float32"; if that does not help, {remedy}'
                raise ValueError(
                    f"The model's outputs are not finite: its numbers overflow in {kind}, or its "
                    f"weights are damaged. If other inputs fail too, {remedy}."
                )
            # float64: the quotient by a small temperature may be beyond float32.
            logits = outputs["emotion_logits"].double() / self.model.config.temperature
            rows = zip(
                batch, logits.softmax(-1).tolist(), outputs["dimensions"].tolist(), strict=True
            )
            for i, probabilities, dimensions in rows:
                predictions[i] = Prediction(windows[i].stretch, probabilities, dimensions)
        return (predictions[i] for i in range(len(windows)))

    def _batches(self, windows: list[Window], batch_size: int) -> Iterator[list[int]]:
        """Numbers of windows of similar lengths, of which all or none have a modality.

        An acoustic encoder that hears padding in spite of a mask (by group norm, or by convolutions
        between its layers) gets batches of one length of audio.
        """
        audio_config = self.model.config.audio_config
        deaf = audio_config.model_type in DEAF_TO_PADDING
        deaf = deaf and getattr(audio_config, "feat_extract_norm", "layer") == "layer"
        stretch = MOST_PADDED if deaf else 1.0
        lengths = [window.lengths for window in windows]
        batch: list[int] = []
        for i in sorted(range(len(windows)), key=lambda i: (lengths[i][1] > 0, lengths[i])):
            if batch:
                (audio, tokens), (shortest, others) = lengths[i], lengths[batch[0]]
                alike = shortest <= audio <= stretch * shortest and (tokens > 0) == (others > 0)
                if len(batch) == batch_size or not alike:
                    yield batch
                    batch = []
            batch.append(i)
        if batch:
            yield batch

    def _collate(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {}
        for name in rows[0]:
            longest = max(row[name].shape[-1] for row in rows)
            fill = self.processor.tokenizer.pad_token_id if name == "input_ids" else 0
            batch[name] = torch.cat(
                [F.pad(row[name], (0, longest - row[name].shape[-1]), value=fill) for row in rows]
            )
        return batch

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Tensor], contributions: bool = False
    ) -> dict[str, Tensor]:
        with evaluating(self.model):
            if contributions:
                return self._contributions(model_inputs)
            output = self.model(**model_inputs, return_dict=True)
        return {"emotion_logits": output.emotion_logits, "dimensions": output.dimensions}

    # ---- explanations ----

    def _explain(
        self, window: Window, places: Places, prediction: Prediction, batch_size: int
    ) -> dict[str, Any]:
        """What the prediction came from; the class's docstring says what is in it."""
        read = self.forward(window.features, contributions=True)
        frames, tokens = (read[modality].double().numpy() for modality in FEATURES)
        heard = np.linspace(0, max(places.edges, default=1), len(frames) + 1)  # frames' edges
        time = np.diff(np.interp(places.edges, heard, np.append(0, frames.cumsum())))
        words = np.array([tokens[word.tokens].sum() for word in places.words])
        words *= tokens.sum() / max(words.sum(), LEAST)
        modalities, time_falls, word_falls = self._falls(window, places, prediction, batch_size)
        emotion = int(np.argmax(prediction.probabilities))
        of = self.model.config.id2label[emotion] if places.of == "emotion" else places.of
        shares = places.described(
            [frames.sum().item(), tokens.sum().item()], time.tolist(), words.tolist()
        )
        return shares | {
            "occlusion": {"of": of} | places.described(modalities, time_falls, word_falls),
            "agreement": {
                "time": _rank_correlation(time, time_falls),
                "words": _rank_correlation(words, word_falls),
            },
        }

    def _contributions(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of one window: what the bridge tokens read of each frame and of each token."""
        states: dict[str, Tensor] = {}
        if "input_values" in features:
            names = "acoustic_states", "acoustic_attention_mask"
            encoded = self.model.encode_audio(*(features[name] for name in FEATURES["audio"]))
            states |= zip(names, encoded, strict=True)
        if "input_ids" in features:
            names = "linguistic_states", "linguistic_attention_mask"
            encoded = self.model.encode_text(*(features[name] for name in FEATURES["text"]))
            states |= zip(names, encoded, strict=True)
        output = self.model(**states, output_attentions=True, return_dict=True)
        absent = torch.zeros(1, 1, dtype=torch.bool, device=output.fused_state.device)
        masks = [
            states.get(f"{kind}_attention_mask", absent) for kind in ("acoustic", "linguistic")
        ]
        shares = self.model.bridge_contributions(output, *masks)
        rows = zip(FEATURES, shares, masks, strict=True)
        return {modality: share[mask] for modality, share, mask in rows}

    def _falls(
        self, window: Window, places: Places, prediction: Prediction, batch_size: int
    ) -> tuple[list[float | None], list[float | None], list[float | None]]:
        """How far the explained output falls without each modality, stretch and word."""
        features, missing = window.features, window.stretch.missing
        rests = [] if missing else [_without(features, modality) for modality in FEATURES]
        rests += [_silenced(features, *edges) for edges in pairwise(places.edges)]
        rests += [_without_tokens(features, word.tokens) for word in places.words]
        emotion = int(np.argmax(prediction.probabilities))

        def level(prediction: Prediction) -> float:
            if places.of == "emotion":
                return math.log(max(prediction.probabilities[emotion], LEAST))
            return prediction.dimensions[self.model.config.dimension_names.index(places.of)]

        left = self._predict([Window(window.stretch, rest) for rest in rests if rest], batch_size)
        falls = [level(prediction) - level(next(left)) if rest else None for rest in rests]
        # Without the only modality nothing is left; without an absent one, everything.
        modalities = [0.0 if modality in missing else None for modality in FEATURES]
        if not missing:
            modalities, falls = falls[:2], falls[2:]
        stretches = max(len(places.edges) - 1, 0)
        return modalities, falls[:stretches], falls[stretches:]

    # ---- answers to plain numbers ----

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[Prediction], top_k: int | None = None
    ) -> dict[str, Any]:
        stretches = [prediction.stretch for prediction in model_outputs]
        config, shown = self.model.config, dict(stretches[0].shown)
        probabilities, dimensions = model_outputs[0].probabilities, model_outputs[0].dimensions
        if stretches[0].start_s is not None:
            weights = _shares_of_time([(s.start_s or 0.0, s.end_s or 0.0) for s in stretches])
            probabilities = (weights @ [p.probabilities for p in model_outputs]).tolist()
            dimensions = (weights @ [p.dimensions for p in model_outputs]).tolist()
            shown = {"timeline": [self._entry(prediction, top_k) for prediction in model_outputs]}
        missing = [m for m in ("audio", "text") if all(m in s.missing for s in stretches)]
        untrained = [name for name in config.output_names if name not in config.trained_outputs]
        named = self._named(probabilities, dimensions, top_k)
        return named | {"missing": missing, "untrained": untrained} | shown

    def _entry(self, prediction: Prediction, top_k: int | None = None) -> dict[str, Any]:
        """One entry of the timeline."""
        stretch = prediction.stretch
        named = self._named(prediction.probabilities, prediction.dimensions, top_k)
        times = {"start": stretch.start_s, "end": stretch.end_s}
        return times | named | {"missing": stretch.missing} | stretch.shown

    def _named(
        self, probabilities: list[float], dimensions: list[float], top_k: int | None
    ) -> dict[str, Any]:
        """The outputs that were trained, by name."""
        config = self.model.config
        named: dict[str, Any] = {}
        if "emotion" in config.trained_outputs:
            scores = {config.id2label[i]: share for i, share in enumerate(probabilities)}
            ranked = sorted(scores.items(), key=lambda item: -item[1])
            named = {"emotion": ranked[0][0], "scores": dict(ranked[:top_k])}
        values = zip(config.dimension_names, dimensions, strict=True)
        return named | {name: value for name, value in values if name in config.trained_outputs}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save model and processor: the folder loads as a pipeline again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


@dataclass
class Results:
    """Results of a list or dataset; every pass over them predicts again."""

    predict: Callable[[], Iterator[dict[str, Any]]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.predict()


class _Windows(IterableDataset[Any]):
    """The windows of all inputs, each with its input's number, and whether it is that one's last.

    What is wrong with an input is the last item: raised here, a worker would wrap it in its traceback.
    """

    def __init__(
        self, inputs: Any, cut: Callable[..., Iterator[Window]], options: dict[str, Any]
    ) -> None:
        self.inputs, self.cut, self.options = inputs, cut, options

    def __iter__(self) -> Iterator[tuple[int, Window, bool] | Exception]:
        for number, item in self._share():
            numbered = isinstance(item, NumberedInput)
            try:
                windows = self.cut(item.item if numbered else item, **self.options)
                ends: Iterable[tuple[Any, Any]] = pairwise(chain(windows, [None]))
                for window, following in ends:
                    yield number, window, following is None
            except (ValueError, TypeError, OSError) as error:
                yield _numbered(error, number) if numbered else error
                return

    def _share(self) -> Iterator[tuple[int, Any]]:
        """This worker's inputs: every so many-th, where they can be had by number."""
        if not hasattr(self.inputs, "__len__"):
            yield from enumerate(self.inputs)
            return
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, len(self.inputs), step):
            yield number, self.inputs[number]


def _numbered(error: Exception, number: int) -> Exception:
    kinds = (FileNotFoundError, OSError, TypeError, ValueError)
    named = next(kind for kind in kinds if isinstance(error, kind))(f"Input {number}: {error}")
    named.__cause__ = error
    return named


def _raised(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def _portions(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many; what came before an error comes before the error."""
    portion: list[Any] = []
    try:
        for item in items:
            portion.append(item)
            if len(portion) == size:
                yield portion
                portion = []
    except Exception:
        yield portion
        raise
    yield portion


def _require_count(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(
            f"`{name}={value!r}` is not allowed; it must be a whole number of at least {least}."
        )


def _require_seconds(name: str, value: Any) -> None:
    try:
        allowed = not isinstance(value, bool) and isinstance(value, Real)
        allowed = allowed and 0 < float(value) < math.inf
    except OverflowError:  # a whole number of more digits than a float has
        allowed = False
    if not allowed:
        raise ValueError(f"`{name}={value!r}` is not allowed; it must be seconds, more than 0.")


def _as_it_is(item: Any) -> Any:
    return item


def _by_position(inputs: Any) -> Any:
    """The values of a pandas Series, in their order: its own [] goes by label."""
    if not hasattr(type(inputs), "iloc"):
        return inputs
    if inputs.ndim != 1:
        raise TypeError(
            "The inputs are a DataFrame; give one column of it, or its rows with the keys that an "
            'utterance has: `frame[["audio", "text"]].to_dict("records")`.'
        )
    return inputs.tolist()


def _is_dataset(inputs: Any) -> bool:
    """Has a length and items by number: a dataset of torch or datasets, a column of one."""
    return _is_many(inputs) and hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")


def _is_many(inputs: Any) -> bool:
    one = (str, bytes, bytearray, memoryview, Mapping, np.ndarray, Tensor)
    iterable = hasattr(inputs, "__iter__") or isinstance(inputs, torch.utils.data.Dataset)
    return iterable and not isinstance(inputs, one) and not hasattr(inputs, "read")


def _undecoded(audio: dict[str, Any]) -> Any:
    """The file that datasets gives undecoded: {"bytes": ..., "path": ...}, either of them None."""
    unknown = sorted(set(audio) - {"bytes", "path", "sampling_rate"})
    data, path = audio.get("bytes"), audio.get("path")
    if unknown or (data is None and path is None):
        wrong = f"the unknown keys {unknown}" if unknown else "neither bytes nor a path"
        raise ValueError(
            f'An audio dict has {wrong}; give {{"bytes": contents of a file}} or {{"path": path}}.'
        )
    if data is None:
        return path
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            f'An audio dict has "bytes" of type {type(data).__name__}; give the contents of a file, '
            'read in mode "rb".'
        )
    file = io.BytesIO(data)
    file.name = path or f"{len(data)} bytes"  # for messages
    return file


__all__ = ["MTMMPipeline"]
