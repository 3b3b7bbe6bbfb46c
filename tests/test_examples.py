"""The notebooks of examples/ run from beginning to end, but for the cell that installs."""

import sys
from pathlib import Path

import nbformat
import pytest
from conftest import CHECKOUT
from hub_server import trained_run
from nbclient import NotebookClient

NOTEBOOKS = sorted(CHECKOUT.glob("examples/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(
    path: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a small run's model, where the notebook names one of this repository or an earlier run."""
    run = trained_run(tmp_path_factory.getbasetemp())
    for name, there in (("checkpoints/open_small", run / "model"), ("out/mine", run)):
        if path.stem != "train_on_your_table":  # which makes the second one
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).symlink_to(there)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(scripts), prepend=":")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    installs = [cell for cell in notebook.cells if "install" in cell.metadata.get("tags", ())]
    assert installs == notebook.cells[:1]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    notebook.cells = notebook.cells[1:]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in said and "error:" not in said, said  # of commands behind "!"
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == (path.stem != "publish_and_use")
    if path.stem == "publish_and_use":
        assert (tmp_path / "staged" / "model.safetensors").is_file()
