"""What every bad input is made of, and what counts as its answer."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

# What a caller may be told by; any other exception is a crash.
ERRORS = (ValueError, TypeError, OSError, SystemExit, StrictDataclassError)


@dataclass(frozen=True)
class Case:
    """One bad input and the answer that it must get.

    Args:
        name: Area and input, such as "audio: header only".
        attempt: Makes the input in the empty folder it is given, feeds it to what is tested, and
            returns the answer, whose numbers and tensors must all be finite.
        error: Regular expression that the error's message must match: the value or the field that it
            names; "" where the library's own will do; None where an answer must come.
        heavy: Takes seconds or much memory: tried by `make stress` alone, not by `make test`.
    """

    name: str
    attempt: Callable[[Path], Any]
    error: str | None = None
    heavy: bool = False

    def check(self, folder: Path) -> None:
        """Feed it.

        Raises:
            AssertionError: The answer is another than it must be.
            Exception: Whatever a crash raises.
        """
        if self.error is None:
            assert all_finite(answer := self.attempt(folder)), f"numbers are not finite: {answer!r}"
            return
        try:
            answer = self.attempt(folder)
        except ERRORS as error:
            if not re.search(self.error, str(error)):
                raise AssertionError(f"{error!r} does not match {self.error!r}") from error
        else:
            raise AssertionError(f"no error that matches {self.error!r}, but {answer!r}")


def at_once(name: str, feed: Callable[[Any], Any], given: Any, error: str | None) -> Case:
    """A bad input that needs no file."""
    return Case(name, lambda folder: feed(given), error)


def all_finite(answer: Any) -> bool:
    """Whether every number in it is finite, however deep; what is no number is none that is not."""
    if isinstance(answer, (str, bytes)):
        return True
    if isinstance(answer, (float, complex, np.ndarray, np.number, torch.Tensor)):
        return bool(torch.as_tensor(answer).isfinite().all())
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        answer = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer)}
    if isinstance(answer, Mapping):
        answer = answer.values()
    return not isinstance(answer, Iterable) or all(map(all_finite, answer))
