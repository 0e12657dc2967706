"""Figures: values go in, a plotly figure comes out. Nothing here computes a result.

Fixed sigma and data-dependent sigma wear the same two colours everywhere (Okabe and Ito's, which colour-blind
people can tell apart) and differ in line and marker too.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from ddviz import analysis
from ddviz.analysis import Gain
from ddviz.records import Record, column
from ddviz.smoothing import SMOOTHINGS
from ddviz.trainfolder import SIGMA_EDGES
from ddviz.training import Training


@dataclass(frozen=True)
class Style:
    """How one method looks in every figure."""

    color: str
    dash: str
    symbol: str


STYLES = {
    "fixed": Style("#0072B2", "solid", "circle"),
    "data-dependent": Style("#D55E00", "dash", "diamond"),
}
OTHERS = [
    Style("#009E73", "dot", "square"),
    Style("#CC79A7", "dashdot", "triangle-up"),
    Style("#56B4E9", "longdash", "cross"),
    Style("#E69F00", "longdashdot", "x"),
]
SOLVERS = {"halving": OTHERS[1], "ascent": OTHERS[2], "grid": OTHERS[3]}
"""The looks of solvers, where several are shown."""
GREY = "#808080"  # readable on light and dark pages alike


def style(name: str, position: int = 0) -> Style:
    """The style of a run: its method's or its solver's, or one of the others by its position."""
    known = (look for key, look in (STYLES | SOLVERS).items() if name.startswith(key))
    return next(known, OTHERS[position % len(OTHERS)])


def shades(look: Style, count: int) -> list[Style]:
    """Styles of one hue for values in order, from light to dark; dash and symbol tell neighbours apart, too."""
    channels = [int(look.color[place : place + 2], 16) for place in (1, 3, 5)]
    styles = []
    for depth in np.linspace(_LIGHTEST, _DARKEST, count) if count > 1 else [0.0]:
        end = 255 if depth < 0 else 0  # white, black
        mixed = (round(channel + abs(depth) * (end - channel)) for channel in channels)
        styles.append(Style("#" + "".join(f"{value:02X}" for value in mixed), *_MARKS[len(styles) % len(_MARKS)]))
    return styles


_LIGHTEST, _DARKEST = -0.5, 0.65
_MARKS = [("dot", "square"), ("dash", "diamond"), ("dashdot", "triangle-up"), ("solid", "circle"), ("longdash", "x")]


def empty(title: str, x: str, y: str) -> go.Figure:
    """A figure with a title and the titles of its axes, nothing on it yet."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": title},
        template="plotly_white",
        xaxis={"title": {"text": x}, "rangemode": "tozero"},
        yaxis={"title": {"text": y}, "rangemode": "tozero"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        height=420,
    )
    return figure


def certified_accuracy(
    runs: Mapping[str, Sequence[Record]],
    *,
    unit: str,
    title: str = "Certified accuracy",
    looks: Mapping[str, Style] | None = None,
) -> go.Figure:
    """Certified accuracy against radius, a line a run. looks: of runs whose names do not tell."""
    figure = empty(title, f"radius r ({unit})", "certified accuracy (%)")
    radii = analysis.radius_grid(list(runs.values()))
    for position, (name, records) in enumerate(runs.items()):
        look = (looks or {}).get(name) or style(name, position)
        line = accuracy_line(name, radii, analysis.certified_accuracy(records, radii), look)
        acr = analysis.average_certified_radius(records)
        figure.add_trace(line.update(name=f"{name} (ACR {acr:.3f}, {len(records)} images)"))
    return figure


def accuracy_line(name: str, radii: analysis.Array, shares: analysis.Array, look: Style) -> go.Scatter:
    """A line of certified accuracy, given as shares at radii."""
    return go.Scatter(
        x=radii,
        y=100 * shares,
        name=name,
        line={"color": look.color, "dash": look.dash, "width": 2.5, "shape": "vh"},
        mode="lines",
        hovertemplate=f"{name}<br>%{{y:.1f}} % certified at radius %{{x:.3f}}<extra></extra>",
    )


def sigma_distribution(records: Sequence[Record], sigma_0: float, *, scale_name: str) -> go.Figure:
    """Histogram of the noise scale chosen for each image, the start marked."""
    figure = empty(
        f"Noise scale chosen for each image ({len(records)} images)", f"{scale_name}_x ([0,1]-pixel units)", "images"
    )
    figure.add_histogram(
        x=column(records, "sigma"),
        nbinsx=40,
        name="data-dependent",
        marker={"color": STYLES["data-dependent"].color},
        hovertemplate=f"{scale_name}_x in %{{x}}: %{{y}} images<extra></extra>",
    )
    figure.add_vline(
        x=sigma_0,
        line={"color": STYLES["fixed"].color, "width": 3},
        annotation_text=f"fixed {scale_name} = {sigma_0:g}",
        annotation_font_color=STYLES["fixed"].color,
    )
    figure.update_layout(showlegend=False, bargap=0.03)
    return figure


def radius_gain(gains: Sequence[Gain], classes: Sequence[str], *, unit: str) -> go.Figure:
    """Each image's certified radius, fixed against data-dependent; above the diagonal it gained."""
    won = sum(gain.gained > 0 for gain in gains)
    lost = sum(gain.gained < 0 for gain in gains)
    figure = empty(
        f"Radius of each image: {won} gained, {lost} lost, {len(gains) - won - lost} unchanged",
        f"radius with fixed sigma ({unit})",
        f"radius with sigma_x ({unit})",
    )
    x, y = ([max(0.0, getattr(gain, side)) for gain in gains] for side in ("before", "after"))
    top = 1.05 * max([*x, *y, 1e-6])
    figure.add_scatter(
        x=[0, top], y=[0, top], mode="lines", name="no change", line={"color": GREY, "dash": "dot"}, hoverinfo="skip"
    )
    for name, wanted in (("gained", True), ("lost or unchanged", False)):
        chosen = [i for i, gain in enumerate(gains) if (gain.gained > 0) == wanted]
        look = STYLES["data-dependent" if wanted else "fixed"]
        figure.add_scatter(
            x=[x[i] for i in chosen],
            y=[y[i] for i in chosen],
            mode="markers",
            name=name,
            marker={"color": look.color, "symbol": look.symbol, "size": 8, "opacity": 0.75},
            customdata=[[gains[i].idx, classes[gains[i].label], gains[i].gained] for i in chosen],
            hovertemplate="image %{customdata[0]}, class %{customdata[1]}<br>fixed %{x:.3f}, sigma_x %{y:.3f} "
            "(%{customdata[2]:+.3f})<extra></extra>",
        )
    return figure


def training(run: Training) -> go.Figure:
    """Loss, accuracies and the noise scales of the training images over the epochs; the title tells the time left."""
    history, recipe = run.history, run.recipe
    done, total = run.steps
    left = run.seconds / max(1, done) * (total - done)
    figure = make_subplots(1, 3, subplot_titles=["loss", "accuracy of test images", "noise scale of training images"])
    epochs = [epoch.epoch for epoch in history]
    lines = {
        "loss": ([epoch.loss for epoch in history], OTHERS[0], "%{y:.3f}"),
        "clean": ([100 * epoch.clean_accuracy for epoch in history], OTHERS[1], "%{y:.1f} %"),
        "under noise": ([100 * epoch.noisy_accuracy for epoch in history], OTHERS[2], "%{y:.1f} %"),
    }
    for name, (values, look, value) in lines.items():
        figure.add_scatter(
            x=epochs,
            y=values,
            name=name,
            line={"color": look.color, "dash": look.dash, "width": 2.5},
            hovertemplate=f"{name}: {value} in epoch %{{x}}<extra></extra>",
            row=1,
            col=1 if name == "loss" else 2,
        )
    shares = 100 / max(1, len(run.sigma)) * np.array([epoch.sigma_counts for epoch in history], dtype=float).T
    figure.add_heatmap(
        x=epochs,
        y=[recipe.sigma * (low * high) ** 0.5 for low, high in pairwise(SIGMA_EDGES)],
        z=np.where(shares > 0, shares, np.nan),
        zmin=0,
        zmax=max(5.0, shares[:, -1].max()),  # before they spread all images are in one bin
        colorscale=[[0, "#FBE6D9"], [1, STYLES["data-dependent"].color]],
        colorbar={"title": {"text": "images (%)"}},
        hovertemplate="%{z:.1f} % of the images near %{y:.3f} in epoch %{x}<extra></extra>",
        row=1,
        col=3,
    )
    scale = SMOOTHINGS[recipe.norm].scale_name
    figure.add_hline(y=recipe.sigma, line={"color": STYLES["fixed"].color, "width": 2}, row=1, col=3)  # type: ignore[arg-type]
    figure.update_xaxes(title_text="epoch", range=[0.5, recipe.epochs + 0.5])
    figure.update_yaxes(title_text="loss", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="right (%)", range=[0, 100], row=1, col=2)
    ticks = [recipe.sigma * 2.0**octave for octave in range(-2, 3)]
    figure.update_yaxes(
        title_text=f"{scale}_x ([0,1]-pixel units)",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:.3g}" for tick in ticks],
        range=np.log10([ticks[0], ticks[-1]]).tolist(),
        row=1,
        col=3,
    )
    when = f", {left:,.0f} s left" if done < total else f", {run.seconds:,.0f} s"
    figure.update_layout(
        title={"text": f"{recipe.title}: epoch {len(history)} of {recipe.epochs}{when}"},
        template="plotly_white",
        legend={"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0},
        margin={"l": 60, "r": 20, "t": 90, "b": 50},
        height=420,
    )
    return figure


def gallery(images: Sequence[Tensor], captions: Sequence[str], *, title: str, columns: int = 6) -> go.Figure:
    """Images (C, H, W) of pixels in [0, 1] with a caption above each."""
    rows = max(1, -(-len(images) // columns))
    figure = make_subplots(
        rows, columns, subplot_titles=list(captions), horizontal_spacing=0.02, vertical_spacing=0.36 / rows
    )
    for position, image in enumerate(images):
        row, col = divmod(position, columns)
        figure.add_image(
            source=thumbnail(image), row=row + 1, col=col + 1, hovertemplate=captions[position] + "<extra></extra>"
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=11)
    figure.update_layout(
        title={"text": title},
        template="plotly_white",
        height=90 + 200 * rows,
        margin={"l": 10, "r": 10, "t": 90, "b": 10},
    )
    return figure


def thumbnail(image: Tensor, size: int = 128) -> str:
    """An image (C, H, W) as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(picture_png(image, size)).decode()


def picture_png(image: Tensor, size: int = 128) -> bytes:
    """An image (C, H, W) as a PNG file, its longer side `size` pixels; small ones are enlarged without smoothing."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    factor = size / max(picture.size)
    kind = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    picture = picture.convert("RGB").resize([max(1, round(side * factor)) for side in picture.size], kind)  # type: ignore[arg-type]
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
