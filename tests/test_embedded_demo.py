"""python -m pytest tests/test_embedded_demo.py -q; the page's tests are in test_demo.py."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest

from mtmm_training import demo
from mtmm_training.corpora.synthetic import write_corpus


def test_demo_trains_three_models_and_predicts_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "write_corpus", partial(write_corpus, utterances=160))
    monkeypatch.setattr(demo, "RECIPE", [*demo.RECIPE, "--epochs", "1", "--tracker", "none"])
    monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path)])
    demo.main()
    out = capfd.readouterr().out
    for name in demo.MODELS:
        results = json.loads((tmp_path / name.replace(" ", "_") / "results.json").read_text())
        assert results["config"]["modalities"] == demo.MODELS[name]
        assert re.search(rf"^{name} +{results['test']['UAR']:.3f} ", out, re.MULTILINE)
    said = re.findall(r"labelled (\w+), valence .*\n    predicted \w+ \(0\.\d\d\), valence \d", out)
    assert said == ["happy", "angry", "sad"]
    for place in re.findall(r"^  .*? (/.*)$", out, re.MULTILINE)[-5:]:
        assert Path(place).exists()
