"""Objectives against slow float64 rewrites of their formulas, attacks against closed forms."""

import math

import numpy as np
import pytest
import torch
from conftest import HalfSpace
from scipy.special import logsumexp, ndtri, softmax
from torch import Tensor, nn

from ddviz import datasets, models
from ddviz.objectives import (
    ATTACKS,
    Batch,
    GaussianAugmentation,
    Macer,
    SmoothAdv,
    ddn,
    noisy,
    pgd,
    smoothed_nll,
)
from ddviz.smoothing import SMOOTHINGS

SIGMAS = (0.05, 0.3, 0.6, 0.9, 0.2)


class Drawn:
    """Noise that is the same at every call, as a reference needs it."""

    def __init__(self, samples: int, like: Tensor, smoothing: str):
        self.noise = torch.empty(len(like), samples, *like.shape[1:], dtype=torch.float64)
        SMOOTHINGS[smoothing].fill_(self.noise, torch.Generator().manual_seed(3))

    def __call__(self, samples: int) -> Tensor:
        assert samples == self.noise.shape[1]
        return self.noise


def batch_of(samples: int, norm: str = "l2", epoch: int = 0) -> tuple[nn.Module, Batch, np.ndarray]:
    """The digits network in float64, five digits (one with a wrong label), their noise."""
    network = models.load("digits").network.double()
    images = datasets.load("digits", skip=7)
    x = images.images(images.indices[:5]).double()
    y = torch.tensor([images.labels[index] for index in images.indices[:5]])
    y[3] = (y[3] + 1) % 10
    draw = Drawn(samples, x, norm)
    batch = Batch(x, y, torch.tensor(SIGMAS, dtype=torch.float64), epoch, SMOOTHINGS[norm], draw)
    return network, batch, draw.noise.numpy()


def logits_of(network: nn.Module, x: np.ndarray) -> np.ndarray:
    """Logits (classes,) of one image, alone."""
    with torch.no_grad():
        return network(torch.from_numpy(x)[None])[0].numpy()


def reference_logits(network: nn.Module, batch: Batch, noise: np.ndarray, shift: int = 0) -> np.ndarray:
    """Logits (B, m, classes), one noisy image after the other; `shift` gives an image its neighbour's scale."""
    x, sigma = batch.x.numpy(), np.roll(batch.sigma.numpy(), shift)
    return np.array(
        [[logits_of(network, x[i] + sigma[i] * noise[i, j]) for j in range(noise.shape[1])] for i in range(len(x))]
    )


def cross_entropies(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cross entropy (B, m) of logits (B, m, classes)."""
    return np.array([[logsumexp(row) - row[label] for row in rows] for rows, label in zip(logits, y, strict=True)])


def macer_reference(logits: np.ndarray, batch: Batch, norm: str, objective: Macer) -> float:
    """Equation 8 of arXiv 2001.02378, image by image."""
    total = 0.0
    for rows, label, sigma in zip(logits, batch.y.tolist(), batch.sigma.tolist(), strict=True):
        total -= math.log(np.mean([softmax(row)[label] for row in rows]))
        p = np.mean([softmax(objective.beta * row) for row in rows], axis=0)
        second, first = np.argsort(p)[-2:]
        with np.errstate(divide="ignore"):
            gap = ndtri(p[first]) - ndtri(p[second]) if norm == "l2" else 2 * (p[first] - p[second])
        if first == label and gap < objective.gamma:
            total += objective.lam * sigma / 2 * (objective.gamma - gap)
    return total / len(logits)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("norm", list(SMOOTHINGS))
def test_gaussian_augmentation_is_the_mean_cross_entropy_with_each_image_s_own_scale(samples, norm):
    network, batch, noise = batch_of(samples, norm)
    loss = GaussianAugmentation(samples=samples)(network, batch).item()
    own, neighbour = (
        cross_entropies(reference_logits(network, batch, noise, s), batch.y.numpy()).mean() for s in (0, 1)
    )
    assert loss == pytest.approx(own, rel=1e-9)
    assert loss != pytest.approx(neighbour, rel=1e-3)


@pytest.mark.parametrize("beta", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("norm", list(SMOOTHINGS))
@pytest.mark.parametrize("gamma", [1.5, 8.0])
def test_macer_is_its_formula_with_each_image_s_own_scale(norm, beta, gamma):
    network, batch, noise = batch_of(4, norm)
    objective = Macer(samples=4, beta=beta, gamma=gamma)
    own, neighbour = (
        macer_reference(reference_logits(network, batch, noise, shift), batch, norm, objective) for shift in (0, 1)
    )
    assert objective(network, batch).item() == pytest.approx(own, rel=1e-9)
    assert own != pytest.approx(neighbour, rel=1e-3)


def test_macer_s_hinge_counts_only_correct_images():
    network, batch, noise = batch_of(4)
    top = softmax(16 * reference_logits(network, batch, noise), axis=2).mean(1).argmax(1)
    assert top[3] != batch.y[3] and (top == batch.y.numpy()).sum() >= 3  # so that the reference tries both
    assert Macer(samples=4, lam=0.0)(network, batch).item() == pytest.approx(
        smoothed_nll(torch.from_numpy(reference_logits(network, batch, noise)), batch.y).mean().item()
    )


@pytest.mark.parametrize("offset", [0, 1], ids=["all certain and right", "all certain and wrong"])
def test_macer_stays_finite_where_no_hinge_is_defined(offset):
    network, batch, _ = batch_of(4)
    wrong = torch.tensor([0, 0, 0, 1, 0])  # the fourth label is wrong as it is
    certain = Batch(batch.x, (batch.y + offset - wrong) % 10, 0 * batch.sigma, 0, batch.smoothing, batch.draw)
    loss = Macer(samples=4, beta=1e4)(network, certain)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in network.parameters())  # type: ignore[union-attr]


def test_smoothed_nll_is_minus_the_log_of_the_mean_probability_even_where_that_underflows():
    logits = torch.tensor([[[0.0, 1.0], [2.0, -1.0]], [[0.0, 900.0], [0.0, 800.0]]])
    expected = -np.log(np.mean(softmax(logits[0].numpy(), axis=1)[:, 0]))
    found = smoothed_nll(logits, torch.tensor([0, 0]))
    assert found[0].item() == pytest.approx(expected, rel=1e-6)
    assert found[1].item() == pytest.approx(800 + math.log(2), rel=1e-6)


def reference_pgd(network: nn.Module, batch: Batch, noise: Tensor, epsilon: float, steps: int) -> np.ndarray:
    """SmoothAdv_PGD (arXiv 1906.04584, section 2.2), image by image."""
    found = []
    for x, y, e in zip(batch.x, batch.y, noise, strict=True):
        adversarial = x.clone()
        for _ in range(steps):
            leaf = adversarial.clone().requires_grad_()
            probability = torch.stack([network((leaf + sample)[None])[0].softmax(0)[y] for sample in e]).mean()
            (slope,) = torch.autograd.grad(-torch.log(probability), leaf)
            adversarial = (adversarial + 2 * epsilon / steps * slope / slope.norm()).clamp(0, 1)
            if (length := (adversarial - x).norm()) > epsilon:
                adversarial = x + (adversarial - x) * epsilon / length
        found.append(adversarial.detach().numpy())
    return np.array(found)


@pytest.mark.parametrize("samples", [1, 3])
def test_pgd_is_its_formula_with_each_image_s_own_noise(samples):
    network, batch, _ = batch_of(samples)
    noise = batch.noise(samples)
    found = pgd(network, batch.x, batch.y, noise, epsilon=0.4, steps=3)
    assert np.allclose(found, reference_pgd(network, batch, noise, 0.4, 3), atol=1e-9)
    assert not np.allclose(found, reference_pgd(network, batch, noise.roll(1, 0), 0.4, 3), atol=1e-3)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("attack", list(ATTACKS))
def test_smoothadv_is_the_cross_entropy_at_the_attacked_image_under_the_attack_s_noise(samples, attack):
    network, batch, noise = batch_of(samples)
    objective = SmoothAdv(samples=samples, epsilon=0.4, attack=attack, steps=3)
    attacked = ATTACKS[attack](network, batch.x, batch.y, batch.noise(samples), epsilon=0.4, steps=3)
    moved = Batch(attacked.detach(), batch.y, batch.sigma, 0, batch.smoothing, batch.draw)
    expected = cross_entropies(reference_logits(network, moved, noise), batch.y.numpy()).mean()
    assert objective(network, batch).item() == pytest.approx(expected, rel=1e-9)
    assert expected > cross_entropies(reference_logits(network, batch, noise), batch.y.numpy()).mean()


def half_space(distance: float) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier and an image of class 0 at this distance from the boundary; w in pixel space."""
    w = torch.tensor([0.6, -0.8, 0.0, 0.0])
    x = torch.full((1, 1, 2, 2), 0.5)
    return HalfSpace(w, distance - float(x.flatten() @ w)), x, w.view(1, 1, 2, 2)


def test_pgd_on_a_linear_classifier_goes_straight_to_the_boundary():
    network, x, w = half_space(0.3)
    adversarial = pgd(network, x, torch.tensor([0]), torch.zeros(1, 2, 1, 2, 2), epsilon=0.2, steps=4)
    assert torch.allclose(adversarial, x - 0.2 * w, atol=1e-6)


def test_ddn_on_a_linear_classifier_finds_the_distance_to_the_boundary():
    network, x, w = half_space(0.2)
    adversarial = ddn(network, x, torch.tensor([0]), torch.zeros(1, 1, 1, 2, 2), epsilon=0.4, steps=60)
    assert 0.2 < (adversarial - x).norm().item() < 0.215  # within one step of 5 %
    assert torch.allclose((adversarial - x) / (adversarial - x).norm(), -w, atol=1e-4)


def test_ddn_out_of_reach_returns_the_strongest_attempt():
    network, x, w = half_space(0.3)
    adversarial = ddn(network, x, torch.tensor([0]), torch.zeros(1, 1, 1, 2, 2), epsilon=0.1, steps=5)
    assert torch.allclose(adversarial, x - 0.1 * w, atol=1e-6)


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("x_0", [0.0, 0.05, 1.0])
def test_attacks_stay_in_the_ball_and_among_pixels(attack, x_0):
    network, x, _ = half_space(0.3)
    x = x.clone()
    x[0, 0, 0] = x_0
    found = ATTACKS[attack](network, x, torch.tensor([0]), torch.randn(1, 3, 1, 2, 2), epsilon=0.25, steps=6)
    assert (found - x).norm() <= 0.25 + 1e-6 and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_a_flat_classifier_gives_attacks_nothing_and_no_nan(attack):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :2]

    x = torch.rand(2, 1, 2, 2)
    found = ATTACKS[attack](Flat(), x, torch.tensor([0, 1]), torch.randn(2, 1, 1, 2, 2), epsilon=0.25, steps=3)
    assert torch.equal(found, x)


class Counting(nn.Module):
    """A network with BatchNorm that remembers how far from x it was asked in training and otherwise."""

    def __init__(self):
        super().__init__()
        self.bn, self.fc = nn.BatchNorm2d(1), nn.Linear(4, 2)
        self.asked: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append((self.training, x.detach()))
        return self.fc(self.bn(x).flatten(1))


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_the_attack_leaves_statistics_and_gradients_alone(attack):
    network = Counting().train()
    x, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    batch = Batch(x, y, torch.full((6,), 0.1), 0, SMOOTHINGS["l2"], lambda m: torch.randn(6, m, 1, 2, 2))
    loss = SmoothAdv(samples=2, attack=attack, steps=3)(network, batch)
    assert int(network.bn.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert [mode for mode, _ in network.asked].count(True) == 1 and network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("epoch", "epsilon"), [(0, 0.05), (1, 0.1), (3, 0.2), (9, 0.2)])
def test_epsilon_grows_with_the_epochs(epoch, epsilon):
    network, x, w = half_space(1.0)
    asked: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    batch = Batch(x, torch.tensor([0]), torch.zeros(1), epoch, SMOOTHINGS["l2"], lambda m: torch.zeros(1, m, 1, 2, 2))
    SmoothAdv(epsilon=0.2, warmup=4)(network, batch)
    assert torch.allclose(asked[-1], x - epsilon * w, atol=1e-6)


def test_noisy_images_stand_in_the_order_of_their_labels():
    x = torch.arange(3.0).view(3, 1, 1, 1)
    noise = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]).view(3, 2, 1, 1, 1)
    assert torch.allclose(noisy(x, noise).flatten(), torch.tensor([0.1, 0.2, 1.3, 1.4, 2.5, 2.6]))
