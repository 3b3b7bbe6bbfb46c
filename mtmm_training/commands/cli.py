"""The command `mtmm`: finds the verb that the words name, and runs it.

A verb is a module of this package with `add_flags(parser)` and `run(options)`; its docstring is what
`--help` says, and the first line stands in the help of `mtmm`, which is this package's docstring. They
import the standard library and light modules; `run` imports what does the work. Where a verb has verbs
of its own, `add_flags` adds their parsers, and each has a function in the place of `run`.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from mtmm_training import commands
from mtmm_training.commands.parser import Parser, Run, nearest, split_help
from mtmm_training.training.ending import GOOD, WrongUse, run_command

GROUPS = {
    "use a model": ("predict", "embed", "serve", "reference", "export"),
    "look at data, train": ("inspect", "encode", "train", "merge"),
    "evaluate": ("score", "evaluate", "baselines", "ablation", "study"),
    "share": ("publish", "dataset"),
    "try": ("demo",),
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command, this process's own unless given, and returns its exit status."""
    return run_command(partial(_run, list(sys.argv[1:] if words is None else words)))


def verb_names() -> list[str]:
    """Every verb, in the order of the help."""
    return [name for names in GROUPS.values() for name in names]


def parser_of(name: str) -> Parser:
    """The parser of a verb's flags."""
    module = _module(name)
    parser = Parser(f"mtmm {name}", module.__doc__)
    module.add_flags(parser)
    return parser


def _module(name: str) -> Any:
    return import_module(f"mtmm_training.commands.{name}")


def _run(words: list[str]) -> int | None:
    first = words[0] if words else ""
    if first == "--version":
        print(f"mtmm {commands.installed_version()}")
        return GOOD
    if first in ("-h", "--help", "--help-all"):
        print(_page())
        return GOOD
    if first not in verb_names():
        said = f"{first} is no verb{nearest(first, verb_names())}" if words else "no verb is given."
        raise WrongUse(f"{said} See `mtmm --help`")
    options = parser_of(first).parse_args(words[1:])
    run: Run = getattr(options, "run_verb", None) or _module(first).run
    return run(options)


def _page() -> str:
    """The help of `mtmm` itself."""
    summary, rest = split_help(commands.__doc__)
    lines = ["usage: mtmm VERB ...", "", summary, ""]
    for title, names in GROUPS.items():
        said = [f"  {name:12} {split_help(_module(name).__doc__)[0]}" for name in names]
        lines += [f"{title}:", *said, ""]
    return "\n".join([*lines, rest])


if __name__ == "__main__":
    sys.exit(main())
