"""What `mtmm predict` does: loads the model; inputs to results in order, printed, drawn or as parts."""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mtmm_training.commands import installed_version
from mtmm_training.commands.predict_inputs import Input, read_inputs, read_transcript
from mtmm_training.commands.predict_output import Pictures, Printer, moved, result_columns, timed
from mtmm_training.commands.predict_parts import Parts, Predict, predict_parts
from mtmm_training.data.files import appearing, file_digest, walk
from mtmm_training.data.utterances import few
from mtmm_training.training.ending import FAILED, GOOD, tell

BATCH_SIZE, MOST_ROWS, MOST_WORKERS = 8, 256, 16  # where no flag says so
# Flags that are options of the pipeline's call, and what else a record of a run keeps of those that
# change results.
OPTIONS = ("window_s", "hop_s", "top_k", "min_confidence", "explain", "explain_s", "by", "channel")
SETTINGS = (*OPTIONS, "transcriber", "trust_remote_code")


def to_stdout(given: argparse.Namespace) -> int:
    """Predict and print each answer when it comes; the exit status says whether all came."""
    if given.plot is not None:
        import matplotlib  # noqa: F401  before any work: it comes with the training extra
    given.batch_size = given.batch_size or BATCH_SIZE
    streamed = given.inputs == ["-"]
    if streamed and sys.stdin is None:
        raise ValueError("Standard input is closed; there is nothing to read for `-`.")
    inputs = [Input("-")] if streamed else read_given(given)
    pipe = load_pipeline(given)
    config = pipe.model.config
    for name in sorted(set(config.output_names) - set(config.trained_outputs)):
        tell(f"{given.model} was never trained on {name}; it is left out")
    if getattr(config, "training_data", None):
        tell(f"{given.model}: trained on {config.trained_on}")
    timeline = given.timeline or streamed
    pictures = None if given.plot is None else Pictures(given.plot, config)
    options, stop = pipeline_options(given, pipe, inputs), given.on_error == "stop"
    printer = Printer(config, given.form, _columns(given, pipe, inputs, options), timeline)
    # A batch at a time, not many sorted by length: who watches wants the first answer soon.
    results = predict_each(pipe, inputs, options, at_once=given.batch_size, stop=stop)
    if streamed:
        del options["batch_size"]
        windows = pipe.stream(sys.stdin.buffer, given.sampling_rate, **options)
        results = ((inputs[0], {"timeline": [entry]}) for entry in windows)
    failed = 0
    with _bar(len(inputs), hidden=streamed or sys.stdout.isatty()) as bar:
        for one, result in results:
            with_times = timeline or given.form == "json"
            printer.show(one, timed(one, result) if with_times else result)
            if "error" in result:
                failed += 1
            elif pictures is not None:
                pictures.draw(one, result)
            bar.update()
    if pictures is not None:
        pictures.draw_plane()
    if failed and len(inputs) > 1:
        tell(f"{failed} of {len(inputs)} inputs failed")
    return FAILED if failed else GOOD


def to_parts(given: argparse.Namespace) -> int:
    """Predict this process's share of the inputs into Parquet parts."""
    settings = {name: getattr(given, name) for name in SETTINGS}
    settings |= {"model": identify(given), "mtmm": installed_version()}
    if given.reference is not None:  # of files what is in them
        words = given.reference  # names, and files of this kind alone, as predict.py sees to
        settings["reference"] = [file_digest(w) if w.endswith(".safetensors") else w for w in words]
    inputs = read_given(given)
    parts = Parts(given.out, inputs, given.part_size, settings)

    def load() -> tuple[dict[str, type], Predict]:
        pipe = load_pipeline(given)
        on_gpu = pipe.device.type != "cpu"
        given.batch_size = given.batch_size or (fitting_batch(pipe) if on_gpu else BATCH_SIZE)
        if given.workers is None:
            given.workers = min(os.cpu_count() or 1, MOST_WORKERS) if on_gpu else 0
        options, stop = pipeline_options(given, pipe, inputs), given.on_error == "stop"
        options["num_workers"] = given.workers
        columns = _columns(given, pipe, inputs, options)
        return columns, partial(predict_each, pipe, options=options, stop=stop)

    to_do = sum(len(parts.of(number)) for number in parts.missing(given.share))
    with _bar(to_do, hidden=given.share[0] > 0) as bar:
        failed = predict_parts(parts, load, share=given.share, advance=bar.update)
    return FAILED if failed else GOOD


def _columns(
    given: argparse.Namespace, pipe: Any, inputs: Sequence[Input], options: Mapping[str, Any]
) -> dict[str, type]:
    """The columns of the results of this call."""
    speakers = given.channel == "each" or any(one.has_speakers for one in inputs)
    explain, reference = given.explain is not None, "reference" in options
    config = pipe.model.config
    return result_columns(config, explain=explain, reference=reference, speakers=speakers)


def fitting_batch(pipe: Any) -> int:
    """Utterances at a time: as many of the longest as fill a GPU's memory."""
    import numpy as np

    from mtmm_training.batches.encoding import fill

    processor = pipe.processor
    longest = np.zeros(round(processor.longest_audio_s() * processor.sampling_rate), np.float32)
    given = [{"array": longest, "sampling_rate": processor.sampling_rate}] * BATCH_SIZE
    rows = fill(pipe.device, lambda: pipe(given, batch_size=BATCH_SIZE), BATCH_SIZE)
    return min(rows, MOST_ROWS)


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
        The input and what the pipeline gives for it, or {"error": message}, which is told. Times are
        seconds from the recording's beginning, also of an input that begins later in it.

    Raises:
        ValueError, TypeError: An input cannot be predicted, and `stop`; or the options are wrong.
    """
    done, began = 0, time.monotonic()
    while done < len(inputs):
        first = done  # the pipeline stops at an input that it cannot read; it is begun again behind
        last = len(inputs) if at_once is None else first + at_once
        try:
            for result in pipe((one.given() for one in inputs[first:last]), **options):
                if done == 0 and getattr(pipe, "compiled", False):
                    tell(f"--compile: the first answer came after {time.monotonic() - began:.0f} s")
                yield inputs[done], moved(result, inputs[done].start_s or 0.0)
                done += 1
        except ValueError as error:
            if not hasattr(error, "index"):  # no `InputError`: of this code, or of the model's own
                raise
            reason = str(getattr(error, "reason", error))
            if stop:
                raise ValueError(f"{inputs[done].name}: {reason}") from error
            tell(f"{inputs[done].name}: {reason}")
            yield inputs[done], {"error": reason}
            done += 1


def read_given(given: argparse.Namespace) -> list[Input]:
    """What the command line names, with its transcripts."""
    file, speakers = given.transcript_file, "speaker" in (given.reference or ())
    if file is not None and file.is_dir():
        inputs = read_inputs(given.inputs, file, speakers=speakers)
        if without := sum(not one.transcript for one in inputs):
            there = few([str(path.relative_to(file)) for path in walk(file)])
            tell(f"{without} of {len(inputs)} inputs have no transcript in {file}; it has {there}")
        return inputs
    said = {} if given.transcript is None else {"text": given.transcript}
    if file is not None:
        said = read_transcript(file)
    if not given.inputs:
        return [Input("transcript", None, said)]
    inputs = read_inputs(given.inputs, speakers=speakers)
    return [replace(one, transcript=said) if said else one for one in inputs]


def make_reference(given: argparse.Namespace) -> Any:
    """The reference of all inputs; it is written too, or the model that has learned their place."""
    given.reference = None
    inputs, pipe = read_given(given), load_pipeline(given)
    options = pipeline_options(given, pipe, inputs)
    try:
        rows = [one.given() for one in inputs]
        if given.out.suffix != ".safetensors":
            with appearing(given.out, "config.json") as staged:
                made = pipe.adapt(rows, **options)
                pipe.save_pretrained(staged)
            return made
        made = pipe.reference(rows, given.kind, given.domain, given.emotion, **options)
    except ValueError as error:
        if not hasattr(error, "index"):
            raise
        raise ValueError(
            f"{inputs[error.index].name}: {getattr(error, 'reason', error)}"
        ) from error
    given.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(given.out)
    return made


def pipeline_options(
    given: argparse.Namespace, pipe: Any, inputs: Sequence[Input]
) -> dict[str, Any]:
    """Of the pipeline's call; without those that were not given."""
    options = {name: getattr(given, name, None) for name in (*OPTIONS, "batch_size")}
    options = {name: value for name, value in options.items() if value is not None}
    options |= transcriber_of(given, pipe)
    if given.reference not in (None, ["none"]):
        # Of all inputs at once: those that cannot be read are told of when they are predicted.
        rows = [one.given() for one in inputs]
        options["reference"] = pipe.references(rows, given.reference, skip=True, **options)
    return options


def transcriber_of(given: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """The option of the pipeline for --transcriber, where it is given."""
    if getattr(given, "transcriber", None) is None:
        return {}
    from transformers import pipeline

    with _named("--transcriber", given.transcriber):
        task = {"task": "automatic-speech-recognition", "model": given.transcriber}
        made: Any = pipeline(**task, device=pipe.device, trust_remote_code=False)
    return {"transcriber": made}


def _bar(total: int, *, hidden: bool) -> Any:
    """A bar on a terminal; nothing where standard error goes elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, desc="inputs", unit="input", leave=False,
                disable=hidden or None)  # fmt: skip  # None: unless it is a terminal


# ---- the model ---------------------------------------------------------------------------------


def load_pipeline(given: argparse.Namespace) -> Any:
    """The model's pipeline; with --trust_remote_code, the model's own code in place of this package's.

    Without --device it is on this process's accelerator, or the CPU.

    Raises:
        ValueError: The model or the device cannot be used.
        OSError: The model is neither here nor on the Hub.
    """
    import torch
    from transformers import pipeline
    from transformers.utils import logging

    from modeling_mtmm import MTMMModel
    from pipeline_mtmm import MTMMPipeline
    from processing_mtmm import MTMMProcessor

    device = given.device
    if device is None:
        count = torch.accelerator.device_count()
        device = int(os.environ.get("LOCAL_RANK", 0)) % count if count else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"`--device {device}` cannot be used here: {error}") from error
    where: dict[str, Any] = {"revision": given.revision} if given.revision else {}
    logging.disable_progress_bar()  # of weights, which are there in a second
    with _named("--model", given.model):
        if given.trust_remote_code:
            pipe = pipeline(model=given.model, trust_remote_code=True, device=device, **where)
        else:
            model = MTMMModel.from_pretrained(given.model, **where)
            processor = MTMMProcessor.from_pretrained(given.model, **where)
            pipe = MTMMPipeline(model=model, processor=processor, device=device)
    if getattr(given, "compile", None):
        pipe.compile(mode=None if given.compile is True else given.compile)
    return pipe


def identify(given: argparse.Namespace) -> str:
    """Which weights --model has, wherever they lie, for the record of a run.

    Of a folder, a digest of the files that make a model. On the Hub, the commit behind a branch or
    tag, which may move while a run works; from here on it is the --revision.
    """
    if not Path(given.model).is_dir():
        from transformers.utils.hub import cached_file, extract_commit_hash

        with _named("--model", given.model):
            config = cached_file(given.model, "config.json", revision=given.revision)
        given.revision = str(extract_commit_hash(config, None))
        return f"commit {given.revision}"
    digest = hashlib.sha256()
    for path in sorted(Path(given.model).iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
            digest.update(f"{path.name} {file_digest(path)}".encode())
    return f"files {digest.hexdigest()}"


@contextmanager
def _named(flag: str, name: str) -> Iterator[None]:
    """Says which flag it was where transformers speaks of the network alone, also of a misspelt path."""
    try:
        yield
    except OSError as error:
        if name and Path(name).is_dir():
            raise
        reason = str(error).splitlines()[0]
        raise OSError(f"`{flag} {name}` is no folder here, and not on the Hub: {reason}") from error
