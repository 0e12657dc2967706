"""Settings of a run: one frozen dataclass, checked before anything is loaded.

Each default of `notebooks/certify.ipynb` has its home here.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ddviz.backends import BACKENDS
from ddviz.budget import RULES, SampleBudget, largest_p_lower
from ddviz.errors import InputError
from ddviz.inference import DTYPES
from ddviz.models import NORMALIZATIONS
from ddviz.networks import ARCHITECTURES
from ddviz.settings import Settings
from ddviz.sigma import SOLVERS, Solver
from ddviz.smoothing import SMOOTHINGS

METHODS = {"fixed": "fixed", "ds": "data-dependent"}
"""Methods by the short name of parameters and folders, with the name that figures show."""

_USEFUL_P = 0.55  # a sample size that cannot bound p_A above this certifies radii of a rounding error at best
_NOT_DECIDING = ("data_root", "download", "run_root", "method", "max_images")
_BUDGET = ("budget", "target_radius")  # runs that were begun before there was a choice go on
_ASCENT_ONLY = ("iterations", "lr", "clamp")
_SEARCH_ONLY = (
    *("solver", "iterations", "lr", "samples", "clamp", "sigma_min", "sigma_max"),
    *("keep_class", "keep_radius", "search_batch"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """What to certify, with which network, how. Names are the field's; `samples` is n of Algorithm 1 (halving: 8 n).

    "", 0 and "auto" leave a choice to the package: for data_root, checkpoint and arch see `datasets.load` and
    `models.load`; sigma_min and sigma_max are the solver's own bounds; batch and search_batch are what suits the
    device; max_images 0 takes all.
    """

    dataset: str = "digits"
    data_root: str = ""
    download: bool = False
    image_size: int = 0
    checkpoint: str = ""
    arch: str = ""
    normalize: str = "auto"
    norm: str = "l2"
    sigma: float = 0.12
    method: str = "both"
    solver: str = "halving"
    iterations: int = 100
    lr: float = 1e-3
    samples: int = 4
    clamp: float = 0.0005
    sigma_min: float = 0.0
    sigma_max: float = 0.0
    keep_class: bool = True
    keep_radius: bool = True
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    budget: str = "fixed"
    target_radius: float = 0.0
    batch: int = 0
    search_batch: int = 0
    skip: int = 1
    max_images: int = 200
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "torch"
    run_root: str = "runs"

    @property
    def methods(self) -> list[str]:
        """Short names of the methods to run."""
        return list(METHODS) if self.method == "both" else [self.method]

    def deciding(self, method: str) -> dict[str, object]:
        """The settings that decide a method's records; the others say where things are and how many images to do."""
        left_out = _NOT_DECIDING + (_SEARCH_ONLY if method == "fixed" else ())
        left_out += _ASCENT_ONLY if self.solver == "halving" else ()
        left_out += _BUDGET if self.budget == "fixed" else ()
        left_out += ("backend",) if self.backend == "torch" else ()
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def sample_budget(self) -> SampleBudget:
        """How many samples a certificate may draw, and when it stops."""
        return SampleBudget(self.budget, self.n, self.alpha, self.target_radius)

    def make_solver(self) -> Solver:
        """The solver these settings describe.

        A grid is given as many evaluations as K steps forward and back; a halving eight times the samples of a step.
        """
        shared = {"samples": self.samples, "clamp": self.clamp}
        ascent = {"iterations": self.iterations, "lr": self.lr, **shared}
        own: dict[str, dict[str, Any]] = {
            "ascent": ascent,
            "ascent-fast": ascent,
            "grid": {"evaluations": 2 * self.iterations, **shared},
            "halving": {"samples": 8 * self.samples, "n": self.n, "alpha": self.alpha},
        }
        bounds = self._bounds(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        promises = {"keep_class": self.keep_class, "keep_radius": self.keep_radius}
        return SOLVERS[self.solver](**promises, **bounds, **own[self.solver])

    def _check(self) -> None:
        self._check_choices(
            {
                "arch": ["", *ARCHITECTURES],
                "normalize": ["auto", *NORMALIZATIONS],
                "norm": list(SMOOTHINGS),
                "method": [*METHODS, "both"],
                "solver": list(SOLVERS),
                "budget": list(RULES),
                "dtype": ["auto", *DTYPES],
                "backend": list(BACKENDS),
            }
        )
        self._check_dataset(self.dataset)
        self._check_device(self.device)
        least = {"n0": 1, "n": 1, "skip": 1, "samples": 1, "max_images": 0, "iterations": 0, "image_size": 0}
        self._check_least(least | {"batch": 0, "search_batch": 0, "seed": 0, "lr": 0, "sigma_min": 0, "sigma_max": 0})
        self._check_sigma(self.sigma)
        self._check_clamp(self.clamp)
        if not 0 < self.alpha < 0.5:
            raise InputError(
                f"expected alpha, the probability of a wrong certificate, in (0, 0.5), got {self.alpha:g}."
            )
        if (bound := largest_p_lower(self.n, self.alpha)) < _USEFUL_P:
            enough = math.ceil(math.log(self.alpha) / math.log(_USEFUL_P))
            raise InputError(
                f"expected n >= {enough} samples, got {self.n}: too few to certify anything, since even if all agree "
                f"they bound p_A only by {bound:.3f} at alpha={self.alpha:g}. The field uses n=100000."
            )
        if self.solver == "grid" and self.samples > 2 * self.iterations:
            raise InputError(
                f"expected samples <= 2 * iterations for a grid, got {self.samples} and {self.iterations}."
            )
        solver = self.make_solver()
        if "ds" in self.methods and not solver.sigma_min < self.sigma <= solver.sigma_max:
            raise InputError(
                f"expected sigma_min < sigma <= sigma_max, got {solver.sigma_min:g}, {self.sigma:g}, "
                f"{solver.sigma_max:g}."
            )
        for method in self.methods:  # more noise reaches further
            largest = self.sigma if method == "fixed" else solver.furthest(self.sigma)
            self.sample_budget.check_reach(SMOOTHINGS[self.norm], largest)
