"""Finished runs side by side: their files, short names for them, and what they say of the same images."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddviz import analysis, datasets
from ddviz.analysis import Gain
from ddviz.config import METHODS
from ddviz.datasets import ImageSet, user_path
from ddviz.errors import InputError
from ddviz.records import ABSTAIN, REQUIRED, Record, column, read_records
from ddviz.settings import Settings

_PARTS = {"certificates.tsv", "sigmas.tsv"}  # of a run folder, beside records.tsv
_OTHERS = {"history.tsv", "paths.tsv"}  # of training runs and of the ablation of K
_TAIL = re.compile(rf"-({'|'.join(METHODS)})$")


@dataclass(frozen=True, kw_only=True)
class Selection(Settings):
    """Which runs to compare: the parameters of `notebooks/compare.ipynb`."""

    folder: str = "results"
    runs: str = ""
    dataset: str = ""
    data_root: str = ""

    @property
    def names(self) -> list[str]:
        """The runs that are named, none for the first two."""
        return [name.strip() for name in self.runs.split(",") if name.strip()]

    def _check(self) -> None:
        if not user_path(self.folder).exists():
            raise InputError(f"expected folder to hold finished runs, got {self.folder!r}, which does not exist.")
        if self.dataset:
            self._check_dataset(self.dataset)
        if self.data_root and not user_path(self.data_root).is_dir():
            raise InputError(f"expected data_root to be a folder of data sets, got {self.data_root!r}.")


@dataclass(frozen=True)
class FoundRun:
    """A record file under a short name. It is read when it is first asked for."""

    name: str
    path: Path

    @cached_property
    def records(self) -> list[Record]:
        """The records, at least one.

        Raises: InputError naming the file and what is wrong with it.
        """
        if records := read_records(self.path):
            return records
        raise InputError(f"expected records in {self.path}, found a header alone. Leave this run out, or finish it.")

    @cached_property
    def config(self) -> Mapping[str, object]:
        """The config.json of our own runs; empty for files of the field.

        Raises: InputError for a damaged one.
        """
        path = self.path.with_name("config.json")
        if self.path.name != "records.tsv" or not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}). Leave this run out, or make it again.") from error

    @property
    def method(self) -> str:
        """fixed, data-dependent, or "" where nothing tells."""
        return METHODS.get(str(self.config.get("method", "")), "")

    @property
    def radii(self) -> NDArray[np.float64]:
        """Certified radius of each image, 0 where the prediction is wrong, in [0,1]-pixel units of the norm."""
        return np.maximum(0, [record.certified for record in self.records])

    def knows(self, name: str) -> bool:
        """Whether the file has a column that files of the field lack."""
        return bool(np.isfinite(column(self.records, name)).all())

    def known(self, name: str) -> NDArray[np.float64]:
        """A column that files of the field lack.

        Raises: InputError where this file lacks it.
        """
        if self.knows(name):
            return column(self.records, name)
        raise InputError(f"{self.name} has no column {name}: only record files of ddviz have it.")


def find(folder: str | Path) -> tuple[list[FoundRun], list[str]]:
    """The record files below a folder, fixed before data-dependent, and what was left out, with the reason.

    A record file may also be named itself.

    Raises: InputError where there is none.
    """
    root = user_path(folder)
    if not root.exists():
        raise InputError(f"expected a folder of finished runs, got {str(folder)!r}, which does not exist.")
    tables = [path for path in root.rglob("*.tsv") if path.is_file()] if root.is_dir() else [root]
    wanted = [path for path in tables if path.name not in _PARTS | _OTHERS]
    files = sorted((path for path in wanted if _is_record_file(path)), key=_order)
    left_out = [f"{path.name} (no record file)" for path in sorted(set(wanted) - set(files))]
    unfinished = {path.parent for path in tables if path.name in _PARTS} - {path.parent for path in files}
    left_out += [f"{path.name} (not finished)" for path in sorted(unfinished)]
    if not files:
        also = f" Left out: {', '.join(left_out)}." if left_out else ""
        raise InputError(
            f"expected TSV files with the columns {' '.join(REQUIRED)} in {root}, found none.{also} Make some with "
            "certify.ipynb, or choose another folder."
        )
    return [FoundRun(name, path) for name, path in zip(short_names(files), files, strict=True)], left_out


def _is_record_file(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return set(REQUIRED) <= set(file.readline(10_000).rstrip("\n").split("\t"))


def _place(path: Path) -> tuple[str, ...]:
    """What names a record file: our own runs' folder, another file's path without its ending."""
    path = path.absolute()
    return path.parent.parts if path.name == "records.tsv" else path.with_suffix("").parts


def _order(path: Path) -> tuple[str, bool]:
    name = "/".join(_place(path))
    return _TAIL.sub("", name), not name.endswith("-fixed")


def short_names(paths: Sequence[Path]) -> list[str]:
    """For each record file as few last parts of its place as tell it from the others; else its whole path."""
    places = [_place(path) for path in paths]

    def short(path: Path, place: tuple[str, ...]) -> str:
        for depth in range(1, len(place) + 1):
            if sum(other[-depth:] == place[-depth:] for other in places) == 1:
                return Path(*place[-depth:]).as_posix()
        return str(path)

    return [short(path, place) for path, place in zip(paths, places, strict=True)]


def paired(first: FoundRun, second: FoundRun) -> list[Gain]:
    """The images that two runs share.

    Raises: InputError where there is none, or where an index has another label in each.
    """
    labels = {record.idx: record.label for record in second.records}
    for record in first.records:
        if labels.get(record.idx, record.label) != record.label:
            raise InputError(
                f"expected runs of the same data set, got label {record.label} for image {record.idx} in {first.name} "
                f"and {labels[record.idx]} in {second.name}."
            )
    if gains := analysis.gains(first.records, second.records):
        return gains
    raise InputError(f"expected runs that share images, got none that {first.name} and {second.name} share.")


@dataclass(frozen=True)
class Summary:
    """One run in numbers, each with its standard error over the images where it has one.

    accuracy: share that is right, at radius 0. difference: of the ACR to another run, on the images that both have;
    None where there are none.
    """

    images: int
    acr: tuple[float, float]
    accuracy: float
    abstains: float
    difference: tuple[float, float] | None
    common: int


def summary(run: FoundRun, first: FoundRun) -> Summary:
    """One run in numbers, and against another."""
    try:
        gained = [gain.gained for gain in paired(first, run)]
    except InputError:
        gained = []
    return Summary(
        len(run.records),
        analysis.mean_with_error(run.radii),
        float(analysis.certified_accuracy(run.records, 0)),
        float(np.mean(column(run.records, "predict") == ABSTAIN)),
        analysis.mean_with_error(gained) if gained else None,
        len(gained),
    )


def shares_at_least(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each value v once, ascending, with the share of values >= v; the largest again with the share 0 beyond it."""
    ordered = np.sort(values)
    distinct = np.unique(ordered)
    share = 1 - np.searchsorted(ordered, distinct, side="left") / len(ordered)
    return np.append(distinct, distinct[-1]), np.append(share, 0.0)


def unit(runs: Sequence[FoundRun]) -> str:
    """The unit of the runs' radii, for axes; their norms, where files tell."""
    norms = dict.fromkeys(str(run.config["norm"]) for run in runs if "norm" in run.config)
    return ", ".join([" or ".join(norms), "[0,1]-pixel units"] if norms else ["[0,1]-pixel units"])


def images_of(run: FoundRun, selection: Selection) -> ImageSet:
    """The images that a run was made from.

    Raises: InputError where neither its config.json nor the selection names a data set, or it is not there.
    """
    name = str(run.config.get("dataset", selection.dataset))
    if selection.dataset and Path(selection.dataset).name == name:
        name = selection.dataset  # a run on a folder knows the folder's name alone
    if not name:
        raise InputError(f"{run.name} names no data set. Set the parameter dataset to see its images.")
    return _images(name, selection.data_root, int(str(run.config.get("image_size", 0))))


@lru_cache(maxsize=4)  # a data set takes seconds to list, and a failure is not remembered
def _images(name: str, data_root: str, image_size: int) -> ImageSet:
    return datasets.load(name, data_root=data_root, image_size=image_size)


def image_of(images: ImageSet, gain: Gain) -> Tensor:
    """Pixels (C, H, W) of an image in two runs.

    Raises: InputError where the data set has no such image, or one of another class.
    """
    if gain.idx not in images.indices or int(images.labels[gain.idx]) != gain.label:
        raise InputError(f"expected image {gain.idx} of {images.name} to be of class {gain.label}, as the records say.")
    return images.image(gain.idx)
