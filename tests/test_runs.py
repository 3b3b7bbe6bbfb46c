"""python -m pytest tests/test_runs.py -q"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.hf_argparser import DataClassType, HfArgumentParser

from mtmm_training.studies import protocol as evaluate
from mtmm_training.studies import tables
from mtmm_training.studies.baselines import BaselineConfig
from mtmm_training.training.config import TrainConfig

# In the place of Python: notes what it is asked to run, and runs nothing.
NOTES = """\
#!/usr/bin/env bash
if [ "$1" = - ]; then cat > /dev/null; else printf '%s\\0' "$@" $'\\n' >> "$NOTES"; fi
"""
RUNS = Path(__file__).parents[1] / "runs"
COMMANDS = [path for path in sorted(RUNS.glob("*.sh")) if path.read_text().startswith("#!")]


@pytest.mark.parametrize("script", sorted(RUNS.glob("*.sh")), ids=lambda path: path.name)
def test_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_help_is_the_comment_at_the_head(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  runs/{script.name} " in done.stdout and "set -e" not in done.stdout
    assert done.stdout.splitlines() == [
        line.removeprefix("# ")
        for line in script.read_text().partition("\nset ")[0].splitlines()[1:]
    ]
    assert not list(tmp_path.iterdir())


def commands_of(script: Path, folder: Path) -> list[list[str]]:
    """What a script would run with Python, word by word, its results going into folder/out."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(NOTES)
    (folder / "bin" / "python").chmod(0o755)
    (usage,) = re.findall(rf"^#   runs/{script.name} ([^\[\n]*)", script.read_text(), re.M)
    words = ["out" if word == "OUT" else word for word in usage.split()]
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NOTES": str(folder / "notes")}
    subprocess.run(["bash", script, *words], cwd=folder, check=True, env=environment)
    notes = (folder / "notes").read_text().split("\0\n\0")[:-1]
    return [note.split("\0") for note in notes]


def check_flags(module: str, flags: list[str]) -> None:
    """Refuse flags that the module does not have or does not allow."""
    if module == "mtmm_training.studies.baselines":
        parser = HfArgumentParser(DataClassType(BaselineConfig))
        parser.parse_args_into_dataclasses(flags)[0].check()
        return
    if module != "train_accelerate.py":
        plans = argparse.ArgumentParser(allow_abbrev=False)
        evaluate.add_run_flags(plans)
        flags = plans.parse_known_args(flags)[1]
    if flags:  # the ablation without any makes its own corpus
        evaluate.parse(flags).check()


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_flags_are_those_of_the_modules(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainConfig, "_check_places", lambda self: None)  # no encoder is there
    trained = 0
    for words in commands_of(script, tmp_path):
        module, *flags = [word for word in words if word not in ("-m", "run")]
        if module not in ("-c", "mtmm_training.studies.hour") and flags[0] not in (
            "table",
            "compare",
        ):
            check_flags(module, flags)
            trained += 1
    assert trained


@pytest.mark.parametrize("names", [[], ["last_layer", "egemaps"]])
def test_baselines_that_are_there_are_compared(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "out" / name).mkdir(parents=True)
    *_, last = commands_of(RUNS / "ravdess4.sh", tmp_path)
    folders = [str(tmp_path / "out" / name) for name in ["ours", *names, "comparison"]]
    expected = ["compare", *folders[:-1], "--out", folders[-1]]
    assert ("compare" in last) == bool(names)
    assert not names or last[2:] == expected


def test_model_of_both_corpora_is_seen_on_each(tmp_path: Path) -> None:
    """The Python in runs/mixed.sh after the training: its parts can be paired and count right."""
    splitting = (RUNS / "mixed.sh").read_text().split("<<'PY'\n")[2].partition("\nPY\n")[0]
    run = tmp_path / "both" / "fold-00"
    run.mkdir(parents=True)
    rows = [("ravdess", 3, "angry", ""), ("emobank", 5, "", "4.5")]
    with open(run / "predictions.csv", "w", newline="") as file:
        write = csv.writer(file).writerow
        header = ["id", "split", "speaker", "emotion_label", "emotion", "p_angry"]
        write([*header, "valence_label", "valence"])
        for corpus, count, emotion, valence in rows:
            for i in range(2 * count):
                split = "test" if i % 2 else "validation"
                write([f"{corpus}/{i}", split, f"{corpus}/s", emotion, "angry", 1.0, valence, 3.0])
    results = {"fold": "official", "config": {}, "temperature": 1.0, "wall_time_s": 1.0}
    results["splits"] = {"test": {"utterances": 8}}
    (run / "results.json").write_text(json.dumps(results))
    subprocess.run([sys.executable, "-c", splitting, tmp_path], check=True, cwd=RUNS.parent)
    for corpus, count, *_ in rows:
        part = tables.read_experiment(tmp_path / f"both_on_{corpus}")
        assert list(part.rows["id"]) == [str(i) for i in range(1, 2 * count, 2)]
        assert part.runs[0]["splits"]["test"]["utterances"] == count
