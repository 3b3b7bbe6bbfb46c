"""The command `mtmm`: finds the verb that the words name, and runs it.

A verb is a module of this package with `SUMMARY`, `add_flags(parser)`, `run(options)` and, where its
help has examples, `EPILOG`. They import the standard library and light modules; `run` imports what
does the work. Where a verb has verbs of its own, `add_flags` adds their parsers.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from mtmm_training.commands import installed_version
from mtmm_training.commands.ending import GOOD, run_command
from mtmm_training.commands.flags import WrongUse
from mtmm_training.commands.parser import Parser, nearest

GROUPS = {
    "use a model": ("predict", "export"),
    "look at data, train": ("inspect", "encode", "train", "merge"),
    "evaluate": ("evaluate", "baselines", "ablation", "study"),
    "share": ("publish",),
    "try": ("demo",),
}

DESCRIPTION = "Emotion, valence and arousal of speech, from its recording and transcript."
EPILOG = """\
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


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command, this process's own unless given, and returns its exit status."""
    return run_command(partial(_run, list(sys.argv[1:] if words is None else words)))


def verb_names() -> list[str]:
    """Every verb, in the order of the help."""
    return [name for names in GROUPS.values() for name in names]


def parser_of(name: str) -> Parser:
    """The parser of a verb's flags."""
    module = _module(name)
    parser = Parser(f"mtmm {name}", module.SUMMARY, getattr(module, "EPILOG", ""))
    module.add_flags(parser)
    return parser


def _module(name: str) -> Any:
    return import_module(f"mtmm_training.commands.{name}")


def _run(words: list[str]) -> int | None:
    first = words[0] if words else ""
    if first == "--version":
        print(f"mtmm {installed_version()}")
        return GOOD
    if first in ("-h", "--help", "--help-all"):
        print(_page())
        return GOOD
    if first not in verb_names():
        said = f"{first} is no verb{nearest(first, verb_names())}" if words else "no verb is given."
        raise WrongUse(f"{said} See `mtmm --help`")
    status: int | None = _module(first).run(parser_of(first).parse_args(words[1:]))
    return status


def _page() -> str:
    """The help of `mtmm` itself."""
    lines = ["usage: mtmm VERB ...", "", DESCRIPTION, ""]
    for title, names in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:12} {_module(name).SUMMARY}" for name in names), ""]
    return "\n".join([*lines, EPILOG])


if __name__ == "__main__":
    sys.exit(main())
