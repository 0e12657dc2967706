"""The package's notebooks, run as users run them headless, and what they show."""

from pathlib import Path

import nbformat
import papermill

PLOTLY = "application/vnd.plotly.v1+json"
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run(notebook: str, folder: Path, **parameters: object) -> nbformat.NotebookNode:
    """Execute a notebook of the package; its output and, unless told otherwise, its runs lie in a folder."""
    if notebook != "report.ipynb":  # which makes no runs
        parameters = {"run_root": str(folder / "runs"), **parameters}
    return papermill.execute_notebook(
        str(NOTEBOOKS / notebook), str(folder / "out.ipynb"), parameters, progress_bar=False
    )


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list:
    """All outputs of one MIME type."""
    found = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    return [data[kind] for data in found if kind in data]
