"""Keep what recordings of a speaker or a place have in common; no labels needed.

examples:
  Some of Anna's recordings; then what she says elsewhere is heard against them:
    mtmm reference anna/*.wav --model M --out anna.safetensors
    mtmm predict new.wav --model M --reference anna.safetensors

  Two recordings in each emotion, and which it is: better than recordings of unknown moods:
    mtmm reference anna/angry*.wav --emotion angry --model M --out angry.safetensors
    mtmm reference anna/sad*.wav --emotion sad --model M --out sad.safetensors
    mtmm predict new.wav --model M --reference angry.safetensors sad.safetensors

  A call centre, from recordings of many callers; and Anna within it:
    mtmm reference calls --model M --kind domain --out calls.safetensors
    mtmm reference anna/*.wav --model M --domain calls.safetensors --out anna.safetensors
    mtmm predict new.wav --model M --reference calls.safetensors anna.safetensors

Eight recordings of a speaker, in whatever moods, give most of what there is to gain. The file holds
statistics of the acoustic encoder's states: no audio, no words. The model must have been trained
with --reference, and the file is for models with the same acoustic encoder.
"""

import argparse

from mtmm_training.commands.flags import declare, refuse


def add_flags(parser: argparse.ArgumentParser) -> None:
    declare(parser, "inputs", "machine", "transcript", "reference")


def run(given: argparse.Namespace) -> None:
    """Make the reference and print what it is made of."""
    refuse(
        (not given.inputs or "-" in given.inputs, "no INPUT; give files, a folder or a manifest"),
        (given.out.suffix != ".safetensors", f"--out {given.out} must end in .safetensors"),
    )
    from mtmm_training.commands import predict_work

    made = predict_work.make_reference(given)
    print(
        f"{given.out}: a {made.kind}'s reference of {made.recordings} recordings, "
        f"{made.seconds:.1f} s"
    )
