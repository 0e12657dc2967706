"""Parts of the interactive panels. Each control is one call and one figure; no mathematics here.

Every control can be driven from Python by its `.value` or `.click()`, and reached by keyboard.
"""

import html
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import ipywidgets as ipw
import traitlets
from torch import Tensor

from ddviz.datasets import ImageSet
from ddviz.errors import InputError, ResourceError
from ddviz.plots import picture_png, thumbnail

S = TypeVar("S", ipw.IntSlider, ipw.FloatSlider, ipw.FloatLogSlider)

WRAP = {"flex_flow": "row wrap", "align_items": "flex-start", "grid_gap": "4px 16px"}
"""Layout of a row whose parts move below each other on a narrow page."""


class Status(ipw.HTML):
    """One line that tells what goes on, or what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("ddviz-status")

    def say(self, text: str) -> None:
        """Show a plain message."""
        self.value = f'<div role="status" style="line-height: 1.5; padding: 4px 0">{html.escape(text)}</div>'

    def fail(self, error: BaseException) -> None:
        """Show an error: a user's mistake as its message, anything else with its traceback folded away."""
        message = html.escape(str(error) if isinstance(error, InputError | ResourceError) else repr(error))
        trace = ""
        if not isinstance(error, InputError | ResourceError):
            lines = html.escape("".join(traceback.format_exception(error)))
            trace = f"<details><summary>where</summary><pre>{lines}</pre></details>"
        self.value = (
            f'<div role="alert" style="border-left: 4px solid #D55E00; padding-left: 8px">{message}{trace}</div>'
        )


class Callbacks:
    """Makes callbacks whose errors show in a status line, and that rest while a program sets several controls."""

    def __init__(self, status: Status):
        self._status, self._resting = status, False

    def __call__(self, call: Callable[[], object]) -> Callable[[object], None]:
        """The callback of an observer or a button that makes this call."""

        def callback(_change: object) -> None:
            if self._resting:
                return
            try:
                call()
            except Exception as error:  # a notebook would lose it
                self._status.fail(error)

        return callback

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Controls may be set here without anything being called."""
        self._resting, before = True, self._resting
        try:
            yield
        finally:
            self._resting = before


def slider(kind: type[S], description: str, **settings: object) -> S:
    """A slider with room for its label; a step that costs evaluations waits until it is let go."""
    made = kind(description=description, **settings)
    made.style.description_width = "190px"
    made.layout.width = "500px"
    return made


class Picture(ipw.VBox):
    """An image under a caption."""

    def __init__(self, size: int = 150):
        self._size = size
        self.caption, self.image = ipw.HTML(), ipw.Image(format="png", width=size, height=size)
        super().__init__([self.caption, self.image])

    def show(self, image: Tensor | None, caption: str) -> None:
        """Show pixels (C, H, W), or the caption alone; what leaves [0, 1] is cut off for the eye."""
        if image is not None:
            self.image.value = picture_png(image, self._size)
        self.image.layout.display = "none" if image is None else ""  # an image without pixels looks broken
        self.caption.value = f'<small style="display: block; line-height: 1.4">{html.escape(caption)}</small>'


class Gallery(ipw.VBox):
    """Pages of thumbnails to pick an image from. index: the picked image's number."""

    index = traitlets.Int(-1)

    def __init__(self, status: Status, page: int = 12):
        self._callbacks = Callbacks(status)
        self._name = f"ddviz-gallery-{uuid.uuid4().hex}"  # all notebooks share one page and its style rules
        self._images: ImageSet | None = None
        self._extremes: Sequence[int] = ()
        self._shown: list[int] = []
        self._first = 0
        self._style = ipw.HTML(layout={"display": "none"})
        self.wanted = ipw.Dropdown(description="show", layout={"width": "290px"}, style={"description_width": "40px"})
        self.number = ipw.IntText(description="image", layout={"width": "130px"}, style={"description_width": "50px"})
        self.earlier = ipw.Button(icon="chevron-left", tooltip="earlier images", layout={"width": "36px"})
        self.later = ipw.Button(icon="chevron-right", tooltip="later images", layout={"width": "36px"})
        self.thumbnails = [ipw.Button(layout={"width": "56px", "height": "56px"}) for _ in range(page)]
        for position, button in enumerate(self.thumbnails):
            button.add_class("ddviz-thumbnail")
            button.add_class(f"{self._name}-{position}")
            button.on_click(self._callbacks(lambda position=position: self._pick(self._shown[self._first + position])))
        self.number.observe(self._callbacks(lambda: self._pick(self.number.value)), "value")
        self.wanted.observe(self._callbacks(self._filter), "value")
        self.earlier.on_click(self._callbacks(lambda: self._turn(-page)))
        self.later.on_click(self._callbacks(lambda: self._turn(page)))
        grid = ipw.HBox(self.thumbnails, layout={"flex_flow": "row wrap", "width": "372px"})
        super().__init__([self._style, ipw.HBox([self.wanted, self.earlier, self.later]), grid, self.number])

    def offer(self, images: ImageSet, extremes: Sequence[int] = ()) -> None:
        """Show these images and pick the one that was picked in the same set, else the first.

        extremes: those that lost and gained most in a finished run.
        """
        known = self._images is not None and self._images.name == images.name
        picked = self.index if known and self.index in images.indices else images.indices[0]
        self._images, self._extremes = images, extremes
        some = [("images that lost or gained most in the finished runs", "extremes")] if extremes else []
        classes = [(f"class {name}", position) for position, name in enumerate(images.classes)]
        with self._callbacks.resting():
            self.wanted.options = [("all images", "all"), *some, *classes]
            self.wanted.value = "all"
        self._filter()
        self.index = -1
        self._pick(picked)

    def _pick(self, number: int) -> None:
        """Take the image of this number, or the nearest there is."""
        if self._images is None:
            return
        nearest = min(self._images.indices, key=lambda index: abs(index - number))
        with self._callbacks.resting():
            self.number.value = nearest
        self.index = nearest
        self._mark()

    def _filter(self) -> None:
        if self._images is None:
            return
        wanted, images = self.wanted.value, self._images
        if wanted == "extremes":
            self._shown = list(self._extremes)
        else:
            self._shown = [index for index in images.indices if wanted in ("all", int(images.labels[index]))]
        self._first = 0
        self._turn(0)

    def _turn(self, by: int) -> None:
        """Show the page that begins `by` images further on."""
        assert self._images is not None
        size = len(self.thumbnails)
        self._first = max(0, min(self._first + by, max(0, len(self._shown) - 1) // size * size))
        page = self._shown[self._first : self._first + size]
        self.earlier.disabled, self.later.disabled = self._first == 0, self._first + size >= len(self._shown)
        rules = ["button.ddviz-thumbnail {background-size: cover; margin: 2px; border: 2px solid transparent}"]
        rules += ["button.ddviz-thumbnail.ddviz-picked {border-color: #D55E00}"]
        for position, button in enumerate(self.thumbnails):
            button.layout.display = "" if position < len(page) else "none"
            if position < len(page):
                number = page[position]
                button.tooltip = f"image {number}, {self._images.classes[int(self._images.labels[number])]}"
                try:
                    source = thumbnail(self._images.image(number), 52)
                except InputError as error:  # the other images can be looked at all the same
                    button.tooltip = str(error)
                else:
                    rules.append(f"button.{self._name}-{position} {{background-image: url({source})}}")
        self._style.value = f"<style>{' '.join(rules)}</style>"
        self._mark()

    def _mark(self) -> None:
        page = self._shown[self._first : self._first + len(self.thumbnails)]
        for number, button in zip(page, self.thumbnails, strict=False):
            (button.add_class if number == self.index else button.remove_class)("ddviz-picked")
