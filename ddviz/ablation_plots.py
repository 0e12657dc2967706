"""Figures of solvers side by side. Nothing here computes a result; colours and symbols are those of `plots`."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ddviz import plots
from ddviz.ablation import BASE, Solved
from ddviz.plots import GREY, STYLES
from ddviz.records import Record

_SPREAD = 0.6  # of a network's row, over which its solvers are spread
_NOTE = "bars: two standard errors to each side"


def gains(solved: Sequence[Solved], *, unit: str) -> go.Figure:
    """What each solver gains over fixed sigma on each network, a row a network."""
    known = [one for one in solved if one.gain]
    networks, names = list(dict.fromkeys(one.network for one in known)), list(dict.fromkeys(one.name for one in known))
    figure = plots.empty(f"Gain over fixed sigma ({_NOTE})", f"mean gain of an image's radius ({unit})", "network")
    for position, name in enumerate(names):
        own = [one for one in known if one.name == name]
        offset = _SPREAD * (position / max(1, len(names) - 1) - 0.5) if len(names) > 1 else 0.0
        x, y = [one.gain.mean for one in own if one.gain], [networks.index(one.network) + offset for one in own]
        figure.add_trace(_points(own, name, position, x, y, axis="error_x"))
    figure.add_vline(
        x=0, line={"color": STYLES[BASE].color}, annotation_text="fixed", annotation_font_color=STYLES[BASE].color
    )
    figure.update_yaxes(
        tickvals=list(range(len(networks))), ticktext=networks, range=[len(networks) - 0.5, -0.5], automargin=True
    )
    figure.update_layout(height=240 + 80 * len(networks), xaxis_rangemode="normal")
    return figure


def budgets(solved: Sequence[Solved], *, unit: str) -> go.Figure:
    """What each solver gains over fixed sigma against the network evaluations it made, a panel a network."""
    known = [one for one in solved if one.gain]
    networks = list(dict.fromkeys(one.network for one in known))
    solvers = list(dict.fromkeys(one.solver for one in known))
    figure = make_subplots(len(networks), 1, shared_xaxes=True, subplot_titles=networks, y_title=f"mean gain ({unit})")
    for row, network in enumerate(networks, start=1):
        for position, solver in enumerate(solvers):
            own = [one for one in known if (one.network, one.solver) == (network, solver)]
            own.sort(key=lambda one: one.evaluations)
            x, y = [one.evaluations for one in own], [one.gain.mean for one in own if one.gain]
            points = _points(own, solver, position, x, y, axis="error_y", mode="lines+markers")
            figure.add_trace(points.update(legendgroup=solver, showlegend=row == 1), row=row, col=1)
    figure.add_hline(y=0, line={"color": STYLES[BASE].color})
    figure.update_xaxes(type="log")
    figure.update_xaxes(title_text="network evaluations an image to choose sigma_x", row=len(networks))
    figure.update_layout(
        title={"text": f"Gain over fixed sigma, the line at 0, against effort ({_NOTE})"},
        template="plotly_white",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1 + 0.1 / len(networks), "x": 0},
        margin={"l": 80, "r": 20, "t": 110, "b": 50},
        height=160 + 260 * len(networks),
    )
    return figure


def _points(
    own: Sequence[Solved],
    name: str,
    position: int,
    x: Sequence[float],
    y: Sequence[float],
    *,
    axis: str,
    mode: str = "markers",
) -> go.Scatter:
    look = plots.style(name, position)
    told = [
        f"{one.name} on {one.network}<br>gain {one.gain}, one standard error, {one.gain.images} images<br>"
        f"{one.evaluations:,.0f} evaluations, {1000 * one.seconds:,.1f} ms an image"
        for one in own
        if one.gain
    ]
    return go.Scatter(
        x=x,
        y=y,
        mode=mode,
        name=name,
        marker={"color": look.color, "symbol": look.symbol, "size": 11},
        line={"color": look.color, "dash": look.dash, "width": 2},
        text=told,
        hovertemplate="%{text}<extra></extra>",
        **{axis: {"array": [2 * one.gain.error for one in own if one.gain], "color": look.color}},
    )


def scales(runs: Mapping[str, Sequence[Record]], against: str, sigma_0: float) -> go.Figure:
    """The noise scale that each run chose for each image, against that of the run called `against`."""
    figure = plots.empty(
        f"sigma_x of each image, against {against}'s",
        f"sigma_x of {against} ([0,1]-pixel units)",
        "sigma_x ([0,1]-pixel units)",
    )
    base = {record.idx: record.sigma for record in runs[against]}
    for position, (name, records) in enumerate(runs.items()):
        if name == against:
            continue
        shared = [record for record in records if record.idx in base]
        look = plots.style(name, position)
        figure.add_scatter(
            x=[base[record.idx] for record in shared],
            y=[record.sigma for record in shared],
            mode="markers",
            name=name,
            marker={"color": look.color, "symbol": look.symbol, "size": 8, "opacity": 0.7},
            customdata=[[record.idx, record.certified] for record in shared],
            hovertemplate=f"image %{{customdata[0]}}<br>{against} %{{x:.3f}}, {name} %{{y:.3f}}<br>"
            f"radius by {name} %{{customdata[1]:.3f}} (-1: wrong)<extra></extra>",
        )
    scale = [sigma_0, *(record.sigma for records in runs.values() for record in records)]
    ends = [0.9 * min(scale), 1.1 * max(scale)]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="same", line={"color": GREY, "dash": "dot"}, hoverinfo="skip")
    figure.add_scatter(
        x=[sigma_0, sigma_0, None, *ends],
        y=[*ends, None, sigma_0, sigma_0],
        mode="lines",
        name=f"fixed sigma = {sigma_0:g}",
        line={"color": STYLES[BASE].color, "width": 1},
        hoverinfo="skip",
    )
    octaves = [sigma_0 * 2.0**octave for octave in range(-6, 7)]
    ticks = {"tickvals": octaves, "ticktext": [f"{tick:.3g}" for tick in octaves]}
    figure.update_xaxes(type="log", range=np.log10(ends).tolist(), **ticks)
    figure.update_yaxes(type="log", range=np.log10(ends).tolist(), **ticks)
    figure.update_layout(height=520)
    return figure
