"""Choosing the noise scale of each image: Algorithm 1 (Alfarra et al., UAI 2022, arXiv 2012.04351) and other searches.

What is chosen here is only where to certify. Certificates are drawn from fresh noise afterwards and hold whatever
sigma_x came out.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddviz.errors import InputError
from ddviz.noise import NoiseKey, Stage, fill_block
from ddviz.sampling import default_batch
from ddviz.smoothing import Smoothing, smoothing_for

Network = Callable[[Tensor], Tensor]
"""Maps pixels (B, C, H, W) to logits (B, classes); any nn.Module does."""

_BATCHES = 4  # of the engine, in one pass where no gradient is wanted: bounds the memory


@dataclass(frozen=True)
class SigmaPath:
    """Every scale that a solver visited and the radius it estimated there, so that any K can be read off later.

    sigma, radius: (K + 1, B); row k is sigma^k and R(sigma^k), row 0 the start. For a grid: the grid. Radii are
    estimates from few samples, in [0,1]-pixel units. chosen: (B,), the sigma_x to certify with. evaluations: noisy
    copies of each image that the network was shown, as counted; a gradient counts nothing more.
    """

    sigma: Tensor
    radius: Tensor
    chosen: Tensor
    evaluations: int = 0


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Chooses a noise scale for each image of a batch. A solver is its settings; call it with a network and images.

    samples: noise samples for each estimate of a radius (n). clamp: probabilities are held to [clamp, 1 - clamp].
    sigma_min, sigma_max: no scale leaves these bounds.

    The two promises of section 3.4 are kept up to sampling error, by comparing with sigma_0 under shared noise of
    `check_samples` samples; where one would be broken, sigma_x is sigma_0.
    keep_class: the class predicted under sigma_x is the one predicted under sigma_0.
    keep_radius: the estimated radius under sigma_x is at least the one under sigma_0.

    form: the form of the network that suits the solver: as it is, or one made fast, with or without gradients.
    """

    form: ClassVar[Literal["plain", "gradient", "forward"]] = "plain"

    samples: int = 1
    clamp: float = 0.02
    sigma_min: float = 0.01
    sigma_max: float = 4.0
    keep_class: bool = False
    keep_radius: bool = False
    check_samples: int = 64

    def __call__(
        self,
        network: Network,
        x: Tensor,
        sigma_0: float | Tensor,
        *,
        smoothing: Smoothing | str = "l2",
        seed: int = 0,
        indices: Sequence[int] | None = None,
    ) -> SigmaPath:
        """Search from `sigma_0` (one scale, or one an image (B,)) for images x (B, C, H, W).

        The network returns logits. A module is used in eval mode with frozen parameters and left as it was; x and
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
        search = _Search(network, x.detach(), start, smoothing_for(smoothing), seed, indices)
        with frozen(network), torch.enable_grad():
            kept = self.keep_class or self.keep_radius
            check = search.noise(Stage.CHECK, 0, self.check_samples) if kept else None
            before = self._votes(search, start, check) if check is not None else None
            path = self._path(search, before[0] if before is not None and self.keep_class else None)
            if not (torch.isfinite(path.sigma).all() and torch.isfinite(path.radius).all()):
                raise InputError("the network returned NaN for noisy images: its weights seem damaged. Load others.")
            if check is None or before is None:
                return replace(path, evaluations=search.evaluations)
            (first, radius_0), (last, radius_x) = before, self._votes(search, path.chosen, check)
            broken = (self.keep_class & (last != first)) | (self.keep_radius & (radius_x < radius_0))
            chosen = torch.where(broken, start, path.chosen)
            return replace(path, chosen=chosen, evaluations=search.evaluations)

    def furthest(self, sigma_0: float) -> float:
        """The largest scale that a search from sigma_0 may choose."""
        return self.sigma_max

    @property
    def planned(self) -> int:
        """The evaluations of each image that a search will make."""
        return self._planned + 2 * self.check_samples * (self.keep_class or self.keep_radius)

    @property
    @abstractmethod
    def _planned(self) -> int:
        """Those of the search itself."""

    @abstractmethod
    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        """The search itself; `anchor` (B,) is the class whose radius counts, None: whichever is on top."""

    def _radius(self, search: "_Search", sigma: Tensor, logits: Tensor, anchor: Tensor | None) -> Tensor:
        """Estimated radius (B, scales) at scales (B, scales), from logits (B, scales, samples, classes).

        Of the class on top of the mean probabilities, or of the anchored one: negative where that is not on top.
        """
        mean = logits.softmax(3).mean(2)
        top = mean.argmax(2, keepdim=True) if anchor is None else anchor.view(-1, 1, 1).expand(*mean.shape[:2], 1)
        p_b = mean.scatter(2, top, 0).amax(2)
        return search.smoothing.radius(sigma, mean.gather(2, top)[..., 0], p_b, self.clamp)

    @torch.no_grad()
    def _votes(self, search: "_Search", sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The majority class (B,), as certification chooses it, and the estimated radius (B,) at one scale an image."""
        logits = search.logits(sigma[:, None], noise)
        votes = one_hot(logits[:, 0].argmax(2), logits.shape[3]).sum(1)
        return votes.argmax(1), self._radius(search, sigma[:, None], logits, None)[:, 0]


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

    @property
    def _planned(self) -> int:
        return (self.iterations + self.end_radius) * self.samples

    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        sigmas, radii = [search.sigma_0], []
        for k in range(self.iterations + self.end_radius):
            sigma = sigmas[-1].clone().requires_grad_()
            logits = search.logits(sigma[:, None], search.noise(Stage.SEARCH, k, self.samples))
            radius = self._radius(search, sigma[:, None], logits, anchor)[:, 0]
            radii.append(radius.detach())
            if k < self.iterations:
                (slope,) = torch.autograd.grad(radius.sum(), sigma)
                sigmas.append((sigmas[-1] + self.lr * slope).clamp(self.sigma_min, self.sigma_max))
        return SigmaPath(torch.stack(sigmas), torch.stack(radii), sigmas[-1])


@dataclass(frozen=True, kw_only=True)
class FastAscent(Ascent):
    """Algorithm 1 through a network made fast: the same steps, up to the rounding of its precision."""

    form = "gradient"


@dataclass(frozen=True, kw_only=True)
class Grid(Solver):
    """Grid search with shared noise (appendix B, equation 5): every scale meets the same samples.

    evaluations: network evaluations an image; with `samples` a scale they leave evaluations / samples scales, evenly
    spaced from sigma_min (not itself searched) to sigma_max. The paper's: 200 evaluations on (0, 1].
    """

    evaluations: int = 200
    sigma_min: float = 0.0
    sigma_max: float = 1.0

    @property
    def _planned(self) -> int:
        return self.evaluations // self.samples * self.samples

    @torch.no_grad()
    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        noise = search.noise(Stage.SEARCH, 0, self.samples)
        points = self.evaluations // self.samples
        grid = torch.linspace(self.sigma_min, self.sigma_max, points + 1, device=search.x.device)[1:]
        sigmas = [scale.expand(len(search.x), 1) for scale in grid]
        radii = [self._radius(search, sigma, search.logits(sigma, noise), anchor) for sigma in sigmas]
        sigma, radius = torch.cat(sigmas, 1).T, torch.cat(radii, 1).T
        return SigmaPath(sigma, radius, grid[radius.argmax(0)])


@dataclass(frozen=True, kw_only=True)
class Halving(Solver):
    """Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) over scales around sigma_0, for one class.

    Every scale meets the same samples; the worse half of the scales is dropped each time that the samples double.
    What makes few samples enough:

    - The class is fixed first. Under much noise many networks answer one class whatever the image, and surely. (Images
      of that class win by it: their certificates are true, and say little. `sigma_max` ends that sooner.)
    - The probability of the class is read off mean and deviation of its margin, the logit less the best other one.
      Where all of few samples agree, the mean of their probabilities says nothing of the tail.
    - The score is the radius that n samples at level alpha would certify at that probability, so that nothing is
      given for a certainty that no certificate could show.

    samples: those that the last round's scales have met, 2 at least. scales: of the grid, log-spaced over `reach`
    times sigma_0, with sigma_0 among them. softness: added to the margin's deviation, in logits, which few samples
    underestimate. n, alpha: of the certificate to come.
    """

    form = "forward"

    clamp: float = 1e-6
    samples: int = 16
    scales: int = 16
    reach: tuple[float, float] = (0.4, 4.0)
    softness: float = 0.1
    n: int = 10_000
    alpha: float = 0.001

    def furthest(self, sigma_0: float) -> float:
        return min(self.sigma_max, self.reach[1] * sigma_0)

    @property
    def _planned(self) -> int:
        met, kept = zip((0, self.scales), *self._rounds(), strict=True)
        fresh = sum(left * (after - before) for left, before, after in zip(kept, met, met[1:], strict=False))
        return fresh + self.samples * (not self.keep_class)  # the votes that keep the class choose it, too

    @torch.no_grad()
    def _path(self, search: "_Search", anchor: Tensor | None) -> SigmaPath:
        if self.samples < 2 or self.scales < 1:
            raise InputError(f"expected samples >= 2 and scales >= 1, got {self.samples} and {self.scales}.")
        if not 0 < self.reach[0] <= 1 <= self.reach[1]:
            raise InputError(f"expected a reach from below 1 (above 0) to above 1, got {self.reach}.")
        noise = search.noise(Stage.SEARCH, 0, self.samples)
        if anchor is None:
            anchor = search.logits(search.sigma_0[:, None], noise)[:, 0].softmax(2).mean(1).argmax(1)
        low, high = (math.log(factor) for factor in self.reach)
        factors = torch.linspace(low, high, self.scales, device=noise.device)
        factors[factors.abs().argmin()] = 0  # sigma_0 itself: where nothing is better, nothing changes
        grid = (search.sigma_0[:, None] * factors.exp()).clamp(self.sigma_min, self.sigma_max)  # (B, scales)
        radii = torch.empty_like(grid)
        left = torch.arange(self.scales, device=grid.device).expand_as(grid)  # the scales still in the race
        logits = None
        for samples, keep in self._rounds():
            sigma = grid.gather(1, left)
            fresh = search.logits(sigma, noise[:, 0 if logits is None else logits.shape[2] : samples])
            logits = fresh if logits is None else torch.cat([logits, fresh], 2)
            radius = self._radius(search, sigma, logits, anchor)
            radii.scatter_(1, left, radius)
            best = radius.topk(keep, 1).indices
            left, logits = left.gather(1, best), logits.take_along_dim(best[..., None, None], 1)
        return SigmaPath(grid.T, radii.T, grid.gather(1, left)[:, 0])

    def _rounds(self) -> list[tuple[int, int]]:
        """(samples met so far, scales kept) of each round, down to one scale that has met all samples."""
        rounds = max(1, math.ceil(math.log2(self.scales)))
        met = [max(2, self.samples >> (rounds - 1 - r)) for r in range(rounds)]
        return list({n: math.ceil(self.scales / 2 ** (r + 1)) for r, n in enumerate(met)}.items())

    def _radius(self, search: "_Search", sigma: Tensor, logits: Tensor, anchor: Tensor | None) -> Tensor:
        """The radius (B, scales) that certification can expect if the margins are about Gaussian."""
        if anchor is None:
            anchor = logits.softmax(3).mean((1, 2)).argmax(1)
        place = anchor.view(-1, 1, 1, 1).expand(*logits.shape[:3], 1)
        margin = (logits.gather(3, place) - logits.scatter(3, place, -torch.inf).amax(3, keepdim=True))[..., 0].double()
        p = torch.special.ndtr(margin.mean(2) / (margin.std(2) + self.softness))
        z2 = NormalDist().inv_cdf(1 - self.alpha) ** 2 / self.n
        lower = (p + z2 / 2 - (z2 * (p * (1 - p) + z2 / 4)).sqrt()) / (1 + z2)  # Wilson (JASA 22, 1927)
        return search.smoothing.radius(sigma, lower, 1 - lower, self.clamp).float()


SOLVERS: dict[str, type[Solver]] = {"ascent": Ascent, "ascent-fast": FastAscent, "grid": Grid, "halving": Halving}
"""Solvers by name."""


@dataclass
class _Search:
    """A network, images and start scales, with the noise that belongs to them."""

    network: Network
    x: Tensor
    sigma_0: Tensor
    smoothing: Smoothing
    seed: int
    indices: Sequence[int]
    evaluations: int = 0  # of each image

    def noise(self, stage: Stage, block: int, samples: int) -> Tensor:
        """Standard noise (B, samples, C, H, W); an image's does not depend on the images beside it."""
        noise = torch.empty(len(self.x), samples, *self.x.shape[1:], device=self.x.device)
        for out, index in zip(noise, self.indices, strict=True):
            fill_block(out, self.smoothing, NoiseKey(self.seed, index, stage), block)
        return noise

    def logits(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """Logits (B, scales, samples, classes) at x_i + sigma_is * e, for scales (B, scales)."""
        self.evaluations += sigma.shape[1] * noise.shape[1]
        unit = [1] * (self.x.ndim - 1)
        noisy = (self.x[:, None, None] + sigma.view(*sigma.shape, 1, *unit) * noise[:, None]).flatten(0, 2)
        most = _BATCHES * default_batch(self.x[0], self.x.device)
        parts = [noisy] if torch.is_grad_enabled() else noisy.split(most)
        return torch.cat([self.network(part) for part in parts]).unflatten(0, (*sigma.shape, -1))


def default_search_batch(pixels: int, samples: int) -> int:
    """Images in one pass of the search, so many that samples and gradients fit into a common device's memory."""
    most = 128 if pixels <= 3 * 64 * 64 else 8
    return max(1, min(most, 4 * most // samples))


@contextmanager
def frozen(network: Network) -> Iterator[None]:
    """A module in eval mode without parameter gradients, module by module; everything is put back as it was."""
    if not isinstance(network, nn.Module):
        yield
        return
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
