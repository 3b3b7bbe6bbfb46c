"""`pipeline(model=..., trust_remote_code=True)`: a recording and/or transcript to named numbers.

Uploaded to the Hub beside the weights.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.utils import logging

# Relative first: as remote code these are neighbours in a package; in a checkout they are top-level
# modules.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .answers_mtmm import Prediction
        from .batching_mtmm import collate, evaluating, regions, rounded, similar
        from .embedding_mtmm import EMBEDDINGS, embedding_outputs, embedding_rows
        from .explanation_mtmm import FEATURES, Answer, Features, Places, contributions
        from .fast_mtmm import Graphs
        from .reading_mtmm import Window
        from .reference_mtmm import References
        from .referring_mtmm import ReferringPipeline
        from .timeline_mtmm import Inputs, Results, plain
except ImportError:
    from answers_mtmm import Prediction
    from batching_mtmm import collate, evaluating, regions, rounded, similar
    from embedding_mtmm import EMBEDDINGS, embedding_outputs, embedding_rows
    from explanation_mtmm import FEATURES, Answer, Features, Places, contributions
    from fast_mtmm import Graphs
    from reading_mtmm import Window
    from reference_mtmm import References
    from referring_mtmm import ReferringPipeline
    from timeline_mtmm import Inputs, Results, plain

OPTIONS = "sampling_rate window_s hop_s transcriber explain explain_s reference".split()
OPTIONS += "top_k min_confidence embedding by channel progress".split()
# Outputs that a model may lack.
OPTIONAL = ("dimension_deviations", "unfamiliarity")


class MTMMPipeline(ReferringPipeline):
    """Emotion, scores and dimensions of utterances and long recordings, as plain Python numbers.

    Input: a path or http(s) URL, the bytes of an audio file, an array with `sampling_rate`,
    {"array": ..., "sampling_rate": ...}, audio as datasets gives it, decoded or not, or
    {"audio": any of these, "text": transcript} with either key alone; or a list, generator, dataset
    or pandas Series of these. Instead of "text", a transcript with times: "words", a list of
    {"text", "start", "end"} in seconds, or of {"text", "timestamp": (start, end)} as transformers'
    speech recognisers give it; or "segments", the same, which are then the units of the timeline
    (their text may be left out, or come from "words").

    With "speaker" a dict says who speaks, which `reference="speaker"` asks for.

    Output, for each utterance: {"emotion": name, "scores": {name: probability, ...} from the highest
    to the lowest, one number for each dimension by its name on the scale of `config.dimension_range`,
    "missing": names of the modalities that were not there ("audio", "text"), "untrained": names of
    outputs that training never saw labels for, which are left out}. Where a `transcriber` wrote the
    transcript, also {"text": its words, "transcribed": True}. Where a reference was used, "reference":
    {"speaker" or "domain": {"recordings": how many it was made of, "seconds": their length}}.

    With `min_confidence`, "unsure" says whether the highest score is below it, and "emotion" is None
    then. A model that was calibrated on the votes of listeners has scores that are expected shares
    of listeners, and "agreement", the highest of them: the share that would hear this emotion. A
    model that learned how ratings spread has "valence_sd" beside "valence", the standard deviation
    of listeners' ratings. A model that knows what its training data was like has "unfamiliar":
    names of the modalities that are far from it, such as audio that is no speech.

    A recording that is longer than the model takes at once (`processor.longest_audio_s()`), or that
    comes with `window_s`, `hop_s` or "segments", also gets "timeline": for each window or segment
    {"start", "end" (seconds), "emotion", "scores", the dimensions, "missing", and "text", where there
    is a transcript: the words whose middle lies in it}. The numbers beside the timeline are its mean
    over time: every instant counts once, shared by the windows that overlap there; the emotion is the
    one with the highest mean probability, and a modality is missing that no window had. A "text"
    without times goes to every window, and the answer has "untimed_text": True. Files are read block
    by block, so memory does not grow with their length; URLs, bytes and arrays are held.

    Audio without a signal (silence, a constant, dither) is not heard: "no_signal" is True then, and
    the answer is the transcript's; without one "emotion" and the dimensions are None and "scores" is
    empty. Such entries of a timeline take no part in the mean.

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
    rises. A modality is then absent, and a word's tokens are removed. A time bin becomes silent in
    what the encoder hears: 0, the mean of a normalised waveform, or the lowest value of a log-mel
    spectrum; the rest keeps its level. An absent modality has 0, and None stands where nothing would
    be left. "agreement" is Spearman's correlation between the shares and the sizes of the falls, None
    of fewer than 3 places.
    """

    # Their classes are not imported here.
    model: Any
    processor: Any
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._transcribers: dict[str, Any] = {}  # loaded, by repo id or folder
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("MTMMPipeline needs the model's processor; give `processor=`.")
        self.compiled = False
        self._numbers_of: Callable[[Features], dict[str, Tensor]] = self._numbers

    def compile(self, **options: Any) -> None:
        """Compile the model part by part, and give it batches of few sizes from now on.

        A kind of layer is compiled once, at its first batch, for all lengths and numbers of utterances.
        On CUDA, sizes that come again are CUDA graphs from then on: launched at once.

        Args:
            options: What `torch.compile` takes; `dynamic=True` unless given. With a `mode`, such as
                "max-autotune", the model is compiled as a whole, which takes minutes.
        """
        for part in [self.model] if options.get("mode") else regions(self.model):
            part.compile(**{"dynamic": True} | options)
        if self.device.type == "cuda" and not options.get("mode"):  # modes have graphs of their own
            self._numbers_of = Graphs(self._numbers)
        self.compiled = True

    def _sanitize_parameters(
        self, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise TypeError(f"MTMMPipeline has no options {unknown}; it has {', '.join(OPTIONS)}.")
        given = {name: value for name, value in options.items() if value is not None}
        if explain := given.get("explain"):
            trained = self.model.config.trained_outputs
            if ("emotion" if explain is True else explain) not in trained:
                raise ValueError(
                    f"`explain={explain!r}` is not allowed; it must be True, for the emotion, or one of "
                    f"the outputs that this model was trained for: {', '.join(trained) or 'none'}."
                )
            if not self.model.config.use_bridge_tokens:
                raise ValueError(
                    "`explain` reads bridge tokens, which this model was built without."
                )
        if "reference" in given:
            given["reference"] = References.of(given["reference"])
            if given["reference"] is not None:
                self.model.standardisation(**given["reference"].given)  # refuses what it cannot use
        of_call = ("progress", "reference", "embedding")
        around = {name: given.pop(name) for name in of_call if name in given}
        least = given.get("min_confidence", 0)
        if not 0 <= least <= 1:
            raise ValueError(f"`min_confidence={least!r}` is not allowed; it must be from 0 to 1.")
        of_answers = ("top_k", "min_confidence")
        after = {name: given.pop(name) for name in of_answers if name in given}
        return given, around, after

    # Pipelines of transformers, its own too, narrow what the base class declares.
    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Predict.

        Args:
            inputs: One utterance or recording, or many; the class's docstring lists the forms.
            sampling_rate (`int`): Rate of arrays that come without their own, Hz.
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
            by (`str`): What a timeline has an entry for: "segment", each of the input's; "turn", what a
                speaker says without a pause of more than 1 s; "window". Segments and words may have a
                "speaker", and the entries then have one.
            channel (`int` or `str`): The channel to hear, from 0. "each": every channel of the recording
                is a speaker's, whose turns are the entries. Not given: the mean of those that carry a
                signal, or the loudest where they cancel each other.
            explain_s (`tuple`): Of a recording that is cut, explain only the windows that overlap the
                time from one second to another; all if not given.
            embedding (`bool`): Give each utterance, and each entry of a timeline, "embedding": {"fused":
                the vector that the heads read, "audio" and "text": means over time of the refined
                states; lists of `hidden_size` numbers}. An absent modality has None.
            top_k (`int`): How many of the scores to return; all if not given.
            min_confidence (`float`): Name no emotion whose score is below this, 0 to 1; the model's
                own if not given, which is 0 unless `mtmm evaluate risk --save` chose one.
            batch_size (`int`): Utterances or windows at a time, at most; 1 if not given. With more, 8
                batches are read ahead and sorted by length, and only audio of similar length shares
                one; results come in the order of the inputs.
            num_workers (`int`): So many processes read ahead; each of several holds all windows of
                the input that it reads. Not with a `transcriber`, which runs where the model runs, nor
                where processes begin by spawn or forkserver.
            reference: What recordings of the same domain or speaker have in common, with a model that
                was trained with `--reference`: from `reference`, the path of a saved one, or a list
                of a domain's and a speaker's. Or what is made of these inputs themselves, which are
                then read once more for each: "domain", of all of them, also of a single long recording;
                "speaker", of each speaker's own, for those that say {"audio": ..., "speaker":
                "anna"}, while the others get none. A speaker's goes on top of a domain's only if
                that is given too: ["domain", "speaker"]. "none" or not given: the model's own.
            progress (`bool`): Show a bar of the inputs done; of a single recording, of its windows.

        Returns:
            A dict; for a list, Series or DataFrame a list of dicts; for a dataset or generator
            something to iterate over, which predicts as it goes.

        Raises:
            ValueError, TypeError, OSError: Input that cannot be read; of several inputs always an
                `InputError`, a ValueError whose `index` is the input's number.
        """
        inputs = plain(inputs)
        results = super().__call__(Inputs.of(inputs) or inputs, **kwargs)
        return list(results) if isinstance(inputs, (list, tuple)) else results

    def stream(
        self, source: Any, sampling_rate: int | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Predict windows while the audio comes: each result follows its window's last sample.

        The delay is the window's length, 0.1 s of reading, and the time to compute one window.

        Args:
            source: An open binary file such as `sys.stdin.buffer`, with wav, or raw 16-bit
                little-endian mono samples at `sampling_rate`; an iterator of arrays, (time,) or
                (time, channels), at `sampling_rate`; or any single input that the pipeline takes.
            sampling_rate: Rate of raw samples and arrays, Hz.
            options: `window_s`, `hop_s`, `transcriber`, `explain`, `explain_s`, `top_k`,
                `min_confidence`, `reference`, as in `__call__`; a stream is heard once, so no
                reference is made of it.

        Yields:
            What `__call__` gives as an entry of "timeline"; it raises the same errors.
        """
        options["sampling_rate"] = sampling_rate
        given, around, after = self._sanitize_parameters(**options)
        references = (self._forward_params | around).get("reference")
        if references is not None and references.made:
            raise ValueError("No reference can be made of a stream; give one that was made before.")
        read = self._reader({**self._preprocess_params, **given, "live": True})
        shown = self._postprocess_params | after
        for window in read(source):
            self._refer([window], references)
            (prediction,) = self._answers([window], 1, bool(around.get("embedding")))
            yield prediction.entry(self.model.config, **shown) | window.span.used

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
        if batch_size < 1:
            raise ValueError(f"`batch_size={batch_size!r}` is not allowed; give at least 1.")
        items = getattr(inputs, "items", inputs)
        # Of torch's datasets and loaders some have a `__len__` that raises.
        count = length_hint(items, -1) if hasattr(items, "__len__") else -1
        self._reader(preprocess_params)  # options are refused at once
        references = forward_params.get("reference")
        if references is not None and references.made and isinstance(inputs, Inputs):
            inputs = inputs.repeatable()
        work = inputs, preprocess_params, batch_size, num_workers

        def predict() -> Iterator[dict[str, Any]]:
            is_one = items is inputs  # whose windows the bar counts
            embedding = bool(forward_params.get("embedding"))
            is_quiet = not forward_params.get("progress", False)
            with logging.tqdm(
                total=None if is_one or count < 0 else count, disable=is_quiet
            ) as bar:
                predictions: list[Prediction] = []
                prepared = self._prepared(references, *work)
                for read in self._portions(*work):
                    self._refer(read, prepared)
                    answers = self._answers(read, batch_size, embedding)
                    for window, prediction in zip(read, answers, strict=True):
                        predictions.append(prediction)
                        bar.update(is_one or window.is_last)
                        if window.is_last:
                            yield self.postprocess(predictions, **postprocess_params)
                            predictions = []

        return predict() if count < 0 else Results(predict, count)

    # ---- windows through the model ----

    def _answers(
        self, windows: list[Window], batch_size: int, embedding: bool = False
    ) -> Iterator[Prediction]:
        """The model's answers, in the order of the windows, explained where that is asked for."""
        rows = [window.features for window in windows if window.features]
        answers = iter(self._predict(rows, batch_size, embedding))
        for window in windows:
            if not window.features:
                silent = dict.fromkeys(EMBEDDINGS, [math.nan]) if embedding else None
                yield Prediction(window.span, [], [], embedding=silent)
                continue
            answer = next(answers)
            self._check_finite(window, sum(answer[0]) + sum(answer[1]))
            prediction = Prediction(window.span, *answer)
            if window.places is not None:
                explanation = self._explain(window, window.places, answer, batch_size)
                window.span.shown["explanation"] = explanation
            yield prediction

    def _predict(
        self, rows: list[Features], batch_size: int, embedding: bool = False
    ) -> list[Answer]:
        """The numbers of each row, in their order."""
        answers: dict[int, Answer] = {}
        for batch in self._batches(rows, batch_size):
            given = self._collate([rows[i] for i in batch])
            if self.compiled:
                given = rounded(given, self.processor, self.model.config.audio_config)
            outputs = self.forward(given, embedding=embedding)
            # Compiled, there may be more rows than were asked for.
            answers |= zip(batch, self._both(outputs), strict=not self.compiled)
        return [answers[i] for i in range(len(rows))]

    def _both(self, outputs: dict[str, Tensor]) -> Iterator[Answer]:
        # float64: the quotient by a small temperature may be beyond float32.
        logits = outputs["emotion_logits"].double() / self.model.config.temperature
        columns = [logits.softmax(-1).tolist(), outputs["dimensions"].tolist()]
        for name in OPTIONAL:
            columns.append(outputs[name].tolist() if name in outputs else [None] * len(logits))
        columns.append(list(embedding_rows(outputs, len(logits))))
        return zip(*columns, strict=True)

    def _batches(self, rows: list[Features], batch_size: int) -> Iterator[list[int]]:
        """Numbers of rows of similar lengths."""
        masks = [[row.get(mask) for _, mask in FEATURES.values()] for row in rows]
        lengths = [tuple(0 if m is None else m.shape[-1] for m in pair) for pair in masks]
        return similar(lengths, batch_size, self.model.config.audio_config)

    def _collate(self, rows: list[Features]) -> Features:
        return collate(rows, self.processor.tokenizer.pad_token_id)

    def _forward(  # type: ignore[override]
        self,
        model_inputs: Features,
        explain: bool = False,
        measure: bool = False,
        embedding: bool = False,
    ) -> dict[str, Tensor]:
        states: Features = {}
        with evaluating(self.model):
            if explain:
                return contributions(self.model, model_inputs)
            heard = FEATURES["audio"][0] in model_inputs
            if measure or (embedding and heard):  # the same states for the answers
                given = dict(model_inputs)
                acoustic, mask = self.model.encode_audio(*(given.pop(n) for n in FEATURES["audio"]))
                model_inputs = given | {
                    "acoustic_states": acoustic,
                    "acoustic_attention_mask": mask,
                }
                states = {"states": acoustic, "mask": mask}
            if not embedding:
                return self._numbers_of(model_inputs) | states
            output = self.model(**model_inputs, return_dict=True, output_hidden_states=True)
        masks = states.get("mask"), model_inputs.get(FEATURES["text"][1])
        return named_outputs(output) | embedding_outputs(output, masks)

    def _numbers(self, model_inputs: Features) -> dict[str, Tensor]:
        return named_outputs(self.model(**model_inputs, return_dict=True))

    def _explain(
        self, window: Window, places: Places, answer: Answer, batch_size: int
    ) -> dict[str, Any]:
        """What the prediction came from; the class's docstring says what is in it."""
        read = self.forward(window.features, explain=True)
        rests = places.occlusions(window.features)
        others = iter(self._predict([rest for rest in rests if rest is not None], batch_size))
        left = [None if rest is None else next(others) for rest in rests]
        return places.explained(self.model.config, read, answer, left)

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: list[Prediction],
        top_k: int | None = None,
        min_confidence: float | None = None,
    ) -> dict[str, Any]:
        return Prediction.summary(model_outputs, self.model.config, top_k, min_confidence)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save model and processor: the folder loads as a pipeline again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def named_outputs(output: Any) -> dict[str, Tensor]:
    """What the pipeline reads of the model's output, by name."""
    names = ("emotion_logits", "dimensions", *OPTIONAL)
    return {name: output[name] for name in names if name in output}
