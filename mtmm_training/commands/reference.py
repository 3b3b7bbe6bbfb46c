"""Keep what recordings of a speaker or a place have in common; no labels needed.

examples:
  Some of Anna's recordings; then what she says elsewhere is heard against them:
    mtmm reference anna/*.wav --model M --out anna.safetensors
    mtmm predict new.wav --model M --reference anna.safetensors

  A call centre, from recordings of many callers; and Anna within it:
    mtmm reference calls --model M --kind domain --out calls.safetensors
    mtmm reference anna/*.wav --model M --domain calls.safetensors --out anna.safetensors
    mtmm predict new.wav --model M --reference calls.safetensors anna.safetensors

Eight recordings of a speaker, in whatever moods, give most of what there is to gain. The file holds
statistics of the acoustic encoder's states: no audio, no words. The model must have been trained
with --reference, and the file is for models with the same acoustic encoder.
"""

import argparse
from pathlib import Path

from mtmm_training.commands.flags import refuse
from mtmm_training.commands.predict import add_input_flags, add_transcript_flags, find_model


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_input_flags(parser)
    add_transcript_flags(parser)
    add = parser.add_argument_group("reference").add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")
    add("--kind", choices=("speaker", "domain"), default="speaker",
        help="all recordings are of one speaker; or of one corpus, room or call centre")  # fmt: skip
    add("--domain", type=Path, metavar="FILE",
        help="a domain's reference, by which the speaker's emotions are heard")  # fmt: skip
    add("--window_s", type=float, metavar="S", help="cut recordings into windows of S seconds")


def run(given: argparse.Namespace) -> None:
    """Make the reference and print what it is made of."""
    refuse(
        (not given.inputs or "-" in given.inputs, "no INPUT; give files, a folder or a manifest"),
        (given.out.suffix != ".safetensors", f"--out {given.out} must end in .safetensors"),
    )
    find_model(given)
    from mtmm_training.commands import predict_work

    made = predict_work.make_reference(given)
    print(
        f"{given.out}: a {made.kind}'s reference of {made.recordings} recordings, "
        f"{made.seconds:.1f} s"
    )
