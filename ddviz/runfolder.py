"""The folder of a run: what it was made with, and one writer at a time.

config.json       everything that decides the result, with the hashes of model and images
sigmas.tsv        noise scale of each image (data-dependent runs), appended a whole search batch at a time
certificates.tsv  raw certificates, appended and flushed one an image, in any order
records.tsv       the records after the memory, in order of index, written whole
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from ddviz.errors import InputError, ResourceError
from ddviz.records import AppendLog, Record, explained_disk_errors, read_records, read_rows, write_atomically

_CERTIFICATE_COLUMNS = [*Record.__dataclass_fields__, "pixels", "seconds"]
_SIGMA_COLUMNS = ["idx", "sigma", "evaluations", "seconds"]
_LOCK_WAIT = 30  # seconds: a killed kernel lives on for a moment and holds its lock
_INFORMATION = "made with"  # the key of config.json that does not decide the result


@dataclass(frozen=True)
class Folder:
    """A folder that one process at a time writes, and that belongs to one choice of settings."""

    path: Path

    def begun(self) -> bool:
        """Whether anything in it depends on the settings already."""
        raise NotImplementedError

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time writes here.

        Raises: ResourceError where another one does not let go.
        """
        with explained_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=_LOCK_WAIT)
            except Timeout:
                raise ResourceError(
                    f"another process is writing {self.path}. Wait until it is done, stop it, or choose another "
                    "run_root."
                ) from None
        try:
            yield
        finally:
            lock.release()

    def check_identity(self, identity: Mapping[str, object], made_with: Mapping[str, str]) -> None:
        """Write config.json where nothing is certified yet; else refuse to mix settings.

        Raises: InputError naming the setting that changed.
        """
        path = self.path / "config.json"
        if not self.begun():
            write_atomically(path, json.dumps({**identity, _INFORMATION: made_with}, indent=2) + "\n")
            return
        elsewhere = f"Remove {self.path}, or choose another run_root."
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"expected {path} beside the results of the run, found none. {elsewhere}") from None
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}). {elsewhere}") from error
        stored.pop(_INFORMATION, None)
        for name in identity | stored:
            if stored.get(name) != identity.get(name):
                was, now = (repr(values[name]) if name in values else "its default" for values in (stored, identity))
                raise InputError(
                    f"{name} was {was} when {self.path} was begun and is {now} now. "
                    "Set it back to resume that run, or choose another run_root, or remove the folder."
                )


@dataclass(frozen=True)
class RunFolder(Folder):
    """Files of one run."""

    @property
    def certificates(self) -> Path:
        """Raw certificates, with a hash of the pixels and the seconds each took."""
        return self.path / "certificates.tsv"

    @property
    def sigmas(self) -> Path:
        """Noise scales that a search found."""
        return self.path / "sigmas.tsv"

    @property
    def records(self) -> Path:
        """Records after the memory."""
        return self.path / "records.tsv"

    def log_certificates(self) -> AppendLog:
        """The certificates, to append (record fields ..., pixel hash, seconds)."""
        return AppendLog(self.certificates, _CERTIFICATE_COLUMNS)

    def log_sigmas(self) -> AppendLog:
        """The noise scales, to append (idx, sigma, network evaluations, seconds)."""
        return AppendLog(self.sigmas, _SIGMA_COLUMNS)

    def read_certificates(self) -> tuple[list[Record], dict[int, str]]:
        """Certificates in order of index, and the hash of each one's pixels."""
        records = sorted(read_records(self.certificates), key=lambda record: record.idx)
        return records, {int(row["idx"]): row["pixels"] for row in read_rows(self.certificates)}

    def seconds(self, path: Path, wanted: set[int]) -> float:
        """Seconds that the rows of some images took, in certificates.tsv or sigmas.tsv."""
        rows = read_rows(path) if path.exists() else []
        return sum(float(row["seconds"]) for row in rows if int(row["idx"]) in wanted)

    def begun(self) -> bool:
        files = [
            path for path in (self.certificates, self.sigmas, self.records) if path.exists() and path.stat().st_size
        ]
        return any(read_rows(path) for path in files)


def short_hash(*values: object) -> str:
    """16 hexadecimal digits that name plain values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def pixel_hash(image: Tensor) -> str:
    """12 hexadecimal digits that name an image's pixels."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:12]
