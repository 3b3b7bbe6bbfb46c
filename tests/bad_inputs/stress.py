"""Feed every bad input, the heavy ones too, and show what came of it, a row per area.

PYTHONPATH=tests python -m bad_inputs.stress          # all of them; `make stress` does this
PYTHONPATH=tests python -m bad_inputs.stress audio    # those whose names begin so
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

# Before torch and the tokenizers: one thread, so that processes can be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from transformers.utils.logging import disable_progress_bar

from bad_inputs import tiny
from bad_inputs.case import Case

AREAS = ("audio", "text", "manifests", "checkpoints")
FORK = multiprocessing.get_context("fork")  # imports once, makes the model once
LIMIT_S = 60.0  # for one input; then it hangs
LIMIT_BYTES = 6 * 2**30  # of memory; an input that fills more is a crash, and not of the machine
OUTCOMES = ("clear errors", "finite results", "wrong answers", "hangs", "crashes")
COLUMNS = ("inputs", *OUTCOMES, "seconds")


def cases(area: str) -> list[Case]:
    return importlib.import_module(f"bad_inputs.{area}").CASES


def tried(case: Case) -> tuple[str, str]:
    """Which of the outcomes it was, and its message, from a process of its own."""
    receiver, sender = FORK.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="mtmm-stress-") as folder:
        process = FORK.Process(target=_report, args=(case, Path(folder), sender))
        process.start()
        sender.close()
        try:
            outcome = receiver.recv() if receiver.poll(LIMIT_S) else ("hangs", f"{LIMIT_S:g} s")
        except EOFError:  # it died without a word
            process.join()
            outcome = ("crashes", f"the process ended with exit code {process.exitcode}")
        if process.is_alive() and outcome[0] == "hangs":
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return outcome


def _report(case: Case, folder: Path, sender: Connection) -> None:
    os.setsid()  # what it starts itself can be ended with it
    for descriptor in (1, 2):  # decoders and transformers would write into the table
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    try:
        case.check(folder)
        sender.send(("finite results" if case.error is None else "clear errors", ""))
    except AssertionError as error:
        sender.send(("wrong answers", str(error)))
    except BaseException as error:  # nothing that an input does may end the run
        sender.send(("crashes", repr(error)))


def main(prefix: str = "") -> int:
    disable_progress_bar()
    tiny.pipe(), tiny.saved()
    _print_row("", COLUMNS)
    total: Counter[str] = Counter()
    failures: list[str] = []
    for area in AREAS:
        counts: Counter[str] = Counter()
        begun = time.perf_counter()
        for case in cases(area):
            if not case.name.startswith(prefix):
                continue
            outcome, message = tried(case)
            counts.update(["inputs", outcome])
            if outcome in OUTCOMES[2:]:
                failures.append(f"{case.name}: {outcome}: {message}")
        counts["seconds"] = round(time.perf_counter() - begun)
        _print_row(area, [counts[column] for column in COLUMNS])
        total += counts
    _print_row("total", [total[column] for column in COLUMNS])
    print("".join(f"{failure}\n" for failure in failures), end="")
    return bool(failures)


def _print_row(name: str, cells: Iterable[object]) -> None:
    print(f"{name:<12}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
