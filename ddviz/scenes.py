"""Figures that hands play with: values go in, a plotly figure comes out. Nothing here computes a result.

A figure here is plotly's own plain form, {"data": [...], "layout": {...}}: plotly's classes check every value, which
takes longer than all else between a slider and its picture. `go.Figure(figure)` makes one of them, and tests do.
Figures have no background, so that light and dark pages both read well, and keep their zoom from one picture to the
next (uirevision).
"""

from collections.abc import Sequence
from typing import Any

import torch

from ddviz import plots
from ddviz.exploration import Study
from ddviz.plots import GREY, OTHERS, STYLES

Figure = dict[str, Any]
Trace = dict[str, Any]

FIXED, FOUND = STYLES["fixed"], STYLES["data-dependent"]
CURVE = OTHERS[0].color
SOLVERS = {"halving": ("halving", plots.SOLVERS["halving"]), "grid": ("grid search", plots.SOLVERS["grid"])}
"""Names and looks of the solvers whose choices are shown beside the path of Algorithm 1."""
_EDGE = {"color": "#FFFFFF", "width": 1}
_CLASSES = 5


def explorer(study: Study, k: int, classes: Sequence[str], solver: str = "") -> Figure:
    """One image: its radius over the noise scale, sigma and radius over the steps, class probabilities at both scales.

    k: the step of the path that counts as sigma_x, or the last one that is shown where another solver's choice does.
    """
    config = study.config
    scale, sigma_x = study.scale_name, study.choices[solver] if solver else study.sigma[k].item()
    before, after = study.landscape.at(torch.tensor([config.sigma, sigma_x]))[0].tolist()
    title = (
        f"Image {study.index}: estimated radius {before:.3f} at {scale}_0 = {config.sigma:.3f}, {after:.3f} at "
        f"{scale}_x = {sigma_x:.3f} {f'by {SOLVERS[solver][0]}' if solver else f'after {k} steps'}"
    )
    view = (study.index, config.sigma, config.iterations, config.lr, config.samples, config.norm)
    layout = styled(title, view=str(view)) | {
        "xaxis": axis(f"{scale} ([0,1]-pixel units)", domain=[0, 0.4]),
        "yaxis": axis(f"estimated radius ({config.norm}, [0,1]-pixel units)"),
        "xaxis2": axis("step k", domain=[0.49, 0.74], anchor="y3"),
        "yaxis2": axis(f"{scale} at step k", domain=[0.54, 1], anchor="x2"),
        "yaxis3": axis("its radius", domain=[0, 0.46], anchor="x2"),
        "xaxis3": axis("mean probability of a class", domain=[0.84, 1], range=[0, 1], anchor="y4"),
        "yaxis4": axis("", type="category", anchor="x3"),  # digits are names, not numbers
    }
    traces = [
        *_landscape(study, k, sigma_x, classes),
        *_steps(study, k),
        *_probabilities(study, sigma_x, classes),
    ]
    return {"data": traces, "layout": layout}


def styled(title: str, *, view: str, height: int = 440) -> dict[str, object]:
    """The layout that all figures here share. view: zoom is kept as long as it stays the same."""
    return {
        "title": {"text": title, "font": {"size": 15}, "x": 0, "xref": "paper", "y": 0.98, "yanchor": "top"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        "margin": {"l": 60, "r": 15, "t": 50, "b": 100},
        "height": height,
        "uirevision": view,
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
        "hoverlabel": {"font": {"color": "#000000"}, "bgcolor": "#FFFFFF"},
    }


def axis(title: str, **more: object) -> dict[str, object]:
    """An axis with lines that show on light and dark pages."""
    lines = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "linecolor": GREY}
    return {"title": {"text": title}, **lines, **more}


def marker(x: float, y: float, name: str, color: str, symbol: str, **more: object) -> Trace:
    """One large marked point."""
    look = {"color": color, "symbol": symbol, "size": 13, "line": _EDGE}
    return {"type": "scatter", "x": [x], "y": [y], "mode": "markers", "name": name, "marker": look, **more}


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str, **more: object) -> Trace:
    """The area between two curves."""
    edge = {"x": [*x, *x[::-1]], "y": [*high, *low[::-1]], "line": {"width": 0}}
    return {
        "type": "scatter",
        **edge,
        "mode": "lines",
        "fill": "toself",
        "fillcolor": color,
        "hoverinfo": "skip",
        **more,
    }


def faded(color: str, opacity: float) -> str:
    """A colour #RRGGBB that lets the page show through."""
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def _landscape(study: Study, k: int, sigma_x: float, classes: Sequence[str]) -> list[Trace]:
    scale, around, sigma = study.scale_name, study.landscape, study.landscape.sigma.tolist()
    path = study.sigma[: k + 1]
    surely = band(sigma, around.low.tolist(), around.high.tolist(), faded(CURVE, 0.2), name="95 % band")
    first = around.at(torch.tensor([study.config.sigma]))[1].argmax()
    names = [classes[c] for c in around.top.tolist()]
    hover = f"%{{text}}: radius %{{y:.3f}} at {scale} = %{{x:.3f}}<extra></extra>"
    curve = {"type": "scatter", "x": sigma, "mode": "lines", "text": names, "hovertemplate": hover}
    same = [radius if c == first else None for radius, c in zip(around.radius.tolist(), around.top, strict=True)]
    look = {"color": CURVE, "width": 2.5}
    curves = [
        {
            **curve,
            **{"y": around.radius.tolist(), "name": "of another class", "line": {"color": GREY, "dash": "dot"}},
            "showlegend": None in same,
        },
        {**curve, "y": same, "name": f"R({scale}) of the class at {scale}_0", "line": look},
    ]
    steps = {
        "type": "scatter",
        "x": path.tolist(),
        "y": around.at(path)[0].tolist(),
        "mode": "lines",  # a marker a step would take half of the time of a picture
        "name": "path of Algorithm 1",
        "line": {"color": FOUND.color, "width": 7},
        "opacity": 0.45,
        "customdata": list(range(k + 1)),
        "hovertemplate": f"step %{{customdata}}: {scale} = %{{x:.3f}}<extra></extra>",
    }
    points = [
        (f"{scale}_0", study.config.sigma, FIXED.color, FIXED.symbol),
        (f"{scale}_x", sigma_x, FOUND.color, FOUND.symbol),
        *((name, study.choices[by], look.color, look.symbol) for by, (name, look) in SOLVERS.items()),
    ]
    hover = f"%{{fullData.name}}: {scale} = %{{x:.3f}}<br>radius %{{y:.3f}}<extra></extra>"
    heights = around.at(torch.tensor([x for _, x, *_ in points]))[0].tolist()
    marked = [
        marker(x, y, name, *look, hovertemplate=hover) for y, (name, x, *look) in zip(heights, points, strict=True)
    ]
    return [surely, *curves, steps, *marked]


def _steps(study: Study, k: int) -> list[Trace]:
    traces = []
    for y, values, name in (("y2", study.sigma, "scale"), ("y3", study.radius, "radius")):
        place = {"xaxis": "x2", "yaxis": y, "showlegend": False}
        hover = f"step %{{x}}: {name} %{{y:.3f}}<extra></extra>"
        line = {"y": values.tolist(), "mode": "lines", "line": {"color": FOUND.color, "width": 1.5}}
        traces.append({"type": "scatter", **line, "hovertemplate": hover, **place})
        traces.append(marker(k, values[k].item(), name, FOUND.color, FOUND.symbol, hoverinfo="skip", **place))
    return traces


def _probabilities(study: Study, sigma_x: float, classes: Sequence[str]) -> list[Trace]:
    """Bars of the classes that are likeliest at either scale; the true one is marked."""
    scale, both = study.scale_name, study.landscape.at(torch.tensor([study.config.sigma, sigma_x]))[1]
    wanted = (both[0] + both[1]).topk(min(_CLASSES, len(classes))).indices.flip(0).tolist()
    names = [f"<b>{classes[c]} (true)</b>" if c == study.label else classes[c] for c in wanted]
    return [
        {
            "type": "bar",
            "orientation": "h",
            "x": values[wanted].tolist(),
            "y": names,
            "name": name,
            "marker": {"color": look.color},
            "showlegend": False,
            "hovertemplate": f"%{{y}} under {name}: %{{x:.3f}}<extra></extra>",
            "xaxis": "x3",
            "yaxis": "y4",
        }
        for name, look, values in zip((f"{scale}_0", f"{scale}_x"), (FIXED, FOUND), both, strict=True)
    ]
