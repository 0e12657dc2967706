"""Grid search against Algorithm 1 and halving at equal cost, over several sigma (figure 8, appendix B of the paper).

<run_root>/<search>-<evaluations>/<run>, search one of ascent, halving, grid-n<samples>; <run_root>/fixed/<run>

Equal cost is the paper's count: noisy copies shown to the network, and a step back through it counts as one more.
For 200 Algorithm 1 with n = 1 makes 100 steps, and a search without gradients is shown 200 copies.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ddviz import ablation, analysis, comparison
from ddviz.ablation import BASE, RIVAL, Ablation, Solved
from ddviz.bench import prepare
from ddviz.config import RunConfig
from ddviz.experiment import Run, run_method
from ddviz.report import SEARCH, SHARED, circumstances, envelopes
from ddviz.sigma import Ascent, Solver

ASCENT = "ascent"
GRID = "grid-n"
_TOLD = {"halving": ("samples",), "grid": ("clamp", "sigma_max")}  # of Algorithm 1: all of SEARCH


@dataclass(frozen=True, kw_only=True)
class GridStudy(Ablation):
    """What to compare grids on: the parameters of `notebooks/ablation_grid.ipynb`, named as a run's.

    sigmas, grid_samples, evaluations: numbers separated by commas. checkpoint: {sigma} in it is filled in. evaluations:
    of the network an image, gradients included, that each search may make. grid_max: the largest scale of a grid.
    samples: n of Algorithm 1; halving takes as many as it can. clamp: 0 is 1 - alpha^(1/n) to two digits. promises:
    each search keeps those of section 3.4, within the same evaluations. results: a folder of earlier results to show,
    "": those of run_root.
    """

    _lists: ClassVar = ("sigmas", "grid_samples", "evaluations")

    dataset: str = RunConfig.dataset
    data_root: str = RunConfig.data_root
    norm: str = RunConfig.norm
    sigmas: str = "0.12,0.25"
    checkpoint: str = RunConfig.checkpoint
    grid_samples: str = "1,2,4,10"
    evaluations: str = "200"
    grid_max: float = 1.0
    samples: int = 1
    lr: float = RunConfig.lr
    clamp: float = 0.0
    promises: bool = False
    n0: int = RunConfig.n0
    n: int = 1_000
    alpha: float = RunConfig.alpha
    skip: int = RunConfig.skip
    max_images: int = 60
    seed: int = RunConfig.seed
    device: str = RunConfig.device
    dtype: str = RunConfig.dtype
    run_root: str = "runs/grid"
    results: str = ""

    @property
    def config(self) -> RunConfig:
        """The settings that all runs at the first sigma share."""
        return self._configs[0]

    @property
    def _configs(self) -> list[RunConfig]:
        sigmas = self._numbers("sigmas", float, 0)
        named = {sigma: self.checkpoint.replace("{sigma}", f"{sigma:g}") for sigma in sigmas}
        promises = dict.fromkeys(("keep_class", "keep_radius"), self.promises)
        return [self._shared(sigma=sigma, checkpoint=checkpoint, **promises) for sigma, checkpoint in named.items()]

    @property
    def to_run(self) -> list[dict[str, RunConfig]]:
        """The runs to make, by name, for each sigma; none where earlier results are shown."""
        return [] if self.results else self._runs()

    @property
    def planned(self) -> list[RunConfig]:
        return [config for runs in self.to_run for config in runs.values()]

    def _runs(self) -> list[dict[str, RunConfig]]:
        evaluations, samples = self._numbers("evaluations", int, 1), self._numbers("grid_samples", int, 1)
        return [configs(config, evaluations, samples, self.grid_max) for config in self._configs]

    def _check(self) -> None:
        self._check_least({"grid_max": 0})
        self._runs()  # names what cannot be before anything is loaded
        self._check_results(self.results)


def configs(
    config: RunConfig, evaluations: Sequence[int], grid_samples: Sequence[int], grid_max: float
) -> dict[str, RunConfig]:
    """Runs with fixed sigma and with each search held to each number of evaluations, by the names of their folders.

    Raises: InputError where a search needs more.
    """
    runs = {BASE: replace(config, method="fixed", run_root=f"{config.run_root}/{BASE}")}
    for most in evaluations:
        searches = {ASCENT: ("ascent-fast", "iterations", 1, {}), RIVAL: ("halving", "samples", 1, {})}
        for n in grid_samples:
            searches[f"{GRID}{n}"] = ("grid", "iterations", (n + 1) // 2, {"samples": n, "sigma_max": grid_max})
        for name, (solver, setting, least, own) in searches.items():
            start = {"method": "ds", "run_root": f"{config.run_root}/{name}-{most}", "iterations": least}
            ready = replace(config, **start | own, solver=solver)
            value = ablation.fitted(ready, solver, setting, least, most, cost)
            runs[f"{name}-{most}"] = replace(ready, **{setting: value})
    return runs


def solver_of(config: RunConfig) -> Solver:
    """The config's solver; Algorithm 1 without the estimate at the end of its path, which decides nothing."""
    solver = config.make_solver()
    return replace(solver, end_radius=False) if isinstance(solver, Ascent) else solver


def cost(config: RunConfig) -> int:
    """The evaluations and gradients of each image that the config's search will make."""
    gradients = config.iterations * config.samples if config.solver.startswith(ASCENT) else 0
    return solver_of(config).planned + gradients


def run(study: GridStudy) -> dict[str, Run]:
    """Make the runs of a study, sigma by sigma; resume where an earlier call stopped.

    Raises: InputError for what the user can put right; ResourceError where the machine's limits are met.
    """
    made = {}
    for named in study.to_run:
        bench = prepare(next(iter(named.values())))
        for name, config in named.items():
            own = replace(bench, config=config)
            made[f"sigma {config.sigma:g}: {name}"] = run_method(own, config.method, solver_of(config))
    return made


def read(study: str | Path) -> list[Solved]:
    """The finished runs of a folder by ascending sigma and network: fixed, Algorithm 1, halving, grids by n.

    Raises: InputError where there is none, or where a file lacks what is needed.
    """
    return sorted(
        ablation.read(study, (ASCENT, RIVAL, f"{GRID}...")),
        key=lambda one: (one.sigma, one.network, *_place(one), one.budget),
    )


def _place(one: Solved) -> tuple[int, int, str]:
    """Fixed, then Algorithm 1, halving, the grids by n, and others."""
    first = (BASE, ASCENT, RIVAL)
    if one.solver in first:
        return first.index(one.solver), 0, ""
    grid = re.fullmatch(rf"{GRID}(\d+)", one.solver)
    return (len(first), int(grid[1]), "") if grid else (len(first) + 1, 0, one.solver)


def label(name: str) -> str:
    """How figures and tables call a search, by the name of its folder without the evaluations."""
    return {ASCENT: "Algorithm 1", BASE: "fixed sigma"}.get(name, name.replace(GRID, "grid, n = "))


def family(one: Solved) -> str:
    """What networks that differ in sigma alone have in common: their name without it."""
    return "-".join(part for part in one.network.split("-") if part != f"{one.sigma:g}")


def of_study(solved: Sequence[Solved], study: GridStudy) -> list[Solved]:
    """The runs of those networks that differ in sigma alone: the study's where they are there, else the nearest."""
    wanted = family(max(solved, key=lambda one: ablation.fit(one, study.config)))
    return [one for one in solved if family(one) == wanted]


def by_sigma(solved: Sequence[Solved]) -> dict[float, dict[str, Solved]]:
    """The runs of one family with one number of evaluations: for each sigma those of each search, by its name."""
    return {
        sigma: {one.solver: one for one in solved if one.sigma == sigma}
        for sigma in dict.fromkeys(one.sigma for one in solved)
    }


def table(solved: Sequence[Solved]) -> str:
    """Markdown: how the runs were made; what each search wins, also against Algorithm 1, and costs."""
    rivals = {(one.network, one.budget): one for one in solved if one.solver == ASCENT}
    rows = {}
    for one in solved:
        rival = rivals.get((one.network, one.budget)) if one.solver not in (BASE, ASCENT) else None
        lead = analysis.difference(comparison.paired(one.run, rival.run)) if rival else None
        rows[f"{one.network}: {label(one.solver)}{f', {one.budget}' if one.budget else ''}"] = {
            "evaluations": f"{one.evaluations:,.0f}" if one.evaluations else "",
            "gradients": f"{one.gradients:,}" if one.gradients else "",
            "certified at 0 (%)": f"{100 * analysis.certified_accuracy(one.records, 0):.1f}",
            "ACR": f"{analysis.average_certified_radius(one.records):.3f}",
            "gain over fixed": ablation.told(one.gain, one),
            "Algorithm 1 is better by": ablation.told(lead, one),
            "images": str(len(one.records)),
            "N": f"{one.run.config['n']:,}",
        }
    every = [one.run.config for one in solved]
    told = [circumstances(every, (*SHARED, "keep_class", "keep_radius"))]
    for solver in dict.fromkeys(str(one.run.config["solver"]) for one in solved if one.name != BASE):
        own = [config for config in every if config.get("solver") == solver]
        told.append(f"{solver}: {circumstances(own, _TOLD.get(solver, SEARCH[1:]))}")
    return f"Settings: {'; '.join(told)}.\n\n{analysis.markdown(rows)}"


def envelope_table(solved: Sequence[Solved]) -> str:
    """Markdown: the best certified accuracy over sigma at each radius, in percent, of each search of one family."""
    radii = analysis.nice_radii([one.records for one in solved])
    named = [(label(one.solver) + (f", {one.budget}" if one.budget else ""), one.sigma, one.records) for one in solved]
    return analysis.markdown(envelopes(named, radii))
