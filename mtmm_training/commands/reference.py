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

  A model that has learned the call centre, without labels:
    mtmm reference calls --model M --kind domain --out calls_model
    mtmm predict new.wav --model calls_model

Eight recordings of a speaker, in whatever moods, give more than half of what there is to gain, and
sixteen nearly all. The file holds statistics of the acoustic encoder's states: no audio, no words.
The model must have been trained with --reference, and the file is for models with the same acoustic
encoder.
"""

import argparse

from mtmm_training.commands.flags import declare, refuse


def add_flags(parser: argparse.ArgumentParser) -> None:
    declare(parser, "inputs", "machine", "transcript", "reference")


def run(given: argparse.Namespace) -> None:
    """Make the reference and print what it is made of."""
    is_model = given.out.suffix != ".safetensors"
    odd = is_model and given.kind != "domain"
    unused = is_model and (given.domain or given.emotion)
    refuse(
        (not given.inputs or "-" in given.inputs, "no INPUT; give files, a folder or a manifest"),
        (odd, f"--out {given.out} must end in .safetensors; a model learns a --kind domain"),
        (unused, f"--domain and --emotion are of a file, and --out {given.out} is a model"),
    )
    from mtmm_training.commands import predict_work

    made = predict_work.make_reference(given)
    what = f"{'model' if is_model else 'reference'} of {made.recordings} recordings"
    print(f"{given.out}: a {made.kind}'s {what}, {made.seconds:.1f} s")
