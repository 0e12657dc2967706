"""Files of tables and figures: all forms, twice the same, with and without what draws pictures."""

import shutil
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest

from ddviz import exports
from ddviz.errors import ResourceError
from ddviz.tables import Cell, Row, Table, to_latex

TABLE = Table("gains", "Gains", "All.", ("0",), (), (Row("A", (Cell(1.0, 0.5, 2.0),)),))
FIGURE = go.Figure(go.Scatter(x=[0, 1], y=[1, 2], name="a"), layout={"height": 300})


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_no_folder_no_files():
    assert "nothing was written" in exports.write("", "", [TABLE], {"curves": FIGURE})


def test_without_kaleido_there_is_html_and_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    before = FIGURE.to_dict()
    told = exports.write(str(tmp_path / "new"), "# About", [TABLE], {"curves": FIGURE})
    assert "\n" not in told and "1 tables and 1 figures" in told and "pip install 'ddviz[figures]'" in told
    files = written(tmp_path / "new")
    assert sorted(files) == ["about.md", "curves.html", "gains.csv", "gains.md", "gains.tex", "plotly.min.js"]
    assert files["about.md"] == b"# About\n"
    assert files["gains.tex"].decode() == to_latex(TABLE)
    page = files["curves.html"].decode()
    assert 'src="plotly.min.js"' in page and "https://cdn" not in page and FIGURE.to_dict() == before


def test_without_a_browser_the_line_says_so(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no browser"))
    told = exports.write(str(tmp_path / "new"), "# About", [], {"curves": FIGURE})
    assert "\n" not in told and "kaleido has no browser" in told and "kaleido_get_chrome" in told
    assert sorted(written(tmp_path / "new")) == ["about.md", "curves.html", "plotly.min.js"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium on the PATH")
def test_the_same_values_give_the_same_files(tmp_path):
    pytest.importorskip("kaleido")
    for name in ("a", "b"):
        assert exports.write(str(tmp_path / name), "", [TABLE], {"curves": FIGURE}).endswith(f"in `{tmp_path / name}`.")
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert {"curves.svg", "curves.png"} < set(first) and first == second
    assert b"<svg" in first["curves.svg"] and first["curves.png"].startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*about\.md"):
        exports.write(str(tmp_path / "file" / "below"), "", [TABLE], {})
