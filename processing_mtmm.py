"""Waveform and/or transcript to tensors, and the one place that decodes audio files.

Uploaded to the Hub beside the weights. soundfile (decoding) and soxr (resampling) are optional here:
without them whatever does not need them still works, and the rest says what to install.
"""

import io
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Unpack

import numpy as np
import torch
from huggingface_hub import get_session
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
)
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

try:
    import soundfile
except (ImportError, OSError):  # OSError: the package is there, the libsndfile it needs is not
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

# Full scale of integer PCM, by NumPy's type names; uint8 is centred on 128.
PCM_SCALE = {"int8": 2**7, "uint8": 2**7, "int16": 2**15, "int32": 2**31}
MAX_CHANNELS = 32
MAX_AMPLITUDE = 8.0  # float waveforms lie in −1 to 1; far above, somebody forgot to scale PCM
LONGEST_WAVEFORM_S = 40.0  # IEMOCAP's longest utterance lasts 34 s
URL_TIMEOUT_S = 60.0  # without one, a server that stops answering stops us too
# Options of feature extractors that the processor decides: it pads, and never cuts, audio.
LENGTH_OPTIONS = ("max_length", "padding", "truncation")

Audio = np.ndarray | torch.Tensor | Sequence[float] | dict[str, Any]


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
        **kwargs: Unpack[MTMMProcessorKwargs],
    ) -> BatchFeature:
        """Tensors for [`MTMMModel`].

        Args:
            audio: One waveform or a list of them; None, in the list too, is absent audio. A waveform
                is an array (time,), or (time, channels) or (channels, time), whose channels are
                averaged; of floats in −1 to 1, or of 8-, 16- or 32-bit integers, which are scaled;
                or a dict {"array": ..., "sampling_rate": ...}; or a decoder as datasets gives it.
            text: One transcript or a list of them; None, in the list too, and blank text are absent
                text. NFKC-normalised.
            kwargs: `sampling_rate` of arrays, Hz; `text_kwargs`, `audio_kwargs` for the tokenizer and
                the feature extractor; `return_tensors` ("pt" unless given). `padding`, `truncation`
                and `max_length` are the tokenizer's alone: audio is padded here and never cut.

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
        options = self._merge_kwargs(MTMMProcessorKwargs, **kwargs)
        rate = options["audio_kwargs"].pop("sampling_rate", None)
        return_tensors = options["text_kwargs"].pop("return_tensors", None) or "pt"
        for name in ("return_tensors", "return_attention_mask", *LENGTH_OPTIONS):
            options["audio_kwargs"].pop(name, None)
        waveforms = _check_each(_as_audio_list(audio), self._waveform, rate)
        transcripts = _check_each(_as_text_list(text), _transcript)
        _check_pairs(waveforms, transcripts)
        data = {}
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
        if sampling_rate is None:
            raise ValueError(
                f"`sampling_rate` is missing; give the samples a second of the audio, for example "
                f"`sampling_rate={self.sampling_rate}`."
            )
        sampling_rate = _check_rate(sampling_rate)
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
        source: str | os.PathLike | bytes | BinaryIO,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> tuple[np.ndarray, int]:
        """Decode a recording with soundfile: wav, flac, ogg, mp3 and what else libsndfile reads.

        Args:
            source: A path, an http(s) URL, the bytes of a file, or an open binary file, which is
                read from where it stands.
            start_s, end_s: The stretch to read, seconds from the beginning; None = from the
                beginning, to the end. A stretch that goes past the end stops there.

        Returns:
            The waveform, float32, (time,) or (time, channels), and its sampling rate in Hz.

        Raises:
            ImportError: soundfile is not installed.
            FileNotFoundError: No file at this path.
            OSError: A URL that does not answer.
            ValueError: The file cannot be decoded, ends early, or has no audio in this stretch.
            TypeError: No source of audio.
        """
        if soundfile is None:
            raise ImportError(
                "Decoding audio files needs soundfile; run `pip install soundfile`, or give "
                '{"array": waveform, "sampling_rate": rate}.'
            )
        _check_stretch(start_s, end_s)
        name, source = _open_source(source)
        try:
            with soundfile.SoundFile(source) as file:
                rate, frames = file.samplerate, file.frames
                start = round((start_s or 0) * rate)
                stop = frames if end_s is None else min(round(end_s * rate), frames)
                waveform = None
                if start < stop:
                    file.seek(start)
                    waveform = file.read(stop - start, dtype="float32")
                missing_bytes = _missing_bytes(file.extra_info) if stop == frames else 0
        # TypeError: headerless files, whose rate soundfile would have to be told
        except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as error:
            reason = getattr(error, "error_string", error)
            raise ValueError(
                f"{name} cannot be decoded as audio ({reason}); wav, flac, ogg and mp3 can. Convert it, or "
                "leave it out."
            ) from error
        if missing_bytes or (waveform is not None and len(waveform) < stop - start):
            found_s = (frames if waveform is None else start + len(waveform)) / rate
            raise ValueError(
                f"{name} is cut off: it ends after {found_s:.3f} s, before the end that its header says. "
                "Fetch it again, convert it, or leave it out."
            )
        if waveform is None:
            raise ValueError(
                f"{name} has no audio from {start_s or 0} s to "
                f"{'its end' if end_s is None else f'{end_s} s'}: it lasts {frames / rate:.3f} s. Give "
                "another stretch, or leave it out."
            )
        return waveform, rate


def to_mono(waveform: Any) -> np.ndarray:
    """A waveform as float32 (time,), −1 to 1; channels are averaged, integer PCM is scaled.

    Args:
        waveform: Array, tensor or sequence: (time,), (time, channels) or (channels, time), the
            shorter axis being the channels.

    Raises:
        TypeError: Not an array of numbers.
        ValueError: Empty, not finite, of unknown scale, or of an impossible shape.
    """
    array = _as_array(waveform)
    if array.size == 0:
        raise ValueError("the audio is empty; leave it out, or give None for absent audio.")
    if array.dtype.kind in "iu":
        if array.dtype.name not in PCM_SCALE:
            raise ValueError(
                f"the audio is of type {array.dtype.name}, whose full scale is unknown; convert it to "
                "floats in −1 to 1, or to int16."
            )
        offset = 128 if array.dtype.name == "uint8" else 0
        array = (array.astype(np.float64) - offset) / PCM_SCALE[array.dtype.name]
    if array.ndim == 2:
        channels_last = array if array.shape[0] >= array.shape[1] else array.T
        if channels_last.shape[1] > MAX_CHANNELS:
            raise ValueError(
                f"the audio has shape {array.shape}: no axis can be channels (at most {MAX_CHANNELS}). "
                "Give several waveforms as a list."
            )
        array = channels_last.mean(axis=1, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(
            f"the audio has {int((~np.isfinite(array)).sum())} samples that are NaN or infinite; "
            "all must be finite. Repair or leave out the recording."
        )
    peak = float(np.abs(array).max())
    if peak > MAX_AMPLITUDE:
        raise ValueError(
            f"the audio reaches {peak:g}; floats lie in −1 to 1. Divide integer samples by their full "
            "scale (32768 for 16 bits) before they become floats."
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _as_array(waveform: Any) -> np.ndarray:
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    if isinstance(waveform, (str, bytes, bytearray, memoryview, os.PathLike)):
        raise TypeError(
            f"the audio is of type {type(waveform).__name__}; the processor takes waveforms. Decode a file "
            "first with `MTMMProcessor.load_audio`, or give it to the pipeline; a transcript is `text=`."
        )
    try:
        array = np.asarray(waveform)
    except ValueError as error:
        raise TypeError(f"the audio is no array of numbers ({error}).") from error
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise TypeError(
            f"the audio is of type {array.dtype} and shape {array.shape}; it must be numbers of shape "
            "(time,) or (time, channels)."
        )
    return array


def _check_rate(sampling_rate: Any) -> int:
    try:
        rate = int(sampling_rate)
        allowed = rate == sampling_rate and rate > 0 and not isinstance(sampling_rate, bool)
    except (TypeError, ValueError, OverflowError):
        allowed = False
    if not allowed:
        raise ValueError(
            f"`sampling_rate={sampling_rate!r}` is not allowed; it must be a whole number of Hz above 0."
        )
    return rate


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample (time,) with soxr, quality HQ.

    Args:
        waveform: float32, (time,).
        from_rate, to_rate: Hz, whole numbers above 0.

    Raises:
        ImportError: The rates differ and soxr is not installed.
    """
    if from_rate == to_rate:
        return waveform
    if soxr is None:
        raise ImportError(
            f"Resampling from {from_rate} to {to_rate} Hz needs soxr; run `pip install soxr`, or give audio "
            f"at {to_rate} Hz."
        )
    return soxr.resample(waveform, from_rate, to_rate)


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


def _check_stretch(start_s: float | None, end_s: float | None) -> None:
    for name, value in (("start_s", start_s), ("end_s", end_s)):
        if value is None:
            continue
        try:
            allowed = 0 <= value < np.inf
        except TypeError:
            allowed = False
        if not allowed:
            raise ValueError(
                f"`{name}={value!r}` is not allowed; it must be seconds from the beginning, 0 or more."
            )
    if end_s is not None and end_s <= (start_s or 0):
        raise ValueError(
            f"`end_s={end_s!r}` is not allowed; it must be after the start, {start_s or 0} s."
        )


def _missing_bytes(log: str) -> int:
    """How many bytes of samples a wav, aiff, au or caf file lacks, from libsndfile's log.

    libsndfile reads such a file as a shorter one. Writers that cannot know the size put in 2 GiB or
    more, and some are wrong by a few bytes.
    """
    sizes = re.search(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log)
    promised, found = map(int, sizes.groups()) if sizes else (0, 0)
    return promised - found if found + 1024 < promised < 2**31 - 2**16 else 0


def _open_source(source: Any) -> tuple[str, Any]:
    """A name for messages, and what soundfile can open."""
    if hasattr(source, "read"):
        name = f"The audio ({getattr(source, 'name', 'an open file')})"
        source = source.read()  # soundfile itself would need it to be seekable
        if isinstance(source, str):
            raise TypeError(f"{name} is a text file; open it with mode 'rb'.")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f"The audio ({len(source)} bytes)"
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not path.lower().startswith(("http://", "https://")):
            return repr(path), _check_file(path)
        name, source = path, _fetch(path)
    else:
        raise TypeError(
            f"the audio is of type {type(source).__name__}; give a path, a URL, bytes or an open file."
        )
    if not source:
        raise ValueError(f"{name} has no bytes to read; give a whole wav, flac, ogg or mp3 file.")
    return name, io.BytesIO(source)


def _check_file(path: str) -> str:
    if not os.path.exists(path):
        raise FileNotFoundError(
            f'No audio file at {path!r}; check the path. A transcript is given as {{"text": ...}}.'
        )
    if not os.path.isfile(path):
        raise ValueError(f"{path!r} is not a regular file; give a wav, flac, ogg or mp3 file.")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path!r} is empty (0 bytes); give a wav, flac, ogg or mp3 file.")
    return path


def _fetch(url: str) -> bytes:
    try:
        response = get_session().get(url, follow_redirects=True, timeout=URL_TIMEOUT_S)
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        raise OSError(
            f"{url} cannot be fetched ({error}); check the address and the network."
        ) from error
    if response.status_code != 200:
        raise OSError(
            f"{url} cannot be fetched (HTTP {response.status_code} {response.reason_phrase}); check the "
            "address, or download the file yourself and give its path."
        )
    return response.content


def _array_and_rate(audio: Any, sampling_rate: Any) -> tuple[Any, Any]:
    """The samples, and their rate where the audio has its own."""
    if hasattr(audio, "get_all_samples"):  # torchcodec's decoder, which datasets gives
        samples = audio.get_all_samples()
        return samples.data, samples.sample_rate
    if not isinstance(audio, dict):
        return audio, sampling_rate
    if "array" not in audio or set(audio) - {"array", "sampling_rate", "path"}:
        raise ValueError(
            f"an audio dict has the keys {sorted(map(str, audio))}; it must be "
            '{"array": waveform, "sampling_rate": Hz}. Decode files with `MTMMProcessor.load_audio`; '
            "a transcript stands beside the dict, not in it."
        )
    return audio["array"], audio.get("sampling_rate", sampling_rate)


def _refuse_length_options(audio_kwargs: dict[str, Any]) -> None:
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
    return text or None


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

__all__ = ["MTMMProcessor", "receptive_field"]
