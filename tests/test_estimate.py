"""Estimates: planned counts are those that the runs make; what is not there is taken from what was published."""

from dataclasses import replace
from pathlib import Path

import pytest

import ddviz
from ddviz import InputError, estimate, plan
from ddviz.records import read_rows


def planned(tmp_path: Path, notebook: str = "certify", **parameters) -> plan.PlannedRun:
    settings = plan.NOTEBOOKS[notebook](**{"run_root": str(tmp_path), **parameters})
    return plan.PlannedRun("a", notebook, parameters, {}, settings, tmp_path)


@pytest.mark.parametrize("solver", ["halving", "ascent-fast", "grid"])
def test_a_runs_evaluations_are_those_that_it_makes(tmp_path, solver):
    settings = {"n": 200, "max_images": 3, "iterations": 5, "solver": solver, "dtype": "float32"}
    run = planned(tmp_path, **settings)
    expected = estimate.estimate(run)
    made = ddviz.run(run.settings).runs  # type: ignore[arg-type]
    rows = [read_rows(each.folder / "certificates.tsv") for each in made.values()]
    searched = sum(int(row["evaluations"]) for row in read_rows(made["data-dependent"].folder / "sigmas.tsv"))
    assert expected.certificates == sum(map(len, rows)) == 6
    assert expected.evaluations == sum(100 + int(row["n"]) for part in rows for row in part) + searched
    assert expected.seconds > 0


def test_training_counts_every_pass(tmp_path):
    images = len(ddviz.datasets.load("digits", split="train"))
    cases = [
        ({"epochs": 4, "ds": False}, 4),
        ({"epochs": 4, "ds": False, "objective": "smoothadv", "samples": 2, "attack_steps": 3}, 4 * 2 * 4),
        ({"epochs": 4, "ds": False, "objective": "macer", "samples": 5}, 20),
        ({"epochs": 4, "warmup": 1, "search_samples": 2, "iterations": 3}, 4 + 3 * 2 * 3),
    ]
    for settings, passes in cases:
        assert estimate.estimate(planned(tmp_path, "train", **settings)).evaluations == images * passes, settings


def test_data_and_weights_need_not_be_there(tmp_path):
    settings = {"dataset": "cifar10", "data_root": str(tmp_path), "checkpoint": str(tmp_path / "later.pth"), "skip": 20}
    run = planned(tmp_path, **settings, method="fixed", max_images=0, n=1000, arch="cifar_resnet20")
    assert estimate.estimate(run).certificates == 500
    assert estimate.estimate(run).evaluations == 500 * 1100
    some = replace(run, settings=replace(run.settings, max_images=7))  # type: ignore[type-var]
    assert estimate.estimate(some).certificates == 7


def test_a_larger_network_takes_longer(tmp_path):
    settings = {"dataset": "cifar10", "data_root": str(tmp_path), "method": "fixed", "max_images": 50, "n": 100_000}
    small, large = (
        estimate.estimate(planned(tmp_path, **settings, arch=arch, checkpoint="later"))
        for arch in ("cifar_resnet20", "cifar_resnet110")
    )
    assert large.seconds > 2 * small.seconds and large.evaluations == small.evaluations


def test_what_cannot_be_known_is_said(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(InputError):
        estimate.estimate(planned(tmp_path, dataset=str(folder)))


def test_estimates_add_up():
    assert estimate.Estimate(1, 2, 3.0) + estimate.Estimate(10, 20, 30.0) == estimate.Estimate(11, 22, 33.0)
