"""What an answer came from: attention of the bridge tokens, and occlusion of time bins and words.

Uploaded to the Hub beside the weights. The model's forward passes are run by pipeline_mtmm.py.
"""

import math
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# What the model is given of each modality: its input and its mask.
FEATURES = {
    "audio": ("input_values", "audio_attention_mask"),
    "text": ("input_ids", "attention_mask"),
}
BIN_S = 0.5  # about as long are the time bins of an explanation, equal in a window
LEAST = 1e-300  # of a probability whose logarithm is taken

Features = dict[str, Tensor]  # (1, ...) each
# A probability per emotion, a value per dimension, then what `Prediction` of answers_mtmm.py has.
Answer = tuple[Any, ...]


class Word(NamedTuple):
    """A word of a transcript: from which character to which, and the places of its tokens."""

    text: str
    start_char: int
    end_char: int
    tokens: list[int]


@dataclass
class Places:
    """What an explanation looks at, one by one.

    Args:
        of: The output that is explained.
        edges: Edges of the time bins, positions in `audio_attention_mask`; none without audio.
        times: The same in seconds from the recording's beginning.
        words: In their order; none without text.
    """

    of: str
    edges: list[int]
    times: list[float]
    words: list[Word]

    @classmethod
    def find(
        cls,
        of: str,
        features: Features,
        times: tuple[float, float] | None,
        text: str,
        tokenizer: Any,
    ) -> "Places":
        """The time bins and words of one window.

        Args:
            of: The output that is to be explained.
            features: What the model is given of the window.
            times: Its start and end, seconds; None without audio.
            text: Its transcript; blank without.
            tokenizer: A fast one.
        """
        places = cls(of, [], [], [])
        if times is not None:
            count = max(round((times[1] - times[0]) / BIN_S), 1)
            positions = int(features["audio_attention_mask"].sum())  # a log-mel window has padding
            places.edges = np.linspace(0, positions, count + 1).round().astype(int).tolist()
            places.times = np.linspace(*times, count + 1).tolist()
        if "input_ids" in features:
            places.words = find_words(text, tokenizer)
        return places

    def occlusions(self, features: Features) -> list[Features | None]:
        """The features without each modality, time bin and word in turn.

        None stands for an absent modality, and where nothing would be left.
        """
        rests: list[Features | None] = [None, None]
        if all(mask in features for _, mask in FEATURES.values()):
            rests = [_without(features, modality) for modality in FEATURES]
        for start, end in pairwise(self.edges):
            values = features["input_values"].clone()
            is_log_mel = values.dim() == 3
            values[..., start:end] = values.min() if is_log_mel else 0.0
            rests.append(features | {"input_values": values})
        for word in self.words:
            kept = [i for i in range(features["input_ids"].shape[1]) if i not in word.tokens]
            fewer = features | {name: features[name][:, kept] for name in FEATURES["text"]}
            # Without any token the text is absent.
            rests.append(fewer if kept else _without(features, "text") or None)
        return rests

    def explained(
        self, config: Any, read: Mapping[str, Tensor], answer: Answer, left: Sequence[Answer | None]
    ) -> dict[str, Any]:
        """The explanation, as `MTMMPipeline` describes it.

        Args:
            config: The model's configuration.
            read: From `contributions`.
            answer: The model's, of the window.
            left: The same of each of `occlusions`.
        """
        emotion = int(np.argmax(answer[0]))

        def height(answer: Answer) -> float:
            if self.of == "emotion":
                return math.log(max(answer[0][emotion], LEAST))
            return float(answer[1][config.dimension_names.index(self.of)])

        falls = [None if other is None else height(answer) - height(other) for other in left]
        # Without an absent modality everything is left.
        modalities = [
            fall if len(read[m]) else 0.0 for m, fall in zip(FEATURES, falls, strict=False)
        ]
        bins, words = self._shares(read)
        bin_falls, word_falls = falls[2 : 2 + len(bins)], falls[2 + len(bins) :]
        totals = [read[modality].double().sum().item() for modality in FEATURES]
        of = config.id2label[emotion] if self.of == "emotion" else self.of
        return {
            **self._named(totals, bins.tolist(), words.tolist()),
            "occlusion": {"of": of, **self._named(modalities, bin_falls, word_falls)},
            "agreement": {
                "time": rank_correlation(bins, bin_falls),
                "words": rank_correlation(words, word_falls),
            },
        }

    def _shares(self, read: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """What was read, by time bin and by word.

        The words share what special tokens got, in proportion.
        """
        frames, tokens = (read[modality].double().numpy() for modality in FEATURES)
        heard = np.linspace(0, max(self.edges, default=1), len(frames) + 1)  # frames' edges
        bins = np.diff(np.interp(self.edges, heard, np.append(0, frames.cumsum())))
        words = np.array([tokens[word.tokens].sum() for word in self.words])
        return bins, words * tokens.sum() / max(words.sum(), LEAST)

    def _named(
        self, modalities: Iterable[Any], bins: Iterable[Any], words: Iterable[Any]
    ) -> dict[str, Any]:
        """One number for each modality, time bin and word, by name."""
        return {
            "modalities": dict(zip(FEATURES, modalities, strict=True)),
            "time": [
                {"start": start, "end": end, "share": share}
                for (start, end), share in zip(pairwise(self.times), bins, strict=True)
            ],
            "words": [
                {"text": w.text, "start_char": w.start_char, "end_char": w.end_char, "share": share}
                for w, share in zip(self.words, words, strict=True)
            ],
        }


def find_words(text: str, tokenizer: Any) -> list[Word]:
    """What white space separates; a word that the tokenizer has no token for is left out."""
    read = unicodedata.normalize("NFKC", text).strip()  # as the processor does
    offsets = tokenizer(read, return_offsets_mapping=True)["offset_mapping"]
    found = list(re.finditer(r"\S+", text))
    # Normalising may change lengths, so the words' ends are looked up in what was read.
    ends = [len(unicodedata.normalize("NFKC", text[: w.end()]).lstrip()) for w in found]
    tokens: list[list[int]] = [[] for _ in found]
    for token, (start, end) in enumerate(offsets):
        if start < end <= ends[-1]:  # special tokens stand for no characters
            tokens[bisect_left(ends, end)].append(token)
    return [Word(w.group(), *w.span(), t) for w, t in zip(found, tokens, strict=True) if t]


def contributions(model: Any, features: Features) -> dict[str, Tensor]:
    """What the bridge tokens read of each frame and of each token of one window, by modality."""
    states: Features = {}
    encoders = {
        "acoustic": (model.encode_audio, FEATURES["audio"]),
        "linguistic": (model.encode_text, FEATURES["text"]),
    }
    for kind, (encode, names) in encoders.items():
        if names[0] in features:
            encoded, mask = encode(*(features[name] for name in names))
            states |= {f"{kind}_states": encoded, f"{kind}_attention_mask": mask}
    states |= {name: features[name] for name in features if name.startswith("reference_")}
    output = model(**states, output_attentions=True, return_dict=True)
    absent = torch.zeros(1, 1, dtype=torch.bool, device=output.fused_state.device)
    masks = [states.get(f"{kind}_attention_mask", absent) for kind in encoders]
    shares = model.bridge_contributions(output, *masks)
    rows = zip(FEATURES, shares, masks, strict=True)
    return {modality: share[mask] for modality, share, mask in rows}


def _without(features: Features, modality: str) -> Features:
    return {name: value for name, value in features.items() if name not in FEATURES[modality]}


def rank_correlation(shares: np.ndarray, falls: Sequence[float | None]) -> float | None:
    """Spearman's, between shares and sizes of falls; None of fewer than 3, or where all are alike."""
    if len(falls) < 3:
        return None
    x, y = _ranks(shares), _ranks(np.abs(np.array(falls, dtype=float)))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / size if size else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the lowest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
