"""The smoothing distributions: their standard noise and the radius that they certify.

l2, Gaussian noise of standard deviation sigma: Cohen et al. 2019, arXiv 1902.02918.
l1, uniform noise on [-lambda, lambda]^d: Yang et al. 2020, arXiv 2002.08118. The scale called `sigma` in this
package is lambda itself for l1; the standard deviation of that noise is lambda / sqrt(3).
"""

from typing import Protocol

import torch
from scipy.special import ndtri
from torch import Tensor

from ddviz.errors import InputError


class Smoothing(Protocol):
    """A noise distribution with a scale parameter, and the radius a class probability certifies under it."""

    @property
    def norm(self) -> str:
        """Norm of the certified ball, "l2" or "l1"."""
        ...

    @property
    def scale_name(self) -> str:
        """What the scale parameter is called where it is shown to people."""
        ...

    def fill_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill `out` in place with noise of scale 1."""
        ...

    def radius(self, sigma: Tensor, p_a: Tensor, p_b: Tensor, clamp: float = 0.0) -> Tensor:
        """Radius of the ball on which the top class stays, in [0,1]-pixel units; differentiable.

        `p_a`, `p_b` (same shape as `sigma`): probabilities of the top class and of the runner-up. `clamp`: where a
        probability of 0 or 1 would give an infinite radius, both are held to [clamp, 1 - clamp].
        """
        ...

    def certified_radius(self, sigma: float, p_a_lower: float) -> float:
        """Radius certified by a lower bound on the top class's probability; 0 where the bound is at most 1/2."""
        ...


class Gaussian:
    """N(0, sigma^2 I), certifying l2 balls (arXiv 1902.02918, theorem 1)."""

    norm = "l2"
    scale_name = "sigma"

    def fill_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        return out.normal_(generator=generator)

    def radius(self, sigma: Tensor, p_a: Tensor, p_b: Tensor, clamp: float = 0.0) -> Tensor:
        p_a, p_b = p_a.clamp(clamp, 1 - clamp), p_b.clamp(clamp, 1 - clamp)
        return sigma / 2 * (torch.special.ndtri(p_a) - torch.special.ndtri(p_b))

    def certified_radius(self, sigma: float, p_a_lower: float) -> float:
        return sigma * float(ndtri(p_a_lower)) if p_a_lower > 0.5 else 0.0


class Uniform:
    """Uniform noise on [-lambda, lambda]^d, certifying l1 balls (arXiv 2002.08118, table 1)."""

    norm = "l1"
    scale_name = "lambda"

    def fill_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        return out.uniform_(-1, 1, generator=generator)

    def radius(self, sigma: Tensor, p_a: Tensor, p_b: Tensor, clamp: float = 0.0) -> Tensor:
        return sigma * (p_a - p_b)  # finite as it is: nothing to clamp

    def certified_radius(self, sigma: float, p_a_lower: float) -> float:
        return max(0.0, 2 * sigma * (p_a_lower - 0.5))


SMOOTHINGS: dict[str, Smoothing] = {"l2": Gaussian(), "l1": Uniform()}
"""Smoothing distributions by the norm of the ball that they certify."""


def smoothing_for(norm: str | Smoothing) -> Smoothing:
    """A smoothing distribution, by the norm it certifies or as it is.

    Raises: InputError for an unknown norm.
    """
    if not isinstance(norm, str):
        return norm
    if norm not in SMOOTHINGS:
        raise InputError(f"expected norm to be one of {', '.join(SMOOTHINGS)}, got {norm!r}.")
    return SMOOTHINGS[norm]
