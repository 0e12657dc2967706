"""train.ipynb, run as users run it: by papermill, headless, with parameters."""

import json
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import headless
from headless import PLOTLY, outputs

from ddviz import models

TINY = {"epochs": 12, "warmup": 4, "dtype": "float32"}


def run(folder: Path, **parameters: object) -> nbformat.NotebookNode:
    return headless.run("train.ipynb", folder, **(TINY | parameters))


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nbformat.NotebookNode, Path]:
    folder = tmp_path_factory.mktemp("train")
    return run(folder), folder


def test_training_and_what_it_is_good_for_are_shown(executed):
    notebook, _ = executed
    live, curve = outputs(notebook, PLOTLY)  # the live figure is one output, however often it changed
    assert live["layout"]["title"]["text"].startswith("digits-cnn-cohen-0.25-ds2: epoch 12 of 12, ")
    *lines, heat = live["data"]
    assert [line["name"] for line in lines] == ["loss", "clean", "under noise"]
    assert all(len(line["x"]) == 12 for line in lines) and heat["type"] == "heatmap"
    assert curve["layout"]["title"]["text"].startswith("Certified accuracy of digits-cnn-cohen-0.25-ds2")
    assert [line["name"].split()[0] for line in curve["data"]] == ["fixed", "data-dependent"]
    assert len(json.dumps(notebook)) < 1_000_000


def test_the_result_is_named_and_is_a_checkpoint(executed):
    notebook, folder = executed
    weights = folder / "runs" / "digits-cnn-cohen-0.25-ds2" / "digits-cnn-cohen-0.25-ds2.safetensors"
    said = outputs(notebook, "text/markdown")[-1]
    assert str(weights) in said and "python -m ddviz train --warmup=4 --epochs=12" in said
    assert models.load("digits", checkpoint=weights).arch == "digits_cnn"


def test_run_again_it_is_there_at_once(executed):
    notebook, folder = executed
    again = run(folder)
    text = "".join(o.get("text", "") for cell in again.cells for o in cell.get("outputs", []))
    assert "step/s" not in text
    assert outputs(again, PLOTLY)[0]["data"][0]["y"] == outputs(notebook, PLOTLY)[0]["data"][0]["y"]


def test_a_mistake_ends_with_one_message(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as caught:
        run(tmp_path, objective="trades")
    assert "expected objective to be one of gaussian, smoothadv, macer, got 'trades'" in str(caught.value)
    assert "ddviz/" not in str(caught.value) and not (tmp_path / "runs").exists()
