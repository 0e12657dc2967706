"""report.ipynb, run headless on the published records and on invented ones."""

import json
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from ddviz.records import Record, write_records

sys.path.insert(0, str(Path(__file__).parent))
from headless import NOTEBOOKS, PLOTLY, outputs


def run(target: Path, **parameters: object) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        str(NOTEBOOKS / "report.ipynb"), str(target / "out.ipynb"), parameters, cwd=str(NOTEBOOKS), progress_bar=False
    )


def test_the_published_solvers_beside_the_paper(tmp_path):
    notebook = run(tmp_path, results="results/solvers", export=str(tmp_path / "export"))
    title, gained, levels, *_, told = outputs(notebook, "text/markdown")
    assert title.startswith("# CIFAR-10 (resnet20, l1): Yang; CIFAR-10 (resnet20, l2): Cohen, SmoothAdv, MACER")
    assert "JPEG-recompressed" in title and "**Cohen-DS, halving over Cohen** | +" in gained
    assert [line for line in levels.splitlines() if line.startswith("###")] == [
        "### Table 4: Yang on CIFAR-10 (resnet20, l1)",
        *(
            f"### Table {number}: {method} on CIFAR-10 (resnet20, l2)"
            for number, method in enumerate(("Cohen", "SmoothAdv", "MACER"), start=1)
        ),
    ]
    figures = [figure["layout"]["title"]["text"] for figure in outputs(notebook, PLOTLY)]
    assert [title.split(":")[0] for title in figures] == [
        "Certified accuracy, Yang on CIFAR-10 (resnet20, l1), with 95 % bands",
        *(f"Figure {n}" for n in (3, 4, 5)),
        *["Lower bound on p_A of right answers"] * 4,
    ]
    assert "6 tables and 8 figures" in told
    assert len(list((tmp_path / "export").glob("*.html"))) == 8 and len(list((tmp_path / "export").glob("*.csv"))) == 6


def test_an_experiment_with_l1_and_imagenet(tmp_path):
    for dataset, method, norm in (("cifar10", "yang", "l1"), ("imagenet", "cohen", "l2")):
        for certification, radius in (("fixed", 0.3), ("ds", 0.6)):
            folder = tmp_path / "runs" / method / f"net-{certification}"
            folder.mkdir(parents=True)
            config = {"method": certification, "sigma": 0.5, "norm": norm, "n": 1_000, "solver": "ascent"}
            (folder / "config.json").write_text(json.dumps(config))
            write_records(folder / "records.tsv", [Record(i, 1, 1, radius, 1, 0.5, 0.9) for i in range(3)])
        labels = {"dataset": dataset, "model": "resnet50", "method": method, "training": "fs"}
        (folder.parent / "job.json").write_text(json.dumps({"labels": labels, "command": f"make {method}"}))
    notebook = run(tmp_path, results=str(tmp_path / "runs"))
    title, gained, levels, steps, searches, told = outputs(notebook, "text/markdown")
    assert steps == searches == "No such runs."
    assert title == "# CIFAR-10 (resnet50, l1): Yang; ImageNet (resnet50, l2): Cohen"
    assert gained.count("+0.300 ± 0.000") == 2
    assert "### Table 4: Yang on CIFAR-10 (resnet50, l1)" in levels and "    make yang" in levels
    assert "### Table 1: Cohen on ImageNet (resnet50, l2)" in levels and "nothing was written" in told
    assert len(outputs(notebook, PLOTLY)) == 4


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        run(tmp_path, results="result")
    assert "expected results to be a folder of finished runs, got 'result'" in str(caught.value)
    assert "ddviz/" not in str(caught.value)
