"""python -m pytest tests/test_embedded_demo.py -q; what it trains is tested in test_readme.py, once."""

from pathlib import Path

import pytest

from mtmm_training.studies.embedded_demo import run_demo


@pytest.mark.parametrize("place", ["fused/model.txt", "fused/results.json", "corpus/a.wav"])
def test_demo_deletes_nothing_of_others(tmp_path: Path, place: str) -> None:
    precious = tmp_path / place
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(FileExistsError, match=precious.parent.name):
        run_demo(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]
