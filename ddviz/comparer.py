"""The comparison of finished runs: pick some, and see their curves, images, probabilities and noise scales."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import ipywidgets as ipw

from ddviz import compare_scenes as scenes
from ddviz import comparison
from ddviz.analysis import Gain
from ddviz.compare_scenes import Looks
from ddviz.comparison import FoundRun, Selection
from ddviz.datasets import ImageSet
from ddviz.errors import InputError
from ddviz.figureview import FigureView
from ddviz.scenes import Figure
from ddviz.widgets import WRAP, Callbacks, Picture, Status

_WIDE, _HALF = {"width": "100%"}, {"flex": "1 1 460px", "min_width": "380px"}
_LABEL = {"description_width": "110px"}


class Part(ipw.VBox):
    """A figure with a line below it, or only the line, which says why there is no figure."""

    def __init__(self, layout: dict[str, str], hovering: bool = False):
        self.figure, self.note = FigureView(hovering), Status()
        super().__init__(layout=layout)

    def draw(self, make: Callable[[], tuple[Figure, str]]) -> None:
        """Show a figure and its note; what a user can put right is said in its place."""
        try:
            figure, note = make()
        except InputError as error:
            self.note.say(str(error))
            self.children = [self.note]
        else:
            self.figure.show(figure)
            self.note.say(note)
            self.children = [self.figure, self.note]


class Comparison(ipw.VBox):
    """Pick finished runs below a folder, ours or record files of the field, and compare them.

    selection: the folder, the runs and the data to begin with.

    Raises: InputError where there are no runs, none of a wanted name, or one that cannot be read.
    """

    def __init__(self, selection: Selection):
        self.selection = selection
        self.found: list[FoundRun] = []
        self.gains: list[Gain] = []
        self._picked: Gain | None = None
        self._chosen: list[FoundRun] = []
        self._scatter: list[dict[str, list]] = []
        self.status = Status()
        self._callbacks = Callbacks(self.status)
        wide = {"width": "520px", "max_width": "100%"}
        self.folder = ipw.Text(
            selection.folder, description="folder", continuous_update=False, style=_LABEL, layout=wide
        )
        self.refresh = ipw.Button(description="look again", icon="refresh", tooltip="find the runs in the folder anew")
        self.runs = ipw.SelectMultiple(rows=8, description="runs", style=_LABEL, layout={"width": "640px"})
        self.bands = ipw.Checkbox(True, description="confidence bands (95 %)", indent=False)
        self.envelope = ipw.Checkbox(False, description="envelope: the best at each radius", indent=False)
        self.first = ipw.Dropdown(description="across", style=_LABEL, layout=wide)
        self.second = ipw.Dropdown(description="up", style=_LABEL, layout=wide)
        self.image = ipw.IntText(0, description="image", style={"description_width": "50px"}, layout={"width": "200px"})
        self.scaled = ipw.Dropdown(description="noise scales of", style=_LABEL, layout=wide)
        self.table, self.picture = ipw.HTML(), Picture(192)
        self.curves, self.radii = Part(_WIDE), Part({"flex": "1 1 400px", "min_width": "380px"}, hovering=True)
        self.probabilities, self.scales = Part(_HALF), Part(_HALF)
        super().__init__(self._arranged())
        self.add_class("ddviz-comparison")
        self._connect()
        self._find(selection.names)
        for name in selection.names:
            if name not in self.runs.options:
                known = ", ".join(self.runs.options)
                raise InputError(f"expected runs to be of those in {selection.folder}, got {name!r}. Known: {known}.")

    def _arranged(self) -> list[ipw.Widget]:
        for name in ("runs", "table", "curves", "radii", "image", "picture", "probabilities", "scales"):
            getattr(self, name).add_class(f"ddviz-{name}")
        drawn = ipw.VBox([self.bands, self.envelope])
        one = ipw.VBox([self.image, self.picture], layout={"width": "210px"})
        return [
            ipw.HBox([self.folder, self.refresh], layout=WRAP),
            ipw.HBox([self.runs, drawn], layout=WRAP),
            self.status,
            self.table,
            self.curves,
            ipw.HBox([self.first, self.second], layout=WRAP),
            ipw.HBox([self.radii, one], layout=WRAP),
            ipw.HBox([self.probabilities, ipw.VBox([self.scaled, self.scales], layout=_HALF)], layout=WRAP),
        ]

    def _connect(self) -> None:
        guarded = self._callbacks
        self.folder.observe(guarded(self._find), "value")
        self.refresh.on_click(guarded(lambda: self._find(self.runs.value)))
        self.runs.observe(guarded(self._show), "value")
        for checkbox in (self.bands, self.envelope):
            checkbox.observe(guarded(self._show_curves), "value")
        for dropdown in (self.first, self.second):
            dropdown.observe(guarded(self._pair), "value")
        self.image.observe(guarded(self._pick_number), "value")
        self.radii.figure.observe(guarded(lambda: self._point(self.radii.figure.hovered, self._describe)), "hovered")
        self.radii.figure.observe(guarded(lambda: self._point(self.radii.figure.clicked, self._pick)), "clicked")
        self.scaled.observe(guarded(self._show_scales), "value")

    # Which runs -------------------------------------------------------------------------------------------------

    def _find(self, keep: Sequence[str] = ()) -> None:
        """List the runs of the folder, and choose those to keep, else the first two."""
        with self._callbacks.resting(), self._or_nothing():
            self.runs.options = ()
            self.found, left_out = comparison.find(self.folder.value)
            self.runs.options = [run.name for run in self.found]
            self.runs.value = [name for name in keep if name in self.runs.options] or self._first_two()
        self._left_out = f" Left out: {', '.join(left_out)}." if left_out else ""
        self._show()

    def _first_two(self) -> list[str]:
        """Two runs to begin with, if possible such as have images to show."""
        shown = [run for run in self.found if self._images_of([run])[0]]
        return [run.name for run in (shown if len(shown) > 1 else self.found)[:2]]

    def _named(self, name: object) -> FoundRun:
        return next(run for run in self.found if run.name == name)

    def _show(self) -> None:
        """Show the chosen runs."""
        self._chosen = [self._named(name) for name in self.runs.value]
        with self._or_nothing():
            if not self._chosen:
                raise InputError("expected two or more runs, got none. Pick some in the list: Ctrl adds one to others.")
            for run in self._chosen:
                _ = run.records, run.config  # what cannot be read is said before anything is drawn
        self._look = scenes.looks(self._chosen)
        self._offer([run.name for run in self._chosen])
        self.table.value = _table(self._chosen, self._look)
        self.status.say(f"{len(self.found)} runs found, {len(self._chosen)} chosen.{self._left_out}{self._warning()}")
        self._show_curves()
        self._pair()
        self.probabilities.draw(self._make_probabilities)
        self._show_scales()

    def _warning(self) -> str:
        norms = {run.config["norm"] for run in self._chosen if "norm" in run.config}
        return " Their norms differ, so that their radii cannot be compared." if len(norms) > 1 else ""

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """Leave no older figures beside an error."""
        try:
            yield
        except Exception:
            self.table.value, self.gains, self._chosen = "", [], []
            with self._callbacks.resting():
                for dropdown in (self.first, self.second, self.scaled):
                    dropdown.options = ()
            self.picture.show(None, "")
            for part in (self.curves, self.radii, self.probabilities, self.scales):
                part.children = []
            raise

    def _offer(self, names: Sequence[str]) -> None:
        """Offer the chosen runs in the dropdowns; what was picked there stays as long as it is among them."""
        with self._callbacks.resting():
            found = next((run.name for run in self._chosen if run.method == "data-dependent"), names[0])
            for dropdown, default in ((self.first, names[0]), (self.second, names[-1]), (self.scaled, found)):
                kept = dropdown.value if dropdown.value in names else default
                dropdown.options, dropdown.value = names, kept
            if self.first.value == self.second.value:
                self.second.value = next((name for name in names if name != self.first.value), names[0])

    # What is shown of them --------------------------------------------------------------------------------------

    def _show_curves(self) -> None:
        drawn = {"bands": self.bands.value, "envelope": self.envelope.value}
        if self._chosen:
            self.curves.draw(lambda: (scenes.curves(self._chosen, self._look, **drawn), ""))

    def _make_probabilities(self) -> tuple[Figure, str]:
        known = [run for run in self._chosen if run.knows("p_lower")]
        missing = ", ".join(run.name for run in self._chosen if run not in known)
        why = f"Without p_lower, a column that only record files of ddviz have: {missing}." if missing else ""
        if not known:
            raise InputError(why)
        return scenes.probabilities(known, self._look), why

    def _show_scales(self) -> None:
        run = self._named(self.scaled.value)
        images, _ = self._images_of([run])
        classes = images.classes if images else ()
        self.scales.draw(lambda: (scenes.scales(run, self._look, classes), ""))

    # Image by image ---------------------------------------------------------------------------------------------

    def _images_of(self, runs: Sequence[FoundRun]) -> tuple[ImageSet | None, str]:
        """The images of the first run that has some, else the reason why there are none."""
        why = ""
        for run in runs:
            try:
                return comparison.images_of(run, self.selection), ""
            except InputError as error:
                why = f"No pictures: {error}"
        return None, why

    def _pair(self) -> None:
        """Show the images that two of the runs share, the one that gained most first."""
        self.gains, self._picked = [], None
        self.picture.show(None, "")
        self.radii.draw(self._make_radii)
        if self._picked:
            self._describe(self._picked)

    def _make_radii(self) -> tuple[Figure, str]:
        first, second = self._named(self.first.value), self._named(self.second.value)
        if first == second:
            raise InputError("expected two runs to compare image by image, got one. Pick another in the list.")
        self.gains = comparison.paired(first, second)
        self._picked = self._picked or max(self.gains, key=lambda gain: gain.gained)
        with self._callbacks.resting():
            self.image.value = self._picked.idx
        self._images, why = self._images_of([first, second])
        classes = self._images.classes if self._images else ()
        figure = scenes.radii(first, second, self.gains, self._look, classes, self._picked)
        self._scatter = cast(list[dict[str, list]], figure["data"])
        return figure, why

    def _pick(self, gain: Gain) -> None:
        """Ring an image in the figure, and show it."""
        self._picked = gain
        self.radii.draw(self._make_radii)
        self._describe(gain)

    def _pick_number(self) -> None:
        """Take the image of the number in the box, or the nearest there is."""
        if self.gains:
            self._pick(min(self.gains, key=lambda gain: abs(gain.idx - self.image.value)))

    def _point(self, where: Mapping[str, int], show: Callable[[Gain], None]) -> None:
        """Show the image of a point of the figure; lines have none."""
        for trace in self._scatter[where["curve"] :][:1]:  # it may be of a figure that has gone
            for index, *_ in trace.get("customdata", [])[where["point"] :][:1]:
                show(next(gain for gain in self.gains if gain.idx == index))

    def _describe(self, gain: Gain) -> None:
        """Show an image with its radii; without it where there is none to show."""
        image, why = None, ""
        classes = self._images.classes if self._images else ()
        if self._images:
            try:
                image = comparison.image_of(self._images, gain)
            except InputError as error:
                why = f" {error}"
        across, up = scenes.radius_texts(gain)
        name = scenes.class_name(classes, gain.label)
        told = f"image {gain.idx}, class {name}: across {across}, up {up}, gain {gain.gained:+.3f}.{why}"
        self.picture.show(image, told)


def _table(runs: Sequence[FoundRun], look: Looks) -> str:
    """The runs in numbers, as HTML."""
    unit = comparison.unit(runs)
    heads = ["run", "images", f"ACR ({unit})", "right at radius 0 (%)", "abstains (%)", "difference in ACR"]
    rows = ["<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"]
    for run in runs:
        told = comparison.summary(run, runs[0])
        if told.difference is None:
            difference = "other images"
        else:
            difference = f"{_with_error(told.difference, '+.3f')} ({told.common:,} images)"
        cells = [
            f"{told.images:,}",
            _with_error(told.acr, ".3f"),
            f"{100 * told.accuracy:.1f}",
            f"{100 * told.abstains:.1f}",
            "" if run is runs[0] else difference,
        ]
        mark = f'<span aria-hidden="true" style="color: {look[run.name].color}">&#9632;</span>'
        head = f'<th scope="row" style="text-align: left">{mark} {html.escape(run.name)}</th>'
        rows.append(f"<tr>{head}" + "".join(f'<td style="text-align: right">{cell}</td>' for cell in cells) + "</tr>")
    note = "<small>± one standard error over the images; the difference is to the first run, image by image.</small>"
    return f'<table cellpadding="6" style="line-height: 1.4">{"".join(rows)}</table>{note}'


def _with_error(value: tuple[float, float], form: str) -> str:
    return f"{value[0]:{form}} ± {value[1]:.3f}"
