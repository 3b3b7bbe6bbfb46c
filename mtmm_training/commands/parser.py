"""The parser of every command: dashes or underscores, help on one page, errors in one line."""

import argparse
import inspect
import shutil
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from mtmm_training.commands.flags import Advanced
from mtmm_training.data.files import as_spelt

COLUMNS = 100
Run = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """The parser of one verb.

    Flags may be written with dashes or underscores, never abbreviated. `--help` leaves out the flags
    whose help is [`Advanced`], which `--help-all` shows.

    Args:
        prog: The words that call it.
        text: What it does, in a line; then, behind an empty line, examples, shown as they are.
    """

    def __init__(self, prog: str, text: str | None) -> None:
        description, epilog = split_help(text)
        super().__init__(
            prog, None, description, epilog,
            formatter_class=_Formatter, allow_abbrev=False, add_help=False,
        )  # fmt: skip
        self.add_argument(
            "-h", "--help", "--help_all", action=_Help, nargs=0, help=argparse.SUPPRESS
        )
        self._optionals.title = "flags"  # of those that are in no group
        self.verbs: Any = None

    def add_verb(self, name: str, run: Run) -> "Parser":
        """The parser of a verb below this one; its docstring is the help, and `run_verb` says it."""
        if self.verbs is None:
            self.verbs = self.add_subparsers(
                title="verbs", metavar="VERB", required=True, prog=self.prog
            )
        text = inspect.getdoc(run)
        verb: Parser = self.verbs.add_parser(name, help=split_help(text)[0], text=text)
        verb.set_defaults(run_verb=run)
        return verb

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's own, for flags however they are spelled."""
        words = [*map(as_spelt, args or ())]  # of what is on the disk, as it is there
        known = {flag.replace("-", "_"): flag for flag in self._option_string_actions}
        for place in range(words.index("--") if "--" in words else len(words)):
            name, equals, value = words[place].partition("=")
            if not name.startswith("--") or " " in name:
                continue
            if flag := known.get(name.replace("-", "_")):
                words[place] = flag + equals + value
            elif self.verbs is None:  # else it is a flag of one of these
                self.error(f"{name} is no flag{nearest(name, known.values())}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit status 2."""
        stop = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"error: {message}{stop} See `{self.prog} --help`.\n")


def split_help(text: str | None) -> tuple[str, str]:
    """The first line of a docstring, and what comes behind the empty line."""
    summary, _, rest = (text or "").partition("\n\n")
    return summary, rest


def nearest(word: str, known: Iterable[str]) -> str:
    """Asks whether the known word was meant that is spelled most like this one; "." without any."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.7)  # --channel is not like --help
    return f"; did you mean {found[0]}?" if found else "."


class _Help(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        more = ""
        for action in parser._actions:
            if isinstance(action.help, Advanced) and option != "--help_all":
                action.help = argparse.SUPPRESS
                more = f"\nmore flags: `{parser.prog} --help-all`\n"
        print(parser.format_help() + more, end="")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Usage with what must be given alone, defaults in brackets, at most 100 columns."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((COLUMNS, 24)).columns
        super().__init__(prog, max_help_position=28, width=min(columns, COLUMNS))

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        words = [self._prog]
        for action in actions:
            if not action.option_strings or action.required:
                values = self._format_args(action, action.dest.upper())
                words.append(" ".join([*action.option_strings[:1], values]))
        super().add_usage(" ".join([*words, "[flags]"]), (), (), prefix)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """Several values as `NAME ...`, which leaves room for the help beside them."""
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        shown, default = action.help or "", action.default
        if action.nargs == 0 or default in (None, argparse.SUPPRESS):
            return shown
        return f"{shown} ({default:g})" if isinstance(default, float) else f"{shown} (%(default)s)"
