"""The house: imports only go down, modules stay short, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddviz

FOLDER = Path(ddviz.__file__).parent
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}

# Lowest first: a module imports only from those before it. A new module takes its place here.
FLOORS = """
    errors tables smoothing noise networks datasets settings schedules jobs figureview neighbours
    records checkpoints models runfolder trainfolder
    inference backends sampling sigma analysis paper batches objectives
    budget certify memory recipe trainer training plots live
    config bench experiment exploration comparison report ablation iterations grids plan estimate overview driver
    plane scenes plane_scenes compare_scenes ablation_plots iteration_plots grid_plots widgets explorer tour comparer
    report_tables report_plots report_studies exports
    __init__
    __main__
""".split()


def imported(source: str) -> set[str]:
    """Modules of the package that a source imports, wherever in it; __init__ stands for the package itself."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["ddviz" if node.level else "", node.module]))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    inside = [name.split(".") for name in names if name.split(".")[0] == "ddviz"]
    return {parts[1] if len(parts) > 1 and parts[1] in SOURCES else "__init__" for parts in inside}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import ddviz.memory as m, os", {"memory"}),
        ("from ddviz.records import Record, column", {"records"}),
        ("from ddviz import datasets, models", {"datasets", "models"}),
        ("def f():\n    from .sigma import Grid", {"sigma"}),
        ("if x:\n    from . import noise", {"noise"}),
        ("import ddviz", {"__init__"}),
        ("from ddviz import Memory", {"__init__"}),
        ("import ddvizard.memory\nfrom numpy import typing", set()),
    ],
)
def test_imports_are_found_in_every_form(source, modules):
    assert imported(source) == modules


def test_every_module_has_its_place():
    assert sorted(FLOORS) == sorted(SOURCES)
    assert not [path for path in FOLDER.rglob("*.py") if path.parent != FOLDER]


@pytest.mark.parametrize("module", FLOORS)
def test_imports_only_go_down(module):
    below = set(FLOORS[: FLOORS.index(module)])
    assert imported(SOURCES[module]) <= below


@pytest.mark.parametrize("module", SOURCES)
def test_modules_are_short_and_say_what_they_are(module):
    assert len(SOURCES[module].splitlines()) <= 350
    assert ast.get_docstring(ast.parse(SOURCES[module]))


def test_all_names_what_exists():
    assert len(set(ddviz.__all__)) == len(ddviz.__all__) > 20
    assert [name for name in ddviz.__all__ if not hasattr(ddviz, name)] == []


def test_importing_the_package_loads_no_plotting_and_no_notebook():
    """A fresh interpreter; ddviz.plots afterwards shows that the question can be answered with yes."""
    code = (
        "import sys, ddviz\n"
        "print(*(name for name in ('plotly', 'ipywidgets', 'IPython') if name in sys.modules))\n"
        "import ddviz.plots\n"
        "print('plotly' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n")[:2] == ["", "True"]
