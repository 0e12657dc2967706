"""Tables as values, and their forms: Markdown, CSV, LaTeX.

A cell knows its number, its error and the paper's number, so that each form tells the same difference.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ERRORS = 2
"""A difference beyond so many standard errors is marked as one."""


@dataclass(frozen=True)
class Cell:
    """A number with its standard error, and the paper's; None where there is none, NaN where it cannot be read."""

    value: float | None
    error: float | None = None
    paper: float | None = None
    digits: int = 1
    signed: bool = False

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        known = self.value is not None and self.paper is not None and not math.isnan(self.paper)
        return self.value - self.paper if known else None  # type: ignore[operator]

    @property
    def mark(self) -> str:
        """▲ above, ▼ below the paper's by more than two standard errors; ≈ neither; "" where that is not known."""
        if self.difference is None or self.error is None or math.isnan(self.error):
            return ""
        return "≈" if abs(self.difference) <= ERRORS * self.error else "▲" if self.difference > 0 else "▼"

    @property
    def lines(self) -> tuple[str, str, str]:
        """For a reader: ours with its error, the paper's, the difference with its mark."""
        error = f" ± {self.error:.{self.digits}f}" if self.error is not None and not math.isnan(self.error) else ""
        ours = "-" if self.value is None else self._number(self.value, self.signed) + error
        difference = "" if self.difference is None else f"{self._number(self.difference, True)} {self.mark}".rstrip()
        return ours, "" if self.paper is None else self._number(self.paper, self.signed), difference

    def _number(self, value: float, signed: bool) -> str:
        if math.isnan(value):
            return "?"
        return f"{round(value, self.digits) + 0.0:{'+' if signed else ''}.{self.digits}f}"  # + 0.0: no -0.0


@dataclass(frozen=True)
class Row:
    """A named row: a cell for each column, then a text for each note."""

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """Lines of texts for a reader, without the name: ours with the notes and, where it has one, the paper's."""
        ours, paper, difference = zip(*(cell.lines for cell in self.cells), strict=True)
        blank = ("",) * len(self.notes)
        return [ours + self.notes, *(line + blank for line in (paper, difference) if any(line))]


@dataclass(frozen=True)
class Table:
    """A table. key: what files are called. notes: titles of the texts behind the numbers. commands: made its runs."""

    key: str
    title: str
    caption: str
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    commands: tuple[str, ...] = ()

    @property
    def head(self) -> list[str]:
        """Titles of all columns behind the first."""
        return [*self.columns, *self.notes]

    def lines(self, emphasis: Callable[[str], str], escape: Callable[[str], str] = str) -> list[list[list[str]]]:
        """The lines of each row, in cells, names first: the row's own, then "paper" and "difference"."""
        names = ("paper", "difference")
        return [
            [
                [name, *map(escape, line)]
                for name, line in zip((emphasis(escape(row.name)), *names), row.lines, strict=False)
            ]
            for row in self.rows
        ]


def markdown(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown table of named rows, which all have the first row's columns."""
    head = list(next(iter(rows.values()), {}))
    return _markdown(head, [[f"**{name}**", *(cells[column] for column in head)] for name, cells in rows.items()])


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    above = [["", *head], ["---", *["---:"] * len(head)]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*above, *lines])


def to_markdown(table: Table) -> str:
    """A table with its title, caption and commands."""
    lines = [line for row in table.lines("**{}**".format) for line in row]
    parts = [f"### {table.title}", _markdown(table.head, lines), table.caption]
    if table.commands:
        parts.append("\n".join(["Made by:", "", *(f"    {command}" for command in table.commands)]))
    return "\n\n".join(parts)


def to_csv(table: Table) -> str:
    """A line a cell, in full precision: row, column, value, error, paper, difference, mark, and the row's notes."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "column", "value", "error", "paper", "difference", "mark", *table.notes])
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            numbers = [cell.value, cell.error, cell.paper, cell.difference]
            shown = ["" if number is None or math.isnan(number) else repr(float(number)) for number in numbers]
            writer.writerow([row.name, column, *shown, cell.mark, *row.notes])
    return file.getvalue()


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "≈": r"$\approx$",
    "\u2212": "$-$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
_ESCAPED = re.compile("|".join(map(re.escape, _SPECIAL)))
_NEGATIVE = re.compile(r"(?<!\S)-(?=\d)")  # a hyphen is no minus


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return _ESCAPED.sub(lambda found: _SPECIAL[found[0]], _NEGATIVE.sub("\u2212", text))


def to_latex(table: Table) -> str:
    """A `table` with booktabs rules, for the packages named above it."""
    groups = table.lines(r"\textbf{{{}}}".format, escape_latex)
    rows = ["\n".join(" & ".join(line) + r" \\" for line in lines) for lines in groups]
    space = "\n\\addlinespace\n" if any(len(lines) > 1 for lines in groups) else "\n"
    caption = escape_latex(f"{table.title}. {table.caption}")
    lines = [
        r"% \usepackage{amssymb,booktabs,graphicx}",
        *(f"% made by: {command}" for command in table.commands),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{table.key}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * len(table.head)}}}",
        r"\toprule",
        " & ".join(["", *map(escape_latex, table.head)]) + r" \\",
        r"\midrule",
        space.join(rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
