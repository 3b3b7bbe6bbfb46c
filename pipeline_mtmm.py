"""`pipeline(model=..., trust_remote_code=True)`: a recording and/or transcript to named numbers.

Uploaded to the Hub beside the weights.
"""

import os
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

INPUT_FORMS = (
    "a path or URL, the bytes of an audio file, an array together with `sampling_rate`, "
    '{"array": waveform, "sampling_rate": Hz}, or {"audio": any of these, "text": transcript} with '
    "either key alone"
)


class MTMMPipeline(Pipeline):
    """Emotion, scores and dimensions of utterances, as plain Python numbers.

    Input: a path or http(s) URL, the bytes of an audio file, an array with `sampling_rate`,
    {"array": ..., "sampling_rate": ...}, or {"audio": any of these, "text": transcript} with either
    key alone; or a list, generator or dataset of these.

    Output, for each utterance: {"emotion": name, "scores": {name: probability, ...} from the highest
    to the lowest, one number for each dimension by its name on the scale of `config.dimension_range`,
    "missing": names of the modalities that were not there ("audio", "text"), "untrained": names of
    outputs that training never saw labels for, which are left out}.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "MTMMPipeline needs the model's processor, and found none. Save it beside the model with "
                "`processor.save_pretrained(folder)`, or give `processor=`."
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
            A dict, or a list of dicts (an iterator for a dataset or generator).

        Raises:
            ValueError, TypeError, FileNotFoundError: Input that cannot be read; see
                `MTMMProcessor.__call__` and `MTMMProcessor.load_audio`.
        """
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, sampling_rate: int | None = None) -> dict[str, torch.Tensor]:
        audio, text, sampling_rate = self._split(inputs, sampling_rate)
        if audio is not None:
            audio = self._waveform(audio, sampling_rate)
        features = dict(self.processor(audio=audio, text=text))
        return features | self._absent(features)

    def _split(self, inputs: Any, sampling_rate: int | None) -> tuple[Any, Any, int | None]:
        """Audio, transcript and sampling rate of one utterance in any form."""
        if (
            not isinstance(inputs, dict)
            or "array" in inputs
            or "raw" in inputs
            or "bytes" in inputs
        ):
            return inputs, None, sampling_rate
        unknown = set(inputs) - {"audio", "text", "sampling_rate"}
        if unknown or not {"audio", "text"} & set(inputs):
            raise ValueError(
                f"An utterance has the keys {sorted(map(str, inputs))}; give {INPUT_FORMS}."
            )
        return inputs.get("audio"), inputs.get("text"), inputs.get("sampling_rate", sampling_rate)

    def _waveform(self, audio: Any, sampling_rate: int | None) -> dict[str, Any]:
        """Any form of audio as {"array": ..., "sampling_rate": ...}."""
        if isinstance(audio, dict):
            if audio.get("bytes") is not None or (
                audio.get("path") is not None and "array" not in audio
            ):
                audio = audio.get("bytes") or audio["path"]  # as datasets gives it undecoded
            else:
                audio = {"array" if key == "raw" else key: value for key, value in audio.items()}
                return {"sampling_rate": sampling_rate} | audio
        if isinstance(audio, (str, bytes, os.PathLike)) or hasattr(audio, "read"):
            array, sampling_rate = self.processor.load_audio(audio)
            return {"array": array, "sampling_rate": sampling_rate}
        if isinstance(audio, (np.ndarray, torch.Tensor, list, tuple)):
            return {"array": audio, "sampling_rate": sampling_rate}
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


__all__ = ["MTMMPipeline"]
