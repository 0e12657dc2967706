"""Choosing the noise scale of each image: Algorithm 1 and grid search (Alfarra et al., UAI 2022, arXiv 2012.04351).

What is chosen here is only where to certify. Certificates are drawn from fresh noise afterwards and hold whatever
sigma_x came out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddviz.errors import InputError
from ddviz.noise import NoiseKey, Stage, fill_block
from ddviz.smoothing import Smoothing, smoothing_for

_VOTES_AT_ONCE = 256  # noisy images in one pass: bounds the memory of the promises' check


@dataclass(frozen=True)
class SigmaPath:
    """Every scale that a solver visited and the radius it estimated there, so that any K can be read off later.

    sigma, radius: (K + 1, B); row k is sigma^k and R(sigma^k), row 0 the start. For a grid: the grid. Radii are
    estimates from few samples, in [0,1]-pixel units. chosen: (B,), the sigma_x to certify with.
    """

    sigma: Tensor
    radius: Tensor
    chosen: Tensor


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Chooses a noise scale for each image of a batch. A solver is its settings; call it with a network and images.

    samples: noise samples for each estimate of a radius (n). clamp: probabilities are held to [clamp, 1 - clamp].
    sigma_min, sigma_max: no scale leaves these bounds.

    The two promises of section 3.4 are kept up to sampling error, by comparing with sigma_0 under shared noise of
    `check_samples` samples; where one would be broken, sigma_x is sigma_0.
    keep_class: the class predicted under sigma_x is the one predicted under sigma_0.
    keep_radius: the estimated radius under sigma_x is at least the one under sigma_0.
    """

    samples: int = 1
    clamp: float = 0.02
    sigma_min: float = 0.01
    sigma_max: float = 4.0
    keep_class: bool = False
    keep_radius: bool = False
    check_samples: int = 64

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        sigma_0: float | Tensor,
        *,
        smoothing: Smoothing | str = "l2",
        seed: int = 0,
        indices: Sequence[int] | None = None,
    ) -> SigmaPath:
        """Search from `sigma_0` (one scale, or one an image (B,)) for images x (B, C, H, W).

        The network returns logits. It is used in eval mode with frozen parameters and left as it was; x and
        sigma_0 are not changed. indices: the images' numbers, which name their noise (default 0 .. B-1).

        Raises: InputError for sigma_0 outside (0, inf), and where the network returns NaN.
        """
        start = torch.as_tensor(sigma_0, dtype=torch.float32, device=x.device).expand(len(x)).detach().clone()
        if not ((start > 0) & torch.isfinite(start)).all():
            raise InputError(f"expected sigma_0 > 0, got {start.min().item():g}.")
        if start.min() < self.sigma_min or start.max() > self.sigma_max:
            raise InputError(
                f"expected sigma_0 inside the bounds {self.sigma_min:g} to {self.sigma_max:g} of the search, got "
                f"{start.min().item():g} to {start.max().item():g}."
            )
        indices = range(len(x)) if indices is None else indices
        search = _Search(network, x.detach(), start, smoothing_for(smoothing), seed, indices, self.clamp)
        with frozen(network), torch.enable_grad():
            kept = self.keep_class or self.keep_radius
            check = search.noise(Stage.CHECK, 0, self.check_samples) if kept else None
            before = search.votes(start, check) if check is not None else None
            path = self._path(search, before.predicted if before is not None and self.keep_class else None)
            if not (torch.isfinite(path.sigma).all() and torch.isfinite(path.radius).all()):
                raise InputError("the network returned NaN for noisy images: its weights seem damaged. Load others.")
            if check is None or before is None:
                return path
            after = search.votes(path.chosen, check)
            broken = (self.keep_class & (after.predicted != before.predicted)) | (
                self.keep_radius & (after.radius < before.radius)
            )
            return replace(path, chosen=torch.where(broken, start, path.chosen))

    @abstractmethod
    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        """The search itself; `anchor` (B,) is the class whose radius counts, None: whichever is on top."""


@dataclass(frozen=True, kw_only=True)
class Ascent(Solver):
    """Algorithm 1, OptimizeSigma: K steps of stochastic gradient ascent on the radius.

    iterations: K. lr: step size. The defaults are the paper's, with bounds so wide that they never bind there.
    end_radius: estimate the radius at the end of the path too; training needs only the end itself, for K
    evaluations instead of K + 1.
    """

    iterations: int = 100
    lr: float = 1e-4
    end_radius: bool = True

    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        sigmas, radii = [search.sigma_0], []
        for k in range(self.iterations + self.end_radius):
            sigma = sigmas[-1].clone().requires_grad_()
            radius = search.radius(sigma, search.noise(Stage.SEARCH, k, self.samples), anchor)
            radii.append(radius.detach())
            if k < self.iterations:
                (slope,) = torch.autograd.grad(radius.sum(), sigma)
                sigmas.append((sigmas[-1] + self.lr * slope).clamp(self.sigma_min, self.sigma_max))
        return SigmaPath(torch.stack(sigmas), torch.stack(radii), sigmas[-1])


@dataclass(frozen=True, kw_only=True)
class Grid(Solver):
    """Grid search with shared noise (appendix B, equation 5): every scale meets the same samples.

    evaluations: network evaluations an image; with `samples` a scale they leave evaluations / samples scales, evenly
    spaced from sigma_min (not itself searched) to sigma_max. The paper's: 200 evaluations on (0, 1].
    """

    evaluations: int = 200
    sigma_min: float = 0.0
    sigma_max: float = 1.0

    @torch.no_grad()
    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        noise = search.noise(Stage.SEARCH, 0, self.samples)
        points = self.evaluations // self.samples
        grid = torch.linspace(self.sigma_min, self.sigma_max, points + 1, device=search.x.device)[1:]
        sigmas = [scale.expand(len(search.x)) for scale in grid]
        radii = torch.stack([search.radius(sigma, noise, anchor) for sigma in sigmas])
        return SigmaPath(torch.stack(sigmas), radii, grid[radii.argmax(0)])


SOLVERS: dict[str, type[Solver]] = {"ascent": Ascent, "grid": Grid}
"""Solvers by name."""


@dataclass(frozen=True)
class _Votes:
    predicted: Tensor  # (B,) majority class, as certification chooses it
    radius: Tensor  # (B,) from mean probabilities, which say more than few votes


@dataclass(frozen=True)
class _Search:
    """A network, images and start scales, with the noise that belongs to them."""

    network: nn.Module
    x: Tensor
    sigma_0: Tensor
    smoothing: Smoothing
    seed: int
    indices: Sequence[int]
    clamp: float

    def noise(self, stage: Stage, block: int, samples: int) -> Tensor:
        """Standard noise (B, samples, C, H, W); an image's does not depend on the images beside it."""
        noise = torch.empty(len(self.x), samples, *self.x.shape[1:], device=self.x.device)
        for out, index in zip(noise, self.indices, strict=True):
            fill_block(out, self.smoothing, NoiseKey(self.seed, index, stage), block)
        return noise

    def probabilities(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """Softmax outputs (B, samples, classes) at x_i + sigma_i * e; differentiable in sigma (B,)."""
        noisy = self.x[:, None] + sigma.view(-1, 1, *[1] * (self.x.ndim - 1)) * noise
        return self.network(noisy.flatten(0, 1)).softmax(1).unflatten(0, noise.shape[:2])

    def radius(self, sigma: Tensor, noise: Tensor, anchor: Tensor | None = None) -> Tensor:
        """Estimated radius (B,) under the given noise, see `_radius`; differentiable in sigma (B,)."""
        return self._radius(sigma, self.probabilities(sigma, noise), anchor)

    @torch.no_grad()
    def votes(self, sigma: Tensor, noise: Tensor) -> _Votes:
        """What a certificate at scale sigma (B,) would find."""
        parts = noise.split(max(1, _VOTES_AT_ONCE // len(self.x)), dim=1)
        probabilities = torch.cat([self.probabilities(sigma, part) for part in parts], dim=1)
        classes = probabilities.argmax(2)
        counts = torch.zeros_like(probabilities[:, 0]).scatter_add_(1, classes, torch.ones_like(probabilities[..., 0]))
        return _Votes(counts.argmax(1), self._radius(sigma, probabilities, None))

    def _radius(self, sigma: Tensor, probabilities: Tensor, anchor: Tensor | None) -> Tensor:
        """Radius (B,) of the class on top of the mean, or of the anchored one (negative where it is not on top)."""
        mean = probabilities.mean(1)
        top = mean.argmax(1, keepdim=True) if anchor is None else anchor[:, None]
        p_b = mean.scatter(1, top, 0).amax(1)
        return self.smoothing.radius(sigma, mean.gather(1, top)[:, 0], p_b, self.clamp)


def default_search_batch(example: Tensor, samples: int) -> int:
    """Images in one pass of the search, so many that samples and gradients fit into a common device's memory."""
    most = 128 if example.numel() <= 3 * 64 * 64 else 8
    return max(1, min(most, 4 * most // samples))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode without parameter gradients, module by module; everything is put back as it was."""
    modes = [(module, module.training) for module in network.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
