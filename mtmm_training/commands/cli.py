"""The command `mtmm`: one name for what the modules do.

Nothing heavy is imported before it is needed: `mtmm predict` runs with the base installation, and the
other commands, which are the modules' own with their own flags, say it where the training extra is
missing.
"""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from signal import SIGINT

from mtmm_training.commands import predict_command
from mtmm_training.commands.predict_command import ALL_GOOD, INTERRUPTED, SOME_FAILED, WRONG_USE
from mtmm_training.commands.predict_output import close_stdout, tell

# Command -> module with a `main(words)`, words that come last, and what it does.
MODULES = {
    "encode": (
        "train_accelerate",
        ["--encode_only", "True"],
        "run the frozen encoders once over a corpus and keep their states (flags of train)",
    ),
    "train": ("train_accelerate", [], "train on one fold, and test once"),
    "evaluate": (
        "mtmm_training.studies.protocol",
        [],
        "run a whole protocol, put its folds into a table, compare experiments",
    ),
    "publish": (
        "mtmm_training.publishing.publish",
        [],
        "write the model card and upload a model to the Hub",
    ),
    "inspect": (
        "mtmm_training.commands.inspect_corpus",
        [],
        "count what is in a corpus or a manifest",
    ),
}

EPILOG = """\
`mtmm COMMAND --help` explains each. predict runs with the base installation; the others need
`pip install -e ".[train]"`.

examples:
  mtmm predict speech.wav --model out/demo/fused/model --transcript "We won!"
  mtmm inspect --manifest my/manifest.csv
  mtmm train --manifest my/manifest.csv --protocol grouped --k 5 --fold 0 --out out/mine
  mtmm evaluate run --manifest my/manifest.csv --protocol speaker --out out/ours
  mtmm publish out/mine someone/mtmm --licence cc-by-nc-4.0 --dry_run

exit status: 0 all good, 1 something failed, 2 wrong usage, 130 interrupted."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command, this process's own unless given, and returns its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if sys.stdout is None:
        tell("error: standard output is closed; send it to a file, or to /dev/null.")
        return WRONG_USE
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of letters that the terminal lacks
    command = _commands().parse_args(words[:1]).command
    try:
        if command == "predict":
            return predict_command.main(words[1:])
        return _delegate(command, words[1:])
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has enough, such as `head`
        close_stdout()
        return SOME_FAILED
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package.endswith("_mtmm") or package in ("mtmm_training", "train_accelerate"):
            raise
        extra = (
            f"`mtmm {command}` needs the package {package!r} for this, which is not installed; run `pip "
            'install -e ".[train]"`.'
        )
        tell(f"error: {extra if package else error}")
        return WRONG_USE


def _commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtmm",
        description="Emotion, valence and arousal of speech, from its recording and transcript.\n\n"
        "commands:\n"
        + "\n".join(
            f"  {name:9} {text}"
            for name, text in [("predict", predict_command.SUMMARY)]
            + [(n, m[2]) for n, m in MODULES.items()]
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    with suppress(PackageNotFoundError):  # a checkout on the path that nobody installed has none
        parser.add_argument("--version", action="version", version=f"mtmm {version('mtmm')}")
    parser.add_argument("command", choices=["predict", *MODULES], metavar="COMMAND",
                        help="one of those above")  # fmt: skip
    return parser


def _delegate(command: str, words: list[str]) -> int:
    """Runs another module's command as `python -m` would, under our name."""
    name, last, summary = MODULES[command]
    module = importlib.import_module(name)
    if name == "train_accelerate":  # of two commands, where its help shows the words of one
        module.__doc__ = summary.capitalize()
    from safetensors import SafetensorError

    sys.argv[0] = f"mtmm {command}"  # the name in the usage of parsers that have no other
    try:
        return module.main([*words, *last]) or ALL_GOOD
    except (ValueError, OSError, RuntimeError, MemoryError, SafetensorError) as error:
        explain = getattr(module, "explain", str)
        tell(f"error: {explain(error)}")
        return SOME_FAILED
    except SystemExit as left:  # training ends so, between two steps, with what to do next
        if not str(left.code).startswith(f"{SIGINT.name}: "):
            raise
        tell(str(left.code))
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
