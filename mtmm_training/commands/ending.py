"""How every command ends: an exit status, and one sentence on standard error where it failed."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from mtmm_training.commands.flags import WrongUse
from mtmm_training.commands.quiet import hush

GOOD, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130  # exit statuses
OURS = ("mtmm_training", "train_accelerate")
EXTRAS = {  # of packages that do not come with the extra train
    "gradio": "demo", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx",
    "opensmile": "egemaps", "silero_vad": "vad",
}  # fmt: skip


def tell(message: object) -> None:
    """To people, on standard error."""
    print(message, file=sys.stderr, flush=True)


def close_stdout() -> None:
    """Nobody takes what we print any more: what is left goes nowhere, without another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(work: Callable[[], int | None]) -> int:
    """Does the work and returns the exit status; errors that only a fault of ours brings are raised."""
    if sys.stdout is None:
        tell("error: standard output is closed; send it to a file, or to /dev/null.")
        return FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of letters that the terminal lacks
    hush()
    try:
        with _stopped_by_sigterm():
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
        close_stdout()
        return FAILED
    except WrongUse as error:
        tell(f"error: {error}.")
        return WRONG
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS or package.endswith("_mtmm"):
            raise
        remedy = f'pip install -e ".[{EXTRAS.get(package, "train")}]"'
        missing = f"This needs the package {package!r}, which is not installed; run `{remedy}`."
        tell(f"error: {missing if package else error}")
        return FAILED
    except Exception as error:
        if not isinstance(error, _of_users()):
            raise
        tell(f"error: {error}")
        return FAILED


def _of_users() -> tuple[type[Exception], ...]:
    """Errors that inputs, files and machines bring; others show where they come from."""
    # Not above: what only parses imports no library.
    from huggingface_hub.errors import StrictDataclassError  # of a configuration's fields
    from safetensors import SafetensorError

    ours = (ValueError, OSError, RuntimeError, MemoryError)
    return (*ours, SafetensorError, StrictDataclassError)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Schedulers end jobs by SIGTERM: then, too, files are put away and other processes stopped."""

    def stop(*_: Any) -> NoReturn:
        sys.exit("SIGTERM: stopped")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
