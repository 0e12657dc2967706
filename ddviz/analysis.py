"""What records say: certified accuracy, average certified radius (ACR), envelopes, tables.

All functions take lists of records, ours or those read from the field's TSV files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddviz.records import ABSTAIN, Record, column
from ddviz.tables import markdown

Array = NDArray[np.float64]


def certified_accuracy(records: Sequence[Record], radii: ArrayLike) -> Array:
    """Share of images that are classified correctly with a radius of at least r, for each r (arXiv 1902.02918)."""
    certified = np.sort([record.certified for record in records])
    below = np.searchsorted(certified, np.asarray(radii, dtype=np.float64), side="left")
    return (len(certified) - below) / max(1, len(certified))


def average_certified_radius(records: Sequence[Record]) -> float:
    """ACR: mean over all images of the radius, 0 where the prediction is wrong (MACER, arXiv 2001.02378)."""
    return float(np.mean([max(0.0, record.certified) for record in records])) if records else 0.0


def accuracy_band(records: Sequence[Record], radii: ArrayLike, *, confidence: float = 0.95) -> tuple[Array, Array]:
    """Wilson's interval (JASA 22, 1927) for the certified accuracy of all images at each radius, each radius alone.

    The records count as independent draws of all images; the certificates' own alpha is not in it. Unlike the normal
    interval it keeps a width where no image or every image is certified.
    """
    share, z2, n = certified_accuracy(records, radii), NormalDist().inv_cdf((1 + confidence) / 2) ** 2, len(records)
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.maximum(0, centre - half), np.minimum(1, centre + half)


def mean_with_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of one value an image, and its standard error, NaN for fewer than two images."""
    values = np.asarray(values, dtype=np.float64)
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def envelope(runs: Sequence[Sequence[Record]], radii: ArrayLike) -> Array:
    """The best certified accuracy of several runs at each radius, usually over sigma."""
    return np.max([certified_accuracy(records, radii) for records in runs], axis=0)


def envelope_band(
    runs: Sequence[Sequence[Record]], radii: Sequence[float] | Array, *, confidence: float = 0.95
) -> tuple[Array, Array, Array]:
    """The envelope at each radius, with Wilson's interval of the run that is best there.

    That the best of several is chosen on the same images is not in the interval.
    """
    shares = np.array([certified_accuracy(records, radii) for records in runs])
    bands = np.array([accuracy_band(records, radii, confidence=confidence) for records in runs])
    best = shares.argmax(0), np.arange(shares.shape[1])
    low, high = bands.transpose(1, 0, 2)
    return shares[best], low[best], high[best]


def radius_grid(runs: Sequence[Sequence[Record]], points: int = 400) -> Array:
    """Radii from 0 to just beyond the largest of the runs, for curves."""
    largest = max((record.radius for records in runs for record in records), default=0.0)
    return np.linspace(0, 1.05 * largest or 1.0, points)


def nice_radii(runs: Sequence[Sequence[Record]]) -> list[float]:
    """About ten round radii that cover the runs, 0 first, for tables."""
    largest = float(radius_grid(runs)[-1])
    step = next(step for step in _STEPS if largest / step <= 10) if largest <= 10 * _STEPS[-1] else largest / 10
    return [round(step * i, 6) for i in range(int(largest / step) + 1)]


_STEPS = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 2.5, 5)]


@dataclass(frozen=True)
class Gain:
    """One image under two methods: radii of correct predictions, -1 where the prediction is wrong or abstains."""

    idx: int
    label: int
    before: float
    after: float

    @property
    def gained(self) -> float:
        """Change of the certified radius, wrong predictions counting as radius 0."""
        return max(0.0, self.after) - max(0.0, self.before)


def gains(before: Sequence[Record], after: Sequence[Record]) -> list[Gain]:
    """Pair two methods' records of the same images, in order of index; images of one run alone are left out."""
    others = {record.idx: record for record in after}
    ordered = sorted(before, key=lambda record: record.idx)
    pairs = [(record, others[record.idx]) for record in ordered if record.idx in others]
    return [Gain(first.idx, first.label, first.certified, second.certified) for first, second in pairs]


@dataclass(frozen=True)
class Difference:
    """Mean change of an image's certified radius between two runs, its standard error, and how many images it is of."""

    mean: float
    error: float
    images: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def difference(paired: Sequence[Gain]) -> Difference:
    """What is gained in all, from at least one image."""
    return Difference(*mean_with_error([gain.gained for gain in paired]), len(paired))


def extremes(paired: Sequence[Gain], count: int) -> list[Gain]:
    """The `count` largest losses, then the `count` largest gains; each image once, unchanged ones left out."""
    ordered = sorted(paired, key=lambda gain: gain.gained)
    losses = [gain for gain in ordered if gain.gained < 0]
    won = [gain for gain in ordered if gain.gained > 0]
    return losses[:count] + won[max(0, len(won) - count) :]


def summary_table(runs: Mapping[str, Sequence[Record]], radii: Sequence[float], *, unit: str) -> str:
    """Markdown table: a row a run, certified accuracy in percent at each radius, ACR, abstentions, images."""
    rows = {}
    for name, records in runs.items():
        accuracies = zip(radii, certified_accuracy(records, radii), strict=True)
        rows[name] = {f"{r:g}": f"{100 * accuracy:.1f}" for r, accuracy in accuracies}
        rows[name]["ACR"] = f"{average_certified_radius(records):.3f}"
        rows[name]["abstains"] = f"{100 * np.mean(column(records, 'predict') == ABSTAIN):.1f} %" if records else "-"
        rows[name]["images"] = str(len(records))
    caption = f"Certified accuracy in percent at each radius ({unit}), and the average certified radius:"
    return f"{caption}\n\n{markdown(rows)}"
