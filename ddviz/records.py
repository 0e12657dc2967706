"""Records of certified images and the files of a run, which are also its resume state.

The first columns are the field's own (idx label predict radius correct), so that published analysis scripts read
our files, and we read theirs. Numbers are written in full precision: a radius is never rounded up.
"""

import contextlib
import errno
import math
import os
import tempfile
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
    """One certified image. Radius in [0,1]-pixel units of the run's norm, 0 where it abstains or errs.

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


_TYPES = {field.name: field.type for field in fields(Record)}
_REQUIRED = ("idx", "label", "predict", "radius", "correct")


def format_row(values: Iterable[object]) -> str:
    """One line of a TSV file; floats in their shortest exact form."""
    return "\t".join(repr(v) if isinstance(v, float) else str(v) for v in values) + "\n"


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a TSV file as dictionaries; a torn last line (a killed writer) is left out.

    Raises: InputError where the file is missing, has no header, or has a line of another width.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"expected a record file at {path}, got: {error.strerror}.") from error
    lines = text.split("\n")
    header = lines[0].split("\t")
    body = lines[1:-1] if not text.endswith("\n") else lines[1:]
    for number, line in enumerate(body, start=2):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {number}: expected {len(header)} columns ({' '.join(header)}), got {len(cells)}."
            )
        yield dict(zip(header, cells, strict=True))


def read_records(path: Path | str) -> list[Record]:
    """Records of a TSV file: ours or those of the field (extra columns such as `time` are left out).

    Raises: InputError naming the file, the line and the column.
    """
    path = Path(path)
    records = []
    for number, row in enumerate(read_rows(path), start=2):
        missing = [name for name in _REQUIRED if name not in row]
        if missing:
            raise InputError(f"{path}: expected the columns {' '.join(_REQUIRED)}, found {' '.join(row)}.")
        known = {name: text for name, text in row.items() if name in _TYPES}
        try:
            values = {name: float(text) if _TYPES[name] is float else int(text) for name, text in known.items()}
            records.append(Record(**values))  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}.") from error
    return records


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a whole record file atomically: a reader sees the old file or the new one, never a part."""
    rows = [format_row(_TYPES), *(format_row(asdict(record).values()) for record in records)]
    write_atomically(path, "".join(rows))


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a file beside `path` and rename it over `path`."""
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class AppendLog:
    """A TSV file that grows by whole lines and survives being killed between any two bytes.

    Opening it cuts off a torn last line. The header must be the one in the file.
    """

    def __init__(self, path: Path, header: Sequence[str]):
        self.path = path
        expected = format_row(header)
        with explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)
            self._file.seek(0)
            content = self._file.read()
            self._size = content.rfind(b"\n") + 1
            self._file.truncate(self._size)
            if self._size == 0:
                self._write(expected)
            elif not content.startswith(expected.encode()):
                self._file.close()
                found = content.split(b"\n", 1)[0].decode(errors="replace")
                raise InputError(
                    f"{path}: expected the columns {expected.strip()!r}, found {found!r}. Remove the file "
                    "or choose another run_root."
                )

    def append(self, *rows: Iterable[object]) -> None:
        """Append rows and hand them to the operating system at once."""
        with explained_disk_errors(self.path):
            self._write("".join(map(format_row, rows)))

    def _write(self, text: str) -> None:
        data = memoryview(text.encode())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(self._size)  # leave no half-written line behind a full disk
            raise
        self._size += len(text.encode())

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
            todo = "no space is left. What was certified so far is kept: free some space and run the same command again"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            todo = "it may not be written. Choose another run_root"
        else:
            todo = f"{error.strerror}"
        raise ResourceError(f"cannot write {path}: {todo}.") from error


def column(records: Sequence[Record], name: str) -> NDArray[np.float64]:
    """One field of many records as an array."""
    return np.array([getattr(record, name) for record in records], dtype=np.float64)
