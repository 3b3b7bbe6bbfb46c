"""How many threads a training on cached states takes, and that a run that goes on keeps them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_runs import assert_same_run, results_of, train, words

from mtmm_training.training import threads
from mtmm_training.training.launch import Stopped, StopSignal


@pytest.fixture(autouse=True)
def eight_free_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "free_cores", lambda: 8)
    monkeypatch.setattr(threads, "TRIAL_S", 0.05)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("gain", "chosen"), [(0.0, 1), (0.05, 1), (0.9, 8), (-0.5, 1)])
def test_threads_must_be_worth_it(gain: float, chosen: int) -> None:
    """Work of 10 ms with one thread, and less by a part of it with eight."""

    def work() -> None:
        time.sleep(0.01 * (1 - gain * (torch.get_num_threads() - 1) / 7))

    assert threads.choose_threads(work) == torch.get_num_threads() == chosen


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert threads.choose_threads(lambda: time.sleep(1 / torch.get_num_threads())) == 1


def test_run_that_goes_on_keeps_its_threads(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "choose_threads", lambda _: 3)
    flags = words(embedded, tmp_path / "out")
    with monkeypatch.context() as stopping:
        stopping.setattr(StopSignal, "requested", lambda *_, **__: True)
        with pytest.raises(Stopped):
            train(flags)
    monkeypatch.setattr(threads, "choose_threads", lambda _: 1 / 0)
    train([*flags, "--resume"])
    assert results_of(tmp_path / "out")["threads"] == 3


def test_trial_changes_nothing(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(work: Callable[[], object]) -> int:
        torch.set_num_threads(1)
        work(), work()
        return 1

    monkeypatch.setattr(threads, "choose_threads", choose)
    tried = train(words(embedded, tmp_path / "tried"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert_same_run(tried, train(words(embedded, tmp_path / "set")))
