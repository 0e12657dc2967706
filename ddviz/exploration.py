"""One image looked at closely: how its radius depends on the noise scale, and where the searches end.

Radii here are estimates from few samples, for the eye. `certify_scales` gives the certificates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ddviz.analysis import Gain, extremes, gains
from ddviz.bench import Bench
from ddviz.budget import lower_confidence_bound
from ddviz.certify import Certificate, certify_many
from ddviz.config import METHODS, RunConfig
from ddviz.errors import InputError, explained_memory_errors
from ddviz.jobs import Token
from ddviz.noise import NoiseKey, Stage, fill_block
from ddviz.records import is_correct, read_records
from ddviz.sampling import side_by_side
from ddviz.sigma import Ascent, Grid, SigmaPath, Solver
from ddviz.smoothing import Smoothing, smoothing_for

SCALES = 24
"""Noise scales of a landscape."""
SAMPLES = 128
"""Noise samples at each of them."""
_EXTREMES = 24


@dataclass(frozen=True)
class Landscape:
    """Estimated radius over the noise scale, every scale under the same noise samples.

    sigma, radius, low, high: (S,) in [0,1]-pixel units, ascending in sigma; low and high are a band of at least 95 % at
    each scale. probabilities: (S, classes), mean softmax outputs. Radii end at the clamp's, as in the search.
    """

    sigma: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor
    probabilities: Tensor

    @property
    def top(self) -> Tensor:
        """The class (S,) whose radius it is."""
        return self.probabilities.argmax(1)

    def at(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Radius (K,) and class probabilities (K, classes) at any scales (K,), between neighbours in log sigma."""
        place = torch.searchsorted(self.sigma, sigma).clamp(1, len(self.sigma) - 1)
        low, high = self.sigma[place - 1].log(), self.sigma[place].log()
        share = ((sigma.log() - low) / (high - low)).clamp(0, 1)
        radius = torch.lerp(self.radius[place - 1], self.radius[place], share)
        return radius, torch.lerp(self.probabilities[place - 1], self.probabilities[place], share[:, None])


@dataclass(frozen=True)
class Study:
    """All that the explorer shows of one image. sigma, radius: (K + 1,), the path of Algorithm 1.

    kept: whether a run by Algorithm 1 takes the path's end, or stays at sigma_0 to keep the promises of section 3.4.
    choices: the scales that other solvers choose, by the solver's name; the grid search of appendix B makes about as
    many evaluations as the paper gives it, and without promises, as there.
    evaluations: noisy images that passed the network for all of this.
    """

    index: int
    label: int
    image: Tensor
    config: RunConfig
    sigma: Tensor
    radius: Tensor
    kept: bool
    choices: dict[str, float]
    landscape: Landscape
    evaluations: int

    @property
    def scale_name(self) -> str:
        """What the noise scale is called where it is shown."""
        return smoothing_for(self.config.norm).scale_name


def study(bench: Bench, config: RunConfig, index: int, token: Token | None = None) -> Study:
    """Search the noise scale of one image with a config's settings, and draw the landscape around it.

    bench: what to search in; of its own config only data and network count.

    Raises: InputError for settings that fit no search; Cancelled.
    """
    token = token or Token()
    image = bench.image(index).to(bench.sampler.device)
    solvers = _others(config)
    settings = {"smoothing": config.norm, "seed": config.seed, "indices": [index]}
    with explained_memory_errors("batch", bench.sampler.batch):
        workers = bench.sampler.workers

        def search(solver: Solver, network: nn.Module) -> SigmaPath:
            return solver(network, image[None], min(config.sigma, solver.sigma_max), **settings)

        both = [(solver, token.watch(bench.form(solver))) for solver in (_ascent(config), *solvers.values())]
        path, *others = side_by_side(workers, *(partial(search, *each) for each in both))
        choices = {name: found.chosen.item() for name, found in zip(solvers, others, strict=True)}
        sigma, radius = path.sigma[:, 0].cpu(), path.radius[:, 0].cpu()
        visited = torch.cat([sigma, torch.tensor([*choices.values(), config.sigma / 3, config.sigma * 3])]).log10()
        scales = torch.logspace(visited.min().item(), visited.max().item(), SCALES - 1)
        around = landscape(
            token.watch(bench.sampler.forward),
            image,
            torch.cat([scales, torch.tensor([config.sigma])]).sort().values,
            smoothing=smoothing_for(config.norm),
            key=NoiseKey(config.seed, index, Stage.SHOW),
            clamp=config.clamp,
            batch=bench.sampler.batch,
            workers=workers,
        )
    kept = path.chosen.item() == path.sigma[-1].item()
    label = int(bench.images.labels[index])
    return Study(index, label, image.cpu(), config, sigma, radius, kept, choices, around, token.evaluations)


def _ascent(config: RunConfig) -> Ascent:
    """Algorithm 1, whose path is shown, whatever solver a config names."""
    ascent = replace(config, solver="ascent-fast").make_solver()
    assert isinstance(ascent, Ascent)
    return ascent


def _others(config: RunConfig) -> dict[str, Solver]:
    """The solvers whose choices are shown beside the path, by name."""
    grid = Grid(evaluations=max(Grid.evaluations, config.samples), samples=config.samples, clamp=config.clamp)
    return {"halving": replace(config, solver="halving").make_solver(), "grid": grid}


def study_evaluations(config: RunConfig) -> int:
    """Network evaluations that `study` will make."""
    return sum(solver.planned for solver in (_ascent(config), *_others(config).values())) + SCALES * SAMPLES


def landscape(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: Tensor,
    *,
    smoothing: Smoothing,
    key: NoiseKey,
    clamp: float,
    samples: int = SAMPLES,
    batch: int = SAMPLES,
    workers: int = 1,
) -> Landscape:
    """Estimate the radius of one image x (C, H, W) at each scale of sigma (S,), ascending.

    Raises: InputError where the network returns NaN; ResourceError where a batch does not fit.
    """
    noise = fill_block(torch.empty(samples, *x.shape, device=x.device), smoothing, key, 0).split(batch)

    def means(scales: list[float]) -> list[Tensor]:
        with torch.no_grad():  # each thread has a mode of its own
            return [torch.cat([forward(x + scale * part).softmax(1) for part in noise]).mean(0) for scale in scales]

    shares = [partial(means, part.tolist()) for part in sigma.tensor_split(workers)]
    mean = torch.stack([one for share in side_by_side(workers, *shares) for one in share]).cpu()
    if not torch.isfinite(mean).all():
        raise InputError("the network returned NaN for noisy copies of this image: choose dtype float32.")
    top = mean.argmax(1, keepdim=True)
    p_a, p_b = mean.gather(1, top)[:, 0], mean.scatter(1, top, 0).amax(1)
    (a_low, a_high), (b_low, b_high) = _interval(p_a, samples), _interval(p_b, samples)
    radius, low, high = (
        smoothing.radius(sigma, a, b, clamp) for a, b in [(p_a, p_b), (a_low, b_high), (a_high, b_low)]
    )
    return Landscape(sigma, radius, low, high, mean)


def _interval(p: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Clopper-Pearson's 95 % interval of a mean of n values in [0, 1], as if they were votes, which vary most.

    Unlike an interval from their spread it keeps a width where all samples agree.
    """
    counts = (n * p.double()).clamp(0, n).tolist()
    low = [lower_confidence_bound(count, n, 0.025) for count in counts]
    high = [1 - lower_confidence_bound(n - count, n, 0.025) for count in counts]
    return torch.tensor(low), torch.tensor(high)


def noisy(study: Study, sigma: float, draw: int) -> Tensor:
    """The study's image (C, H, W) under one draw of noise; the same draw is the same noise at every scale."""
    key = NoiseKey(study.config.seed, study.index, Stage.SHOW)
    return study.image + sigma * fill_block(
        torch.empty_like(study.image), smoothing_for(study.config.norm), key, draw + 1
    )


def gain(certificates: Sequence[Certificate], label: int) -> float:
    """Radius, in [0,1]-pixel units, that the second certificate has more than the first; wrong answers count as 0."""
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
    images, indices = [bench.image(index)] * len(scales), [index] * len(scales)
    return certify_many(sampler, images, scales, indices, **settings)


def finished_gains(bench: Bench) -> list[Gain]:
    """The images of a finished pair of runs (fixed, ds) that lost and that gained most; none where no such runs are."""
    files = [bench.folder(method).records for method in METHODS]
    if not all(file.exists() for file in files):
        return []
    known = set(bench.images.indices)
    pairs = [gain for gain in gains(*(read_records(file) for file in files)) if gain.idx in known]
    return extremes(pairs, _EXTREMES)
