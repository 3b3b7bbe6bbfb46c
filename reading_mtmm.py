"""The pipeline's part that reads inputs, cuts them into windows, and makes tensors of them.

Uploaded to the Hub beside the weights.
"""

import io
import math
import os
import wave
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch.multiprocessing import get_start_method
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import pipeline
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

# Relative first, as in pipeline_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .answers_mtmm import Span
        from .audio_mtmm import Recording, numbered
        from .batching_mtmm import portions
        from .explanation_mtmm import FEATURES, Features, Places
        from .speakers_mtmm import cut_input, read_input
        from .timeline_mtmm import Inputs, Part, Windows
        from .transcript_mtmm import spoken
        from .waveforms_mtmm import Channels, as_array, check_rate, mix, refuse
except ImportError:
    from answers_mtmm import Span
    from audio_mtmm import Recording, numbered
    from batching_mtmm import portions
    from explanation_mtmm import FEATURES, Features, Places
    from speakers_mtmm import cut_input, read_input
    from timeline_mtmm import Inputs, Part, Windows
    from transcript_mtmm import spoken
    from waveforms_mtmm import Channels, as_array, check_rate, mix, refuse

logger = logging.get_logger(__name__)
LIVE_BLOCK_S = 0.1  # nobody waits longer for a block than this
LOOK_AHEAD = 8  # batches that are read, and sorted by length, before the first of them is predicted


@dataclass
class Window:
    """What the model is given at once: tensors (1, ...), without those of a missing modality.

    Args:
        span: Where it lies in the input.
        features: The tensors; empty where the audio has no signal and there is no text.
        places: What an explanation looks at; None unless one is asked for.
        seconds: Length of its audio.
        speaker: Who speaks, where the input says so.
        index: The input's number among several; None of the only one.
        is_last: Whether it is the input's last.
    """

    span: Span
    features: Features
    places: Places | None = None
    seconds: float = 0.0
    speaker: str | None = None
    index: int | None = None
    is_last: bool = True


class Read(IterableDataset[Any]):
    """The windows of inputs, in order; what is wrong with one is the last item.

    Raised here, a worker process would wrap the error in its traceback. Of several workers each reads
    its share of the inputs, and gives the windows of one as a list: so they come in order.
    """

    def __init__(self, inputs: Any, preprocess: Callable[[Any], Iterator[Window]]) -> None:
        self.inputs, self.preprocess = inputs, preprocess

    def __iter__(self) -> Iterator[Window | Exception | list[Window]]:
        worker = get_worker_info()
        if worker is None or worker.num_workers == 1:
            yield from self._read(enumerate(self.inputs))
            return
        for one in islice(enumerate(self.inputs), worker.id, None, worker.num_workers):
            windows = list(self._read([one]))
            error = windows[-1] if windows and isinstance(windows[-1], Exception) else None
            yield error or [window for window in windows if isinstance(window, Window)]

    def _read(self, inputs: Iterable[tuple[int, Any]]) -> Iterator[Window | Exception]:
        for number, given in inputs:
            index = number if isinstance(self.inputs, Inputs) else None
            try:
                with numbered(index):
                    windows: Iterable[Any] = chain(self.preprocess(given), [None])
                    for window, following in pairwise(windows):
                        window.index, window.is_last = index, following is None
                        yield window
            except (ValueError, TypeError, OSError) as error:
                yield error
                return


class ReadingPipeline(ChunkPipeline):
    """The part of [`MTMMPipeline`] that turns inputs into windows."""

    model: Any
    processor: Any
    _transcribers: dict[str, Any]  # loaded, by repo id or folder

    def _portions(
        self, inputs: Any, options: dict[str, Any], batch_size: int, num_workers: int
    ) -> Iterator[list[Window]]:
        """The windows of inputs, so many as are sorted by length at a time."""
        windows: Any = Read(inputs, self._reader(options))
        if (
            num_workers and get_start_method() != "fork"
        ):  # the model and the inputs would be pickled
            logger.warning_once("`num_workers` needs processes that begin by fork; this one reads.")
            num_workers = 0
        if num_workers and "transcriber" not in options:
            # Its own generator leaves the caller's random numbers alone.
            alone = torch.Generator()
            loader = DataLoader(windows, batch_size=None, num_workers=num_workers, generator=alone)
            windows = (one for item in loader for one in (item if type(item) is list else [item]))
        return portions(windows, batch_size * LOOK_AHEAD if batch_size > 1 else 1)

    def _reader(self, options: dict[str, Any]) -> Callable[[Any], Iterator[Window]]:
        """`preprocess` with these options; those of windows are checked before anything is read."""
        Windows.of(self.processor, options.get("window_s"), options.get("hop_s"))
        return partial(self.preprocess, **options)

    def preprocess(  # type: ignore[override]
        self,
        inputs: Any,
        sampling_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        transcriber: Any = None,
        explain: bool | str = False,
        explain_s: tuple[float, float] = (0.0, math.inf),
        live: bool = False,
        by: str | None = None,
        channel: str | int | None = None,
    ) -> Iterator[Window]:
        given, opened = read_input(inputs, sampling_rate, by, channel)
        if given.text is not None or given.transcript is not None:
            transcriber = None
        is_stream = live and (hasattr(given.audio, "read") or hasattr(given.audio, "__next__"))
        if opened is None and is_stream:
            opened = open_stream(given.audio, given.sampling_rate, given.channel)
        for part in cut_input(given, opened, self.processor, window_s, hop_s, by, live):
            heard = None if given.audio is None else part.times
            start_s, end_s = heard or explain_s
            asked = start_s < explain_s[1] and end_s > explain_s[0]
            if explain and heard and explain_s[1] == math.inf:
                logger.warning_once(
                    "`explain` takes a run of the model for every half second and word of every "
                    "window of a recording; `explain_s=(start, end)` names the seconds to explain."
                )
            window = self._window(part, transcriber, explain if asked else False)
            window.speaker = part.speaker or given.speaker
            yield window

    def _window(self, part: Part, transcriber: Any, explain: bool | str) -> Window:
        waveform, text = part.waveform, part.text
        transcribed = False
        if transcriber is not None and waveform is not None:
            text, transcribed = self._transcribe(transcriber, waveform), True
        if part.silent and (text is None or not text.strip()):
            return Window(Span.of(part, [*FEATURES]), {})
        tensors = self.processor.tensors([waveform], [text])
        features = {name: torch.from_numpy(array) for name, array in tensors.items()}
        missing = [modality for modality, (key, _) in FEATURES.items() if key not in features]
        known = self.model.get_input_embeddings().num_embeddings
        if "text" not in missing and features["input_ids"].max() >= known:
            raise ValueError("The tokenizer has tokens that the model lacks; give its processor.")
        seconds = 0.0 if waveform is None else len(waveform) / self.processor.sampling_rate
        span = Span.of(part, missing)
        if transcribed:
            span.shown |= {"text": text, "transcribed": True}
        window = Window(span, features, seconds=seconds)
        if explain:
            heard = None if waveform is None else part.times or (0.0, seconds)
            of = "emotion" if explain is True else explain
            window.places = Places.find(of, features, heard, text or "", self.processor.tokenizer)
        return window

    def _transcribe(self, transcriber: Any, waveform: np.ndarray) -> str:
        if isinstance(transcriber, (str, os.PathLike)):
            name = os.fspath(transcriber)
            if name not in self._transcribers:
                self._transcribers[name] = pipeline(
                    "automatic-speech-recognition",
                    model=name,
                    device=self.device,
                    trust_remote_code=False,  # else a model with its own code asks at a prompt
                )
            transcriber = self._transcribers[name]
        said = transcriber({"raw": waveform, "sampling_rate": self.processor.sampling_rate})
        return spoken(said["text"]).strip()


# ---- streams of audio, heard while they come -----------------------------------------------------


def open_stream(
    source: Any, sampling_rate: int | None = None, channel: int | None = None
) -> Recording:
    """A stream of audio that is heard while it comes; it can be read once.

    Args:
        source: An open binary file, such as `sys.stdin.buffer`: wav, or with `sampling_rate` raw
            16-bit little-endian mono samples. Or an iterator of arrays, (time,) or
            (time, channels), at `sampling_rate`.
        sampling_rate: Hz; of a wav stream None, it says so itself.
        channel: As of `open_recording`.

    Raises:
        ValueError: No wav; what is wrong later in the stream, when it is read.
    """
    if isinstance(source, io.RawIOBase):
        source = io.BufferedReader(source)  # reads as much as is asked for
    if not hasattr(source, "read"):
        rate, chunks = check_rate(sampling_rate), source
    elif sampling_rate is not None:
        rate = check_rate(sampling_rate)
        chunks = _raw_chunks(source, rate)
    else:
        try:
            file = wave.Wave_read(source)
        except (wave.Error, EOFError) as error:
            reason = str(error) or "it is empty"
            raise ValueError(f"The stream is no wav of integer samples ({reason}).") from error
        rate = check_rate(file.getframerate())
        chunks = _wav_chunks(file)
    return Recording(rate, None, lambda first, stop: _stream_blocks(chunks, rate, channel))


def _stream_blocks(chunks: Iterable[Any], rate: int, channel: int | None) -> Iterator[np.ndarray]:
    start, channels = 0, Channels("The stream", channel)
    for chunk in chunks:
        array = as_array(chunk)
        if array.size:
            known = channels.add([array]) if array.ndim == 2 else Channels(only=channel)
            yield mix(array, known, f"The stream, from {start / rate:g} s on: ")
        start += len(array)


def _raw_chunks(file: BinaryIO, rate: int) -> Iterator[np.ndarray]:
    """16-bit little-endian mono samples."""
    while data := file.read(2 * round(LIVE_BLOCK_S * rate)):
        refuse({"The stream is wav, which has its own `sampling_rate`": data.startswith(b"RIFF")})
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2")


def _wav_chunks(file: wave.Wave_read) -> Iterator[np.ndarray]:
    width, channels = file.getsampwidth(), file.getnchannels()
    while data := file.readframes(round(LIVE_BLOCK_S * file.getframerate())):
        data = data[: len(data) // (width * channels) * width * channels]  # whole frames
        if width == 3:  # NumPy has no 24-bit integers: shifted up, they are 32-bit ones
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data = padded.tobytes()
        kind = {1: "u1", 2: "<i2", 3: "<i4", 4: "<i4"}[width]
        yield np.frombuffer(data, kind).reshape(-1, channels)
