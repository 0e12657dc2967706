"""ablation_grid.ipynb, run headless."""

import sys
from pathlib import Path

import papermill
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import headless
from headless import PLOTLY, outputs

NOTEBOOK = "ablation_grid.ipynb"
TINY = {"max_images": 4, "n": 100, "grid_samples": "1,4", "evaluations": 60, "dtype": "float32"}


def test_all_searches_are_in_the_tables_and_figures_and_shown_again_from_their_folder(tmp_path):
    notebook = headless.run(NOTEBOOK, tmp_path, **TINY)
    names = ["ascent-60", "fixed", "grid-n1-60", "grid-n4-60", "halving-60"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    curves, efforts = outputs(notebook, PLOTLY)
    searches = ["fixed sigma", "Algorithm 1", "halving", "grid, n = 1", "grid, n = 4"]
    assert [trace["name"] for trace in curves["data"]] == searches * 3  # two sigmas and their envelope
    assert [trace["name"] for trace in efforts["data"]] == searches * 2
    table, best, reach, costs = outputs(notebook, "text/markdown")
    for sigma in (0.12, 0.25):
        assert f"-l2-{sigma}: Algorithm 1, 60** | 30 | 30 |" in table
        assert f"-l2-{sigma}: grid, n = 4, 60** | 60 |  |" in table
        assert f"| **sigma {sigma}: grid-n4-60** | 4 |" in costs and f"-l2-{sigma}: grid-n4-60** |" in reach
    assert "| **grid, n = 1, 60** |" in best
    shown = headless.run(NOTEBOOK, tmp_path, results=str(tmp_path / "runs"), run_root=str(tmp_path / "none"))
    assert outputs(shown, "text/markdown") == [table, best, reach] and not (tmp_path / "none").exists()


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        headless.run(NOTEBOOK, tmp_path, sigmas="0.12 0.25")
    assert "expected sigmas to be numbers separated by commas" in str(caught.value)
    assert "ddviz/" not in str(caught.value) and not (tmp_path / "runs").exists()
