"""Tables of finished runs: numbers worked out by hand, the paper's beside them."""

import json
from pathlib import Path

import pytest

from ddviz import InputError, Record
from ddviz import __main__ as command_line
from ddviz.records import write_records
from ddviz.report import finished_runs, with_table, zoo_table

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"

FIXED = [Record(0, 1, 1, 0.3, 1, 0.25), Record(20, 2, 2, 0.6, 1, 0.25), Record(40, 3, 1, 0.9, 0, 0.25)]
CHOSEN = [Record(0, 1, 1, 0.5, 1, 0.3), Record(20, 2, 2, 0.6, 1, 0.25), Record(40, 3, 3, 0.4, 1, 0.2)]


def finished(root: Path, model: str, method: str, records: list[Record], sigma: float = 0.25) -> None:
    folder = root / f"{model}-l2-{sigma:g}-{method}"
    folder.mkdir(parents=True)
    config = {"checkpoint": model, "method": method, "sigma": sigma, "norm": "l2", "n": 10_000, "seed": 0}
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
    assert [(run.name, run.sigma) for run in finished_runs(root)] == [
        ("Cohen", 0.25),
        ("Cohen-DS", 0.25),
        ("Cohen-DS2", 0.25),
        ("Cohen", 0.5),
        ("MACER", 0.25),
    ]


def test_the_table_s_numbers_are_those_of_the_records(root):
    table = zoo_table(finished_runs(root)).split("\n\n")
    rows = rows_of(table[1])
    assert rows["Cohen, sigma 0.25"] == "66.7 66.7 33.3 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.300  3 10,000".split(" ")
    assert rows["Cohen-DS, sigma 0.25"][:4] == ["100.0", "100.0", "66.7", "0.0"]
    assert rows["Cohen-DS, sigma 0.25"][11:] == ["0.500", "+0.200 ± 0.115", "3", "10,000"]  # +.2, 0, +.4
    assert rows["Cohen-DS2, sigma 0.25"][12] == ""  # no fixed run of that network to compare with
    assert "norm l2, seed 0" in table[0]


def test_envelopes_take_the_best_over_sigma(root):
    rows = rows_of(zoo_table(finished_runs(root)).split("\n\n")[3])
    assert rows["Cohen"][:3] == ["100.0", "100.0", "66.7"] and rows["Cohen"][11:] == ["0.500", "0.25, 0.5"]


def test_the_paper_s_figures_stand_below(root):
    rows = rows_of(zoo_table(finished_runs(root)).split("\n\n")[5])
    assert (rows["Cohen"][:2], rows["Cohen"][-1]) == (["79.9", "58.3"], "0.591")
    assert (rows["Cohen-DS"][-1], rows["SmoothAdv-DS"][-1], rows["MACER-DS"][-1]) == ("0.784", "0.799", "0.841")


def test_the_command_prints_the_table_or_says_what_is_missing(root, tmp_path, capsys):
    assert command_line.main(["table", str(root)]) == 0
    assert capsys.readouterr().out.strip() == zoo_table(finished_runs(root))
    assert command_line.main(["table", str(tmp_path / "nowhere")]) == 2
    assert "expected folders of finished runs of the zoo's networks" in capsys.readouterr().err


def test_the_command_puts_the_table_into_a_document(root, tmp_path, capsys):
    document = tmp_path / "README.md"
    document.write_text(f"# Results\n\n<!-- table: {root.name} -->\nold\n<!-- end -->\n\nwords\n")
    assert command_line.main(["table", str(root), "--into", str(document)]) == 0
    table = zoo_table(finished_runs(root))
    assert document.read_text() == f"# Results\n\n<!-- table: {root.name} -->\n{table}\n<!-- end -->\n\nwords\n"
    document.write_text("nothing\n")
    assert command_line.main(["table", str(root), "--into", str(document)]) == 2
    assert "expected <!-- table: " in capsys.readouterr().err and document.read_text() == "nothing\n"


def test_other_data_sets_have_radii_of_their_own_and_no_paper(tmp_path):
    finished(tmp_path, "digits-cnn-cohen-0.25-fs", "fixed", FIXED)
    table = zoo_table(finished_runs(tmp_path))
    assert "paper" not in table and "| 0.9 |" in table
    with pytest.raises(InputError, match="found none"):
        finished_runs(tmp_path / "empty")


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_the_published_tables_are_those_of_the_record_files(name):
    document = (RESULTS / "README.md").read_text()
    assert document == with_table(document, name, zoo_table(finished_runs(RESULTS / name)))
