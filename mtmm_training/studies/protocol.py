"""Whole protocols: every fold is trained as train_accelerate.py does it, in a process of its own.

What is finished is never run again: the same call goes on where it was stopped. Machines that share
the folder each take a share of the folds.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import train_accelerate
from configuration_mtmm import MTMMConfig
from mtmm_training.data.folds import Fold, select
from mtmm_training.data.record import keep_record, settings_of
from mtmm_training.data.utterances import Utterance, digest, few
from mtmm_training.studies.experiments import FOLD_PREFIX
from mtmm_training.studies.processes import Process, share_of_cores
from mtmm_training.studies.tables import write_tables
from mtmm_training.training import prepare
from mtmm_training.training.config import FROM_DATA, TrainConfig
from mtmm_training.training.model import planned
from mtmm_training.training.presets import filled
from mtmm_training.training.report import metric_parts
from mtmm_training.training.run import Run, is_finished


@dataclass(frozen=True)
class Part:
    """What of an experiment a call trains.

    Args:
        folds: indices of the folds, from 0; all if None.
        share: of these, of machine I of N as (I, N) those whose index divided by N leaves I.
        jobs: so many folds run at once.
    """

    folds: Collection[int] | None = None
    share: tuple[int, int] = (0, 1)
    jobs: int = 1


@dataclass(frozen=True)
class Plan:
    """An experiment that may run: its settings and folds are checked.

    Args:
        out: its folder.
        config: the settings of each fold, but for `fold`, `out` and `resume`.
        utterances: those that the folds are of.
        folds: all folds of the protocol.
        chosen: those of them, by index from 0, that are to run.
    """

    out: Path
    config: TrainConfig
    utterances: list[Utterance]
    folds: list[Fold]
    chosen: list[int]

    def of_share(self, share: tuple[int, int]) -> "Plan":
        """The folds of machine I of N, see `Part`."""
        part, parts = share
        return replace(self, chosen=[fold for fold in self.chosen if fold % parts == part])

    def folder(self, fold: int) -> Path:
        """Where this fold's results go: two digits, or as many as the last fold needs."""
        digits = max(2, len(str(len(self.folds) - 1)))
        return self.out / f"{FOLD_PREFIX}{fold:0{digits}d}"

    def keep(self, **more: Any) -> None:
        """Writes run.json and folds.json, or checks that the experiment was begun with the same.

        Args:
            more: what its results depend on beside flags, folds and labels; as JSON values.

        Raises:
            ValueError: the folder was begun with other settings, folds or labels.
        """
        keep_record(self.out / "run.json", more | {"flags": settings_of(self.config)})
        record = {"folds": [asdict(fold) for fold in self.folds], "data": digest(self.utterances)}
        keep_record(self.out / "folds.json", record)

    def unfinished(self) -> list[int]:
        """The chosen folds that have no results yet."""
        return [fold for fold in self.chosen if not is_finished(self.folder(fold))]

    def name(self, fold: int) -> str:
        """A fold as it is named in what is printed."""
        return f"{self.out.name}, fold {fold} of {len(self.folds)} ({self.folds[fold].name})"

    def flags(self, fold: int) -> list[str]:
        """Flags that train one fold, from its newest checkpoint if it has one."""
        folder = self.folder(fold)
        begun = any((folder / "checkpoints").glob("step-*"))
        config = replace(self.config, fold=fold, out=str(folder), resume=begun)
        return training_flags(config)


def training_flags(config: TrainConfig) -> list[str]:
    """The settings as flags of train_accelerate.py; those at their default are left out.

    The preset and the protocol are never chosen again.
    """
    words: list[str] = []
    said = {name: getattr(config, name) for name in ("preset", "modalities", "model")}
    default, plain = asdict(TrainConfig(**filled(said))), asdict(TrainConfig())
    default |= {name: plain[name] for name in said}  # the others' defaults depend on them
    for name, value in asdict(config).items():
        if value != default[name] or name in FROM_DATA:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def make_plan(out: Path, config: TrainConfig, folds: Collection[int] | None = None) -> Plan:
    """Reads the corpus and makes the folds once, and refuses what any of the folds would refuse.

    Args:
        out: the experiment's folder.
        config: the settings; `fold`, `out` and `resume` are not read.
        folds: indices of the folds to run, from 0; all if None.

    Raises:
        ValueError: a flag, the corpus or a fold is not as it should be.
    """
    config.check()
    # The folds' cache is beside them, and what is read of recordings here is remembered there.
    config = replace(config.resolve(), out=str(out / "fold"))
    data = prepare.read_data(config)
    chosen = chosen_folds(data.folds, folds)
    known = planned(config)
    for index in chosen:
        prepare.check_fold(config, known, select(data.utterances, data.folds[index]))
    return Plan(out, config, data.utterances, data.folds, chosen)


def chosen_folds(folds: Sequence[Fold], wanted: Collection[int] | None) -> list[int]:
    """The wanted indices in order, or those of all folds; raises ValueError for one that is none."""
    indices = sorted(set(range(len(folds)) if wanted is None else wanted))
    wrong = set(indices) - set(range(len(folds)))
    if wrong:
        raise ValueError(f"`--folds {min(wrong)}` does not exist: there are {len(folds)}, from 0.")
    return indices


def run_protocol(out: Path, config: TrainConfig, part: Part) -> None:
    """Trains the folds that are missing; writes and prints the tables once all are there.

    Args:
        out, config: as of `make_plan`.
        part: the folds.
    """
    run_part([make_plan(out, config, part.folds)], part, lambda: write_tables(out))


def run_part(plans: Sequence[Plan], part: Part, write: Callable[[], str]) -> None:
    """Trains this part's share of the plans; writes and prints the tables once all is there."""
    run_plans([plan.of_share(part.share) for plan in plans], part.jobs)
    if missing := [plan.name(fold) for plan in plans for fold in plan.unfinished()]:
        print(f"This share is done; not trained yet: {few(missing)}. The same command goes on.")
    else:
        print("\n" + write())


# ---- processes ---------------------------------------------------------------------------------


def run_plans(plans: Sequence[Plan], jobs: int) -> None:
    """Trains every unfinished fold of the plans, `jobs` at once, each with its log beside it.

    Raises:
        ValueError: a folder was begun with other settings, folds or labels.
        RuntimeError: a fold failed; the message is its own. Folds that ran beside it are asked to
            stop, which leaves a checkpoint; what is finished stays.
    """
    for plan in plans:
        plan.keep()
    for plan in plans if jobs > 1 else ():
        # Folds that run at once would each encode the same.
        if plan.unfinished() and uses_cache(plan.config):
            log = plan.out / "encode.log"
            print(f"{plan.out}: encoding for all folds, log in {log}", flush=True)
            flags = [*plan.flags(plan.unfinished()[0]), "--encode_only", "True"]
            process = Process(train_accelerate.main, flags, log)
            try:
                status = process.wait()
            finally:
                stop([process])
            if status:
                raise RuntimeError(f"Encoding failed: {last_words(log)}\nThe log is in {log}.")
    waiting = [(plan, fold) for plan in plans for fold in plan.unfinished()]
    running: dict[Process, tuple[Plan, int]] = {}
    cores = share_of_cores(jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                plan, fold = waiting.pop(0)
                log = plan.folder(fold) / "log.txt"
                print(f"{plan.name(fold)}: begins, log in {log}", flush=True)
                process = Process(train_accelerate.main, plan.flags(fold), log, cores)
                running[process] = plan, fold
            for process in [p for p in running if p.exitcode is not None]:
                plan, fold = running.pop(process)
                folder, name = plan.folder(fold), plan.name(fold)
                if process.exitcode or not is_finished(folder):
                    log = folder / "log.txt"
                    raise RuntimeError(
                        f"{name} failed with exit status {process.exitcode}: {last_words(log)}\n"
                        f"The whole log is in {log}. Finished folds stay; the same command goes on."
                    )
                parts = "  ".join(metric_parts(Run.open(folder).results["test"]))
                print(f"{name}: {parts}", flush=True)
            time.sleep(0.1)
    finally:
        stop(running)


def uses_cache(config: TrainConfig) -> bool:
    """Whether a run with these settings keeps encoders' states, which is where both are frozen."""
    if config.cache_dir is not None:
        return config.cache_dir != "off"
    known = MTMMConfig() if config.model is None else MTMMConfig.from_pretrained(config.model)
    fields = json.loads(config.model_config)
    trained = [
        modality
        for modality in config.modalities
        if not fields.get(name := f"freeze_{modality}_encoder", getattr(known, name))
    ]
    layers = config.unfreeze_audio_layers + config.unfreeze_text_layers
    return not (trained or layers or config.lora_rank)


def stop(processes: Iterable[Process]) -> None:
    """Ask all to stop, then wait for all."""
    for process in processes:
        process.terminate()  # train_accelerate.py writes a checkpoint first
    for process in processes:
        process.wait()


def last_words(log: Path) -> str:
    """What a process that failed said last: its error, or else its last line."""
    text = "\n" + log.read_text(encoding="utf-8").strip()
    _, found, error = text.rpartition("\nerror: ")
    return error if found else text.rpartition("\n")[2]
