"""Runs killed with SIGKILL at random moments and resumed, against a run that was never killed.

    python benchmarks/killed_runs.py [--runs 20] [--seed 0] [--kills 2] [--cached]

Small runs of train_accelerate.py on the embedded corpus, with dropout, random modality masking,
augmented recordings, two workers and a checkpoint every step; the encoders train too. Each run is
killed one to --kills times, each time after a time drawn evenly from 0 to what the whole reference
run took, and in the end left to finish. With --cached the encoders are frozen, acoustic states are
masked, and each run fills a cache of its own, so that kills hit the encoding too. All weights and
everything that results.json says of epochs and test must be the same, bit for bit.
"""

import argparse
import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, begin, make_parser, print_result

from mtmm_training.data.corpora.synthetic import MODEL_CONFIG, write_corpus, write_encoders

COMPARED = ("epochs", "best_epoch", "temperature", "validation", "test")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="run n draws its moments from seed + n")
    parser.add_argument("--kills", type=int, default=2, help="of one run, at most")
    parser.add_argument("--cached", action="store_true", help="train from a cache")
    arguments, _ = begin(parser)
    if arguments.quick:
        arguments.runs, arguments.kills = 1, 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        flags = write_inputs(work, arguments)
        began = time.monotonic()
        finish(start(work / "reference", flags), work / "reference")
        duration = time.monotonic() - began
        epochs = len(json.loads((work / "reference" / "results.json").read_text())["epochs"])
        print(f"reference: {epochs} epochs in {duration:.1f} s", flush=True)
        identical, every = 0, list[str]()
        for number in range(arguments.runs):
            out, seed = work / f"run{number}", arguments.seed + number
            kills = killed_run(out, flags, duration, seed, arguments.kills)
            every += kills
            identical += (same := is_identical(work / "reference", out))
            verdict = "identical" if same else "DIFFERENT"
            print(f"run {number + 1}, seed {seed}: {'; '.join(kills)}: {verdict}", flush=True)
    late = sum("no checkpoint" not in kill for kill in every)
    print(f"{len(every)} kills, {late} of them after the first checkpoint")
    claim = f"runs of {arguments.runs} identical to one never killed"
    print_result(claim, identical, arguments.runs, at_least=True)


def write_inputs(work: Path, arguments: argparse.Namespace) -> list[str]:
    """Write the embedded corpus and encoders; the flags that train on them."""
    write_corpus(work / "corpus", utterances=50)
    write_encoders(work / "encoders")
    dropouts = ("hidden_dropout", "attention_dropout", "head_dropout")
    fields: dict[str, object] = MODEL_CONFIG | dict.fromkeys(dropouts, 0.1)
    if arguments.cached:
        fields |= {"freeze_audio_encoder": True, "freeze_text_encoder": True}
    epochs = 1 if arguments.quick else 5
    # Paths are relative to `work`, where every run starts.
    flags = f"""--manifest corpus/manifest.csv --protocol session --fold 4 --tracker none
        --audio_encoder encoders/audio --text_encoder encoders/text
        --epochs {epochs} --batch_size 6 --workers 2 --checkpoint_steps 1 --keep_checkpoints 2
        --augment speed noise lowpass --augment_variants 2 --resume True""".split()
    flags += ["--model_config", json.dumps(fields)]
    return [*flags, "--mask_frames", "0.2", "--cache_dir"] if arguments.cached else flags


def start(out: Path, flags: list[str]) -> subprocess.Popen[bytes]:
    """Train in a process of its own, which writes to a log beside its folder."""
    if flags[-1] == "--cache_dir":  # its value is the run's own
        flags = [*flags, f"{out.name}-cache"]
    command = [sys.executable, str(ROOT / "train_accelerate.py"), *flags, "--out", str(out)]
    with out.with_suffix(".log").open("ab") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=out.parent, env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait for a process; stop here, with what it wrote, if it failed."""
    if process.wait() != 0:
        log = out.with_suffix(".log").read_text()
        raise SystemExit(f"a run ended with {process.returncode}:\n{log}")


def killed_run(out: Path, flags: list[str], duration: float, seed: int, most: int) -> list[str]:
    """Train with kills in between until the run is finished; when each kill came, in words.

    A run that is finished before its first moment begins anew with another one.
    """
    draw = random.Random(seed)
    kills: list[str] = []
    wanted = draw.randint(1, most)
    while len(kills) < wanted:
        process, moment = start(out, flags), draw.uniform(0, duration)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills.append(f"{moment:.2f} s ({where(out)})")
            if (out / "results.json").exists():  # finished, but for the end of the process
                return kills
            continue
        finish(process, out)
        if kills:
            return kills
        shutil.rmtree(out)
    finish(start(out, flags), out)
    return kills


def where(out: Path) -> str:
    """How far a killed run was, from what it left."""
    if (out / "model").exists():
        return "after training"
    steps = sorted((out / "checkpoints").glob("step-*"))
    half = ", one half written" if any((out / "checkpoints").glob(".step-*")) else ""
    newest = f"step {int(steps[-1].name.split('-')[1])}" if steps else "no checkpoint"
    return newest + half


def is_identical(one: Path, two: Path) -> bool:
    a, b = (json.loads((run / "results.json").read_text()) for run in (one, two))
    old, new = (run / "model" / "model.safetensors" for run in (one, two))
    return filecmp.cmp(old, new, shallow=False) and all(a[name] == b[name] for name in COMPARED)


if __name__ == "__main__":
    main()
