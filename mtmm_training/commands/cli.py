"""The command `mtmm`: finds the verb that the words name, and runs it.

A verb is a module of this package with `SUMMARY`, `add_flags(parser)`, `run(options)` and, where its
help has examples, `EPILOG`. A module with `SUMMARY` and `VERBS` has verbs of its own instead. They
import the standard library and light modules; `run` imports what does the work.
"""

import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from mtmm_training.commands import installed_version
from mtmm_training.commands.ending import GOOD, WRONG, run_command, tell
from mtmm_training.commands.flags import Verb
from mtmm_training.commands.parser import COLUMNS, Parser, nearest

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


def load(name: str) -> Any:
    """The module of a verb."""
    return import_module(f"mtmm_training.commands.{name}")


def verbs_of(name: str) -> dict[str, Verb]:
    """Everything that one word of `GROUPS` runs, by the words that call it."""
    module = load(name)
    if hasattr(module, "VERBS"):
        return {f"{name} {inner}": verb for inner, verb in module.VERBS.items()}
    return {name: Verb(module.SUMMARY, module.add_flags, module.run, getattr(module, "EPILOG", ""))}


def _run(words: list[str]) -> int | None:
    if words[:1] == ["--version"]:
        print(f"mtmm {installed_version()}")
        return GOOD
    called = _pick("mtmm", words, verb_names(), _page)
    verbs, words = verbs_of(called), words[1:]
    if called not in verbs:  # it has verbs of its own
        own = [name.partition(" ")[2] for name in verbs]
        inner = _pick(f"mtmm {called}", words, own, partial(_inner_page, called, verbs))
        called, words = f"{called} {inner}", words[1:]
    return verbs[called].run(Parser(f"mtmm {called}", verbs[called]).parse_args(words))


def _pick(prog: str, words: list[str], known: Iterable[str], page: Callable[[], str]) -> str:
    """The verb that the first word names; ends the process for help, and where there is none."""
    given = words[0].replace("_", "-") if words else ""
    if given in ("-h", "--help", "--help-all"):
        print(page(), end="")
        sys.exit(GOOD)
    if given not in known:
        said = f"{words[0]} is no verb{nearest(given, known)}" if words else "no verb is given"
        tell(f"error: {said}{'' if said.endswith('?') else '.'} See `{prog} --help`.")
        sys.exit(WRONG)
    return given


def _page() -> str:
    """The help of `mtmm` itself."""
    groups = [
        f"{title}:\n" + _lines({name: load(name).SUMMARY for name in names})
        for title, names in GROUPS.items()
    ]
    return "\n\n".join(["usage: mtmm VERB ...", DESCRIPTION, *groups, EPILOG])


def _inner_page(name: str, verbs: Mapping[str, Verb]) -> str:
    """The help of a verb that has verbs of its own."""
    summaries = {called.partition(" ")[2]: verb.summary for called, verb in verbs.items()}
    more = f"`mtmm {name} VERB --help` explains each.\n"
    summary = f"{load(name).SUMMARY.capitalize()}."
    return "\n\n".join([f"usage: mtmm {name} VERB ...", summary, _lines(summaries), more])


def _lines(summaries: Mapping[str, str]) -> str:
    lines = (f"  {name:18} {summary}" for name, summary in summaries.items())
    return "\n".join(textwrap.fill(line, COLUMNS, subsequent_indent=" " * 21) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
