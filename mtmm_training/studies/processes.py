"""Processes of a study's folds: forked from one that has imported everything already.

An interpreter takes seconds to import torch and transformers, which are more than a fold of a small corpus
needs to get ready.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from mtmm_training.training.launch import usable_cores

multiprocessing.set_forkserver_preload(["train_accelerate"])


class Process(ForkServerProcess):
    """`main(flags)` in a process and a session of its own, with what it prints added to a log.

    It begins at once. Ctrl-C reaches the process that started it alone, which then asks it to stop, once.

    Args:
        main: Returns the exit status; a function of a module, found there by its name.
        flags: What `main` is given, as on a command line.
        log: The file that its output is appended to; None = where this process prints.
        environment: Variables besides, or instead of, those of this process.
    """

    def __init__(
        self,
        main: Callable[[list[str]], int],
        flags: list[str],
        log: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        variables = dict(os.environ) | (environment or {})
        super().__init__(target=_run, args=(main, flags, log, variables, os.getcwd(), sys.path))
        self.start()

    def wait(self) -> int | None:
        """Its exit status, once it has ended."""
        self.join()
        return self.exitcode


def _run(
    main: Callable[[list[str]], int],
    flags: list[str],
    log: Path | None,
    environment: dict[str, str],
    folder: str,
    path: list[str],
) -> None:
    os.setsid()
    os.chdir(folder)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch  # it is there already, and has read the variable of the process before this one

        torch.set_num_threads(int(threads))
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a run from a shell
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    try:
        status = main(flags)
    except Exception:
        traceback.print_exc()
        status = 1
    if "coverage" in sys.modules:
        sys.exit(status)
    # At once: an interpreter that was forked beside others' threads may wait for them at its end.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def share_of_cores(jobs: int) -> dict[str, str]:
    """The variable that gives each of so many processes its share of the cores, unless it is set."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(usable_cores() // jobs, 1))}
