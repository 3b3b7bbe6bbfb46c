"""python -m pytest tests/test_embedded_demo.py -q; the page's tests are in test_demo.py."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from mtmm_training.data.corpora.synthetic import write_corpus
from mtmm_training.studies import embedded_demo as demo


def test_demo_trains_three_models_and_predicts_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "write_corpus", partial(write_corpus, utterances=160))
    monkeypatch.setattr(demo, "RECIPE", [*demo.RECIPE, "--epochs", "1", "--tracker", "none"])
    for name in demo.MODELS:  # an earlier demo's, of which nothing may be left
        left = demo.run_folder(tmp_path, name) / "checkpoints" / "step-1"
        left.mkdir(parents=True)
    write_corpus(tmp_path / "corpus", utterances=160)
    demo.main([str(tmp_path)])
    assert not left.exists()
    out = capfd.readouterr().out
    for name in demo.MODELS:
        results = json.loads((demo.run_folder(tmp_path, name) / "results.json").read_text())
        assert results["config"]["modalities"] == demo.MODELS[name]
        assert re.search(rf"^{name} +{results['test']['UAR']:.3f} ", out, re.MULTILINE)
    said = re.findall(r"labelled (\w+), valence .*\n    predicted \w+ \(0\.\d\d\), valence \d", out)
    assert said == ["happy", "angry", "sad"]
    for place in re.findall(r"^  .*? (/.*)$", out, re.MULTILINE)[-5:]:
        assert Path(place).exists()


@pytest.mark.parametrize("place", ["fused/model.txt", "fused/results.json", "corpus/a.wav"])
def test_demo_deletes_nothing_of_others(tmp_path: Path, place: str) -> None:
    precious = tmp_path / place
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(SystemExit, match=f"error: .*{precious.parent.name}.* is not empty"):
        demo.main([str(tmp_path)])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]
