"""The settings of a training run. Each default of `notebooks/train.ipynb` has its home here."""

import re
import shlex
from dataclasses import asdict, dataclass, fields

from ddviz.errors import InputError
from ddviz.models import NORMALIZATIONS
from ddviz.networks import ARCHITECTURES
from ddviz.objectives import ATTACKS, OBJECTIVES, GaussianAugmentation, Macer, Objective, SmoothAdv
from ddviz.schedules import SCHEDULES
from ddviz.settings import Settings
from ddviz.sigma import Ascent
from ddviz.smoothing import SMOOTHINGS

DEFAULT_ARCH = {"digits": "digits_cnn", "cifar10": "cifar_resnet20", "imagenet": "resnet50"}
"""What is trained where no architecture is named."""

_NOT_DECIDING = (
    *("data_root", "download", "run_root", "name", "note"),
    *("device", "compile", "workers", "checkpoint_steps", "eval_images"),
)
_SEARCH_ONLY = ("warmup", "iterations", "search_lr", "search_samples", "clamp", "sigma_min", "sigma_max")


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """What to train, and how: Algorithm 2 of arXiv 2012.04351; without `ds`, the method it builds on.

    ds: each training image has a scale of its own, which starts at sigma, stays there for `warmup` epochs (-1: a
    quarter of all) and then takes `iterations` steps of Algorithm 1 (step size search_lr, search_samples noise samples)
    at every visit. Keep search_lr times the number of visits below about 0.3: a network learns the noise it meets, so
    that scales which move on and on run away with its accuracy.
    samples: noisy copies of each image in a step (m of SmoothAdv, k of MACER). epsilon, attack...: SmoothAdv's.
    macer_lambda, gamma, beta: MACER's. "" and 0 leave a choice to the package.
    """

    dataset: str = "digits"
    data_root: str = ""
    download: bool = False
    image_size: int = 0
    arch: str = ""
    normalize: str = "auto"
    init: str = ""
    objective: str = "gaussian"
    norm: str = "l2"
    sigma: float = 0.25
    ds: bool = True
    warmup: int = -1
    iterations: int = 1
    search_lr: float = 0.002
    search_samples: int = 4
    clamp: float = 0.0005
    sigma_min: float = 0.0
    sigma_max: float = 0.0
    samples: int = 1
    epsilon: float = 0.25
    attack: str = "pgd"
    attack_steps: int = 2
    attack_warmup: int = 0
    macer_lambda: float = 12.0
    gamma: float = 8.0
    beta: float = 16.0
    epochs: int = 100
    batch: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    augment: bool = True
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    workers: int = 0
    checkpoint_steps: int = 1000
    eval_images: int = 1000
    run_root: str = "runs"
    name: str = ""
    note: str = ""

    def _check(self) -> None:
        self._check_choices(
            {
                "arch": ["", *ARCHITECTURES],
                "normalize": ["auto", *NORMALIZATIONS],
                "objective": list(OBJECTIVES),
                "norm": list(SMOOTHINGS),
                "attack": list(ATTACKS),
                "schedule": list(SCHEDULES),
                "dtype": ["auto", "float32", "bfloat16"],  # float16 would need its gradients scaled
            }
        )
        self._check_dataset(self.dataset)
        self._check_device(self.device)
        least = {"epochs": 1, "batch": 1, "samples": 1, "search_samples": 1, "attack_steps": 1, "checkpoint_steps": 1}
        least |= {"iterations": 1, "warmup": -1, "attack_warmup": 0, "workers": 0, "seed": 0, "eval_images": 1}
        least |= {"image_size": 0, "search_lr": 0, "sigma_min": 0, "sigma_max": 0, "epsilon": 0, "macer_lambda": 0}
        self._check_least(least | {"weight_decay": 0})
        for name in ("lr", "gamma", "beta"):
            if getattr(self, name) <= 0:
                raise InputError(f"expected {name} > 0, got {getattr(self, name):g}.")
        self._check_sigma(self.sigma)
        self._check_clamp(self.clamp)
        search = self.make_search()
        if self.ds and not search.sigma_min <= self.sigma <= search.sigma_max:
            raise InputError(
                f"expected sigma_min <= sigma <= sigma_max, got {search.sigma_min:g}, {self.sigma:g}, "
                f"{search.sigma_max:g}."
            )
        if self.ds and self.warmup >= self.epochs:
            raise InputError(f"expected warmup < epochs with ds, got {self.warmup} and {self.epochs}.")
        if self.seed >= 2**63:
            raise InputError(f"expected seed < 2**63, got {self.seed}.")
        if re.search(r"[/\\]|^\.", self.name):
            raise InputError(f"expected name to be that of a new folder in run_root, got {self.name!r}.")

    @property
    def deciding(self) -> dict[str, object]:
        """The settings that decide the weights; the others say where things are and how it is done."""
        left_out = _NOT_DECIDING + (() if self.ds else _SEARCH_ONLY)
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def warmup_epochs(self) -> int:
        """Epochs at sigma before the scales move."""
        return self.epochs // 4 if self.warmup < 0 else self.warmup

    @property
    def title(self) -> str:
        """<data set>-<network>-<method>-<scale>-<fs or ds2>, the name of the result."""
        arch = self.arch or DEFAULT_ARCH.get(self.dataset, "network")
        network = arch.removeprefix(f"{self.dataset}_").removeprefix("cifar_")
        method = {"gaussian": "cohen" if self.norm == "l2" else "yang"}.get(self.objective, self.objective)
        place = self.dataset.rstrip("/").rpartition("/")[2]
        return self.name or f"{place}-{network}-{method}-{self.sigma:g}-{'ds2' if self.ds else 'fs'}"

    @property
    def command(self) -> str:
        """The command that trains this."""
        left_out = ("data_root", "run_root", "download", "workers", *(() if self.ds else _SEARCH_ONLY))
        words = ["python -m ddviz train"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in left_out:
                flag = f"--{field.name}" if value is not False else f"--no-{field.name}"
                words.append(flag if isinstance(value, bool) else shlex.quote(f"{flag}={value}"))
        return " ".join(words)

    def make_objective(self) -> Objective:
        """The objective these settings describe."""
        if self.objective == "smoothadv":
            return SmoothAdv(
                samples=self.samples,
                epsilon=self.epsilon,
                attack=self.attack,
                steps=self.attack_steps,
                warmup=self.attack_warmup,
            )
        if self.objective == "macer":
            return Macer(samples=self.samples, lam=self.macer_lambda, gamma=self.gamma, beta=self.beta)
        return GaussianAugmentation(samples=self.samples)

    def make_search(self) -> Ascent:
        """K steps of Algorithm 1, as training takes them at each visit of an image."""
        return Ascent(
            iterations=self.iterations,
            lr=self.search_lr,
            samples=self.search_samples,
            clamp=self.clamp,
            end_radius=False,
            **self._bounds(sigma_min=self.sigma_min, sigma_max=self.sigma_max),  # type: ignore[arg-type]
        )
