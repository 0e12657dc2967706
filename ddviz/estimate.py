"""What runs will cost on this device, before they are made: network evaluations as planned, times as measured here.

A plan can be estimated without its data and its weights: an evaluation costs what the architecture makes of it.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor, nn

from ddviz import datasets, models
from ddviz.ablation import Ablation
from ddviz.config import RunConfig
from ddviz.datasets import ImageSet
from ddviz.errors import InputError
from ddviz.inference import DTYPES, compile_gradient, default_dtype
from ddviz.networks import ARCHITECTURES
from ddviz.noise import NoiseKey, Stage
from ddviz.plan import PlannedRun
from ddviz.recipe import DEFAULT_ARCH, Recipe
from ddviz.sampling import Sampler, side_by_side
from ddviz.settings import torch_device
from ddviz.sigma import Ascent, Grid, Solver, default_search_batch
from ddviz.smoothing import SMOOTHINGS
from ddviz.trainer import Precision

_OPENING = 10.0  # seconds a notebook takes to start its kernel, import torch and load, about
_LEAST = 0.5  # seconds that a pace is measured for
_TRAIN_BATCH = 32
_ANY, _ANY_SIGMA = SMOOTHINGS["l2"], 0.25  # what an evaluation costs does not depend on them
_PUBLISHED = {  # data sets that need not be there: shape, classes, test and training images
    "cifar10": ((3, 32, 32), 10, 10_000, 50_000),
    "imagenet": ((3, 224, 224), 1000, 50_000, 1_281_167),
}


@dataclass(frozen=True)
class Estimate:
    """What a run costs. certificates: images certified, over all its runs. evaluations: of the network, in all."""

    certificates: int = 0
    evaluations: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.certificates + other.certificates,
            self.evaluations + other.evaluations,
            self.seconds + other.seconds,
        )


NOTHING = Estimate()


def estimate(run: PlannedRun) -> Estimate:
    """What a planned run costs on its device, where nothing of it is done yet.

    Budgets that stop early and searches that end early are counted as if they did not. Only the pace of each
    architecture is measured, for a second or less, with random weights and pixels.

    Raises: InputError where a folder of images is not there.
    """
    settings = run.settings
    if isinstance(settings, Recipe):
        return Estimate(seconds=_OPENING) + _training(settings)
    configs = [settings] if isinstance(settings, RunConfig) else []
    configs += settings.planned if isinstance(settings, Ablation) else []
    parts = [_certification(config, method, run.arch) for config in configs for method in config.methods]
    return sum(parts, Estimate(seconds=_OPENING))


def _certification(config: RunConfig, method: str, arch: str) -> Estimate:
    images, solver = _images(config), config.make_solver()
    pace = _pace(
        config.dataset,
        config.data_root,
        config.arch or arch or _arch(config),
        torch_device(config.device),
        config.dtype,
    )
    searched = solver.planned if method == "ds" else 0
    seconds = (config.n0 + config.n) * pace.counting + (searched * pace.searching(_short(solver)) if searched else 0)
    return Estimate(images, images * (config.n0 + config.n + searched), images * seconds)


def _short(solver: Solver) -> Solver:
    """A search of which an evaluation costs the same, in few."""
    if isinstance(solver, Ascent):
        return replace(solver, iterations=2)
    return replace(solver, evaluations=2 * solver.samples) if isinstance(solver, Grid) else solver


def _training(recipe: Recipe) -> Estimate:
    known = recipe.dataset in _PUBLISHED
    images = _PUBLISHED[recipe.dataset][3] if known else len(_set(recipe.dataset, recipe.data_root, "train"))
    arch = recipe.arch or DEFAULT_ARCH.get(recipe.dataset, "")
    pace = _pace(recipe.dataset, recipe.data_root, arch, torch_device(recipe.device), recipe.dtype)
    attacked = 1 + recipe.attack_steps if recipe.objective == "smoothadv" else 1
    passes, search = recipe.epochs * recipe.samples * attacked, recipe.make_search()
    searched = recipe.ds * (recipe.epochs - recipe.warmup_epochs) * search.planned
    seconds = passes * pace.training + (searched * pace.searching(_short(search)) if searched else 0)
    return Estimate(0, images * (passes + searched), images * seconds)


def _images(config: RunConfig) -> int:
    """Test images of a run: of the data where they are, else of the published set."""
    try:
        whole = len(_set(config.dataset, config.data_root, "test"))
    except InputError:
        if config.dataset not in _PUBLISHED:
            raise
        whole = _PUBLISHED[config.dataset][2]
    some = -(-whole // config.skip)
    return min(some, config.max_images) if config.max_images else some


@cache
def _set(dataset: str, data_root: str, split: str) -> ImageSet:
    return datasets.load(dataset, data_root=data_root, split=split)


def _arch(config: RunConfig) -> str:
    """The architecture that a run's checkpoint has, or probably has where it is not there."""
    try:
        return models.load(config.dataset, checkpoint=config.checkpoint, sigma=config.sigma).arch
    except InputError:
        return {"cifar10": "cifar_resnet18"}.get(config.dataset, DEFAULT_ARCH.get(config.dataset, ""))


@dataclass(frozen=True)
class _Pace:
    """Seconds that an evaluation of an architecture takes on a device, each kind measured when first asked for."""

    arch: str
    shape: tuple[int, ...]
    classes: int
    device: torch.device
    dtype: str

    @cached_property
    def _network(self) -> nn.Module:
        if self.arch not in ARCHITECTURES:
            raise InputError(f"expected an architecture of {', '.join(ARCHITECTURES)}, got {self.arch!r}.")
        with torch.random.fork_rng([]):
            return ARCHITECTURES[self.arch](num_classes=self.classes).to(self.device).eval().requires_grad_(False)

    @cached_property
    def _image(self) -> Tensor:
        return torch.full(self.shape, 0.5, device=self.device)

    @cached_property
    def _sampler(self) -> Sampler:
        given = {"device": self.device, "dtype": self.dtype, "num_classes": self.classes}
        return Sampler.prepare(self._network, self._image, **given)

    @cached_property
    def counting(self) -> float:
        """In a certificate."""
        key, many = NoiseKey(0, 0, Stage.CHECK), 4 * self._sampler.batch * self._sampler.workers
        return _measured(lambda: self._sampler.count(self._image, 0.25, many, smoothing=_ANY, key=key), many)

    @cache  # noqa: B019 (there are as many paces as architectures)
    def searching(self, solver: Solver) -> float:
        """In a search."""
        if solver.form == "forward":
            return self.counting
        plain, workers = solver.form == "plain", self._sampler.workers
        network = self._network if plain else compile_gradient(self._network, self._image, DTYPES[self.dtype])
        most = default_search_batch(self._image.numel(), solver.samples)
        images = self._image.expand(most if self.device.type == "cuda" else min(8, most), *self.shape)
        search = partial(solver, network, images, _ANY_SIGMA)
        return _measured(lambda: side_by_side(workers, *[search] * workers), workers * len(images) * solver.planned)

    @cached_property
    def training(self) -> float:
        """Forward and back in training."""
        precision = Precision(copy.deepcopy(self._network).requires_grad_(True), self.device, DTYPES[self.dtype])
        batch = self._image.expand(_TRAIN_BATCH, *self.shape)
        return _measured(lambda: precision(batch).logsumexp(1).sum().backward(), _TRAIN_BATCH)


@cache
def _pace(dataset: str, data_root: str, arch: str, device: torch.device, dtype: str) -> _Pace:
    if dataset in _PUBLISHED:
        shape, classes = _PUBLISHED[dataset][:2]
    else:
        images = _set(dataset, data_root, "test")
        shape, classes = tuple(images.image(images.indices[0]).shape), len(images.classes)
    return _Pace(arch, shape, classes, device, default_dtype(device) if dtype == "auto" else dtype)


def _measured(work: Callable[[], object], evaluations: int) -> float:
    """Seconds an evaluation, once warm."""
    work()
    began, rounds = time.perf_counter(), 0
    while rounds == 0 or time.perf_counter() - began < _LEAST:
        work()
        rounds += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / rounds / evaluations
