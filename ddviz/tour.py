"""The tour: randomized smoothing in two dimensions, and the memory at work. No mathematics here."""

import ipywidgets as ipw
import torch

from ddviz import plane, plane_scenes
from ddviz.figureview import FigureView
from ddviz.records import ABSTAIN
from ddviz.widgets import WRAP, Callbacks, Status, slider

_SIGMA_0 = 0.05
_SHOWN = 240  # training points in the picture


class SmoothingTour(ipw.VBox):
    """Move sigma, click a point: the ball that is certified there with that sigma, and with the point's own."""

    def __init__(self, network: plane.PlaneNet):
        self._network, self._regions = network, plane.regions(network)
        self._points, self._labels = plane.spiral(_SHOWN)
        self.status = Status()
        self._callbacks = Callbacks(self.status)
        self.sigma = slider(
            ipw.FloatSlider, "sigma", value=_SIGMA_0, min=0.02, max=0.4, step=0.01, readout_format=".2f"
        )
        self.x, self.y = (
            ipw.BoundedFloatText(value=value, min=0, max=1, step=0.02, description=name, layout={"width": "160px"})
            for name, value in (("x", 0.2), ("y", 0.2))
        )
        self.figure = FigureView()
        self.figure.observe(self._callbacks(self._clicked), "clicked")
        for control in (self.sigma, self.x, self.y):
            control.observe(self._callbacks(self._show), "value")
        super().__init__([ipw.HBox([self.sigma, self.x, self.y], layout=WRAP), self.status, self.figure])
        self.add_class("ddviz-tour")
        self._show()

    def _clicked(self) -> None:
        with self._callbacks.resting():
            self.x.value, self.y.value = self.figure.clicked["x"], self.figure.clicked["y"]
        self._show()

    def _show(self) -> None:
        """Certify the point at sigma and at its own sigma_x, and draw."""
        sigma, centre = self.sigma.value, (self.x.value, self.y.value)
        point = torch.tensor([centre])
        found = plane.searched(self._network, point, sigma)
        both = [plane.certified(self._network, point, scales)[0] for scales in ([sigma], found)]
        self.figure.show(plane_scenes.smoothing(self._regions, sigma, self._points, self._labels, centre, both))
        said = [
            f"{name} = {c.sigma:.3f}: "
            + ("abstains" if c.predict == ABSTAIN else f"{plane.CLASSES[c.predict]}, certified radius {c.radius:.3f}")
            for name, c in zip(("fixed sigma", "sigma_x"), both, strict=True)
        ]
        self.status.say("; ".join(said))


class MemoryTour(ipw.VBox):
    """Points arrive one after the other, each certified with its own sigma_x; the memory answers."""

    def __init__(self, network: plane.PlaneNet):
        points = plane.visitors()
        scales = plane.searched(network, points, 0.1, lr=0.01)  # in large steps they differ more from point to point
        certificates = plane.certified(network, points, scales)
        every = range(len(points))
        shuffled = torch.randperm(len(points), generator=torch.Generator().manual_seed(1)).tolist()
        self.orders = {
            name: plane.arrivals(points, certificates, order)
            for name, order in {"as they came": every, "the last one first": every[::-1], "shuffled": shuffled}.items()
        }
        self.status = Status()
        callbacks = Callbacks(self.status)
        self.order = ipw.Dropdown(options=list(self.orders), description="order")
        self.arrived = slider(ipw.IntSlider, "points that came", value=1, min=1, max=len(points))
        self.play = ipw.Play(min=1, max=len(points), interval=900, description="arrivals one by one")
        ipw.jslink((self.play, "value"), (self.arrived, "value"))
        self.figure = FigureView()
        for control in (self.order, self.arrived):
            control.observe(callbacks(self._show), "value")
        super().__init__([ipw.HBox([self.order, self.arrived, self.play], layout=WRAP), self.status, self.figure])
        self.add_class("ddviz-tour")
        self._show()

    def _show(self) -> None:
        answered = self.orders[str(self.order.value)]
        self.figure.show(plane_scenes.memory(answered, self.arrived.value))
        changed = plane.different(self.orders["as they came"], answered)
        self.status.say(
            f"In this order {changed} of {len(answered)} answers are not those of the order in which they came."
            if changed
            else "Dashed: the ball as it was certified. Thick: the newest ball, and the one that stood in its way."
        )
