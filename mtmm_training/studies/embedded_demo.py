"""The whole path in minutes: make the embedded corpus, train, compare, save, load, predict.

    python -m mtmm_training.studies.embedded_demo FOLDER

Three models learn the same fold: one sees audio and transcript, one audio alone, one text alone. The
first is then loaded in a process that cannot import this checkout, as a user of the Hub would do.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_training.data.corpora.synthetic import RECIPE_FILE, write_corpus, write_encoders
from mtmm_training.data.utterances import Utterance

MODELS = {"fused": ["audio", "text"], "audio only": ["audio"], "text only": ["text"]}

# The embedded corpus' encoders start from random weights, so they are trained, and all is small.
MODEL_CONFIG = {
    "freeze_audio_encoder": False,
    "freeze_text_encoder": False,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_bridge_tokens": 8,
}
RUN_FILES = ("results.json", "checkpoints", ".lock")  # a run, begun or finished, has one of these
RECIPE = ["--protocol", "speaker", "--fold", "8", "--batch_size", "16", "--epochs", "6"]
RECIPE += ["--learning_rate", "1e-3", "--encoder_learning_rate", "1e-3", "--rmm_start", "0.5"]

# What a user of a published model writes; run with `python -I` in another folder.
PREDICT = """
import json, sys
from transformers import logging, pipeline
logging.disable_progress_bar()
predict = pipeline(model=sys.argv[1], trust_remote_code=True)
for utterance in json.loads(sys.argv[2]):
    print(json.dumps({"input": utterance, "output": predict(utterance)}))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.studies.embedded_demo", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "folder", type=Path, help="gets the corpus, the three runs and the saved models"
    )
    folder = parser.parse_args(arguments).folder.resolve()
    try:
        run(folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def run(folder: Path) -> None:
    """Make, train, compare and predict, and print what came out."""
    began = time.time()
    refuse_foreign(folder)
    print(
        f"corpus: about an hour of speech-like audio with sentences, into {folder / 'corpus'}",
        flush=True,
    )
    utterances = write_corpus(folder / "corpus")
    audio_encoder, text_encoder = write_encoders(folder / "encoders")
    results = {}
    for name, modalities in MODELS.items():
        print(f"\n==== {name} ====", flush=True)
        out = run_folder(folder, name)
        if out.exists():  # of an earlier demo; a run is never overwritten
            shutil.rmtree(out)
        train(folder / "corpus" / "manifest.csv", audio_encoder, text_encoder, modalities, out)
        results[name] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    print_table(results)
    predict_in_isolation(folder / "fused" / "model", heard_by_nobody(utterances, results["fused"]))
    print_places(folder, time.time() - began)


def run_folder(folder: Path, name: str) -> Path:
    """Where the run of a model lies."""
    return folder / name.replace(" ", "_")


def refuse_foreign(folder: Path) -> None:
    """Raise FileExistsError where a run's folder, which is deleted, holds anything but a demo's run."""
    demo = (folder / "corpus" / RECIPE_FILE).is_file()
    for out in (run_folder(folder, name) for name in MODELS):
        ours = demo and any((out / name).exists() for name in RUN_FILES)
        if out.exists() and any(out.iterdir()) and not ours:
            raise FileExistsError(
                f"{out} is not empty and holds no run of an earlier demo, which alone may be deleted; "
                "choose another folder, or move it away."
            )


def train(manifest: Path, audio: Path, text: Path, modalities: list[str], out: Path) -> None:
    """One run of train_accelerate.py, in a process of its own."""
    script = Path(__file__).parents[2] / "train_accelerate.py"
    command = [sys.executable, str(script), "--manifest", str(manifest), "--out", str(out)]
    command += ["--audio_encoder", str(audio), "--text_encoder", str(text)]
    command += ["--model_config", json.dumps(MODEL_CONFIG), "--modalities", *modalities, *RECIPE]
    subprocess.run(command, check=True)


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Test metrics of the three models, side by side."""
    test = results["fused"]["splits"]["test"]
    print(
        f"\nTest split: {test['utterances']} utterances of {', '.join(test['speakers'])}, read once."
    )
    print("Arousal is only in the audio, valence only in the words, an emotion is both.\n")
    print(f"{'model':<12} {'UAR':>6} {'WAR':>6} {'CCC valence':>12} {'CCC arousal':>12}")
    for name, result in results.items():
        metrics = result["test"]
        numbers = f"{metrics['UAR']:6.3f} {metrics['WAR']:6.3f}"
        numbers += f" {metrics['CCC']['valence']:12.3f} {metrics['CCC']['arousal']:12.3f}"
        print(f"{name:<12} {numbers}")


def heard_by_nobody(utterances: list[Utterance], result: dict[str, Any]) -> list[Utterance]:
    """One test utterance of each of three emotions."""
    speakers = result["splits"]["test"]["speakers"]
    test = [u for u in utterances if u.speaker_id in speakers]
    return [next(u for u in test if u.emotion == emotion) for emotion in ("happy", "angry", "sad")]


def predict_in_isolation(model: Path, utterances: list[Utterance]) -> None:
    """Predict with the saved folder where this checkout cannot be imported."""
    print("\nLoaded with trust_remote_code in a separate, isolated process:", flush=True)
    inputs = json.dumps([{"audio": u.audio, "text": u.text} for u in utterances])
    command = [sys.executable, "-I", "-c", PREDICT, str(model), inputs]
    lines = subprocess.run(command, cwd="/", check=True, stdout=subprocess.PIPE, text=True).stdout
    for utterance, line in zip(utterances, lines.splitlines(), strict=True):
        output = json.loads(line)["output"]
        print(f"  {Path(str(utterance.audio)).name}: {utterance.text}")
        print(
            f"    labelled {utterance.emotion}, valence {utterance.valence}, arousal {utterance.arousal}"
        )
        print(
            f"    predicted {output['emotion']} ({output['scores'][output['emotion']]:.2f}), "
            f"valence {output['valence']:.2f}, arousal {output['arousal']:.2f}"
        )


def print_places(folder: Path, seconds: float) -> None:
    """Where all that was made lies, and how long it took."""
    run = folder / "fused"
    print(f"\n{seconds:.0f} s in all. Where everything is:")
    for what, path in {
        "corpus": folder / "corpus",
        "Hub-ready model": run / "model",
        "results": run / "results.json",
        "predictions": run / "predictions.csv",
        "pictures": run / "figures",
    }.items():
        print(f"  {what:<16} {path}")


if __name__ == "__main__":
    main()
