"""Whole protocols: train every fold, each in a process of its own, and put the results together.

    python -m mtmm_training.studies.protocol run --out out/ours --manifest my/manifest.csv --protocol speaker
    python -m mtmm_training.studies.protocol table out/ours
    python -m mtmm_training.studies.protocol compare out/baseline out/ours

`run` takes every flag of train_accelerate.py. What is finished is never run again: the same command
goes on where it was stopped. On several machines that share --out, give each its --share.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.hf_argparser import DataClassType, HfArgumentParser

import train_accelerate
from configuration_mtmm import MTMMConfig
from mtmm_training.commands.flags import count, folder
from mtmm_training.data.folds import Fold, keep_folds, refuse_change, select
from mtmm_training.data.utterances import Utterance
from mtmm_training.files import read_json, replacing, write_json
from mtmm_training.studies.compare import as_json, compare, comparison_markdown
from mtmm_training.studies.experiments import fold_folder, read_experiment
from mtmm_training.studies.tables import write_tables
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import usable_cores
from mtmm_training.training.model import planned
from mtmm_training.training.prepare import check_fold, folds_of, read_utterances
from mtmm_training.training.report import metric_parts

# Flags that change no result, so that an experiment may go on with others.
HARMLESS = {"out", "fold", "cache_dir", "resume", "tracker", "workers", "encode_only"}
HARMLESS |= {"checkpoint_steps", "keep_checkpoints"}


@dataclass(frozen=True)
class Plan:
    """An experiment that may run: its flags and folds are checked.

    Args:
        out: its folder.
        flags: of train_accelerate.py, as given.
        config: the same, parsed.
        utterances: those that the folds are of.
        folds: all folds of the protocol.
        chosen: those of them, by index from 0, that are to run.
    """

    out: Path
    flags: list[str]
    config: TrainConfig
    utterances: list[Utterance]
    folds: list[Fold]
    chosen: list[int]

    def folder(self, fold: int) -> Path:
        """Where this fold's results go."""
        return fold_folder(self.out, fold, len(self.folds))

    def unfinished(self) -> list[int]:
        """The chosen folds that have no results yet."""
        return [i for i in self.chosen if not (self.folder(i) / "results.json").exists()]

    def command(self, fold: int) -> list[str]:
        """How to train one fold, from its newest checkpoint if it has one."""
        folder = self.folder(fold)
        begun = any((folder / "checkpoints").glob("step-*"))
        script = str(Path(train_accelerate.__file__))
        own = ["--fold", str(fold), "--out", str(folder), "--resume", str(begun)]
        return [sys.executable, script, *self.flags, *own]


def make_plan(out: Path, flags: Sequence[str], chosen: Sequence[int] | None = None) -> Plan:
    """Reads the corpus and makes the folds once, and refuses what any of the folds would refuse.

    Args:
        out: the experiment's folder.
        flags: of train_accelerate.py, without --fold, --out and --resume.
        chosen: indices of the folds to run, from 0; all if None.

    Raises:
        ValueError: a flag, the corpus or a fold is not as it should be.
    """
    config = parse(flags)
    config.check()
    config = config.resolve()
    utterances = read_utterances(config)
    folds = folds_of(config, utterances)
    wrong = sorted(set(chosen or ()) - set(range(len(folds))))
    if wrong:
        raise ValueError(
            f"`--folds {wrong[0]}` does not exist: there are {len(folds)}, counted from 0."
        )
    chosen = sorted(set(range(len(folds)) if chosen is None else chosen))
    known = planned(config)
    for index in chosen:
        check_fold(config, known, select(utterances, folds[index]))
    return Plan(out, list(flags), config, utterances, folds, chosen)


def parse(flags: Sequence[str]) -> TrainConfig:
    """The flags of train_accelerate.py, not checked yet."""
    (config,) = HfArgumentParser(DataClassType(TrainConfig)).parse_args_into_dataclasses(
        list(flags)
    )
    return config


def keep_record(plan: Plan) -> None:
    """Writes run.json and folds.json, or checks that this experiment is the one that was begun.

    Raises:
        ValueError: the folder was begun with other flags, folds or labels, or its record is damaged.
    """
    flags = {name: value for name, value in asdict(plan.config).items() if name not in HARMLESS}
    record = plan.out / "run.json"
    if record.exists():
        begun = read_json(record, "flags")["flags"]
        for name in sorted(begun.keys() | flags.keys()):
            if begun.get(name) != flags.get(name):
                refuse_change(plan.out, name, begun.get(name), flags.get(name))
    keep_folds(plan.folds, plan.utterances, plan.out / "folds.json")
    if not record.exists():
        write_json({"flags": flags, "command": plan.flags}, record)


# ---- running -----------------------------------------------------------------------------------


def run_plans(plans: Sequence[Plan], jobs: int) -> None:
    """Trains every unfinished fold of the plans, `jobs` at once, each with its log beside it.

    Raises:
        RuntimeError: a fold failed; the message is its own. Folds that ran beside it are asked to
            stop, which leaves a checkpoint; what is finished stays.
    """
    for plan in plans:
        keep_record(plan)
    if jobs > 1:
        for plan in plans:
            if plan.unfinished() and uses_cache(plan.config):
                encode(plan)
    waiting = [(plan, fold) for plan in plans for fold in plan.unfinished()]
    running: dict[subprocess.Popen[bytes], tuple[Plan, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                plan, fold = waiting.pop(0)
                log = plan.folder(fold) / "log.txt"
                print(f"{_named(plan, fold)}: begins, log in {log}", flush=True)
                running[start(plan.command(fold), log, jobs)] = plan, fold
            for process in [p for p in running if p.poll() is not None]:
                finish(process, *running.pop(process))
            time.sleep(0.1)
    finally:
        stop(running)


def uses_cache(config: TrainConfig) -> bool:
    """Whether a run with these flags keeps encoders' states, which is where both are frozen."""
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


def encode(plan: Plan) -> None:
    """Fills the feature cache, so that folds that run at once do not all encode the same."""
    log = plan.out / "encode.log"
    print(f"{plan.out}: encoding for all folds, log in {log}", flush=True)
    command = [*plan.command(plan.unfinished()[0]), "--encode_only", "True"]
    process = start(command, log, jobs=1)
    try:
        process.wait()
    finally:
        stop([process])
    if process.returncode:
        raise RuntimeError(f"Encoding failed: {last_words(log)}\nThe whole log is in {log}.")


def start(command: list[str], log: Path, jobs: int) -> subprocess.Popen[bytes]:
    """A process that appends what it prints to its log and has its share of the cores.

    Args:
        command: Python, train_accelerate.py, and its flags.
        log: gets what the process prints.
        jobs: so many such processes run at once.
    """
    environment = dict(os.environ)
    if jobs > 1:
        threads = max(usable_cores() // jobs, 1)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        # A core for decoding would be one that another fold uses. Before the flags as given, of
        # which --workers, in any spelling, takes precedence.
        command = [*command[:2], "--workers", "0", *command[2:]]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process alone, which then asks each fold to stop, once.
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], plan: Plan, fold: int) -> None:
    """Says how a fold ended; raises RuntimeError unless it left its results."""
    results = plan.folder(fold) / "results.json"
    if process.returncode or not results.exists():
        log = plan.folder(fold) / "log.txt"
        raise RuntimeError(
            f"{_named(plan, fold)} failed with exit status {process.returncode}: {last_words(log)}\n"
            f"The whole log is in {log}. Finished folds stay; the same command goes on from here."
        )
    test = read_json(results, "test")["test"]
    parts = "  ".join(metric_parts(test))
    print(f"{_named(plan, fold)}: {parts}", flush=True)


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
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


def _named(plan: Plan, fold: int) -> str:
    return f"{plan.out.name}, fold {fold} of {len(plan.folds)} ({plan.folds[fold].name})"


# ---- the command -------------------------------------------------------------------------------


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that runs experiments; all others go to train_accelerate.py."""
    parser.add_argument("--out", type=folder, required=True, help="folder of all results")
    parser.add_argument(
        "--folds", "--fold", type=int, nargs="+", metavar="I", help="only these, counted from 0"
    )
    parser.add_argument(
        "--share", type=share, default=(0, 1), metavar="I/N",
        help="of the folds, those whose number divided by N leaves I: machine I of N",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="folds at once on this machine (1)"
    )


def share(text: str) -> tuple[int, int]:
    """ "1/4" as (1, 4)."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share; machine I of N is I/N, from 0/N to N-1/N, such as 0/2 and 1/2"
        )
    return int(part), int(parts)


def of_share(plan: Plan, wanted: tuple[int, int]) -> Plan:
    """The plan with only this machine's folds."""
    part, parts = wanted
    chosen = [fold for fold in plan.chosen if fold % parts == part]
    return replace(plan, chosen=chosen)


def run(arguments: argparse.Namespace, flags: Sequence[str]) -> None:
    """Train the folds that are missing; write the tables once all are there."""
    plan = make_plan(arguments.out, flags, arguments.folds)
    run_plans([of_share(plan, arguments.share)], arguments.jobs)
    if plan.unfinished():
        folds = ", ".join(map(str, plan.unfinished()))
        print(
            f"This share is done; folds {folds} are not. When they are: "
            f"python -m mtmm_training.studies.protocol table {plan.out}"
        )
    else:
        print("\n" + write_tables(plan.out))


def main(words: Sequence[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("SIGTERM: stopped"))  # folds are stopped too
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.studies.protocol", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser(
        "run", help="train and test all folds of a protocol", allow_abbrev=False,
        epilog="All other flags are those of train_accelerate.py (see its --help).",
    )  # fmt: skip
    add_run_flags(runs)
    tables = commands.add_parser("table", help="put the folds of an experiment together")
    tables.add_argument("folder", type=Path, help="an experiment's --out; gets summary.json, "
                        "table.md and figures/")  # fmt: skip
    pairs = commands.add_parser("compare", help="differences of experiments, with intervals")
    pairs.add_argument("reference", type=Path, help="folder of an experiment")
    pairs.add_argument("others", type=Path, nargs="+", help="folders of experiments, same folds")
    pairs.add_argument("--out", type=Path, help="also write NAME.md and NAME.json", metavar="NAME")
    arguments, flags = parser.parse_known_args(words)
    if flags and arguments.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    try:
        if arguments.command == "run":
            run(arguments, flags)
        elif arguments.command == "table":
            print(write_tables(arguments.folder))
        else:
            compare_all(arguments.reference, arguments.others, arguments.out)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def compare_all(reference: Path, others: Sequence[Path], out: Path | None) -> None:
    """Prints each experiment minus the reference, and writes it as Markdown and JSON."""
    first = read_experiment(reference)
    parts: list[str] = []
    content: dict[str, Any] = {"reference": str(reference), "differences": {}}
    for compared in others:
        other = read_experiment(compared)
        differences = compare(first, other)
        parts.append(comparison_markdown(first, other, differences))
        content["differences"][str(compared)] = as_json(differences)
    print("\n".join(parts))
    if out is not None:
        write_json(content, out.with_name(f"{out.name}.json"))
        with replacing(out.with_name(f"{out.name}.md")) as temporary:
            temporary.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
