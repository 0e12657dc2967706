"""Tables of finished runs of the zoo's networks, with the paper's beside them.

python -m ddviz table notebooks/results/cifar10
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddviz import analysis
from ddviz.errors import InputError
from ddviz.records import Record, read_records

PAPER_TABLES = Path(__file__).parent / "data" / "paper_tables.tsv"
"""Certified accuracy and ACR of tables 1 to 4 of arXiv 2012.04351."""

SHARED = ("norm", "n0", "alpha", "budget", "target_radius", "seed", "skip", "device", "dtype")
SEARCH = ("solver", "iterations", "lr", "samples", "clamp")
"""Settings that are told with a table: of all runs, and of those that search."""

_METHODS = {"cohen": "Cohen", "smoothadv": "SmoothAdv", "macer": "MACER", "yang": "Yang"}
_NAME = re.compile(rf"(\w+)-\w+-({'|'.join(_METHODS)})-[\d.]+-(fs|ds2)")  # of a network of the zoo
_KINDS = {("fs", "fixed"): "", ("fs", "ds"): "-DS", ("ds2", "fixed"): "-DS2, fixed", ("ds2", "ds"): "-DS2"}


@dataclass(frozen=True)
class Finished:
    """One finished run of a network of the zoo.

    method, sigma, training ("fs" or "ds2") are the network's; certification is "fixed" or "ds".
    """

    dataset: str
    model: str
    method: str
    training: str
    certification: str
    config: Mapping[str, object]
    records: Sequence[Record]

    @property
    def sigma(self) -> float:
        """Noise scale of the certification, where the search starts."""
        return float(str(self.config["sigma"]))

    @property
    def name(self) -> str:
        """As the paper's tables call it: Cohen, Cohen-DS (certified with sigma_x), Cohen-DS2 (trained so too)."""
        return _METHODS.get(self.method, self.method) + _KINDS[self.training, self.certification]


def finished_runs(root: Path) -> list[Finished]:
    """The finished runs of the zoo's networks in a folder of run folders, in the order of the tables.

    Raises: InputError where there is none.
    """
    found = []
    for records in sorted(root.glob("*/records.tsv")):
        config = json.loads((records.parent / "config.json").read_text(encoding="utf-8"))
        if match := _NAME.fullmatch(str(config["checkpoint"])):
            dataset, method, training = match.groups()
            found.append(Finished(dataset, match[0], method, training, config["method"], config, read_records(records)))
    if not found:
        raise InputError(f"expected folders of finished runs of the zoo's networks in {root}, found none.")
    methods, kinds = list(_METHODS), list(_KINDS)
    return sorted(
        found,
        key=lambda run: (methods.index(run.method), run.sigma, kinds.index((run.training, run.certification))),
    )


def zoo_table(runs: Sequence[Finished]) -> str:
    """Markdown: how the runs were made, certified accuracy at the paper's radii, ACR, gain over fixed sigma.

    The gain is the mean of the images' differences in radius (0 where the prediction is wrong) to the same network
    with fixed sigma, with its standard error.
    """
    paper = _paper_rows(runs[0].dataset, str(runs[0].config["norm"]))
    radii = (
        [float(r) for r in paper[0]["radii"].split(",")] if paper else analysis.nice_radii([r.records for r in runs])
    )
    fixed = {(run.model, run.sigma): run.records for run in runs if run.certification == "fixed"}
    rows = {}
    for run in runs:
        row = _cells(100 * analysis.certified_accuracy(run.records, radii), radii)
        row["ACR"] = f"{analysis.average_certified_radius(run.records):.3f}"
        base = fixed.get((run.model, run.sigma)) if run.certification == "ds" else None
        row["gain"] = str(analysis.difference(analysis.gains(base, run.records))) if base else ""
        row |= {"images": str(len(run.records)), "N": f"{run.config['n']:,}"}
        rows[f"{run.name}, sigma {run.sigma:g}"] = row
    told = circumstances([run.config for run in runs], SHARED + SEARCH)
    parts = [f"Certified accuracy in percent at each radius. Settings: {told}.", analysis.markdown(rows)]
    if len({run.sigma for run in runs}) > 1:
        named = [(run.name, run.sigma, run.records) for run in runs]
        parts += ["The best over sigma, at each radius and in ACR:", analysis.markdown(envelopes(named, radii))]
    if paper:
        published = {
            row["method"]: dict(zip(_header(radii), row["certified_accuracy"].split(","), strict=True))
            | {"ACR": f"{float(row['acr']):.3f}"}
            for row in paper
        }
        parts += ["The paper (tables 1 to 3; best over sigma, N = 100,000):", analysis.markdown(published)]
    return "\n\n".join(parts)


def _paper_rows(dataset: str, norm: str) -> list[dict[str, str]]:
    text = [line for line in PAPER_TABLES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    head, *rows = (line.split("\t") for line in text)
    named = [dict(zip(head, row, strict=True)) for row in rows]
    return [row for row in named if (row["dataset"], row["norm"]) == (dataset, norm)]


def _header(radii: Sequence[float]) -> list[str]:
    return [f"{radius:g}" for radius in radii]


def _cells(values: np.ndarray, radii: Sequence[float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in zip(_header(radii), values, strict=True)}


def envelopes(runs: Sequence[tuple[str, float, Sequence[Record]]], radii: Sequence[float]) -> dict[str, dict[str, str]]:
    """Cells of a table of the best over sigma, a row a name, of runs (name, sigma, records)."""
    rows = {}
    for name in dict.fromkeys(name for name, *_ in runs):
        own = [(sigma, records) for other, sigma, records in runs if other == name]
        rows[name] = _cells(100 * analysis.envelope([records for _, records in own], radii), radii)
        rows[name]["ACR"] = f"{max(analysis.average_certified_radius(records) for _, records in own):.3f}"
        rows[name]["sigmas"] = ", ".join(f"{sigma:g}" for sigma, _ in own)
    return rows


def circumstances(configs: Sequence[Mapping[str, object]], names: Sequence[str]) -> str:
    """Some settings of runs, with all values that they take."""
    told = []
    for name in names:
        values = sorted({str(config[name]) for config in configs if name in config})
        if values:
            told.append(f"{name} {' or '.join(values)}")
    return ", ".join(told)


def with_table(text: str, name: str, table: str) -> str:
    """A document with its part between `<!-- table: name -->` and `<!-- end -->` replaced.

    Raises: InputError where there is no such part.
    """
    start = f"<!-- table: {name} -->"
    before, found, rest = text.partition(start)
    _, end, after = rest.partition("<!-- end -->")
    if not (found and end):
        raise InputError(f"expected {start} and <!-- end --> in the document, found no such part.")
    return f"{before}{start}\n{table}\n{end}{after}"
