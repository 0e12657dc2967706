"""compare.ipynb, run headless."""

from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
COMPARE = NOTEBOOKS / "compare.ipynb"


def run(target: Path, **parameters: object) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        str(COMPARE), str(target / "out.ipynb"), parameters, cwd=str(NOTEBOOKS), progress_bar=False
    )


def test_it_runs_to_the_end(tmp_path):
    notebook = run(tmp_path, runs="digits-cnn-cohen-0.12-fs-l2-0.12-fixed, digits-cnn-cohen-0.12-fs-l2-0.12-ds")
    (panel,) = [out["data"] for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out]
    assert "application/vnd.jupyter.widget-view+json" in panel


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        run(tmp_path, folder="result")
    assert "expected folder to hold finished runs, got 'result', which does not exist" in str(caught.value)
    assert "ddviz/" not in str(caught.value)
