"""One image looked at closely: how its radius depends on the noise scale, and where the searches end.

Radii here are estimates from few samples, for the eye. `certify_scales` gives the certificates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddviz.analysis import Gain, extremes, gains
from ddviz.bench import Bench
from ddviz.certify import Certificate, certify
from ddviz.config import RunConfig
from ddviz.errors import InputError
from ddviz.jobs import Token
from ddviz.noise import NoiseKey, Stage, fill_block
from ddviz.records import is_correct, read_records
from ddviz.sigma import Ascent, Grid
from ddviz.smoothing import Smoothing, smoothing_for

SCALES = 24
"""Noise scales of a landscape."""
SAMPLES = 128
"""Noise samples at each of them."""
_GRID_EVALUATIONS = 200  # the paper's, appendix B
_EXTREMES = 24


@dataclass(frozen=True)
class Landscape:
    """Estimated radius over the noise scale, every scale under the same noise samples.

    sigma, radius, error: (S,); error is the radius's standard error (jackknife). probabilities: (S, classes), mean
    softmax outputs. top: (S,), the class whose radius it is.
    """

    sigma: Tensor
    radius: Tensor
    error: Tensor
    probabilities: Tensor

    @property
    def top(self) -> Tensor:
        return self.probabilities.argmax(1)

    def at(self, sigma: float) -> tuple[float, Tensor]:
        """Radius and class probabilities (classes,) at any scale, between neighbours in log sigma."""
        place = torch.searchsorted(self.sigma, sigma).clamp(1, len(self.sigma) - 1)
        low, high = self.sigma[place - 1].log(), self.sigma[place].log()
        share = ((torch.tensor(sigma).log() - low) / (high - low)).clamp(0, 1)
        radius = torch.lerp(self.radius[place - 1], self.radius[place], share)
        return radius.item(), torch.lerp(self.probabilities[place - 1], self.probabilities[place], share)


@dataclass(frozen=True)
class Study:
    """All that the explorer shows of one image. sigma, radius: (K + 1,), the path of Algorithm 1.

    grid: the scale that the grid search of appendix B chooses, from about as many evaluations as the paper gives it.
    evaluations: noisy images that passed the network for all of this.
    """

    index: int
    label: int
    image: Tensor
    config: RunConfig
    sigma: Tensor
    radius: Tensor
    grid: float
    landscape: Landscape
    evaluations: int


def study(bench: Bench, config: RunConfig, index: int, token: Token | None = None) -> Study:
    """Search the noise scale of one image with a config's settings, and draw the landscape around it.

    bench: what to search in; of its own config only data and network count.

    Raises: InputError for settings that fit no search; Cancelled.
    """
    token = token or Token()
    image, network = bench.image(index).to(bench.sampler.device), token.watch(bench.network)
    common = {"samples": config.samples, "clamp": config.clamp}
    settings = {"smoothing": config.norm, "seed": config.seed, "indices": [index]}
    solver = replace(config.make_solver(), keep_class=False, keep_radius=False)
    if not isinstance(solver, Ascent):
        raise InputError(f"expected solver ascent, whose path is shown here, got {config.solver!r}.")
    path = solver(network, image[None], config.sigma, **settings)
    grid = Grid(evaluations=max(_GRID_EVALUATIONS, config.samples), **common)
    best = grid(network, image[None], min(config.sigma, grid.sigma_max), **settings).chosen.item()
    visited = torch.cat([path.sigma[:, 0].cpu(), torch.tensor([best, config.sigma / 3, config.sigma * 3])])
    around = landscape(
        token.watch(bench.sampler.forward),
        image,
        torch.logspace(visited.min().log10().item(), visited.max().log10().item(), SCALES),
        smoothing=smoothing_for(config.norm),
        key=NoiseKey(config.seed, index, Stage.SHOW),
        clamp=config.clamp,
    )
    sigma, radius = path.sigma[:, 0].cpu(), path.radius[:, 0].cpu()
    label = int(bench.images.labels[index])
    return Study(index, label, image.cpu(), config, sigma, radius, best, around, token.evaluations)


def study_evaluations(config: RunConfig) -> int:
    """Network evaluations that `study` will make."""
    grid = max(_GRID_EVALUATIONS, config.samples) // config.samples * config.samples
    return (config.iterations + 1) * config.samples + grid + SCALES * SAMPLES


@torch.no_grad()
def landscape(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: Tensor,
    *,
    smoothing: Smoothing,
    key: NoiseKey,
    clamp: float,
    samples: int = SAMPLES,
) -> Landscape:
    """Estimate the radius of one image x (C, H, W) at each scale of sigma (S,), ascending."""
    noise = fill_block(torch.empty(samples, *x.shape, device=x.device), smoothing, key, 0)
    outputs = torch.stack([forward(x + scale * noise).softmax(1).cpu() for scale in sigma.tolist()])  # (S, n, classes)
    mean = outputs.mean(1)
    others = (mean[:, None] * samples - outputs) / max(1, samples - 1)  # the means without one sample each
    top = mean.argmax(1)
    radius, without = (_radius(smoothing, sigma, values, top, clamp) for values in (mean[:, None], others))
    error = ((samples - 1) / samples * (without - without.mean(1, keepdim=True)).square().sum(1)).sqrt()
    return Landscape(sigma, radius[:, 0], error, mean)


def _radius(smoothing: Smoothing, sigma: Tensor, probabilities: Tensor, top: Tensor, clamp: float) -> Tensor:
    """Radius (S, n) of the class top (S,) under probabilities (S, n, classes)."""
    place = top.view(-1, 1, 1).expand(-1, probabilities.shape[1], 1)
    p_a, p_b = probabilities.gather(2, place)[..., 0], probabilities.scatter(2, place, 0).amax(2)
    return smoothing.radius(sigma[:, None].expand_as(p_a), p_a, p_b, clamp)


def noisy(study: Study, sigma: float, draw: int) -> Tensor:
    """The study's image (C, H, W) under one draw of noise; the same draw is the same noise at every scale."""
    key = NoiseKey(study.config.seed, study.index, Stage.SHOW)
    return study.image + sigma * fill_block(
        torch.empty_like(study.image), smoothing_for(study.config.norm), key, draw + 1
    )


def gain(certificates: Sequence[Certificate], label: int) -> float:
    """Radius that the second of two certificates has more than the first, wrong answers counting as 0."""
    before, after = (c.radius if is_correct(c.predict, label) else 0.0 for c in certificates)
    return after - before


def certify_scales(
    bench: Bench, config: RunConfig, index: int, scales: Sequence[float], token: Token | None = None
) -> list[Certificate]:
    """Certify one image at several noise scales, with a config's n0, n and alpha.

    Raises: Cancelled.
    """
    sampler = replace(bench.sampler, forward=(token or Token()).watch(bench.sampler.forward))
    settings = {"n0": config.n0, "n": config.n, "alpha": config.alpha, "smoothing": config.norm, "seed": config.seed}
    return [certify(sampler, bench.image(index), scale, index=index, **settings) for scale in scales]


def finished_gains(bench: Bench) -> list[Gain]:
    """The images of a finished pair of runs (fixed, ds) that lost and that gained most; none where no such runs are."""
    files = [bench.folder(method).records for method in ("fixed", "ds")]
    if not all(file.exists() for file in files):
        return []
    known = set(bench.images.indices)
    pairs = [gain for gain in gains(*(read_records(file) for file in files)) if gain.idx in known]
    return extremes(pairs, _EXTREMES)
