"""The interactive notebooks without a browser: small as they are stored, and they run headless with parameters."""

import json
from pathlib import Path

import papermill
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
HEADLESS = ("ablation_solvers", "certify", "report", "train")
INTERACTIVE = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb") if path.stem not in HEADLESS)


def test_there_are_such_notebooks():
    assert {"explore", "tour"} <= set(INTERACTIVE)


@pytest.mark.parametrize("name", INTERACTIVE)
def test_stored_notebooks_are_small(name):
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 50_000


@pytest.mark.slow
def test_the_explorer_runs_headless_and_stays_small(tmp_path):
    parameters = {"sigma": 0.25, "iterations": 5, "max_images": 30, "run_root": str(tmp_path)}
    executed = papermill.execute_notebook(
        str(NOTEBOOKS / "explore.ipynb"), str(tmp_path / "out.ipynb"), parameters, progress_bar=False
    )
    assert len(json.dumps(executed)) < 1_000_000
    kinds = {kind for cell in executed.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds


@pytest.mark.slow
def test_a_mistake_in_a_parameter_is_named(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"unknown parameter sigm\. Did you mean sigma\?"):
        papermill.execute_notebook(
            str(NOTEBOOKS / "explore.ipynb"), str(tmp_path / "out.ipynb"), {"sigm": 0.25}, progress_bar=False
        )
