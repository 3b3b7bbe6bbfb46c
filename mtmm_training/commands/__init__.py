"""Emotion, valence and arousal of speech, from its recording and transcript.

`mtmm VERB --help` explains each. predict runs with the base installation; the others need
`pip install -e ".[train]"`.

examples:
  mtmm demo out/demo
  mtmm predict speech.wav --model out/demo/fused/model --transcript "We won!"
  mtmm inspect --manifest my/manifest.csv
  mtmm train --manifest my/manifest.csv --protocol grouped --k 5 --fold 0 --out out/mine
  mtmm evaluate run --manifest my/manifest.csv --protocol speaker --out out/ours
  mtmm publish out/mine someone/mtmm --licence cc-by-nc-4.0 --dry-run

exit status: 0 all good, 1 something failed, 2 wrong usage, 130 interrupted.
"""


def installed_version() -> str:
    """The version that is installed; a checkout on the path that nobody installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mtmm")
    except PackageNotFoundError:
        return "not installed"
