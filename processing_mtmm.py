"""Waveform and/or transcript to tensors, and the one place that decodes audio files.

Uploaded to the Hub beside the weights. soundfile (decoding) and soxr (resampling) are optional here:
without them whatever does not need them still works, and the rest says what to install.
"""

import os
import unicodedata
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
)
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

# Relative first: as remote code these are neighbours in a package; in a checkout they are top-level
# modules.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .audio_mtmm import (
            Audio,
            Recording,
            Source,
            _array_and_rate,
            _array_blocks,
            _Bytes,
            _check_end,
            _check_rate,
            _check_stretch,
            _cut,
            _cut_off,
            _file_recording,
            _open_source,
            _raw_blocks,
            _resampled,
            _sample_at,
            _seek,
            _sound_file,
            _wav_blocks,
            read_blocks,
            resample,
            to_mono,
        )
except ImportError:
    from audio_mtmm import (
        Audio,
        Recording,
        Source,
        _array_and_rate,
        _array_blocks,
        _Bytes,
        _check_end,
        _check_rate,
        _check_stretch,
        _cut,
        _cut_off,
        _file_recording,
        _open_source,
        _raw_blocks,
        _resampled,
        _sample_at,
        _seek,
        _sound_file,
        _wav_blocks,
        read_blocks,
        resample,
        to_mono,
    )
LONGEST_WAVEFORM_S = 40.0  # IEMOCAP's longest utterance lasts 34 s
# Options of feature extractors that the processor decides: it pads, and never cuts, audio.
LENGTH_OPTIONS = ("max_length", "padding", "truncation")


class MTMMProcessorKwargs(ProcessingKwargs, total=False):
    """Options by modality: `text_kwargs` go to the tokenizer, `audio_kwargs` to the feature extractor."""


class MTMMProcessor(ProcessorMixin):
    """One or several utterances, audio and/or transcript, to one batch of tensors.

    Args:
        feature_extractor: Of the acoustic encoder.
        tokenizer: Of the linguistic encoder.
        min_duration_s (`float`): Shortest audio, seconds: the acoustic encoder's receptive field.
        max_duration_s (`float`): Longest audio, seconds. A log-mel encoder's window bounds it too.
        max_tokens (`int`): Longest transcript in tokens, special tokens included.
    """

    valid_processor_kwargs = MTMMProcessorKwargs

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        min_duration_s: float = 0.025,
        max_duration_s: float = LONGEST_WAVEFORM_S,
        max_tokens: int = 512,
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        feature_extractor.padding_side = "right"  # the model's masks have real positions first
        self.min_duration_s = min_duration_s
        self.max_duration_s = max_duration_s
        self.max_tokens = max_tokens

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "MTMMProcessor":
        """Load a saved processor; as `ProcessorMixin.from_pretrained`.

        This class is at hand already, so the folder's own code is not asked for.
        """
        kwargs.setdefault("trust_remote_code", False)
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_encoders_pretrained(cls, audio: str, text: str, **options: Any) -> "MTMMProcessor":
        """The processor that belongs to two pretrained encoders.

        Args:
            audio: Folder or Hub id of the acoustic encoder, with its feature extractor.
            text: Folder or Hub id of the linguistic encoder, with its tokenizer.
            options: Any of `min_duration_s`, `max_duration_s`, `max_tokens`.
        """
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio)
        tokenizer = AutoTokenizer.from_pretrained(text)
        audio_config, text_config = (
            AutoConfig.from_pretrained(audio),
            AutoConfig.from_pretrained(text),
        )
        if hasattr(audio_config, "conv_kernel"):
            options.setdefault(
                "min_duration_s", receptive_field(audio_config) / feature_extractor.sampling_rate
            )
        options.setdefault("max_tokens", _max_tokens(tokenizer, text_config))
        return cls(feature_extractor, tokenizer, **options)

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the acoustic encoder hears."""
        return self.feature_extractor.sampling_rate

    @property
    def model_input_names(self) -> list[str]:
        return ["input_values", "audio_attention_mask", "input_ids", "attention_mask"]

    def longest_audio_s(self) -> float:
        """Longest audio that is accepted, seconds: `max_duration_s` or a log-mel encoder's window."""
        window = getattr(self.feature_extractor, "n_samples", None)
        return min(self.max_duration_s, window / self.sampling_rate if window else np.inf)

    def __call__(
        self,
        audio: Audio | Sequence[Audio | None] | None = None,
        text: str | Sequence[str | None] | None = None,
        **kwargs: Any,  # as in MTMMProcessorKwargs, or flat, which it cannot name
    ) -> BatchFeature:
        """Tensors for [`MTMMModel`].

        Args:
            audio: One waveform or a list of them; None, in the list too, is absent audio. A waveform
                is an array (time,), or (time, channels) or (channels, time), whose channels are
                averaged; of floats in −1 to 1, or of 8-, 16- or 32-bit integers, which are scaled;
                or a dict {"array": ..., "sampling_rate": ...}; or a decoder as datasets gives it.
            text: One transcript or a list of them; None, in the list too, and blank text are absent
                text. NFKC-normalised.
            kwargs: `sampling_rate` of arrays, 1000 to 1,000,000 Hz; `text_kwargs`, `audio_kwargs` for
                the tokenizer and the feature extractor; `return_tensors` ("pt" unless given). `padding`,
                `truncation` and `max_length` are the tokenizer's alone: audio is padded here and never
                cut.

        Returns:
            `input_values` (batch, time), or (batch, mels, frames) of log-mel encoders,
            `audio_attention_mask` over its last axis, `input_ids` and `attention_mask`
            (batch, tokens). The pair of a modality that the whole batch lacks is left out; the rows
            of one that an utterance lacks are zero in the mask.

        Raises:
            ValueError: Nothing given; lists of different lengths; an utterance without audio and
                text; audio that is empty, too short, too long, not finite, of unknown scale or rate;
                a transcript with too many tokens.
            TypeError: Something that is neither a waveform nor a transcript.
        """
        _refuse_length_options(kwargs.get("audio_kwargs") or {})
        options: dict[str, Any] = self._merge_kwargs(MTMMProcessorKwargs, **kwargs)  # type: ignore[arg-type]  # takes the class
        rate = options["audio_kwargs"].pop("sampling_rate", None)
        return_tensors = options["text_kwargs"].pop("return_tensors", None) or "pt"
        for name in ("return_tensors", "return_attention_mask", *LENGTH_OPTIONS):
            options["audio_kwargs"].pop(name, None)
        waveforms = _check_each(_as_audio_list(audio), self._waveform, rate)
        transcripts = _check_each(_as_text_list(text), _transcript)
        _check_pairs(waveforms, transcripts)
        data: dict[str, Any] = {}
        if any(waveform is not None for waveform in waveforms):
            data |= self._audio_tensors(waveforms, options["audio_kwargs"])
        if any(transcript is not None for transcript in transcripts):
            data |= self._text_tensors(transcripts, options["text_kwargs"])
        return BatchFeature(data, tensor_type=return_tensors)

    def _waveform(self, audio: Audio | None, sampling_rate: int | None) -> np.ndarray | None:
        """One waveform, mono, float32, at the encoder's rate, of a length it can take."""
        if audio is None:
            return None
        array, sampling_rate = _array_and_rate(audio, sampling_rate)
        waveform = to_mono(array)
        sampling_rate = self._check_rate(sampling_rate)
        duration_s = len(waveform) / sampling_rate  # before resampling, which may take long
        if duration_s < self.min_duration_s:
            raise ValueError(
                f"the audio lasts {duration_s:.4g} s ({len(waveform)} samples at {sampling_rate} Hz); the "
                f"acoustic encoder needs at least {self.min_duration_s:.4g} s. Leave it out, or give its "
                "transcript alone."
            )
        if duration_s > self.longest_audio_s():
            raise ValueError(
                f"the audio lasts {duration_s:.4g} s ({len(waveform)} samples at {sampling_rate} Hz); at "
                f"most {self.longest_audio_s():.4g} s are taken at once. Cut it into utterances."
            )
        return resample(waveform, sampling_rate, self.sampling_rate)

    def _check_rate(self, sampling_rate: Any) -> int:
        if sampling_rate is None:
            raise ValueError(
                f"`sampling_rate` is missing; give the samples a second of the audio, for example "
                f"`sampling_rate={self.sampling_rate}`."
            )
        return _check_rate(sampling_rate)

    def _audio_tensors(
        self, waveforms: list[np.ndarray | None], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Features of the waveforms that are there, zeros for the others."""
        present = [waveform for waveform in waveforms if waveform is not None]
        log_mel = self.feature_extractor.model_input_names[0] == "input_features"
        # A log-mel encoder takes its whole window only.
        padding = {"padding": "max_length", "pad_to_multiple_of": None} if log_mel else {}
        features = self.feature_extractor(
            present,
            sampling_rate=self.sampling_rate,
            return_attention_mask=True,
            return_tensors="np",
            **({"padding": "longest", "truncation": False} | options | padding),
        )
        values = features[self.feature_extractor.model_input_names[0]]
        rows = [i for i, waveform in enumerate(waveforms) if waveform is not None]
        input_values = np.zeros((len(waveforms), *values.shape[1:]), dtype=np.float32)
        mask = np.zeros((len(waveforms), values.shape[-1]), dtype=np.int64)
        input_values[rows] = values
        mask[rows] = features["attention_mask"]
        return {"input_values": input_values, "audio_attention_mask": mask}

    def _text_tensors(
        self, transcripts: list[str | None], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Token ids of the transcripts that are there, padding for the others."""
        rows = [i for i, transcript in enumerate(transcripts) if transcript is not None]
        ours = {
            "padding_side": "right",
            "return_attention_mask": True,
            "return_token_type_ids": False,
            "return_tensors": "np",
        }
        options = {"padding": True, "truncation": False} | options | ours
        tokens = self.tokenizer([transcripts[i] for i in rows], **options)
        for i, length in zip(rows, tokens["attention_mask"].sum(-1), strict=True):
            if length > self.max_tokens:
                message = (
                    f"the transcript has {length} tokens; at most {self.max_tokens} are taken at once. "
                    "Cut it into utterances."
                )
                raise ValueError(_name_utterance(i, len(transcripts), message))
        shape = (len(transcripts), tokens["input_ids"].shape[1])
        input_ids = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        input_ids[rows], mask[rows] = tokens["input_ids"], tokens["attention_mask"]
        return {"input_ids": input_ids, "attention_mask": mask}

    @staticmethod
    def load_audio(
        source: Source,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> tuple[np.ndarray, int]:
        """Decode a recording with soundfile: wav, flac, ogg, mp3 and what else libsndfile reads.

        Args:
            source: A path, an http(s) URL, the bytes of a file, or an open binary file, which is
                read from where it stands. One recording: of mp3 or flac files that were joined end
                to end byte by byte, only the first is heard; joined Ogg files are refused.
            start_s, end_s: The stretch to read, seconds from the beginning; None = from the
                beginning, to the end. A stretch that goes past the end stops there. Kinds of files
                that can only be read from their beginning (GSM 6.10) have no later stretches.

        Returns:
            The waveform, float32, (time,) or (time, channels), and its sampling rate in Hz.

        Raises:
            ImportError: soundfile is not installed.
            FileNotFoundError: No file at this path.
            OSError: A URL that does not answer.
            ValueError: The file cannot be decoded, ends early, or has no audio in this stretch.
            TypeError: No source of audio.
        """
        _check_stretch(start_s, end_s)
        name, source = _open_source(source)
        with _sound_file(name, source) as (file, opened):
            rate, frames = file.samplerate, file.frames
            start = _sample_at(start_s or 0, rate)
            stop = frames if end_s is None else min(_sample_at(end_s, rate), frames)
            waveform = None
            if start < stop:
                _seek(name, file, start)
                waveform = file.read(stop - start, dtype="float32")
            if stop == frames:
                _check_end(name, file, opened)
        if waveform is not None and len(waveform) < stop - start:
            raise _cut_off(name, (start + len(waveform)) / rate)
        if waveform is None:
            raise ValueError(
                f"{name} has no audio from {start_s or 0} s to "
                f"{'its end' if end_s is None else f'{end_s} s'}: it lasts {frames / rate:.3f} s. Give "
                "another stretch, or leave it out."
            )
        return waveform, rate

    def open_recording(self, audio: Any, sampling_rate: int | None = None) -> Recording:
        """A recording of any length, to be read block by block.

        A file is read from its path as it goes. The bytes of a URL, of an open file, or given as such
        stay in memory as they are encoded; so does an array.

        Args:
            audio: What `load_audio` or `__call__` takes as one recording.
            sampling_rate: Of an array without its own, Hz.

        Raises:
            As `load_audio` and `__call__`; what is wrong inside a file, when it is read.
        """
        if isinstance(audio, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(
            audio, "read"
        ):
            return _file_recording(audio)
        (recording,) = _check_each([audio], self._array_recording, sampling_rate)
        return recording

    def _array_recording(self, audio: Any, sampling_rate: int | None) -> Recording:
        array, sampling_rate = _array_and_rate(audio, sampling_rate)
        waveform, rate = to_mono(array), self._check_rate(sampling_rate)
        return Recording(
            rate, len(waveform) / rate, lambda first, stop: iter([waveform[first:stop]])
        )

    def open_stream(self, source: Any, sampling_rate: int | None = None) -> Recording:
        """A stream of audio that is heard while it comes; it can be read once.

        Args:
            source: An open binary file, such as `sys.stdin.buffer`: wav, or with `sampling_rate` raw
                16-bit little-endian mono samples. Or an iterator of arrays, (time,) or
                (time, channels), at `sampling_rate`.
            sampling_rate: Hz; of a wav stream None, it says so itself.

        Raises:
            ValueError, TypeError: No such stream; what is wrong later in it, when it is read.
        """
        if not hasattr(source, "read"):
            rate = self._check_rate(sampling_rate)
            return Recording(rate, None, lambda first, stop: _array_blocks(source, rate))
        if sampling_rate is not None:
            rate = _check_rate(sampling_rate)
            return Recording(rate, None, lambda first, stop: _raw_blocks(_Bytes(source), rate))
        try:
            file = wave.Wave_read(_Bytes(source))  # type: ignore[arg-type]  # reads, and no more
        except (wave.Error, EOFError) as error:
            reason = str(error) or "it is empty"
            if reason == "unknown format: 65534":  # 0xFFFE, WAVE_FORMAT_EXTENSIBLE
                reason = "it has the extensible header, which Python reads from 3.12 on"
            raise ValueError(
                f"The stream is no wav that can be read while it comes ({reason}); send wav with integer "
                "samples and the plain header (ffmpeg writes it with `-c:a pcm_s16le -ac 1`), or raw "
                "16-bit mono samples and their `sampling_rate`. Other files are given by their path."
            ) from error
        if file.getsampwidth() > 4:
            raise ValueError(
                f"The stream is a wav of {8 * file.getsampwidth()} bits a sample; send 8, 16, 24 or 32."
            )
        rate = _check_rate(file.getframerate())
        return Recording(rate, None, lambda first, stop: _wav_blocks(file))

    def windows(
        self,
        recording: Recording,
        window_s: float,
        hop_s: float,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Iterator[tuple[float, float, np.ndarray]]:
        """Cut a recording, or a stretch of it, into windows while reading it.

        The last window ends where the stretch ends: it begins earlier than a hop after the one
        before, and is as long, or as the whole stretch where that is shorter. An end that brings
        less than `min_duration_s` of new audio gets no window.

        Args:
            recording: From `open_recording` or `open_stream`; of a stream, the whole.
            window_s, hop_s: How long a window is, and how far the next begins behind it.
            start_s, end_s: The stretch, seconds; None = to the end.

        Returns:
            Start and end in the recording, seconds, and the waveform (time,) at `sampling_rate`.

        Raises:
            ValueError: The stretch begins after the end, or has nothing to hear.
        """
        rate, duration_s = recording.sampling_rate, recording.duration_s
        first_sample = _sample_at(start_s, rate)
        if duration_s is not None and first_sample >= round(duration_s * rate):
            raise ValueError(
                f"The stretch from {start_s:g} s begins after the recording's end at {duration_s:.3f} s; "
                "give another, or leave it out."
            )
        stop = None if end_s is None else _sample_at(end_s, rate)
        first = start_s if start_s == 0 else first_sample / rate
        blocks = _resampled(recording.blocks(first_sample, stop), rate, self.sampling_rate)
        lengths = window_s, hop_s, self.min_duration_s
        samples = [_sample_at(length_s, self.sampling_rate) for length_s in lengths]
        heard = False
        for start, waveform in _cut(blocks, *samples):
            heard = True
            begin = first + start / self.sampling_rate
            yield begin, first + (start + len(waveform)) / self.sampling_rate, waveform
        if not heard:
            end = "its end" if end_s is None else f"{end_s:g} s"
            raise ValueError(
                f"The recording has no audio from {start_s:g} s to {end}, or next to none; the acoustic "
                f"encoder needs at least {self.min_duration_s:.4g} s. Leave it out."
            )


def receptive_field(config: PreTrainedConfig) -> int:
    """Samples that a waveform encoder needs for its first frame: 400 (25 ms) for HuBERT-large."""
    samples = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


def _max_tokens(tokenizer: Any, text_config: PreTrainedConfig) -> int:
    """What the tokenizer says, bounded by the positions that the encoder has."""
    positions = getattr(text_config, "max_position_embeddings", 512)
    if getattr(text_config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= (
            text_config.pad_token_id + 1
        )  # these count positions from behind the padding id
    return min(tokenizer.model_max_length, positions)  # an unset model_max_length is 1e30


def _refuse_length_options(audio_kwargs: Mapping[str, Any]) -> None:
    given = sorted(set(audio_kwargs) & {*LENGTH_OPTIONS, "return_attention_mask"})
    if given:
        raise ValueError(
            f"`audio_kwargs` has {', '.join(given)}, which the processor decides: it pads audio, never cuts "
            "it, and always returns the mask. Leave them out, and cut the waveform itself."
        )


def _transcript(text: str | None) -> str | None:
    """NFKC-normalised transcript, None if absent or blank.

    DeBERTa-v3's tokenizer in transformers 5 does NFC only, where the original does NFKC.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(
            f"the transcript is of type {type(text).__name__}; it must be a string, or None if absent."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the transcript is not valid Unicode ({error}); decode it with the right encoding."
        ) from error
    text = unicodedata.normalize("NFKC", text).strip()
    # Zero-width and control characters, which str.strip leaves, are blank too.
    return text if any(map(str.isprintable, text.replace(" ", ""))) else None


def _as_audio_list(audio: Any) -> list[Any]:
    """One waveform is a list of one; a list of numbers is one waveform."""
    if audio is None:
        return []
    if _is_batch("audio", audio) and not isinstance(audio[0], (int, float, np.number)):
        return list(audio)
    return [audio]


def _as_text_list(text: Any) -> list[Any]:
    if text is None:
        return []
    return list(text) if _is_batch("text", text) else [text]


def _is_batch(name: str, given: Any) -> bool:
    """Lists, tuples and what behaves so (a column of datasets); not strings, bytes, arrays, tensors."""
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes, bytearray, memoryview)):
        return False
    if len(given) == 0:
        raise ValueError(
            f"`{name}` is an empty list; give at least one, or None for a modality that is absent."
        )
    return True


def _name_utterance(index: int, count: int, message: str) -> str:
    """The message with the utterance's number, where there are several."""
    if count == 1:
        return message[0].upper() + message[1:]
    return f"Utterance {index} of this batch: {message}"


def _check_each(items: list[Any], check: Callable[..., Any], *args: Any) -> list[Any]:
    """`check` of every item; what it refuses is named by its number."""
    checked = []
    for i, item in enumerate(items):
        try:
            checked.append(check(item, *args))
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(_name_utterance(i, len(items), str(error))) from error
    return checked


def _check_pairs(waveforms: list[Any], transcripts: list[Any]) -> None:
    if not waveforms and not transcripts:
        raise ValueError("MTMMProcessor got neither audio nor text; give `audio`, `text`, or both.")
    if waveforms and transcripts and len(waveforms) != len(transcripts):
        raise ValueError(
            f"MTMMProcessor got {len(waveforms)} waveforms and {len(transcripts)} transcripts; give one of "
            "each for every utterance, None where it is absent."
        )
    count = max(len(waveforms), len(transcripts))
    absent = [None] * count
    pairs = zip(waveforms or absent, transcripts or absent, strict=True)
    empty = [
        i
        for i, (waveform, transcript) in enumerate(pairs)
        if waveform is None and transcript is None
    ]
    if empty and count == 1:
        raise ValueError(
            "The utterance has neither audio nor text (blank text is absent text); give at least one."
        )
    if empty:
        raise ValueError(
            f"Utterances {empty} of this batch have neither audio nor text (blank text is absent text); each "
            "needs at least one."
        )


MTMMProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["MTMMProcessor", "Recording", "read_blocks", "receptive_field"]
