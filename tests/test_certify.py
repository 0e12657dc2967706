"""Certificates against closed forms, an independent float64 reference, and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import HalfSpace, Slab
from scipy.stats import binom, norm
from torch import nn

import ddviz
from ddviz.budget import SampleBudget, largest_p_lower, lower_confidence_bound
from ddviz.certify import certificate, certify, certify_many, predict
from ddviz.errors import InputError
from ddviz.noise import BLOCK, NoiseKey, Stage, fill_block
from ddviz.records import ABSTAIN
from ddviz.sampling import Sampler
from ddviz.smoothing import SMOOTHINGS, Smoothing

L2, L1 = SMOOTHINGS["l2"], SMOOTHINGS["l1"]


@pytest.mark.parametrize(("count", "n", "alpha"), [(0, 10, 0.1), (1, 5, 0.05), (7, 10, 0.001), (30, 30, 0.01)])
def test_clopper_pearson_is_the_p_at_which_so_many_hits_have_probability_alpha(count, n, alpha):
    p = lower_confidence_bound(count, n, alpha)
    exact = Fraction(p)
    tail = sum(math.comb(n, k) * exact**k * (1 - exact) ** (n - k) for k in range(count, n + 1))
    assert float(tail) == pytest.approx(alpha if count else 1.0, rel=1e-9)


def test_the_largest_bound_is_that_of_unanimous_samples():
    assert largest_p_lower(100_000, 0.001) == pytest.approx(lower_confidence_bound(100_000, 100_000, 0.001), rel=1e-12)
    assert L2.certified_radius(1.0, largest_p_lower(100_000, 0.001)) == pytest.approx(3.811, abs=1e-3)


def least_radius(smoothing: Smoothing, sigma: float, p: float, n: int) -> float:
    """The radius that an unlucky count (one draw in 10,000) of a class of probability p still certifies."""
    count = int(binom.ppf(1e-4, n, p))
    p_lower = lower_confidence_bound(count, n, 0.001)
    return certificate(0, p_lower, count, n, sigma=sigma, smoothing=smoothing).radius


@pytest.mark.parametrize("sigma", [0.05, 0.12, 0.25, 0.5, 1.0, 2.0])
def test_the_radius_of_a_linear_classifier_is_its_margin(x, sigma):
    w = torch.tensor([1.0, -2.0, 0.5, 1.5, 0.3, -0.7])
    margin = 0.11
    network = HalfSpace(w, margin * w.norm().item() - (x.flatten() @ w).item())
    result = certify(network, x, sigma, n=20_000)
    assert result.predict == 0
    assert least_radius(L2, sigma, float(norm.cdf(margin / sigma)), 20_000) <= result.radius <= margin


@pytest.mark.parametrize("scale", [0.15, 0.3, 0.8])
def test_the_l1_radius_of_an_axis_aligned_half_space_is_its_margin(x, scale):
    margin = 0.11
    network = HalfSpace(torch.tensor([1.0, 0, 0, 0, 0, 0]), margin - 0.3)
    result = certify(network, x, scale, n=20_000, smoothing=L1)
    assert least_radius(L1, scale, min(1, 0.5 + margin / scale / 2), 20_000) <= result.radius <= margin


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.6])
@pytest.mark.parametrize("centre", [0.3, 0.4])
def test_a_slab_is_certified_with_its_closed_form(x, sigma, centre):
    half = 0.3
    near, far = ((half + side * (centre - 0.3)) / sigma for side in (1, -1))
    p = norm.cdf(near) - norm.cdf(-far)  # of class 0 at x_0 = .3
    result = certify(Slab(centre, half), x, sigma, n=20_000)
    assert result.predict == (0 if p > 0.5 else 1)
    exact = sigma * norm.ppf(max(p, 1 - p))
    assert result.radius <= exact + 1e-6
    assert result.radius == pytest.approx(sigma * norm.ppf(lower_confidence_bound(result.count, 20_000, 0.001)))
    assert result.count / 20_000 == pytest.approx(max(p, 1 - p), abs=0.015)


@pytest.mark.parametrize("smoothing", [L2, L1])
def test_a_tie_abstains(x, smoothing):
    network = HalfSpace(torch.tensor([1.0, 0, 0, 0, 0, 0]), -0.3)
    result = certify(network, x, 0.25, n=5_000, smoothing=smoothing)
    assert (result.predict, result.radius) == (ABSTAIN, 0.0) and result.p_lower <= 0.5
    assert predict(network, x, 0.25, smoothing=smoothing) == ABSTAIN


def test_certificates_fail_no_more_often_than_alpha():
    """Of draws of the count from its true distribution, a share alpha may certify more than the true radius."""
    rng = np.random.default_rng(0)
    alpha, n, draws = 0.05, 200, 4_000
    for p in (0.55, 0.8, 0.97, 0.999):
        true = 0.25 * norm.ppf(p)
        radii = [
            certificate(0, lower_confidence_bound(int(k), n, alpha), int(k), n, sigma=0.25, smoothing=L2).radius
            for k in rng.binomial(n, p, draws)
        ]
        assert sum(r > true for r in radii) <= binom.ppf(0.999, draws, alpha)


def test_whole_certificates_fail_no_more_often_than_alpha(x):
    """The same through noise, network and choice of the class; choosing on the samples that are counted would fail."""
    margin, alpha, seeds = 0.004, 0.2, 400
    network = HalfSpace(torch.tensor([1.0, 0, 0, 0, 0, 0]), margin - 0.3)
    sampler = Sampler.prepare(network, x)
    results = [certify(sampler, x, 0.25, n0=20, n=100, alpha=alpha, seed=seed) for seed in range(seeds)]
    wrong = sum(r.predict == 1 or (r.predict == 0 and r.radius > margin) for r in results)
    assert 0 < wrong <= binom.ppf(0.999, seeds, alpha)


@pytest.mark.parametrize("rule", ["fixed", "staged", "decide"])
def test_no_noise_is_used_twice(x, rule, monkeypatch):
    """The class is chosen with a stage of its own, and each look of a rule begins where the one before ended."""
    seen, count_many = [], Sampler.count_many

    def spy(self, requests, **settings):
        seen.extend((r.key.stage, r.first, r.first + r.n) for r in requests)
        return count_many(self, requests, **settings)

    monkeypatch.setattr(Sampler, "count_many", spy)
    radius = {"radius": 0.3} if rule == "decide" else {}
    network = HalfSpace(torch.ones(6) / 6**0.5, -1.0)
    certificate = certify(network, x, 0.25, n0=50, budget=SampleBudget(rule, n=3000, gain=0.0, **radius))
    assert seen[0] == (Stage.CHOICE, 0, 50)
    assert {stage for stage, *_ in seen[1:]} == {Stage.ESTIMATE}
    assert [first for _, first, _ in seen[1:]] == [0, *(end for *_, end in seen[1:-1])]
    assert certificate.n == seen[-1][2] and (len(seen) > 2) == (rule != "fixed")
    if rule == "staged":  # to the end: the counts are those of a fixed n
        assert certificate.count == certify(network, x, 0.25, n0=50, n=3000).count


def test_counts_agree_with_one_sample_at_a_time_in_float64(smoothing):
    """An independent slow reference: the digits network in float64 on the same noise."""
    images = ddviz.datasets.load("digits", max_images=3)
    network = ddviz.models.load("digits", sigma=0.25).network
    exact = ddviz.models.load("digits", sigma=0.25).network.double()
    for index in images.indices:
        pixels = images.image(index)
        expected = [0] * 10
        for block in range(4):
            noise = fill_block(torch.empty(BLOCK, 1, 8, 8), smoothing, NoiseKey(5, index, Stage.ESTIMATE), block)
            for e in noise.double():
                expected[int(exact((pixels.double() + 0.5 * e)[None]).argmax())] += 1
        counts = Sampler.prepare(network, pixels).count(
            pixels, 0.5, 4 * BLOCK, smoothing=smoothing, key=NoiseKey(5, index, Stage.ESTIMATE)
        )
        assert counts.tolist() == expected


def test_certificates_of_many_are_those_of_each_alone(smoothing):
    images = ddviz.datasets.load("digits", max_images=9)
    network = ddviz.models.load("digits", sigma=0.25).network
    indices = [3, 0, 8, 8, 5]
    asked = [images.image(index) for index in indices], [0.2, 0.9, 0.1, 0.6, 0.4], indices
    settings = {"n0": 30, "n": 333, "alpha": 0.01, "smoothing": smoothing, "seed": 4}
    together = certify_many(network, *asked, **settings)
    assert together == [certify(network, x, s, index=i, **settings) for x, s, i in zip(*asked, strict=True)]
    assert len({result.radius for result in together}) > 2
    assert certify_many(network, [], [], []) == []


def test_predict_is_the_top_class_where_it_is_clear(x):
    assert predict(HalfSpace(torch.tensor([1.0, 0, 0, 0, 0, 0]), 0.2), x, 0.25) == 0
    assert predict(HalfSpace(torch.tensor([1.0, 0, 0, 0, 0, 0]), -0.9), x, 0.25) == 1


def test_a_module_needs_no_wrapper_and_is_not_changed(x):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    certify(network, x, 0.25, n=100)
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "expected sigma > 0, got 0"),
        ({"sigma": -1.0}, "expected sigma > 0, got -1"),
        ({"sigma": math.nan}, "expected sigma > 0, got nan"),
        ({"n": 0}, "expected n to be a whole number >= 1 of noise samples, got 0"),
        ({"n0": 0}, "expected n0 to be a whole number >= 1"),
        ({"alpha": 1.0}, "expected alpha"),
    ],
)
def test_impossible_settings_are_refused(x, change, message):
    with pytest.raises(InputError, match=message):
        certify(Slab(0.3, 0.1), x, change.pop("sigma", 0.25), **change)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.full((1, 2, 3), math.nan), "got NaN or infinity in the image"),
        (torch.full((1, 2, 3), 200.0), "got 200 to 200 .* before any normalisation"),
        (torch.zeros(2, 3), r"to be \(channels, height, width\), got shape \(2, 3\)"),
        (torch.zeros(1, 2, 3, dtype=torch.uint8), "Divide 8-bit pixels by 255"),
    ],
)
def test_impossible_images_are_refused(pixels, message):
    with pytest.raises(InputError, match=message):
        certify(Slab(0.3, 0.1), pixels, 0.25)
