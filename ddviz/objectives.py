"""What a network is trained to minimise under noise: Gaussian augmentation, SmoothAdv, MACER.

Every objective meets image i under noise of its own scale sigma_i, which Algorithm 2 may have chosen. An objective is
its settings; call it with a network and a `Batch`. Your own needs no more than that: any function (network, batch)
-> scalar loss that is a mean over the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ddviz.sigma import frozen
from ddviz.smoothing import Smoothing


@dataclass(frozen=True)
class Batch:
    """One training step's images, and the noise that belongs to them.

    x: (B, C, H, W) in [0, 1], after augmentation. y: (B,) labels. sigma: (B,) noise scales. epoch: counted from 0.
    draw(m): fresh standard noise (B, m, C, H, W), other noise at every call.
    """

    x: Tensor
    y: Tensor
    sigma: Tensor
    epoch: int
    smoothing: Smoothing
    draw: Callable[[int], Tensor]

    def noise(self, samples: int) -> Tensor:
        """sigma_i * e_ij, fresh noise (B, samples, C, H, W)."""
        return self.sigma.view(-1, *[1] * self.x.ndim) * self.draw(samples)


Objective = Callable[[nn.Module, Batch], Tensor]


def noisy(x: Tensor, noise: Tensor) -> Tensor:
    """Images (B, C, H, W) under their noise (B, m, C, H, W), one after the other (B * m, C, H, W)."""
    return (x[:, None] + noise).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class GaussianAugmentation:
    """Cross entropy under noise (Cohen et al. 2019, arXiv 1902.02918, section 3.4). samples: noisy copies a step."""

    samples: int = 1

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        logits = network(noisy(batch.x, batch.noise(self.samples)))
        return cross_entropy(logits, batch.y.repeat_interleave(self.samples))


@dataclass(frozen=True, kw_only=True)
class SmoothAdv:
    """Cross entropy under noise at adversarial examples of the smoothed classifier (arXiv 1906.04584, algorithm 1).

    samples: m, noise samples of the attack, which then are those of the training step. epsilon: l2 radius of the
    attack in [0,1]-pixel units; it grows linearly to that over `warmup` epochs. attack: of ATTACKS. steps: T.
    The attack runs in eval mode with frozen parameters.
    """

    samples: int = 1
    epsilon: float = 0.25
    attack: str = "pgd"
    steps: int = 2
    warmup: int = 0

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        epsilon = self.epsilon * min(1.0, (batch.epoch + 1) / max(1, self.warmup))
        noise = batch.noise(self.samples)
        inner = network.module if isinstance(network, DistributedDataParallel) else network
        with frozen(inner):
            x = ATTACKS[self.attack](inner, batch.x, batch.y, noise, epsilon=epsilon, steps=self.steps)
        return cross_entropy(network(noisy(x, noise)), batch.y.repeat_interleave(self.samples))


@dataclass(frozen=True, kw_only=True)
class Macer:
    """MACER (arXiv 2001.02378, equation 8): the smoothed classifier's log-likelihood and a hinge on its radius.

    samples: k. lam: lambda, weight of the hinge. gamma: where Phi^-1(p_A) - Phi^-1(p_B) is larger, the hinge is 0.
    beta: inverse temperature of the softmax in the radius. Only correctly classified images have a radius; where none
    is, or a probability is 0 or 1 in floating point, the hinge is 0 and its gradient too.
    """

    samples: int = 16
    lam: float = 12.0
    gamma: float = 8.0
    beta: float = 16.0

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        logits = _logits(network, batch.x, batch.noise(self.samples))
        top, classes = (self.beta * logits).softmax(2).mean(1).topk(2)
        gap = _gap(batch.smoothing, top.detach())
        counts = (classes[:, 0] == batch.y) & gap.isfinite() & (gap < self.gamma)
        safe = torch.where(counts[:, None], top, top.new_tensor([0.75, 0.25]))  # an infinite slope times 0 is NaN
        hinge = torch.where(counts, batch.sigma / 2 * (self.gamma - _gap(batch.smoothing, safe)), 0.0)
        return (smoothed_nll(logits, batch.y) + self.lam * hinge).mean()


def _gap(smoothing: Smoothing, top: Tensor) -> Tensor:
    """Twice the radius at scale 1 for the top two probabilities (B, 2); for l2, Phi^-1(p_A) - Phi^-1(p_B)."""
    return 2 * smoothing.radius(torch.ones_like(top[:, 0]), top[:, 0], top[:, 1])


def smoothed_nll(logits: Tensor, y: Tensor) -> Tensor:
    """-log of the mean over samples of the label's probability (B,), from logits (B, m, classes)."""
    picked = logits.log_softmax(2).gather(2, y.view(-1, 1, 1).expand(-1, logits.shape[1], 1))
    return math.log(logits.shape[1]) - picked[..., 0].logsumexp(1)


class Attack(Protocol):
    """Finds adversarial examples (B, C, H, W) of the smoothed classifier within l2 distance epsilon and [0, 1]."""

    def __call__(
        self, network: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, epsilon: float, steps: int
    ) -> Tensor:
        """`network` is in eval mode with frozen parameters; noise (B, m, C, H, W) is the same at every step."""
        ...


def pgd(network: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, epsilon: float, steps: int) -> Tensor:
    """Projected gradient ascent on `smoothed_nll` in steps of 2 epsilon / steps (arXiv 1906.04584, SmoothAdv_PGD)."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        slope, _ = _slope(network, x, delta, y, noise)
        delta = _within(x, delta + 2 * epsilon / steps * _direction(slope), epsilon)
    return x + delta


def ddn(network: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, epsilon: float, steps: int) -> Tensor:
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): the smallest change that is adversarial.

    The norm starts at epsilon and moves by 5 % a step. Where no step was adversarial, the last one is returned.
    """
    delta = best = torch.zeros_like(x)
    norm = torch.full((len(x),), epsilon, device=x.device)
    smallest = torch.full_like(norm, math.inf)
    for step in range(steps):
        slope, adversarial = _slope(network, x, delta, y, noise)
        best, smallest = _better(delta, adversarial, best, smallest)
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        norm = norm * torch.where(adversarial, 0.95, 1.05)
        moved = delta + rate * _direction(slope)
        delta = _within(x, _direction(moved) * _column(norm, x), epsilon)
    with torch.no_grad():
        adversarial = _predicted(_logits(network, x + delta, noise)) != y
    best, smallest = _better(delta, adversarial, best, smallest)
    return x + torch.where(_column(smallest.isfinite(), x), best, delta)


ATTACKS: dict[str, Attack] = {"pgd": pgd, "ddn": ddn}
"""Attacks of SmoothAdv by name."""


def _slope(network: nn.Module, x: Tensor, delta: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `smoothed_nll` at x + delta, and where the smoothed prediction is wrong (B,)."""
    delta = delta.detach().requires_grad_()
    with torch.enable_grad():
        logits = _logits(network, x + delta, noise)
        (slope,) = torch.autograd.grad(smoothed_nll(logits, y).sum(), delta)
    return slope, _predicted(logits.detach()) != y


def _logits(network: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """Logits (B, m, classes) of images under their noise (B, m, C, H, W)."""
    return network(noisy(x, noise)).unflatten(0, noise.shape[:2])


def _predicted(logits: Tensor) -> Tensor:
    """Class (B,) that the smoothed classifier prefers, from logits (B, m, classes)."""
    return logits.softmax(2).mean(1).argmax(1)


def _better(delta: Tensor, adversarial: Tensor, best: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest adversarial change so far and its norm."""
    length = delta.flatten(1).norm(dim=1)
    won = adversarial & (length < smallest)
    return torch.where(_column(won, delta), delta, best), torch.where(won, length, smallest)


def _direction(v: Tensor) -> Tensor:
    """Each image's change at length 1; 0 stays 0."""
    return v / _column(v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny), v)


def _within(x: Tensor, delta: Tensor, epsilon: float) -> Tensor:
    """`delta` cut so that x + delta is in [0, 1], then shortened to epsilon, which leaves it there."""
    delta = (x + delta).clamp(0, 1) - x
    length = delta.flatten(1).norm(dim=1)
    return delta * _column((epsilon / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1), x)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


OBJECTIVES: dict[str, type[GaussianAugmentation] | type[SmoothAdv] | type[Macer]] = {
    "gaussian": GaussianAugmentation,
    "smoothadv": SmoothAdv,
    "macer": Macer,
}
"""Objectives by name."""
