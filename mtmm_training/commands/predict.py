"""`mtmm predict`: its flags, and which of them go together."""

import argparse
import os
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import Advanced, count, refuse

SUMMARY = "predict emotion, valence and arousal of recordings and transcripts"
EPILOG = """\
examples:
  One recording, with its words, without any, or the words alone:
    mtmm predict speech.wav --model out/demo/fused/model --transcript "We won!"
    mtmm predict speech.wav --model someone/mtmm --revision 1a2b3c
    mtmm predict --model someone/mtmm --transcript "We won!"

  A long one in windows of 6 s every 2 s, its words from a recogniser; as a table; as a picture:
    mtmm predict talk.mp3 --model M --window_s 6 --hop_s 2 --timeline --transcriber openai/whisper-base
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
    accelerate launch --config_file launch/ddp.yaml -m mtmm_training predict M.csv \\
        --model M --out out/predicted
    srun -n 8 sh -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS mtmm predict ... --out out/mine'
  The processes share the folder and nothing else (rank and number come from RANK and WORLD_SIZE);
  whichever is last checks that every input is there once, in order. Read all of them with
  pandas.read_parquet("out/predicted").

columns of --csv and of the parts: id, emotion, p_<emotion> (probabilities), the dimensions on the
model's scale, missing (modalities that were not there), text (what was recognised, or said in the
window), error; with --timeline, start and end in seconds before them. The parts have the windows in
the column timeline. --json has the pipeline's own keys, with the id before them.

exit status: 0 all inputs predicted, 1 some failed (named on standard error), or the model, a manifest
or the output failed, 2 wrong usage, 130 interrupted. Standard output has results only.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
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
                       help="utterances or windows at a time, at most")  # fmt: skip


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
                       help=Advanced("inputs to a part"))  # fmt: skip
    group.add_argument(
        "--plot", type=Path, metavar="FOLDER",
        help="also draw timelines, explanations and the valence-arousal plane there, as PNG",
    )  # fmt: skip
    group.add_argument(
        "--explain", metavar="OUTPUT",
        help="also what OUTPUT came from, emotion or a dimension such as valence: how much of each "
        "modality, half second and word was read, and how far the output falls without it; takes "
        "a run of the model for each of them",
    )  # fmt: skip
    group.add_argument("--top_k", type=count, metavar="K", help="only the K highest probabilities")
    group.add_argument(
        "--on_error", choices=("skip", "stop"), default="skip",
        help="what an input that cannot be read does: it is named and counted, and the rest goes "
        "on (skip), or all ends there (stop)",
    )  # fmt: skip


def check(given: argparse.Namespace) -> None:
    """Refuses flags that do not go together."""
    several, none = len(given.inputs) > 1, not given.inputs
    streamed, file = "-" in given.inputs, given.transcript_file
    said = given.transcript is not None or file is not None
    in_folder = file is not None and file.is_dir()
    parts = given.out is not None
    refuse(
        (none and not said, "no INPUT; give files, a folder, a manifest, - or --transcript"),
        (none and in_folder, "--transcript_file is a folder: give the INPUTs to look up in it"),
        (several and said and not in_folder, "more than one INPUT; give a folder to --transcript_file"),
        (streamed and (several or said or parts or given.plot is not None),
         "- goes without other inputs, transcripts, --out and --plot"),
        (given.sampling_rate is not None and not streamed,
         "--sampling_rate is for raw samples from -; files say their own"),
        (parts and (given.plot is not None or given.timeline),
         "--out goes without --plot and --timeline; the parts have a column timeline"),
        (not parts and _share()[1] > 1,
         "several processes (WORLD_SIZE) need --out, or each would print everything"),
    )  # fmt: skip


def _share() -> tuple[int, int]:
    """This process's number and how many there are, as accelerate and torchrun set them.

    Raises:
        WrongUse: They are no numbers, or the first is not below the second.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    right = rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)
    refuse(
        (not right, f"RANK={rank!r} and WORLD_SIZE={world_size!r} must be this process's number from 0 "
         "and how many there are; set both, or none"),
    )  # fmt: skip
    return int(rank), int(world_size)


def run(given: argparse.Namespace) -> int:
    """Predicts what the flags say; the exit status is 1 where an input failed."""
    check(given)
    from mtmm_training.commands import predict_work

    if given.inputs == ["-"]:
        return predict_work.stream(given)
    if given.out is not None:
        return predict_work.to_parts(given, _share())
    return predict_work.to_stdout(given)
