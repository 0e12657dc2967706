"""Settings are checked before anything is loaded, and the notebook's defaults are the config's."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from ddviz.budget import SampleBudget
from ddviz.config import RunConfig
from ddviz.errors import InputError
from ddviz.sigma import Ascent, FastAscent, Grid, Halving

CERTIFY = Path(__file__).parents[1] / "notebooks" / "certify.ipynb"


def parameters_cell(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"])


def assert_parameters_are_fields(notebook: Path, settings: type) -> None:
    """The parameters cell names every field in order, with its type, its default and a comment."""
    source = parameters_cell(notebook)
    namespace: dict[str, object] = {}
    exec(source, namespace)
    assert {field.name: namespace[field.name] for field in fields(settings)} == asdict(settings())
    lines = [line for line in source.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines] == [field.name for field in fields(settings)]
    for line, field in zip(lines, fields(settings), strict=True):
        assert f": {field.type.__name__} = " in line and "  # " in line  # type: ignore[union-attr]


def test_the_notebook_s_parameters_are_the_fields_with_their_defaults_types_and_comments():
    assert_parameters_are_fields(CERTIFY, RunConfig)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"datset": "x"}, r"unknown parameter datset\. Did you mean dataset\? Known: dataset, data_root"),
        (
            {"dataset": "cifar"},
            r"expected dataset to be one of digits, cifar10, imagenet, .* got 'cifar'. Did you mean",
        ),
        ({"sigma": -1}, "expected sigma > 0, .* got -1"),
        ({"sigma": 0.0}, "expected sigma > 0"),
        ({"sigma": math.nan}, "expected sigma to be a finite number, got nan"),
        ({"sigma": "0.25"}, r"expected sigma to be float, got '0.25' \(str\)"),
        ({"n": 10}, "expected n >= 12 samples, got 10: too few to certify anything"),
        ({"n": 0}, "expected n >= 1, got 0"),
        ({"n": 1000.5}, "expected n to be int, got 1000.5"),
        ({"n": True}, "expected n to be int, got True"),
        ({"n0": 0}, "expected n0 >= 1"),
        ({"alpha": 0.7}, "expected alpha, .* got 0.7"),
        ({"clamp": 0.0}, "expected clamp in"),
        ({"budget": "adaptive"}, "expected budget to be one of fixed, staged, decide, got 'adaptive'"),
        ({"budget": "decide"}, "expected a target radius > 0 with the rule decide, got 0"),
        ({"target_radius": 0.5}, "expected no target radius with the rule fixed, .* got 0.5"),
        (
            {"budget": "decide", "target_radius": 0.5, "method": "fixed"},
            "expected n of about .* samples, got 10000: too few to show a radius of 0.5 at noise scale 0.12",
        ),
        (
            {"budget": "decide", "target_radius": 0.5, "norm": "l1", "method": "fixed"},
            "expected a smaller target radius: no number of samples shows a radius of 0.5",
        ),
        ({"norm": "linf"}, "expected norm to be one of l2, l1, got 'linf'"),
        ({"method": "DS"}, "expected method to be one of fixed, ds, both"),
        ({"solver": "sgd"}, "expected solver to be one of ascent, ascent-fast, grid, halving"),
        ({"arch": "vgg"}, "expected arch to be one of .*digits_cnn"),
        ({"dtype": "int8"}, "expected dtype to be one of auto, float32"),
        ({"device": "tpu"}, "expected device to be auto, cpu, cuda"),
        ({"skip": 0}, "expected skip >= 1"),
        ({"max_images": -1}, "expected max_images >= 0"),
        ({"sigma": 5.0}, "expected sigma_min < sigma <= sigma_max, got 0.01, 5, 4"),
        ({"solver": "grid", "samples": 500}, "expected samples <= 2"),
        ({"keep_class": 1}, r"expected keep_class to be bool, got 1 \(int\)"),
    ],
)
def test_what_cannot_be_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        RunConfig.from_namespace(parameters)


def test_a_missing_cuda_device_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA device here"):
        RunConfig(device="cuda:0")


def test_papermill_s_spelling_of_numbers_is_understood():
    config = RunConfig.from_namespace({"n": 1e5, "sigma": 1, "_hidden": 3, "json": json})
    assert (config.n, type(config.n), config.sigma, type(config.sigma)) == (100_000, int, 1.0, float)


def test_a_reader_s_own_variables_are_not_judged_when_the_guard_runs_again():
    namespace: dict[str, object] = {"sigma": 0.25}
    RunConfig.from_namespace(namespace)
    namespace["my_number"] = 3
    assert RunConfig.from_namespace(namespace).sigma == 0.25


def test_settings_become_the_solver_they_describe():
    promises: dict[str, Any] = {"keep_class": True, "keep_radius": True}
    assert RunConfig(samples=3, n=500, alpha=0.01).make_solver() == Halving(samples=24, n=500, alpha=0.01, **promises)
    for name, solver in (("ascent", Ascent), ("ascent-fast", FastAscent)):
        made = RunConfig(solver=name, iterations=7, lr=0.5, samples=3).make_solver()
        assert made == solver(iterations=7, lr=0.5, samples=3, clamp=RunConfig().clamp, **promises)
    assert RunConfig(
        solver="grid", iterations=100, samples=1, clamp=0.02, keep_class=False, keep_radius=False
    ).make_solver() == Grid(evaluations=200)
    assert RunConfig(sigma_max=2.0).make_solver().sigma_max == 2.0


def test_a_budget_decides_the_result_only_where_it_is_not_fixed():
    """Runs that were begun before there was a choice go on."""
    assert not {"budget", "target_radius"} & RunConfig().deciding("fixed").keys()
    config = RunConfig(budget="decide", target_radius=0.25, n=500, alpha=0.01)
    assert config.deciding("ds")["budget"] == "decide" and config.deciding("ds")["target_radius"] == 0.25
    assert config.sample_budget == SampleBudget("decide", 500, 0.01, 0.25)
    assert RunConfig().sample_budget == SampleBudget(n=RunConfig().n)
