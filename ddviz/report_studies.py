"""The report's figures 7 and 8, from folders of the two ablations: numbers of steps, and grid search."""

from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from ddviz import comparison, grid_plots, grids, iteration_plots, iterations
from ddviz.datasets import user_path
from ddviz.errors import InputError
from ddviz.report import JOB, read_job

Shown = tuple[str, dict[str, go.Figure]]
"""Markdown with a table a study, and figures by the names of their files."""


def studies(named: str, results: str, notebook: str) -> list[Path]:
    """Folders of an ablation's runs: the one that is named, else all that a job.json below `results` says are some."""
    if named:
        return [user_path(named)]
    jobs = sorted(user_path(results).rglob(JOB))
    return [job.parent for job in jobs if read_job(job).get("notebook") == notebook]


def figure_7(folders: Sequence[Path]) -> Shown:
    """Varying K: a table; for each network certified accuracy at every K, and the gain against K."""

    def one(folder: Path) -> Shown:
        ladders, figures = iterations.read(folder), {}
        for ladder in ladders:
            unit = comparison.unit([ladder.runs[0].run])
            figures[f"figure7-{ladder.network}-accuracy"] = iteration_plots.curves(ladder, unit=unit)
            figures[f"figure7-{ladder.network}-gain"] = iteration_plots.saturation(ladder, unit=unit)
        return iterations.table(ladders), figures

    return _each(folders, one)


def figure_8(folders: Sequence[Path]) -> Shown:
    """Grid search: a table; for each family of networks certified accuracy, and ACR against evaluations."""

    def one(folder: Path) -> Shown:
        solved, figures = grids.read(folder), {}
        for family in dict.fromkeys(map(grids.family, solved)):
            own = [one for one in solved if grids.family(one) == family]
            most = max(one.budget for one in own)
            unit = comparison.unit([own[0].run])
            at_most = [one for one in own if one.budget in (0, most)]
            figures[f"figure8-{family}-accuracy"] = grid_plots.curves(at_most, unit=unit)
            figures[f"figure8-{family}-evaluations"] = grid_plots.efforts(own, unit=unit)
        return grids.table(solved), figures

    return _each(folders, one)


def _each(folders: Sequence[Path], show: Callable[[Path], Shown]) -> Shown:
    """All studies, by their folders where there are several; one without finished runs is told, not shown."""
    parts, figures = [], {}
    for folder in folders:
        several = len(folders) > 1
        try:
            said, own = show(folder)
        except InputError as error:
            said, own = f"Left out: {error}", {}
        parts.append(f"**{folder.name}**\n\n{said}" if several else said)
        figures |= {f"{name}-{folder.name}" if several else name: figure for name, figure in own.items()}
    return "\n\n".join(parts), figures
