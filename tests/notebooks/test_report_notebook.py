"""report.ipynb, run headless on the published records and on none."""

import sys
from pathlib import Path

import nbformat
import papermill
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from headless import NOTEBOOKS, PLOTLY, outputs


def run(target: Path, **parameters: object) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        str(NOTEBOOKS / "report.ipynb"), str(target / "out.ipynb"), parameters, cwd=str(NOTEBOOKS), progress_bar=False
    )


def test_the_published_solvers_beside_the_paper(tmp_path):
    notebook = run(tmp_path, results="results/solvers", export=str(tmp_path / "export"))
    title, gained, levels, told = outputs(notebook, "text/markdown")
    assert title.startswith("# CIFAR-10 (resnet20, l2): Cohen, SmoothAdv, MACER") and "JPEG-recompressed" in title
    assert gained.count("\n| **") == 6 and "**Cohen-DS, halving over Cohen** | +3.6" in gained
    assert [line for line in levels.splitlines() if line.startswith("###")] == [
        f"### Table {number}: {method} on CIFAR-10 (resnet20, l2)"
        for number, method in enumerate(("Cohen", "SmoothAdv", "MACER"), start=1)
    ]
    figures = [figure["layout"]["title"]["text"] for figure in outputs(notebook, PLOTLY)]
    assert [title.split(":")[0] for title in figures] == [
        *(f"Figure {n}" for n in (3, 4, 5)),
        *["Lower bound on p_A of right answers"] * 3,
    ]
    assert "4 tables and 6 figures" in told
    assert len(list((tmp_path / "export").glob("*.html"))) == 6 and len(list((tmp_path / "export").glob("*.csv"))) == 4


def test_digits_have_no_paper_beside_them(tmp_path):
    notebook = run(tmp_path, results="results/digits")
    title, _, levels, told = outputs(notebook, "text/markdown")
    assert "Left out" in title and "paper-clamp" in title
    assert "paper |" not in levels and "### MACER on digits" in levels and "nothing was written" in told


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        run(tmp_path, results="result")
    assert "expected results to be a folder of finished runs, got 'result'" in str(caught.value)
    assert "ddviz/" not in str(caught.value)
