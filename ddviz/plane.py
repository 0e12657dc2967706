"""Randomized smoothing where everything can be seen: a classifier of points in the plane.

In two dimensions the smoothed classifier needs no sampling: it is the picture of the base classifier's regions, blurred
with a Gaussian. Certificates are drawn from noise all the same, as for images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddviz.certify import Certificate, certify_many
from ddviz.memory import Answer, Memory
from ddviz.sampling import Sampler
from ddviz.sigma import Ascent

CLASSES = ("green", "purple", "yellow")
_CLASHES = [[0.457, 0.110], [0.53, 0.19], [0.420, 0.204], [0.508, 0.270], [0.757, 0.65]]
_WINDOW, _CELLS = (-0.75, 1.75), 250  # wider than the unit square: noise leaves it


class PlaneNet(nn.Module):
    """Three logits for points (B, 1, 1, 2), images of two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(4 * x.flatten(1) - 2)


def spiral(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (count, 2) of the unit square on three arms of a spiral, and their classes (count,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    along = torch.rand(count, generator=generator).sqrt()
    angle = 2 * torch.pi / 3 * y + 2.6 * along
    jitter = 0.025 * torch.randn(count, 2, generator=generator)
    points = 0.5 + 0.46 * along[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + jitter
    return points.clamp(0, 1), y


def trained(sigma: float = 0.06, steps: int = 400, seed: int = 0) -> PlaneNet:
    """A network trained on the spiral under noise: about a second."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # torch's own start would draw from the global generator
        network = PlaneNet()
    network, (x, y) = network.to_empty(device="cpu"), spiral(600, seed)
    with torch.no_grad():
        for parameter in network.parameters():
            bound = parameter.shape[-1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        noisy = x + sigma * torch.randn(x.shape, generator=generator)
        optimizer.zero_grad()
        cross_entropy(network(noisy), y).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Regions:
    """The base classifier on a grid of the plane. axis: (G,), both coordinates; classes: (G, G), row by y."""

    axis: NDArray[np.float64]
    classes: NDArray[np.int64]

    @property
    def one_hot(self) -> NDArray[np.float64]:
        """Probability of each class without noise, (3, G, G)."""
        return (self.classes == np.arange(len(CLASSES))[:, None, None]).astype(np.float64)

    def smoothed(self, sigma: float) -> NDArray[np.float64]:
        """Probability of each class under noise, (3, G, G): the smoothed classifier, up to the grid."""
        cell = self.axis[1] - self.axis[0]
        return np.stack([gaussian_filter(region, sigma / cell, mode="nearest") for region in self.one_hot])


@torch.no_grad()
def regions(network: nn.Module) -> Regions:
    """Where the base classifier answers what."""
    axis = torch.linspace(*_WINDOW, _CELLS)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    classes = network(torch.stack([x, y], 2).view(-1, 1, 1, 2)).argmax(1).view(_CELLS, _CELLS)
    return Regions(axis.double().numpy(), classes.numpy())


def searched(network: nn.Module, points: Tensor, sigma_0: float, *, lr: float = 2e-3, seed: int = 0) -> list[float]:
    """sigma_x of points (B, 2) by Algorithm 1, with both promises of section 3.4."""
    solver = Ascent(iterations=100, lr=lr, samples=32, clamp=0.002, keep_class=True, keep_radius=True)
    return solver(network, points.view(-1, 1, 1, 2), sigma_0, seed=seed).chosen.tolist()


def certified(
    network: nn.Module, points: Tensor, scales: Sequence[float], *, n: int = 2000, seed: int = 0
) -> list[Certificate]:
    """Certify points (B, 2), each at its own noise scale."""
    sampler = Sampler.prepare(network, points[0].view(1, 1, 2), batch=n)
    return certify_many(sampler, list(points.view(-1, 1, 1, 2)), scales, range(len(points)), n=n, seed=seed)


@dataclass(frozen=True)
class Arrival:
    """A visitor's certificate, the memory's answer, and the arrival whose ball caused it (-1: none)."""

    visitor: int
    point: tuple[float, float]
    certificate: Certificate
    answer: Answer
    by: int


def arrivals(points: Tensor, certificates: Sequence[Certificate], order: Sequence[int]) -> list[Arrival]:
    """Points (B, 2) with their certificates go through an empty memory in an order."""
    memory, stored, answered = Memory("l2"), [], []
    for place, i in enumerate(order):
        x, y = points[i].tolist()
        before = len(memory)
        answer = memory.answer(points[i], certificates[i].predict, certificates[i].radius)
        answered.append(Arrival(i, (x, y), certificates[i], answer, stored[answer.by] if answer.by >= 0 else -1))
        if len(memory) > before:
            stored.append(place)
    return answered


def different(one: Sequence[Arrival], other: Sequence[Arrival]) -> int:
    """How many visitors were answered differently in another order of arrival."""
    answers = [{a.visitor: (a.answer.predict, a.answer.radius) for a in arrivals} for arrivals in (one, other)]
    return sum(answers[0][visitor] != answers[1][visitor] for visitor in answers[0])


def visitors(seed: int = 17) -> Tensor:
    """Points (22, 2) that show all the memory does: some at random, some where certificates clash, the first again."""
    random = torch.rand(16, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([random, torch.tensor(_CLASHES), random[:1]])
