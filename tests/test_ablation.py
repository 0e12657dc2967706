"""Solvers side by side: numbers worked out by hand, settings that keep to a number of evaluations."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from test_config import assert_parameters_are_fields

from ddviz import InputError, Record, RunConfig, ablation, ablation_plots, grids, iterations, plots
from ddviz import __main__ as command_line
from ddviz.ablation import Study
from ddviz.records import ABSTAIN, write_records
from ddviz.report import search, with_table
from ddviz.report_tables import gains, levels, sections
from ddviz.tables import to_markdown

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RESULTS = NOTEBOOKS / "results"
MODEL = "digits-cnn-cohen-0.25-fs"
NETWORK = f"{MODEL}-l2-0.25"


def records(*radii: float, sigma: float = 0.25) -> list[Record]:
    """Images 0, 7, 14 ... of class 1 with these radii; a negative one belongs to a wrong answer."""
    return [Record(7 * i, 1, 1 if r >= 0 else 2, abs(r), int(r >= 0), sigma) for i, r in enumerate(radii)]


def finished(root: Path, name: str, found: list[Record], network: str = NETWORK, **settings: object) -> Path:
    """A run as `ddviz.run` leaves it; of each image's search 100 evaluations and 20 ms, of the last one 8 ms."""
    method = "fixed" if name == "fixed" else "ds"
    folder = root / name / f"{network}-{method}"
    folder.mkdir(parents=True)
    checkpoint, norm, sigma = network.rsplit("-", 2)
    config = {"checkpoint": checkpoint, "method": method, "sigma": float(sigma), "norm": norm, "n": 1_000, "seed": 0}
    (folder / "config.json").write_text(json.dumps(config | settings))
    write_records(folder / "records.tsv", found)
    if method == "ds":
        rows = [(record.idx, record.sigma, 100, 0.008 if record is found[-1] else 0.02) for record in found]
        rows.append((999, 0.25, 1_000_000, 1_000.0))  # searched, not certified yet
        lines = ["idx\tsigma\tevaluations\tseconds", *("\t".join(map(str, row)) for row in rows)]
        (folder / "sigmas.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    study = tmp_path / "solvers"
    searched = {"samples": 4, "iterations": 100, "lr": 0.003, "clamp": 0.0069}
    finished(study, "grid", records(0.4, 0.2, -0.9), solver="grid", **searched)
    finished(study, "halving", records(0.6, 0.4, 0.2), solver="halving", **searched)
    finished(study, "fixed", records(0.3, 0.3, -0.3))
    finished(study, "ascent", records(0.5, 0.3), solver="ascent-fast", **searched)
    finished(study, "ascent-300", records(0.5, 0.3, 0.1), solver="ascent-fast", **searched)
    finished(study, "halving-300", records(0.5, 0.6, 0.1), solver="halving", **searched)
    finished(study, "halving", records(0.5), "a-cnn-l2-0.5", solver="halving")
    (study / "grid" / f"{NETWORK.replace('cohen', 'macer')}-ds").mkdir()  # begun, not finished
    finished(tmp_path / "both", "fixed", records(0.1))
    (tmp_path / "both" / "fixed").rename(study / "halving" / "nested")
    (study / "halving" / "nested" / f"{NETWORK}-fixed").rename(study / "halving" / f"{NETWORK}-fixed")
    return study


def test_runs_are_found_in_order_network_by_network(root):
    solved = ablation.read(root)
    assert [(one.network, one.name) for one in solved] == [("a-cnn-l2-0.5", "halving")] + [
        (NETWORK, name) for name in ("fixed", "halving", "halving-300", "ascent", "ascent-300", "grid")
    ]
    assert [(one.solver, one.budget) for one in solved[3:6]] == [("halving", 300), ("ascent", 0), ("ascent", 300)]
    assert [len(one.records) for one in solved] == [1, 3, 3, 3, 2, 3, 3]
    assert solved[2].evaluations == 100 and solved[2].seconds == pytest.approx(0.016)  # (20 + 20 + 8) / 3
    assert solved[1].evaluations == solved[1].seconds == 0


def test_differences_are_paired_over_the_images_of_both_runs(root):
    solved = {one.name: one for one in ablation.read(root) if one.network == NETWORK}
    expected = {  # gains over 0.3, 0.3, 0 with halving's lead; the wrong answer's radius counts as 0
        "halving": (0.2, 0.1 / 3**0.5, 3, None),  # +.3 +.1 +.2
        "halving-300": (0.2, 0.1 / 3**0.5, 3, None),  # +.2 +.3 +.1
        "ascent": (0.1, 0.1, 2, (0.1, 0.0, 2)),  # +.2, 0; halving +.1 +.1
        "ascent-300": (0.1, 0.1 / 3**0.5, 3, (0.1, 0.1, 3)),  # +.2 0 +.1; halving-300 0 +.3 0
        "grid": (0.0, 0.1 / 3**0.5, 3, (0.2, 0.0, 3)),  # +.1 -.1 0; halving +.2 +.2 +.2
    }
    assert solved["fixed"].gain is None and solved["fixed"].lead is None
    for name, (mean, error, images, lead) in expected.items():
        gain, found = solved[name].gain, solved[name].lead
        assert gain and (gain.mean, gain.error, gain.images) == (pytest.approx(mean), pytest.approx(error), images)
        if lead is None:
            assert found is None
        else:
            assert found and (found.mean, found.error) == (pytest.approx(lead[0]), pytest.approx(lead[1], abs=1e-9))
            assert found.images == lead[2]


def test_halvings_own_settings_stand_for_as_many_evaluations(root):
    """Halving made 100 evaluations: what was held to 100 is compared with it."""
    finished(root, "ascent-100", records(0.4, 0.4, 0.0), solver="ascent-fast")
    finished(root, "ascent-200", records(0.4, 0.4, 0.0), solver="ascent-fast")
    leads = {one.name: one.lead for one in ablation.read(root)}
    assert leads["ascent-100"] and leads["ascent-100"].mean == pytest.approx((0.2 + 0.0 + 0.2) / 3)
    assert leads["ascent-200"] is None


def test_the_table_says_what_the_records_do(root):
    settings, table = ablation.table(ablation.read(root)).split("\n\n")
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    rows = {name.removeprefix(f"{NETWORK}: "): row for name, *row in cells}
    assert rows["fixed"] == ["66.7", "0.200", "", "", "", "", "3", "1,000"]
    assert rows["halving"] == ["100.0", "0.400", "+0.200 ± 0.058", "", "100", "16.0", "3", "1,000"]
    assert rows["ascent"][:4] == ["100.0", "0.400", "+0.100 ± 0.100", "+0.100 ± 0.000"]
    assert rows["grid"][:4] == ["66.7", "0.200", "+0.000 ± 0.058", "+0.200 ± 0.000"]
    assert rows["a-cnn-l2-0.5: halving"][2:4] == ["", ""]  # no fixed run of that network
    assert "norm l2, seed 0; halving: solver halving, samples 4; halving-300" in settings
    assert "; ascent: solver ascent-fast, iterations 100, lr 0.003, samples 4, clamp 0.0069; " in settings
    assert settings.endswith("; grid: solver grid, iterations 100, samples 4, clamp 0.0069.")


def test_a_difference_of_fewer_images_than_the_run_s_says_so(root):
    (root / "fixed" / f"{NETWORK}-fixed" / "records.tsv").unlink()
    write_records(root / "fixed" / f"{NETWORK}-fixed" / "records.tsv", records(0.3, 0.3))
    assert "+0.200 ± 0.100 (2 images)" in ablation.table(ablation.read(root))


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(InputError, match="in folders that are called fixed, halving, ascent, grid; found none"):
        ablation.read(tmp_path / "nowhere")
    sigmas = root / "ascent" / f"{NETWORK}-ds" / "sigmas.tsv"
    sigmas.write_text("".join(sigmas.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(InputError, match=r"ascent.*sigmas\.tsv for each of the 2 images, got 1"):
        ablation.read(root)
    write_records(root / "grid" / f"{NETWORK}-ds" / "records.tsv", [Record(0, 5, 5, 0.1, 1)])
    sigmas.parent.joinpath("records.tsv").unlink()
    with pytest.raises(InputError, match=r"same data set, got label 1 for image 0 in fixed/digits.* and 5 in grid/"):
        ablation.read(root)


def test_runs_are_chosen_by_budget_and_network(root):
    solved = ablation.read(root)
    assert [one.name for one in ablation.at_budget(solved, 300)] == ["fixed", "halving-300", "ascent-300"]
    several = ablation.with_several_budgets([replace(one, evaluations=one.budget or 100) for one in solved])
    assert {one.network for one in several} == {NETWORK} and len(several) == 6
    assert ablation.with_several_budgets(ablation.at_budget(solved, 0)) == []
    for study, network in (
        (Study(), "a-cnn-l2-0.5"),  # the first
        (Study(sigma=0.25), NETWORK),
        (Study(checkpoint=f"zoo:{MODEL}", sigma=0.5), NETWORK),
    ):
        assert {one.network for one in ablation.of_one_network(solved, study).values()} == {network}
    assert list(ablation.of_one_network(ablation.at_budget(solved, 0), Study(sigma=0.25))) == [
        *("fixed", "halving", "ascent", "grid")
    ]


def test_images_far_above_sigma_0_are_told_apart(root):
    far = [replace(record, sigma=0.9 if record.idx < 14 else 0.2) for record in records(0.9, 1.4, 0.1)]
    write_records(root / "grid" / f"{NETWORK}-ds" / "records.tsv", far)
    shown = ablation.of_one_network(ablation.at_budget(ablation.read(root), 0), Study(sigma=0.25))
    head, _, halving, ascent, grid = (
        [cell.strip(" *") for cell in row.split("|")] for row in ablation.reach_table(list(shown.values())).split("\n")
    )
    assert head[2:] == [
        *("images with sigma_x > 2 sigma_0", "most frequent answer there", "gain over fixed"),
        *("gain on the other images", ""),
    ]
    assert halving[2:4] == ["0", ""] and halving[4] == halving[5] == str(shown["halving"].gain)
    assert ascent[2:4] == ["0", ""]
    assert grid[1:4] == [f"{NETWORK}: grid", "2", "class 1, 2 times"]
    assert grid[4] == str(shown["grid"].gain) and grid[5].endswith("± nan")  # one image
    write_records(root / "grid" / f"{NETWORK}-ds" / "records.tsv", [replace(far[0], predict=ABSTAIN, correct=0)])
    assert "| 1 | abstains, 1 times |" in ablation.reach_table(ablation.read(root))


@pytest.mark.parametrize("evaluations", [200, 531, 532, 1000])
def test_each_solver_is_given_the_most_that_keeps_to_the_evaluations(evaluations):
    config = RunConfig(run_root="here")
    runs = ablation.configs(config, evaluations)
    assert list(runs) == ["fixed", *(f"{name}-{evaluations}" for name in ("halving", "ascent", "grid"))]
    for (name, run), setting in zip(list(runs.items())[1:], ("samples", "iterations", "iterations"), strict=True):
        assert run.make_solver().planned <= evaluations
        more = replace(run, **{setting: getattr(run, setting) + 2})  # 2: one iteration of a grid is half a scale
        assert more.make_solver().planned > evaluations
        assert (run.method, run.run_root) == ("ds", f"here/{name}")
    assert (runs["fixed"].method, runs["fixed"].run_root) == ("fixed", "here/fixed")


def test_100_steps_of_4_samples_and_both_checks_are_532_evaluations():
    assert ablation.configs(RunConfig(), 532)["ascent-532"].iterations == 100  # 101 * 4 + 2 * 64
    assert ablation.configs(RunConfig(), 531)["ascent-531"].iterations == 99


def test_without_a_number_each_has_its_settings_and_the_grid_the_steps_evaluations():
    runs = ablation.configs(RunConfig(samples=4, iterations=100, lr=0.003))
    assert [run.solver for run in list(runs.values())[1:]] == ["halving", "ascent-fast", "grid"]
    assert (runs["halving"].samples, runs["ascent"].iterations, runs["ascent"].lr) == (4, 100, 0.003)
    assert runs["ascent"].make_solver().planned - runs["grid"].make_solver().planned == 4  # the end of the path
    assert len({run.run_root for run in runs.values()}) == 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"evaluations": 100}, "expected evaluations >= 176, got 100: halving with samples=1 already makes that many"),
        ({"evaluations": 180, "samples": 60}, "expected evaluations >= 248, got 180: ascent-fast with iterations=1"),
        ({"evaluations": -1}, "expected evaluations >= 0, got -1"),
        ({"results": "nowhere"}, "expected results to be a folder of finished runs, got 'nowhere'"),
        ({"solver": "grid"}, "unknown parameter solver"),
        ({"sigma": -1}, "expected sigma > 0"),
        ({"alpha": -1.0}, "expected alpha, .* got -1"),
        ({"n": 0}, "expected n >= 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        Study.from_namespace(parameters)


def test_the_notebook_s_parameters_are_the_study_s():
    assert_parameters_are_fields(NOTEBOOKS / "ablation_solvers.ipynb", Study)


def test_a_clamp_of_0_is_what_n_samples_can_show(tmp_path):
    assert Study().config.clamp == 0.0069  # 1 - 0.001^(1/1000) = 0.00688
    assert Study(n=100_000).config.clamp == 6.9e-5 and Study(clamp=0.02).config.clamp == 0.02
    assert Study(results=str(tmp_path)).to_run == {} and len(Study().to_run) == 4


def traces(figure: go.Figure) -> Any:
    """What lies on a figure; plotly does not type it."""
    return figure.data


def test_figures_show_each_gain_in_its_solver_s_colour(root):
    solved = [replace(one, evaluations=one.budget or 100) for one in ablation.read(root)]
    figure = ablation_plots.gains(ablation.at_budget(solved, 0), unit="l2")
    assert [trace.name for trace in traces(figure)] == ["halving", "ascent", "grid"]
    for trace, mean, error in zip(traces(figure), (0.2, 0.1, 0.0), (0.2 / 3**0.5, 0.2, 0.2 / 3**0.5), strict=True):
        assert trace.marker.color == plots.SOLVERS[trace.name].color
        assert (trace.x, trace.error_x.array) == (pytest.approx((mean,), abs=1e-9), pytest.approx((error,)))
    figure = ablation_plots.budgets(ablation.with_several_budgets(solved), unit="l2")
    lines = {trace.name: trace.x for trace in traces(figure)}
    assert lines == {"halving": (100, 300), "ascent": (100, 300), "grid": (100,)}
    assert traces(figure)[1].y == pytest.approx((0.1, 0.1))
    assert figure.to_dict()["layout"]["xaxis"]["type"] == "log"


def test_scales_are_paired_by_image():
    runs = {"halving": records(1, 1, sigma=0.3), "grid": records(1, 1, 1, sigma=0.9)}
    points, same, fixed = traces(ablation_plots.scales(runs, "halving", 0.25))
    assert (points.name, points.x, points.y) == ("grid", (0.3, 0.3), (0.9, 0.9))
    assert same.x == same.y and fixed.name == "fixed sigma = 0.25"


def test_the_command_puts_the_table_into_a_document(root, tmp_path, capsys):
    document = tmp_path / "README.md"
    document.write_text("<!-- table: solvers -->\nold\n<!-- end -->\n")
    assert command_line.main(["solvers", str(root), "--into", str(document)]) == 0
    table = ablation.both_tables(ablation.read(root))
    assert document.read_text() == f"<!-- table: solvers -->\n{table}\n<!-- end -->\n"
    assert command_line.main(["solvers", str(root)]) == 0 and capsys.readouterr().out.strip() == table
    assert command_line.main(["solvers", str(tmp_path / "nowhere")]) == 2
    assert "found none" in capsys.readouterr().err


def test_the_published_table_is_that_of_the_record_files():
    document = (RESULTS / "README.md").read_text()
    assert document == with_table(document, "solvers", ablation.both_tables(ablation.read(RESULTS / "solvers")))


@pytest.mark.parametrize(("name", "study"), [("iterations", iterations), ("grid", grids)])
def test_the_tables_of_the_ablations_are_those_of_the_record_files(name, study):
    document = (RESULTS / "README.md").read_text()
    assert document == with_table(document, name, study.table(study.read(RESULTS / name)))


def test_the_published_report_is_that_of_the_record_files():
    every = sections(search(RESULTS / "solvers").runs)
    tables = [*gains(every), *map(levels, every)]
    assert {f"{table.key}.md" for table in tables} <= {path.name for path in (RESULTS / "report").glob("*.md")}
    for table in tables:
        assert (RESULTS / "report" / f"{table.key}.md").read_text(encoding="utf-8") == to_markdown(table)
