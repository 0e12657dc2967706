"""Figures of the report. Nothing here computes a result.

Colour tells how the noise scale was chosen, fixed and data-dependent as everywhere; training with one scale an image
(DS2) has a hue of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ddviz import analysis, compare_scenes, comparison, paper, plots, scenes
from ddviz.plots import OTHERS, STYLES, Style
from ddviz.report_tables import Section, several

_COLUMNS = 4
_HEIGHT = 330  # pixels of a row of panels


def style(training: str, solver: str, others: str = "") -> Style:
    """How a row of the tables looks in every figure, by what is known of its runs; solver is "" for fixed sigma."""
    if solver and training == "ds2" and not others:
        return OTHERS[0]
    look = plots.SOLVERS.get(others) or STYLES["data-dependent" if solver else "fixed"]
    return replace(look, dash="longdashdot") if training == "ds2" else look


_PAPER = {"": style("fs", ""), "DS": style("fs", "ascent"), "DS2": style("ds2", "ascent")}


def curves(section: Section) -> go.Figure:
    """Certified accuracy against radius: a panel a noise scale, the envelope over them last, with the paper's points.

    The bands are Wilson's intervals of 95 %; in the last panel that of the run which is best at each radius. One noise
    scale is its own envelope.
    """
    several = section.sigmas if len(section.sigmas) > 1 else []
    titles = [f"{section.scale} = {sigma:g}" for sigma in several]
    titles += [f"envelope: best over {section.scale}" if several else f"{section.scale} = {section.sigmas[0]:g} alone"]
    shown = [[sigma] for sigma in several] + [section.sigmas]
    figure = _panels([f"{title}<br>{_made(section, own)}" for title, own in zip(titles, shown, strict=True)])
    radii = analysis.radius_grid([run.records for run in section.runs])
    for name, look in {run.name: style(run.training, run.solver, run.others) for run in section.runs}.items():
        for place, sigmas in enumerate(shown):
            runs = [records for sigma, records in section.of(name).items() if sigma in sigmas]
            if not runs:
                continue
            share, low, high = (100 * side for side in analysis.envelope_band(runs, radii))
            fill = scenes.faded(look.color, 0.15)
            edges = (radii.tolist(), low.tolist(), high.tolist())
            band = scenes.band(*edges, fill, showlegend=False, legendgroup=name)
            figure.add_trace(go.Scatter(band), **_at(place))
            figure.add_scatter(
                x=radii,
                y=share,
                name=name,
                legendgroup=name,
                showlegend=place == len(several),
                line={"color": look.color, "dash": look.dash, "width": 2.5, "shape": "vh"},
                customdata=np.stack([low, high], 1),
                hovertemplate=f"{name}: %{{y:.1f}} % (%{{customdata[0]:.1f}} to %{{customdata[1]:.1f}}) "
                "certified at radius %{x:.3f}<extra></extra>",
                **_at(place),
            )
    for name, row in section.published.items():
        look = _PAPER[name.partition("-")[2]]
        figure.add_scatter(
            x=row.radii,
            y=row.accuracy,
            mode="markers",
            name=f"{name}, the paper",
            cliponaxis=False,
            marker={"color": look.color, "symbol": f"{look.symbol}-open", "size": 8, "line": {"width": 1.5}},
            hovertemplate=f"{name}, the paper's table {row.table}: %{{y}} % at radius %{{x}}<extra></extra>",
            **_at(len(several)),
        )
    number = paper.FIGURES.get(section.method) if section.published else None
    prefix = f"Figure {number}: certified" if number else "Certified"
    figure.update_layout(title_text=f"{prefix} accuracy, {section.method} on {section.where}, with 95 % bands")
    end = max(radii[-1], 1.02 * max((row.radii[-1] for row in section.published.values()), default=0.0))
    figure.update_xaxes(title_text=f"radius r ({section.first.norm}, [0,1]-pixel units)", range=[0, end])
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="certified accuracy (%)", col=1)
    return figure


def certainty(section: Section) -> go.Figure:
    """How sure the right answers are: the share of images that are right with a bound on p_A of at least p.

    A panel a noise scale; the legend tells the ACR in each, from left to right.
    """
    figure = _panels([f"{section.scale} = {sigma:g}<br>{_made(section, [sigma])}" for sigma in section.sigmas])
    acrs = {(run.name, run.sigma): f"{analysis.average_certified_radius(run.records):.3f}" for run in section.runs}
    shown, last = set(), -1.0
    for run in section.runs:
        look = style(run.training, run.solver, run.others)
        p, share = comparison.shares_at_least(np.array([r.p_lower if r.correct else 0.0 for r in run.records]))
        x = np.maximum(1 - p, 1e-12)  # a logarithm has no 0
        last = min(last, float(np.log10(x[-1])))
        figure.add_scatter(
            x=x,
            y=100 * share,
            name=f"{run.name}: ACR {', '.join(acrs.get((run.name, sigma), '-') for sigma in section.sigmas)}",
            legendgroup=run.name,
            showlegend=run.name not in shown,
            line={"color": look.color, "dash": look.dash, "width": 2.5, "shape": "vh"},
            customdata=p,
            hovertemplate=f"{run.name}: %{{y:.1f}} % are right with p_A of at least %{{customdata:.4f}}<extra></extra>",
            **_at(section.sigmas.index(run.sigma)),
        )
        shown.add(run.name)
    figure.update_layout(title_text=f"Lower bound on p_A of right answers: {section.method} on {section.where}")
    figure.update_xaxes(compare_scenes.p_axis(float(np.log10(0.5)), last, (1,) if last < -2.5 else (1, 2, 5)))
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="right, p_A at least p (% of images)", col=1)
    return figure


def _panels(titles: Sequence[str]) -> go.Figure:
    rows = -(-len(titles) // _COLUMNS)
    figure = make_subplots(
        rows,
        min(_COLUMNS, len(titles)),
        subplot_titles=titles,
        shared_yaxes="all",  # type: ignore[arg-type]
        horizontal_spacing=0.03,
        vertical_spacing=0.3 / rows,
    )
    figure.update_annotations(font_size=12)
    figure.update_layout(
        template="plotly_white",
        legend={"orientation": "h", "yanchor": "top", "y": -60 / (_HEIGHT * rows), "x": 0},
        title={"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 20}},
        margin={"l": 60, "r": 20, "t": 100, "b": 120},
        height=_HEIGHT * rows + 230,
    )
    return figure


def _at(place: int) -> dict[str, Any]:
    """Row and column of a panel, which count from 1."""
    return {"row": place // _COLUMNS + 1, "col": place % _COLUMNS + 1}


def _made(section: Section, sigmas: Sequence[float]) -> str:
    """Samples and images of the runs at some noise scales."""
    runs = [run for run in section.runs if run.sigma in sigmas]
    samples, images = several(f"{run.n:,}" for run in runs), several(f"{len(run.records):,}" for run in runs)
    return f"N = {samples}; {images} images"
