"""The README's numbers come from record files, its example runs, and its commands name what exists."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

import ddviz
from ddviz import ablation, analysis
from ddviz.ablation import Study
from ddviz.driver import Experiments
from ddviz.iterations import IterationStudy
from ddviz.report_tables import Report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = {"fixed": "fixed", "ds": "data-dependent"}


def runs_of(folder: str) -> dict[str, list[ddviz.Record]]:
    path = ROOT / "notebooks" / "results" / folder
    return {shown: ddviz.read_records(Path(f"{path}-{short}") / "records.tsv") for short, shown in METHODS.items()}


@pytest.mark.parametrize("sigma", ["0.12", "0.25"])
def test_digits_tables_are_those_of_the_record_files(sigma):
    runs = runs_of(f"digits/digits-cnn-cohen-{sigma}-fs-l2-{sigma}")
    table = analysis.summary_table(runs, analysis.nice_radii(list(runs.values())), unit="l2")
    assert table.split("\n\n")[1] in README


def test_the_cifar10_table_is_that_of_the_record_files():
    runs = runs_of("cifar10/cifar10-resnet20-cohen-0.25-fs-l2-0.25")
    table = analysis.summary_table(runs, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2], unit="l2")
    assert table.split("\n\n")[1] in README
    before, after = (analysis.average_certified_radius(records) for records in runs.values())
    assert f"{after / before - 1:.0%}".replace("%", " %") == "35 %"


def test_the_other_methods_gains_are_those_of_the_record_files():
    said = re.findall(r"(\w+) (0\.\d{3})\s+to\s+(0\.\d{3}) \((\+\d+) %\)", README)
    assert [method for method, *_ in said] == ["SmoothAdv", "MACER"]
    for method, *numbers in said:
        runs = runs_of(f"cifar10/cifar10-resnet20-{method.lower()}-0.25-fs-l2-0.25")
        before, after = (analysis.average_certified_radius(records) for records in runs.values())
        assert numbers == [f"{before:.3f}", f"{after:.3f}", f"{100 * (after / before - 1):+.0f}"]


def test_the_solvers_gains_are_those_of_the_record_files():
    solved = ablation.read(ROOT / "notebooks" / "results" / "solvers")
    of_one = {one.name: one for one in solved if one.network == "cifar10-resnet20-cohen-0.25-fs-l2-0.25"}
    for solver, before in (("halving", ": "), ("ascent", "against\n")):
        assert f"{before}{of_one[solver].gain}" in README
    reach = ablation.reach_table([of_one["fixed"], of_one["halving"], of_one["ascent"]])
    without = re.findall(r"(\+\S+ ± \S+) \|$", reach, re.MULTILINE)
    assert len(without) == 2 and f"the gains are {' and '.join(without)}." in README
    assert of_one["halving"].evaluations < 0.6 * of_one["ascent"].evaluations


def test_speeds_are_those_of_the_benchmarks():
    tables = (ROOT / "tests" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:published|ddviz).* \| ([\d,]+) \| ([\d.]+x) \|$", README, re.MULTILINE)
    assert len(rows) == 6
    for samples, ratio in rows:
        assert re.search(rf"\| {samples} \| [\d.]+x \| {ratio} \|", tables), samples


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(example, namespace)
    certificate, answer = namespace["certificate"], namespace["answer"]
    assert isinstance(certificate, ddviz.Certificate) and certificate.radius > 0.12
    assert answer == ddviz.Answer(certificate.predict, certificate.radius, "new")


def test_every_parameter_that_is_named_exists():
    named = set(re.findall(r"-p (\w+) ", README))
    assert len(named) > 8 and named <= {
        field.name
        for kind in (ddviz.RunConfig, ddviz.Recipe, Study, IterationStudy, Report, Experiments)
        for field in fields(kind)
    }


def test_every_file_that_is_named_exists():
    for path in re.findall(r"(?:notebooks|tests)/[\w/.-]+\w", README):
        assert (ROOT / path).exists(), path
