"""Figures of finished runs side by side, in the plain form of `scenes`. Nothing here computes a result.

A run's colour is its method's wherever it is known: of several runs of one method each has its own line and marker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ddviz import analysis, comparison
from ddviz.analysis import Gain
from ddviz.comparison import FoundRun
from ddviz.plots import GREY, OTHERS, STYLES, Style
from ddviz.scenes import Figure, Trace, axis, band, faded, marker, styled
from ddviz.smoothing import smoothing_for

Looks = Mapping[str, Style]
"""Style of each run, by its name."""

_DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
_SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "x"]
_LINE = 24  # pixels of a legend's line


def looks(runs: Sequence[FoundRun]) -> Looks:
    """A style for each run; no two are the same among the first six of one method."""
    found, seen = {}, dict.fromkeys([*STYLES, ""], 0)
    for run in runs:
        family = [STYLES[run.method]] if run.method else OTHERS
        turn, place = divmod(seen[run.method], len(family))
        seen[run.method] += 1
        dash, symbol = _after(_DASHES, family[place].dash, turn), _after(_SYMBOLS, family[place].symbol, turn)
        found[run.name] = replace(family[place], dash=dash, symbol=symbol)
    return found


def _after(kinds: Sequence[str], kind: str, steps: int) -> str:
    return kinds[(kinds.index(kind) + steps) % len(kinds)]


def curves(runs: Sequence[FoundRun], look: Looks, *, bands: bool, envelope: bool) -> Figure:
    """Certified accuracy against radius, a line a run; with 95 % bands, and the best of all at each radius."""
    all_records = [run.records for run in runs]
    radii = analysis.radius_grid(all_records)
    filled: list[Trace] = []
    lines: list[Trace] = []
    for run in runs:
        color, group = look[run.name].color, {"legendgroup": run.name}
        if bands:
            low, high = ((100 * side).tolist() for side in analysis.accuracy_band(run.records, radii))
            filled.append(band(radii.tolist(), low, high, faded(color, 0.18), showlegend=False) | group)
        acr, error = analysis.mean_with_error(run.radii)
        name = f"{run.name}: ACR {acr:.3f} ± {error:.3f}, {len(run.records):,} images"
        line = {"color": color, "dash": look[run.name].dash, "width": 2.5, "shape": "vh"}
        hover = f"%{{y:.1f}} % certified at radius %{{x:.3f}}<extra>{run.name}</extra>"
        share = 100 * analysis.certified_accuracy(run.records, radii)
        lines.append(_line(radii, share, name, line, hovertemplate=hover) | group)
    if envelope:
        best = 100 * analysis.envelope(all_records, radii)
        line = {"color": GREY, "width": 9, "shape": "vh"}
        filled.append(_line(radii, best, "envelope: the best at each radius", line, opacity=0.45, hoverinfo="skip"))
    title = "Certified accuracy" + (", 95 % confidence at each radius" if bands else "")
    layout = styled(title, view=runs[0].name, height=400 + _LINE * len(runs)) | {
        "xaxis": axis(f"radius r ({comparison.unit(runs)})", rangemode="tozero"),
        "yaxis": axis("certified accuracy (%)", rangemode="tozero"),
    }
    return {"data": filled + lines, "layout": layout}


def _line(x: np.ndarray, y: np.ndarray, name: str, line: Mapping[str, object], **more: object) -> Trace:
    where = {"x": np.asarray(x).tolist(), "y": np.asarray(y).tolist()}
    return {"type": "scatter", **where, "mode": "lines", "name": name, "line": line, **more}


def radii(
    first: FoundRun, second: FoundRun, gains: Sequence[Gain], look: Looks, classes: Sequence[str], picked: Gain | None
) -> Figure:
    """Each image's certified radius in two runs, in the colour of the run where it is larger.

    customdata of a point begins with the image's index. picked: the image that is ringed.
    """
    top = 1.05 * max([gain.before for gain in gains] + [gain.after for gain in gains] + [1e-6])
    ends = np.array([0, top])
    traces = [_line(ends, ends, "same radius", {"color": GREY, "dash": "dot"}, hoverinfo="skip")]
    kinds = [(first.name, look[first.name], -1), (second.name, look[second.name], 1)]
    for name, style, sign in [("neither", Style(GREY, "", "circle-open"), 0), *kinds]:
        chosen = [gain for gain in gains if np.sign(gain.gained) == sign]
        traces.append(_points(chosen, f"larger in {name}: {len(chosen):,}", style, classes))
    if picked:
        ring = {"color": "rgba(0,0,0,0)", "size": 18, "line": {"color": GREY, "width": 3}}
        at = marker(max(0, picked.before), max(0, picked.after), f"image {picked.idx}", "", "circle", hoverinfo="skip")
        traces.append(at | {"marker": ring})
    unit, span = comparison.unit([first, second]), [-0.03 * top, top]  # images with radius 0 lie on the axes
    title = f"Radius of each of {len(gains):,} images"
    layout = styled(title, view=f"{first.name} {second.name}", height=470 + _LINE * 3) | {
        "xaxis": axis(f"radius ({unit}) in<br>{first.name}", range=span),  # two lines: names are long
        "yaxis": axis(f"radius ({unit}) in<br>{second.name}", range=span),
        "hovermode": "closest",
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.27, "x": 0},  # below two lines
    }
    return {"data": traces, "layout": layout}


def _points(gains: Sequence[Gain], name: str, style: Style, classes: Sequence[str]) -> Trace:
    told = [[gain.idx, class_name(classes, gain.label), *radius_texts(gain), f"{gain.gained:+.3f}"] for gain in gains]
    return {
        "type": "scatter",
        "x": [max(0.0, gain.before) for gain in gains],
        "y": [max(0.0, gain.after) for gain in gains],
        "mode": "markers",
        "name": name,
        "marker": {"color": style.color, "symbol": style.symbol, "size": 8, "opacity": 0.7},
        "customdata": told,
        "hovertemplate": "image %{customdata[0]}, class %{customdata[1]}<br>"
        "across %{customdata[2]}, up %{customdata[3]}<br>gain %{customdata[4]}<extra></extra>",
    }


def radius_texts(gain: Gain) -> list[str]:
    """The radii of an image in two runs, for a reader."""
    return ["wrong or abstains" if radius < 0 else f"{radius:.3f}" for radius in (gain.before, gain.after)]


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class, its number where names are not known."""
    return classes[label] if label < len(classes) else str(label)


def probabilities(runs: Sequence[FoundRun], look: Looks) -> Figure:
    """How sure each run is: the share of images whose lower bound on p_A is at least p, near 1 drawn large."""
    traces, ends = [], []
    for run in runs:
        p, share = comparison.shares_at_least(run.known("p_lower"))
        line = {"color": look[run.name].color, "dash": look[run.name].dash, "width": 2.5, "shape": "vh"}
        hover = f"%{{y:.1f}} % have p_A of at least %{{customdata:.4f}}<extra>{run.name}</extra>"
        x = np.maximum(1 - p, 1e-12)  # a logarithm has no 0
        ends += [np.log10(x[0]), np.log10(x[-1])]
        traces.append(_line(x, 100 * share, run.name, line, customdata=p.tolist(), hovertemplate=hover))
    layout = styled("Lower bound on p_A, the probability of the predicted class", view="p_A") | {
        "height": 400 + _LINE * len(runs),
        "xaxis": p_axis(max(ends), min(ends)),
        "yaxis": axis("images with p_A at least p (%)", rangemode="tozero"),
        "showlegend": True,
    }
    return {"data": traces, "layout": layout}


def p_axis(first: float, last: float, digits: Sequence[int] = (1, 2, 5)) -> Figure:
    """The axis of a probability p, near 1 drawn large: the logarithm of 1 - p, from `first` down to `last`.

    digits: first ones of the 1 - p that are marked.
    """
    marks = sorted({digit * 10.0**power for power in range(-6, 0) for digit in digits} | {0.5, 1.0})
    return axis(
        "p (no unit; log scale of 1 - p)",
        type="log",
        range=[first + 0.05, last - 0.05],
        tickvals=marks,
        ticktext=[f"{1 - mark:.7g}" for mark in marks],
    )


def scales(run: FoundRun, look: Looks, classes: Sequence[str]) -> Figure:
    """The noise scales of the images of each class, as boxes; outliers tell their index."""
    sigma = run.known("sigma")
    scale = smoothing_for(str(run.config.get("norm", "l2"))).scale_name
    names = [class_name(classes, record.label) for record in run.records]
    order = {class_name(classes, label): None for label in sorted({record.label for record in run.records})}
    box = {
        "type": "box",
        "x": names,
        "y": sigma.tolist(),
        "text": [f"image {record.idx}" for record in run.records],
        "marker": {"color": look[run.name].color, "size": 5},
        "line": {"width": 1.5},
        "name": run.name,
    }
    started = "sigma" in run.config
    start = f" (blue line: {scale}_0 = {run.config['sigma']:g})" if started else ""
    layout = styled(f"{scale}_x by class{start}", view=run.name) | {
        "xaxis": axis(f"class<br>{run.name}", type="category", categoryorder="array", categoryarray=list(order)),
        "yaxis": axis(f"{scale}_x ([0,1]-pixel units)"),
        "showlegend": False,
    }
    if started:
        line = {"color": STYLES["fixed"].color, "width": 2}
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": line}
        layout["shapes"] = [across | {"y0": run.config["sigma"], "y1": run.config["sigma"]}]
    return {"data": [box], "layout": layout}
