"""Tables of finished runs: numbers worked out by hand, the paper's beside them."""

import json
from pathlib import Path

import pytest

from ddviz import InputError, Record
from ddviz import __main__ as command_line
from ddviz.records import write_records
from ddviz.report import search, with_table, zoo_table

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"

FIXED = [Record(0, 1, 1, 0.3, 1, 0.25), Record(20, 2, 2, 0.6, 1, 0.25), Record(40, 3, 1, 0.9, 0, 0.25)]
CHOSEN = [Record(0, 1, 1, 0.5, 1, 0.3), Record(20, 2, 2, 0.6, 1, 0.25), Record(40, 3, 3, 0.4, 1, 0.2)]


def finished(
    root: Path, model: str, method: str, records: list[Record], sigma: float = 0.25, **settings: object
) -> None:
    config = {"checkpoint": model, "method": method, "sigma": sigma, "norm": "l2", "n": 10_000, "seed": 0, **settings}
    folder = root / f"{model}-{config['norm']}-{sigma:g}-{method}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_records(folder / "records.tsv", records)


@pytest.fixture
def root(tmp_path) -> Path:
    finished(tmp_path, "cifar10-resnet20-macer-0.25-fs", "fixed", FIXED)
    finished(tmp_path, "cifar10-resnet20-cohen-0.25-fs", "ds", CHOSEN)
    finished(tmp_path, "cifar10-resnet20-cohen-0.25-fs", "fixed", FIXED)
    finished(tmp_path, "cifar10-resnet20-cohen-0.5-fs", "fixed", CHOSEN, 0.5)
    finished(tmp_path, "cifar10-resnet20-cohen-0.25-ds2", "ds", CHOSEN)
    finished(tmp_path, "my-own", "fixed", FIXED)
    (tmp_path / "cifar10-resnet20-cohen-0.12-fs-l2-0.12-ds").mkdir()  # begun, not finished
    return tmp_path


def rows_of(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    return {name: row for name, *row in cells}


def test_runs_are_found_named_and_ordered(root):
    assert [(run.name, run.sigma) for run in search(root).runs] == [
        ("Cohen", 0.25),
        ("Cohen-DS", 0.25),
        ("Cohen-DS2", 0.25),
        ("Cohen", 0.5),
        ("MACER", 0.25),
    ]


def test_the_table_s_numbers_are_those_of_the_records(root):
    table = zoo_table(search(root).runs).split("\n\n")
    rows = rows_of(table[1])
    assert rows["Cohen, sigma 0.25"] == "66.7 66.7 33.3 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.300  3 10,000".split(" ")
    assert rows["Cohen-DS, sigma 0.25"][:4] == ["100.0", "100.0", "66.7", "0.0"]
    assert rows["Cohen-DS, sigma 0.25"][11:] == ["0.500", "+0.200 ± 0.115", "3", "10,000"]  # +.2, 0, +.4
    assert rows["Cohen-DS2, sigma 0.25"][12] == ""  # no fixed run of that network to compare with
    assert "norm l2, seed 0" in table[0]


def test_envelopes_take_the_best_over_sigma(root):
    rows = rows_of(zoo_table(search(root).runs).split("\n\n")[3])
    assert rows["Cohen"][:3] == ["100.0", "100.0", "66.7"] and rows["Cohen"][11:] == ["0.500", "0.25, 0.5"]


def test_the_paper_s_figures_stand_below(root):
    rows = rows_of(zoo_table(search(root).runs).split("\n\n")[5])
    assert (rows["Cohen"][:2], rows["Cohen"][-1]) == (["79.9", "58.3"], "0.591")
    assert (rows["Cohen-DS"][-1], rows["SmoothAdv-DS"][-1], rows["MACER-DS"][-1]) == ("0.784", "0.799", "0.841")


def test_the_command_prints_the_table_or_says_what_is_missing(root, tmp_path, capsys):
    assert command_line.main(["table", str(root)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == zoo_table(search(root).runs) and "left out: my-own-l2-0.25-fixed (" in printed.err
    assert command_line.main(["table", str(tmp_path / "nowhere")]) == 2
    assert "expected a folder of finished runs, got" in capsys.readouterr().err


def test_the_command_puts_the_table_into_a_document(root, tmp_path, capsys):
    document = tmp_path / "README.md"
    document.write_text(f"# Results\n\n<!-- table: {root.name} -->\nold\n<!-- end -->\n\nwords\n")
    assert command_line.main(["table", str(root), "--into", str(document)]) == 0
    table = zoo_table(search(root).runs)
    assert document.read_text() == f"# Results\n\n<!-- table: {root.name} -->\n{table}\n<!-- end -->\n\nwords\n"
    document.write_text("nothing\n")
    assert command_line.main(["table", str(root), "--into", str(document)]) == 2
    assert "expected <!-- table: " in capsys.readouterr().err and document.read_text() == "nothing\n"


def test_other_data_sets_have_radii_of_their_own_and_no_paper(tmp_path):
    finished(tmp_path, "digits-cnn-cohen-0.25-fs", "fixed", FIXED)
    table = zoo_table(search(tmp_path).runs)
    assert "paper" not in table and "| 0.9 |" in table
    finished(tmp_path / "other", "my-own", "fixed", FIXED)
    with pytest.raises(InputError, match=r"found none\. Left out: my-own-l2-0.25-fixed \(its config.json"):
        search(tmp_path / "other")


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_the_published_tables_are_those_of_the_record_files(name):
    document = (RESULTS / "README.md").read_text()
    assert document == with_table(document, name, zoo_table(search(RESULTS / name).runs))


RESNET = "cifar10-resnet20-cohen-0.25-fs"
LABELS = {"dataset": "cifar10", "model": "resnet18", "method": "yang", "training": "fs"}


def job(folder: Path, **labels: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps({"labels": labels, "command": "make it"}))


def test_labels_of_the_nearest_job_win_over_names(tmp_path):
    job(tmp_path, **LABELS)
    job(tmp_path / "near", **(LABELS | {"method": "macer"}))
    finished(tmp_path / "far" / "deep", "checkpoint", "ds", CHOSEN, norm="l1", solver="ascent")
    finished(tmp_path / "near", RESNET, "fixed", FIXED)
    yang, macer = sorted(search(tmp_path).runs, key=lambda run: run.norm)
    assert (yang.name, yang.norm, yang.model, yang.command) == ("Yang-DS", "l1", "resnet18", "make it")
    assert (macer.name, macer.norm, macer.model) == ("MACER", "l2", "resnet18")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"job.json is damaged .* Correct it, or leave its runs out"),
        ("{", "job.json is damaged"),
        ('{"labels": 3}', "labels is no object"),
        ('{"labels": {"training": "ds"}}', "expected training to be fs or ds2 in the job.json of .*, got 'ds'"),
    ],
)
def test_a_damaged_job_is_named(tmp_path, text, message):
    finished(tmp_path, RESNET, "fixed", FIXED)
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(InputError, match=message):
        search(tmp_path)


def test_norms_data_sets_and_architectures_have_tables_of_their_own(root):
    job(root / "l1", **LABELS)
    finished(root / "l1", "yang", "fixed", FIXED, norm="l1")
    finished(root / "l1", "yang", "ds", CHOSEN, norm="l1", solver="ascent")
    l1, l2 = zoo_table(search(root).runs).split("\n\n**cifar10, l2, resnet20**")
    assert l1.startswith("**cifar10, l1, resnet18**") and "(table 4; best" in l1 and "(tables 1 to 3; best" in l2
    assert rows_of(l1)["Yang-DS, sigma 0.25"][8] == "+0.200 ± 0.115" and "Cohen" not in l1 and "Yang" not in l2


def test_other_solvers_are_told_beside_algorithm_1_alone(tmp_path):
    for solver in ("ascent-fast", "halving"):
        finished(tmp_path / solver, RESNET, "ds", CHOSEN, solver=solver)
    assert [run.name for run in search(tmp_path).runs] == ["Cohen-DS", "Cohen-DS, halving"]
    assert [run.name for run in search(tmp_path / "halving").runs] == ["Cohen-DS"]


def test_of_one_run_found_twice_the_one_with_most_samples_then_images_counts(tmp_path):
    finished(tmp_path / "a", RESNET, "fixed", FIXED, n=1_000)
    finished(tmp_path / "b", RESNET, "fixed", FIXED[:2], n=10_000)
    finished(tmp_path / "c", RESNET, "fixed", FIXED, n=10_000, clamp=0.02)
    found = search(tmp_path)
    assert [run.found.path.parent.parent.name for run in found.runs] == ["c"]
    kept = f"c/{RESNET}-l2-0.25-fixed counts)"
    assert found.left_out == [
        f"b/{RESNET}-l2-0.25-fixed (images 2 instead of 3, clamp unset instead of 0.02: {kept}",
        f"a/{RESNET}-l2-0.25-fixed (N 1000 instead of 10000, clamp unset instead of 0.02: {kept}",
    ]


def test_studies_beside_runs_are_left_out_unless_a_job_names_them(tmp_path):
    finished(tmp_path, RESNET, "fixed", FIXED)
    finished(tmp_path / "study", RESNET, "ds", CHOSEN, solver="ascent")
    found = search(tmp_path)
    assert [run.name for run in found.runs] == ["Cohen"] and "a study beside the runs" in found.left_out[0]
    job(tmp_path)  # above both: it says nothing of the study
    assert [run.name for run in search(tmp_path).runs] == ["Cohen"]
    job(tmp_path / "study")
    assert [run.name for run in search(tmp_path).runs] == ["Cohen", "Cohen-DS"]
    assert [run.name for run in search(tmp_path / "study").runs] == ["Cohen-DS"]
