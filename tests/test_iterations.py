"""K of Algorithm 1: one path gives what a run of each K finds, however often it is stopped; numbers by hand."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from test_ablation import NETWORK, NOTEBOOKS, finished, records
from test_config import assert_parameters_are_fields
from test_experiment import files

import ddviz
from ddviz import InputError, bench, experiment, iteration_plots, iterations, plots
from ddviz import __main__ as command_line
from ddviz.iterations import ImagePath, IterationStudy, Ladder
from ddviz.records import read_rows
from ddviz.sigma import Ascent

TINY: dict[str, Any] = {"ks": "2,0,5", "max_images": 5, "n": 200, "n0": 20, "samples": 2, "dtype": "float32"}
RUN = "digits-cnn-cohen-0.12-fs-l2-0.12"


def tiny(folder: Path, **changes: object) -> IterationStudy:
    return IterationStudy(**{**TINY, "run_root": str(folder), **changes})


@pytest.fixture(autouse=True)
def _two_batches(monkeypatch):
    monkeypatch.setattr(bench, "default_search_batch", lambda *_: 3)


@pytest.mark.parametrize("solver", ["ascent", "ascent-fast"])
@pytest.mark.parametrize("promises", [True, False])
def test_every_k_is_the_run_of_that_k(tmp_path, solver, promises):
    study = tiny(tmp_path / "path", solver=solver, keep_class=promises, keep_radius=promises, lr=0.03)
    runs = iterations.run(study)
    assert list(runs) == [0, 2, 5]
    sent_back = 0
    for k, config in study.to_run.items():
        (alone,) = ddviz.run(replace(config, run_root=str(tmp_path / f"alone-{k}"))).runs.values()
        assert files(runs[k].folder) == files(alone.folder) and alone.records == runs[k].records
        sent_back += sum(record.sigma == torch.tensor(0.12).item() for record in alone.records if k)
    assert bool(sent_back) == promises


def test_the_path_that_is_kept_is_the_solver_s(tmp_path):
    study = tiny(tmp_path, solver="ascent")
    iterations.run(study)
    images = ddviz.datasets.load("digits", max_images=5)
    network = ddviz.models.load("digits", sigma=0.12).network
    path = study.config.make_solver()(network, images.images([3, 4]), 0.12, indices=[3, 4])
    (ladder,) = iterations.read(tmp_path)
    assert list(ladder.paths) == [0, 1, 2, 3, 4]
    for column, index in enumerate((3, 4)):
        assert np.array_equal(ladder.paths[index].sigma, path.sigma[:, column].numpy())
        assert np.allclose(ladder.paths[index].radius, path.radius[:, column].numpy(), atol=1e-6)
    rows = read_rows(tmp_path / "path" / f"{RUN}-ds" / "paths.tsv")
    assert {row["evaluations"] for row in rows} == {str(path.evaluations)}


def everything(folder: Path) -> dict[str, dict[str, str]]:
    found = {path.parent: files(path.parent) for path in folder.glob("*/*/config.json")}
    texts = {str(path.relative_to(folder)): own for path, own in found.items()}
    for own in texts.values():
        if "paths.tsv" in own:
            own["paths.tsv"] = "\n".join(line.rsplit("\t", 1)[0] for line in own["paths.tsv"].splitlines())
    return texts


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 7, 9, 14, 16, 18])
def test_stopped_anywhere_it_ends_the_same_and_does_nothing_twice(tmp_path, monkeypatch, stop):
    """Two batches of paths, 5 certificates of fixed sigma, then for each K two batches of checks and 5 certificates."""
    iterations.run(tiny(tmp_path / "whole"))
    made, calls = {"search": experiment.search, "certify": experiment.certify}, []

    def counted(name: str, most: float):
        def call(*args, **kwargs):
            if len(calls) >= most:
                raise KeyboardInterrupt
            result = made[name](*args, **kwargs)
            calls.append(name)
            return result

        return call

    def patched(patch, most: float) -> None:
        patch.setattr(experiment, "certify", counted("certify", most))
        for module in (experiment, iterations):
            patch.setattr(module, "search", counted("search", most))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patched(patch, stop)
        iterations.run(tiny(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        patched(patch, np.inf)
        iterations.run(tiny(tmp_path / "broken"))
    each = ["search", *["certify"] * 3, "search", *["certify"] * 2]
    assert calls == ["search"] * 2 + ["certify"] * 5 + each * 2
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


def test_a_torn_path_is_found_again(tmp_path):
    study = tiny(tmp_path, ks="5")
    whole, stored = iterations.run(study)[5], everything(tmp_path)
    path = tmp_path / "path" / f"{RUN}-ds" / "paths.tsv"
    path.write_bytes(path.read_bytes()[:-30])
    shutil.rmtree(whole.folder)
    assert iterations.run(study)[5].records == whole.records
    assert everything(tmp_path) == stored


def test_fewer_steps_search_nothing_and_more_keep_what_is_certified(tmp_path, monkeypatch):
    iterations.run(tiny(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(iterations, "search", None)
        patch.setattr(Ascent, "_path", None)
        assert list(iterations.run(tiny(tmp_path, ks="3"))) == [0, 3]
    certified = []
    certify = experiment.certify
    monkeypatch.setattr(experiment, "certify", lambda *a, **k: certified.append(k["index"]) or certify(*a, **k))
    more = iterations.run(study := tiny(tmp_path, ks="2,3,5,6"))
    assert certified == list(range(5))  # of K = 6
    alone = replace(study.to_run[6], run_root=str(tmp_path / "alone"))
    assert ddviz.run(alone).runs["data-dependent"].records == more[6].records
    with pytest.raises(InputError, match=r"^lr was 0\.001 when .*path.* and is 0\.01 now"):
        iterations.run(tiny(tmp_path, lr=0.01))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ks": "0"}, "expected ks to name a number of steps above 0, got '0'"),
        ({"ks": "1,x"}, r'expected ks to be numbers separated by commas \("1,2,4"\), got \'1,x\''),
        ({"ks": "-1,5"}, "expected ks >= 0, got -1"),
        ({"ks": 2.5}, "expected ks to be numbers .*, got '2.5'"),
        ({"solver": "grid"}, "expected solver to be one of ascent, ascent-fast, got 'grid'"),
        ({"iterations": 3}, "unknown parameter iterations"),
        ({"results": "nowhere"}, "expected results to be a folder of finished runs, got 'nowhere'"),
        ({"norm": "linf"}, "expected norm to be one of l2, l1"),
    ],
)
def test_what_cannot_be_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        IterationStudy.from_namespace(parameters)


def test_the_notebook_s_parameters_are_the_study_s(tmp_path):
    assert_parameters_are_fields(NOTEBOOKS / "ablation_iterations.ipynb", IterationStudy)
    assert list(IterationStudy.from_namespace({"ks": 7}).to_run) == [0, 7]  # as papermill reads -p ks 7
    assert IterationStudy(results=str(tmp_path)).to_run == {} == iterations.run(IterationStudy(results=str(tmp_path)))


@pytest.fixture
def root(tmp_path) -> Path:
    """Radii .2 .4 0 with fixed sigma; of K = 4: .3 .4 .1; of K = 10: .6 .4 0; of K = 20: .5 .6 .1 of one image more."""
    study = tmp_path / "iterations"
    finished(study, "fixed", records(0.2, 0.4, -0.9))
    searched = {"solver": "ascent-fast", "lr": 0.003, "keep_class": True}
    finished(study, "K-10", records(0.6, 0.4, -0.3), iterations=10, **searched)
    finished(study, "K-4", records(0.3, 0.4, 0.1), iterations=4, **searched)
    finished(study, "K-20", records(0.5, 0.6, 0.1, 0.3), iterations=20, **searched)
    finished(study, "halving-200", records(0.9, 0.9, 0.9), solver="halving")
    finished(study, "K-4", records(0.5), "a-cnn-l2-0.5", solver="ascent")  # no fixed run of that network
    finished(study, "fixed", records(0.5), "b-cnn-l2-0.5")  # that alone
    return study


def test_what_k_buys_by_hand(root):
    (ladder,) = iterations.read(root)
    assert (ladder.network, list(ladder.runs), ladder.last) == (NETWORK, [0, 4, 10, 20], 20)
    assert ladder.indices == [0, 7, 14] and ladder.paths == {}
    assert np.allclose(ladder.radii, [[0.2, 0.4, 0], [0.3, 0.4, 0.1], [0.6, 0.4, 0], [0.5, 0.6, 0.1]])
    means = {k: gain.mean for k, gain in ladder.gains.items()}
    assert means == pytest.approx({4: 0.2 / 3, 10: 0.4 / 3, 20: 0.6 / 3})
    assert ladder.shares == pytest.approx({0: 0, 4: 1 / 3, 10: 2 / 3, 20: 1})
    more = ladder.more
    assert {k: one.mean for k, one in more.items()} == pytest.approx({4: 0.2 / 3, 10: 0.2 / 3, 20: 0.2 / 3})
    assert more[10].error == pytest.approx(np.std([0.3, 0, -0.1], ddof=1) / 3**0.5)
    assert ladder.arrived == pytest.approx({0: 0, 4: 1 / 3, 10: 2 / 3, 20: 1})  # best .6 .6 .1; .6 is the first at 10
    losing = Ladder(NETWORK, {0: ladder.runs[20], 4: replace(ladder.runs[4], gain=more[4])}, {})
    assert losing.arrived == {0: 1, 4: 1}
    none = replace(ladder.runs[10], gain=replace(more[10], mean=-0.1))
    assert Ladder(NETWORK, {0: ladder.runs[0], 10: none}, {}).shares == {}


def test_the_table_says_what_the_records_do(root, capsys):
    settings, table = iterations.table(iterations.read(root)).split("\n\n")
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0] == [f"{NETWORK}: fixed", "", "66.7", "0.200", "", "", "", "3", "1,000"]
    assert rows[2][:4] == [f"{NETWORK}: K = 10", "100", "66.7", "0.333"]
    assert rows[2][4:7] == ["+0.133 ± 0.133", "67 %", "+0.067 ± 0.120"]
    assert rows[3][4:7] == ["+0.200 ± 0.058 (3 images)", "100 %", "+0.067 ± 0.088 (3 images)"]
    assert "norm l2, seed 0, solver ascent-fast, lr 0.003, keep_class True" in settings
    assert command_line.main(["iterations", str(root)]) == 0
    assert capsys.readouterr().out.strip() == f"{settings}\n\n{table}"


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(InputError, match=r"in folders that are called fixed, K-\.\.\.; found none"):
        iterations.read(tmp_path / "nowhere")
    for name in ("K-4", "K-10", "K-20"):
        (root / name).rename(root / f"not-{name}")
    with pytest.raises(InputError, match=r"expected runs in .*/fixed and .*/K-\.\.\. of the same network, found none"):
        iterations.read(root)


def test_the_network_of_the_study_is_shown(root):
    finished(root, "fixed", records(0.5), "a-cnn-l2-0.5")
    ladders = iterations.read(root)
    assert [ladder.network for ladder in ladders] == ["a-cnn-l2-0.5", NETWORK]
    for study, network in ((IterationStudy(), "a-cnn-l2-0.5"), (IterationStudy(sigma=0.25), NETWORK)):
        assert iterations.of_study(ladders, study).network == network


def test_images_are_spread_from_the_smallest_radius_to_the_largest(root):
    (ladder,) = iterations.read(root)
    assert ladder.spread() == []
    path = ImagePath(np.zeros(2, np.float32), np.zeros(2, np.float32))
    known = Ladder(NETWORK, ladder.runs, dict.fromkeys((0, 7, 14), path))
    assert known.spread() == [14, 0, 7] and known.spread(2) == [14, 7]


def traces(figure: go.Figure) -> Any:
    return figure.data


def test_figures_show_each_k(root):
    (ladder,) = iterations.read(root)
    curves = traces(iteration_plots.curves(ladder, unit="l2"))
    assert [trace.name.split(" (")[0] for trace in curves] == ["fixed", "K = 4", "K = 10", "K = 20"]
    colors = [trace.line.color for trace in curves]
    assert colors[0] == plots.STYLES["fixed"].color and len(set(colors)) == 4
    gain, share = traces(iteration_plots.saturation(ladder, unit="l2"))
    assert gain.x == (4, 10, 20) and gain.y == pytest.approx((0.2 / 3, 0.4 / 3, 0.2))
    assert gain.error_y.array[1] == pytest.approx(2 * 0.4 / 3)
    assert share.x == (0, 4, 10, 20) and share.y == pytest.approx((0, 100 / 3, 200 / 3, 100))
    images, mean = traces(iteration_plots.radii(ladder, unit="l2"))
    assert images.x[:6] == (0, 4, 10, 20, None, 0) and images.y[:5] == (0.2, 0.3, 0.6, 0.5, None)
    assert mean.y == pytest.approx((0.2, 0.8 / 3, 1 / 3, 0.4))
    right, _, wrong, _ = traces(iteration_plots.winners(ladder, unit="l2"))
    assert right.x == (0.2, 0.4) and right.y == pytest.approx((0.3, 0.2)) and wrong.y == pytest.approx((0.1,))
    (arrived,) = traces(iteration_plots.arrivals(ladder))
    assert arrived.y == pytest.approx((0, 100 / 3, 200 / 3, 100))


def test_paths_are_shown_with_what_is_certified_on_them(root):
    (ladder,) = iterations.read(root)
    sigma = np.linspace(0.25, 0.5, 21, dtype=np.float32)
    figure = iteration_plots.trails(replace(ladder, paths={7: ImagePath(sigma, sigma)}), [7], scale_name="sigma")
    line, points = traces(figure)
    assert np.array_equal(line.y, sigma) and line.name == "image 7 (0.400)"
    assert points.x == (4, 10, 20) and points.y == (0.25, 0.25, 0.25)
    assert line.line.color == plots.STYLES["data-dependent"].color


def test_shades_go_from_light_to_dark():
    shades = [shade.color for shade in plots.shades(plots.STYLES["data-dependent"], 4)]
    light = [sum(int(color[place : place + 2], 16) for place in (1, 3, 5)) for color in shades]
    assert light == sorted(light, reverse=True) and len(set(shades)) == 4
    assert [shade.color for shade in plots.shades(plots.STYLES["fixed"], 1)] == [plots.STYLES["fixed"].color]
