"""A run: certify a data set with one method, in a folder that survives being killed at any moment.

The folder of a run holds

    config.json       everything that decides the result, with the hashes of model and images
    sigmas.tsv        noise scale of each image (data-dependent runs), appended a whole search batch at a time
    certificates.tsv  raw certificates, appended and flushed one an image, in any order
    records.tsv       the records after the memory, in order of index, written whole

The costly stages are independent for each image and resume where they stopped. The memory depends on the order, is
cheap, and is replayed over all images in order of index.
"""

import copy
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from ddviz import datasets, models
from ddviz.certify import certify
from ddviz.config import METHODS, RunConfig
from ddviz.datasets import ImageSet
from ddviz.errors import InputError, ResourceError, explained_memory_errors
from ddviz.inference import default_dtype
from ddviz.memory import Answer, Case, replay
from ddviz.models import BaseClassifier
from ddviz.records import (
    AppendLog,
    Record,
    explained_disk_errors,
    read_records,
    read_rows,
    write_atomically,
    write_records,
)
from ddviz.sampling import Sampler
from ddviz.smoothing import SMOOTHINGS

RECORD_COLUMNS = list(Record.__dataclass_fields__)
_SELF_TEST_IMAGES = 32
_LOCK_WAIT = 30  # seconds: a killed kernel lives on for a moment and holds its lock
_PROGRESS_EVERY = 5  # seconds


@dataclass(frozen=True)
class Run:
    """One finished run: its certificates as drawn, its records after the memory, and what the memory did to each.

    seconds: time spent certifying; search_seconds: time spent choosing noise scales, both over all sessions.
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


@dataclass(frozen=True)
class _Bench:
    """Everything loaded and tested, ready to certify."""

    config: RunConfig
    images: ImageSet
    base: BaseClassifier
    network: nn.Module
    sampler: Sampler
    identity: dict[str, object]

    @property
    def search_batch(self) -> int:
        """Images in one batch of the search; part of the identity, since kernels round by batch."""
        if self.config.search_batch:
            return self.config.search_batch
        return 128 if self.images.image(self.images.indices[0]).numel() <= 3 * 64 * 64 else 8


def run(config: RunConfig, *, network: nn.Module | None = None, images: ImageSet | None = None) -> Experiment:
    """Certify the images of a config with each of its methods; resume where an earlier call stopped.

    network, images: your own instead of those that the config names; any nn.Module from pixels in [0, 1] to logits.

    Raises: InputError for what the user can put right; ResourceError where the machine's limits are met.
    """
    bench = _prepare(config, network, images)
    return Experiment(config, bench.images, bench.base, {METHODS[m]: _run_method(bench, m) for m in config.methods})


def run_folder(config: RunConfig, model: str, method: str) -> Path:
    """Folder of one method's run: run_root/<data set>-<model>-<norm>-<scale>-<method>."""
    dataset = Path(config.dataset).name
    return Path(config.run_root).expanduser() / f"{dataset}-{model}-{config.norm}-{config.sigma:g}-{method}"


def _prepare(config: RunConfig, network: nn.Module | None, images: ImageSet | None) -> _Bench:
    """Load, test and fingerprint everything before the first certificate."""
    if images is None:
        images = datasets.load(
            config.dataset,
            data_root=config.data_root,
            skip=config.skip,
            max_images=config.max_images,
            download=config.download,
            image_size=config.image_size,
        )
    if network is None:
        base = models.load(
            config.dataset,
            checkpoint=config.checkpoint,
            arch=config.arch,
            normalize=config.normalize,
            sigma=config.sigma,
        )
    else:
        base = BaseClassifier(network, type(network).__name__, arch="", normalize="as given")
    kind = config.device
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if kind == "auto" else kind)
    dtype = default_dtype(device) if config.dtype == "auto" else config.dtype
    step = max(1, len(images) // _SELF_TEST_IMAGES)
    probes = images.indices[::step][:_SELF_TEST_IMAGES]
    pixels = images.images(probes)
    models.self_test(base, pixels, torch.tensor([images.labels[i] for i in probes]), len(images.classes))
    on_device = copy.deepcopy(base.network).to(device).eval()
    with explained_memory_errors("batch", config.batch):
        sampler = Sampler.prepare(
            on_device, pixels[0], device=device, dtype=dtype, batch=config.batch, num_classes=len(images.classes)
        )
    identity = config.deciding | {
        "device": device.type,
        "dtype": dtype,
        "batch": sampler.batch,
        "checkpoint": base.name,
        "model": base.digest,
        "images": _fingerprint(images, pixels[0]),
    }
    return _Bench(config, images, base, on_device, sampler, identity)


def _fingerprint(images: ImageSet, first: Tensor) -> str:
    """Hash of the data set: its classes, the labels of the whole split, and one image's pixels."""
    sha = hashlib.sha256(repr((images.classes, list(images.labels))).encode())
    sha.update(first.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def _run_method(bench: _Bench, method: str) -> Run:
    """Certify what is missing in one method's folder, then replay the memory."""
    folder = run_folder(bench.config, bench.base.name, method)
    with _locked(folder):
        _check_identity(folder, bench.identity | {"method": method, "search_batch": bench.search_batch})
        path = folder / "certificates.tsv"
        with AppendLog(path, [*RECORD_COLUMNS, "seconds"]) as log:
            done = {record.idx for record in read_records(path)}.intersection(bench.images.indices)
            with _progress(METHODS[method], len(bench.images), len(done)) as progress:
                for start in range(0, len(bench.images), bench.search_batch):
                    batch = bench.images.indices[start : start + bench.search_batch]
                    if todo := [index for index in batch if index not in done]:
                        scales = _scales(bench, method, folder, batch)
                        for index in todo:
                            log.append(_certified_row(bench, index, scales[index]))
                            progress.update()
        return _finish(bench, METHODS[method], folder)


def _scales(bench: _Bench, method: str, folder: Path, batch: Sequence[int]) -> dict[int, float]:
    """Noise scale of each image of a batch: sigma for all, or found by the solver and kept in sigmas.tsv.

    The batch is always searched whole, so that a resumed search rounds as an unbroken one.
    """
    if method == "fixed":
        return dict.fromkeys(batch, bench.config.sigma)
    path = folder / "sigmas.tsv"
    with AppendLog(path, ["idx", "sigma", "seconds"]) as log:
        known = {int(row["idx"]): float(row["sigma"]) for row in read_rows(path)}
        if not known.keys() >= set(batch):
            began = time.perf_counter()
            found = dict(zip(batch, _search(bench, batch), strict=True))
            each = (time.perf_counter() - began) / len(batch)
            log.append(*((index, scale, each) for index, scale in found.items() if index not in known))
            known = found | known
    return known


def _search(bench: _Bench, indices: Sequence[int]) -> list[float]:
    with explained_memory_errors("search_batch", len(indices)):
        path = bench.config.make_solver()(
            bench.network,
            bench.images.images(indices).to(bench.sampler.device),
            bench.config.sigma,
            smoothing=SMOOTHINGS[bench.config.norm],
            seed=bench.config.seed,
            indices=indices,
        )
    return path.chosen.tolist()


def _certified_row(bench: _Bench, index: int, sigma: float) -> list[object]:
    """Certify one image: its record with the seconds it took."""
    began = time.perf_counter()
    config = bench.config
    result = certify(
        bench.sampler,
        bench.images.image(index),
        sigma,
        n0=config.n0,
        n=config.n,
        alpha=config.alpha,
        smoothing=SMOOTHINGS[config.norm],
        seed=config.seed,
        index=index,
    )
    label = bench.images.labels[index]
    record = Record(idx=index, label=label, correct=int(result.predict == label), **asdict(result))
    return [*asdict(record).values(), round(time.perf_counter() - began, 4)]


def _finish(bench: _Bench, name: str, folder: Path) -> Run:
    """Replay the memory over the certificates in order of index and write the records."""
    path = folder / "certificates.tsv"
    wanted = set(bench.images.indices)
    certificates = sorted((r for r in read_records(path) if r.idx in wanted), key=lambda record: record.idx)
    pixels = ((bench.images.image(record.idx).numpy(), record) for record in certificates)
    records, answers = replay(pixels, bench.config.norm)
    write_records(folder / "records.tsv", records)
    sigmas = folder / "sigmas.tsv"
    return Run(
        name=name,
        folder=folder,
        certificates=certificates,
        records=records,
        answers=answers,
        seconds=_seconds(path, wanted),
        search_seconds=_seconds(sigmas, wanted) if sigmas.exists() else 0.0,
    )


def _seconds(path: Path, wanted: set[int]) -> float:
    return sum(float(row["seconds"]) for row in read_rows(path) if int(row["idx"]) in wanted)


@contextmanager
def _progress(name: str, total: int, done: int) -> Iterator[tqdm]:
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time writes a run's folder."""
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=_LOCK_WAIT)
        except Timeout:
            raise ResourceError(
                f"another process is writing {folder}. Wait until it is done, stop it, or choose another run_root."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _check_identity(folder: Path, identity: dict[str, object]) -> None:
    """Write config.json into a new folder; refuse to mix settings in an old one."""
    path = folder / "config.json"
    if not path.exists():
        if (folder / "certificates.tsv").exists():
            raise InputError(
                f"expected {path} beside certificates.tsv, found none. Remove {folder}, or choose another run_root."
            )
        write_atomically(path, json.dumps(identity, indent=2) + "\n")
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Remove {folder}, or choose another run_root.") from error
    for name in identity | stored:
        if stored.get(name) != identity.get(name):
            raise InputError(
                f"{name} was {stored.get(name)!r} when {folder} was begun and is {identity.get(name)!r} "
                "now. Set it back to "
                "resume that run, or choose another run_root, or remove the folder."
            )
