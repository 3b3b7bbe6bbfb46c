"""Waveforms and/or transcripts to tensors.

Uploaded to the Hub beside the weights. Files are decoded in audio_mtmm.py.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
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
            is_source,
            load_audio,
            numbered,
            open_recording,
            resample,
            samples_of,
        )
        from .composing_mtmm import OWN_OPTIONS, encoder_sources, tokenizer_digest, where_is
        from .encoders_mtmm import receptive_field
        from .timeline_mtmm import check_pair, clean_transcript, is_missing, plain
        from .waveforms_mtmm import check_rate, to_mono
except ImportError:
    from audio_mtmm import is_source, load_audio, numbered, open_recording, resample, samples_of
    from composing_mtmm import OWN_OPTIONS, encoder_sources, tokenizer_digest, where_is
    from encoders_mtmm import receptive_field
    from timeline_mtmm import check_pair, clean_transcript, is_missing, plain
    from waveforms_mtmm import check_rate, to_mono

LONGEST_WAVEFORM_S = 40.0  # IEMOCAP's longest utterance lasts 34 s
Audio = np.ndarray | Sequence[float] | Mapping[str, Any]  # or a tensor of torch
# The tokenizer's alone where they are not given in `audio_kwargs`: audio is padded, and not cut.
TEXT_OPTIONS = ("max_length", "padding", "truncation", "return_tensors", "return_attention_mask")
# Their positions begin behind the padding token's id.
SHIFTED_POSITIONS = ("roberta", "xlm-roberta", "camembert")


class MTMMProcessorKwargs(ProcessingKwargs, total=False):
    """Options by modality: `text_kwargs` go to the tokenizer, `audio_kwargs` to the feature extractor."""


def _is_of_others(record: logging.LogRecord) -> bool:
    return "of type `mtmm`" not in record.getMessage()


class MTMMProcessor(ProcessorMixin):
    """One or several utterances, audio and/or transcript, to one batch of tensors.

    Args:
        feature_extractor: The acoustic encoder's feature extractor.
        tokenizer: The linguistic encoder's tokenizer.
        min_duration_s (`float`): Shortest audio, seconds: the acoustic encoder's receptive field.
        max_duration_s (`float`): Longest audio, seconds. A log-mel encoder's window bounds it too.
        max_tokens (`int`): Longest transcript in tokens, special tokens included.
        vocabulary_digest (`str`): Digest by which a heads-only model knows its tokenizer.
    """

    valid_processor_kwargs = MTMMProcessorKwargs

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        min_duration_s: float = 0.025,
        max_duration_s: float = LONGEST_WAVEFORM_S,
        max_tokens: int = 512,
        vocabulary_digest: str | None = None,
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        feature_extractor.padding_side = "right"  # the model's masks have real positions first
        feature_extractor.return_attention_mask = True  # of use alone, too
        self.min_duration_s = min_duration_s
        self.max_duration_s = max_duration_s
        self.max_tokens = max_tokens
        self.vocabulary_digest = vocabulary_digest

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        encoders: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> "MTMMProcessor":
        """Load a saved processor; as `ProcessorMixin.from_pretrained`.

        This class is at hand already, so the folder's own code is not asked for.

        Args:
            pretrained_model_name_or_path, *args, **kwargs: As there.
            encoders: Encoders in the place of those that a heads-only model names, as for
                [`MTMMModel.from_pretrained`]; the text encoder's folder has the tokenizer.

        Raises:
            ValueError: The tokenizer is not the one that the model was trained with.
        """
        name = pretrained_model_name_or_path
        kwargs.pop("quantization_config", None)  # of the model, which `pipeline` gives to all
        kwargs.setdefault("trust_remote_code", False)
        sources = encoder_sources(name, kwargs)
        if sources is not None:
            return cls._composed(name, sources, encoders or {}, kwargs)
        # The tokenizer's loader takes our configuration for an unknown one, and warns that it is ours.
        told = logging.getLogger("transformers.configuration_utils")
        told.addFilter(_is_of_others)
        try:
            return super().from_pretrained(name, *args, **kwargs)
        finally:
            told.removeFilter(_is_of_others)

    @classmethod
    def _composed(
        cls,
        name: Any,
        sources: Mapping[str, Any],
        given: Mapping[str, str],
        options: dict[str, Any],
    ) -> "MTMMProcessor":
        """The processor of a heads-only model, with the tokenizer of its text encoder."""
        own = {key: options[key] for key in OWN_OPTIONS if key in options}
        settings, _ = cls.get_processor_dict(name, **own)
        where, hub = where_is("text", sources, given, options)
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        if tokenizer_digest(tokenizer) != settings.get("vocabulary_digest"):
            raise ValueError(f"{where} does not have the tokenizer that {name} was trained with.")
        return cls.from_args_and_dict(
            [AutoFeatureExtractor.from_pretrained(name, **own), tokenizer], settings
        )

    def save_pretrained(
        self, save_directory: Any, *args: Any, heads_only: bool = False, **kwargs: Any
    ) -> Any:
        """As `ProcessorMixin.save_pretrained`; of a heads-only model without the tokenizer."""
        self.vocabulary_digest = tokenizer_digest(self.tokenizer) if heads_only else None
        if not heads_only:
            return super().save_pretrained(save_directory, *args, **kwargs)
        self.auto_map = {"AutoProcessor": "processing_mtmm.MTMMProcessor"}
        path = os.path.join(save_directory, "processor_config.json")
        self.to_json_file(path)
        return [path]

    @classmethod
    def from_encoders_pretrained(
        cls, audio: str, text: str, audio_window_s: int | None = None, **options: Any
    ) -> "MTMMProcessor":
        """The processor that belongs to two pretrained encoders.

        Args:
            audio: Folder or Hub id of the acoustic encoder, with its feature extractor.
            text: Folder or Hub id of the linguistic encoder, with its tokenizer.
            audio_window_s: Seconds of Whisper's window, as in [`MTMMConfig`].
            options: Any of `min_duration_s`, `max_duration_s`, `max_tokens`.
        """
        feature_extractor: Any = AutoFeatureExtractor.from_pretrained(audio)
        if audio_window_s is not None:
            samples = audio_window_s * feature_extractor.sampling_rate
            feature_extractor.chunk_length, feature_extractor.n_samples = audio_window_s, samples
            feature_extractor.nb_max_frames = samples // feature_extractor.hop_length
        tokenizer = AutoTokenizer.from_pretrained(text)
        audio_config, text_config = map(AutoConfig.from_pretrained, (audio, text))
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
                or a dict {"array": ..., "sampling_rate": ...}; or (array, rate) or (rate, array); or
                a decoder, or {"bytes", "path"}, as datasets gives it.
            text: One transcript or a list of them; None, in the list too, and blank text are absent
                text. NFKC-normalised.
            kwargs: `sampling_rate` of arrays, 1000 to 1,000,000 Hz; `text_kwargs`, `audio_kwargs` for
                the tokenizer and the feature extractor; `return_tensors` ("pt" unless given). Given
                flat, `padding`, `truncation` and `max_length` are the tokenizer's alone: audio is
                padded and not cut.

        Returns:
            `input_values` (batch, time), or (batch, mels, frames) of log-mel encoders,
            `audio_attention_mask` over its last axis, `input_ids` and `attention_mask`
            (batch, tokens). The pair of a modality that the whole batch lacks is left out; the rows
            of one that an utterance lacks are zero in the mask.

        Raises:
            ValueError: Nothing given; lists of different lengths; an utterance without audio and
                text; audio that is empty, too short, too long, not finite, of unknown scale or rate;
                a transcript with too many tokens. In a batch of several an `InputError`, whose
                `index` is the utterance's.
            TypeError: Something that is neither a waveform nor a transcript.
        """
        audio_only = kwargs.get("audio_kwargs") or {}
        options: dict[str, Any] = self._merge_kwargs(MTMMProcessorKwargs, **kwargs)  # type: ignore[arg-type]  # takes the class
        rate = options["audio_kwargs"].pop("sampling_rate", None)
        tensor_type = options["text_kwargs"].pop("return_tensors", None) or "pt"
        audio_options = {
            name: value
            for name, value in options["audio_kwargs"].items()
            if name in audio_only or name not in TEXT_OPTIONS
        }
        waveforms = _each(_as_list(audio), lambda one: self._waveform(one, rate))
        transcripts = list(text) if isinstance(text, (list, tuple)) else _as_list(text)
        tensors = self.tensors(waveforms, transcripts, audio_options, options["text_kwargs"])
        return BatchFeature(tensors, tensor_type=tensor_type)

    def tensors(
        self,
        waveforms: Sequence[np.ndarray | None],
        texts: Sequence[str | None],
        audio_options: Mapping[str, Any] | None = None,
        text_options: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """As `__call__`, of waveforms that are ready: (time,), float32, at `sampling_rate`.

        Args:
            waveforms, texts: One of each for every utterance, None where it is absent; or empty.
            audio_options, text_options: Options for the feature extractor and the tokenizer.
        """
        transcripts = _each(texts, clean_transcript)
        if waveforms and transcripts and len(waveforms) != len(transcripts):
            counts = f"{len(waveforms)} waveforms and {len(transcripts)} transcripts"
            raise ValueError(f"There are {counts}; give None for what is absent.")
        pairs = list(zip_longest(waveforms, transcripts)) or [(None, None)]
        _each(pairs, lambda pair: check_pair(self, *pair))
        data: dict[str, np.ndarray] = {}
        if any(waveform is not None for waveform in waveforms):
            data |= self._audio_tensors(waveforms, audio_options or {})
        if any(transcript is not None for transcript in transcripts):
            data |= self._text_tensors(transcripts, text_options or {})
        return data

    def _waveform(self, audio: Audio | None, sampling_rate: int | None) -> np.ndarray | None:
        """One waveform, mono, float32, at the encoder's rate."""
        if is_missing(audio):
            return None
        audio = plain(audio)
        array, sampling_rate = samples_of(audio, sampling_rate)
        if isinstance(audio, Mapping) and is_source(array):  # as datasets gives it undecoded
            array, sampling_rate = load_audio(array)
        waveform, rate = to_mono(array), check_rate(sampling_rate)
        lasts_s, most_s = len(waveform) / rate, self.longest_audio_s()
        if lasts_s > most_s:  # before resampling, which may take long
            raise ValueError(f"The audio lasts {lasts_s:.4g} s; at most {most_s:.4g} s are taken.")
        return resample(waveform, rate, self.sampling_rate)

    def _audio_tensors(
        self, waveforms: Sequence[np.ndarray | None], options: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Features of the waveforms that are there, zeros for the others."""
        rows = [i for i, waveform in enumerate(waveforms) if waveform is not None]
        kind = self.feature_extractor.model_input_names[0]
        ours: dict[str, Any] = {
            "sampling_rate": self.sampling_rate,
            "return_attention_mask": True,
            "return_tensors": "np",
        }
        if kind == "input_features":  # a log-mel encoder takes its whole window only
            ours |= {"padding": "max_length", "pad_to_multiple_of": None}
        options = {"padding": "longest", "truncation": False, **options, **ours}
        features = self.feature_extractor([waveforms[i] for i in rows], **options)
        values = features[kind]
        input_values = np.zeros((len(waveforms), *values.shape[1:]), dtype=np.float32)
        mask = np.zeros((len(waveforms), values.shape[-1]), dtype=np.int64)
        input_values[rows] = values
        mask[rows] = features["attention_mask"]
        return {"input_values": input_values, "audio_attention_mask": mask}

    def _text_tensors(
        self, transcripts: list[str | None], options: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Token ids of the transcripts that are there, padding for the others."""
        rows = [i for i, transcript in enumerate(transcripts) if transcript is not None]
        ours = {
            "padding_side": "right",  # the model's masks have real positions first
            "return_attention_mask": True,
            "return_token_type_ids": False,
            "return_tensors": "np",
        }
        options = {"padding": True, "truncation": False, **options, **ours}
        tokens = self.tokenizer([transcripts[i] for i in rows], **options)
        shape = (len(transcripts), tokens["input_ids"].shape[1])
        input_ids = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        input_ids[rows], mask[rows] = tokens["input_ids"], tokens["attention_mask"]
        _each(mask.sum(-1), self._check_length)
        return {"input_ids": input_ids, "attention_mask": mask}

    def _check_length(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise ValueError(f"The text has {tokens} tokens; at most {self.max_tokens} are taken.")

    # Files, which `__call__` does not take.
    load_audio = staticmethod(load_audio)
    open_recording = staticmethod(open_recording)


def _max_tokens(tokenizer: Any, text_config: PreTrainedConfig) -> int:
    """What the tokenizer says, bounded by the positions that the encoder has."""
    positions = getattr(text_config, "max_position_embeddings", 512)
    if getattr(text_config, "model_type", "") in SHIFTED_POSITIONS:
        positions -= text_config.pad_token_id + 1
    return min(tokenizer.model_max_length, positions)  # an unset model_max_length is 1e30


def _as_list(given: Any) -> list[Any]:
    """Utterances of a list, tuple or column of datasets; one utterance, None or an array is no list."""
    if given is None:
        return []
    given = plain(given)
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray, memoryview)):
        items = list(given)
        if not items or not isinstance(items[0], (int, float, np.number)):
            return items  # a list of numbers is one waveform
    return [given]


def _each(items: Iterable[Any], function: Callable[[Any], Any]) -> list[Any]:
    """The function of every item; what it refuses is named by its number, where there are several."""
    results = []
    items = list(items)
    for index, item in enumerate(items):
        with numbered(index if len(items) > 1 else None):
            results.append(function(item))
    return results


MTMMProcessor.register_for_auto_class("AutoProcessor")
