"""Rules that stop early fail no more often than alpha: closed forms, exact rates, simulation, whole certificates."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HalfSpace
from scipy.integrate import quad
from scipy.stats import binom, norm

from ddviz.budget import (
    RULES,
    STAGES,
    Decide,
    Fixed,
    Rule,
    SampleBudget,
    Staged,
    least_probability,
    log_evidence,
    lower_confidence_bound,
)
from ddviz.certify import certify
from ddviz.errors import InputError
from ddviz.records import ABSTAIN, read_records
from ddviz.sampling import Sampler
from ddviz.smoothing import SMOOTHINGS

ROOT = Path(__file__).parents[1]
L2, L1 = SMOOTHINGS["l2"], SMOOTHINGS["l1"]
ALPHA, RUNS = 0.05, 20_000  # an alpha that a simulation sees
NEAR = [0.0, 1e-4, 1e-3]  # below the threshold


def limit(runs: int = RUNS) -> int:
    """Failures that a sound rule exceeds once in a thousand tests."""
    return int(binom.ppf(0.999, runs, ALPHA))


def staged(n: int, alpha: float = ALPHA, gain: float = 0.1) -> Staged:
    rule = SampleBudget("staged", n, alpha, gain=gain).for_noise(L2, 1.0)
    assert isinstance(rule, Staged)
    return rule


@dataclass(frozen=True)
class Peeking:
    """Unsound: Clopper-Pearson with the whole alpha at each look of `decide`, until the bound suits."""

    n: int
    alpha: float
    p: float

    def until(self, count: int, drawn: int) -> int:
        return drawn if drawn and self.p_lower(count, drawn) > self.p else min(self.n, max(128, round(drawn * 1.2)))

    def p_lower(self, count: int, drawn: int) -> float:
        return lower_confidence_bound(count, drawn, self.alpha)


@dataclass(frozen=True)
class Greedy:
    """Asks at every stage of `rule` and stops as soon as its bound exceeds the true p: the worst reason to stop."""

    rule: Staged
    p: float

    def until(self, count: int, drawn: int) -> int:
        lucky = drawn and self.rule.p_lower(count, drawn) > self.p
        return drawn if lucky else next((m for m in self.rule.stages if m > drawn), drawn)

    def p_lower(self, count: int, drawn: int) -> float:
        return self.rule.p_lower(count, drawn)


def outcomes(rule: Rule, p: float, runs: int = RUNS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bound and number of samples of many runs at a hit probability p; the rule is asked once for each count."""
    rng = np.random.default_rng(seed)
    counts, bounds, used = np.zeros(runs, int), np.zeros(runs), np.zeros(runs, int)
    live, drawn = np.arange(runs), 0
    while len(live):
        distinct, where = np.unique(counts[live], return_inverse=True)
        untils = [rule.until(int(count), drawn) for count in distinct]
        stops = np.array([until == drawn for until in untils])
        shown = np.array([rule.p_lower(int(count), drawn) if drawn else 0.0 for count in distinct])
        done = stops[where]
        bounds[live[done]], used[live[done]] = shown[where][done], drawn
        live = live[~done]
        later = set(untils) - {drawn}
        assert len(later) <= 1 and all(drawn < until for until in later)  # looks do not depend on the counts
        for until in later:
            counts[live] += rng.binomial(until - drawn, p, len(live))
            drawn = until
    return bounds, used


def exact_failure(rule: Rule, p: float, above: float) -> float:
    """Probability that the bound exceeds `above` at the end: the distribution of the count, carried look by look."""
    mass, drawn, failed = np.ones(1), 0, 0.0
    while True:
        untils = [rule.until(count, drawn) if mass[count] else drawn for count in range(drawn + 1)]
        for count in range(drawn + 1):
            if untils[count] == drawn:
                failed += mass[count] * bool(drawn and rule.p_lower(count, drawn) > above)
                mass[count] = 0
        if max(untils) == drawn:
            return failed
        step = max(untils) - drawn
        mass = np.convolve(mass, binom.pmf(np.arange(step + 1), step, p))
        drawn += step


# The bets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 0.8, 0.977, 0.9999])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_at_p_itself_each_bet_is_worth_1_on_average(p, n):
    for side in (0, 1):
        worth = [math.exp(log_evidence(k, n - k, p)[side]) * binom.pmf(k, n, p) for k in range(n + 1)]
        assert sum(worth) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("hits", "misses"), [(0, 0), (5, 0), (0, 4), (300, 7), (50_000, 1_200)])
def test_each_bet_is_fair_at_every_step(hits, misses):
    p = 0.977
    now, hit, miss = (log_evidence(*c, p) for c in ((hits, misses), (hits + 1, misses), (hits, misses + 1)))
    for side in (0, 1):
        fair = p * math.exp(hit[side] - now[side]) + (1 - p) * math.exp(miss[side] - now[side])
        assert fair == pytest.approx(1, rel=1e-6)


def test_a_bet_whose_side_is_wrong_loses_on_average():
    for wrong, side in ((0.96, 0), (0.99, 1)):
        worth = [math.exp(log_evidence(k, 60 - k, 0.977)[side]) * binom.pmf(k, 60, wrong) for k in range(61)]
        assert sum(worth) < 0.97


@pytest.mark.parametrize(("hits", "misses", "p"), [(20, 3, 0.8), (90, 1, 0.95), (10, 0, 0.5), (3, 9, 0.6)])
def test_the_bets_are_the_likelihood_ratios_of_their_mixtures(hits, misses, p):
    """By numerical integration over u = sqrt(q), of which the mixture is uniform."""

    def ratio(u: float) -> float:
        return ((1 - u * u) / p) ** hits * (u * u / (1 - p)) ** misses

    root = math.sqrt(1 - p)
    expected = quad(ratio, 0, root)[0] / root, quad(ratio, root, 1)[0] / (1 - root)
    assert np.exp(log_evidence(hits, misses, p)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("sigma", "radius"), [(0.25, 0.5), (0.12, 0.1), (1.0, 0.5), (0.25, 1e-6), (0.25, 1.9)])
def test_the_least_probability_is_that_of_the_radius_rounded_up(sigma, radius):
    p = least_probability(L2, sigma, radius)
    assert p == pytest.approx(norm.cdf(radius / sigma), rel=1e-12)
    assert L2.certified_radius(sigma, p) >= radius > L2.certified_radius(sigma, math.nextafter(p, 0))


def test_the_least_probability_under_uniform_noise():
    assert least_probability(L1, 0.5, 0.2) == pytest.approx(0.5 + 0.2 / (2 * 0.5))
    assert least_probability(L1, 0.5, 0.6) == 1  # beyond lambda nothing is certified
    assert least_probability(L2, 0.1, 5.0) == 1  # beyond what a float below 1 can say


# The rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 10, 12_345, 100_000])
def test_stages_spend_alpha_exactly_and_end_with_n(n):
    rule = staged(n, alpha=0.01)
    stages = rule.stages
    assert stages[-1] == n and list(stages) == sorted(set(stages)) and len(stages) <= len(STAGES)
    spent = [0.01 * stage / sum(stages) for stage in stages]
    assert sum(spent) == pytest.approx(0.01)
    for stage, share in zip(stages, spent, strict=True):
        assert rule.p_lower(stage, stage) == pytest.approx(share ** (1 / stage), rel=1e-12)


def test_no_rule_draws_more_than_n_or_stops_before_it_asked():
    for rule in (Fixed(5_000, ALPHA), staged(5_000), Decide(5_000, ALPHA, 0.9)):
        for p in (0.2, 0.5, 0.9, 1.0):
            _, used = outcomes(rule, p, runs=500)
            assert 0 < used.min() and used.max() <= 5_000
    assert set(outcomes(Fixed(5_000, ALPHA), 0.9, runs=500)[1]) == {5_000}


def test_staged_stops_where_little_is_gained_and_where_there_is_no_hope():
    rule = staged(100_000, 0.001)
    assert rule.until(100, 1_000) == 1_000  # far below 1/2: abstains
    assert rule.until(500, 1_000) == 4_000  # may still be above 1/2
    assert rule.until(1_000, 1_000) == 4_000  # unanimous: each sample still adds radius
    assert rule.until(38_000, 50_000) == 50_000  # p_A = .76 is known well enough
    assert replace(rule, gain=0.0).until(38_000, 50_000) == 100_000
    assert replace(rule, gain=9.0).until(900, 1_000) == 1_000


def test_decide_stops_on_either_answer_and_where_it_cannot_win():
    rule = Decide(10_000, 0.001, 0.977)
    assert rule.until(0, 0) == 128
    assert (rule.until(384, 384), rule.p_lower(384, 384)) == (384, 0.977)  # all agree
    assert (rule.until(100, 128), rule.p_lower(100, 128)) == (128, 0.0)  # 28 misses where 3 are expected
    assert rule.until(9_760, 9_990) == 9_990 and rule.p_lower(9_760, 9_990) == 0  # ten more cannot help
    assert Decide(200, 0.001, 0.977).until(0, 0) == 0  # nor could 200 from the start
    assert Decide(10_000, 0.001, 1.0).until(0, 0) == 0 == Decide(10_000, 0.001, 1.0).p_lower(0, 0)


# Error rates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", NEAR)
@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.977, 0.998])
def test_decide_says_yes_no_more_often_than_alpha_where_the_answer_is_no(threshold, below):
    bounds, _ = outcomes(Decide(20_000, ALPHA, threshold), threshold - below)
    yes = np.sum(bounds > 0)
    assert yes <= limit() and (yes > 0 or below)


@pytest.mark.parametrize("p", [0.501, 0.6, 0.9, 0.977])
def test_the_bound_of_fixed_and_staged_fails_no_more_often_than_alpha(p):
    for rule in (Fixed(2_000, ALPHA), staged(2_000), staged(2_000, gain=1.0), staged(2_000, gain=0.0)):
        bounds, _ = outcomes(rule, p)
        assert 0 < np.sum(bounds > p) <= limit()


@pytest.mark.parametrize("p", [0.6, 0.9, 0.977])
def test_staged_holds_whatever_makes_it_stop_and_an_unsound_rule_is_found_out(p):
    n = 20_000
    greedy, _ = outcomes(Greedy(staged(n), p), p)
    assert 0.25 * limit() < np.sum(greedy > p) <= limit()
    cheat, _ = outcomes(Peeking(n, ALPHA, p), p)
    assert np.sum(cheat > p) > 2 * limit()


@pytest.mark.parametrize("p", [0.6, 0.9, 0.977])
def test_exact_error_rates_at_the_threshold(p):
    """No chance in it: the recursion over all counts."""
    n = 1_500
    assert 0.002 < exact_failure(Decide(n, ALPHA, p), p, 0.0) <= ALPHA
    assert 0.01 < exact_failure(Greedy(staged(n), p), p, p) <= ALPHA
    assert 0.02 < exact_failure(Fixed(n, ALPHA), p, p) <= ALPHA < exact_failure(Peeking(n, ALPHA, p), p, p)
    simulated = np.mean(outcomes(Decide(n, ALPHA, p), p)[0] > 0)
    assert simulated == pytest.approx(exact_failure(Decide(n, ALPHA, p), p, 0.0), abs=0.006)


def test_decide_finds_what_is_clear_and_rarely_misses_it():
    yes, used = outcomes(Decide(100_000, 0.001, 0.977), 0.985, runs=2_000)
    assert np.mean(yes > 0) > 0.998 and np.median(used) < 10_000
    no, used = outcomes(Decide(100_000, 0.001, 0.977), 0.95, runs=2_000)
    assert not no.any() and np.median(used) < 2_000


def test_the_median_image_of_a_real_run_is_decided_with_the_samples_that_the_readme_names():
    records = read_records(ROOT / "notebooks/results/cifar10/cifar10-resnet20-cohen-0.25-fs-l2-0.25-fixed/records.tsv")
    rule = SampleBudget("decide", radius=0.5).for_noise(L2, records[0].sigma)
    used = [outcomes(rule, (r.count + 0.5) / (r.n + 1), runs=1, seed=r.idx)[1][0] for r in records]
    median = int(np.median(used))
    assert 50 * median <= 100_000
    assert f"after {median} samples instead of 100,000" in (ROOT / "README.md").read_text(encoding="utf-8")


# Certificates -------------------------------------------------------------------------------------------------------

MARGIN = 0.11
FIRST = torch.tensor([1.0, 0, 0, 0, 0, 0])


@pytest.fixture
def sampler(x):
    """Class 0 with a radius of MARGIN at x in both norms."""
    return Sampler.prepare(HalfSpace(FIRST, MARGIN - 0.3), x)


def test_a_fixed_budget_is_the_certificate_without_one(sampler, x, smoothing):
    given = {"smoothing": smoothing, "seed": 3, "index": 4}
    plain = certify(sampler, x, 0.2, n=3_000, alpha=0.01, **given)
    assert plain == certify(sampler, x, 0.2, budget=SampleBudget("fixed", 3_000, 0.01), **given)


def test_decide_certifies_exactly_the_radius_or_abstains(sampler, x, smoothing):
    for radius in (0.05, 0.08, 0.2):
        budget = SampleBudget("decide", radius=radius)
        result = certify(sampler, x, 0.3, budget=budget, smoothing=smoothing)
        assert 0 < result.count <= result.n < 10_000
        if radius < MARGIN:
            p = least_probability(smoothing, result.sigma, radius)
            assert (result.predict, result.radius, result.p_lower) == (0, radius, p)
        else:
            assert (result.predict, result.radius, result.p_lower) == (ABSTAIN, 0.0, 0.0)


def test_decide_draws_nothing_where_no_count_could_show_the_radius(sampler, x):
    result = certify(sampler, x, 0.02, budget=SampleBudget("decide", 1_000, radius=0.1))
    assert (result.predict, result.radius, result.count, result.n) == (ABSTAIN, 0.0, 0, 0)


def test_staged_certifies_nearly_as_much_with_fewer_samples(sampler, x, smoothing):
    full = certify(sampler, x, 0.2, n=50_000, smoothing=smoothing)
    result = certify(sampler, x, 0.2, budget=SampleBudget("staged", 50_000, gain=0.2), smoothing=smoothing)
    assert result.predict == 0 and result.n < full.n
    assert full.radius - 0.2 * 0.2 < result.radius <= MARGIN  # gain times sigma
    share = 0.001 * result.n / sum(math.ceil(50_000 * stage) for stage in STAGES)
    assert result.p_lower == lower_confidence_bound(result.count, result.n, share)


@pytest.mark.parametrize("rule", ["staged", "decide"])
def test_whole_certificates_fail_no_more_often_than_alpha(x, rule):
    """Through noise, network and choice of the class, where the true radius is the one asked for, or a hair less."""
    sampler, seeds = Sampler.prepare(HalfSpace(FIRST, 0.05 - 0.3), x), 600
    radius = 0.0501 if rule == "decide" else 0.0
    budget = SampleBudget(rule, 400, 0.2, radius=radius, gain=0.5)
    results = [certify(sampler, x, 0.25, n0=20, budget=budget, seed=seed) for seed in range(seeds)]
    wrong = sum(r.predict == 1 or r.radius > 0.05 for r in results)
    assert 0 < wrong <= binom.ppf(0.999, seeds, 0.2)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"rule": "adaptive"}, "rule of a budget to be one of fixed, staged, decide, got 'adaptive'"),
        ({"n": 0}, "expected n to be a whole number >= 1 of noise samples, got 0"),
        ({"alpha": 0.0}, "expected alpha, .* got 0"),
        ({"gain": math.nan}, "expected gain >= 0, .* got nan"),
        ({"rule": "decide"}, "expected a target radius > 0 with the rule decide, got 0"),
        ({"rule": "decide", "radius": math.inf}, "expected a target radius > 0 .* got inf"),
        ({"rule": "staged", "radius": 0.5}, "expected no target radius with the rule staged, .* got 0.5"),
    ],
)
def test_impossible_budgets_are_refused(budget, message):
    with pytest.raises(InputError, match=message):
        SampleBudget(**budget)


def test_n_beside_a_budget_is_refused(sampler, x):
    with pytest.raises(InputError, match=r"expected n and alpha inside the budget, got n=500 and alpha=0\.001"):
        certify(sampler, x, 0.2, n=500, budget=SampleBudget())


def test_a_radius_out_of_reach_is_named_with_what_it_needs():
    with pytest.raises(InputError, match=r"expected n of about (\d+) samples, got 200: .* 0\.5 at noise scale 0\.25"):
        SampleBudget("decide", 200, radius=0.5).check_reach(L2, 0.25)
    with pytest.raises(InputError, match="expected a smaller target radius: no number of samples"):
        SampleBudget("decide", radius=0.6).check_reach(L1, 0.5)
    SampleBudget("decide", 400, radius=0.5).check_reach(L2, 0.25)
    for rule in set(RULES) - {"decide"}:
        SampleBudget(rule).check_reach(L2, 0.25)
