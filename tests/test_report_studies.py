"""Figures 7 and 8 of the report: whose runs they show, and that these stand in no table."""

import json
from pathlib import Path

import pytest

from ddviz import InputError, Record
from ddviz.records import write_records
from ddviz.report import search
from ddviz.report_studies import figure_7, figure_8, studies


def run(folder: Path, radius: float, method: str = "ds", evaluations: int = 0, **settings: object) -> None:
    """A run of ten images, all right with the same radius."""
    folder.mkdir(parents=True)
    zoo = {"checkpoint": "digits-cnn-cohen-0.25-fs", "dataset": "digits", "solver": "ascent-fast", "iterations": 5}
    config = {"method": method, "norm": "l2", "sigma": 0.25, "n": 1_000, "samples": 1, **zoo, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    write_records(folder / "records.tsv", [Record(i, 1, 1, radius, 1, 0.25, 0.9, 9, 10) for i in range(10)])
    if evaluations:
        rows = "".join(f"{i}\t0.25\t{evaluations}\t0.1\n" for i in range(10))
        (folder / "sigmas.tsv").write_text(f"idx\tsigma\tevaluations\tseconds\n{rows}")


@pytest.fixture
def root(tmp_path) -> Path:
    """A plan's folder: a certification, an ablation of K, an ablation of the grid."""
    net = "digits-cnn-cohen-0.25-fs-l2-0.25"
    for name, notebook in (("a", "certify"), ("b", "ablation_iterations"), ("c", "ablation_grid")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"notebook": notebook, "labels": {}}))
    run(tmp_path / "a" / f"{net}-fixed", 0.1, "fixed")
    run(tmp_path / "b" / "fixed" / f"{net}-fixed", 0.2, "fixed")
    run(tmp_path / "b" / "K-5" / f"{net}-ds", 0.3, evaluations=20)
    run(tmp_path / "b" / "K-50" / f"{net}-ds", 0.6, evaluations=200)
    run(tmp_path / "c" / "fixed" / f"{net}-fixed", 0.2, "fixed")
    run(tmp_path / "c" / "grid-n4-200" / f"{net}-ds", 0.4, evaluations=200, solver="grid")
    return tmp_path


def test_ablations_are_found_by_what_their_jobs_say(root):
    assert studies("", str(root), "ablation_iterations") == [root / "b"]
    assert studies("", str(root), "ablation_grid") == [root / "c"]
    assert studies("elsewhere", str(root), "ablation_grid") == [Path("elsewhere")]


def test_their_runs_stand_in_no_table(root):
    found = search(root)
    assert [run.found.path.parent.parent.name for run in found.runs] == ["a"] and not found.left_out


def test_figure_7_shows_every_k(root):
    table, figures = figure_7([root / "b"])
    assert "K = 50** | 200 | 100.0 | 0.600 | +0.400 ± 0.000 | 100 % | +0.300 ± 0.000 | 10 | 1,000" in table
    assert "K = 5** | 20 | 100.0 | 0.300 | +0.100 ± 0.000 | 25 %" in table
    assert [name.rpartition("-")[2] for name in figures] == ["accuracy", "gain"]
    assert all(name.startswith("figure7-digits-cnn-cohen-0.25-fs-l2-0.25-") for name in figures)


def test_figure_8_shows_the_searches(root):
    table, figures = figure_8([root / "c"])
    assert "grid, n = 4, 200** | 200 |  | 100.0 | 0.400 | +0.200 ± 0.000" in table
    assert list(figures) == ["figure8-digits-cnn-cohen-fs-l2-accuracy", "figure8-digits-cnn-cohen-fs-l2-evaluations"]


def test_without_ablations_there_is_nothing_and_a_wrong_folder_is_said(root):
    assert figure_7([]) == ("", {}) and figure_8([]) == ("", {})
    said, figures = figure_7([root / "c"])
    assert said.startswith("Left out: expected runs in") and not figures


def test_several_studies_of_one_network_stand_side_by_side(root):
    said, figures = figure_7([root / "b", root / "b"])
    assert said.count("K = 50** | 200") == 2 and said.startswith("**b**")
    assert all(name.endswith("-b") for name in figures)


def test_a_folder_of_ablations_alone_can_be_reported(root):
    assert search(root / "b").runs == []


def test_a_damaged_job_is_named(root):
    (root / "a" / "job.json").write_text("[]")
    with pytest.raises(InputError, match=r"job\.json is damaged"):
        studies("", str(root), "ablation_grid")
