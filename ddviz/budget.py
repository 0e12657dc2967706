"""How many samples a certificate draws, and what they prove: rules that stop early with the guarantee of a fixed n.

Everything that a rule decides by is set before the first sample is drawn: its stages, the share of alpha that each may
spend, its prior. It sees only how many samples fell on the class that was chosen with other noise.

Looking at Clopper-Pearson's bound again and again until it suits would fail more often than alpha. `staged` pays for
each look with a share of alpha; `decide` watches a bet that may be looked at forever.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scipy.special import betainc, betaincc, betaln
from scipy.stats import beta

from ddviz.errors import InputError
from ddviz.smoothing import Smoothing

STAGES = (0.01, 0.04, 0.16, 0.5, 1.0)
"""Where `staged` looks, in shares of n: more looks find a better moment and leave each a smaller share of alpha."""

_FIRST_LOOK, _NEXT_LOOK = 128, 1.2  # of `decide`: looks cost nothing but the wait for a batch, so they are many


def lower_confidence_bound(count: float, n: int, alpha: float) -> float:
    """Clopper-Pearson: a bound that is at most p with probability 1 - alpha, where count ~ Binomial(n, p)."""
    return float(beta.ppf(alpha, count, n - count + 1)) if count > 0 else 0.0


def largest_p_lower(n: int, alpha: float) -> float:
    """The bound when all n samples agree, alpha^(1/n): no certificate can do better."""
    return alpha ** (1 / n)


def least_probability(smoothing: Smoothing, sigma: float, radius: float) -> float:
    """The smallest p_A that certifies `radius` at noise scale `sigma`; 1 where nothing less does."""
    low, high = 0.5, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if smoothing.certified_radius(sigma, middle) >= radius else (middle, high)
    return high


def log_evidence(hits: int, misses: int, p: float) -> tuple[float, float]:
    """Log-wealth of two bets on the samples so far: that the probability of a hit is above p, and that it is below.

    Each is a likelihood ratio of a mixture to p. Where the bet is wrong it is a nonnegative supermartingale that begins
    at 1, so it ever reaches 1/alpha with probability at most alpha (Ville's inequality; Waudby-Smith and Ramdas, arXiv
    2010.09686; for certificates Voracek, arXiv 2406.17830). The mixtures have density q^(-1/2) in the probability q
    of a miss, cut at 1 - p: most p_A that are worth certifying lie near 1.
    """
    q = 1 - p
    ratio = float(betaln(misses + 0.5, hits + 1)) - hits * math.log(p) - misses * math.log(q)
    above = _log(betainc(misses + 0.5, hits + 1, q)) - math.log(2 * math.sqrt(q))
    below = _log(betaincc(misses + 0.5, hits + 1, q)) - math.log(2 * (1 - math.sqrt(q)))
    return ratio + above, ratio + below


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


class Rule(Protocol):
    """When to stop sampling one image, and the bound on p_A that holds then with probability 1 - alpha."""

    def until(self, count: int, drawn: int) -> int:
        """How many samples to have before asking again, when `count` of `drawn` were hits; `drawn`: enough."""
        ...

    def p_lower(self, count: int, drawn: int) -> float:
        """The lower bound on the probability of a hit, where `until` said enough; 0 where nothing was shown."""
        ...


@dataclass(frozen=True)
class Fixed:
    """All n samples, then Clopper-Pearson (arXiv 1902.02918, section 3.2.2)."""

    n: int
    alpha: float

    def until(self, count: int, drawn: int) -> int:
        return self.n

    def p_lower(self, count: int, drawn: int) -> float:
        return lower_confidence_bound(count, drawn, self.alpha)


@dataclass(frozen=True)
class Staged:
    """Stops at the first of `stages` (increasing) after which samples would gain little, or change nothing.

    The bound of each stage fails with probability at most its share of alpha, all of them together with at most alpha:
    so the one that is used holds, whatever made us stop. Shares grow with the stage: most images that reach the last
    one are there for its precision.

    radius: of a lower bound on p_A, in units of the noise scale. gain: go on while n more samples would add so much
    radius at the rate of the best later stage, if hits kept their frequency. A gain per sample, not a relative one:
    equal for all images, it gives the largest average radius for a number of samples.
    """

    stages: tuple[int, ...]
    alpha: float
    radius: Callable[[float], float]
    gain: float

    def until(self, count: int, drawn: int) -> int:
        later = [stage for stage in self.stages if stage > drawn]
        return drawn if not later or (drawn and self._settled(count, drawn, later)) else later[0]

    def p_lower(self, count: float, drawn: int) -> float:
        return lower_confidence_bound(count, drawn, self.alpha * drawn / sum(self.stages))

    def _settled(self, count: int, drawn: int, later: list[int]) -> bool:
        n = later[-1]
        if (radius := self.radius(self.p_lower(count, drawn))) > 0:
            gains = ((self.radius(self.p_lower(count / drawn * m, m)) - radius) / (m - drawn) for m in later)
            return max(gains) * n < self.gain
        most = 1 - lower_confidence_bound(drawn - count, drawn, self.alpha)  # no hope above 1/2: abstain now
        return self.p_lower(most * n, n) <= 0.5


@dataclass(frozen=True)
class Decide:
    """Is the probability of a hit above p? Stops as soon as one of the two bets of `log_evidence` is won.

    "Yes" is wrong with probability at most alpha, "no" too. Gives up where n samples can no longer show it; to give up
    costs power and is never unsound.
    """

    n: int
    alpha: float
    p: float

    def until(self, count: int, drawn: int) -> int:
        if drawn >= self.n or not self._can_win(count, drawn) or max(self._evidence(count, drawn)) >= self._bar:
            return drawn
        looks = math.ceil(drawn * _NEXT_LOOK / _FIRST_LOOK)
        return min(self.n, max(drawn + _FIRST_LOOK, looks * _FIRST_LOOK))

    def p_lower(self, count: int, drawn: int) -> float:
        return self.p if self.p < 1 and self._evidence(count, drawn)[0] >= self._bar else 0.0

    @property
    def _bar(self) -> float:
        return -math.log(self.alpha)

    def _evidence(self, count: int, drawn: int) -> tuple[float, float]:
        return log_evidence(count, drawn - count, self.p)

    def _can_win(self, count: int, drawn: int) -> bool:
        """Whether the bet is won if all samples to come are hits."""
        return self.p < 1 and self._evidence(count + self.n - drawn, self.n)[0] >= self._bar


@dataclass(frozen=True)
class SampleBudget:
    """At most n samples an image, spent by a rule, for a bound that fails with probability at most alpha.

    rule: one of `RULES`. "fixed" draws n; "staged" stops where more would gain little radius, see `Staged` for
    `gain`; "decide" asks only whether the image is certified at `radius`, in [0,1]-pixel units of the norm: such a
    certificate has radius `radius`, and ABSTAIN means that this was not shown, be the image certified at less or not.

    Raises: InputError for an unknown rule, n < 1, alpha outside (0, 1), gain < 0, a radius without "decide" or "decide"
    without one.
    """

    rule: str = "fixed"
    n: int = 100_000
    alpha: float = 0.001
    radius: float = 0.0
    gain: float = 0.1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"expected the rule of a budget to be one of {', '.join(RULES)}, got {self.rule!r}.")
        check_samples(self.alpha, n=self.n)
        if not self.gain >= 0:
            raise InputError(f"expected gain >= 0, radius in units of sigma that n samples add, got {self.gain:g}.")
        if self.rule == "decide" and not 0 < self.radius < math.inf:
            raise InputError(f"expected a target radius > 0 with the rule decide, got {self.radius:g}.")
        if self.rule != "decide" and self.radius:
            raise InputError(
                f"expected no target radius with the rule {self.rule}, which finds the largest, got {self.radius:g}. "
                "Take the rule decide, or set the target radius to 0."
            )

    def for_noise(self, smoothing: Smoothing, sigma: float) -> Rule:
        """The rule for one image at its noise scale."""
        return RULES[self.rule](self, smoothing, sigma)

    def check_reach(self, smoothing: Smoothing, sigma: float) -> None:
        """Refuse a target radius that could not be shown even if all n samples agreed.

        Raises: InputError with the number of samples that could.
        """
        rule = self.for_noise(smoothing, sigma)
        if rule.until(0, 0):
            return
        enough = self.n
        p = least_probability(smoothing, sigma, self.radius)
        while p < 1 and not Decide(enough, self.alpha, p).until(0, 0):
            enough *= 2
        what = f"a radius of {self.radius:g} at noise scale {sigma:g}"
        if p == 1:
            raise InputError(f"expected a smaller target radius: no number of samples shows {what}. Or raise sigma.")
        raise InputError(
            f"expected n of about {enough} samples, got {self.n}: too few to show {what}, even if all agree. Or raise "
            "sigma, or lower the target radius; method=ds reaches further than fixed sigma."
        )


def _staged(budget: SampleBudget, smoothing: Smoothing, sigma: float) -> Staged:
    stages = sorted({math.ceil(share * budget.n) for share in STAGES})
    return Staged(tuple(stages), budget.alpha, lambda p: smoothing.certified_radius(1.0, p), budget.gain)


RULES: dict[str, Callable[[SampleBudget, Smoothing, float], Rule]] = {
    "fixed": lambda budget, smoothing, sigma: Fixed(budget.n, budget.alpha),
    "staged": _staged,
    "decide": lambda budget, smoothing, sigma: Decide(
        budget.n, budget.alpha, least_probability(smoothing, sigma, budget.radius)
    ),
}
"""Rules by name, made for a budget, a smoothing and the noise scale of an image."""


def check_samples(alpha: float, **samples: int) -> None:
    """Refuse what is no probability of failure and what is no number of samples.

    Raises: InputError naming it.
    """
    if not 0 < alpha < 1:
        raise InputError(f"expected alpha, a probability of failure, in (0, 1), got {alpha:g}.")
    for name, value in samples.items():
        if not (isinstance(value, int) and value >= 1):
            raise InputError(f"expected {name} to be a whole number >= 1 of noise samples, got {value!r}.")
