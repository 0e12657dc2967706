"""A run: certify a data set with one method, in a folder that survives being killed at any moment.

The costly stages are independent for each image and resume where they stopped. The memory depends on the order, is
cheap, and is replayed over all images in order of index.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddviz.bench import Bench, prepare
from ddviz.certify import certify
from ddviz.config import METHODS, RunConfig
from ddviz.datasets import ImageSet
from ddviz.errors import InputError, explained_memory_errors
from ddviz.jobs import Token
from ddviz.memory import Answer, Case, replay
from ddviz.models import BaseClassifier
from ddviz.records import Record, is_correct, read_rows, write_records
from ddviz.runfolder import RunFolder, pixel_hash
from ddviz.sampling import side_by_side
from ddviz.sigma import SigmaPath, Solver

_PROGRESS_EVERY = 5  # seconds


@dataclass(frozen=True)
class Run:
    """One finished run: its certificates as drawn, its records, and what the memory did to each.

    Fixed sigma is one smoothed classifier, sound as it is: its records are its certificates and it has no answers of
    a memory. seconds: time spent certifying; search_seconds: time spent choosing noise scales, both over all sessions.
    """

    name: str
    folder: Path
    certificates: list[Record]
    records: list[Record]
    answers: list[Answer]
    seconds: float
    search_seconds: float

    @property
    def costs(self) -> dict[str, str]:
        """What the run took, for a table."""
        samples = sum(record.n for record in self.certificates)
        return {
            "images": str(len(self.certificates)),
            "samples an image": f"{samples / len(self.certificates):,.0f}" if self.certificates else "-",
            "certifying (s)": f"{self.seconds:.1f}",
            "choosing sigma (s)": f"{self.search_seconds:.1f}",
            "samples/s": f"{samples / self.seconds:,.0f}" if self.seconds else "-",
        }

    @property
    def memory_cases(self) -> dict[str, str]:
        """How often the memory did what, for a table."""
        return {case: str(sum(answer.case == case for answer in self.answers)) for case in get_args(Case)}


@dataclass(frozen=True)
class Experiment:
    """The runs of a config on the same images, by the names that figures show, and what they were run on."""

    config: RunConfig
    images: ImageSet
    base: BaseClassifier
    runs: dict[str, Run]


def run(config: RunConfig, *, network: nn.Module | None = None, images: ImageSet | None = None) -> Experiment:
    """Certify the images of a config with each of its methods; resume where an earlier call stopped.

    network, images: your own instead of those that the config names; any nn.Module from pixels in [0, 1] to logits.

    Raises: InputError for what the user can put right; ResourceError where the machine's limits are met.
    """
    bench = prepare(config, network, images)
    return Experiment(config, bench.images, bench.base, {METHODS[m]: run_method(bench, m) for m in config.methods})


def run_method(bench: Bench, method: str, solver: Solver | None = None) -> Run:
    """Certify what is missing in one method's folder, then replay the memory.

    solver: in place of the one that the config describes; it must choose the same scales.
    """
    folder = bench.folder(method)
    with folder.locked():
        folder.check_identity(bench.identity(method), bench.made_with)
        with folder.log_certificates() as log:
            done = {record.idx for record in folder.read_certificates()[0]}.intersection(bench.images.indices)
            with progress(METHODS[method], len(bench.images), len(done)) as bar:
                for batch, todo in bench.batches(done):
                    scales = _scales(bench, method, folder, batch, solver)
                    for index in todo:
                        log.append(_certified_row(bench, index, scales[index]))
                        bar.update()
        return _finish(bench, method, folder)


def _scales(
    bench: Bench, method: str, folder: RunFolder, batch: Sequence[int], solver: Solver | None
) -> dict[int, float]:
    """Noise scale of each image of a batch: sigma for all, or found by the solver and kept in sigmas.tsv.

    The batch is always searched whole, so that a resumed search rounds as an unbroken one.
    """
    if method == "fixed":
        return dict.fromkeys(batch, bench.config.sigma)
    with folder.log_sigmas() as log:
        known = {int(row["idx"]): float(row["sigma"]) for row in read_rows(folder.sigmas)}
        if not known.keys() >= set(batch):
            began = time.perf_counter()
            path = search(bench, batch, solver)
            each = round((time.perf_counter() - began) / len(batch), 4)
            found = dict(zip(batch, path.chosen.tolist(), strict=True))
            new = (index for index in batch if index not in known)
            log.append(*((index, found[index], path.evaluations, each) for index in new))
            known = found | known
    return known


def search(bench: Bench, indices: Sequence[int], solver: Solver | None = None) -> SigmaPath:
    """What the solver finds for some images, through the network in the form that suits the config's solver.

    Images are searched one share a core; none depends on those beside it, but for rounding.
    """
    config, token = bench.config, Token()
    own = config.make_solver()
    network, solver = token.watch(bench.form(own)), solver or own

    def found_in(share: Sequence[int]) -> SigmaPath:
        x = torch.stack([bench.image(index) for index in share]).to(bench.sampler.device)
        settings = {"smoothing": config.norm, "seed": config.seed, "indices": share}
        return solver(network, x, config.sigma, **settings)

    with explained_memory_errors("search_batch", len(indices)):
        workers = min(bench.sampler.workers, len(indices))
        try:
            paths = side_by_side(workers, *(partial(found_in, indices[worker::workers]) for worker in range(workers)))
        except BaseException:  # an interrupt, too: the other shares would go on without us
            token.cancel()
            raise
    shares = torch.cat([torch.arange(worker, len(indices), workers) for worker in range(workers)])
    order = shares.argsort().to(bench.sampler.device)
    sigma, radius, chosen = (
        torch.cat([getattr(path, name) for path in paths], -1).index_select(-1, order)
        for name in ("sigma", "radius", "chosen")
    )
    return SigmaPath(sigma, radius, chosen, paths[0].evaluations)


def _certified_row(bench: Bench, index: int, sigma: float) -> list[object]:
    """Certify one image: its record, the hash of its pixels, the seconds it took."""
    began = time.perf_counter()
    config, image, label = bench.config, bench.image(index), int(bench.images.labels[index])
    result = certify(
        bench.sampler,
        image,
        sigma,
        n0=config.n0,
        budget=config.sample_budget,
        smoothing=config.norm,
        seed=config.seed,
        index=index,
    )
    record = Record(
        idx=index,
        label=label,
        predict=result.predict,
        radius=result.radius,
        correct=is_correct(result.predict, label),
        sigma=result.sigma,
        p_lower=result.p_lower,
        count=result.count,
        n=result.n,
    )
    return [*asdict(record).values(), pixel_hash(image), round(time.perf_counter() - began, 4)]


def _finish(bench: Bench, method: str, folder: RunFolder) -> Run:
    """Replay the memory over all certificates of the folder in order of index, and write the records.

    A run of fewer images than the folder holds is given its part; the file keeps them all.
    """
    certificates, hashes = folder.read_certificates()
    pairs = _with_pixels(bench, certificates, hashes, folder)
    records, answers = ([record for _, record in pairs], []) if method == "fixed" else replay(pairs, bench.config.norm)
    write_records(folder.records, records)
    wanted = set(bench.images.indices)
    return Run(
        name=METHODS[method],
        folder=folder.path,
        certificates=[record for record in certificates if record.idx in wanted],
        records=[record for record in records if record.idx in wanted],
        answers=[answer for answer, record in zip(answers, certificates, strict=False) if record.idx in wanted],
        seconds=folder.seconds(folder.certificates, wanted),
        search_seconds=folder.seconds(folder.sigmas, wanted),
    )


def _with_pixels(
    bench: Bench, certificates: Sequence[Record], hashes: dict[int, str], folder: RunFolder
) -> Iterator[tuple[Tensor, Record]]:
    """Each certificate with the pixels that it was drawn for."""
    for record in certificates:
        image = bench.image(record.idx)
        if pixel_hash(image) != hashes[record.idx]:
            raise InputError(
                f"image {record.idx} of {bench.images.name} is not the one that was certified in {folder.path}: the "
                "file changed since. Put it back, or choose another run_root, or remove the folder."
            )
        yield image, record


@contextmanager
def progress(name: str, total: int, done: int) -> Iterator[tqdm]:
    """Images done, rate and time left; a line every few seconds, readable in a headless log."""
    with tqdm(
        total=total,
        initial=done,
        desc=name,
        unit="image",
        mininterval=_PROGRESS_EVERY,
        maxinterval=_PROGRESS_EVERY,
        ncols=100,
        file=sys.stdout,
    ) as bar:
        yield bar
