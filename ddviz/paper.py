"""Tables 1 to 4 of Alfarra et al. (UAI 2022, arXiv 2012.04351), and numbers of ours beside them.

The paper's rows are the best over several noise scales, at each radius and in ACR, from 100,000 samples an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path

import numpy as np

from ddviz import analysis
from ddviz.records import Record
from ddviz.tables import Cell

PAPER_TABLES = Path(__file__).parent / "data" / "paper_tables.tsv"
"""Certified accuracy and ACR of tables 1 to 4."""

SIGMAS = {
    ("cifar10", "l2"): (0.12, 0.25, 0.5),
    ("imagenet", "l2"): (0.25, 0.5, 1.0),
    ("cifar10", "l1"): (0.25, 0.5, 1.0),
    ("imagenet", "l1"): (0.25, 0.5, 1.0),
}
"""Noise scales that the paper's rows are the best of (sections 4 and 4.4), by data set and norm."""

FIGURES = {"Cohen": 3, "SmoothAdv": 4, "MACER": 5}
"""Numbers of the paper's figures of certified accuracy, by method."""

_TWO_ERRORS = 0.9545  # the confidence of two standard errors to each side

Runs = Mapping[float, Sequence[Record]]
"""Records of one method, by noise scale."""


@dataclass(frozen=True)
class Published:
    """A row of the paper. texts: certified accuracy in percent at each radius, as printed; "?" is illegible.

    accuracy: the same as numbers, NaN where illegible.
    """

    table: int
    method: str
    radii: tuple[float, ...]
    texts: tuple[str, ...]
    acr: float

    @property
    def accuracy(self) -> tuple[float, ...]:
        return tuple(float("nan") if text == "?" else float(text) for text in self.texts)


def published(dataset: str, norm: str) -> dict[str, Published]:
    """The paper's rows on a data set, by the name of the method: Cohen, Cohen-DS, Cohen-DS2 and so on."""
    text = [line for line in PAPER_TABLES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    head, *lines = (line.split("\t") for line in text)
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    return {
        row["method"]: Published(
            int(row["table"]),
            row["method"],
            tuple(map(float, row["radii"].split(","))),
            tuple(row["certified_accuracy"].split(",")),
            float(row["acr"]),
        )
        for row in rows
        if (row["dataset"], row["norm"]) == (dataset, norm)
    }


def levels(runs: Runs, radii: Sequence[float], row: Published | None) -> tuple[Cell, ...]:
    """Certified accuracy in percent at each radius and then ACR, the best over sigma, beside a row of the paper.

    The error of an accuracy is half the longer side of Wilson's interval of two standard errors: as the binomial one,
    but not 0 where no image or every image is certified.
    """
    papers = _papers(row, len(radii))
    if not runs:
        return _unknown(papers)
    share, low, high = analysis.envelope_band(list(runs.values()), radii, confidence=_TWO_ERRORS)
    errors = 100 / 2 * np.maximum(share - low, high - share)
    accuracies = starmap(Cell, zip((100 * share).tolist(), errors.tolist(), papers, strict=False))
    acr = max(analysis.mean_with_error([max(0.0, r.certified) for r in records]) for records in runs.values())
    return (*accuracies, Cell(*acr, papers[-1], digits=3))


def gains(before: Runs, after: Runs, radii: Sequence[float], rows: Sequence[Published | None]) -> tuple[Cell, ...]:
    """What `after` certifies more, at each radius and in ACR: best over sigma less best over sigma, image by image.

    Over the noise scales that both have, and the images that all of their runs share. rows: the paper's of `before`
    and `after`.
    """
    papers = [
        None if old is None or new is None else round(new - old, 6)
        for old, new in zip(*(_papers(row, len(radii)) for row in rows), strict=True)
    ]
    sigmas, shared = in_common(before, after)
    if not shared:
        return _unknown(papers, signed=True)
    old, new = (
        np.array([[r.certified for r in sorted(side[s], key=lambda r: r.idx) if r.idx in shared] for s in sigmas])
        for side in (before, after)
    )
    cells = []
    for radius, paper in zip(radii, papers, strict=False):
        mean, error = analysis.mean_with_error(_best(100.0 * (new >= radius)) - _best(100.0 * (old >= radius)))
        # as Wilson's at 0: that no image changed does not say that none would
        cells.append(Cell(mean, max(error, 100 * 2 / (len(shared) + 4)), paper, signed=True))
    acr = analysis.mean_with_error(_best(new.clip(0)) - _best(old.clip(0)))
    return (*cells, Cell(*acr, papers[-1], digits=3, signed=True))


def in_common(before: Runs, after: Runs) -> tuple[list[float], set[int]]:
    """The noise scales that both sides have, and the indices of the images that all runs with these share."""
    sigmas = sorted(before.keys() & after.keys())
    images = [{record.idx for record in side[sigma]} for side in (before, after) for sigma in sigmas]
    return sigmas, set.intersection(*images) if images else set()


def _best(values: np.ndarray) -> np.ndarray:
    """The row (images) of the largest mean, of values (sigmas, images)."""
    return values[values.mean(1).argmax()]


def _papers(row: Published | None, radii: int) -> list[float | None]:
    return [None] * (radii + 1) if row is None else [*row.accuracy, row.acr]


def _unknown(papers: Sequence[float | None], *, signed: bool = False) -> tuple[Cell, ...]:
    cells = [Cell(None, None, paper, signed=signed) for paper in papers]
    return *cells[:-1], replace(cells[-1], digits=3)
