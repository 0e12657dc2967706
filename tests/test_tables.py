"""Tables as values: marks by hand, and each form read back."""

import csv
import io
import math
import re

import pytest

from ddviz.tables import Cell, Row, Table, escape_latex, markdown, to_csv, to_latex, to_markdown

TABLE = Table(
    key="t",
    title="Gains at 50% of a_b",
    caption="Best & last.",
    columns=("0", "ACR"),
    notes=("sigma",),
    rows=(
        Row("A-DS", (Cell(71.84, 2.0, 79.9), Cell(0.4, 0.01, 0.36, digits=3)), ("0.12, 0.25",)),
        Row("B, x", (Cell(None, None, 2.5), Cell(None, None, math.nan, digits=3)), ("-",)),
        Row("C", (Cell(1.0, 0.5), Cell(0.5, math.nan, digits=3)), ("0.5",)),
    ),
    commands=("papermill a_b.ipynb",),
)


@pytest.mark.parametrize(
    ("cell", "lines"),
    [
        (Cell(71.84, 2.0, 79.9), ("71.8 ± 2.0", "79.9", "-8.1 ▼")),
        (Cell(75.9, 2.0, 79.9), ("75.9 ± 2.0", "79.9", "-4.0 ≈")),  # exactly two errors
        (Cell(75.8, 2.0, 79.9), ("75.8 ± 2.0", "79.9", "-4.1 ▼")),
        (Cell(0.2, 0.01, 0.1, digits=3, signed=True), ("+0.200 ± 0.010", "+0.100", "+0.100 ▲")),
        (Cell(1.0, None, 2.0), ("1.0", "2.0", "-1.0")),  # no error, no mark
        (Cell(1.0, math.nan, 2.0), ("1.0", "2.0", "-1.0")),
        (Cell(1.0, 0.5, math.nan), ("1.0 ± 0.5", "?", "")),
        (Cell(-0.04, 0.5, signed=True), ("+0.0 ± 0.5", "", "")),
        (Cell(None, None, 2.0), ("-", "2.0", "")),
    ],
)
def test_a_cell_tells_the_difference_and_whether_it_is_beyond_two_errors(cell, lines):
    assert cell.lines == lines


def test_markdown_rows_share_the_first_rows_columns():
    rows = {"a": {"x": "1", "y": "2"}, "b": {"y": "4", "x": "3"}}
    assert markdown(rows).split("\n")[2:] == ["| **a** | 1 | 2 |", "| **b** | 3 | 4 |"]
    assert markdown({}) == "|  |\n| --- |"


def test_markdown_in_full():
    assert to_markdown(TABLE) == "\n".join(
        [
            "### Gains at 50% of a_b",
            "",
            "|  | 0 | ACR | sigma |",
            "| --- | ---: | ---: | ---: |",
            "| **A-DS** | 71.8 ± 2.0 | 0.400 ± 0.010 | 0.12, 0.25 |",
            "| paper | 79.9 | 0.360 |  |",
            "| difference | -8.1 ▼ | +0.040 ▲ |  |",
            "| **B, x** | - | - | - |",
            "| paper | 2.5 | ? |  |",
            "| **C** | 1.0 ± 0.5 | 0.500 | 0.5 |",
            "",
            "Best & last.",
            "",
            "Made by:",
            "",
            "    papermill a_b.ipynb",
        ]
    )


def test_csv_is_read_back_in_full_precision():
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert [(row["row"], row["column"]) for row in rows][:3] == [("A-DS", "0"), ("A-DS", "ACR"), ("B, x", "0")]
    first = rows[0]
    assert (float(first["value"]), float(first["paper"]), first["mark"], first["sigma"]) == (
        71.84,
        79.9,
        "▼",
        "0.12, 0.25",
    )
    assert float(first["difference"]) == pytest.approx(-8.06)
    assert [rows[3][name] for name in ("value", "error", "paper", "difference")] == [""] * 4


def test_latex_has_the_same_columns_in_each_line_and_escapes_its_text():
    lines = to_latex(TABLE).splitlines()
    assert r"\begin{tabular}{lrrr}" in lines and r"\label{tab:t}" in lines and "% made by: papermill a_b.ipynb" in lines
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    cells = [re.split(r"(?<!\\)&", line) for line in body if line.endswith(r"\\")]
    assert len(cells) == 1 + 6 and {len(line) for line in cells} == {4}
    assert r"\textbf{A-DS} & 71.8 $\pm$ 2.0 & 0.400 $\pm$ 0.010 & 0.12, 0.25 \\" in body
    assert r"difference & $-$8.1 $\blacktriangledown$ & +0.040 $\blacktriangle$ &  \\" in body
    assert r"\caption{Gains at 50\% of a\_b. Best \& last.}" in lines


def test_latex_text_is_escaped_once():
    assert escape_latex(r"\a{b}~$5_c^# -1 a-b") == (
        r"\textbackslash{}a\{b\}\textasciitilde{}\$5\_c\textasciicircum{}\# $-$1 a-b"
    )
