"""Finished runs of networks by the names of the paper's tables, and tables of the zoo's with the paper's beside them.

python -m ddviz table notebooks/results/cifar10
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ddviz import analysis, comparison, paper
from ddviz.comparison import FoundRun
from ddviz.config import METHODS
from ddviz.datasets import user_path
from ddviz.errors import InputError
from ddviz.records import Record

SHARED = ("norm", "n0", "alpha", "budget", "target_radius", "seed", "skip", "device", "dtype")
SEARCH = ("solver", "iterations", "lr", "samples", "clamp")
"""Settings that are told with a table: of all runs, and of those that search."""

SHOWN = {"cohen": "Cohen", "smoothadv": "SmoothAdv", "macer": "MACER", "yang": "Yang"}
"""Training methods, as the paper's tables call them."""

JOB = "job.json"
"""Beside or above run folders: the labels of their network, the notebook and the command that made them."""

_NAME = re.compile(rf"(\w+)-(\w+)-({'|'.join(SHOWN)})-[\d.]+-(fs|ds2)")  # of a network of the zoo
_LABELS = ("dataset", "model", "method", "training")
_KINDS = {("fs", "fixed"): "", ("fs", "ds"): "-DS", ("ds2", "fixed"): "-DS2, fixed", ("ds2", "ds"): "-DS2"}
_CERTIFY = "certify"  # the notebook whose runs stand in tables
_ALGORITHM_1 = ("ascent", "ascent-fast")


@dataclass(frozen=True)
class Finished:
    """One finished run of a network whose labels are known.

    model (the architecture), method, training ("fs" or "ds2") are the network's. others: the solver where it must be
    told, since runs beside this one are by Algorithm 1. command: what made it, where that is known.
    """

    dataset: str
    model: str
    method: str
    training: str
    found: FoundRun
    command: str = ""
    others: str = ""

    @property
    def config(self) -> Mapping[str, object]:
        """The settings of the run."""
        return self.found.config

    @property
    def records(self) -> Sequence[Record]:
        """The certified images."""
        return self.found.records

    @property
    def certification(self) -> str:
        """ "fixed" or "ds"."""
        return str(self.config["method"])

    @property
    def sigma(self) -> float:
        """Noise scale of the certification, where the search starts."""
        return float(str(self.config["sigma"]))

    @property
    def norm(self) -> str:
        """Norm of the certified balls."""
        return str(self.config["norm"])

    @property
    def n(self) -> int:
        """Samples of a certificate."""
        return int(str(self.config["n"]))

    @property
    def solver(self) -> str:
        """What chose the noise scales, "" for fixed sigma; both forms of Algorithm 1 are "ascent"."""
        solver = str(self.config.get("solver", "")) if self.certification == "ds" else ""
        return "ascent" if solver in _ALGORITHM_1 else solver

    @property
    def network(self) -> tuple[object, ...]:
        """What runs of one network at one noise scale share."""
        return self.dataset, self.norm, self.config.get("checkpoint"), self.config.get("model"), self.sigma

    @property
    def row(self) -> str:
        """As the paper's tables call it: Cohen, Cohen-DS (certified with sigma_x), Cohen-DS2 (trained so too)."""
        return SHOWN.get(self.method, self.method) + _KINDS[self.training, self.certification]

    @property
    def name(self) -> str:
        """The row, with the solver where it must be told."""
        return self.row + (f", {self.others}" if self.others else "")


@dataclass(frozen=True)
class Search:
    """The runs below a folder that tables can show, in their order, and what was left out, with the reason."""

    runs: list[Finished]
    left_out: list[str]


def search(root: str | Path) -> Search:
    """The finished runs below a folder, at every depth, whose network is known.

    Labels (data set, model, method, training) are those of the nearest job.json, else in the name of a network of the
    zoo. Of runs that would stand in one place of a table the one with most samples counts, then with most images, then
    the first.
    Folders beside finished runs hold studies of their own, which count where a job.json names them.

    Raises: InputError where there is none, or where a file is damaged.
    """
    candidates, left_out = comparison.find(root)
    folders = {run.path.parent for run in candidates}
    labelled, others = [], False
    for run in candidates:
        job_file = next(filter(Path.exists, (folder / JOB for folder in run.path.absolute().parents)), None)
        job = read_job(job_file) if job_file else {}
        if job.get("notebook", _CERTIFY) != _CERTIFY:  # an ablation's, or a quick look after training
            others = True
            continue
        if _aside(run.path.parent, folders, user_path(root), job_file):
            left_out.append(f"{run.name} (a study beside the runs of its parent folder)")
        elif (finished := _labelled(run, job)) is None:
            left_out.append(f"{run.name} (its config.json or {JOB} names no {', '.join(_LABELS)})")
        else:
            labelled.append(finished)
    runs, twice = _best_of_each(labelled)
    if not runs and not others:
        also = f" Left out: {'; '.join(left_out)}." if left_out else ""
        wanted = f"expected folders of finished runs of the zoo's networks, or below a {JOB} with labels, in {root}"
        raise InputError(f"{wanted}; found none.{also}")
    return Search(sorted(_told_apart(runs), key=_place), left_out + twice)


def _aside(folder: Path, folders: set[Path], root: Path, job_file: Path | None) -> bool:
    """Whether a run lies deeper than others of a parent folder, and no job.json in between names it."""
    holders = {other.parent for other in folders}
    above = [parent for parent in folder.parent.parents if parent == root or root in parent.parents]
    return any(
        parent in holders and not (job_file and parent.absolute() in job_file.parent.parents) for parent in above
    )


def read_job(path: Path) -> dict[str, Any]:
    """What a job.json says.

    Raises: InputError for a damaged one.
    """
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(job.get("labels", {}), dict):
            return job
        raise ValueError("labels is no object")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}). Correct it, or leave its runs out.") from error


def _labelled(run: FoundRun, job: Mapping[str, Any]) -> Finished | None:
    """A run with its labels, None where one is missing.

    Raises: InputError for a training that is neither "fs" nor "ds2".
    """
    match = _NAME.fullmatch(str(run.config.get("checkpoint")))
    named = dict(zip(_LABELS, match.groups(), strict=True)) if match else {"dataset": run.config.get("dataset")}
    labels = {name: str(value) for name, value in (named | job.get("labels", {})).items() if value}
    if any(name not in labels for name in _LABELS) or run.config.get("method") not in METHODS:
        return None
    if labels["training"] not in ("fs", "ds2"):
        raise InputError(f"expected training to be fs or ds2 in the {JOB} of {run.name}, got {labels['training']!r}.")
    return Finished(
        **{name: labels[name] for name in _LABELS}, found=run, command=" ".join(str(job.get("command", "")).split())
    )


def _best_of_each(runs: Sequence[Finished]) -> tuple[list[Finished], list[str]]:
    """Of runs in one place of a table the one with most samples, then most images; what is said of the others."""
    kept, left_out = {}, []
    for run in sorted(runs, key=lambda run: (-run.n, -len(run.records))):
        place = (run.dataset, run.norm, run.model, run.row, run.solver, run.sigma)
        if (other := kept.setdefault(place, run)) is not run:
            pairs = {"N": (run.n, other.n), "images": (len(run.records), len(other.records))} | {
                name: (run.config.get(name, "unset"), other.config.get(name, "unset"))
                for name in ("checkpoint", "model", *SHARED, *SEARCH)
            }
            told = ", ".join(f"{name} {one} instead of {two}" for name, (one, two) in pairs.items() if one != two)
            left_out.append(f"{run.found.name} ({told or 'the same'}: {other.found.name} counts)")
    return list(kept.values()), left_out


def _told_apart(runs: Sequence[Finished]) -> list[Finished]:
    """The runs, with their solver told where there are runs by Algorithm 1 beside those by another."""
    solvers: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        solvers.setdefault(group(run), set()).update({run.solver} - {""})
    return [
        replace(run, others=run.solver) if len(solvers[group(run)]) > 1 and run.solver not in ("", "ascent") else run
        for run in runs
    ]


def group(run: Finished) -> tuple[str, str, str]:
    """What runs of one table share: data set, norm, architecture."""
    return run.dataset, run.norm, run.model


def _place(run: Finished) -> tuple[object, ...]:
    methods, kinds = list(SHOWN), list(_KINDS)
    method = methods.index(run.method) if run.method in methods else len(methods)
    return *group(run), method, run.method, run.sigma, kinds.index((run.training, run.certification)), run.others


def zoo_table(runs: Sequence[Finished]) -> str:
    """Markdown: how the runs were made, certified accuracy at the paper's radii, ACR, gain over fixed sigma.

    The gain is the mean of the images' differences in radius (0 where the prediction is wrong) to the same network
    with fixed sigma, with its standard error. Each data set, norm and architecture has a table of its own.
    """
    tables = {", ".join(shared): _zoo_table(list(members)) for shared, members in groupby(runs, group)}
    return "\n\n".join(f"**{shared}**\n\n{table}" if len(tables) > 1 else table for shared, table in tables.items())


def _zoo_table(runs: Sequence[Finished]) -> str:
    published = paper.published(runs[0].dataset, runs[0].norm)
    radii = radii_of(runs)
    fixed = {run.network: run.records for run in runs if run.certification == "fixed"}
    rows = {}
    for run in runs:
        row = _cells(100 * analysis.certified_accuracy(run.records, radii), radii)
        row["ACR"] = f"{analysis.average_certified_radius(run.records):.3f}"
        base = fixed.get(run.network) if run.certification == "ds" else None
        row["gain"] = str(analysis.difference(analysis.gains(base, run.records))) if base else ""
        row |= {"images": str(len(run.records)), "N": f"{run.n:,}"}
        rows[f"{run.name}, sigma {run.sigma:g}"] = row
    told = circumstances([run.config for run in runs], SHARED + SEARCH)
    parts = [f"Certified accuracy in percent at each radius. Settings: {told}.", analysis.markdown(rows)]
    if len({run.sigma for run in runs}) > 1:
        named = [(run.name, run.sigma, run.records) for run in runs]
        parts += ["The best over sigma, at each radius and in ACR:", analysis.markdown(envelopes(named, radii))]
    if published:
        numbers = sorted({row.table for row in published.values()})
        which = f"tables {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"table {numbers[0]}"
        rows = {
            name: dict(zip(header(radii), row.texts, strict=True)) | {"ACR": f"{row.acr:.3f}"}
            for name, row in published.items()
        }
        parts += [f"The paper ({which}; best over sigma, N = 100,000):", analysis.markdown(rows)]
    return "\n\n".join(parts)


def radii_of(runs: Sequence[Finished]) -> list[float]:
    """The radii of the paper's tables for the runs' data set and norm; round ones where it has none."""
    rows = paper.published(runs[0].dataset, runs[0].norm).values()
    return list(next(iter(rows)).radii) if rows else analysis.nice_radii([run.records for run in runs])


def header(radii: Sequence[float]) -> list[str]:
    """Titles of columns of radii."""
    return [f"{radius:g}" for radius in radii]


def _cells(values: np.ndarray, radii: Sequence[float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in zip(header(radii), values, strict=True)}


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
