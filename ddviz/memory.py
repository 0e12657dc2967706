"""The memory that makes data-dependent smoothing sound (Algorithm 3, arXiv 2012.04351, appendix C).

With a sigma of its own for every input, an answer near x could contradict the certificate at x. The memory keeps every
answered input with its ball, and balls of different classes never intersect.

What it guarantees: every answer given after x, inside the stored ball of x, equals the answer at x. It does not
speak of answers given before x, and another order of inputs can give other answers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddviz.errors import InputError
from ddviz.neighbours import Column, Neighbours, Points, Rows
from ddviz.records import ABSTAIN, Record, is_correct

Case = Literal["new", "known", "adopted", "shrunk", "abstained"]
"""What the memory did: stored the answer as it came; repeated a stored one; took over the class of the ball around the
input; shrank the radius to the nearest ball of another class; stored nothing."""

Array = NDArray[np.float64]
_CHUNK = 1 << 22  # pixels compared at a time
_TINY = 1e-150  # more than underflow can take from a distance
_LARGEST = 1e100  # no distance between smaller numbers overflows


@dataclass(frozen=True)
class Answer:
    """The memory's answer: class, certified radius, what was done, and the entry that caused it (-1: none)."""

    predict: int
    radius: float
    case: Case
    by: int = -1


class Memory:
    """Answered inputs with their balls. Invariant: balls of different classes never intersect.

    Distances are computed in float64 with bounds on their rounding error, and radii are rounded down, so that the
    invariant holds in exact arithmetic. Balls are open, as certificates are. Only entries that may be near are looked
    at: the answers are those of a comparison with all of them.
    """

    def __init__(self, norm: str = "l2"):
        if norm not in ("l1", "l2"):
            raise InputError(f"expected norm to be l1 or l2, got {norm!r}.")
        self.norm = norm
        self._neighbours: Neighbours | None = None  # made for the first input's shape
        self._classes, self._radii = Column(np.int64), Column(np.float64)
        self._known: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._radii.values)

    @property
    def entries(self) -> list[tuple[Points, int, float]]:
        """Stored (input, class, radius), in order of arrival; all inputs are copied into memory."""
        points = self._neighbours.rows.take(range(len(self))) if self._neighbours else []
        return list(zip(points, self._classes.values.tolist(), self._radii.values.tolist(), strict=True))

    def answer(self, x: ArrayLike, predict: int, radius: float) -> Answer:
        """Answer an input x (any shape) that was certified as `predict` with `radius`, and remember the answer.

        Raises: InputError for NaN, a negative or infinite radius, or an input of another size; ResourceError where
        the disk has no room for more inputs. Then nothing was stored.
        """
        point = self._checked(x, radius)
        key, known = self._find(point)
        if known >= 0:
            return Answer(int(self._classes.values[known]), float(self._radii.values[known]), "known", known)
        answer = self._adjusted(point, predict, radius)
        if answer.predict != ABSTAIN:
            if self._neighbours is None:
                self._neighbours = Neighbours(point.reshape(np.shape(x)), self.norm)
            self._neighbours.add(point, answer.radius)  # first, since only this can fail
            self._known[key] = len(self)
            self._classes.append(answer.predict)
            self._radii.append(answer.radius)
        return answer

    def _find(self, point: Points) -> tuple[bytes, int]:
        """A point's key among the known ones, and its entry (-1: unknown). Points that share a digest differ in +."""
        key = blake2b(point.tobytes(), digest_size=16).digest()
        while self._neighbours and (known := self._known.get(key)) is not None:
            if (self._neighbours.rows.take([known])[0] == point).all():
                return key, known
            key += b"+"
        return key, -1

    def _adjusted(self, point: Points, predict: int, radius: float) -> Answer:
        """The largest ball that keeps the invariant, and the class it may have."""
        if self._neighbours is None:
            return Answer(predict, radius, "new") if predict != ABSTAIN else Answer(ABSTAIN, 0.0, "abstained")
        near = self._neighbours.near(point, radius)
        near = near[self._classes.values[near] != predict]  # of an abstention, every class
        classes, radii = self._classes.values[near], self._radii.values[near]
        lower, upper = self._distance_bounds(self._neighbours.rows, point, near)
        inside = upper < radii
        for i in np.flatnonzero((lower < radii) & (upper >= radii)):  # too close to call in float64
            inside[i] = _closer(self._neighbours.rows.take(near[[i]])[0], point, radii[i], self.norm)
        if inside.any():  # one class only, since those balls all hold this point
            rooms = np.where(inside, np.nextafter(radii - upper, -np.inf), -np.inf)
            by = int(rooms.argmax())
            largest = max(0.0, float(rooms[by]))
            kept = largest if predict == ABSTAIN else min(radius, largest)
            return Answer(int(classes[by]), kept, "adopted", int(near[by]))
        if predict == ABSTAIN:
            return Answer(ABSTAIN, 0.0, "abstained")
        gap = np.nextafter(lower - radii, -np.inf)
        if len(gap) and (room := max(0.0, float(gap.min()))) < radius:
            return Answer(predict, room, "shrunk", int(near[gap.argmin()]))
        return Answer(predict, radius, "new")

    def _distance_bounds(self, stored: Rows, point: Points, entries: NDArray[np.int64]) -> tuple[Array, Array]:
        """Bounds that enclose the exact distances to some stored inputs."""
        rows = max(1, _CHUNK // max(1, point.size))
        distances = np.empty(len(entries))
        for start in range(0, len(entries), rows):
            part = slice(start, start + rows)
            difference = stored.take(entries[part]).astype(np.float64) - point.astype(np.float64)
            if self.norm == "l1":
                distances[part] = np.abs(difference).sum(1)
            else:
                distances[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        slack = distances * ((point.size + 8) * 2.0**-53) + _TINY  # a sum of d terms is off by at most d roundings
        return np.maximum(0.0, np.nextafter(distances - slack, -np.inf)), np.nextafter(distances + slack, np.inf)

    def _checked(self, x: ArrayLike, radius: float) -> Points:
        point = np.asarray(x)
        point = np.ascontiguousarray(point, dtype=np.float32 if point.dtype == np.float32 else np.float64).ravel()
        point = point + 0.0  # -0.0 and 0.0 are one input
        if not float(np.abs(point).max(initial=0)) < _LARGEST:  # NaN too
            raise InputError(f"expected an input without NaN or infinity, of numbers below {_LARGEST:g}.")
        if not (math.isfinite(radius) and radius >= 0):
            raise InputError(f"expected a radius that is finite and not negative, got {radius}.")
        if self._neighbours and (point.size, point.dtype) != (self._neighbours.rows.size, self._neighbours.rows.dtype):
            raise InputError(
                f"expected inputs of {self._neighbours.rows.size} numbers in {self._neighbours.rows.dtype}, as those "
                f"stored, got {point.size} in {point.dtype}."
            )
        return point


def _closer(a: Points, b: Points, radius: float, norm: str) -> bool:
    """Whether ||a - b|| < radius in exact arithmetic."""
    differences = (Fraction(float(p)) - Fraction(float(q)) for p, q in zip(a, b, strict=True) if p != q)
    if norm == "l1":
        return sum(map(abs, differences)) < Fraction(radius)
    return sum(difference**2 for difference in differences) < Fraction(radius) ** 2


def replay(certified: Iterable[tuple[ArrayLike, Record]], norm: str = "l2") -> tuple[list[Record], list[Answer]]:
    """Pass certified images (pixels, record) through an empty memory, in the order given.

    Returns the records with the memory's classes and radii, and its answers.
    """
    memory = Memory(norm)
    records, answers = [], []
    for x, record in certified:
        answer = memory.answer(x, record.predict, record.radius)
        correct = is_correct(answer.predict, record.label)
        records.append(replace(record, predict=answer.predict, radius=answer.radius, correct=correct))
        answers.append(answer)
    return records, answers
