"""A plotly figure in a notebook that is redrawn in place: it keeps its zoom, and tells where the mouse rests or clicks.

plotly's own FigureWidget sends plotly.js (5 MB) with every figure, stores it in the notebook, and is lost when the page
is reloaded. Here it goes over once a page, on request, as a message that is never stored.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import anywidget
import traitlets
from plotly.offline import get_plotlyjs


class FigureView(anywidget.AnyWidget):
    """Shows the latest of many figures.

    clicked, hovered: {x, y, curve, point, count}, in the axes' units; count makes a second click on one spot another
    value. Only a view that was made with `hovering` tells where the mouse rests.
    """

    _esm = Path(__file__).parent / "data" / "figure.js"
    figure = traitlets.Unicode('{"data": [], "layout": {}}').tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)
    clicked = traitlets.Dict().tag(sync=True)
    hovered = traitlets.Dict().tag(sync=True)
    hovering = traitlets.Bool(False).tag(sync=True)

    def __init__(self, hovering: bool = False) -> None:
        super().__init__(hovering=hovering)
        self.on_msg(self._answer)

    def show(self, figure: Mapping[str, object]) -> None:
        """Draw a figure in plotly's plain form in place of the one before."""
        with self.hold_sync():
            self.version += 1  # tells a waiting test which picture is on the screen
            self.figure = json.dumps(figure, allow_nan=False)

    def _answer(self, _widget: object, content: dict, _buffers: list) -> None:
        if content.get("type") == "plotly":
            self.send({"type": "plotly"}, buffers=[get_plotlyjs().encode()])
