"""runs/iemocap.sh from beginning to end, on the embedded corpus in the layout that IEMOCAP comes in."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import CHECKOUT
from small_runs import SIZES

from mtmm_training.data.manifest import read_manifest


def write_release(corpus: Path, folder: Path) -> None:
    """Session1 to Session5 with evaluations, transcripts and recordings of every turn."""
    evaluated: dict[Path, list[str]] = defaultdict(list)
    said: dict[Path, list[str]] = defaultdict(list)
    for number, u in enumerate(read_manifest(corpus / "manifest.csv")):
        turn, dialogue = u.utterance_id, u.utterance_id.rpartition("_")[0]
        session = folder / f"Session{int(turn[3:5])}"
        wav = session / "sentences" / "wav" / dialogue / f"{turn}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(u.audio), wav)
        values = ", ".join(f"{value:.4f}" for value in (u.valence, u.arousal, 3.0))
        times = f"{2 * number}.0000 - {2 * number + 1}.0000"
        line = f"[{times}]\t{turn}\t{str(u.emotion)[:3]}\t[{values}]"
        evaluated[session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"] += [line, ""]
        said[session / "dialog" / "transcriptions" / f"{dialogue}.txt"] += [
            f"{turn} [1-2]: {u.text}"
        ]
    for path, lines in (*evaluated.items(), *said.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(
    "MTMM_LONG" not in os.environ, reason="a minute; MTMM_LONG=1 runs it, as .ci/run"
)
def test_table_of_the_paper_comes_out(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(embedded / "corpus", tmp_path / "release")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    encoders = [f"--{name}_encoder={embedded / 'encoders' / name}" for name in ("audio", "text")]
    small = ["--corpus_options", '{"partial": true}', "--model_config", json.dumps(SIZES)]
    small += ["--epochs", "1", "--folds", "0", "--tracker", "none", "--workers", "0"]
    words = [str(tmp_path / "release"), str(tmp_path / "out"), "1", *encoders, *small]
    done = subprocess.run(
        ["bash", str(CHECKOUT / "runs" / "iemocap.sh"), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = (tmp_path / "out" / "ablation" / "ablation.md").read_text()
    names = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert len(names) == 16 and "| bridge tokens: 60" in names  # with the head and the rule
    assert (tmp_path / "out" / "session" / "fold-00" / "results.json").is_file()
