"""Stored inputs and the search for those near a new one, without looking at them all.

Each input has a sketch of 32 numbers: its 31 lowest frequencies, and the length of the rest. Sketches are never further
apart than the inputs, so inputs whose sketches are far apart are far apart themselves. Natural images differ most in
their lowest frequencies: hardly any has to be looked at.
"""

import math
import tempfile
import weakref
from collections.abc import Sequence
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ddviz.errors import ResourceError

Points = NDArray[np.floating]
_CHUNK = 1 << 24  # bytes of inputs allocated at a time
_IN_MEMORY = 1 << 31  # bytes of inputs; what comes later goes to a temporary file
_FREQUENCIES = 31  # those below 5 of a colour image
_FIRST = 5  # sketch numbers compared with all inputs; the others only with the few that these leave
_WIDER = np.float32(1 + 2.0**-12)  # of squares: far more than 40 float32 operations are off by, and 1e-4 of distance
_TINY32 = np.float32(1e-35)  # of squares: likewise for what underflows, flushed to zero or not
_TINY64 = 1e-150  # of lengths, in float64


class Column:
    """An array that grows along its last axis."""

    def __init__(self, dtype: DTypeLike, *shape: int):
        self._room: NDArray[Any] = np.empty((*shape, 8), dtype)
        self._count = 0

    @property
    def values(self) -> NDArray[Any]:
        """All numbers so far; a view, not to be written."""
        return self._room[..., : self._count]

    def append(self, value: ArrayLike) -> None:
        """Add one number, or one array of the column's shape."""
        if self._count == self._room.shape[-1]:
            self._room = np.concatenate([self._room, np.empty_like(self._room)], axis=-1)
        self._room[..., self._count] = value
        self._count += 1


class Rows:
    """Points of one size and type: in memory, and beyond 2 GiB in a temporary file that goes with its owner."""

    def __init__(self, size: int, dtype: np.dtype):
        self.size, self.dtype = size, dtype
        self._bytes = max(1, size * dtype.itemsize)
        self._per_chunk = max(1, _CHUNK // self._bytes)
        self._most = max(1, _IN_MEMORY // self._bytes)
        self._chunks: list[Points] = []
        self._file: FileIO | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, point: Points) -> None:
        """Add a point; either all of it or nothing.

        Raises: ResourceError where the temporary file cannot grow.
        """
        chunk, row = divmod(self._count, self._per_chunk)
        if self._count >= self._most:
            self._spill(point)
        else:
            if chunk == len(self._chunks):  # chunks, since growing one array would hold everything twice
                self._chunks.append(np.empty((self._per_chunk, self.size), self.dtype))
            self._chunks[chunk][row] = point
        self._count += 1

    def take(self, entries: Sequence[int] | NDArray[np.int64]) -> Points:
        """Copies (len(entries), size) of some points."""
        out = np.empty((len(entries), self.size), self.dtype)
        for row, entry in zip(out, entries, strict=True):
            if entry < self._most:
                row[:] = self._chunks[entry // self._per_chunk][entry % self._per_chunk]
            elif self._file:
                self._file.seek((int(entry) - self._most) * self._bytes)
                self._file.readinto(row.data)
        return out

    def _spill(self, point: Points) -> None:
        try:
            if not self._file:
                self._file = tempfile.TemporaryFile(buffering=0)
                weakref.finalize(self, self._file.close)
            self._file.seek((self._count - self._most) * self._bytes)
            rest = point.tobytes()
            while rest:  # a disk that fills up takes a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise ResourceError(
                f"expected room in {tempfile.gettempdir()} for the memory's inputs beyond {_IN_MEMORY >> 20} MiB, got: "
                f"{error.strerror}. Free some space there, or set TMPDIR to a folder on a larger disk; then run the "
                "same command again."
            ) from error


class Neighbours:
    """Stored balls, all centres of one shape and type, and those that a new ball may meet.

    norm: l1 or l2, of the balls. The l1 distance is at least the l2 distance, and at least its square over the largest
    difference of two numbers.
    """

    def __init__(self, example: Points, norm: str):
        self.rows = Rows(example.size, example.dtype)
        self._norm = norm
        self._sketch = _Sketch(example.shape)
        self._sketches = Column(np.float32, 1 + self._sketch.size)
        self._errors, self._radii = Column(np.float32), Column(np.float32)
        self._low = self._high = 0.0

    def add(self, point: Points, radius: float) -> None:
        """Store a flat point with its ball.

        Raises: ResourceError where the disk is full; then nothing was stored.
        """
        self.rows.append(point)
        sketch, error = self._sketch(point)
        self._sketches.append(sketch)
        self._errors.append(error)
        self._radii.append(_above(radius))
        self._low, self._high = self._range(point)

    def near(self, point: Points, radius: float) -> NDArray[np.int64]:
        """Entries whose balls may meet that of a new input, ascending; all others are 0.01 % further than the radii.

        Sketches are compared in float32. Their own errors are added to the radii; what comparing adds is far less than
        what the sum of radii is widened by.
        """
        sketch, error = self._sketch(point)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # infinity and NaN are not far
            reach = self._radii.values + _above(radius)
            if self._norm == "l1":
                low, high = self._range(point)
                reach = np.sqrt(reach * np.minimum(reach, _above(high - low)))
            limit = (reach + (self._errors.values + error)) ** 2 * _WIDER + _TINY32
            stored = self._sketches.values
            squared = np.zeros_like(limit)
            for numbers, number in zip(stored[:_FIRST], sketch[:_FIRST], strict=True):
                difference = numbers - number
                squared += difference * difference
            near = np.flatnonzero(~(squared > limit))
            difference = stored[_FIRST:, near] - sketch[_FIRST:, None]
            squared = squared[near] + np.einsum("ij,ij->j", difference, difference)
            return near[~(squared > limit[near])]

    def _range(self, point: Points) -> tuple[float, float]:
        return min(self._low, float(point.min(initial=0))), max(self._high, float(point.max(initial=0)))


class _Sketch:
    """A map from inputs to few numbers that brings no two of them further apart in l2, but for an error that it tells.

    P: the lowest frequencies along the last two axes and across all others (orthonormal rows). With a = x - y,
    ||a||^2 = ||Pa||^2 + ||a - P'Pa||^2 >= ||Px - Py||^2 + (||x - P'Px|| - ||y - P'Py||)^2.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._sides = (math.prod(shape[:-2]), *shape[-2:])
        every = np.indices([min(side, _FREQUENCIES) for side in self._sides]).reshape(len(self._sides), -1)
        lowest = every[:, np.argsort(every.sum(0), kind="stable")[:_FREQUENCIES]]
        self._picked = tuple(lowest)
        self._cosines = [
            _cosines(int(used), side) for used, side in zip(lowest.max(1, initial=-1) + 1, self._sides, strict=True)
        ]
        self.size = max(_FIRST, lowest.shape[1])

    def __call__(self, point: Points) -> tuple[NDArray[np.float32], np.float32]:
        """The sketch, length of the rest first, and more than the l2 length of its error.

        A sum of d products is off by at most d roundings of 2^-53 times the lengths of both factors; the rows of one
        axis have length at most sqrt(31) together, and their own errors at most 2^-46. Over all axes, twice that:
        """
        exact = point.reshape(self._sides).astype(np.float64)
        numbers = exact
        for cosines in reversed(self._cosines):
            numbers = np.moveaxis(numbers @ cosines.T, -1, 0)
        numbers = numbers[self._picked]
        relative = 2.0**-40 + exact.size * 2.0**-49
        square = float(np.vdot(exact, exact))
        rest = math.sqrt(max(0.0, square - float(numbers @ numbers)))
        off = 4 * relative * square  # of the square of the rest
        wide = np.zeros(1 + self.size)
        wide[0], wide[1 : 1 + len(numbers)] = rest, numbers
        with np.errstate(over="ignore", under="ignore"):
            narrow = wide.astype(np.float32)
            error = relative * math.sqrt(square) + min(math.sqrt(off), off / rest if rest else math.inf)
            return narrow, _above(2 * (error + float(np.linalg.norm(wide - narrow))) + _TINY64)


def _cosines(count: int, side: int) -> NDArray[np.float64]:
    """The first rows (count, side) of the orthonormal cosine transform."""
    turns = (2 * np.arange(side) + 1) * np.arange(count)[:, None] % (4 * max(1, side))  # integers: no rounding so far
    rows = np.cos(turns * (np.pi / (2 * max(1, side)))) * math.sqrt(2 / max(1, side))
    rows[:1] /= math.sqrt(2)
    return rows


def _above(value: float) -> np.float32:
    """A float32 above a number."""
    with np.errstate(over="ignore", under="ignore"):
        return np.nextafter(np.float32(value), np.float32(np.inf))
