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
from pathlib import Path

from mtmm_training.commands.flags import declare, refuse
from mtmm_training.commands.predict_inputs import is_manifest
from mtmm_training.data import hub

REFERENCES = ("speaker", "domain", "none")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The inputs, the model, their transcripts, how they are cut, and what comes out."""
    # As accelerate and torchrun say it.
    started = f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"
    shared = ("inputs", "machine", "compared", "transcript", "windows")
    declare(parser, *shared, "predict", share={"default": started})
    parser.set_defaults(batch_size=None)  # on a GPU --out takes as many as fill it


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
    from mtmm_training.commands import predict_work

    if given.out is not None:
        return predict_work.to_parts(given)
    return predict_work.to_stdout(given)
