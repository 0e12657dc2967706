"""The search never misses a ball that may meet a new one; where inputs are kept makes no difference."""

import errno
import gc
import math
import os
import tempfile
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from benchmarks.memory_speed import natural
from hypothesis import given, settings
from hypothesis import strategies as st

from ddviz import memory as memory_module
from ddviz import neighbours as module
from ddviz.errors import ResourceError
from ddviz.memory import Answer, Memory
from ddviz.neighbours import Neighbours, Rows
from ddviz.records import ABSTAIN

NORMS = pytest.mark.parametrize("norm", ["l1", "l2"])
SHAPES = [(), (0,), (1,), (5,), (40,), (2, 3), (8, 8), (3, 4, 5), (3, 12, 12), (2, 1, 3, 7)]


def measured(a, b, norm: str) -> Fraction:
    """The exact l1 distance, or the square of the l2 distance."""
    apart = [abs(Fraction(float(p)) - Fraction(float(q))) for p, q in zip(a.ravel(), b.ravel(), strict=True)]
    return Fraction(sum(apart) if norm == "l1" else sum(each**2 for each in apart))


def exact_distance(a, b, norm: str) -> Decimal:
    """To 60 digits."""
    total = measured(a, b, norm)
    with localcontext(prec=60):
        value = Decimal(total.numerator) / Decimal(total.denominator)
        return value if norm == "l1" else value.sqrt()


@st.composite
def crowds(draw):
    """Up to 8 points of one shape and type, of any magnitude, differing by much or by roundings."""
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from([np.float32, np.float64]))
    least, most = (-46, 37) if dtype == np.float32 else (-323, 99)
    scale = 10.0 ** draw(st.sampled_from([least, least + 3, -30, -19, -10, 0, 1, 10, 30, most]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = random.normal(size=shape) * draw(st.sampled_from([0.0, 1.0]))
    points = [base]
    for kind in draw(st.lists(st.sampled_from(["same", "shift", "pixel", "noise", "other", "ulp"]), max_size=7)):
        by = random.normal() * draw(st.sampled_from([1e-7, 1e-4, 1.0]))
        point = base.copy()
        if kind == "shift":  # seen by the lowest frequency alone
            point += by
        elif kind == "pixel" and point.size:
            point.flat[random.integers(point.size)] += by
        elif kind == "noise":  # seen by the length of the rest alone, where there are many numbers
            point += by * random.choice([-1, 1], size=shape)
        elif kind == "other":
            point = random.normal(size=shape)
        elif kind == "ulp":
            point = np.nextafter(point, np.inf)
        points.append(point)
    return [np.array(np.clip(point * scale, -(10.0**most), 10.0**most), dtype) for point in points]


@NORMS
@settings(max_examples=400, deadline=None)
@given(
    points=crowds(),
    share=st.sampled_from([0.0, 0.25, 1.0]),
    beyond=st.sampled_from([0.0, 1e-16, 1e-12, 1e-7, 1e-5]),
    far=st.booleans(),
)
def test_no_ball_that_may_meet_is_missed(norm, points, share, beyond, far):
    """Each ball is made so that it touches the new one, or just does not, by less than the search has to allow."""
    *stored, point = points
    distances = [exact_distance(point, each, norm) for each in stored]
    radius = float(max(distances, default=0)) * share if far else float(min(distances, default=0)) * share
    neighbours = Neighbours(point, norm)
    radii = [max(0.0, float(distance) * (1 - beyond) - radius) for distance in distances]
    for each, ball in zip(stored, radii, strict=True):
        neighbours.add(each.ravel(), ball)
    near = neighbours.near(point.ravel(), radius).tolist()
    assert near == sorted(set(near))
    with localcontext(prec=60):
        meeting = [
            i
            for i, (distance, ball) in enumerate(zip(distances, radii, strict=True))
            if distance <= (Decimal(ball) + Decimal(radius)) * (1 + Decimal("1e-5"))
        ]
    assert set(near) >= set(meeting)


@pytest.mark.parametrize("shape", [(7,), (31,), (5, 6), (3, 3, 3)])
def test_the_sketch_of_few_numbers_keeps_all_distances(shape):
    """So few fit into the frequencies: the search is then as sharp as its slack, from both sides."""
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = random.random((2, *shape))
        neighbours = Neighbours(a, "l2")
        neighbours.add(a.ravel(), 0.0)
        distance = float(exact_distance(a, b, "l2"))
        assert neighbours.near(b.ravel(), distance * 0.9995).tolist() == []
        assert neighbours.near(b.ravel(), distance).tolist() == [0]


@NORMS
def test_of_natural_images_hardly_any_is_looked_at(norm):
    images = natural(1000, side=32, seed=0)
    neighbours = Neighbours(images[0], norm)
    for image in images:
        neighbours.add(image.ravel(), 0.5)
    for i in range(100):
        near = neighbours.near(images[i].ravel(), 0.5)
        assert i in near and len(near) <= 3


def test_l1_balls_far_wider_than_l2_distances_are_told_apart():
    """The square of the l2 distance over the range of the numbers is a bound too, the better one for images."""
    images = natural(300, side=32, seed=0)
    neighbours = Neighbours(images[0], "l1")
    for image in images:
        neighbours.add(image.ravel(), 10.0)
    assert math.sqrt(3072) / 4 < 20  # a usual l2 distance
    assert sum(len(neighbours.near(image.ravel(), 10.0)) for image in images) < 2 * len(images)


class Plain:
    """Algorithm 3 as `Memory` had it before it searched: every stored input is compared with a new one."""

    def __init__(self, norm: str):
        self.norm, self.points, self.classes, self.radii = norm, [], [], []

    def answer(self, x, predict: int, radius: float) -> Answer:
        point = x.ravel() + 0.0
        for i, known in enumerate(self.points):
            if (known == point).all():
                return Answer(self.classes[i], self.radii[i], "known", i)
        answer = self._adjusted(point, predict, radius)
        if answer.predict != ABSTAIN:
            self.points.append(point)
            self.classes.append(answer.predict)
            self.radii.append(answer.radius)
        return answer

    def _adjusted(self, point, predict: int, radius: float) -> Answer:
        rooms, gaps = [], []
        for i, (stored, label, r) in enumerate(zip(self.points, self.classes, self.radii, strict=True)):
            if label == predict:
                continue
            difference = (stored.astype(np.float64) - point.astype(np.float64))[None]
            if self.norm == "l1":
                distance = np.abs(difference).sum(1)[0]
            else:
                distance = np.sqrt(np.einsum("ij,ij->i", difference, difference))[0]
            slack = distance * ((point.size + 8) * 2.0**-53) + 1e-150
            lower, upper = max(0.0, np.nextafter(distance - slack, -np.inf)), np.nextafter(distance + slack, np.inf)
            if lower < r and (upper < r or measured(stored, point, self.norm) < Fraction(r) ** int(self.norm[1])):
                rooms.append((float(np.nextafter(r - upper, -np.inf)), -i))
            gaps.append((float(np.nextafter(lower - r, -np.inf)), i))
        if rooms:
            room, by = max(rooms)
            kept = max(0.0, room) if predict == ABSTAIN else min(radius, max(0.0, room))
            return Answer(self.classes[-by], kept, "adopted", -by)
        if predict == ABSTAIN:
            return Answer(ABSTAIN, 0.0, "abstained")
        if gaps and max(0.0, min(gaps)[0]) < radius:
            return Answer(predict, max(0.0, min(gaps)[0]), "shrunk", min(gaps)[1])
        return Answer(predict, radius, "new")


@NORMS
@settings(max_examples=150, deadline=None)
@given(points=crowds(), data=st.data())
def test_answers_are_those_of_a_comparison_with_all(norm, points, data):
    """In radii: shares of the distances that occur, so that balls nest, overlap, touch or stay apart."""
    searching, plain = Memory(norm), Plain(norm)
    for i in data.draw(st.lists(st.integers(0, len(points) - 1), min_size=1, max_size=16)):
        predict = data.draw(st.integers(ABSTAIN, 2))
        share = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]))
        distance = float(exact_distance(points[i], points[data.draw(st.integers(0, len(points) - 1))], norm))
        step = (points[i], predict, 0.0 if predict == ABSTAIN else distance * share)
        assert searching.answer(*step) == plain.answer(*step)


@NORMS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_answers_on_images_are_those_of_a_comparison_with_all(norm, dtype):
    random = np.random.default_rng(1)
    images, spread = natural(50, side=16, seed=0).astype(dtype), {"l1": 150.0, "l2": 8.0}[norm]
    searching, plain, cases = Memory(norm), Plain(norm), set()
    for i in random.integers(0, len(images), 200):
        x = images[i] + dtype(random.choice([0, 0, 1e-6, 0.01, 0.1])) * random.normal(size=images[i].shape).astype(
            dtype
        )
        predict = int(random.integers(ABSTAIN, 3))
        radius = 0.0 if predict == ABSTAIN else float(random.random() * spread)
        answer = searching.answer(x, predict, radius)
        assert answer == plain.answer(x, predict, radius)
        cases.add(answer.case)
    assert cases == {"new", "known", "adopted", "shrunk", "abstained"}


def test_inputs_that_share_a_digest_are_told_apart(monkeypatch):
    class Same:
        def __init__(self, *_, **__):
            pass

        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(memory_module, "blake2b", Same)
    memory = Memory()
    for i in range(5):
        assert memory.answer([float(i)], i, 0.125 * i).case == "new"
    for i in range(5):
        assert memory.answer([float(i)], 9, 9.0) == Answer(i, 0.125 * i, "known", i)
    assert memory.answer([9.0], 9, 0.5) == Answer(9, 0.5, "new") and len(memory) == 6


@pytest.fixture
def small_memory(monkeypatch):
    """Room for 10 inputs of 48 bytes in memory, in chunks of 3."""
    monkeypatch.setattr(module, "_IN_MEMORY", 500)
    monkeypatch.setattr(module, "_CHUNK", 150)


@NORMS
def test_inputs_in_a_file_make_no_difference(norm, small_memory, monkeypatch):
    random = np.random.default_rng(0)
    steps = [(random.integers(0, 4, 6) / 4, int(random.integers(ABSTAIN, 3)), random.random() / 2) for _ in range(200)]
    files = kept_files(monkeypatch)
    spilled = Memory(norm)
    answers = [spilled.answer(*step) for step in steps]
    assert len(spilled) > 50 and files[0].tell() >= 0
    assert os.fstat(files[0].fileno()).st_size == 48 * (len(spilled) - 10)
    monkeypatch.undo()
    whole = Memory(norm)
    assert [whole.answer(*step) for step in steps] == answers
    assert {answer.by >= 10 for answer in answers if answer.case != "new"} == {False, True}
    for (a, *balls), (b, *others) in zip(spilled.entries, whole.entries, strict=True):
        assert (a == b).all() and balls == others


def kept_files(monkeypatch) -> list:
    """The temporary files made from now on."""
    files, make = [], tempfile.TemporaryFile

    def keep(*args, **options):
        files.append(make(*args, **options))
        return files[-1]

    monkeypatch.setattr(module.tempfile, "TemporaryFile", keep)
    return files


def test_the_file_goes_with_the_memory(small_memory, monkeypatch):
    files = kept_files(monkeypatch)
    rows = Rows(6, np.dtype(np.float64))
    for i in range(10):
        rows.append(np.full(6, float(i)))
    assert files == []
    rows.append(np.full(6, 10.0))
    assert len(files) == 1 and not files[0].closed
    assert rows.take([10, 0, 9])[:, 0].tolist() == [10, 0, 9]
    del rows
    gc.collect()
    assert files[0].closed


class SmallDisk:
    """A file on a disk with `room` bytes left: it writes what fits, then it fails, as Linux does."""

    def __init__(self, room: int):
        self.room = room
        self._file = tempfile.TemporaryFile(buffering=0)

    def write(self, data: bytes) -> int:
        fits = data[: self.room]
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(fits)
        return self._file.write(fits)

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def test_a_full_disk_leaves_the_memory_as_it_was(small_memory, monkeypatch):
    disk = SmallDisk(3 * 48 + 20)
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **_: disk)
    memory = Memory()
    points = np.arange(20.0)[:, None] * np.ones(6)
    for i in range(13):
        memory.answer(points[i], i, 0.125)
    for _ in range(2):
        with pytest.raises(
            ResourceError, match=r"expected room in .*No space left.*TMPDIR.*run the same command again"
        ):
            memory.answer(points[13], 13, 0.125)
        assert len(memory) == len(memory.entries) == 13
    disk.room = 10**6  # the user has freed some space
    for i in range(13, 20):
        assert memory.answer(points[i], i, 0.125).case == "new"
    assert [memory.answer(points[i], 99, 9.0).by for i in range(20)] == list(range(20))
    assert (np.stack([point for point, _, _ in memory.entries]) == points).all()
