"""ablation_iterations.ipynb, run headless."""

import sys
from pathlib import Path

import papermill
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import headless
from headless import PLOTLY, outputs

NOTEBOOK = "ablation_iterations.ipynb"
TINY = {"max_images": 5, "n": 200, "samples": 2, "ks": "2,4", "dtype": "float32"}


def test_all_k_are_in_the_table_and_the_figures_and_shown_again_from_their_folder(tmp_path):
    notebook = headless.run(NOTEBOOK, tmp_path, **TINY)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["K-2", "K-4", "fixed", "path"]
    figures = outputs(notebook, PLOTLY)
    assert [figure["layout"]["title"]["text"].split(":")[0].split(" (")[0] for figure in figures] == [
        "What K buys",
        "Certified accuracy by K, digits-cnn-cohen-0.12-fs-l2-0.12",
        "The way of 5 images through Algorithm 1",
        "Each image's radius against K",
        "For which images",
        "By which K images have 95 % of their best radius",
    ]
    assert [trace["name"].split(" (")[0] for trace in figures[1]["data"]] == ["fixed", "K = 2", "K = 4"]
    table, costs = outputs(notebook, "text/markdown")
    assert "-l2-0.12: fixed** |" in table and "-l2-0.12: K = 4** | 138 |" in table  # (4 + 1) * 2 + 128
    assert "| **K = 0** | 5 |" in costs
    shown = headless.run(NOTEBOOK, tmp_path, results=str(tmp_path / "runs"), run_root=str(tmp_path / "none"))
    assert outputs(shown, "text/markdown") == [table] and not (tmp_path / "none").exists()


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        headless.run(NOTEBOOK, tmp_path, ks="10;20")
    assert "expected ks to be numbers separated by commas" in str(caught.value)
    assert "ddviz/" not in str(caught.value) and not (tmp_path / "runs").exists()
