"""How every command ends: an exit status, and one sentence on standard error where it failed."""

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class WrongUse(Exception):
    """Flags that do not go together: exit status 2."""


LONGEST = 4000  # letters of an error, which may quote what was given
GOOD, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130  # exit statuses
OURS = ("mtmm_training", "train_accelerate")
EXTRAS = {  # of packages that do not come with the extra train
    "gradio": "demo", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx",
    "opensmile": "egemaps", "silero_vad": "vad",
    "fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve", "multipart": "serve",
}  # fmt: skip

# What libraries say that nobody needs; they read this when they are imported, and the processes of
# folds inherit it.
ERRORS_ONLY = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # or it warns of every fork of a loader
}
NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
LIBRARIES = r"(torch|transformers|accelerate|peft|datasets|huggingface_hub|sklearn|matplotlib)\b"


def tell(message: object) -> None:
    """To people, on standard error."""
    print(message, file=sys.stderr, flush=True)


def _let_go_of_stdout() -> None:
    """What cannot be written any more goes nowhere, without another error when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def hush() -> None:
    """Silence the libraries' notices; their bars as well, unless standard error is a terminal.

    What the user has set in the environment stays.
    """
    watched = sys.stderr is not None and sys.stderr.isatty()
    for name, value in (ERRORS_ONLY if watched else ERRORS_ONLY | NO_BARS).items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=LIBRARIES)
        warnings.simplefilter("ignore", FutureWarning)
    # What is imported already reads the environment no more.
    transformers, datasets = sys.modules.get("transformers"), sys.modules.get("datasets")
    if not watched and transformers:
        transformers.utils.logging.disable_progress_bar()
    if not watched and datasets:
        datasets.disable_progress_bars()


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep quiet what loggers below an error say."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def run_command(work: Callable[[], int | None]) -> int:
    """Does the work and returns the exit status; errors that only a fault of ours brings are raised."""
    if sys.stdout is None:
        tell("error: standard output is closed; send it to a file, or to /dev/null.")
        return FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of letters that the terminal lacks
    hush()
    if threading.current_thread() is threading.main_thread():
        # Schedulers end jobs so: then, too, files are put away and other processes stopped.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("SIGTERM: stopped"))
    try:
        return work() or GOOD
    except SystemExit as left:  # of the parser, or of training between two steps
        if left.code is None or isinstance(left.code, int):
            return left.code or GOOD
        tell(left.code)
        return FAILED
    except KeyboardInterrupt as error:
        tell(str(error) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has enough, such as `head`
        _let_go_of_stdout()
        return FAILED
    except WrongUse as error:
        tell(f"error: {error}.")
        return WRONG
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS or package.endswith("_mtmm"):
            raise
        if package == "transformers" and find_spec(package):
            try:
                import configuration_mtmm  # noqa: F401  # it knows which version is needed
            except ImportError as needed:
                error = needed
        remedy = f'pip install -e ".[{EXTRAS.get(package, "train")}]"'
        missing = f"This needs the package {package!r}, which is not installed; run `{remedy}`."
        tell(f"error: {missing if package and not find_spec(package) else error}")
        return FAILED
    except Exception as error:
        # Not above: what only parses imports no library.
        from huggingface_hub.errors import StrictDataclassError  # of a configuration's fields
        from safetensors import SafetensorError

        # Errors that inputs, files and machines bring; others show where they come from.
        ours = (ValueError, OSError, RuntimeError, MemoryError)
        if not isinstance(error, (*ours, SafetensorError, StrictDataclassError)):
            raise
        tell(f"error: {error!s:.{LONGEST}}")
        _let_go_of_stdout()
        return FAILED
