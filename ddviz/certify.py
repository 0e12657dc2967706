"""Certified prediction of a smoothed classifier (Cohen et al. 2019, arXiv 1902.02918, section 3.2).

Three disjoint sets of noise samples keep the certificate honest: one chose sigma_x, one chooses the class, one
estimates its probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from ddviz.budget import SampleBudget, check_samples
from ddviz.datasets import checked_image
from ddviz.errors import InputError
from ddviz.noise import NoiseKey, Stage
from ddviz.records import ABSTAIN
from ddviz.sampling import Request, Sampler
from ddviz.smoothing import Smoothing, smoothing_for

_LARGEST_SCALE = 1e30  # noise of a larger scale would overflow float32


@dataclass(frozen=True)
class Certificate:
    """The smoothed classifier answers `predict` on the open ball of `radius` around the image.

    It holds with probability at least 1 - alpha over the noise. Radius in [0,1]-pixel units of the smoothing's norm; 0
    and ABSTAIN where nothing could be certified. `count` of the `n` samples drawn fell on the chosen class, whose
    probability is at least `p_lower`. sigma is the noise scale (lambda for l1).
    """

    predict: int
    radius: float
    p_lower: float
    count: int
    n: int
    sigma: float
    norm: str


def certificate(
    chosen: int, p_lower: float, count: int, n: int, *, sigma: float, smoothing: Smoothing, most: float = 0.0
) -> Certificate:
    """The certificate that a lower bound on the probability of the class `chosen` gives, from `count` of `n` samples.

    most: a radius that is not exceeded, 0 for none.
    """
    radius = smoothing.certified_radius(sigma, p_lower)
    radius = min(radius, most) if most else radius
    return Certificate(chosen if p_lower > 0.5 else ABSTAIN, radius, p_lower, count, n, sigma, smoothing.norm)


def certify(
    network: Sampler | nn.Module,
    x: Tensor,
    sigma: float,
    *,
    n0: int = 100,
    n: int = SampleBudget.n,
    alpha: float = SampleBudget.alpha,
    budget: SampleBudget | None = None,
    smoothing: Smoothing | str = "l2",
    seed: int = 0,
    index: int = 0,
) -> Certificate:
    """Certify one image x (C, H, W) of pixels in [0, 1] at noise scale `sigma`.

    network: any nn.Module from pixels (B, C, H, W) to logits, or a prepared `Sampler`. smoothing: "l2", "l1" or one of
    `SMOOTHINGS`. n0 samples choose the class, n fresh ones estimate its probability; alpha is the probability that the
    certificate is wrong. budget: n and alpha with a rule that may stop earlier, in their place. (seed, index) name the
    noise: give each image its own index.

    Raises: InputError for NaN, sigma <= 0, alpha outside (0, 1), n0, n < 1, or n or alpha beside a budget.
    """
    return certify_many(
        network, [x], [sigma], [index], n0=n0, n=n, alpha=alpha, budget=budget, smoothing=smoothing, seed=seed
    )[0]


def certify_many(
    network: Sampler | nn.Module,
    images: Sequence[Tensor],
    sigmas: Sequence[float],
    indices: Sequence[int],
    *,
    n0: int = 100,
    n: int = SampleBudget.n,
    alpha: float = SampleBudget.alpha,
    budget: SampleBudget | None = None,
    smoothing: Smoothing | str = "l2",
    seed: int = 0,
) -> list[Certificate]:
    """Certify images of one size, each at its own noise scale, with batches filled across them; see `certify`.

    Each certificate is the one that `certify` gives, up to rounding in lower precision. One image may stand there at
    several scales.

    Raises: as `certify`; InputError for images of different sizes.
    """
    smoothing, requests = smoothing_for(smoothing), []
    if budget is not None and (n, alpha) != (SampleBudget.n, SampleBudget.alpha):
        raise InputError(f"expected n and alpha inside the budget, got n={n} and alpha={alpha:g} beside {budget}.")
    budget = budget or SampleBudget(n=n, alpha=alpha)
    for x, sigma, index in zip(images, sigmas, indices, strict=True):
        network, x, sigma = _checked(network, x, sigma, alpha=budget.alpha, n0=n0)
        requests.append(Request(x, sigma, n0, NoiseKey(seed, index, Stage.CHOICE)))
    if not isinstance(network, Sampler):  # no image, so nothing was prepared
        return []
    chosen = network.count_many(requests, smoothing=smoothing).argmax(1).tolist()
    rules = [budget.for_noise(smoothing, request.sigma) for request in requests]
    count, drawn = [0] * len(requests), [0] * len(requests)
    while wanted := {i: m for i, rule in enumerate(rules) if (m := rule.until(count[i], drawn[i])) > drawn[i]}:
        fresh = [
            replace(requests[i], n=m - drawn[i], first=drawn[i], key=replace(requests[i].key, stage=Stage.ESTIMATE))
            for i, m in wanted.items()
        ]
        for i, counts in zip(wanted, network.count_many(fresh, smoothing=smoothing), strict=True):
            count[i], drawn[i] = count[i] + int(counts[chosen[i]]), wanted[i]
    return [
        certificate(top, rule.p_lower(c, m), c, m, sigma=request.sigma, smoothing=smoothing, most=budget.radius)
        for top, rule, c, m, request in zip(chosen, rules, count, drawn, requests, strict=True)
    ]


def predict(
    network: Sampler | nn.Module,
    x: Tensor,
    sigma: float,
    *,
    n: int = 1000,
    alpha: float = 0.001,
    smoothing: Smoothing | str = "l2",
    seed: int = 0,
    index: int = 0,
) -> int:
    """The smoothed classifier's class at x, or ABSTAIN; wrong with probability at most alpha.

    Tests whether the two most frequent classes of n samples could be equally likely (arXiv 1902.02918, section 3.2.1).
    """
    sampler, x, sigma = _checked(network, x, sigma, alpha=alpha, n=n)
    counts = sampler.count(x, sigma, n, smoothing=smoothing_for(smoothing), key=NoiseKey(seed, index, Stage.PREDICT))
    top, second = counts.topk(2).values.tolist()
    test = binomtest(top, top + second, 0.5)
    return int(counts.argmax()) if test.pvalue <= alpha else ABSTAIN


def _checked(
    network: Sampler | nn.Module, x: Tensor, sigma: float, *, alpha: float, **samples: int
) -> tuple[Sampler, Tensor, float]:
    """A sampler, the image, and the noise scale as the float32 that multiplies the noise: the certificate is its."""
    scale = torch.tensor(sigma, dtype=torch.float32).item()
    if not 0 < scale < _LARGEST_SCALE:
        raise InputError(f"expected sigma > 0, got {sigma:g}." + (" It overflows float32." if sigma > 0 else ""))
    check_samples(alpha, **samples)
    x = checked_image(torch.as_tensor(x), "the image").float()
    if isinstance(network, nn.Module):
        network = Sampler.prepare(network, x, device=x.device)
    return network, x, scale
