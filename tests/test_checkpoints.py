"""The models in checkpoints/: their Hub files are the root's, and they answer with the real encoders."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT, HUB_FILES

from composing_mtmm import LOCAL_ENCODERS
from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor
from mtmm_training.scoring.metrics import unweighted_average_recall

FOLDERS = sorted(path for path in CHECKOUT.glob("checkpoints/*") if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_checkpoint_has_the_roots_hub_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.glob("*.py")) == HUB_FILES, "make checkpoints"
    for name in HUB_FILES:
        same = (folder / name).read_bytes() == (CHECKOUT / name).read_bytes()
        assert same, f"{folder.name}/{name} is another; run `make checkpoints`"
    sources = json.loads((folder / "config.json").read_text())["encoder_sources"]
    assert all("/" in source["id"] for source in sources.values())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**21


def test_open_small_hears_real_emotions(real_data: Path) -> None:
    """Recordings that it was trained on, in one batch of each emotion."""
    folder = CHECKOUT / "checkpoints" / "open_small"
    names = {"audio": "whisper-base-6s", "text": "all-MiniLM-L6-v2"}
    encoders = {key: str(real_data / "encoders" / name) for key, name in names.items()}
    assert encoders.keys() == LOCAL_ENCODERS.keys()
    model = MTMMModel.from_pretrained(folder, encoders=encoders)
    processor = MTMMProcessor.from_pretrained(folder, encoders=encoders)
    predict = MTMMPipeline(model=model, processor=processor)
    table = pd.read_csv(real_data / "ravdess4" / "manifest.csv").groupby("emotion").head(5)
    paths = [{"audio": str(real_data / "ravdess4" / path)} for path in table["audio"]]
    said = [answer["emotion"] for answer in predict(paths)]
    emotions = list(model.config.emotion_names)
    labels, heard = (np.array([emotions.index(n) for n in own]) for own in (table["emotion"], said))
    assert unweighted_average_recall(labels, heard, emotions) > 0.7
    good, bad = predict([{"text": "What a wonderful day!"}, {"text": "This is a disgusting mess."}])
    assert good["valence"] > bad["valence"] + 1
