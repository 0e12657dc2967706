"""Figures of the plane: regions of a classifier, balls around points, and the memory at work."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddviz.certify import Certificate
from ddviz.plane import CLASSES, Arrival, Regions
from ddviz.plots import GREY, OTHERS
from ddviz.records import ABSTAIN
from ddviz.scenes import FIXED, FOUND, Figure, Trace, axis, faded, marker, styled

COLORS = tuple(OTHERS[place].color for place in (0, 1, 3))  # as the classes are called
_SEEN = (-0.15, 1.15)  # what of the plane is drawn
_ANGLES = np.linspace(0, 2 * np.pi, 73)


def smoothing(
    regions: Regions,
    sigma: float,
    points: Tensor,
    labels: Tensor,
    clicked: tuple[float, float],
    certificates: Sequence[Certificate],
) -> Figure:
    """The base classifier, and beside it the smoothed one: the same picture, blurred.

    clicked: a point with certificates at the fixed sigma and at sigma_x, whose balls are drawn.
    """
    traces = [
        _heatmap(regions, regions.one_hot, "x", "y"),
        _heatmap(regions, regions.smoothed(sigma), "x2", "y2"),
        *(_training(points, labels, c) for c in range(len(CLASSES))),
    ]
    balls = zip(("fixed sigma", "sigma_x"), (FIXED, FOUND), certificates, strict=True)
    for name, look, certificate in balls:
        for place in ({"xaxis": "x", "yaxis": "y"}, {"xaxis": "x2", "yaxis": "y2", "showlegend": False}):
            label = f"{name} = {certificate.sigma:.3f}: radius {certificate.radius:.3f}"
            line = {"color": look.color, "dash": look.dash, "width": 3}
            traces.append(ball(clicked, certificate.radius, label, line=line, **place))
    for place in ({"xaxis": "x", "yaxis": "y"}, {"xaxis": "x2", "yaxis": "y2"}):
        traces.append(marker(*clicked, "the point", "#000000", "circle", showlegend=False, hoverinfo="skip", **place))
    layout = styled(
        f"The base classifier (left), and smoothed with sigma = {sigma:.3f} (right)", view="plane", height=560
    )
    layout |= _square("x", "y", [0, 0.47]) | _square("x2", "y2", [0.53, 1])
    return {"data": traces, "layout": layout}


def memory(answered: Sequence[Arrival], arrived: int) -> Figure:
    """The balls that the memory holds once `arrived` points came; the newest ball as certified is dashed."""
    newest = answered[arrived - 1]
    traces: list[Trace] = []
    for place, arrival in enumerate(answered[:arrived]):
        if arrival.answer.predict == ABSTAIN:
            traces.append(_dot(arrival, place, GREY, "x"))
            continue
        color = COLORS[arrival.answer.predict]
        line = {"color": color, "width": 4 if place in (newest.by, arrived - 1) else 1}
        traces.append(
            ball(
                arrival.point,
                arrival.answer.radius,
                "",
                line=line,
                fill="toself",
                fillcolor=faded(color, 0.2),
                hoverinfo="skip",
                showlegend=False,
            )
        )
        traces.append(_dot(arrival, place, color, "circle"))
    if newest.answer.case in ("shrunk", "adopted"):
        line = {"color": FOUND.color, "dash": FOUND.dash, "width": 3}
        label = "the newest ball as certified, before the memory"
        traces.append(ball(newest.point, newest.certificate.radius, label, line=line))
    layout = styled(story(answered, arrived), view="memory", height=600) | _square("x", "y", [0.2, 0.8])
    return {"data": traces, "layout": layout}


def story(answered: Sequence[Arrival], arrived: int) -> str:
    """What the memory did with the newest point, in a sentence."""
    newest = answered[arrived - 1]
    certificate, answer = newest.certificate, newest.answer
    came = (
        "abstained" if certificate.predict == ABSTAIN else f"{CLASSES[certificate.predict]}, {certificate.radius:.3f}"
    )
    now = "" if answer.predict == ABSTAIN else f"{CLASSES[answer.predict]} with radius {answer.radius:.3f}"
    said = {
        "new": "stored as it came",
        "known": f"asked before: the answer is again {now}",
        "adopted": f"it lies in the ball of point {newest.by + 1}: the answer is {now}",
        "shrunk": f"shrunk to {answer.radius:.3f}: the ball of point {newest.by + 1} is in the way",
        "abstained": "nothing certified, nothing stored",
    }
    return f"Point {arrived} of {len(answered)} ({came}): {said[answer.case]}"


def ball(centre: tuple[float, float], radius: float, name: str, **more: object) -> Trace:
    """A circle in the plane."""
    x, y = (c + radius * wave(_ANGLES) for c, wave in zip(centre, (np.cos, np.sin), strict=True))
    shape = {"type": "scatter", "x": x.round(4).tolist(), "y": y.round(4).tolist(), "mode": "lines", "name": name}
    return {**shape, "hoverinfo": "skip", **more}


def _dot(arrival: Arrival, place: int, color: str, symbol: str) -> Trace:
    x, y = arrival.point
    hover = f"point {place + 1}, sigma_x = {arrival.certificate.sigma:.3f}: {arrival.answer.case}<extra></extra>"
    look = {"color": color, "symbol": symbol, "size": 7}
    return {
        **{"type": "scatter", "x": [x], "y": [y], "mode": "markers", "marker": look},
        **{"hovertemplate": hover, "showlegend": False},
    }


def _heatmap(regions: Regions, probabilities: NDArray[np.float64], x: str, y: str) -> Trace:
    """Classes as colours, the stronger the likelier."""
    seen = (regions.axis >= _SEEN[0]) & (regions.axis <= _SEEN[1])
    shown = probabilities[:, seen][:, :, seen]
    top, p_a = shown.argmax(0), shown.max(0)
    scale = []
    for c, color in enumerate(COLORS):
        scale += [[c / 3, faded(color, 0)], [(c + 0.999) / 3 if c < 2 else 1, faded(color, 0.6)]]
    ticks = regions.axis[seen].round(4).tolist()
    return {
        "type": "heatmap",
        "x": ticks,
        "y": ticks,
        "z": (top + 0.99 * p_a).round(3).tolist(),
        "zmin": 0,
        "zmax": 3,
        "colorscale": scale,
        "showscale": False,
        "hovertemplate": "(%{x:.2f}, %{y:.2f})<extra></extra>",
        "xaxis": x,
        "yaxis": y,
    }


def _training(points: Tensor, labels: Tensor, c: int) -> Trace:
    x, y = points[labels == c].T.tolist()
    look = {"color": COLORS[c], "size": 5, "line": {"color": "#FFFFFF", "width": 0.5}}
    kind = {"type": "scatter", "mode": "markers", "name": f"{CLASSES[c]} training points"}
    return {**kind, "x": x, "y": y, "marker": look, "hoverinfo": "skip"}


def _square(x: str, y: str, domain: Sequence[float]) -> dict[str, object]:
    """Axes of the same scale, named as plotly's layout does."""
    seen = list(_SEEN)
    return {
        x.replace("x", "xaxis"): axis("", domain=domain, range=seen, anchor=y, constrain="domain"),
        y.replace("y", "yaxis"): axis("", range=seen, anchor=x, scaleanchor=x, constrain="domain"),
    }
