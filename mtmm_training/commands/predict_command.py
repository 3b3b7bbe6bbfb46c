"""`mtmm predict`: its flags, the model that they name, and the work."""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import count
from mtmm_training.commands.predict_files import (
    Input,
    InputFailed,
    Parts,
    predict_each,
    predict_parts,
    printable,
    read_inputs,
    read_transcript,
)
from mtmm_training.commands.predict_output import Pictures, printer, tell
from mtmm_training.files import writing

ALL_GOOD, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130  # exit statuses

SUMMARY = "emotion, valence and arousal of recordings and transcripts"
EPILOG = """\
examples:
  One recording, with its words, without any, or the words alone:
    mtmm predict speech.wav --model out/demo/fused/model --transcript "We won!"
    mtmm predict speech.wav --model someone/mtmm --revision 1a2b3c
    mtmm predict --model someone/mtmm --transcript "We won!"

  A long one in windows of 6 s every 2 s, its words from a recogniser; as a table; as a picture:
    mtmm predict talk.mp3 --model M --window_s 6 --hop_s 2 --transcriber openai/whisper-base --timeline
    mtmm predict talk.mp3 --model M --transcript_file talk.json --timeline --csv > talk.csv
    mtmm predict talk.mp3 --model M --window_s 6 --plot pictures

  Several, for people and for scripts; words/ has a.json or a.txt for a.wav:
    mtmm predict a.wav b.wav --model M --transcript_file words
    mtmm predict recordings --model M --json | jq -r 'select(.emotion == "angry").id'

  What it came from: what was read, and how far valence falls without it:
    mtmm predict speech.wav --model M --transcript "We won!" --explain valence

  While it is spoken; the first window comes after 3 s:
    arecord -f S16_LE -r 16000 | mtmm predict - --model M --window_s 3

  A corpus, into Parquet parts; killed, the same command goes on; on any number of processes:
    mtmm predict corpus/manifest.csv --model M --out out/predicted
    accelerate launch --config_file launch/ddp.yaml -m mtmm_training.commands.cli predict M.csv \\
        --model M --out out/predicted
    srun -n 8 sh -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS mtmm predict ... --out out/predicted'
  The processes share the folder and nothing else (rank and number come from RANK and WORLD_SIZE);
  whichever is last checks that every input is there once, in order. Read all of them with
  pandas.read_parquet("out/predicted").

columns of --csv and of the parts: id, emotion, p_<emotion> (probabilities), the dimensions on the
model's scale, missing (modalities that were not there), text (what was recognised, or said in the
window), error; with --timeline, start and end in seconds before them. The parts have the windows in
the column timeline. --json has the pipeline's own keys, with the id before them.

exit status: 0 all inputs predicted, 1 some failed (named on standard error), 2 wrong usage, or a model
or manifest that cannot be read, or output that cannot be written, 130 interrupted. Standard output has
results only."""


# ---- flags -------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtmm predict",
        usage="mtmm predict [INPUT ...] --model FOLDER_OR_ID [options]",
        description=f"Predicts {SUMMARY}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT",
        help="an audio file or URL; a folder: all audio below it; a manifest (.csv, .tsv, .jsonl, "
        ".parquet with the columns audio, text, id, start, end; labels are not read); or - : wav "
        "from standard input, answered window by window",
    )  # fmt: skip
    _add_model_flags(parser.add_argument_group("model"))
    _add_transcript_flags(parser.add_argument_group("transcript"))
    _add_window_flags(parser.add_argument_group("long recordings"))
    _add_output_flags(parser)
    return parser


def _add_model_flags(group: Any) -> None:
    group.add_argument("--model", required=True, metavar="FOLDER_OR_ID",
                       help="a folder, or an id on the Hub")  # fmt: skip
    group.add_argument("--revision", metavar="COMMIT", help="of the Hub's repository")
    group.add_argument(
        "--trust_remote_code", action="store_true",
        help="run the Python files that the model brings, with your rights, instead of this "
        "package's own (which run otherwise): read SECURITY.md, and give --revision",
    )  # fmt: skip
    group.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps; the first accelerator if there is one"
    )
    group.add_argument("--batch_size", type=count, default=8, metavar="N",
                       help="utterances or windows at a time, at most (8)")  # fmt: skip


def _add_transcript_flags(group: Any) -> None:
    given = group.add_mutually_exclusive_group()
    given.add_argument(
        "--transcript", metavar="TEXT", help="the words of the one INPUT; or no INPUT"
    )
    given.add_argument(
        "--transcript_file", type=Path, metavar="PATH",
        help="the words of the one INPUT: .txt, or .json with times as speech recognisers write it "
        '({"text", "start", "end"} in a list, or under "words", "segments" or "chunks"; segments '
        "become the timeline's units). For more inputs a folder with NAME.json or NAME.txt for "
        "NAME.wav; inputs without one are counted. A manifest has its own in its column text",
    )  # fmt: skip
    group.add_argument("--transcriber", metavar="FOLDER_OR_ID",
                       help="a speech recogniser of transformers, for what has no transcript")  # fmt: skip


def _add_window_flags(group: Any) -> None:
    group.add_argument(
        "--window_s", type=float, metavar="S",
        help="cut recordings into windows of S seconds; without it only those that the model "
        "cannot take at once (40 s, or Whisper's window), into 6 s",
    )  # fmt: skip
    group.add_argument("--hop_s", type=float, metavar="S",
                       help="from one window's beginning to the next (as --window_s)")  # fmt: skip
    group.add_argument(
        "--timeline", action="store_true",
        help="print a line, object or row for each window or segment, not for each input",
    )  # fmt: skip
    group.add_argument("--sampling_rate", type=count, metavar="HZ",
                       help="of raw 16-bit mono samples from -, which are no wav")  # fmt: skip


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, an object a line")
    form.add_argument("--csv", action="store_true", help="print CSV with a header")
    form.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="write Parquet parts there, by any number of processes; goes on where it was stopped, "
        "and at the end names the parts whose recordings changed since",
    )  # fmt: skip
    group.add_argument("--part_size", type=count, default=256, metavar="N",
                       help="inputs to a part (256)")  # fmt: skip
    group.add_argument(
        "--plot", type=Path, metavar="FOLDER",
        help="also draw timelines, explanations and the valence-arousal plane there, as PNG",
    )  # fmt: skip
    group.add_argument(
        "--explain", metavar="OUTPUT",
        help="also what OUTPUT came from, emotion or a dimension such as valence: how much of each "
        "modality, stretch of time and word was read, and how far the output falls without it; takes "
        "a run of the model for each of them",
    )  # fmt: skip
    group.add_argument("--top_k", type=count, metavar="K", help="only the K highest probabilities")
    group.add_argument(
        "--on_error", choices=("skip", "stop"), default="skip",
        help="what an input that cannot be read does: it is named and counted, and the rest goes "
        "on (skip), or all ends there (stop)",
    )  # fmt: skip


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuses flags that do not go together."""
    one = len(given.inputs) == 1
    words = given.transcript is not None or given.transcript_file is not None
    if not given.inputs and not words:
        parser.error(
            "no INPUT; give files, a folder, a manifest, - for standard input, or --transcript"
        )
    if given.transcript is not None and len(given.inputs) > 1:
        parser.error("--transcript is for one INPUT; for more, see --transcript_file")
    if not given.inputs and given.transcript is None and given.transcript_file.is_dir():
        parser.error("--transcript_file is a folder, and there is no INPUT to look up in it")
    if (
        given.transcript_file is not None
        and not given.transcript_file.is_dir()
        and len(given.inputs) > 1
    ):
        parser.error("--transcript_file must be a folder where there is more than one INPUT")
    if "-" in given.inputs:
        if not one or words or given.out or given.plot:
            parser.error("- goes without other inputs, transcripts, --out and --plot")
    elif given.sampling_rate is not None:
        parser.error("--sampling_rate is for raw samples from -; files say their own")
    if given.out is not None and (given.plot is not None or given.timeline):
        parser.error("--out goes without --plot and --timeline; the parts have a column timeline")
    if given.out is None and _share()[1] > 1:
        parser.error("several processes (WORLD_SIZE) need --out, or each would print everything")


def _share() -> tuple[int, int]:
    """This process's number and how many there are, as accelerate and torchrun set them.

    Raises:
        ValueError: They are no numbers, or the first is not below the second.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ValueError(
            f"RANK={rank!r} and WORLD_SIZE={world_size!r} must be whole numbers, this process's from 0 "
            "and how many there are; set both, or none."
        )
    return int(rank), int(world_size)


# ---- work --------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """Runs `mtmm predict` with these words; returns its exit status."""
    parser = _parser()
    given = parser.parse_args(words)
    try:
        _check(parser, given)
        if given.inputs == ["-"]:
            return _stream(given)
        inputs = _inputs(given)
        if given.out is not None:
            return _to_parts(given, inputs)
        return _to_stdout(given, inputs)
    except BrokenPipeError:
        raise
    except InputFailed as error:
        tell(f"{error}")
        return SOME_FAILED
    except (ValueError, TypeError, OSError) as error:
        tell(f"error: {error}")
        return WRONG_USE


def _inputs(given: argparse.Namespace) -> list[Input]:
    """What is to be predicted, with its transcripts."""
    folder = given.transcript_file
    if folder is not None and folder.is_dir():
        inputs = read_inputs(given.inputs, transcripts=folder)
        if without := sum(not one.transcript for one in inputs):
            tell(f"{without} of {len(inputs)} inputs have no transcript in {folder}")
        return inputs
    said = {} if given.transcript is None else {"text": given.transcript}
    if given.transcript_file is not None:
        said = read_transcript(given.transcript_file)
    if not given.inputs:
        return [Input("transcript", None, said)]
    inputs = read_inputs(given.inputs)
    if not said:
        return inputs
    if len(inputs) > 1 or inputs[0].name != printable(given.inputs[0]):
        raise ValueError(
            f"One transcript is given for {given.inputs[0]!r}, which holds {len(inputs)} utterances. Put "
            "them into the manifest's column text, or into a folder for --transcript_file."
        )
    return [Input(inputs[0].name, inputs[0].audio, said)]


def _load(given: argparse.Namespace) -> Any:
    """The pipeline, of the model's own code only where the user trusts it."""
    from transformers import pipeline
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # what its warnings say of loading is an error here
    device = _device(given.device)
    if given.trust_remote_code:
        where = {"revision": given.revision, "device": device}
        with _loading(given.model):
            return pipeline(model=given.model, trust_remote_code=True, **where)
    from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor

    where = {"revision": given.revision} if given.revision else {}
    with _loading(given.model):
        try:
            model = MTMMModel.from_pretrained(given.model, **where)
        except ValueError as error:
            raise ValueError(
                f"{error} If the model brings code of its own that you trust, give --trust_remote_code."
            ) from error
        processor = MTMMProcessor.from_pretrained(given.model, **where)
    return MTMMPipeline(model=model, processor=processor, device=device)


def _device(name: str | None) -> Any:
    """What was asked for, if it can be used; else this process's accelerator, or the CPU."""
    import torch

    if name is None:
        count = torch.accelerator.device_count()
        return int(os.environ.get("LOCAL_RANK", 0)) % count if count else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" makes tensors that nobody can read
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"`--device {name}` cannot be used here: {error}") from error
    return name


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Says what was looked for where a model is neither a folder nor on the Hub."""
    if Path(model).is_dir():
        inner = Path(model, "model")
        if not Path(model, "config.json").exists() and (inner / "config.json").exists():
            raise ValueError(
                f"`--model {model}` is a run's folder; its model is {inner}: give that."
            )
        yield
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(
            f"`--model {model}` is no folder, and no id on the Hub, which is OWNER/NAME."
        )
    else:
        from huggingface_hub.constants import HF_HUB_CACHE

        try:
            with writing(HF_HUB_CACHE):
                yield
        except OSError as error:
            raise OSError(
                f"`--model {model}` is no folder here, and cannot be had from the Hub: {error}"
            ) from error


def _options(given: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """Of the pipeline's call; without those that were not given."""
    names = ("window_s", "hop_s", "top_k", "explain")
    options: dict[str, Any] = {name: getattr(given, name) for name in names}
    if given.transcriber is not None:
        options["transcriber"] = _recogniser(given.transcriber, pipe.device)
    return {name: value for name, value in options.items() if value is not None}


def _recogniser(name: str, device: Any) -> Any:
    from transformers import pipeline

    try:
        return pipeline(
            "automatic-speech-recognition", model=name, device=device, trust_remote_code=False
        )
    except (ValueError, OSError) as error:
        raise ValueError(
            f"`--transcriber {name!r}` cannot be used as a speech recogniser: {str(error).splitlines()[0]}"
        ) from error


def _stream(given: argparse.Namespace) -> int:
    if sys.stdin is None:
        raise ValueError("Standard input is closed; there is nothing to read for `-`.")
    pipe = _load(given)
    options = _options(given, pipe)
    given.timeline = True
    show = printer(given, pipe.model.config)
    try:
        for entry in pipe.stream(sys.stdin.buffer, given.sampling_rate, **options):
            show(Input("-"), {"timeline": [entry]})
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise InputFailed(f"-: {error}") from error
    return ALL_GOOD


def _to_stdout(given: argparse.Namespace, inputs: list[Input]) -> int:
    if given.plot is not None:
        import matplotlib  # noqa: F401  before any work: it comes with the training extra
    pipe = _load(given)
    pictures = None if given.plot is None else Pictures(given.plot, pipe.model.config)
    options = _options(given, pipe) | {"batch_size": given.batch_size}
    show = printer(given, pipe.model.config)
    failed = 0
    with _bar(len(inputs), hidden=sys.stdout.isatty()) as bar:
        for one, result in predict_each(pipe, inputs, options, stop=given.on_error == "stop"):
            show(one, result)
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
    return SOME_FAILED if failed else ALL_GOOD


def _to_parts(given: argparse.Namespace, inputs: list[Input]) -> int:
    names = ("window_s", "hop_s", "top_k", "transcriber", "explain", "trust_remote_code")
    settings = {name: getattr(given, name) for name in names} | {"mtmm": _version()}
    if Path(given.model).is_dir():
        settings["model"] = f"files {_folder_digest(Path(given.model))}"
    else:
        given.revision = _commit(given.model, given.revision)  # a branch may move while we work
        settings["model"] = f"commit {given.revision}"

    def load() -> tuple[Any, dict[str, Any]]:
        pipe = _load(given)
        return pipe, _options(given, pipe) | {"batch_size": given.batch_size}

    parts, share = Parts(given.out, inputs, given.part_size, settings), _share()
    to_do = sum(len(parts.of(number)) for number in parts.missing(share))
    with _bar(to_do, hidden=share[0] > 0) as bar:
        failed = predict_parts(
            parts,
            load,
            share=share,
            stop=given.on_error == "stop",
            tell=tell,
            advance=bar.update,
        )
    return SOME_FAILED if failed else ALL_GOOD


def _version() -> str:
    try:
        return version("mtmm")
    except PackageNotFoundError:
        return "not installed"


def _commit(model: str, revision: str | None) -> str:
    """The commit on the Hub that a branch, a tag or None stands for."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    with _loading(model):
        return str(extract_commit_hash(cached_file(model, "config.json", revision=revision), None))


def _folder_digest(folder: Path) -> str:
    """Of the files that make a model, which are the same wherever the folder lies."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
            with path.open("rb") as file:
                digest.update(
                    f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
                )
    return digest.hexdigest()


def _bar(total: int, *, hidden: bool) -> Any:
    """A bar on a terminal; nothing where standard error goes elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, unit="input", disable=hidden or total < 2 or not sys.stderr.isatty())
