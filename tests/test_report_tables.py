"""Tables and figures of the report: invented runs, what they must say, and what must not be compared silently."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from ddviz import InputError, Record, plots, report_plots
from ddviz.records import write_records
from ddviz.report import search
from ddviz.report_tables import Report, Section, gains, levels, opening, sections


def record(idx: int, radius: float, sigma: float) -> Record:
    return Record(idx, 1, 1 if radius > 0 else 2, abs(radius), int(radius > 0), sigma, 0.5 + abs(radius) / 10, 9, 10)


def finished(root: Path, sigma: float, method: str, *radii: float, **settings: object) -> None:
    """A run on images 0, 20, ...; a wrong prediction has a negative radius."""
    folder = root / f"{settings.get('checkpoint', 'net')}-{sigma}-{method}-{settings.get('solver', '')}"
    folder.mkdir(parents=True)
    config = {"method": method, "sigma": sigma, "norm": "l2", "n": 1_000, "checkpoint": "net", "skip": 20, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    write_records(folder / "records.tsv", [record(20 * i, radius, sigma) for i, radius in enumerate(radii)])


def job(folder: Path, dataset: str, method: str, training: str = "fs", command: str = "") -> Path:
    folder.mkdir(parents=True)
    labels = {"dataset": dataset, "model": "resnet50", "method": method, "training": training}
    (folder / "job.json").write_text(json.dumps({"labels": labels, "command": command}))
    return folder


def traces(figure: go.Figure) -> Any:
    return figure.data


@pytest.fixture
def root(tmp_path) -> Path:
    """ImageNet with l2 and CIFAR-10 with l1, as an experiment leaves them."""
    cohen = job(tmp_path / "cohen", "imagenet", "cohen", command="papermill certify.ipynb")
    finished(cohen, 0.25, "fixed", 0.3, 0.6, -0.3, 0.2)
    finished(cohen, 0.5, "fixed", 0.4, 1.1, -0.3, 0.1)
    finished(cohen, 0.25, "ds", 0.8, 0.6, 0.2, 0.3, solver="ascent")
    finished(cohen, 0.25, "ds", 0.9, 0.6, solver="halving", n=10_000)
    finished(job(tmp_path / "ds2", "imagenet", "cohen", "ds2"), 0.25, "fixed", 0.3, 0.5, 0.2, 0.1, checkpoint="two")
    yang = job(tmp_path / "yang", "cifar10", "yang")
    finished(yang, 0.5, "fixed", 0.3, 0.4, norm="l1")
    finished(yang, 0.5, "ds", 0.5, 0.4, norm="l1", solver="ascent")
    (tmp_path / "NOTE.md").write_text("What to know.\n")
    return tmp_path


@pytest.fixture
def both(root) -> list[Section]:
    return sections(search(root).runs)


def test_each_data_set_and_norm_is_a_section(root, both):
    assert [section.title for section in both] == [
        "Table 4: Yang on CIFAR-10 (resnet50, l1)",
        "Table 1: Cohen on ImageNet (resnet50, l2)",
    ]
    assert [section.scale for section in both] == ["lambda", "sigma"]
    assert [section.names for section in both] == [
        ["Yang", "Yang-DS"],
        ["Cohen", "Cohen-DS", "Cohen-DS, halving", "Cohen-DS2", "Cohen-DS2, fixed"],
    ]
    finished(root / "cohen", 1.0, "fixed", 0.5)
    (root / "cohen" / "net-1.0-fixed-" / "records.tsv").unlink()
    shown = opening(str(root), search(root)).split("\n\n")
    assert shown[:2] == ["# CIFAR-10 (resnet50, l1): Yang; ImageNet (resnet50, l2): Cohen", "What to know."]
    assert len(shown) == 2  # begun without a certificate: nothing to tell


def test_a_table_is_the_best_over_sigma_beside_the_paper(both):
    table = levels(both[1])
    assert (table.key, table.columns[:2], table.columns[-1]) == (
        "table1-cohen-imagenet-l2-resnet50",
        ("0", "0.25"),
        "ACR",
    )
    rows = {row.name: row for row in table.rows}
    fixed = rows["Cohen"]
    assert [cell.value for cell in fixed.cells[:5]] == [75, 50, 25, 25, 25]
    assert (fixed.cells[0].paper, fixed.cells[-1].paper) == (66.6, 1.098)
    assert fixed.cells[-1].value == pytest.approx(0.4) and fixed.notes == ("0.25, 0.5", "4", "1,000")
    assert rows["Cohen-DS, halving"].cells[0].paper == rows["Cohen-DS"].cells[0].paper == 67.8
    assert rows["Cohen-DS2"].cells[0].value is None and rows["Cohen-DS2"].notes == ("-", "-", "-")
    assert rows["Cohen-DS2"].cells[0].paper == 67.4 and rows["Cohen-DS2, fixed"].cells[0].paper is None
    assert "best over sigma 0.25, 0.5, 1" in table.caption and "Cohen at 1; Cohen-DS at 0.5, 1;" in table.caption
    assert "skip 20, solver ascent or halving" in table.caption and table.commands == ("papermill certify.ipynb",)


def test_gains_are_over_the_same_sigmas_and_images_and_say_so(both):
    l1, l2 = gains(both)
    rows = {row.name: row for row in l2.rows}
    assert list(rows) == ["Cohen-DS over Cohen", "Cohen-DS, halving over Cohen"]
    ours = rows["Cohen-DS over Cohen"]
    assert ours.cells[-1].value == pytest.approx((0.5 + 0 + 0.2 + 0.1) / 4) and ours.notes == ("0.25", "4", "1,000")
    assert ours.cells[0].value == 25 and ours.cells[0].paper == pytest.approx(67.8 - 66.6)
    assert rows["Cohen-DS, halving over Cohen"].notes == ("0.25", "2", "10,000 against 1,000")
    assert "there is no Cohen-DS at 0.5, 1;" in l2.caption
    assert "as well" not in l2.caption
    assert l1.rows[0].cells[-1].paper == pytest.approx(0.946 - 0.775) and "fixed lambda" in l1.caption


def test_noise_scales_that_the_paper_has_not_are_told(root):
    finished(root / "cohen", 0.12, "fixed", 0.3)
    assert "Ours is over sigma 0.12 as well." in levels(sections(search(root).runs)[1]).caption


def test_without_fixed_runs_there_is_no_gain(tmp_path):
    finished(job(tmp_path / "x", "imagenet", "cohen"), 0.25, "ds", 0.8, solver="ascent")
    (table,) = gains(sections(search(tmp_path).runs))
    assert table.rows[0].notes == ("-", "-", "-") and table.rows[0].cells[0].lines == ("-", "+1.2", "")


def test_digits_have_round_radii_and_no_paper(tmp_path):
    finished(job(tmp_path / "x", "digits", "own method"), 0.25, "fixed", 0.8, 0.3)
    table = levels(sections(search(tmp_path).runs)[0])
    assert (table.key, table.title) == ("table-own-method-digits-l2-resnet50", "own method on digits (resnet50, l2)")
    assert table.columns[:3] == ("0", "0.1", "0.2") and "paper" not in table.caption
    assert len(table.rows[0].lines) == 1 and gains(sections(search(tmp_path).runs)) == []


def test_the_curves_have_a_panel_a_sigma_and_the_envelope_last(both):
    figure = report_plots.curves(both[1])
    assert figure.layout.title.text.startswith("Figure 3: certified accuracy, Cohen on ImageNet (resnet50, l2)")
    assert [text.text for text in figure.layout.annotations] == [
        "sigma = 0.25<br>N = 1,000 or 10,000; 4 or 2 images",
        "sigma = 0.5<br>N = 1,000; 4 images",
        "envelope: best over sigma<br>N = 1,000 or 10,000; 4 or 2 images",
    ]
    lines = [trace for trace in traces(figure) if trace.line.dash]
    fixed = {trace.xaxis: trace for trace in lines if trace.name == "Cohen"}
    assert set(fixed) == {"x", "x2", "x3"} and fixed["x"].line.color == plots.STYLES["fixed"].color
    assert np.array_equal(fixed["x3"].y, np.maximum(fixed["x"].y, fixed["x2"].y))
    assert {trace.name for trace in lines if trace.xaxis == "x2"} == {"Cohen"}
    names = [trace.name for trace in traces(figure) if trace.showlegend is not False]
    assert len(names) == len(set(names)) == 4 + 3
    points = {trace.name: trace for trace in traces(figure) if trace.mode == "markers"}
    assert points["Cohen-DS2, the paper"].xaxis == "x3" and points["Cohen-DS2, the paper"].y[0] == 67.4
    looks = {(trace.line.color, trace.line.dash) for trace in lines}
    assert len(looks) == 4


def test_one_sigma_is_its_own_envelope(both):
    figure = report_plots.curves(both[0])
    assert [text.text for text in figure.layout.annotations] == ["lambda = 0.5 alone<br>N = 1,000; 2 images"]
    assert figure.layout.title.text.startswith("Certified accuracy, Yang on CIFAR-10 (resnet50, l1)")
    assert figure.layout.xaxis.title.text == "radius r (l1, [0,1]-pixel units)"


def test_p_a_counts_right_answers_alone(both):
    figure = report_plots.certainty(both[1])
    fixed, *_ = (trace for trace in traces(figure) if trace.name.startswith("Cohen:"))
    assert fixed.name == "Cohen: ACR 0.275, 0.400" and fixed.xaxis == "x"
    assert fixed.customdata == pytest.approx([0, 0.52, 0.53, 0.56, 0.56])
    assert fixed.y == pytest.approx([100, 75, 50, 25, 0]) and fixed.x == pytest.approx([1, 0.48, 0.47, 0.44, 0.44])
    assert [trace.name for trace in traces(figure) if "halving" in trace.name] == ["Cohen-DS, halving: ACR 0.750, -"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"results": "nowhere"}, "expected results to be a folder of finished runs, got 'nowhere', which is none"),
        ({"results": ""}, "expected results to be a folder"),
        ({"results": ".", "grid_results": "nowhere"}, "expected grid_results to be a folder"),
        ({"results": ".", "export": __file__}, "expected export to be a folder, got the file"),
        ({"results": ".", "exports": "x"}, "unknown parameter exports. Did you mean export?"),
    ],
)
def test_a_wrong_parameter_is_named_before_anything_is_read(parameters, message):
    with pytest.raises(InputError, match=message):
        Report.from_namespace(parameters)


def test_a_gain_is_over_fixed_sigma_whatever_comes_first(tmp_path):
    """The smallest sigma has no fixed run: the first row is the data-dependent one."""
    for sigma, method, radius in ((0.12, "ds", 0.3), (0.25, "ds", 0.5), (0.25, "fixed", 0.4)):
        folder = job(tmp_path / f"{sigma}-{method}", "digits", "cohen")
        finished(folder, sigma, method, radius, radius)
    (table,) = gains(sections(search(tmp_path).runs))
    assert [row.name for row in table.rows] == ["Cohen-DS over Cohen"]
    assert table.rows[0].cells[-1].value == pytest.approx(0.1)
