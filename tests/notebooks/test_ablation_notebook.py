"""ablation_solvers.ipynb, run headless."""

import sys
from pathlib import Path

import nbformat
import papermill
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import headless
from headless import PLOTLY, outputs

TINY = {"max_images": 6, "n": 200, "samples": 2, "iterations": 3, "dtype": "float32"}


def run(folder: Path, **parameters: object) -> nbformat.NotebookNode:
    return headless.run("ablation_solvers.ipynb", folder, **(TINY | parameters))


def titles(notebook: nbformat.NotebookNode) -> list[str]:
    return [figure["layout"]["title"]["text"].split(" (")[0] for figure in outputs(notebook, PLOTLY)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nbformat.NotebookNode, Path]:
    folder = tmp_path_factory.mktemp("ablation")
    return run(folder), folder


def test_all_solvers_are_in_the_tables_and_figures(executed):
    notebook, folder = executed
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["ascent", "fixed", "grid", "halving"]
    assert titles(notebook) == [
        "Gain over fixed sigma",
        "Certified accuracy",
        "sigma_x of each image, against halving's",
    ]
    gains, curves, scales = outputs(notebook, PLOTLY)
    assert [trace["name"] for trace in gains["data"]] == ["halving", "ascent", "grid"]
    assert [trace["name"].split()[0] for trace in curves["data"]] == ["fixed", "halving", "ascent", "grid"]
    assert [len(trace["x"]) for trace in scales["data"]][:2] == [6, 6]
    table, reach, costs = outputs(notebook, "text/markdown")
    assert "-l2-0.12: ascent** | " in reach and "-l2-0.12: grid** | " in reach
    for name in ("fixed", "halving", "ascent", "grid"):
        assert f"-l2-0.12: {name}** |" in table and f"| **{name}** | 6 |" in costs


def test_another_number_of_evaluations_adds_a_point_to_each_line(executed):
    _, folder = executed
    both = run(folder, evaluations=400)
    assert titles(both)[1] == "Gain over fixed sigma, the line at 0, against effort"
    assert [len(trace["x"]) for trace in outputs(both, PLOTLY)[1]["data"]] == [2, 2, 2]
    assert [trace["name"] for trace in outputs(both, PLOTLY)[0]["data"]] == ["halving-400", "ascent-400", "grid-400"]
    shown = run(folder, results=str(folder / "runs"), run_root=str(folder / "none"))
    table, _ = outputs(shown, "text/markdown")  # nothing was run that took time
    assert table == outputs(both, "text/markdown")[0] and not (folder / "none").exists()


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        run(tmp_path, evaluations=100)
    assert "expected evaluations >= 176, got 100: halving with samples=1 already makes" in str(caught.value)
    assert "ddviz/" not in str(caught.value) and not (tmp_path / "runs").exists()
