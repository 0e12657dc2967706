"""Toy classifiers of known radius, and the data sets that some tests need."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddviz.smoothing import SMOOTHINGS


class HalfSpace(nn.Module):
    """Class 0 where w.x + b > 0, else class 1. Its smoothed radius is its margin, whatever sigma."""

    w: Tensor

    def __init__(self, w: Tensor, b: float):
        super().__init__()
        self.register_buffer("w", w)
        self.b = b

    def score(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w + self.b

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.score(x), -self.score(x)], 1)


class Slab(nn.Module):
    """Class 0 where |x_0 - centre| < half, else class 1: in one dimension, a ball."""

    def __init__(self, centre: float, half: float):
        super().__init__()
        self.centre, self.reach = centre, half

    def forward(self, x: Tensor) -> Tensor:
        inside = self.reach - (x.flatten(1)[:, 0] - self.centre).abs()
        return torch.stack([inside, -inside], 1)


class SoftHalfSpace(nn.Module):
    """Probability Phi(a (x_0 - b)) of class 0; smoothed by N(0, sigma^2), Phi(a (x_0 - b) / sqrt(1 + a^2 sigma^2))."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        z = self.a * (x.flatten(1)[:, 0] - self.b)
        return torch.stack([torch.special.log_ndtr(z), torch.special.log_ndtr(-z)], 1)


@pytest.fixture
def x() -> Tensor:
    """One image (1, 2, 3) of pixels in [0, 1]."""
    return torch.tensor([[[0.3, 0.8, 0.5], [0.1, 0.9, 0.6]]])


@pytest.fixture(params=list(SMOOTHINGS))
def smoothing(request: pytest.FixtureRequest):
    """Both smoothing distributions."""
    return SMOOTHINGS[request.param]


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets; skips where there is none."""
    root = os.environ.get("DDVIZ_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set DDVIZ_DATA to a folder with cifar10/ and imagenet/")
    return Path(root)


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on busy cores are several times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
