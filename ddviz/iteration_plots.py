"""Figures of K, the steps of Algorithm 1. Nothing here computes a result; the darker a shade, the more steps."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ddviz import plots
from ddviz.iterations import NEAR, Ladder
from ddviz.plots import STYLES

_FIXED, _FOUND = STYLES["fixed"], STYLES["data-dependent"]
_BARS = "bars: two standard errors to each side"


def trails(ladder: Ladder, images: Sequence[int], *, scale_name: str) -> go.Figure:
    """sigma^k of some images along Algorithm 1, with the sigma_x that is certified at each K."""
    figure = plots.empty(
        f"The way of {len(images)} images through Algorithm 1", "step k", f"{scale_name}^k ([0,1]-pixel units)"
    )
    fixed = {record.idx: record.certified for record in ladder.runs[0].records}
    certified = {k: {record.idx: record for record in one.records} for k, one in ladder.runs.items() if k}
    for index, look in zip(images, plots.shades(_FOUND, len(images)), strict=True):
        name = f"image {index} ({_said(fixed[index])})"
        figure.add_scatter(
            y=ladder.paths[index].sigma,
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": look.color, "width": 1.5},
            customdata=ladder.paths[index].radius,
            hovertemplate=f"{name}<br>k = %{{x}}: %{{y:.3f}}, radius there about %{{customdata:.3f}}<extra></extra>",
        )
        chosen = [records[index] for records in certified.values()]
        figure.add_scatter(
            x=list(certified),
            y=[record.sigma for record in chosen],
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=False,
            marker={"color": look.color, "symbol": look.symbol, "size": 9},
            text=[_said(record.certified) for record in chosen],
            hovertemplate=f"{name}<br>K = %{{x}}: certified at %{{y:.3f}}, radius %{{text}}<extra></extra>",
        )
    sigma_0 = ladder.runs[0].sigma
    figure.add_hline(
        y=sigma_0,
        line={"color": _FIXED.color, "width": 2},
        annotation_text=f"fixed {scale_name} = {sigma_0:g}",
        annotation_position="bottom right",
        annotation_font_color=_FIXED.color,
    )
    figure.update_layout(
        legend={
            "orientation": "v",
            "x": 1.02,
            "y": 1,
            "xanchor": "left",
            "yanchor": "top",
            "title": {"text": "image (its radius<br>with fixed sigma)"},
        },
        height=460,
    )
    return figure


def _said(certified: float) -> str:
    return f"{certified:.3f}" if certified >= 0 else "wrong"


def radii(ladder: Ladder, *, unit: str) -> go.Figure:
    """Certified radius of each image against K, fixed sigma at 0, and their mean."""
    ks, count = list(ladder.runs), len(ladder.indices)
    figure = plots.empty(
        f"Each image's radius against K ({count} images)", "K, steps of Algorithm 1", f"certified radius ({unit})"
    )
    lines = [(k, radius, index) for index, own in zip(ladder.indices, ladder.radii.T, strict=True) for k, radius in
             [*zip(ks, own, strict=True), (None, None)]]  # fmt: skip
    figure.add_scatter(
        x=[k for k, _, _ in lines],
        y=[radius for _, radius, _ in lines],
        mode="lines",
        name="one image (0: wrong or abstains)",
        line={"color": _FOUND.color, "width": 1},
        opacity=max(0.08, min(0.6, 20 / count)),
        customdata=[index for _, _, index in lines],
        hovertemplate="image %{customdata}<br>K = %{x}: radius %{y:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=ks,
        y=ladder.radii.mean(1),
        mode="lines+markers",
        name="mean (ACR)",
        line={"color": plots.shades(_FOUND, 2)[-1].color, "width": 4},
        marker={"symbol": _FOUND.symbol, "size": 10},
        cliponaxis=False,
        hovertemplate="K = %{x}: ACR %{y:.3f}<extra></extra>",
    )
    return figure


def curves(ladder: Ladder, *, unit: str) -> go.Figure:
    """Certified accuracy against radius, a line a K."""
    names = {k: f"K = {k}" if k else "fixed" for k in ladder.runs}
    shades = dict(zip([k for k in names if k], plots.shades(_FOUND, len(names) - 1), strict=True))
    figure = plots.certified_accuracy(
        {name: ladder.runs[k].records for k, name in names.items()},
        unit=unit,
        title=f"Certified accuracy by K, {ladder.network}",
        looks={names[k]: look for k, look in shades.items()},
    )
    return figure.update_layout(
        legend={"orientation": "v", "x": 1, "y": 1, "xanchor": "right", "yanchor": "top"}, height=460
    )


def saturation(ladder: Ladder, *, unit: str) -> go.Figure:
    """Mean gain over fixed sigma against K, and how much of the largest K's gain that is."""
    gains, shares = ladder.gains, ladder.shares
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.6, 0.4])
    look = {
        "line": {"color": _FOUND.color, "width": 2.5},
        "marker": {"symbol": _FOUND.symbol, "size": 10},
        "cliponaxis": False,
    }
    figure.add_scatter(
        x=list(gains),
        y=[gain.mean for gain in gains.values()],
        error_y={"array": [2 * gain.error for gain in gains.values()], "color": _FOUND.color},
        mode="lines+markers",
        text=[f"{gain}, one standard error, {gain.images} images" for gain in gains.values()],
        hovertemplate="K = %{x}: gain %{text}<extra></extra>",
        row=1,
        col=1,
        **look,
    )
    figure.add_scatter(
        x=list(shares),
        y=[100 * share for share in shares.values()],
        mode="lines+markers",
        hovertemplate=f"K = %{{x}}: %{{y:.0f}} % of the gain of K = {ladder.last}<extra></extra>",
        row=2,
        col=1,
        **look,
    )
    figure.add_hline(y=0, line={"color": _FIXED.color, "width": 2}, row=1, col=1)  # type: ignore[arg-type]
    figure.add_hline(y=100, line={"color": plots.GREY, "dash": "dot"}, row=2, col=1)  # type: ignore[arg-type]
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(title_text="K, steps of Algorithm 1", row=2)
    figure.update_yaxes(title_text=f"mean gain<br>({unit})", row=1)
    figure.update_yaxes(title_text=f"of the gain of<br>K = {ladder.last} (%)", rangemode="tozero", row=2)
    figure.update_layout(
        title={"text": f"What K buys: gain over fixed sigma, the line at 0 ({_BARS})"},
        template="plotly_white",
        showlegend=False,
        margin={"l": 80, "r": 20, "t": 80, "b": 50},
        height=520,
    )
    return figure


def winners(ladder: Ladder, *, unit: str) -> go.Figure:
    """Gain of the largest K for each image, against its radius and the bound on p_A with fixed sigma."""
    fixed = {record.idx: record for record in ladder.runs[0].records}
    records = [fixed[index] for index in ladder.indices]
    gained = ladder.radii[-1] - ladder.radii[0]
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.03)
    for right in (True, False):
        chosen = [place for place, record in enumerate(records) if bool(record.correct) == right]
        look = _FOUND if right else plots.OTHERS[1]
        for col, values in enumerate((ladder.radii[0], [record.p_lower for record in records]), start=1):
            figure.add_scatter(
                x=[values[place] for place in chosen],
                y=gained[chosen],
                mode="markers",
                name="right with fixed sigma" if right else "wrong or abstains with fixed sigma",
                legendgroup=str(right),
                showlegend=col == 1,
                marker={"color": look.color, "symbol": look.symbol, "size": 8, "opacity": 0.75},
                customdata=[records[place].idx for place in chosen],
                hovertemplate="image %{customdata}<br>%{x:.3f}: gain %{y:+.3f}<extra></extra>",
                row=1,
                col=col,
            )
    figure.add_hline(y=0, line={"color": _FIXED.color, "width": 2})
    figure.update_xaxes(title_text=f"radius with fixed sigma ({unit})", rangemode="tozero", col=1)
    figure.update_xaxes(title_text="lower bound on p_A with fixed sigma", col=2)
    figure.update_yaxes(title_text=f"gain of K = {ladder.last} ({unit})", col=1)
    figure.update_layout(
        title={"text": f"For which images: gain of K = {ladder.last} ({len(records)} images)"},
        template="plotly_white",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        height=420,
    )
    return figure


def arrivals(ladder: Ladder) -> go.Figure:
    """Share of the images that have reached most of their best radius by each K."""
    arrived = ladder.arrived
    figure = plots.empty(
        f"By which K images have {100 * NEAR:.0f} % of their best radius", "K, steps of Algorithm 1", "images (%)"
    )
    figure.add_scatter(
        x=list(arrived),
        y=[100 * share for share in arrived.values()],
        mode="lines+markers",
        line={"color": _FOUND.color, "width": 2.5, "shape": "hv"},
        marker={"symbol": _FOUND.symbol, "size": 10},
        cliponaxis=False,
        hovertemplate="K = %{x}: %{y:.0f} % of the images<extra></extra>",
    )
    figure.update_yaxes(range=[0, 105])
    return figure.update_layout(height=340)
