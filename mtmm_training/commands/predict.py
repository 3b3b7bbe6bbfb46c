"""Predict emotion, valence and arousal of recordings and transcripts.

examples:
  One recording, with its words; or the words alone:
    mtmm predict speech.wav --model out/demo/fused/model --transcript "We won!"
    mtmm predict --model someone/mtmm --revision 1a2b3c --transcript "We won!"

  A long one in windows of 6 s, its words from a recogniser; as a table; a call, with pictures:
    mtmm predict talk.mp3 --model M --window_s 6 --timeline --transcriber openai/whisper-base
    mtmm predict talk.mp3 --model M --transcript_file talk.json --timeline --csv > talk.csv
    mtmm predict call.wav --model M --channel each --plot pictures

  Several, for people and for scripts; words/ has a.json or a.txt for a.wav:
    mtmm predict a.wav b.wav --model M --transcript_file words
    mtmm predict interviews.csv --model M --reference speaker
    mtmm predict recordings --model M --json | jq -r 'select(.emotion == "angry").id'

  What it came from: what was read, and how far valence falls without it:
    mtmm predict speech.wav --model M --transcript "We won!" --explain valence

  While it is spoken; the first window comes after 3 s:
    arecord -f S16_LE -r 16000 | mtmm predict - --model M --window_s 3

  A corpus, into Parquet parts; killed, the same command goes on; on any number of processes:
    mtmm predict corpus/manifest.csv --model M --out out/predicted
    accelerate launch -m mtmm_training predict M.csv --model M --out out/predicted
    srun sh -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS mtmm predict M.csv --model M --out P'

columns of --csv and of the parts: id, emotion, p_<emotion> (probabilities), the dimensions on the
model's scale, missing (modalities that were not there), text (what was recognised, or said in the
window), reference, error; of models that have them agreement, <dimension>_sd, unfamiliar; with
--timeline, start, end, speaker before them. --json has the pipeline's keys, the id before.

exit status: 0 all inputs predicted, 1 some failed (named on standard error), or the model or output
did, 2 wrong usage, 130 interrupted. Standard output has results only.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import Advanced, channel, count, refuse, share
from mtmm_training.commands.predict_inputs import is_manifest
from mtmm_training.data import hub

REFERENCES = ("speaker", "domain", "none")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The inputs, the model, their transcripts, how they are cut, and what comes out."""
    group = add_input_flags(parser)
    add_reference_flag(group)
    group.add_argument(
        "--compile", nargs="?", const=True, metavar="MODE",
        help="run the model by torch.compile, layer by layer, or as a whole in a MODE of it "
        "(reduce-overhead: CUDA graphs): the first answer takes a minute or more, all others less",
    )  # fmt: skip
    add_transcript_flags(parser)
    _add_output_flags(parser)
    parser.set_defaults(batch_size=None)  # on a GPU --out takes as many as fill it


def add_reference_flag(group: Any) -> None:
    """What recordings are compared with."""
    group.add_argument(
        "--reference", nargs="+", metavar="WHAT",
        help="with a model trained with --reference: files of `mtmm reference`; speaker: of each "
        "speaker (a manifest's column) all recordings here; domain: all recordings here; none",
    )  # fmt: skip


def add_input_flags(parser: argparse.ArgumentParser) -> Any:
    """The inputs and the model; returns the latter's group."""
    add = parser.add_argument_group("inputs").add_argument
    hub.add_flags(add, Advanced)
    add(
        "inputs", nargs="*", metavar="INPUT",
        help="an audio file or URL; a folder: all audio below it; a manifest (its labels are not "
        "read); or - : wav from standard input, answered window by window",
    )  # fmt: skip
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", required=True, metavar="PLACE",
        help="folder of a model or run, or an id on the Hub")  # fmt: skip
    add_machine_flags(add)
    return group


def add_machine_flags(add: Callable[..., Any]) -> None:
    """Which files of the model, whose code, and what it runs on."""
    add("--revision", metavar="COMMIT", help="of the Hub's repository")
    add("--trust_remote_code", action="store_true",
        help="run the Python files that the model brings, with your rights, instead of this package's "
        "own (which run otherwise): read .github/SECURITY.md, and give --revision")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, mps; the first accelerator if there is one")
    add("--batch_size", type=count, default=8, metavar="N",
        help="utterances or windows at a time, at most")  # fmt: skip


def add_transcript_flags(parser: argparse.ArgumentParser) -> None:
    """The transcripts of the inputs."""
    transcript = parser.add_argument_group("transcript")
    add = transcript.add_mutually_exclusive_group().add_argument
    add("--transcript", metavar="TEXT", help="the words of the one INPUT; or no INPUT")
    add("--transcript_file", type=Path, metavar="PATH",
        help="the words of the one INPUT: .txt, or .json with times as speech recognisers write it "
        '({"text", "start", "end"} in a list, or under "words", "segments" or "chunks"; segments '
        "become the timeline's units). For more inputs a folder with NAME.json or NAME.txt for "
        "NAME.wav; inputs without one are counted. A manifest has its own in its column text",
        )  # fmt: skip
    transcript.add_argument("--transcriber", metavar="PLACE",
        help="a speech recogniser of transformers, for what has no transcript")  # fmt: skip


def add_window_flags(parser: argparse.ArgumentParser, timeline: str) -> Any:
    """How long recordings are cut, and a flag --timeline that does what is said; returns the group's add."""
    add = parser.add_argument_group("long recordings").add_argument
    add("--window_s", type=float, metavar="S",
        help="windows of S seconds; without it only of what is too long for the model (40 s, or "
        "Whisper's window): 6 s")  # fmt: skip
    add("--hop_s", type=float, metavar="S",
        help="from one window's beginning to the next (as --window_s)")  # fmt: skip
    add("--by", choices=("segment", "turn", "window"), metavar="UNIT",
        help="a timeline of segments, turns (of one speaker) or windows")  # fmt: skip
    add("--channel", type=channel, metavar="N",
        help="hear channel N alone, from 0; each: a call with a speaker on each channel")  # fmt: skip
    add("--timeline", action="store_true", help=timeline)
    return add


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = add_window_flags(
        parser, "print a line, object or row for each window or segment, not for each input"
    )
    add("--sampling_rate", type=count, metavar="HZ",
        help=Advanced("of raw 16-bit mono samples from -, which are no wav"))  # fmt: skip
    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group().add_argument
    form("--json", action="store_const", const="json", dest="form", default="lines",
         help="print JSON, an object a line")  # fmt: skip
    form("--csv", action="store_const", const="csv", dest="form", help="print CSV with a header")
    form("--out", type=Path, metavar="FOLDER",
         help="write Parquet parts there, by any number of processes (RANK and WORLD_SIZE say which "
         "this is); goes on where it was stopped, and at the end names parts that are older than their "
         "recordings")  # fmt: skip
    add = output.add_argument
    # As accelerate and torchrun say it.
    started = f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"
    add("--share", type=share, default=started, metavar="I/N",
        help=Advanced("this is process I of N, from 0, each with its share of the parts"),
        )  # fmt: skip
    add("--workers", type=int, metavar="N",
        help=Advanced("with --out: so many processes read recordings ahead of the model; without it, "
        "for a GPU one for each core, 16 at most, and none on a CPU"))  # fmt: skip
    add("--part_size", type=count, default=256, metavar="N", help=Advanced("inputs to a part"))
    add("--plot", type=Path, metavar="FOLDER",
        help="also draw timelines, explanations and the valence-arousal plane there")  # fmt: skip
    add("--explain", metavar="OUTPUT",
        help="also what OUTPUT came from, emotion or a dimension such as valence: how much of each "
        "modality, half second and word was read, and how far the output falls without it; takes a "
        "run of the model for each of them")  # fmt: skip
    add("--explain_s", type=float, nargs=2, metavar=("START", "END"),
        help=Advanced("explain only windows that overlap these seconds"))  # fmt: skip
    add("--top_k", type=count, metavar="K", help="only the K highest probabilities")
    add("--min_confidence", type=float, metavar="P",
        help="name no emotion that is less probable")  # fmt: skip
    add("--on_error", choices=("skip", "stop"), default="skip",
        help="an input that fails is named and counted (skip), or ends all (stop)",
        )  # fmt: skip


def check_inputs(given: argparse.Namespace) -> None:
    """Refuses inputs, transcripts and references that do not go together."""
    given.inputs = given.inputs + hub.places_of(given)
    several, none = len(given.inputs) > 1, not given.inputs
    tables = any(map(is_manifest, given.inputs))
    folders = any(Path(place).is_dir() for place in given.inputs)
    file = given.transcript_file
    said = given.transcript is not None or file is not None
    in_folder = file is not None and file.is_dir()
    words = given.reference or []
    others = [w for w in words if w not in REFERENCES and not w.endswith(".safetensors")]
    refuse(
        (none and (not said or in_folder), "no INPUT; give files, a folder, a manifest, - or --transcript"),
        (said and not in_folder and (several or tables or folders),
         "one transcript is for one audio file; for more see --transcript_file, or a manifest's column text"),
        (in_folder and tables, "a manifest has its transcripts in its column text"),
        (others, f"--reference {' '.join(others)}: give speaker, domain, none, or .safetensors files, "
         "and each INPUT before it"),
    )  # fmt: skip


def check(given: argparse.Namespace) -> None:
    """Refuses flags that do not go together."""
    check_inputs(given)
    streamed, several = "-" in given.inputs, len(given.inputs) > 1
    said = given.transcript is not None or given.transcript_file is not None
    parts = given.out is not None
    words = given.reference or []
    made = {"speaker", "domain"} & set(words)
    refuse(
        (streamed and (several or said or parts or given.plot is not None),
         "- goes without other inputs, transcripts, --out and --plot"),
        (given.sampling_rate is not None and not streamed, "--sampling_rate is for raw samples from -"),
        (parts and (given.plot is not None or given.timeline), "--out goes without --plot and --timeline"),
        (made and (streamed or given.share[1] > 1),
         "--reference speaker and domain read all inputs first, in one process; for - and for several "
         "processes make a file by `mtmm reference`"),
        (given.explain_s and given.explain is None, "--explain_s needs --explain"),
        (not parts and given.share[1] > 1, "several processes (WORLD_SIZE) need --out"),
    )  # fmt: skip


def run(given: argparse.Namespace) -> int:
    """Predicts what the flags say; the exit status is 1 where an input failed."""
    check(given)
    find_model(given)
    from mtmm_training.commands import predict_work

    if given.out is not None:
        return predict_work.to_parts(given)
    return predict_work.to_stdout(given)


def find_model(given: argparse.Namespace) -> None:
    """Of a run's folder, --model means the model in it."""
    inner = Path(given.model, "model")
    if not Path(given.model, "config.json").exists() and (inner / "config.json").exists():
        given.model = str(inner)
