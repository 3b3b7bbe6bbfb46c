"""The parser of every command: dashes or underscores, help on one page, errors in one line."""

import argparse
import shutil
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NoReturn

from mtmm_training.commands.flags import Advanced, Verb

COLUMNS = 100


class Parser(argparse.ArgumentParser):
    """The parser of one verb.

    Flags may be written with dashes or underscores, never abbreviated. `--help` leaves out the flags
    whose help is [`Advanced`], which `--help-all` shows.
    """

    def __init__(self, name: str, verb: Verb) -> None:
        super().__init__(
            prog=name,
            description=f"{verb.summary[:1].upper()}{verb.summary[1:]}.",
            epilog=verb.epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument(
            "-h", "--help", "--help_all", action=_Help, nargs=0, help=argparse.SUPPRESS
        )
        self._optionals.title = "flags"  # of those that are in no group
        verb.add_flags(self)

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's own, for flags however they are spelled."""
        words = list(args or ())
        end = words.index("--") if "--" in words else len(words)
        spelled = [self._spelled(word) for word in words[:end]]
        return super().parse_known_args(spelled + words[end:], namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit status 2."""
        stop = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"error: {message}{stop} See `{self.prog} --help`.\n")

    def page(self, *, everything: bool) -> str:
        """The help, with the advanced flags or without."""
        self.formatter_class = partial(_Formatter, everything=everything)
        hidden = any(isinstance(action.help, Advanced) for action in self._actions)
        more = f"\nmore flags: `{self.prog} --help-all`\n"
        return self.format_help() + (more if hidden and not everything else "")

    def _spelled(self, word: str) -> str:
        """A flag as it was added; any other word as it is."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or " " in name:
            return word
        known = {flag.replace("-", "_"): flag for flag in self._option_string_actions}
        if flag := known.get(name.replace("-", "_")):
            return flag + equals + value
        self.error(f"{name} is no flag{nearest(name, known.values())}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Asks whether the known word was meant that is spelled most like this one; "" without any."""
    found = get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


class _Help(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        print(parser.page(everything=option == "--help_all"), end="")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Usage with what must be given alone, defaults in brackets, at most 100 columns."""

    def __init__(self, prog: str, *, everything: bool = True) -> None:
        columns = shutil.get_terminal_size((COLUMNS, 24)).columns
        super().__init__(prog, max_help_position=28, width=min(columns, COLUMNS))
        self.everything = everything

    def add_argument(self, action: argparse.Action) -> None:
        if self.everything or not isinstance(action.help, Advanced):
            super().add_argument(action)

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
        if default is None or default is False or default in ("", argparse.SUPPRESS):
            return shown
        if action.nargs == 0 or "%(default)" in shown:
            return shown
        return f"{shown} ({default:g})" if isinstance(default, float) else f"{shown} (%(default)s)"
