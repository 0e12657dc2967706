"""Algorithm 1 against closed forms and a slow float64 reference; every known trap must be seen by that reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import HalfSpace, Slab, SoftHalfSpace
from scipy.stats import beta, norm
from torch import Tensor, nn

import ddviz
from ddviz.errors import InputError
from ddviz.noise import NoiseKey, Stage, fill_block
from ddviz.sigma import SOLVERS, Ascent, Grid, Halving, frozen
from ddviz.smoothing import SMOOTHINGS, Smoothing

L2 = SMOOTHINGS["l2"]
STARTS = torch.tensor([0.2, 0.5, 0.9])


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor]:
    images = ddviz.datasets.load("digits", max_images=3)
    return ddviz.models.load("digits", sigma=0.5).network, images.images(images.indices)


def reference(
    network: nn.Module, x: Tensor, starts: Tensor, smoothing: Smoothing, *, steps=6, lr=0.02, n=3, trap=""
) -> np.ndarray:
    """Algorithm 1 one image, one sample at a time in float64; `trap` makes one of the known mistakes."""
    network = network.double()
    paths = []
    for i, start in enumerate(starts.double()):
        sigma, path = start, [start.item()]
        for k in range(steps):
            noise = fill_block(torch.empty(n, *x.shape[1:]), smoothing, NoiseKey(3, i, Stage.SEARCH), k).double()
            scale = sigma.clone().requires_grad_()
            used = [scale] * n
            if trap == "stale scale":  # the scale of the first step is kept, only R's factor follows
                used = [scale - (sigma - start)] * n
            if trap == "neighbour's scale":
                used = [scale * (starts[(i + j) % len(starts)].double() / start) for j in range(n)]
            outputs = torch.stack([network((x[i].double() + s * e)[None])[0] for s, e in zip(used, noise, strict=True)])
            psi = outputs.softmax(1)
            if trap == "two softmaxes":
                psi = psi.softmax(1)
            psi = outputs.mean(0).softmax(0) if trap == "mean of logits" else psi.mean(0)
            if smoothing.norm == "l2":
                psi = psi.clamp(0.02, 0.98)
            e_a, e_b = psi.topk(2).values
            gap = torch.special.ndtri(e_a) - torch.special.ndtri(e_b) if smoothing.norm == "l2" else e_a - e_b
            radius = scale / 2 * gap if smoothing.norm == "l2" else scale * gap
            sigma = (sigma + lr * torch.autograd.grad(radius, scale)[0]).detach()
            path.append(sigma.item())
        paths.append(path)
    network.float()
    return np.array(paths).T


def test_the_path_is_that_of_a_slow_reference_in_float64(digits, smoothing):
    network, x = digits
    path = Ascent(iterations=6, lr=0.02, samples=3)(network, x, STARTS, smoothing=smoothing, seed=3)
    assert path.sigma.shape == path.radius.shape == (7, 3)
    assert np.allclose(path.sigma, reference(network, x, STARTS, smoothing), atol=2e-5)
    assert torch.equal(path.chosen, path.sigma[-1])


@pytest.mark.parametrize("trap", ["stale scale", "neighbour's scale", "two softmaxes", "mean of logits"])
def test_each_trap_would_be_seen(digits, trap):
    network, x = digits
    path = Ascent(iterations=6, lr=0.02, samples=3)(network, x, STARTS, smoothing=L2, seed=3)
    assert not np.allclose(path.sigma, reference(network, x, STARTS, L2, trap=trap), atol=1e-3)


def test_the_paper_s_settings_are_the_defaults():
    assert (Ascent().lr, Ascent().samples, Ascent().clamp, Ascent().keep_class, Ascent().keep_radius) == (
        *(1e-4, 1, 0.02),
        *(False, False),
    )


@pytest.mark.parametrize("solver", [Ascent(iterations=4, lr=0.02, samples=5), Halving()])
def test_an_image_s_path_does_not_depend_on_the_images_beside_it(digits, smoothing, solver):
    network, x = digits
    together = solver(network, x, STARTS, smoothing=smoothing, indices=[4, 9, 2])
    for i, index in enumerate([4, 9, 2]):
        alone = solver(network, x[i : i + 1], STARTS[i].item(), smoothing=smoothing, indices=[index])
        assert torch.allclose(together.sigma[:, i], alone.sigma[:, 0], atol=1e-6)


@pytest.mark.parametrize("sigma_0", [0.2, 0.6])
def test_one_step_follows_the_closed_form_gradient(sigma_0):
    """Smoothed, Phi(a t) is Phi(a t / sqrt(1 + a^2 sigma^2)), so R = sigma a t / sqrt(1 + a^2 sigma^2)."""
    a, t = 2.0, 0.25
    x = torch.full((1, 1, 1, 1), 0.75)
    path = Ascent(iterations=1, lr=1.0, samples=200_000)(SoftHalfSpace(a, 0.75 - t), x, sigma_0)
    spread = np.sqrt(1 + a**2 * sigma_0**2)
    assert path.radius[0].item() == pytest.approx(sigma_0 * a * t / spread, rel=0.02)
    assert (path.sigma[1] - path.sigma[0]).item() == pytest.approx(a * t / spread**3, rel=0.03)


def test_l1_radius_and_gradient_follow_the_closed_form():
    """For p = 1/2 + a t + a lambda u the mean is 1/2 + a t: R = 2 a t lambda, whose slope is 2 a t."""

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            p = 0.5 + 0.4 * (x.flatten(1)[:, 0] - 0.5)
            return torch.stack([p, 1 - p], 1).log()

    path = Ascent(iterations=1, lr=1.0, samples=200_000)(
        Linear(), torch.full((1, 1, 1, 1), 0.75), 0.5, smoothing=SMOOTHINGS["l1"]
    )
    assert path.radius[0].item() == pytest.approx(0.1, rel=0.02)
    assert (path.sigma[1] - path.sigma[0]).item() == pytest.approx(0.2, rel=0.02)


def test_certain_outputs_make_the_paper_s_constant_step():
    """Where both probabilities are clamped the radius is sigma (Phi^-1(.98) - Phi^-1(.02)) / 2."""
    x = torch.full((1, 1, 1, 1), 1.0)
    path = Ascent(iterations=3)(SoftHalfSpace(50.0, -5.0), x, 0.25)
    slope = (norm.ppf(0.98) - norm.ppf(0.02)) / 2
    assert np.allclose(path.sigma[:, 0], 0.25 + 1e-4 * slope * np.arange(4), atol=1e-7)


@pytest.mark.parametrize(("lr", "end"), [(1e3, 0.8), (-1e3, 0.1)])
def test_sigma_stays_inside_its_bounds(lr, end):
    x = torch.full((2, 1, 1, 1), 1.0)
    path = Ascent(iterations=5, lr=lr, sigma_min=0.1, sigma_max=0.8)(SoftHalfSpace(9.0, 0.0), x, 0.25)
    assert torch.allclose(path.sigma[1:], torch.tensor(end))


@pytest.mark.parametrize("solver", [Ascent(iterations=3, keep_class=True, keep_radius=True), Grid(evaluations=6)])
def test_network_and_arguments_are_left_as_they_were(solver):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    network[1].eval()  # one module in another mode than the rest
    network[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in network.parameters()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x, sigma_0 = torch.rand(4, 1, 8, 8), torch.tensor([0.1, 0.2, 0.3, 0.4])
    copies = x.clone(), sigma_0.clone()
    path = solver(network, x, sigma_0)
    assert not path.sigma.requires_grad and not path.chosen.requires_grad
    assert [m.training for m in network] == [True, False, True, True]
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(x, copies[0]) and torch.equal(sigma_0, copies[1])


def test_the_network_runs_in_eval_mode(digits):
    _, x = digits
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    paths = [Ascent(iterations=3, lr=0.1)(network, x, 0.3).sigma for _ in range(2)]
    assert torch.equal(*paths)


def test_frozen_puts_modes_back_after_an_error():
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), frozen(network):
        raise RuntimeError
    assert network.training and all(p.requires_grad for p in network.parameters())


def test_the_paper_s_grid_is_n_over_200_apart_and_shares_its_noise(smoothing):
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.flatten(1)[:, 0] - 0.5)
            return torch.stack([x.flatten(1).sum(1), torch.zeros(len(x))], 1)

    path = Grid(samples=4)(Spy(), torch.full((1, 1, 2, 2), 0.5), 0.25, smoothing=smoothing)
    assert np.allclose(path.sigma[:, 0], np.arange(1, 51) * 4 / 200)
    scales = torch.stack(seen) / path.sigma
    assert torch.allclose(scales, scales[:1].expand_as(scales), atol=1e-4)
    assert path.chosen[0] == path.sigma[path.radius[:, 0].argmax(), 0]


def test_keeping_the_class_keeps_a_grid_from_the_confident_wrong_side():
    """Far beyond a narrow slab, a large sigma is sure of the outside: a larger radius of the other class."""
    network, x = Slab(0.5, 0.15), torch.full((1, 1, 1, 1), 0.5)
    sharp = nn.Sequential(network, Scale(200.0))
    free, kept = (Grid(samples=20, keep_class=keep)(sharp, x, 0.1).chosen.item() for keep in (False, True))
    inside = [norm.cdf(0.15 / sigma) - norm.cdf(-0.15 / sigma) for sigma in (free, kept)]
    assert inside[0] < 0.5 < inside[1]


def test_keeping_the_radius_never_ends_below_the_start():
    """Steps in the wrong direction make it worse; the promise goes back to sigma_0."""
    x = torch.full((3, 1, 1, 1), 0.9)
    network = SoftHalfSpace(3.0, 0.4)
    worse, kept = (
        Ascent(iterations=5, lr=-0.05, keep_radius=keep)(network, x, STARTS).chosen for keep in (False, True)
    )
    assert (worse < STARTS).all() and torch.equal(kept, STARTS)


def slow_halving(network: nn.Module, x: Tensor, index: int, sigma_0: float, smoothing: Smoothing) -> float:
    """Successive halving of one image in float64, each scale and sample alone: 5 scales, 8 samples at the end."""
    network, x = network.double(), x.double()
    noise = fill_block(torch.empty(8, *x.shape), smoothing, NoiseKey(0, index, Stage.SEARCH), 0).double()
    anchor = int(torch.stack([network((x + sigma_0 * e)[None])[0].softmax(0) for e in noise]).sum(0).argmax())
    scales = list(sigma_0 * np.geomspace(0.4, 4.0, 5))
    scales[int(np.abs(np.log(np.array(scales) / sigma_0)).argmin())] = sigma_0

    def score(sigma: float, samples: int) -> float:
        logits = [network((x + sigma * e)[None])[0].tolist() for e in noise[:samples]]
        margins = [row[anchor] - max(row[:anchor] + row[anchor + 1 :]) for row in logits]
        p = norm.cdf(np.mean(margins) / (np.std(margins, ddof=1) + 0.1))
        z, n = norm.ppf(0.999), 10_000
        lower = (p + z**2 / 2 / n - z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)) / (1 + z**2 / n)
        lower = max(lower, 1e-6)
        return float(sigma * norm.ppf(lower) if smoothing.norm == "l2" else sigma * (2 * lower - 1))

    for samples, keep in ((2, 3), (4, 2), (8, 1)):
        scales = sorted(scales, key=lambda sigma: -score(sigma, samples))[:keep]
    network.float()
    return scales[0]


def test_halving_is_that_of_a_slow_reference_in_float64(digits, smoothing):
    network, x = digits
    path = Halving(samples=8, scales=5)(network, x, STARTS, smoothing=smoothing, indices=[4, 9, 2])
    slow = [slow_halving(network, x[i], index, STARTS[i].item(), smoothing) for i, index in enumerate([4, 9, 2])]
    assert path.sigma.shape == path.radius.shape == (5, 3)
    assert np.allclose(path.chosen, slow, atol=1e-6)


def test_halving_estimates_the_radius_that_n_samples_certify():
    """Before a half space the smoothed radius is the margin at every scale; a finite n proves less of a small p_B."""
    network, x = HalfSpace(torch.ones(1), -0.5), torch.full((1, 1, 1, 1), 0.8)
    path = Halving(samples=50_000, scales=5, softness=0.0, n=10**9)(network, x, 0.3)
    assert path.radius[1:, 0].numpy() == pytest.approx(0.3, rel=0.02)
    few = Halving(samples=50_000, scales=5, softness=0.0, n=2_000)(network, x, 0.3)
    scales = few.sigma[:, 0].numpy()
    hits = 2_000 * norm.cdf(0.3 / scales)
    certified = scales * norm.ppf(beta.ppf(0.001, hits, 2_000 - hits + 1))
    assert few.radius[:, 0].numpy() == pytest.approx(certified, rel=0.03)
    assert few.radius[0, 0] < 0.28  # the finite n is seen


def test_halving_fixes_the_class_and_does_not_run_to_the_confident_wrong_side():
    sharp = nn.Sequential(Slab(0.5, 0.15), Scale(200.0))
    path = Halving()(sharp, torch.full((1, 1, 1, 1), 0.5), 0.1)
    assert norm.cdf(0.15 / path.chosen.item()) > 0.75


def test_halving_goes_as_far_as_it_may_where_nothing_speaks_against_it():
    path = Halving(sigma_max=0.4)(SoftHalfSpace(50.0, -5.0), torch.full((1, 1, 1, 1), 1.0), 0.25)
    assert path.chosen.item() == pytest.approx(0.4)


@pytest.mark.parametrize("reach", [(0.0, 2.0), (2.0, 3.0), (0.1, 0.9)])
def test_a_reach_around_sigma_0_is_needed(reach):
    with pytest.raises(InputError, match="expected a reach from below 1"):
        Halving(reach=reach)(SoftHalfSpace(1.0, 0.0), torch.zeros(1, 1, 1, 1), 0.1)


def test_no_scale_is_further_than_furthest():
    far = SoftHalfSpace(50.0, -5.0), torch.full((1, 1, 1, 1), 1.0)
    for solver in (Halving(), Halving(sigma_max=0.5), Ascent(lr=9.0), Grid()):
        assert solver(*far, 0.25).sigma.max() == pytest.approx(solver.furthest(0.25))


def test_halving_needs_two_samples():
    with pytest.raises(InputError, match="expected samples >= 2 and scales >= 1, got 1 and 16"):
        Halving(samples=1)(SoftHalfSpace(1.0, 0.0), torch.zeros(1, 1, 1, 1), 0.1)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "solver", [Ascent(iterations=5, samples=3), Grid(samples=4), Halving(), Halving(samples=5, scales=3)]
)
def test_evaluations_are_those_that_the_network_saw(solver, keep):
    seen = []

    class Spy(SoftHalfSpace):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    solver = replace(solver, keep_radius=keep, keep_class=keep)
    path = solver(Spy(1.0, 0.0), torch.full((3, 1, 1, 1), 0.9), STARTS)
    assert 3 * path.evaluations == 3 * solver.planned == sum(seen)


def test_a_plain_function_is_searched_as_a_module_is(digits):
    network, x = digits
    for solver in (Ascent(iterations=2, samples=2), Halving(keep_class=True)):
        paths = [solver(form, x, STARTS) for form in (network, lambda x: network(x))]
        assert torch.equal(paths[0].sigma, paths[1].sigma) and torch.equal(paths[0].chosen, paths[1].chosen)


def test_promises_let_a_better_scale_through():
    x = torch.full((3, 1, 1, 1), 0.9)
    solver = Ascent(iterations=5, lr=0.05, samples=16, keep_class=True, keep_radius=True, check_samples=1000)
    assert (solver(SoftHalfSpace(1.0, 0.4), x, STARTS).chosen > STARTS).all()


@pytest.mark.parametrize("sigma_0", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("solver", SOLVERS.values())
def test_an_impossible_start_is_refused(solver, sigma_0):
    with pytest.raises(InputError, match="expected sigma_0 > 0, got"):
        solver()(SoftHalfSpace(1.0, 0.0), torch.zeros(1, 1, 1, 1), sigma_0)


def test_a_network_that_returns_nan_is_named():
    with pytest.raises(InputError, match="NaN for noisy images"):
        Ascent(iterations=1)(nn.Sequential(nn.Flatten(), Scale(float("nan"))), torch.zeros(1, 1, 1, 2), 0.1)


class Scale(nn.Module):
    """Multiplies logits."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x
