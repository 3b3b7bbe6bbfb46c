"""An exported model, called as the pipeline is."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from mtmm_runtime.features import Features

try:
    if not TYPE_CHECKING:
        from .answers_mtmm import MODALITIES, Prediction, Span
        from .audio_mtmm import numbered
        from .reference_mtmm import Reference, References, as_answers, read_arrays, standardisation
        from .speakers_mtmm import cut_input, read_input
        from .timeline_mtmm import Inputs, Part, Windows, plain
except ImportError:  # a checkout, where the shared files lie at the root
    from answers_mtmm import MODALITIES, Prediction, Span
    from audio_mtmm import numbered
    from reference_mtmm import Reference, References, as_answers, read_arrays, standardisation
    from speakers_mtmm import cut_input, read_input
    from timeline_mtmm import Inputs, Part, Windows, plain

MANIFEST = "manifest.json"
KNOWN_FORMAT = 1
FEW = {"time": 4000, "frames": 100, "tokens": 2}  # the shape of a modality that is absent
VALUES = {"audio": "input_values", "text": "input_ids"}
OPTIONAL = ("dimension_deviations", "unfamiliarity")


def load(folder: str | Path, threads: int | None = None) -> "Predictor":
    """The model that `mtmm export MODEL FOLDER` wrote.

    Args:
        folder: The export.
        threads: CPU threads; onnxruntime's choice if not given.

    Raises:
        FileNotFoundError: There is no export.
        ValueError: It is damaged, newer than this code, or of an encoder that this code does not know.
    """
    return Predictor(Path(folder), threads)


class Predictor:
    """Predicts as `MTMMPipeline` does, on the CPU, one window at a time.

    It has the pipeline's inputs, and the options of `__call__`. What needs torch is not here: URLs,
    transcribers, explanations and streams.

    Args:
        folder: The export.
        threads: CPU threads; None = onnxruntime's choice.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        if self.manifest["format"] > KNOWN_FORMAT:
            raise ValueError(f"{folder} was exported by a newer version; update mtmm-runtime.")
        if self.manifest["audio"]["kind"] not in ("waveform", "log-mel"):
            kind = self.manifest["audio"]["kind"]
            raise ValueError(f"{folder} takes features of {kind}, which this code cannot make.")
        config = dict(self.manifest["config"])
        config["id2label"] = {int(i): name for i, name in config["id2label"].items()}
        self.config = SimpleNamespace(**config)
        self.arrays, _ = read_arrays(folder / self.manifest["arrays"])
        self.features = Features(self.manifest, self.arrays, folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # its choice
        graph = folder / self.manifest["graph"]["file"]
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(graph, options, providers=providers)

    def __call__(
        self,
        inputs: Any,
        *,
        sampling_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        min_confidence: float | None = None,
        by: str | None = None,
        channel: str | int | None = None,
        reference: Any = None,
    ) -> Any:
        """Predict; the pipeline's documentation says what the answers are.

        Args:
            inputs: A path, bytes, an open file, an array, a dict of these with "text", "words" or
                "segments", or several of them.
            sampling_rate: Rate of arrays that come without their own, Hz.
            window_s, hop_s: Cut recordings into windows of so many seconds, so far apart.
            top_k: How many of the scores to return; all if not given.
            min_confidence: Name no emotion whose score is below this; the model's own if not given.
            by: "segment", "turn" or "window": what the timeline has an entry for.
            channel: "each": a speaker on each channel; a number from 0: this one alone.
            reference: Files of `mtmm reference`, "speaker", "domain", or a list of these.

        Returns:
            A dict; for several inputs a list of dicts.

        Raises:
            ValueError, TypeError, OSError: Input that cannot be read; of several inputs a ValueError
                whose `index` is the input's number.
        """
        known = References.of(reference)
        if known is not None:
            known.standardisation(self, None)  # refuses what it cannot use
            if known.made and Reference.STATES[0] not in self.manifest["graph"]["outputs"]:
                raise ValueError("This export makes no references; export the model again.")
        Windows.of(self.features, window_s, hop_s)  # refused before anything is read
        inputs = plain(inputs)
        several = Inputs.of(inputs)
        items = Inputs([inputs]) if several is None else several.repeatable()

        def each(work: Callable[[Iterable[Part], str | None], Any]) -> list[Any]:
            results = []
            for number, given in enumerate(items):
                with numbered(None if several is None else number):
                    taken, opened = read_input(given, sampling_rate, by, channel)
                    parts = cut_input(taken, opened, self.features, window_s, hop_s, by)
                    results.append(work(parts, taken.speaker))
            return results

        def answer(parts: Iterable[Part], speaker: str | None) -> dict[str, Any]:
            predictions = [self._heard(part, speaker, known)[0] for part in parts]
            return Prediction.summary(predictions, self.config, top_k, min_confidence)

        while known is not None and known.made:
            made, domain = known.begun()
            each(partial(self._count, made, domain))
            known = made.ended()
        answers = each(answer)
        return answers[0] if several is None else answers

    def _count(
        self,
        made: References,
        domain: References | None,
        parts: Iterable[Part],
        speaker: str | None,
    ) -> None:
        """Adds an input's parts with audio to the references that are made."""
        heard_s = 0.0  # what windows overlap counts once
        for number, part in enumerate(parts):
            begin_s, end_s = part.times or (0.0, 0.0)
            if part.waveform is not None:
                end_s = end_s or len(part.waveform) / self.features.sampling_rate
                prediction, states = self._heard(part, speaker, domain)
                answers = as_answers(self.config, prediction.probabilities, prediction.dimensions)
                mean, deviation, frames = (one.astype(np.float64) for one in states)
                begun, seconds = int(number == 0), max(end_s - max(begin_s, heard_s), 0.0)
                sums = mean, deviation**2 * frames, answers, self.config.reference_encoder
                made.add(part.speaker or speaker, Reference(begun, seconds, int(frames), *sums))
            heard_s = end_s

    def _heard(
        self, part: Part, speaker: str | None, references: References | None
    ) -> tuple[Prediction, list[np.ndarray]]:
        """The answer, and of a model that takes references `Reference.STATES`."""
        if part.silent and not (part.text or "").strip():
            return Prediction(Span.of(part, [*MODALITIES]), [], []), []
        tensors = self.features(part.waveform, part.text)
        missing = [name for name in MODALITIES if VALUES[name] not in tensors]
        span = Span.of(part, missing)
        if references is not None and "audio" not in missing:
            speaker = part.speaker or speaker
            tensors |= references.standardisation(self, speaker)
            span.used |= references.told(speaker)
        found = self.run(tensors)
        # float64, as the pipeline: the quotient by a small temperature may be beyond float32.
        logits = found["emotion_logits"][0].astype(np.float64) / self.config.temperature
        shares = np.exp(logits - logits.max())
        probabilities, dimensions = (
            (shares / shares.sum()).tolist(),
            found["dimensions"][0].tolist(),
        )
        if not math.isfinite(sum(probabilities) + sum(dimensions)):
            raise ValueError("The model's outputs are not finite; export it again, in float32.")
        more = [found[name][0].tolist() if name in found else None for name in OPTIONAL]
        states = [found[name][0] for name in Reference.STATES if name in found]
        return Prediction(span, probabilities, dimensions, *more), states

    def standardisation(
        self, domain: Reference | None = None, speaker: Reference | None = None
    ) -> dict[str, np.ndarray]:
        """As `MTMMModel.standardisation`."""
        return standardisation(self.config, self.arrays, domain, speaker)

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs by name; what is left out of its inputs is absent, or the model's own."""
        given, names = dict(tensors), self.manifest["graph"]["outputs"]
        batch = len(next(iter(given.values())))
        for name, shape in self.manifest["graph"]["inputs"].items():
            if name not in given:
                sizes = [batch, *(FEW.get(size, size) for size in shape[1:])]
                is_own = name.startswith("reference_")
                kind = np.float32 if is_own or name == "input_values" else np.int64
                given[name] = np.full(sizes, np.nan if is_own else 0, kind)
        return dict(zip(names, self.session.run(names, given), strict=True))
