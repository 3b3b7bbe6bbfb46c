"""python -m pytest tests/test_runs.py -q"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtmm_training import tables

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
