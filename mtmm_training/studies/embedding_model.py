"""A model as an encoder of utterances: as sentence-transformers' `encode`, and for mteb's `evaluate`.

model = EmbeddingModel("out/mine/model")
vectors = model.encode(["We won!", {"audio": "speech.wav"}])   # (2, width)
mteb.evaluate(model, tasks)                                    # of text, of audio, or of both
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from transformers import pipeline

from embedding_mtmm import EMBEDDINGS


class EmbeddingModel:
    """Embeddings by MTMM's pipeline.

    Args:
        model: A pipeline, or the folder or Hub id of a model.
        revision: Commit on the Hub.
        device: As of `transformers.pipeline`.
        which: "fused", "audio" or "text", see the pipeline's `embedding`.

    Raises:
        ValueError: `which` is none of them.
    """

    def __init__(
        self, model: Any, revision: str | None = None, *, device: Any = None, which: str = "fused"
    ) -> None:
        if which not in EMBEDDINGS:
            raise ValueError(f"`which` is {which!r}; it must be one of {', '.join(EMBEDDINGS)}.")
        if isinstance(model, str):
            make: Any = pipeline  # its types ask for a task, which the model's configuration names
            model = make(model=model, revision=revision, device=device, trust_remote_code=True)
        self.pipe, self.which = model, which

    def encode(self, inputs: Iterable[Any], *, batch_size: int = 32, **kwargs: Any) -> np.ndarray:
        """One vector for each input.

        Args:
            inputs: Sentences, and what else the pipeline takes; or batches of mteb, {"text": list,
                "audio": list} with either key alone.
            batch_size: Utterances at a time, at most.
            kwargs: What mteb and sentence-transformers tell, such as prompts; not used.

        Returns:
            (inputs, hidden_size), float32.

        Raises:
            ValueError: An input cannot be read, or lacks the modality of `which`.
        """
        answers = self.pipe(rows_of(inputs), embedding=True, batch_size=batch_size)
        found = [answer["embedding"][self.which] for answer in answers]
        if None in found:
            raise ValueError(f"Input {found.index(None)} has no {self.which} to embed.")
        return np.array(found, np.float32).reshape(len(found), self.pipe.model.config.hidden_size)

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """Cosines of all pairs, (first, second)."""
        return _unit(first) @ _unit(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> np.ndarray:
        """Cosines of the pairs of one place, (pairs,)."""
        return (_unit(first) * _unit(second)).sum(axis=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Name and width, for mteb's results."""
        from mteb.models.model_meta import ModelMeta  # comes with the extra "mteb"

        config = self.pipe.model.config
        name = str(config._name_or_path).rstrip("/").rsplit("/", 1)[-1] or "model"
        told = {"name": f"mtmm/{name}-{self.which}", "embed_dim": config.hidden_size}
        told |= {"modalities": ["text", "audio"]}
        return ModelMeta.create_empty(told | {"revision": "local"})


def rows_of(inputs: Iterable[Any]) -> Iterator[Any]:
    """Inputs of the pipeline, one by one: a string is a sentence."""
    for one in inputs:
        given = one if isinstance(one, Mapping) else {}
        columns = {name: given[name] for name in ("audio", "text") if name in given}
        if isinstance(one, str):
            yield {"text": one}
        elif columns and all(isinstance(column, (list, tuple)) for column in columns.values()):
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
        else:
            yield one


def _unit(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
