"""Algorithm 3 against the paper's Figure 2, and against brute force in exact arithmetic."""

import contextlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from ddviz import memory as memory_module
from ddviz.errors import InputError
from ddviz.memory import Answer, Memory, replay
from ddviz.records import ABSTAIN, Record

NORMS = pytest.mark.parametrize("norm", ["l1", "l2"])
Point = list[Fraction]
Entry = tuple[Point, int, Fraction]


def exact(x: ArrayLike) -> Point:
    return [Fraction(float(value)) for value in np.asarray(x).ravel()]


def size(length: Fraction, norm: str) -> Fraction:
    """A length as `apart` measures it, so that lengths compare exactly without a root."""
    return length if norm == "l1" else length**2


def apart(a: Point, b: Point, norm: str) -> Fraction:
    """The exact l1 distance, or the square of the l2 distance."""
    return sum((size(abs(p - q), norm) for p, q in zip(a, b, strict=True)), Fraction(0))


def expected(entries: list[Entry], x: Point, predict: int, radius: float, norm: str) -> tuple[int, float]:
    """Algorithm 3, slowly: comparisons exact, only the resulting radius is a float."""
    rooms, gaps, classes = [], [radius], []
    for center, label, r in entries:
        measured = apart(center, x, norm)
        if measured == 0:
            return label, float(r)
        if label != predict:
            distance = float(measured) if norm == "l1" else math.sqrt(measured)
            gaps.append(distance - float(r))
            if measured < size(r, norm):
                rooms.append(float(r) - distance)
                classes.append(label)
    if rooms:
        assert len(set(classes)) == 1  # else balls of two classes hold x
        return classes[0], max(rooms) if predict == ABSTAIN else min(radius, max(rooms))
    return (ABSTAIN, 0.0) if predict == ABSTAIN else (predict, max(0.0, min(gaps)))


class Audit:
    """A memory whose every answer is compared with brute force over all that it stored before."""

    def __init__(self, norm: str):
        self.norm, self.memory = norm, Memory(norm)
        self.entries: list[Entry] = []
        self.cases: set[str] = set()

    def answer(self, x: NDArray[np.floating], predict: int, radius: float) -> Answer:
        point, before = exact(x), list(self.entries)
        answer = self.memory.answer(x, predict, radius)
        self.cases.add(answer.case)
        label, r = expected(before, point, predict, radius, self.norm)
        assert answer.predict == label
        assert answer.radius >= 0
        assert answer.radius == pytest.approx(r, rel=1e-9, abs=1e-9)
        distances = [apart(center, point, self.norm) for center, _, _ in before]
        self._guarantee(answer, before, distances)
        self._reason(answer, predict, radius, before, distances)
        if answer.case not in ("known", "abstained"):
            self._invariant(answer, before, distances, x)
            self.entries.append((point, answer.predict, Fraction(answer.radius)))
        assert len(self.memory) == len(self.entries)
        return answer

    def _guarantee(self, answer: Answer, before: list[Entry], distances: list[Fraction]) -> None:
        for (_, label, r), distance in zip(before, distances, strict=True):
            assert distance >= size(r, self.norm) or answer.predict == label

    def _invariant(self, answer: Answer, before: list[Entry], distances: list[Fraction], x: ArrayLike) -> None:
        """Exactly; then as a user would see it, in float64, on what the memory itself says it holds."""
        radius = Fraction(answer.radius)
        for (_, label, r), distance in zip(before, distances, strict=True):
            assert answer.predict == label or distance >= size(r + radius, self.norm)
        stored = self.memory.entries
        assert len(stored) == len(before) + 1 and (stored[-1][0] == np.ravel(x)).all()
        points = np.stack([point for point, _, _ in stored]).astype(np.float64)
        gaps = np.linalg.norm(points[:-1] - points[-1], ord=int(self.norm[1]), axis=1)
        for gap, (_, label, r) in zip(gaps, stored, strict=False):  # the last one is x
            assert label == answer.predict or gap >= r + answer.radius - 1e-12 * max(1.0, gap)

    def _reason(
        self, answer: Answer, predict: int, radius: float, before: list[Entry], distances: list[Fraction]
    ) -> None:
        """`case` and `by` tell what happened."""
        if answer.case in ("new", "abstained"):
            assert (answer.predict, answer.by) == (predict, -1)
            assert answer.radius == (radius if answer.case == "new" else 0)
            return
        _, label, r = before[answer.by]
        distance, own = distances[answer.by], Fraction(answer.radius)
        if answer.case == "known":
            assert distance == 0 and (label, r) == (answer.predict, own)
        elif answer.case == "adopted":
            assert label == answer.predict != predict and (own <= radius or predict == ABSTAIN)
            assert distance < size(r, self.norm) and distance <= size(r - own, self.norm)  # ball inside the ball of by
        else:
            assert answer.case == "shrunk" and label != answer.predict == predict and own <= radius
            assert distance <= size(r + own + Fraction(1e-9), self.norm)  # it touches the ball of by


@NORMS
@pytest.mark.parametrize(
    ("first", "second", "answers", "case"),
    [
        pytest.param((1, 3.0), (1, 4.0), {"l2": (1, 4.0), "l1": (1, 4.0)}, "new", id="left: same class"),
        pytest.param((1, 8.0), (2, 4.0), {"l2": (1, 3.0), "l1": (1, 1.0)}, "adopted", id="middle: inside"),
        pytest.param((1, 8.0), (2, 0.5), {"l2": (1, 0.5), "l1": (1, 0.5)}, "adopted", id="middle: small inside"),
        pytest.param((1, 2.0), (2, 6.0), {"l2": (2, 3.0), "l1": (2, 5.0)}, "shrunk", id="right: outside"),
        pytest.param((1, 2.0), (2, 2.5), {"l2": (2, 2.5), "l1": (2, 2.5)}, "new", id="no overlap"),
        pytest.param((1, 8.0), (ABSTAIN, 0.0), {"l2": (1, 3.0), "l1": (1, 1.0)}, "adopted", id="abstains inside"),
        pytest.param((1, 5.0), (2, 4.0), {"l2": (2, 0.0), "l1": (2, 2.0)}, "shrunk", id="on the l2 boundary"),
        pytest.param((1, 7.0), (2, 4.0), {"l2": (1, 2.0), "l1": (2, 0.0)}, None, id="on the l1 boundary"),
    ],
)
def test_the_cases_of_figure_2(norm, first, second, answers, case):
    """Centres (0, 0) and (3, 4): 5 apart in l2, 7 in l1."""
    memory = Memory(norm)
    assert memory.answer([0.0, 0.0], *first) == Answer(*first, case="new")
    answer = memory.answer([3.0, 4.0], *second)
    predict, radius = answers[norm]
    assert answer.predict == predict and radius - 1e-12 <= answer.radius <= radius
    if case:
        assert (answer.case, answer.by) == (case, -1 if case == "new" else 0)
    assert [(label, r) for _, label, r in memory.entries] == [first, (predict, answer.radius)]


@st.composite
def sequences(draw):
    """Up to 60 certificates of 4 classes in the unit cube, on a coarse grid (ties, repeats) and off it."""
    dims, dtype = draw(st.integers(1, 6)), draw(st.sampled_from([np.float32, np.float64]))
    grid = st.integers(0, 4).map(lambda k: k / 4)
    points = st.lists(grid | st.floats(0, 1, width=32), min_size=dims, max_size=dims)
    radii = st.integers(0, 4).map(lambda k: k / 4) | st.floats(0, 1)
    steps = draw(st.lists(st.tuples(points, st.integers(ABSTAIN, 2), radii), min_size=10, max_size=60))
    return [(np.array(x, dtype), predict, 0.0 if predict == ABSTAIN else r) for x, predict, r in steps]


@NORMS
@settings(max_examples=75, deadline=None)
@given(steps=sequences())
def test_any_sequence_agrees_with_brute_force(norm, steps):
    audit = Audit(norm)
    for x, predict, radius in steps:
        first = audit.answer(x, predict, radius)
        if first.case != "abstained":  # asked again, whatever it is certified as, it answers the same
            again = audit.answer(x, (predict + 2) % 3, 0.125)
            assert (again.predict, again.radius, again.case) == (first.predict, first.radius, "known")


@NORMS
@pytest.mark.parametrize(("dims", "dtype"), [(1, "f4"), (2, "f8"), (3, "f4"), (6, "f8"), (3072, "f4")])
def test_queries_inside_stored_balls_keep_their_class(norm, dims, dtype):
    """After each answer one ball, chosen at random, is asked close to its centre, halfway, or just inside its rim."""
    random = np.random.default_rng(dims)
    audit = Audit(norm)
    spread = {"l1": dims, "l2": math.sqrt(dims)}[norm] / 4  # mean distances are some such, so that balls meet
    asked = 0
    for _ in range(90 if dims < 10 else 8):
        predict = int(random.integers(ABSTAIN, 3))
        audit.answer(random.random(dims).astype(dtype), predict, random.random() * spread * (predict != ABSTAIN))
        if not len(audit.memory):
            continue
        center, label, radius = audit.memory.entries[random.integers(len(audit.memory))]
        direction = random.normal(size=dims)
        direction /= np.linalg.norm(direction, ord=int(norm[1]))
        query = (center + direction * radius * random.choice([1e-3, 0.5, 1 - 1e-6])).astype(dtype)
        if apart(exact(query), exact(center), norm) < size(Fraction(radius), norm):  # rounding can push it out
            asked += 1
            assert audit.answer(query, int(random.integers(ABSTAIN, 3)), 0.0).predict == label
    assert asked > (30 if dims < 10 else 2)
    assert audit.cases >= ({"new", "adopted", "shrunk"} if dims < 10 else {"shrunk"})


@NORMS
@pytest.mark.parametrize("dims", [1, 2, 10, 100])
def test_near_ties_are_decided_exactly(norm, dims):
    """Balls whose rim passes within a few roundings of the next point, which float64 cannot tell from touching it."""
    random = np.random.default_rng(dims)
    cases = set()
    for ulps in [-100, -3, -2, -1, 0, 1, 2, 3, 100] * 8:
        center, x = random.random((2, dims))
        radius = float(np.linalg.norm(center - x, ord=int(norm[1])))
        audit = Audit(norm)
        audit.answer(center, 0, radius + ulps * math.ulp(radius))
        assert audit.answer(x, 1, 1.0).radius <= 1e-9
        cases |= audit.cases
    assert cases == {"new", "adopted", "shrunk"}


@NORMS
@pytest.mark.parametrize(("small", "rounds"), [(2.0**-54, "down"), (0.75 * 2.0**-52, "up")])
@pytest.mark.parametrize(("ball", "case"), [(2.0, "adopted"), (0.5, "shrunk")])
def test_sums_whose_roundings_all_fall_on_one_side(norm, small, rounds, ball, case):
    """1 + small + small + ... adds nothing, or too much, each time: the bounds must allow for every addition."""
    x = np.full(1000, small if norm == "l1" else math.sqrt(small))
    x[0] = 1.0
    assert (1.0 + small > 1.0) == (rounds == "up")
    audit = Audit(norm)
    audit.answer(np.zeros(1000), 0, ball)
    assert audit.answer(x, 1, 9.0).case == case


@NORMS
@pytest.mark.parametrize("toward", [-math.inf, 0.0, math.inf])
@pytest.mark.parametrize(
    ("x", "distances"),
    [
        ([3.0, 4.0], {"l1": 7.0, "l2": 5.0}),
        ([5e-324, 0.0], {"l1": 5e-324, "l2": 5e-324}),
        ([1.5e-310, 2e-310], {"l1": 1.5e-310 + 2e-310, "l2": 2.5e-310}),
        ([3e-200, 4e-200], {"l1": 7e-200, "l2": 5e-200}),
    ],
)
def test_a_rim_one_rounding_away(norm, x, distances, toward):
    """Balls are open: a point on the rim is outside. Squares of these tiny differences are 0 in float64."""
    radius = distances[norm] if toward == 0.0 else math.nextafter(distances[norm], toward)
    audit = Audit(norm)
    audit.answer(np.zeros(2), 0, radius)
    answer = audit.answer(np.array(x), 1, 1.0)
    assert answer.radius <= 2 * abs(distances[norm] - radius)
    if x == [3.0, 4.0]:  # here the distance is exact
        assert answer.case == ("adopted" if toward > 0 else "shrunk")


@NORMS
def test_abstentions(norm):
    memory = Memory(norm)
    assert memory.answer([9.0], ABSTAIN, 0.0) == Answer(ABSTAIN, 0.0, "abstained")
    memory.answer([0.0], 3, 1.0)
    memory.answer([0.25], 3, 4.0)
    assert memory.answer([9.0], ABSTAIN, 0.0) == Answer(ABSTAIN, 0.0, "abstained")
    assert len(memory) == 2
    adopted = memory.answer([0.5], ABSTAIN, 0.0)  # inside both balls: 0.5 of room in the first, 3.75 in the second
    assert (adopted.predict, adopted.case, adopted.by) == (3, "adopted", 1)
    assert 3.75 - 1e-12 <= adopted.radius <= 3.75


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_known_input_has_one_answer(dtype):
    memory = Memory()
    x = np.array([[0, 1], [0, 2]], dtype)
    first = memory.answer(x, 4, 0.25)
    assert memory.answer(-x * -1, 5, 9.0) == Answer(4, first.radius, "known", 0)
    if dtype != np.int64:
        minus = np.copysign(x, [[-1, 1], [-1, 1]]).astype(dtype)
        assert np.signbit(minus).sum() == 2 and memory.answer(minus, 5, 9.0).case == "known"
    x += 1  # the caller's array is the caller's
    assert memory.answer(x, 5, 0.125) == Answer(5, 0.125, "new")
    assert memory.answer(x.ravel(), ABSTAIN, 0.0).case == "known"


def test_the_answers_do_not_depend_on_how_many_are_compared_at_a_time(monkeypatch):
    random = np.random.default_rng(0)
    steps = [(random.random(3), int(random.integers(3)), random.random() / 2) for _ in range(60)]
    whole, parts = Memory(), Memory()
    answers = [whole.answer(*step) for step in steps]
    monkeypatch.setattr(memory_module, "_CHUNK", 7)
    assert [parts.answer(*step) for step in steps] == answers
    assert len({answer.case for answer in answers}) == 3


@pytest.mark.parametrize(
    ("x", "radius", "message"),
    [
        ([0.0, math.nan], 1.0, "without NaN or infinity"),
        ([0.0, math.inf], 1.0, "without NaN or infinity"),
        ([0.0, 1.0], -0.1, "finite and not negative, got -0.1"),
        ([0.0, 1.0], math.nan, "finite and not negative, got nan"),
        ([0.0, 1.0], math.inf, "finite and not negative, got inf"),
        ([0.0, 1.0, 2.0], 1.0, "expected inputs of 2 numbers in float64, as those stored, got 3 in float64"),
        (np.zeros(2, np.float32), 1.0, "got 2 in float32"),
    ],
)
def test_errors_leave_the_memory_as_it_was(x, radius, message):
    memory = Memory()
    memory.answer([5.0, 5.0], 0, 1.0)
    with pytest.raises(InputError, match=message):
        memory.answer(x, 1, radius)
    assert len(memory) == 1


def test_an_unknown_norm_is_an_error():
    with pytest.raises(InputError, match="expected norm to be l1 or l2, got 'linf'"):
        Memory("linf")


@NORMS
def test_an_entry_too_far_for_float64_does_not_hide_the_others(norm):
    """Its distance overflows; refused or stored, it must not switch off the shrinking against the ball around 0."""
    memory = Memory(norm)
    memory.answer([0.0, 0.0], 0, 1.0)
    with np.errstate(all="ignore"), contextlib.suppress(InputError):
        memory.answer([1.7e308, 1.7e308], 0, 1.0)
    with np.errstate(all="ignore"):
        assert memory.answer([1.5, 0.0], 1, 1.0).radius <= 0.5


@NORMS
def test_replay_keeps_the_order_and_judges_the_memorys_answers(norm):
    """In order: stored; adopted, right; adopted, wrong; kept; abstained; shrunk; known."""
    rows = [(0.0, 1, 1, 1.0), (0.5, 1, 2, 1.0), (0.25, 2, 2, 1.0), (0.0625, 1, ABSTAIN, 0.0)]
    rows += [(9.0, 1, ABSTAIN, 0.0), (2.0, 2, 2, 1.5), (0.0, 2, 2, 1.0)]
    certified = [
        ([x], Record(10 - i, label, predict, radius, int(label == predict), 0.5, 0.9, 7, 8))
        for i, (x, label, predict, radius) in enumerate(rows)
    ]
    records, answers = replay(iter(certified), norm)
    assert [record.idx for record in records] == [10, 9, 8, 7, 6, 5, 4]
    assert [record.label for record in records] == [label for _, label, _, _ in rows]
    assert [record.predict for record in records] == [1, 1, 1, 1, ABSTAIN, 2, 1]
    assert [record.correct for record in records] == [1, 1, 0, 1, 0, 1, 0]
    assert [record.radius for record in records] == pytest.approx([1, 0.5, 0.75, 0.9375, 0, 1, 1], abs=1e-12)
    assert [answer.case for answer in answers] == ["new", *["adopted"] * 3, "abstained", "shrunk", "known"]
    assert [(answer.predict, answer.radius) for answer in answers] == [(r.predict, r.radius) for r in records]
    assert [answer.by for answer in answers] == [-1, 0, 0, 0, -1, 0, 0]
    assert {(record.sigma, record.p_lower, record.count, record.n) for record in records} == {(0.5, 0.9, 7, 8)}
    other, _ = replay(certified[::-1], norm)  # the order decides: now 0 is first seen as class 2
    assert (other[-1].idx, other[-1].predict) == (10, 2)
