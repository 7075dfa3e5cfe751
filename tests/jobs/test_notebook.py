"""The notebook of the docs runs from its first cell to its last, and what it says is there is there."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "tour.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_the_notebook_reaches_its_run(tmp_path, monkeypatch):
    """The cells before the training run, and those after it can be read; `make test-slow` runs them all."""
    monkeypatch.chdir(tmp_path)
    code = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    begun = next(n for n, source in enumerate(code) if "raylab.run(" in source)
    names: dict = {}
    for source in code[:begun]:
        exec(source, names)
    assert names["plan"].cells
    for source in code[begun:]:
        compile(source, "tour.ipynb", "exec")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert (tmp_path / "lab" / "results.parquet").is_file()
    assert (tmp_path / "lab" / "report" / "index.html").is_file()
