"""Requests to answers: a thread takes what is waiting, and has the pipeline predict it in batches."""

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipeline_mtmm import MTMMPipeline
from reading_mtmm import LOOK_AHEAD

CALL_S = 1.0  # about what a call may take where more than a batch is waiting
logger = logging.getLogger("mtmm.serve")


class Refused(ValueError):
    """The pipeline cannot use this request; the text says why."""


@dataclass(frozen=True)
class Job:
    """One request.

    Args:
        given: Input of the pipeline.
        options: Keyword arguments of its call.
        alone: Whether nothing else may be predicted in the same call.
        answer: Gets the pipeline's dict, or what went wrong: `Refused` where it is the request's fault.
    """

    given: Mapping[str, Any]
    options: Mapping[str, Any]
    alone: bool = False
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class Lane:
    """Jobs in their order, predicted by one thread.

    The thread takes what is waiting with the same options: at least a batch, and as much as takes about
    a second by the calls before, so that nobody waits long for others' answers. Where it finds less than
    a batch, and the last call had several jobs, it waits a moment for company.

    Args:
        pipe: The pipeline; the lane uses its model, and a copy of its processor, since a tokenizer
            serves one thread at a time.
        batch_size: Windows to a batch, at most.
        wait_s: How long a job may wait for others, seconds.
        batched: Is told the number of jobs that were taken together.
    """

    def __init__(
        self,
        pipe: MTMMPipeline,
        batch_size: int,
        wait_s: float,
        batched: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.pipe = twin(pipe)
        self.batch_size, self.wait_s, self.batched = batch_size, wait_s, batched
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._most = batch_size  # jobs that the next call may have
        self._busy = True  # whether the last call had several: one client alone waits for nobody
        self._thread = threading.Thread(target=self._work, name="mtmm-lane", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Add a job; RuntimeError where the lane is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError("The lane is closed.")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Answers what is waiting, and ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            kept = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if kept:
                self.batched(len(kept))
                began = time.monotonic()
                self._predict(kept)
                each_s = (time.monotonic() - began) / len(kept)
                most = int(CALL_S / max(each_s, 1e-6))
                self._most = min(max(most, self.batch_size), LOOK_AHEAD * self.batch_size)

    def _take(self) -> list[Job]:
        """The next jobs for one call; none when the lane is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + (self.wait_s if self._busy else 0.0)
            while not self._closed and len(self._waiting) < self.batch_size:
                if not self._changed.wait(max(until - time.monotonic(), 0)):
                    break
            jobs: list[Job] = []
            while self._waiting and len(jobs) < self._most:
                following = self._waiting[0]
                together = not jobs or not (jobs[0].alone or following.alone)
                if not together or (jobs and jobs[0].options != following.options):
                    break
                jobs.append(self._waiting.popleft())
            self._busy = len(jobs) > 1
            return jobs

    def _predict(self, jobs: list[Job]) -> None:
        """An answer to each; the pipeline stops at one that it refuses, and is begun again behind."""
        done = 0
        options = dict(jobs[0].options) | {"batch_size": self.batch_size}
        while done < len(jobs):
            rest = [job.given for job in jobs[done:]]
            try:
                answers = self.pipe(rest[0] if jobs[0].alone else iter(rest), **options)
                for answer in [answers] if jobs[0].alone else answers:
                    jobs[done].answer.set_result(answer)
                    done += 1
            except (ValueError, TypeError, OSError) as error:
                jobs[done].answer.set_exception(Refused(getattr(error, "reason", error)))
                done += 1
            except Exception as error:
                logger.exception("a request failed")
                jobs[done].answer.set_exception(error)
                done += 1


def twin(pipe: MTMMPipeline) -> MTMMPipeline:
    """A pipeline of the same model, for another thread."""
    processor = copy.deepcopy(pipe.processor)
    return type(pipe)(model=pipe.model, processor=processor, device=pipe.device)
