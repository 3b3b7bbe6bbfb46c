"""`pipeline(model=..., trust_remote_code=True)`: a recording and/or transcript to named numbers.

Uploaded to the Hub beside the weights.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

INPUT_FORMS = (
    "a path or URL, the bytes of an audio file, an array together with `sampling_rate`, "
    '{"array": waveform, "sampling_rate": Hz}, or {"audio": any of these, "text": transcript} with '
    "either key alone"
)
AUDIO_KEYS = {"array", "raw", "bytes", "path"}  # a dict with one of these is audio


@dataclass
class NumberedInput:
    """One of several utterances, with its number, for messages."""

    number: int
    item: Any


class NumberedDataset(torch.utils.data.Dataset):
    """Any dataset, its utterances numbered and read one at a time."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> NumberedInput:
        return NumberedInput(index, self.items[index])


class MTMMPipeline(Pipeline):
    """Emotion, scores and dimensions of utterances, as plain Python numbers.

    Input: a path or http(s) URL, the bytes of an audio file, an array with `sampling_rate`,
    {"array": ..., "sampling_rate": ...}, audio as datasets gives it, decoded or not, or
    {"audio": any of these, "text": transcript} with either key alone; or a list, generator or
    dataset of these.

    Output, for each utterance: {"emotion": name, "scores": {name: probability, ...} from the highest
    to the lowest, one number for each dimension by its name on the scale of `config.dimension_range`,
    "missing": names of the modalities that were not there ("audio", "text"), "untrained": names of
    outputs that training never saw labels for, which are left out}.
    """

    _load_processor = None  # where it cannot be loaded, __init__ says more than transformers would
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "MTMMPipeline needs the model's processor, and could load none. Save it beside the model "
                "with `processor.save_pretrained(folder)`, or give `processor=`; if there is one, "
                "`AutoProcessor.from_pretrained(folder, trust_remote_code=True)` says what is wrong with it."
            )

    def _sanitize_parameters(
        self, sampling_rate: int | None = None, top_k: int | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise TypeError(
                f"MTMMPipeline has no options {sorted(kwargs)}; it has `sampling_rate` and `top_k`."
            )
        if top_k is not None and (
            isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1
        ):
            raise ValueError(
                f"`top_k={top_k!r}` is not allowed; it must be a whole number of at least 1."
            )
        preprocess = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        postprocess = {} if top_k is None else {"top_k": top_k}
        return preprocess, {}, postprocess

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Predict.

        Args:
            inputs: One utterance or many; the forms are listed in the class's docstring.
            sampling_rate (`int`): Of arrays that come without their own, Hz.
            top_k (`int`): How many of the scores to return; all if not given.
            batch_size (`int`): Utterances at a time; 1 if not given.

        Returns:
            A dict; for a list a list of dicts; for a dataset or generator something to iterate over,
            which predicts as it goes.

        Raises:
            ValueError, TypeError, OSError: Input that cannot be read, named by its number where
                there are several; see `MTMMProcessor.__call__` and `MTMMProcessor.load_audio`.
        """
        if isinstance(inputs, (list, tuple)):
            inputs = [NumberedInput(i, item) for i, item in enumerate(inputs)]
            if not inputs:
                return []
        elif _is_dataset(inputs):
            inputs = NumberedDataset(inputs)
        elif _is_many(inputs):
            inputs = (NumberedInput(i, item) for i, item in enumerate(inputs))
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, sampling_rate: int | None = None) -> dict[str, torch.Tensor]:
        if isinstance(inputs, NumberedInput):
            try:
                return self.preprocess(inputs.item, sampling_rate)
            except (ValueError, TypeError, OSError) as error:
                kinds = (FileNotFoundError, OSError, TypeError, ValueError)
                kind = next(kind for kind in kinds if isinstance(error, kind))
                raise kind(f"Input {inputs.number}: {error}") from error
        audio, text, sampling_rate = self._split(inputs, sampling_rate)
        if audio is not None:
            audio = self._waveform(audio, sampling_rate)
        features = dict(self.processor(audio=[audio], text=[text]))
        return features | self._absent(features)

    def _split(self, inputs: Any, sampling_rate: int | None) -> tuple[Any, Any, int | None]:
        """Audio, transcript and sampling rate of one utterance in any form."""
        if not isinstance(inputs, dict) or AUDIO_KEYS & set(inputs):
            return inputs, None, sampling_rate
        unknown = sorted(map(str, set(inputs) - {"audio", "text", "sampling_rate"}))
        if unknown or not {"audio", "text"} & set(inputs):
            wrong = f"the unknown keys {unknown}" if unknown else f"only the keys {sorted(inputs)}"
            raise ValueError(f"An utterance has {wrong}; give {INPUT_FORMS}.")
        return inputs.get("audio"), inputs.get("text"), inputs.get("sampling_rate", sampling_rate)

    def _waveform(self, audio: Any, sampling_rate: int | None) -> Any:
        """Any form of audio as {"array": ..., "sampling_rate": ...}, or a decoder as it is."""
        if isinstance(audio, dict):
            if "raw" in audio:
                audio = {"array" if key == "raw" else key: value for key, value in audio.items()}
            if "array" in audio or not AUDIO_KEYS & set(audio):
                return {"sampling_rate": sampling_rate} | audio
            audio = _undecoded(audio)
        if isinstance(audio, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(
            audio, "read"
        ):
            array, sampling_rate = self.processor.load_audio(audio)
            return {"array": array, "sampling_rate": sampling_rate}
        if isinstance(audio, (np.ndarray, torch.Tensor, list, tuple)):
            return {"array": audio, "sampling_rate": sampling_rate}
        if hasattr(audio, "get_all_samples"):  # torchcodec's decoder, which datasets gives
            return audio
        raise TypeError(f"Audio of type {type(audio).__name__} cannot be read; give {INPUT_FORMS}.")

    def _absent(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Stand-ins for an absent modality, masked: all utterances of a batch must have the same keys."""
        if "input_ids" not in features:
            ids = torch.full((1, 1), self.processor.tokenizer.pad_token_id)
            return {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
        if "input_values" not in features:
            extractor = self.processor.feature_extractor
            if extractor.model_input_names[0] == "input_features":
                values = torch.zeros(1, extractor.feature_size, extractor.nb_max_frames)
            else:
                samples = int(np.ceil(self.processor.min_duration_s * extractor.sampling_rate))
                values = torch.zeros(1, samples)
            mask = torch.zeros(1, values.shape[-1], dtype=torch.long)
            return {"input_values": values, "audio_attention_mask": mask}
        return {}

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        has_audio = model_inputs["audio_attention_mask"].any(-1)
        has_text = model_inputs["attention_mask"].any(-1)
        model_inputs = dict(model_inputs)
        # A modality that the whole batch lacks need not pass through its encoder.
        for present, keys in (
            (has_audio, ("input_values", "audio_attention_mask")),
            (has_text, ("input_ids", "attention_mask")),
        ):
            if not bool(present.any()):
                for key in keys:
                    del model_inputs[key]
        output = self.model(**model_inputs)
        return {
            "emotion_logits": output.emotion_logits,
            "dimensions": output.dimensions,
            "has_audio": has_audio,
            "has_text": has_text,
        }

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], top_k: int | None = None
    ) -> dict[str, Any]:
        config = self.model.config
        result: dict[str, Any] = {}
        if "emotion" in config.trained_outputs:
            logits = model_outputs["emotion_logits"][0].float() / config.temperature
            probabilities = logits.softmax(-1).tolist()
            scores = {
                config.id2label[i]: probability for i, probability in enumerate(probabilities)
            }
            ranked = sorted(scores.items(), key=lambda item: -item[1])
            result["emotion"] = ranked[0][0]
            result["scores"] = dict(ranked[:top_k])
        for name, value in zip(
            config.dimension_names, model_outputs["dimensions"][0].tolist(), strict=True
        ):
            if name in config.trained_outputs:
                result[name] = value
        present = {"audio": model_outputs["has_audio"][0], "text": model_outputs["has_text"][0]}
        result["missing"] = [
            modality for modality, is_there in present.items() if not bool(is_there)
        ]
        result["untrained"] = [
            name for name in config.output_names if name not in config.trained_outputs
        ]
        return result

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor: the folder loads as a pipeline again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _is_dataset(inputs: Any) -> bool:
    """Has a length and items by number: a dataset of torch or datasets, a column of one."""
    return _is_many(inputs) and hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")


def _is_many(inputs: Any) -> bool:
    one = (str, bytes, bytearray, memoryview, Mapping, np.ndarray, torch.Tensor)
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
    file = io.BytesIO(data)
    file.name = path or f"{len(data)} bytes"  # for messages
    return file


__all__ = ["MTMMPipeline"]
