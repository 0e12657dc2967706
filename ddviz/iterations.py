"""How many steps of Algorithm 1 are worth their cost: certificates at several K along one path (figure 7 of the paper).

The noise of step k is named by (seed, image, k), whatever K is: the path to the largest K passes through the sigma_x of
every smaller one. It is found once and kept; at each K only the two promises are checked and the images certified.

<run_root>/path/<run>/paths.tsv   sigma^0 .. sigma^K of each image, and the radii estimated there
<run_root>/fixed/<run>            fixed sigma, which is K = 0
<run_root>/K-<K>/<run>            the run that `ddviz.run` makes with iterations=K
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddviz import ablation, analysis, comparison
from ddviz.ablation import BASE, Ablation, Solved
from ddviz.analysis import Array, Difference
from ddviz.bench import Bench, prepare
from ddviz.config import RunConfig
from ddviz.datasets import ImageSet, user_path
from ddviz.errors import InputError
from ddviz.experiment import Run, progress, run_method, search
from ddviz.records import AppendLog, read_rows
from ddviz.report import SEARCH, SHARED, circumstances
from ddviz.runfolder import Folder
from ddviz.sigma import Ascent, SigmaPath

STEM = "K"
NEAR = 0.95
"""The share of its best radius with which an image is said to have arrived."""

_COLUMNS = ["idx", "sigma", "radius", "evaluations", "seconds"]  # the long ones are not last: a torn row is left out


@dataclass(frozen=True, kw_only=True)
class IterationStudy(Ablation):
    """What to vary K on: the parameters of `notebooks/ablation_iterations.ipynb`, named as a run's.

    ks: the numbers of steps, separated by commas; fixed sigma is run as well, named 0 or not. clamp: 0 is
    1 - alpha^(1/n) to two digits. results: a folder of earlier results to show, "": those of run_root.
    """

    _lists: ClassVar = ("ks",)

    dataset: str = RunConfig.dataset
    data_root: str = RunConfig.data_root
    checkpoint: str = RunConfig.checkpoint
    norm: str = RunConfig.norm
    sigma: float = RunConfig.sigma
    ks: str = "0,10,25,50,100"
    solver: str = "ascent-fast"
    samples: int = RunConfig.samples
    lr: float = RunConfig.lr
    clamp: float = 0.0
    keep_class: bool = RunConfig.keep_class
    keep_radius: bool = RunConfig.keep_radius
    n0: int = RunConfig.n0
    n: int = 1_000
    alpha: float = RunConfig.alpha
    skip: int = RunConfig.skip
    max_images: int = 60
    seed: int = RunConfig.seed
    device: str = RunConfig.device
    dtype: str = RunConfig.dtype
    run_root: str = "runs/iterations"
    results: str = ""

    @property
    def config(self) -> RunConfig:
        """The run with the most steps, whose path all others are on."""
        return self._shared(method="ds", iterations=self._numbers("ks", int, 0)[-1])

    @property
    def to_run(self) -> dict[int, RunConfig]:
        """The runs to make, by K, fixed sigma as 0; none where earlier results are shown."""
        if self.results:
            return {}
        config = self.config
        runs = {0: replace(config, method="fixed", run_root=f"{config.run_root}/{BASE}")}
        steps = [k for k in self._numbers("ks", int, 0) if k]
        return runs | {k: replace(config, iterations=k, run_root=f"{config.run_root}/{STEM}-{k}") for k in steps}

    @property
    def planned(self) -> list[RunConfig]:
        runs = self.to_run  # one path serves all K
        return [replace(config, iterations=k if k == max(runs) else 0) for k, config in runs.items()]

    def _check(self) -> None:
        self._check_choices({"solver": ["ascent", "ascent-fast"]})
        if not self.config.iterations:
            raise InputError(f"expected ks to name a number of steps above 0, got {self.ks!r}.")
        self._check_results(self.results)


@dataclass(frozen=True)
class ImagePath:
    """One image's way through Algorithm 1: sigma^k and the radius estimated there, (K + 1,) each, row 0 the start."""

    sigma: NDArray[np.float32]
    radius: NDArray[np.float32]


@dataclass(frozen=True)
class PathFolder(Folder):
    """Where the paths of a network's images lie, with the settings that they were found with."""

    @property
    def paths(self) -> Path:
        """A row an image, appended a whole search batch at a time."""
        return self.path / "paths.tsv"

    def begun(self) -> bool:
        return self.paths.exists() and bool(self.paths.stat().st_size and read_rows(self.paths))

    def read(self) -> dict[int, ImagePath]:
        """The paths by image, none where none were kept; the last of an image is its longest."""
        rows = read_rows(self.paths) if self.begun() else []
        return {int(row["idx"]): ImagePath(*(_numbers(row[name]) for name in ("sigma", "radius"))) for row in rows}


def _numbers(cell: str) -> NDArray[np.float32]:
    return np.array(cell.split(","), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class KnownAscent(Ascent):
    """Algorithm 1 where the path of each image is known, as far as K at least: the promises are all it has to check.

    The evaluations that made the path as far as K count again.
    """

    known: Mapping[int, ImagePath]

    def _path(self, search, anchor) -> SigmaPath:
        search.evaluations += self._planned
        sigma, radius = (
            np.stack([getattr(self.known[index], name)[: self.iterations + 1] for index in search.indices], 1)
            for name in ("sigma", "radius")
        )
        sigma, radius = (torch.from_numpy(values).to(search.x.device) for values in (sigma, radius))
        return SigmaPath(sigma, radius, sigma[-1])


def run(study: IterationStudy, *, network: nn.Module | None = None, images: ImageSet | None = None) -> dict[int, Run]:
    """Find the paths, then certify at every K; resume where an earlier call stopped. The runs by K, 0 is fixed sigma.

    Each K's folder holds what `ddviz.run` leaves there with iterations=K, but for the seconds in its sigmas.tsv, which
    are those of the check alone. network, images: as for `ddviz.run`.

    Raises: InputError for what the user can put right; ResourceError where the machine's limits are met.
    """
    if not study.to_run:
        return {}
    bench = prepare(study.config, network, images)
    known, runs = _climb(bench), {}
    for k, config in study.to_run.items():
        solver = KnownAscent(**vars(config.make_solver()), known=known)
        runs[k] = run_method(replace(bench, config=config), config.method, solver)
    return runs


def _climb(bench: Bench) -> dict[int, ImagePath]:
    """The paths of all images to the config's K: those that are kept, and those still to be found.

    As in a run a batch is always searched whole, so that a resumed search rounds as an unbroken one.
    """
    folder = PathFolder(user_path(bench.config.run_root) / "path" / bench.folder("ds").path.name)
    identity, wanted = bench.identity("ds"), bench.config.iterations + 1
    del identity["iterations"]  # a path may grow
    with folder.locked():
        folder.check_identity(identity, bench.made_with)
        with AppendLog(folder.paths, _COLUMNS) as log:
            known = {index: path for index, path in folder.read().items() if len(path.sigma) >= wanted}
            done = len(known.keys() & set(bench.images.indices))
            with progress("paths", len(bench.images), done) as bar:
                for batch, todo in bench.batches(known.keys()):
                    known |= _found(bench, batch, todo, log)
                    bar.update(len(todo))
    return known


def _found(bench: Bench, batch: Sequence[int], todo: Sequence[int], log: AppendLog) -> dict[int, ImagePath]:
    began = time.perf_counter()
    path = search(bench, batch)
    each = round((time.perf_counter() - began) / len(batch), 4)
    columns = zip(batch, path.sigma.T.cpu().numpy(), path.radius.T.cpu().numpy(), strict=True)
    found = {index: ImagePath(sigma, radius) for index, sigma, radius in columns if index in todo}
    log.append(*((index, _cell(own.sigma), _cell(own.radius), path.evaluations, each) for index, own in found.items()))
    return found


def _cell(values: NDArray[np.float32]) -> str:
    return ",".join(map(str, values))  # the shortest that is read back as the same


@dataclass(frozen=True)
class Ladder:
    """One network's finished runs by K, ascending, fixed sigma as 0; and its images' paths, where they were kept."""

    network: str
    runs: Mapping[int, Solved]
    paths: Mapping[int, ImagePath]

    @property
    def last(self) -> int:
        """The largest K."""
        return max(self.runs)

    @cached_property
    def indices(self) -> list[int]:
        """The images that all runs have, in order."""
        return sorted(set.intersection(*({record.idx for record in one.records} for one in self.runs.values())))

    @cached_property
    def radii(self) -> Array:
        """Certified radius (runs, images) of those images, 0 where the answer is wrong, in [0,1]-pixel units."""
        runs = ({record.idx: record.certified for record in one.records} for one in self.runs.values())
        return np.array([[max(0.0, run[index]) for index in self.indices] for run in runs])

    @property
    def gains(self) -> dict[int, Difference]:
        """Mean gain over fixed sigma, by K."""
        return {k: one.gain for k, one in self.runs.items() if one.gain}

    @property
    def shares(self) -> dict[int, float]:
        """How much of the largest K's gain each K reaches; empty where that K gains nothing."""
        whole = self.gains[self.last].mean
        return {0: 0.0} | {k: gain.mean / whole for k, gain in self.gains.items()} if whole > 0 else {}

    @property
    def more(self) -> dict[int, Difference]:
        """Mean gain over the K before."""
        runs = pairwise(self.runs.items())
        return {k: analysis.difference(comparison.paired(before.run, one.run)) for (_, before), (k, one) in runs}

    @property
    def arrived(self) -> dict[int, float]:
        """Share of the images that have NEAR of their best radius over all K by each K, of those certified at any."""
        best = self.radii.max(0)
        if not best.any():
            return {}
        there = np.maximum.accumulate(self.radii >= NEAR * best, 0)[:, best > 0]
        return dict(zip(self.runs, there.mean(1).tolist(), strict=True))

    def spread(self, count: int = 8) -> list[int]:
        """At most `count` images with a path, evenly from the smallest radius with fixed sigma to the largest."""
        ranked = np.lexsort((self.radii[-1], self.radii[0]))
        order = [self.indices[place] for place in ranked if self.indices[place] in self.paths]
        places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        return [order[place] for place in places]


def read(study: str | Path) -> list[Ladder]:
    """The finished runs of a folder that `run` has made, network by network; those without fixed sigma are left out.

    Raises: InputError where there is none, or where a file lacks what is needed.
    """
    root, ladders = user_path(study), []
    solved = [one for one in ablation.read(study, (f"{STEM}-...",)) if one.name == BASE or one.solver == STEM]
    for network in dict.fromkeys(one.network for one in solved):
        runs = {one.budget: one for one in solved if one.network == network}
        if 0 in runs and len(runs) > 1:
            ladders.append(Ladder(network, runs, PathFolder(root / "path" / f"{network}-ds").read()))
    if not ladders:
        raise InputError(f"expected runs in {root}/{BASE} and {root}/{STEM}-... of the same network, found none.")
    return ladders


def of_study(ladders: Sequence[Ladder], study: IterationStudy) -> Ladder:
    """The network of the study's checkpoint, sigma, norm and data set where it is there, else the nearest."""
    return max(ladders, key=lambda ladder: ablation.fit(ladder.runs[0], study.config))


def table(ladders: Sequence[Ladder]) -> str:
    """Markdown: how the runs were made; what each K costs and wins, and how much more that is than the K before."""
    rows = {}
    for ladder in ladders:
        shares, more = ladder.shares, ladder.more
        for k, one in ladder.runs.items():
            rows[f"{ladder.network}: {f'{STEM} = {k}' if k else BASE}"] = {
                "evaluations an image": f"{one.evaluations:,.0f}" if k else "",
                "certified at 0 (%)": f"{100 * analysis.certified_accuracy(one.records, 0):.1f}",
                "ACR": f"{analysis.average_certified_radius(one.records):.3f}",
                "gain over fixed": ablation.told(one.gain, one),
                "of the last gain": f"{100 * shares[k]:.0f} %" if k and shares else "",
                "more than the K before": ablation.told(more.get(k), one),
                "images": str(len(one.records)),
                "N": f"{one.run.config['n']:,}",
            }
    configs = [one.run.config for ladder in ladders for k, one in ladder.runs.items() if k]
    used = (*SHARED, *(name for name in SEARCH if name != "iterations"), "keep_class", "keep_radius")
    return f"Settings: {circumstances(configs, used)}.\n\n{analysis.markdown(rows)}"
