"""Figures of grid search beside Algorithm 1 and halving. Nothing here computes a result; all grids are of one hue."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ddviz import analysis, grids, plots
from ddviz.ablation import BASE, Solved
from ddviz.plots import Style

_APART = 0.015  # of the logarithm


def looks(solved: Sequence[Solved]) -> dict[str, Style]:
    """The look of each search, by the name of its folder without the evaluations."""
    names = list(dict.fromkeys(one.solver for one in solved))
    of_grids = [name for name in names if name.startswith(grids.GRID)]
    shades = dict(zip(of_grids, plots.shades(plots.SOLVERS["grid"], len(of_grids)), strict=True))
    return {name: shades.get(name) or plots.style(name, place) for place, name in enumerate(names)}


def curves(solved: Sequence[Solved], *, unit: str) -> go.Figure:
    """Certified accuracy of each search, a panel a sigma, and the best over sigma at each radius.

    solved: of one family of networks, with one number of evaluations.
    """
    panels, wear = grids.by_sigma(solved), looks(solved)
    radii = analysis.radius_grid([one.records for one in solved])
    titles = [f"sigma {sigma:g}" for sigma in panels]
    titles += ["best over sigma, at each radius"] * (len(panels) > 1)
    columns = len(titles) if len(titles) <= 3 else 2
    rows = -(-len(titles) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.28 / rows
    )
    lines = [
        {name: analysis.certified_accuracy(one.records, radii) for name, one in panel.items()}
        for panel in panels.values()
    ]
    if len(panels) > 1:
        runs = {name: [panel[name].records for panel in panels.values() if name in panel] for name in wear}
        lines.append({name: analysis.envelope(found, radii) for name, found in runs.items()})
    seen = set()
    for place, panel in enumerate(lines):
        row, col = divmod(place, columns)
        for name, shares in panel.items():
            line = plots.accuracy_line(grids.label(name), radii, shares, wear[name])
            figure.add_trace(line.update(legendgroup=name, showlegend=name not in seen), row=row + 1, col=col + 1)
            seen.add(name)
        figure.update_xaxes(title_text=f"radius r ({unit})", row=row + 1, col=col + 1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="certified accuracy (%)", col=1)
    return _dressed(figure, "Certified accuracy", rows, solved)


def efforts(solved: Sequence[Solved], *, unit: str) -> go.Figure:
    """ACR of each search against its evaluations and gradients, a panel a network; fixed sigma is the line.

    Searches of about the same effort are moved apart by a few percent; their hover text has the numbers.
    """
    wear, networks = looks(solved), list(dict.fromkeys(one.network for one in solved))
    columns, apart = min(3, len(networks)), np.exp(_APART * (np.arange(len(wear)) - len(wear) / 2))
    moved = dict(zip(wear, apart, strict=True))
    ticks = sorted({one.budget for one in solved if one.budget}) or [1]
    ends = [ticks[0] / 1.3, ticks[-1] * 1.3]
    rows = -(-len(networks) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=networks, horizontal_spacing=0.08, vertical_spacing=0.28 / rows
    )
    seen = set()
    for place, network in enumerate(networks):
        row, col = place // columns + 1, place % columns + 1
        own = [one for one in solved if one.network == network]
        for name in dict.fromkeys(one.solver for one in own):
            points = sorted((one for one in own if one.solver == name), key=lambda one: one.effort)
            look, acr = wear[name], [analysis.average_certified_radius(one.records) for one in points]
            line = {"color": look.color, "dash": look.dash, "width": 2}
            shared = {"name": grids.label(name), "legendgroup": name, "showlegend": name not in seen, "line": line}
            seen.add(name)
            if name == BASE:
                figure.add_scatter(x=ends, y=acr * 2, mode="lines", hoverinfo="y+name", **shared, row=row, col=col)
                continue
            figure.add_scatter(
                x=[one.effort * moved[name] for one in points],
                y=acr,
                error_y={"array": [2 * one.gain.error if one.gain else 0 for one in points], "color": look.color},
                mode="lines+markers",
                marker={"color": look.color, "symbol": look.symbol, "size": 11},
                text=[
                    f"{grids.label(name)} at sigma {one.sigma:g}<br>{one.evaluations:,.0f} evaluations, "
                    f"{one.gradients:,} gradients<br>gain over fixed {one.gain}, one standard error"
                    for one in points
                ],
                hovertemplate="%{text}<br>ACR %{y:.3f}<extra></extra>",
                **shared,
                row=row,
                col=col,
            )
        figure.update_xaxes(title_text="evaluations and gradients an image", row=row, col=col)
    figure.update_xaxes(type="log", tickvals=ticks, range=np.log10(ends).tolist())
    figure.update_yaxes(title_text=f"ACR ({unit})", col=1)
    title = "ACR against effort, the line: fixed sigma (bars: two standard errors of the gain)"
    return _dressed(figure, title, rows, solved)


def _dressed(figure: go.Figure, title: str, rows: int, solved: Sequence[Solved]) -> go.Figure:
    height = 160 + 300 * rows
    return figure.update_layout(
        title={"text": f"{title}, {grids.family(solved[0])}"},
        template="plotly_white",
        legend={"orientation": "h", "yanchor": "top", "y": -80 / (height - 180), "x": 0},
        margin={"l": 70, "r": 20, "t": 80, "b": 110},
        height=height,
    )
