"""Files of tables and figures: the same values give the same files."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from ddviz.datasets import user_path
from ddviz.records import write_atomically
from ddviz.tables import Table, to_csv, to_latex, to_markdown

FORMS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
"""Forms of a table by the ending of its file."""

WIDTH = 1100
"""Width of figures in pixels; PNG files have twice as many."""

_PAGE: dict[str, Any] = {"include_plotlyjs": "directory", "default_width": f"{WIDTH}px"}
_UID = re.compile(rb"defs-([0-9a-f]{6})")  # drawn anew for each picture


def write(folder: str, about: str, tables: Sequence[Table], figures: Mapping[str, go.Figure]) -> str:
    """Write tables as Markdown, CSV and LaTeX, figures as HTML and, where kaleido and a browser are there, SVG and PNG.

    HTML files share one plotly.js beside them and need no network. about: Markdown for the about.md beside them, since
    tables without their circumstances mislead. Returns one line of what was done.

    Raises: ResourceError where the folder cannot be written.
    """
    if not folder:
        return "No `export` folder is named: nothing was written."
    root = user_path(folder)
    write_atomically(root / "about.md", f"{about}\n")
    for table in tables:
        for ending, form in FORMS.items():
            write_atomically(root / f"{table.key}.{ending}", form(table))
    if figures:
        write_atomically(root / "plotly.min.js", get_plotlyjs())
    figures = {name: _named(figure) for name, figure in figures.items()}
    for name, figure in figures.items():
        page = plotly.io.to_html(figure, **_PAGE, div_id=name)
        write_atomically(root / f"{name}.html", page)
    done = f"{len(tables)} tables and {len(figures)} figures are in `{folder}`"
    if missing := _write_pictures(root, figures):
        return f"{done}, figures as HTML alone: {missing}"
    return f"{done}."


def _write_pictures(root: Path, figures: Mapping[str, go.Figure]) -> str:
    """Write SVG and PNG files, all by one browser, or say what is missing and what to install."""
    try:
        from kaleido import write_fig_from_object_sync
    except ImportError:
        return "kaleido is not installed. For SVG and PNG: `pip install 'ddviz[figures]'`."
    with TemporaryDirectory() as beside:
        paths = {(name, ending): Path(beside, f"{name}.{ending}") for name in figures for ending in ("svg", "png")}
        pictures = [
            {
                "fig": figures[name],
                "path": path,
                "opts": {"format": ending, "width": WIDTH, "height": figures[name].layout.height, "scale": 2},
            }
            for (name, ending), path in paths.items()
        ]
        try:
            write_fig_from_object_sync(pictures, cancel_on_error=True)
        except RuntimeError as error:  # no browser, or one that does not start
            return f"kaleido has no browser ({type(error).__name__}). For SVG and PNG: `kaleido_get_chrome`."
        for path in paths.values():
            content = path.read_bytes()
            if path.suffix == ".svg" and (drawn := _UID.search(content)):
                content = content.replace(drawn[1], b"figure")
            write_atomically(root / path.name, content)
    return ""


def _named(figure: go.Figure) -> go.Figure:
    """A copy whose traces have names of their own, which are drawn anew for each picture otherwise."""
    copy = go.Figure(figure)
    for position, trace in enumerate(copy.data):
        trace.uid = str(position)  # type: ignore[attr-defined]
    return copy
