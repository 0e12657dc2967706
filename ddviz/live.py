"""A figure of a notebook that changes while work goes on."""

import json
import time
from collections.abc import Callable

import plotly.graph_objects as go
from IPython.display import display

_SECONDS = 1.0  # between two pictures


class Live:
    """One place in a notebook's output that shows the latest of many figures.

    Each is shown as plotly's own MIME type: the last one is stored with the notebook and needs no network.
    """

    def __init__(self) -> None:
        self._handle, self._shown = None, 0.0

    def show(self, make: Callable[[], go.Figure], *, last: bool = False) -> None:
        """Make and show a figure; where the one before is younger than a second, only if it is the last."""
        now = time.monotonic()
        if self._handle is not None and not last and now < self._shown + _SECONDS:
            return
        bundle = {"application/vnd.plotly.v1+json": json.loads(make().to_json() or "")}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._shown = now
