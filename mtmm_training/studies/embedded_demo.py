"""The whole path in minutes: make the embedded corpus, train, compare, save, load, predict.

Three models learn the same fold: one sees audio and transcript, one audio alone, one text alone. The
first is then loaded in a process that cannot import this checkout, as a user of the Hub would do.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import train_accelerate
from mtmm_training.data.corpora.synthetic import (
    MODEL_CONFIG,
    RECIPE_FILE,
    write_corpus,
    write_encoders,
)
from mtmm_training.data.utterances import Utterance
from mtmm_training.scoring.texts import say
from mtmm_training.studies.processes import Process
from mtmm_training.studies.protocol import training_flags
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.run import Run

MODELS = {"fused": ["audio", "text"], "audio only": ["audio"], "text only": ["text"]}

RUN_FILES = ("results.json", "checkpoints", ".lock")  # a run, begun or finished, has one of these
RECIPE = {  # of whatever trains on the embedded corpus
    "learning_rate": 1e-3,
    "encoder_learning_rate": 1e-3,
    "rmm_start": 0.5,
    "model_config": json.dumps(MODEL_CONFIG),
}

# What a user of a published model writes; run with `python -I` in another folder.
PREDICT = """
import json, sys
from transformers import logging, pipeline
logging.disable_progress_bar()
predict = pipeline(model=sys.argv[1], trust_remote_code=True)
for utterance in json.loads(sys.argv[2]):
    print(json.dumps({"input": utterance, "output": predict(utterance)}))
"""


def embedded_settings(folder: Path, utterances: int = 1200) -> dict[str, Any]:
    """Writes the embedded corpus and its untrained encoders; the settings that train on them."""
    write_corpus(folder / "corpus", utterances=utterances)
    audio, text = write_encoders(folder / "encoders")
    places = {"manifest": [str(folder / "corpus" / "manifest.csv")]}
    return RECIPE | places | {"audio_encoder": str(audio), "text_encoder": str(text)}


def run_demo(folder: Path) -> None:
    """Makes the corpus, trains three models, predicts, and prints what came out.

    Args:
        folder: Gets the corpus, the three runs and the saved models; runs of an earlier demo in it
            are deleted.

    Raises:
        FileExistsError: A run's folder holds something else.
    """
    began = time.time()
    folder = folder.resolve()
    outs = {name: folder / name.replace(" ", "_") for name in MODELS}
    demo = (folder / "corpus" / RECIPE_FILE).is_file()
    for out in outs.values():
        ours = demo and any((out / name).exists() for name in RUN_FILES)
        if out.exists() and any(out.iterdir()) and not ours:
            raise FileExistsError(f"{out} holds no run of an earlier demo; choose another folder.")
    print(
        f"corpus: about an hour of artificial speech, with sentences, into {folder / 'corpus'}",
        flush=True,
    )
    recipe = TrainConfig(
        **embedded_settings(folder), protocol="speaker", fold=8, batch_size=16, epochs=6
    )
    results = {}
    for name, modalities in MODELS.items():
        print(f"\n==== {name} ====", flush=True)
        out = outs[name]
        if out.exists():  # of an earlier demo; a run is never overwritten
            shutil.rmtree(out)
        config = replace(recipe, modalities=modalities, out=str(out))
        if status := Process(train_accelerate.main, training_flags(config)).wait():
            raise RuntimeError(f"The training of {name} failed with exit status {status}.")
        results[name] = Run.open(out).results
    tested = Run.open(folder / "fused").test_utterances()
    chosen = [next(u for u in tested if u.emotion == name) for name in ("happy", "angry", "sad")]
    predicted = predict_in_isolation(folder / "fused" / "model", chosen)
    pairs, took_s = list(zip(chosen, predicted, strict=True)), time.time() - began
    told = {"results": results, "predicted": pairs, "took_s": took_s, "folder": folder}
    say("demo.txt", **told)


def predict_in_isolation(model: Path, utterances: list[Utterance]) -> list[dict[str, Any]]:
    """What the saved folder predicts where this checkout cannot be imported."""
    inputs = json.dumps([{"audio": u.audio, "text": u.text} for u in utterances])
    command = [sys.executable, "-I", "-c", PREDICT, str(model), inputs]
    lines = subprocess.run(command, cwd="/", check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line)["output"] for line in lines.splitlines()]
