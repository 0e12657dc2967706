"""Grid search at equal cost: settings that keep to a count of evaluations, counts of the engine, numbers by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from test_ablation import NOTEBOOKS, finished, records
from test_config import assert_parameters_are_fields

import ddviz
from ddviz import InputError, RunConfig, ablation, analysis, grid_plots, grids, plots
from ddviz import __main__ as command_line
from ddviz.grids import GridStudy

NAMES = ["ascent", "halving", "grid-n1", "grid-n2", "grid-n4", "grid-n10"]


def test_200_evaluations_are_100_steps_forward_and_back_or_a_grid_of_200_as_in_the_paper():
    (runs,) = GridStudy(sigmas="0.12").to_run
    assert list(runs) == ["fixed", *(f"{name}-200" for name in NAMES)]
    assert (runs["ascent-200"].iterations, runs["ascent-200"].samples) == (100, 1)
    for n in (1, 2, 4, 10):
        grid = runs[f"grid-n{n}-200"].make_solver()
        assert (grid.samples, grid.planned, grid.sigma_min, grid.sigma_max) == (n, 200, 0, 1)
    assert runs["halving-200"].samples == 4 and runs["halving-200"].make_solver().planned == 192
    assert not any(run.keep_class or run.keep_radius for run in runs.values())
    assert {run.run_root for run in runs.values()} == {f"runs/grid/{name}" for name in runs}


@pytest.mark.parametrize(("promises", "evaluations"), [(False, 100), (False, 201), (True, 400), (True, 533)])
def test_no_search_costs_more_and_one_more_of_its_setting_would(promises, evaluations):
    (runs,) = GridStudy(sigmas="0.25", evaluations=str(evaluations), promises=promises, samples=3).to_run
    checks = 128 if promises else 0
    assert runs[f"ascent-{evaluations}"].iterations == (evaluations - checks) // 6
    for name, config in list(runs.items())[1:]:
        setting = "samples" if name.startswith("halving") else "iterations"
        more = replace(config, **{setting: getattr(config, setting) + max(1, config.samples // 2)})
        assert grids.cost(config) <= evaluations < grids.cost(more), name
        assert config.keep_class == config.keep_radius == promises


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigmas": "0.12,"}, "expected sigmas to be numbers separated by commas"),
        ({"sigmas": "0"}, "expected sigma > 0"),
        ({"sigmas": "nan"}, "expected sigmas >= 0, got nan"),
        ({"grid_samples": "0,1"}, "expected grid_samples >= 1, got 0"),
        ({"evaluations": "8"}, "expected evaluations >= [0-9]+, got 8: halving with samples=1 already makes"),
        ({"evaluations": "60", "grid_samples": "100"}, "expected evaluations >= 100, got 60: grid with iterations=50"),
        ({"grid_max": 0.2}, "expected sigma_min < sigma <= sigma_max, got 0, 0.25, 0.2"),
        ({"grid_max": -1}, "expected grid_max >= 0"),
        ({"sigma": 0.5}, "unknown parameter sigma. Did you mean sigmas"),
        ({"results": "nowhere"}, "expected results to be a folder"),
        ({"promises": "yes"}, "expected promises to be bool"),
    ],
)
def test_what_cannot_be_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        GridStudy.from_namespace(parameters)


def test_the_notebook_s_parameters_are_the_study_s(tmp_path):
    assert_parameters_are_fields(NOTEBOOKS / "ablation_grid.ipynb", GridStudy)
    assert GridStudy(results=str(tmp_path)).to_run == [] and grids.run(GridStudy(results=str(tmp_path))) == {}
    one = GridStudy.from_namespace({"sigmas": 0.25, "evaluations": 100, "grid_samples": 2})  # as papermill reads them
    assert list(one.to_run[0]) == ["fixed", "ascent-100", "halving-100", "grid-n2-100"]


def test_sigma_is_filled_into_the_checkpoint():
    study = GridStudy(sigmas="0.25,0.12", checkpoint="zoo:digits-cnn-cohen-{sigma}-fs")
    assert [runs["fixed"].checkpoint for runs in study.to_run] == [f"zoo:digits-cnn-cohen-{s}-fs" for s in (0.12, 0.25)]
    assert [runs["fixed"].sigma for runs in study.to_run] == [0.12, 0.25]
    assert {runs["fixed"].checkpoint for runs in replace(study, checkpoint="zoo:one").to_run} == {"zoo:one"}


@pytest.fixture(scope="module")
def run_root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    settings: dict[str, Any] = {"max_images": 3, "n": 100, "n0": 20, "dtype": "float32", "evaluations": "100"}
    grids.run(GridStudy(run_root=str(folder), sigmas="0.25,0.12", grid_samples="10,3", **settings))
    return folder


def test_evaluations_are_those_that_the_engine_counts(run_root):
    solved = grids.read(run_root)
    assert [(one.sigma, one.name) for one in solved] == [
        (sigma, name)
        for sigma in (0.12, 0.25)
        for name in ("fixed", "ascent-100", "halving-100", "grid-n3-100", "grid-n10-100")
    ]
    for one in solved:
        expected = {"fixed": (0, 0), "ascent": (50, 50), "grid-n3": (99, 0), "grid-n10": (100, 0)}.get(one.solver)
        if expected:
            assert (one.evaluations, one.gradients) == expected
        assert one.effort == one.evaluations + one.gradients <= 100
        assert len(one.records) == 3
    assert {one.name for one in ablation.read(run_root)} == {one.name for one in solved}


def test_what_is_counted_is_what_the_network_is_shown():
    (runs,) = GridStudy(sigmas="0.25", evaluations="60", grid_samples="3", samples=2).to_run
    network, x = ddviz.models.load("digits").network, ddviz.datasets.load("digits").images([0, 1])
    counts = []
    for config in list(runs.values())[1:]:
        shown: list[int] = []
        path = grids.solver_of(config)(lambda x, shown=shown: shown.append(len(x)) or network(x), x, 0.25)
        assert sum(shown) == 2 * path.evaluations
        counts.append(path.evaluations)
    assert counts[0] == 30 and counts[2] == 60 and counts[1] <= 60


def test_algorithm_1_goes_as_far_as_in_a_run_of_its_own(run_root, tmp_path):
    """Which estimates the radius at the end of the path, too: one evaluation more."""
    (one,) = [one for one in grids.read(run_root) if (one.sigma, one.solver) == (0.25, "ascent")]
    names = ("sigma", "solver", "iterations", "samples", "lr", "clamp", "n", "n0", "keep_class", "keep_radius", "dtype")
    own: dict[str, Any] = {name: one.run.config[name] for name in names}
    config = RunConfig(**own, method="ds", max_images=3, run_root=str(tmp_path))
    assert ddviz.run(config).runs["data-dependent"].records == one.records


FAMILY = "digits-cnn-cohen-{}-fs-l2-{}"


@pytest.fixture
def root(tmp_path) -> Path:
    """Two networks of one family, certified as `finished` does (100 evaluations), and one of another."""
    study = tmp_path / "grid"
    own = {"samples": 1, "clamp": 0.02, "keep_class": False}
    for sigma, lift in ((0.25, 0.2), (0.12, 0.0)):
        network = FAMILY.format(sigma, sigma)
        finished(study, "fixed", records(0.3 + lift, 0.1), network)
        finished(study, "grid-n10-200", records(0.2, 0.1), network, solver="grid", sigma_max=1.0, iterations=100, **own)
        finished(study, "grid-n2-200", records(0.1 + lift, -0.9), network, solver="grid", iterations=100, **own)
        finished(study, "ascent-200", records(0.5, 0.3), network, solver="ascent-fast", iterations=100, lr=0.001, **own)
    finished(study, "halving-200", records(0.5, 0.5 + lift), network, solver="halving", samples=4)
    finished(study, "fixed", records(0.5), "other-cnn-l2-0.5")
    return study


def test_runs_are_found_by_sigma_and_in_order(root):
    solved = grids.read(root)
    assert [(one.sigma, one.solver) for one in solved] == [
        *((0.12, name) for name in ("fixed", "ascent", "halving", "grid-n2", "grid-n10")),
        *((0.25, name) for name in ("fixed", "ascent", "grid-n2", "grid-n10")),
        (0.5, "fixed"),
    ]
    assert [grids.label(one.solver) for one in solved[:5]] == [
        *("fixed sigma", "Algorithm 1", "halving", "grid, n = 2", "grid, n = 10")
    ]
    family = grids.of_study(solved, GridStudy())
    assert {grids.family(one) for one in family} == {"digits-cnn-cohen-fs-l2"} and len(family) == 9
    assert {one.network for one in grids.of_study(solved, GridStudy(sigmas="0.5"))} == {"other-cnn-l2-0.5"}
    assert {sigma: len(panel) for sigma, panel in grids.by_sigma(family).items()} == {0.12: 5, 0.25: 4}
    assert [(one.evaluations, one.gradients, one.effort) for one in solved[:3]] == [
        *((0, 0, 0), (100, 100, 200), (100, 0, 100))
    ]


def test_tables_say_what_the_records_do(root, capsys):
    solved = grids.read(root)
    settings, table = grids.table(solved).split("\n\n")
    rows = {
        row[0]: row[1:] for row in ([cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.split("\n"))
    }
    name = FAMILY.format(0.12, 0.12)
    assert rows[f"{name}: fixed sigma"] == ["", "", "100.0", "0.200", "", "", "2", "1,000"]
    assert rows[f"{name}: Algorithm 1, 200"][:6] == ["100", "100", "100.0", "0.400", "+0.200 ± 0.000", ""]
    assert rows[f"{name}: grid, n = 2, 200"][:6] == [
        *("100", "", "50.0", "0.050", "-0.150 ± 0.050", "+0.350 ± 0.050")  # .1, 0 against .3 .1 and .5 .3
    ]
    assert "keep_class False; ascent-fast: iterations 100, lr 0.001, samples 1, clamp 0.02" in settings
    assert settings.endswith("; halving: samples 4; grid: clamp 0.02, sigma_max 1.0.")
    assert command_line.main(["grid", str(root)]) == 0
    assert capsys.readouterr().out.strip() == f"{settings}\n\n{table}"
    head, _, fixed, ascent, *_ = grids.envelope_table(grids.of_study(solved, GridStudy())).split("\n")
    assert head.startswith("|  | 0 | 0.1 |") and head.endswith("| ACR | sigmas |")
    assert fixed.startswith("| **fixed sigma** | 100.0 | 100.0 | 50.0 |") and fixed.endswith("| 0.300 | 0.12, 0.25 |")
    assert ascent.startswith("| **Algorithm 1, 200** |") and ascent.endswith("| 0.400 | 0.12, 0.25 |")


def traces(figure: go.Figure) -> Any:
    return figure.data


def test_the_panels_are_the_sigmas_and_their_envelope(root):
    family = grids.of_study(grids.read(root), GridStudy())
    figure = grid_plots.curves(family, unit="l2")
    panels = [[trace.name for trace in traces(figure) if trace.xaxis == axis] for axis in ("x", "x2", "x3")]
    names = ["fixed sigma", "Algorithm 1", "halving", "grid, n = 2", "grid, n = 10"]
    assert panels == [names, [name for name in names if name != "halving"], names]
    assert [text.text for text in figure.layout.annotations] == [  # type: ignore[attr-defined]
        *("sigma 0.12", "sigma 0.25", "best over sigma, at each radius")
    ]
    (best,) = [trace for trace in traces(figure) if (trace.xaxis, trace.name) == ("x3", "grid, n = 2")]
    wanted = analysis.envelope([one.records for one in family if one.solver == "grid-n2"], best.x)
    assert np.array_equal(best.y, 100 * wanted) and set(best.y) == {50, 0}
    assert sum(trace.showlegend for trace in traces(figure)) == len(names)
    looks = {trace.name: (trace.line.color, trace.line.dash) for trace in traces(figure)}
    assert len(set(looks.values())) == len(names) and looks["fixed sigma"][0] == plots.STYLES["fixed"].color
    (alone,) = {trace.xaxis for trace in traces(grid_plots.curves(family[:5], unit="l2"))}
    assert alone == "x"  # one sigma has no envelope


def test_effort_counts_gradients(root):
    family = grids.of_study(grids.read(root), GridStudy())
    more = [replace(one, name=one.name.replace("-200", "-400"), evaluations=300) for one in family if one.budget]
    figure = grid_plots.efforts(family + more, unit="l2")
    (ascent, _) = [trace for trace in traces(figure) if trace.name == "Algorithm 1"]
    assert ascent.x == pytest.approx((200, 400), rel=0.05) and ascent.x[1] / ascent.x[0] == pytest.approx(2)
    assert ascent.y == pytest.approx((0.4, 0.4)) and "100 evaluations, 100 gradients" in ascent.text[0]
    assert [trace.y for trace in traces(figure) if trace.name == "fixed sigma"] == [(0.2, 0.2), (0.3, 0.3)]
    assert [trace.name for trace in traces(figure)].count("halving") == 1
