"""python -m pytest tests/test_embedded_demo.py -q; the page's tests are in test_demo.py."""

import re
from pathlib import Path

import pytest
from conftest import TrainedDemo

from mtmm_training.studies.embedded_demo import MODELS, run_demo, run_folder
from mtmm_training.training.run import Run


def test_demo_trains_three_models_and_predicts_apart(trained_demo: TrainedDemo) -> None:
    folder, printed = trained_demo.folder / "out" / "demo", trained_demo.printed
    for name, modalities in MODELS.items():
        run = Run.open(run_folder(folder, name))
        assert run.flags.modalities == modalities
        assert re.search(rf"^{name} +{run.results['test']['UAR']:.3f} ", printed, re.MULTILINE)
    said = re.findall(r"labelled (\w+), .*\n    predicted (\w+) \(0\.\d\d\), valence \d", printed)
    assert said == [(emotion, emotion) for emotion in ("happy", "angry", "sad")]
    for place in re.findall(r"^  .*? (/.*)$", printed, re.MULTILINE)[-5:]:
        assert Path(place).exists()


@pytest.mark.parametrize("place", ["fused/model.txt", "fused/results.json", "corpus/a.wav"])
def test_demo_deletes_nothing_of_others(tmp_path: Path, place: str) -> None:
    precious = tmp_path / place
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(FileExistsError, match=precious.parent.name):
        run_demo(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]
