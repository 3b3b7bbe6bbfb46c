"""What `mtmm predict` does: inputs to results in their order, printed, drawn or written as parts."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mtmm_training.commands import installed_version
from mtmm_training.commands.ending import FAILED, GOOD, tell
from mtmm_training.commands.predict_inputs import Input, read_inputs, read_transcript
from mtmm_training.commands.predict_model import identity, load_pipeline, load_recogniser
from mtmm_training.commands.predict_output import Pictures, Printer, moved, result_columns
from mtmm_training.commands.predict_parts import Parts, Predict, predict_parts

# What a record of a run keeps: flags that change results.
SETTINGS = ("window_s", "hop_s", "top_k", "transcriber", "explain", "trust_remote_code")


def to_stdout(given: argparse.Namespace) -> int:
    """Predict and print each answer when it comes; the exit status says whether all came."""
    if given.plot is not None:
        import matplotlib  # noqa: F401  before any work: it comes with the training extra
    streamed = given.inputs == ["-"]
    if streamed and sys.stdin is None:
        raise ValueError("Standard input is closed; there is nothing to read for `-`.")
    inputs = [Input("-")] if streamed else _inputs(given)
    pipe = _pipeline(given)
    config = pipe.model.config
    for name in sorted(set(config.output_names) - set(config.trained_outputs)):
        tell(f"{given.model} was never trained on {name}; it is left out")
    timeline, explain = given.timeline or streamed, given.explain is not None
    printer = Printer(config, given.form, timeline=timeline, explain=explain)
    pictures = None if given.plot is None else Pictures(given.plot, config)
    options, stop = _options(given, pipe), given.on_error == "stop"
    # A batch at a time, not many sorted by length: who watches wants the first answer soon.
    results = predict_each(pipe, inputs, options, at_once=given.batch_size, stop=stop)
    if streamed:
        del options["batch_size"]
        windows = pipe.stream(sys.stdin.buffer, given.sampling_rate, **options)
        results = ((inputs[0], {"timeline": [entry]}) for entry in windows)
    failed = 0
    with _bar(len(inputs), hidden=streamed or sys.stdout.isatty()) as bar:
        for one, result in results:
            printer.show(one, result)
            if "error" in result:
                tell(f"{one.name}: {result['error']}")
                failed += 1
            elif pictures is not None:
                pictures.draw(one, result)
            bar.update()
    if pictures is not None:
        pictures.draw_plane()
    if failed and len(inputs) > 1:
        tell(f"{failed} of {len(inputs)} inputs failed")
    return FAILED if failed else GOOD


def to_parts(given: argparse.Namespace, share: tuple[int, int]) -> int:
    """Predict this process's share of the inputs into Parquet parts."""
    given.revision, model = identity(given.model, given.revision)
    settings = {name: getattr(given, name) for name in SETTINGS}
    settings |= {"model": model, "mtmm": installed_version()}
    parts = Parts(given.out, _inputs(given), given.part_size, settings)

    def load() -> tuple[dict[str, type], Predict]:
        pipe = _pipeline(given)
        columns = result_columns(pipe.model.config, explain=given.explain is not None)
        options, stop = _options(given, pipe), given.on_error == "stop"
        return columns, partial(predict_each, pipe, options=options, stop=stop)

    to_do = sum(len(parts.of(number)) for number in parts.missing(share))
    with _bar(to_do, hidden=share[0] > 0) as bar:
        failed = predict_parts(parts, load, share=share, advance=bar.update)
    return FAILED if failed else GOOD


def predict_each(
    pipe: Any,
    inputs: Sequence[Input],
    options: Mapping[str, Any],
    *,
    at_once: int | None = None,
    stop: bool = False,
) -> Iterator[tuple[Input, dict[str, Any]]]:
    """Results in the order of the inputs, while they come.

    Args:
        pipe: An `MTMMPipeline`.
        inputs: Files, transcripts or both.
        options: Keyword arguments of its `__call__`.
        at_once: How many the pipeline is given at once, to sort and to batch; all if not given.
        stop: Whether the first input that fails ends it.

    Yields:
        The input and what the pipeline gives for it, or {"error": message}. Times are seconds from
        the recording's beginning, also of an input that begins later in it.

    Raises:
        ValueError, TypeError: An input cannot be predicted, and `stop`; or the options are wrong.
    """
    done = 0
    while done < len(inputs):
        first = done  # the pipeline stops at an input that it cannot read; it is begun again behind
        last = len(inputs) if at_once is None else first + at_once
        try:
            for result in pipe((one.given() for one in inputs[first:last]), **options):
                yield inputs[done], moved(result, inputs[done].start_s or 0.0)
                done += 1
        except ValueError as error:
            if not hasattr(error, "index"):  # no `InputError`: of this code, or of the model's own
                raise
            reason = str(getattr(error, "reason", error))
            if stop:
                raise ValueError(f"{inputs[done].name}: {reason}") from error
            yield inputs[done], {"error": reason}
            done += 1


def _inputs(given: argparse.Namespace) -> list[Input]:
    """What the command line names, with its transcripts."""
    file = given.transcript_file
    if file is not None and file.is_dir():
        inputs = read_inputs(given.inputs, file)
        if without := sum(not one.transcript for one in inputs):
            tell(f"{without} of {len(inputs)} inputs have no transcript in {file}")
        return inputs
    said = {} if given.transcript is None else {"text": given.transcript}
    if file is not None:
        said = read_transcript(file)
    if not given.inputs:
        return [Input("transcript", None, said)]
    return [replace(one, transcript=said) if said else one for one in read_inputs(given.inputs)]


def _pipeline(given: argparse.Namespace) -> Any:
    return load_pipeline(given.model, given.revision, given.device, given.trust_remote_code)


def _options(given: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """Of the pipeline's call; without those that were not given."""
    names = ("window_s", "hop_s", "top_k", "explain", "batch_size")
    options: dict[str, Any] = {name: getattr(given, name) for name in names}
    if given.transcriber is not None:
        options["transcriber"] = load_recogniser(given.transcriber, pipe.device)
    return {name: value for name, value in options.items() if value is not None}


def _bar(total: int, *, hidden: bool) -> Any:
    """A bar on a terminal; nothing where standard error goes elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, desc="inputs", unit="input", leave=False,
                disable=hidden or None)  # fmt: skip  # None: unless it is a terminal
