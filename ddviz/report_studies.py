"""The report's figures 7 and 8, from folders of the two ablations: numbers of steps, and grid search."""

import json
from pathlib import Path

import plotly.graph_objects as go

from ddviz import grid_plots, grids, iteration_plots, iterations
from ddviz.ablation import Solved
from ddviz.datasets import user_path
from ddviz.report import JOB


def studies(named: str, results: str, notebook: str) -> list[Path]:
    """Folders of an ablation's runs: the one that is named, else all that a job.json below `results` says are some."""
    if named:
        return [user_path(named)]
    jobs = sorted(user_path(results).rglob(JOB))
    return [job.parent for job in jobs if json.loads(job.read_text(encoding="utf-8")).get("notebook") == notebook]


def figure_7(folders: list[Path]) -> tuple[str, dict[str, go.Figure]]:
    """Varying K: a table in Markdown; for each network certified accuracy at every K, and the gain against K."""
    ladders = [ladder for folder in folders for ladder in iterations.read(folder)]
    figures = {}
    for ladder in ladders:
        unit = _unit(ladder.runs[0])
        figures[f"figure7-{ladder.network}-accuracy"] = iteration_plots.curves(ladder, unit=unit)
        figures[f"figure7-{ladder.network}-gain"] = iteration_plots.saturation(ladder, unit=unit)
    return iterations.table(ladders) if ladders else "", figures


def figure_8(folders: list[Path]) -> tuple[str, dict[str, go.Figure]]:
    """Grid search: a table in Markdown; for each family of networks certified accuracy, and ACR against evaluations."""
    solved = [one for folder in folders for one in grids.read(folder)]
    figures = {}
    for family in dict.fromkeys(map(grids.family, solved)):
        own = [one for one in solved if grids.family(one) == family]
        most = max(one.budget for one in own)
        at_most = [one for one in own if one.budget in (0, most)]
        figures[f"figure8-{family}-accuracy"] = grid_plots.curves(at_most, unit=_unit(own[0]))
        figures[f"figure8-{family}-evaluations"] = grid_plots.efforts(own, unit=_unit(own[0]))
    return grids.table(solved) if solved else "", figures


def _unit(one: Solved) -> str:
    return f"{one.run.config['norm']}, [0,1]-pixel units"
