"""Records of certified images and the files of a run, which are also its resume state.

The first columns are the field's own (idx label predict radius correct), so that published analysis scripts read
our files, and we read theirs. Numbers are written in full precision: a radius is never rounded up.
"""

import contextlib
import errno
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddviz.errors import InputError, ResourceError

ABSTAIN = -1
"""The prediction that declines to predict."""

NAN = math.nan


@dataclass(frozen=True)
class Record:
    """One certified image. Radius in [0,1]-pixel units of the run's norm, 0 where it abstains.

    A wrong prediction has its radius too; `correct` tells.

    `sigma` is the scale that the image was certified with, `p_lower` the lower confidence bound on the probability of
    `predict`, `count` of `n` samples fell on the chosen class. Files of other tools lack these: NaN and 0.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: int
    sigma: float = NAN
    p_lower: float = NAN
    count: int = 0
    n: int = 0

    @property
    def certified(self) -> float:
        """The radius where the prediction is right, else -1: certified accuracy at r counts `certified >= r`."""
        return self.radius if self.correct else -1.0


def is_correct(predict: int, label: int) -> int:
    """1 where a prediction is the label; an abstention never is."""
    return int(predict == label and predict != ABSTAIN)


_TYPES = {field.name: field.type for field in fields(Record)}
REQUIRED = ("idx", "label", "predict", "radius", "correct")
"""The field's columns, which every record file has."""


def format_row(values: Iterable[object]) -> str:
    """One line of a TSV file; floats in their shortest exact form."""
    cells = (repr(float(value)) if isinstance(value, float | np.floating) else str(value) for value in values)
    return "\t".join(cells) + "\n"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file as dictionaries; a last line torn before its last cell (a killed writer) is left out.

    Raises: InputError where the file is missing, has no header, or has a line of another width.
    """
    header, lines = _lines(path)
    return [dict(zip(header, cells, strict=True)) for _, cells in lines]


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a TSV file, and the cells of each further line that is not empty, with its number."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected a record file at {path}, found something that is no text ({error.reason})."
        ) from error
    except OSError as error:
        raise InputError(f"expected a record file at {path}, got: {error.strerror}.") from error
    header, *body = (line.split("\t") for line in text.split("\n"))
    if header == [""]:
        raise InputError(f"expected a header line in {path}, found none.")
    if body and len(body[-1]) != len(header):
        del body[-1]  # torn
    lines = [(number, cells) for number, cells in enumerate(body, start=2) if cells != [""]]
    for number, cells in lines:
        if len(cells) != len(header):
            wanted = f"{len(header)} columns ({' '.join(header)})"
            raise InputError(f"{path}, line {number}: expected {wanted}, got {len(cells)}.")
    return header, lines


def read_records(path: Path | str) -> list[Record]:
    """Records of a TSV file: ours or those of the field (extra columns such as `time` are left out).

    Raises: InputError naming the file, the line and the column.
    """
    path = Path(path)
    header, lines = _lines(path)
    if any(name not in header for name in REQUIRED):
        raise InputError(f"{path}: expected the columns {' '.join(REQUIRED)}, found {' '.join(header)}.")
    records = []
    for number, cells in lines:
        values = {}
        for name, cell in zip(header, cells, strict=True):
            try:
                if name in _TYPES:
                    values[name] = float(cell) if _TYPES[name] is float else int(cell)
            except ValueError as error:
                raise InputError(f"{path}, line {number}, column {name}: {error}.") from error
        records.append(Record(**values))
    return records


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a whole record file atomically: a reader sees the old file or the new one, never a part."""
    rows = [format_row(_TYPES), *(format_row(asdict(record).values()) for record in records)]
    write_atomically(path, "".join(rows))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text or bytes to a file beside `path` and rename it over `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


class AppendLog:
    """A TSV file that grows by whole lines and survives being killed between any two bytes.

    Opening it cuts off a torn last line. The header must be the one in the file.
    """

    def __init__(self, path: Path, header: Sequence[str]):
        self.path = path
        expected = format_row(header).encode()
        with explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)
            try:
                self._file.seek(0)
                content = self._file.read()
                if not (content.startswith(expected) or expected.startswith(content)):
                    found = content.split(b"\n", 1)[0].decode(errors="replace")
                    raise InputError(
                        f"{path}: expected the columns {format_row(header)!r}, found {found!r}. Remove the file or "
                        "choose another run_root."
                    )
                self._size = content.rfind(b"\n") + 1
                self._file.truncate(self._size)
                if self._size == 0:
                    self._write(expected)
            except BaseException:
                self._file.close()
                raise

    def append(self, *rows: Iterable[object]) -> None:
        """Append rows and hand them to the operating system at once."""
        with explained_disk_errors(self.path):
            self._write("".join(map(format_row, rows)).encode())

    def _write(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(self._size)  # leave no half-written line behind a full disk
            raise
        self._size += len(data)

    def __enter__(self) -> "AppendLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def explained_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            todo = "no space is left. What was done so far is kept: free some space and run the same command again"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            todo = "it may not be written. Choose another folder"
        else:
            todo = f"{error.strerror}"
        raise ResourceError(f"cannot write {path}: {todo}.") from error


def column(records: Sequence[Record], name: str) -> NDArray[np.float64]:
    """One field of many records as an array."""
    return np.array([getattr(record, name) for record in records], dtype=np.float64)
