"""The pipeline's part that makes references of recordings, and gives each window its own.

Uploaded to the Hub beside the weights. What a reference is, reference_mtmm.py says.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

# Relative first, as in pipeline_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .audio_mtmm import InputError, numbered
        from .reading_mtmm import ReadingPipeline
        from .reference_mtmm import Reference, References, as_answers
        from .timeline_mtmm import Inputs, plain
except ImportError:
    from audio_mtmm import InputError, numbered
    from reading_mtmm import ReadingPipeline
    from reference_mtmm import Reference, References, as_answers
    from timeline_mtmm import Inputs, plain


class ReferringPipeline(ReadingPipeline):
    """The part of [`MTMMPipeline`] that makes and gives references."""

    model: Any
    # Of MTMMPipeline: windows through the model.
    _batches: Any
    _collate: Any
    _both: Any

    def reference(
        self,
        inputs: Any,
        kind: str = "speaker",
        domain: Any = None,
        emotion: str | None = None,
        **options: Any,
    ) -> Reference:
        """What recordings have in common; for `reference=` of a later call.

        Args:
            inputs: One recording or many, with transcripts or without, in any form that `__call__`
                takes. Without audio an input counts nothing; long recordings are cut into windows.
            kind: "speaker": all are of one speaker; "domain": of one corpus, room or call centre.
                The recordings of a domain should have many speakers, and emotions as they come.
            domain: A domain's reference, or the path of one, by which the model hears the emotions
                of a speaker's recordings.
            emotion: The one of all these recordings, where you know it: the model hears it wrongly at
                times. Those of other emotions are added: `angry + sad`.
            options: As of `__call__`: `sampling_rate`, `window_s`, `hop_s`, `transcriber`,
                `batch_size`, `num_workers`.

        Returns:
            A `Reference`: statistics, no audio and no words. It has `save(path)`, and adds up with
            others of its kind.

        Raises:
            ValueError, TypeError, OSError: As `__call__`; no recording among the inputs; a model
                that was trained without references; an emotion that it does not know.
        """
        config = self.model.config
        names = [*config.emotion_names] if "emotion" in config.trained_outputs else []
        if emotion is not None and (emotion not in names or kind != "speaker"):
            raise ValueError(f"`emotion={emotion!r}` must be a speaker's, and one of {names}.")
        made = sum(one for _, one in self.each_reference(inputs, kind, domain, **options))
        if not isinstance(made, Reference):
            raise ValueError("A reference is made of recordings, and none is given.")
        return made if emotion is None else made.of_emotion(names.index(emotion))

    def adapt(self, inputs: Any, **options: Any) -> Reference:
        """Make the place of these recordings the model's own, and learn from them, without labels.

        Where the place is unlike the training data, a model with a linear path learns the borders
        between its emotions anew. Give a hundred recordings or more, of many speakers, with emotions as
        they come. The model keeps it: `predict.model.save_pretrained(folder)`.

        Args:
            inputs, options: As of `reference`.

        Returns:
            The domain's reference.

        Raises:
            ValueError, TypeError, OSError: As `reference`.
        """
        each = [one for _, one in self.each_reference(inputs, "domain", **options)]
        if not each:
            raise ValueError("A model learns a place from recordings, and none is given.")
        made = sum(each[1:], each[0])
        self.model.adopt_domain(made, each)
        return made

    def each_reference(
        self,
        inputs: Any,
        kind: str = "speaker",
        domain: Any = None,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> Iterator[tuple[str | None, Reference]]:
        """As `reference`, window by window: who speaks, where the input says so, and the window's own.

        An input's first window counts as its recording, the others as none.
        """
        if kind not in ("speaker", "domain"):
            raise ValueError(f'`kind={kind!r}` is not allowed; give "speaker" or "domain".')
        self.model.standardisation()  # refuses a model without references
        given, *work = self._work(inputs, domain or "none", options)
        return self._heard(given, kind, *work, batch_size, num_workers)

    def _work(
        self, inputs: Any, reference: Any, options: dict[str, Any]
    ) -> tuple[References | None, Any, dict[str, Any]]:
        """The references that are given, the inputs, and how these are read."""
        given, around, _ = self._sanitize_parameters(reference=reference, **options)
        inputs = plain(inputs)
        settings = {**self._preprocess_params, **given}
        return around["reference"], Inputs.of(inputs) or [inputs], settings

    def _heard(
        self,
        domain: References | None,
        kind: str,
        inputs: Any,
        settings: dict[str, Any],
        *work: int,
    ) -> Iterator[tuple[str | None, Reference]]:
        """As `each_reference`; `work`: batch size and number of workers."""
        batch_size, _ = work
        begins, heard_s = True, 0.0
        for windows in self._portions(inputs, settings | {"explain": False}, *work):
            self._refer(windows, domain)
            measured = self._measured(windows, batch_size)
            for i, window in enumerate(windows):
                span, seconds = window.span, window.seconds
                if span.start_s is not None:  # what windows overlap counts once
                    seconds = (span.end_s or 0.0) - max(span.start_s, 0.0 if begins else heard_s)
                if i in measured:
                    one = replace(
                        measured[i], recordings=int(begins), seconds=max(seconds, 0.0), kind=kind
                    )
                    yield window.speaker, one
                begins, heard_s = window.is_last, span.end_s or 0.0

    def _measured(self, windows: list[Any], batch_size: int) -> dict[int, Reference]:
        """The windows' references, by their place; those without audio have none."""
        config, made = self.model.config, {}
        audible = [i for i, window in enumerate(windows) if "input_values" in window.features]
        rows = [windows[i].features for i in audible]
        for batch in self._batches(rows, batch_size):
            outputs: Any = self.forward(self._collate([rows[row] for row in batch]), measure=True)
            for place, (row, answer) in enumerate(zip(batch, self._both(outputs), strict=True)):
                window, states = windows[audible[row]], outputs["states"][place, None]
                answers = states.new_tensor(as_answers(config, *answer[:2]))[None].double()
                mask, encoder = outputs["mask"][place, None], str(config.reference_encoder)
                one = Reference.of_states(states, mask, answers, window.seconds, encoder)
                self._check_finite(window, float(one.mean.sum() + one.answers.sum()))
                made[audible[row]] = one
        return made

    def _check_finite(self, window: Any, numbers: float) -> None:
        """Raises ValueError, with the input's number, where a sum of what was computed is no number."""
        with numbered(window.index):
            if not math.isfinite(numbers):
                raise ValueError(
                    f"The model's outputs are not finite: its numbers overflow in {self.model.dtype}, or "
                    'its weights are damaged; load it with dtype="float32", or fetch them again.'
                )

    def _refer(self, windows: list[Any], references: References | None) -> None:
        """Give each window with audio the mean and deviation of its reference."""
        for window in windows:
            if references is not None and "input_values" in window.features:
                window.features |= references.standardisation(self.model, window.speaker)
                window.span.used |= references.told(window.speaker)

    def references(
        self,
        inputs: Any,
        reference: Any,
        *,
        skip: bool = False,
        batch_size: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> References | None:
        """What `reference=` of `__call__` stands for with these inputs, for several calls.

        Args:
            inputs, reference: As of `__call__`.
            skip: Leave out inputs that cannot be read; `inputs` is a list then.
            batch_size, num_workers, options: As of `reference`.

        Raises:
            ValueError, TypeError, OSError: As `__call__`.
        """
        given, *work = self._work(inputs, reference, options)
        return self._prepared(given, *work, batch_size, num_workers, skip=skip)

    def _prepared(
        self, references: References | None, inputs: Any, *work: Any, skip: bool = False
    ) -> References | None:
        """The references of a call, with those that its inputs make: a pass over all for each kind."""
        while references is not None and references.made:
            made, domain = references.begun()
            left = inputs
            while left is not None:
                now, left = left, None
                try:
                    for speaker, one in self._heard(domain, "speaker", now, *work):
                        made.add(speaker, one)
                except InputError as error:  # reading is begun again behind it
                    if not skip:
                        raise
                    left = Inputs(now.items[error.index + 1 :])
            references = made.ended()
        return references
