"""Solvers side by side: how much radius each gains by its choice of sigma_x, and what the choice costs.

A study is a folder of solvers, each a folder of run folders: <study>/<solver>/<run>/{config.json, records.tsv,
sigmas.tsv}. "fixed" is what all are compared with; a solver held to a number of evaluations is called
<solver>-<evaluations>.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddviz import analysis, comparison
from ddviz.analysis import Difference
from ddviz.budget import largest_p_lower
from ddviz.comparison import FoundRun
from ddviz.config import METHODS, RunConfig
from ddviz.datasets import user_path
from ddviz.errors import InputError
from ddviz.records import ABSTAIN, Record, read_rows
from ddviz.report import SEARCH, SHARED, circumstances
from ddviz.runfolder import RunFolder
from ddviz.settings import Settings

BASE = "fixed"
RIVAL = "halving"
"""What every solver gains over, and the default that every other is compared with."""

_COMPARED = {RIVAL: ("halving", "samples"), "ascent": ("ascent-fast", "iterations"), "grid": ("grid", "iterations")}
_USED = {"halving": ("solver", "samples"), "grid": ("solver", "iterations", "samples", "clamp")}  # others: SEARCH
_NAME = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Ablation(Settings):
    """Base of the settings of studies, whose fields are named as a run's where they are a run's."""

    @property
    def planned(self) -> list[RunConfig]:
        """Runs that together cost what the study will; none where earlier results are shown."""
        raise NotImplementedError

    def _shared(self, **own: Any) -> RunConfig:
        """The run's settings among these, and others; a clamp of 0 becomes 1 - alpha^(1/n), to two digits."""
        known = {field.name for field in fields(RunConfig)}
        shared: dict[str, Any] = {name: value for name, value in asdict(self).items() if name in known} | own
        if shared["clamp"]:
            return RunConfig(**shared)
        del shared["clamp"]
        config = RunConfig(**shared)  # which checks n and alpha
        return replace(config, clamp=float(f"{1 - largest_p_lower(config.n, config.alpha):.2g}"))

    def _check_results(self, results: str) -> None:
        if results and not user_path(results).is_dir():
            raise InputError(f"expected results to be a folder of finished runs, got {results!r}. Leave it empty.")


@dataclass(frozen=True, kw_only=True)
class Study(Ablation):
    """What to compare the solvers on: the parameters of `notebooks/ablation_solvers.ipynb`, named as a run's.

    clamp: 0 is 1 - alpha^(1/n) to two digits, beyond which n samples certify nothing. evaluations: of the network an
    image, that each solver may make; 0: each has its own settings. results: a folder of earlier results to show, "":
    those of run_root.
    """

    dataset: str = RunConfig.dataset
    data_root: str = RunConfig.data_root
    checkpoint: str = RunConfig.checkpoint
    sigma: float = RunConfig.sigma
    samples: int = RunConfig.samples
    iterations: int = RunConfig.iterations
    lr: float = RunConfig.lr
    clamp: float = 0.0
    evaluations: int = 0
    n0: int = RunConfig.n0
    n: int = 1_000
    alpha: float = RunConfig.alpha
    skip: int = RunConfig.skip
    max_images: int = 60
    seed: int = RunConfig.seed
    device: str = RunConfig.device
    dtype: str = RunConfig.dtype
    run_root: str = "runs/solvers"
    results: str = ""

    @property
    def config(self) -> RunConfig:
        """The settings that all runs share."""
        return self._shared()

    @property
    def to_run(self) -> dict[str, RunConfig]:
        """The runs to make, by name; none where earlier results are shown."""
        return {} if self.results else configs(self.config, self.evaluations)

    @property
    def planned(self) -> list[RunConfig]:
        return [*self.to_run.values()]

    def _check(self) -> None:
        self._check_least({"evaluations": 0})
        configs(self.config, self.evaluations)  # names what cannot be before anything is loaded
        self._check_results(self.results)


def configs(config: RunConfig, evaluations: int = 0) -> dict[str, RunConfig]:
    """Runs with fixed sigma and with each solver, by name, each in a folder of that name in the config's run_root.

    evaluations: each solver is given the largest setting (samples of halving, else iterations) with which it plans at
    most so many an image; 0: the config's settings, and the grid as many evaluations as the steps of Algorithm 1.

    Raises: InputError where a solver needs more.
    """
    runs = {BASE: replace(config, method="fixed", run_root=f"{config.run_root}/{BASE}")}
    for solver, (registered, setting) in _COMPARED.items():
        name = f"{solver}-{evaluations}" if evaluations else solver
        own = replace(config, method="ds", solver="halving", run_root=f"{config.run_root}/{name}")
        least = (own.samples + 1) // 2 if solver == "grid" else 1
        if evaluations:
            value = fitted(own, registered, setting, least, evaluations)
        else:
            value = own.iterations * own.samples // 2 if solver == "grid" else getattr(own, setting)
        runs[name] = replace(own, **{"solver": registered, setting: value})
    return runs


def fitted(
    config: RunConfig,
    solver: str,
    setting: str,
    least: int,
    evaluations: int,
    cost: Callable[[RunConfig], int] = lambda config: config.make_solver().planned,
) -> int:
    """The largest value of a setting with which a solver plans at most `evaluations`.

    Raises: InputError where it needs more.
    """

    def planned(value: int) -> int:
        return cost(replace(config, **{"solver": solver, setting: value}))

    if fitting := bisect_right(range(least, evaluations + 1), evaluations, key=planned):
        return least + fitting - 1
    checks = ", the checks of both promises included" if config.keep_class or config.keep_radius else ""
    raise InputError(
        f"expected evaluations >= {planned(least)}, got {evaluations}: {solver} with {setting}={least} already makes "
        f"that many an image{checks}."
    )


@dataclass(frozen=True)
class Solved:
    """A solver's finished run on one network.

    name: of the solver's folder. network: data set, network, norm and sigma_0, as run folders name them. evaluations,
    seconds: of the network and of time, mean an image, to choose sigma_x; 0 for fixed sigma. gain, lead: mean change of
    the radius from fixed sigma to this run, and from this run to halving with as many evaluations; None where that one
    is missing or is this one.
    """

    name: str
    network: str
    run: FoundRun
    evaluations: float
    seconds: float
    gain: Difference | None = None
    lead: Difference | None = None

    @property
    def records(self) -> Sequence[Record]:
        """The certified images."""
        return self.run.records

    @property
    def sigma(self) -> float:
        """The scale of fixed sigma, where the search starts."""
        return float(str(self.run.config["sigma"]))

    @property
    def solver(self) -> str:
        """The name without the number of evaluations."""
        return match[1] if (match := _NAME.fullmatch(self.name)) else self.name

    @property
    def gradients(self) -> int:
        """Evaluations an image that were also gone through backwards: those of the steps of Algorithm 1."""
        settings = self.run.config
        steps = str(settings.get("solver", "")).startswith("ascent")
        return int(str(settings["iterations"])) * int(str(settings["samples"])) if steps else 0

    @property
    def effort(self) -> float:
        """Evaluations and gradients, a step back counting as much as one forward, as in the paper."""
        return self.evaluations + self.gradients

    @property
    def budget(self) -> int:
        """The evaluations that the name tells, 0 for a solver with its own settings."""
        return int(match[2]) if (match := _NAME.fullmatch(self.name)) else 0


def read(study: str | Path, called: Sequence[str] = tuple(_COMPARED)) -> list[Solved]:
    """The finished runs of a study, network by network, fixed first, then those called so, then others.

    A run with fixed sigma counts in the folder "fixed" alone.

    Raises: InputError where there is none, or where a file lacks what is needed.
    """
    root = user_path(study)
    found = []
    for path in root.glob("*/*/records.tsv"):
        name, folder = path.parts[-3:-1]
        run = FoundRun(f"{name}/{folder}", path)
        if run.method == METHODS["fixed" if name == BASE else "ds"]:
            costs = (0.0, 0.0) if name == BASE else _costs(run)
            found.append(Solved(name, folder.removesuffix("-fixed").removesuffix("-ds"), run, *costs))
    if not found:
        raise InputError(
            f"expected finished runs in {root}, in folders that are called {BASE}, {', '.join(called)}; found none."
        )
    order = [BASE, *called]
    places = {solved.name: order.index(solved.solver) if solved.solver in order else len(order) for solved in found}
    found.sort(key=lambda solved: (solved.network, places[solved.name], solved.solver, solved.budget))
    runs = {(solved.network, solved.name): solved.run for solved in found}
    for one in found:  # with its own settings halving makes a number of evaluations, too
        if one.name == RIVAL:
            runs.setdefault((one.network, f"{RIVAL}-{one.evaluations:.0f}"), one.run)
    return [_compared(solved, runs) for solved in found]


def _costs(run: FoundRun) -> tuple[float, float]:
    """Mean evaluations and seconds of the images that are in the records, to choose their sigma_x."""
    path = RunFolder(run.path.parent).sigmas
    wanted = {record.idx for record in run.records}
    rows = [row for row in read_rows(path) if int(row["idx"]) in wanted]
    if len({row["idx"] for row in rows}) < len(wanted):
        raise InputError(f"expected a row in {path} for each of the {len(wanted)} images, got {len(rows)}.")
    evaluations, seconds = (float(np.mean([float(row[name]) for row in rows])) for name in ("evaluations", "seconds"))
    return evaluations, seconds


def _compared(solved: Solved, runs: Mapping[tuple[str, str], FoundRun]) -> Solved:
    """A run with its differences to others of the same network."""
    base = runs.get((solved.network, BASE)) if solved.name != BASE else None
    rival = runs.get((solved.network, solved.name.replace(solved.solver, RIVAL, 1)))
    beaten = rival if solved.solver not in (BASE, RIVAL) else None
    return replace(
        solved,
        gain=analysis.difference(comparison.paired(base, solved.run)) if base else None,
        lead=analysis.difference(comparison.paired(solved.run, beaten)) if beaten else None,
    )


def at_budget(solved: Sequence[Solved], evaluations: int) -> list[Solved]:
    """The runs with fixed sigma, and those of one number of evaluations (0: of solvers with their own settings)."""
    return [one for one in solved if one.name == BASE or one.budget == evaluations]


def with_several_budgets(solved: Sequence[Solved]) -> list[Solved]:
    """The runs of those networks on which some solver was run with several numbers of evaluations."""
    spent: dict[tuple[str, str], set[float]] = {}
    for one in solved:
        spent.setdefault((one.network, one.solver), set()).add(one.evaluations)
    several = {network for (network, _), evaluations in spent.items() if len(evaluations) > 1}
    return [one for one in solved if one.network in several]


def fit(one: Solved, wanted: RunConfig) -> tuple[bool, ...]:
    """Whether a run is of the wanted checkpoint, sigma, norm, data set; the largest of several fits best."""
    checkpoint = one.run.config.get("checkpoint") == wanted.checkpoint.removeprefix("zoo:")
    return checkpoint, *(one.run.config.get(name) == getattr(wanted, name) for name in ("sigma", "norm", "dataset"))


def of_one_network(solved: Sequence[Solved], study: Study) -> dict[str, Solved]:
    """The runs of one network by name: of the study's checkpoint and sigma where they are there, else the first."""
    network = max(solved, key=lambda one: fit(one, study.config)).network
    return {one.name: one for one in solved if one.network == network}


def reach_table(solved: Sequence[Solved]) -> str:
    """Markdown: images that a solver gave more than twice the noise of fixed sigma, and its gain without them.

    A constant answer shows as one class for nearly all of them.
    """
    bases, rows = {one.network: one for one in solved if one.name == BASE}, {}
    for one in solved:
        if one.name == BASE or (base := bases.get(one.network)) is None:
            continue
        far = {r.idx: r.predict for r in one.records if r.sigma > 2 * base.sigma}
        named = ("abstains" if answer == ABSTAIN else f"class {answer}" for answer in far.values())
        answers = Counter(named).most_common(1)
        near = [gain for gain in comparison.paired(base.run, one.run) if gain.idx not in far]
        rows[f"{one.network}: {one.name}"] = {
            "images with sigma_x > 2 sigma_0": str(len(far)),
            "most frequent answer there": "".join(f"{answer}, {count} times" for answer, count in answers),
            "gain over fixed": told(one.gain, one),
            "gain on the other images": str(analysis.difference(near)) if near else "",
        }
    return analysis.markdown(rows)


def table(solved: Sequence[Solved]) -> str:
    """Markdown: how the runs were made; accuracy, ACR, the differences and the costs of each."""
    rows = {}
    for one in solved:
        rows[f"{one.network}: {one.name}"] = {
            "certified at 0 (%)": f"{100 * analysis.certified_accuracy(one.records, 0):.1f}",
            "ACR": f"{analysis.average_certified_radius(one.records):.3f}",
            "gain over fixed": told(one.gain, one),
            f"{RIVAL} is better by": told(one.lead, one),
            "evaluations an image": f"{one.evaluations:,.0f}" if one.evaluations else "",
            "ms an image": f"{1000 * one.seconds:,.1f}" if one.evaluations else "",
            "images": str(len(one.records)),
            "N": f"{one.run.config['n']:,}",
        }
    searches: dict[str, list[Mapping[str, object]]] = {}
    for one in solved:
        if one.name != BASE:
            searches.setdefault(one.name, []).append(one.run.config)
    own = {name: circumstances(found, _USED.get(str(found[0]["solver"]), SEARCH)) for name, found in searches.items()}
    every = circumstances([one.run.config for one in solved], SHARED)
    settings = "; ".join([every, *(f"{name}: {said}" for name, said in own.items())])
    return f"Settings: {settings}.\n\n{analysis.markdown(rows)}"


def both_tables(solved: Sequence[Solved]) -> str:
    """Markdown: both tables, one below the other."""
    return f"{table(solved)}\n\nWhat comes from far above sigma_0:\n\n{reach_table(solved)}"


def told(difference: Difference | None, one: Solved) -> str:
    """A difference, with the images it is of where they are not all of the run's."""
    if difference is None:
        return ""
    return str(difference) + (f" ({difference.images} images)" if difference.images < len(one.records) else "")
