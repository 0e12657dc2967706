"""The explorer: one image at a time, its radius over the noise scale, and what the sliders do to it.

What takes time runs in the background: a newer change cancels an older one, and an error shows in the panel.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import replace

import ipywidgets as ipw

from ddviz import exploration, models, scenes
from ddviz.bench import Bench, prepare
from ddviz.certify import Certificate
from ddviz.config import RunConfig
from ddviz.errors import InputError
from ddviz.exploration import Study
from ddviz.figureview import FigureView
from ddviz.jobs import Token, Worker
from ddviz.memory import Answer, Memory
from ddviz.records import ABSTAIN
from ddviz.sigma import Ascent
from ddviz.smoothing import smoothing_for
from ddviz.widgets import WRAP, Callbacks, Gallery, Picture, Status, slider

_PAPER = {"lr": Ascent.lr, "samples": Ascent.samples, "clamp": Ascent.clamp, "iterations": 900}
_SLOWEST = 1e-5
_SAID = {
    "new": "stored it as it came: no ball of another class is near",
    "known": "repeated what it had answered for this image before",
    "adopted": "gave it the class of the ball that it lies in",
    "shrunk": "shrank the radius, up to the nearest ball of another class",
    "abstained": "stored nothing, since nothing was certified",
}


class Explorer(ipw.VBox):
    """Pick an image, move the noise scale and the steps of Algorithm 1, see what happens, certify.

    config: data, network and norm to begin with, and the settings of search and certificate.
    """

    def __init__(self, config: RunConfig):
        self._searching, self._certifying = Worker(), Worker()
        if config.lr < _SLOWEST:
            raise InputError(f"expected lr >= {_SLOWEST:g} here, where a path is to be seen, got {config.lr:g}.")
        self.config = config
        self.bench: Bench | None = None
        self.study: Study | None = None
        self.memory = Memory(config.norm)
        self._clamp, self._draws = config.clamp, 0
        data = list(dict.fromkeys(["digits", "cifar10", "imagenet", config.dataset]))
        label = {"description_width": "60px"}
        self.dataset = ipw.Dropdown(
            options=data, value=config.dataset, description="data set", layout={"width": "220px"}, style=label
        )
        self.checkpoint = ipw.Dropdown(description="network", layout={"width": "380px"}, style=label)
        self._offer_networks(config.checkpoint)
        norms = [("l2, Gaussian noise", "l2"), ("l1, uniform noise", "l1")]
        self.norm = ipw.Dropdown(
            options=norms, value=config.norm, description="norm", layout={"width": "240px"}, style=label
        )
        self.status = Status()
        self._callbacks = Callbacks(self.status)
        self.gallery = Gallery(self.status)
        self.sigma_0 = slider(
            ipw.FloatLogSlider,
            "sigma_0 ([0,1] pixels)",
            value=config.sigma,
            min=min(-1.98, math.log10(config.sigma)),
            max=max(0.6, math.log10(config.sigma)),
            step=0.02,
            continuous_update=False,
            readout_format=".3f",
        )
        choices = [("step K of Algorithm 1", ""), *((name, solver) for solver, (name, _) in scenes.SOLVERS.items())]
        self.solver = ipw.Dropdown(options=choices, description="sigma_x by", layout={"width": "300px"}, style=label)
        self.k = slider(ipw.IntSlider, "K (steps of Algorithm 1)", value=config.iterations, max=config.iterations)
        most = max(32, config.samples)
        self.samples = slider(
            ipw.IntSlider, "n (noise samples a step)", value=config.samples, min=1, max=most, continuous_update=False
        )
        self.lr = slider(
            ipw.FloatLogSlider,
            "lr (step size)",
            value=config.lr,
            min=math.log10(_SLOWEST),
            max=max(-1.0, math.log10(config.lr)),
            step=0.1,
            continuous_update=False,
            readout_format=".1e",
        )
        paper = ", ".join(f"{name} {value:g}" for name, value in _PAPER.items())
        self.paper = ipw.Button(description="paper's settings", tooltip=paper)
        self.defaults = ipw.Button(description="defaults", tooltip="the settings that this panel began with")
        self.redraw = ipw.Button(description="other noise", icon="refresh", tooltip="draw the pictures' noise anew")
        self.pictures = [Picture() for _ in range(3)]
        self.figure = FigureView()
        amounts = [(f"N = {n:,}", n) for n in sorted({1000, 10_000, 100_000, config.n})]
        self.n = ipw.Dropdown(options=amounts, value=config.n, layout={"width": "130px"})
        small = {"width": "90px"}
        self.certify = ipw.Button(description="certify", icon="check", button_style="primary", layout=small)
        self.cancel = ipw.Button(description="cancel", icon="stop", disabled=True, layout=small)
        self.progress = ipw.FloatProgress(min=0, max=1, layout={"width": "150px"})
        self.result = ipw.HTML()
        super().__init__(self._arranged())
        self.add_class("ddviz-explorer")
        self._connect()
        self._load()

    def wait(self, seconds: float = 120) -> None:
        """Wait for what runs in the background, where no event loop runs: in scripts and tests."""
        self._searching.wait(seconds)
        self._certifying.wait(seconds)

    def close(self) -> None:
        """End what runs in the background, and the panel."""
        self._searching.cancel()
        self._certifying.cancel()
        super().close()

    def _arranged(self) -> list[ipw.Widget]:
        for name in ("k", "sigma_0", "certify", "cancel", "result", "gallery"):
            getattr(self, name).add_class(f"ddviz-{name.replace('_', '')}")
        settings = [
            self.sigma_0,
            self.k,
            self.solver,
            self.samples,
            self.lr,
            ipw.HBox([self.paper, self.defaults, self.redraw]),
        ]
        certifying = ipw.VBox([ipw.HBox([self.n, self.certify, self.cancel, self.progress], layout=WRAP), self.result])
        return [
            ipw.HBox([self.dataset, self.checkpoint, self.norm], layout=WRAP),
            ipw.HBox([self.gallery, ipw.VBox([ipw.HBox(self.pictures), self.status])], layout=WRAP),
            ipw.HBox([ipw.VBox(settings), certifying], layout=WRAP),
            self.figure,
        ]

    def _connect(self) -> None:
        guarded = self._callbacks
        self.dataset.observe(guarded(self._change_data), "value")
        self.gallery.observe(guarded(self._search), "index")
        for control in (self.k, self.solver):
            control.observe(guarded(self._show), "value")
        for control in (self.checkpoint, self.norm):
            control.observe(guarded(self._load), "value")
        for control in (self.sigma_0, self.samples, self.lr):
            control.observe(guarded(self._search), "value")
        self.paper.on_click(guarded(lambda: self._take(**_PAPER)))
        began = {name: getattr(self.config, name) for name in (*_PAPER, "sigma")}
        self.defaults.on_click(guarded(lambda: self._take(**began)))
        self.redraw.on_click(guarded(self._redraw))
        self.certify.on_click(guarded(self._certify))
        self.cancel.on_click(guarded(lambda: self._stop_certifying("Cancelled.")))

    # What is looked at ------------------------------------------------------------------------------------------

    def _offer_networks(self, first: str = "") -> None:
        zoo = [f"zoo:{name}" for name in models.zoo() if name.startswith(f"{self.dataset.value}-")]
        own = [self.config.checkpoint] if self.dataset.value == self.config.dataset else []
        names = dict.fromkeys(name for name in [*own, *zoo] if name)
        self.checkpoint.options = [("the default", ""), *((name, name) for name in names)]
        self.checkpoint.value = first

    def _change_data(self) -> None:
        with self._callbacks.resting():
            self._offer_networks()
        self._load()

    def _load(self) -> None:
        """Load data and network, then show the first image."""
        self._stop_certifying()
        self._searching.cancel()
        self.study, self.bench, self.memory = None, None, Memory(str(self.norm.value))
        scale = smoothing_for(str(self.norm.value)).scale_name
        self.sigma_0.description = f"{scale}_0 ([0,1] pixels)"
        chosen = {"dataset": self.dataset, "checkpoint": self.checkpoint, "norm": self.norm}
        settings = {name: str(control.value) for name, control in chosen.items()}
        self.status.say("Loading data and network ...")
        sigma = self.sigma_0.value
        self._searching.start(lambda _token: self._prepared(settings, sigma), self._loaded, self.status.fail)

    def _prepared(self, settings: dict[str, str], sigma: float) -> tuple[Bench, Sequence[int]]:
        config = replace(self.config, **settings, sigma=sigma)
        if config.dataset != self.config.dataset:
            config = replace(config, image_size=0)  # it was said of the other images
        if (config.dataset, config.checkpoint) != (self.config.dataset, self.config.checkpoint):
            config = replace(config, arch="", normalize="auto")
        bench = prepare(config)
        try:
            return bench, [gain.idx for gain in exploration.finished_gains(bench)]
        except InputError:  # a damaged record file of another run is no reason to show nothing
            return bench, []

    def _loaded(self, prepared: tuple[Bench, Sequence[int]]) -> None:
        self.bench, extremes = prepared
        self.gallery.offer(self.bench.images, extremes)

    # The search -------------------------------------------------------------------------------------------------

    def _settings(self) -> RunConfig:
        return replace(
            self.config,
            norm=self.norm.value,
            sigma=self.sigma_0.value,
            iterations=self.k.max,
            samples=self.samples.value,
            lr=self.lr.value,
            clamp=self._clamp,
            n=self.n.value,
        )

    def _take(self, *, lr: float, samples: int, iterations: int, clamp: float, sigma: float = 0.0) -> None:
        """Set all settings of the search at once; sigma 0 leaves sigma_0 where it is."""
        with self._callbacks.resting():
            self.sigma_0.value = sigma or self.sigma_0.value
            self.lr.value, self.samples.value = lr, samples
            self.k.max = self.k.value = iterations
        self._clamp = clamp
        self._search()

    def _search(self) -> None:
        """Search sigma_x of the picked image anew; an older search is given up."""
        bench, index = self.bench, self.gallery.index
        if bench is None or index < 0:
            return
        self._stop_certifying()
        config = self._settings()
        total = exploration.study_evaluations(config)
        self.status.say("Searching sigma_x ...")
        self._searching.start(
            lambda token: exploration.study(bench, config, index, token),
            self._found,
            self.status.fail,
            lambda done: self.status.say(f"Searching sigma_x: {done:,} of {total:,} network evaluations"),
        )

    def _found(self, study: Study) -> None:
        assert self.bench is not None
        self._stop_certifying()
        self.study = study
        self.pictures[0].show(study.image, f"image {study.index}: {self.bench.images.classes[study.label]}")
        self._show_noisy("0", study.config.sigma)
        self._show()
        broken = (
            ""
            if study.kept
            else f" A run by Algorithm 1 would stay at {study.scale_name}_0: its end breaks a promise of section 3.4."
        )
        made = f"{study.evaluations:,} network evaluations for this picture, clamp {study.config.clamp:g}"
        self.status.say(f"{self.bench.base.name}: {made}.{broken}")

    def _show(self) -> None:
        """Draw the stored study at the slider's K: no model call."""
        if (study := self.study) is None or self.bench is None:
            return
        self.figure.show(scenes.explorer(study, self._step(study), self.bench.images.classes, str(self.solver.value)))
        self._show_noisy("x", self._scales(study)[1])

    def _show_noisy(self, name: str, sigma: float) -> None:
        assert self.study is not None
        image = exploration.noisy(self.study, sigma, self._draws)
        self.pictures["0x".index(name) + 1].show(image, f"under {self.study.scale_name}_{name} = {sigma:.3f}")

    def _redraw(self) -> None:
        """Draw the pictures' noise anew."""
        self._draws += 1
        if self.study is not None:
            for name, sigma in zip("0x", self._scales(self.study), strict=True):
                self._show_noisy(name, sigma)

    def _scales(self, study: Study) -> tuple[float, float]:
        """sigma_0, and sigma_x by the chosen solver: at the slider's K, or where another one ends."""
        by = str(self.solver.value)
        return study.config.sigma, study.choices[by] if by else study.sigma[self._step(study)].item()

    def _step(self, study: Study) -> int:
        """The slider's K, or the path's end where a longer path is still being searched."""
        return min(self.k.value, len(study.sigma) - 1)

    # Certificates -----------------------------------------------------------------------------------------------

    def _certify(self) -> None:
        bench, study = self.bench, self.study
        if bench is None or study is None or self._searching.busy:
            self.status.say("The search has not ended yet. Certify when it has.")
            return
        config, scales = self._settings(), self._scales(study)
        total = len(scales) * (config.n0 + config.n)
        self.certify.disabled, self.cancel.disabled = True, False
        self.progress.value = 0
        self.result.value = "Certifying ..."

        def work(token: Token) -> list[Certificate]:
            return exploration.certify_scales(bench, config, study.index, scales, token)

        self._certifying.start(
            work,
            lambda certificates: self._certified(certificates, study, bench),
            self._not_certified,
            lambda done: self._progress(done, total),
        )

    def _progress(self, done: int, total: int) -> None:
        self.progress.value = done / total
        self.result.value = f"Certifying: {done:,} of {total:,} samples"

    def _stop_certifying(self, said: str = "") -> None:
        self._certifying.cancel()
        self.certify.disabled, self.cancel.disabled = False, True
        self.progress.value = 0
        self.result.value = said

    def _not_certified(self, error: BaseException) -> None:
        self._stop_certifying()
        self.status.fail(error)

    def _certified(self, certificates: list[Certificate], study: Study, bench: Bench) -> None:
        answer = self.memory.answer(study.image, certificates[1].predict, certificates[1].radius)
        self._stop_certifying(_table(certificates, answer, study, bench.images.classes, self.config.alpha))
        self.progress.value = 1


def _table(
    certificates: Sequence[Certificate], answer: Answer, study: Study, classes: Sequence[str], alpha: float
) -> str:
    """The certificates at both scales, the gain, and the memory's answer, as HTML."""
    norm, scale = study.config.norm, study.scale_name

    def named(predict: int) -> str:
        if predict == ABSTAIN:
            return "abstains"
        return html.escape(classes[predict]) + (" ✓" if predict == study.label else " ✗ (wrong)")

    rows = [f"<tr><th></th><th>class</th><th>p_A at least</th><th>radius ({norm}, [0,1]-pixel units)</th></tr>"]
    for name, c in zip((f"{scale}_0", f"{scale}_x"), certificates, strict=True):
        cells = (f"{name} = {c.sigma:.3f}", named(c.predict), f"{c.p_lower:.4f}", f"<b>{c.radius:.3f}</b>")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    gain = exploration.gain(certificates, study.label)
    return (
        f'<table class="ddviz-certificates" cellpadding="6">{"".join(rows)}</table>'
        f"<div>Radius gained, wrong answers counting as 0: <b>{gain:+.3f}</b>. N = {certificates[0].n:,}; each "
        f"certificate is wrong with probability {alpha:g} at most, if its settings were chosen before it was seen.<br>"
        f"The memory {_SAID[answer.case]}: {named(answer.predict)}, radius {answer.radius:.3f}.</div>"
    )
