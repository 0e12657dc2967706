"""Images a second of `certify` against the published loop, interleaved in one run on this machine.

    python tests/benchmarks/certify_speed.py [--arch cifar_resnet20] [--n 4000] [--rounds 7] [--device cpu]

The yardstick is the published certification loop (Cohen et al. 2019) as its authors describe it: repeat the image, add
randn noise, run the network in float32, argmax, count on the host. It runs at its default batch and at others, of which
the best counts. Each configuration has a process of its own, as it would in use: what one does to the memory allocator
must not help or hurt the others. One more row gives the published loop our setting of the allocator.

The last column says what part of the machine's own rate a way reaches: its multiplications and additions in the
network's layers, against those of the best square matrix product in the same precision, measured in the same rounds.
Weights are random: speed does not depend on them. The table gives medians; quote the ratios, machines drift.
"""

import argparse
import importlib.util
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ddviz
from ddviz.backends import BACKENDS
from ddviz.budget import lower_confidence_bound
from ddviz.certify import certificate, certify
from ddviz.inference import DTYPES, default_dtype
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize
from ddviz.sampling import Sampler, keep_freed_memory
from ddviz.smoothing import SMOOTHINGS

L2 = SMOOTHINGS["l2"]
DEFAULT_BATCH = 1000  # of the published loop
BATCHES = {"resnet50": (8, 16, 32)}
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # of matrices whose product is a device's best
N0 = 100


@dataclass(frozen=True)
class Way:
    """One way to certify an image."""

    arch: str
    device: str
    n: int
    batch: int = 0
    dtype: str = "float32"
    backend: str = ""
    tuned: bool = False

    @property
    def published(self) -> bool:
        """Whether it is the published loop, which knows no back ends."""
        return not self.backend

    def __str__(self) -> str:
        who = f"ddviz, {self.backend}" if self.backend else "published loop"
        batch = f", batch {self.batch}" if self.batch else ""
        default = " (its default)" if self.published and self.batch == DEFAULT_BATCH else ""
        return f"{who}, {self.dtype}{batch}{default}{', our allocator setting' if self.tuned else ''}"

    def seconds(self) -> float:
        """Time of one certificate."""
        return timed(prepared(self), self.device)


@dataclass(frozen=True)
class Product:
    """The product of two square matrices, as a measure of the machine."""

    device: str
    dtype: str
    size: int

    def seconds(self) -> float:
        """Time of one product."""
        a, b = torch.rand(2, self.size, self.size, device=self.device).to(DTYPES[self.dtype])
        repeats = max(1, 2**32 // self.size**3)
        _ = a @ b
        return timed(lambda: [a @ b for _ in range(repeats)], self.device) / repeats

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.size**3


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds that some work takes, on a GPU by its own clock."""
    if device == "cpu":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def example(arch: str, device: str) -> tuple[nn.Module, Tensor]:
    """A network of random weights that normalises its pixels, and an image for it."""
    torch.manual_seed(0)
    shape = {"digits_cnn": (1, 8, 8), "resnet50": (3, 224, 224)}.get(arch, (3, 32, 32))
    normalize = MEAN_STD["imagenet" if arch == "resnet50" else "cifar10"]
    inner = ARCHITECTURES[arch]()
    network = (inner if shape[0] == 1 else nn.Sequential(Normalize(*normalize), inner)).to(device).eval()
    return network, torch.rand(shape, device=device)


def operations(arch: str) -> int:
    """Multiplications and additions in the convolutions and matrix products of a network, an image."""
    network, x = example(arch, "cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x[None])
    return counter.get_total_flops()


@cache
def prepared(way: Way) -> Callable[[], object]:
    """A function that makes one certificate, ready to be timed."""
    network, x = example(way.arch, way.device)
    with torch.no_grad():
        classes = network(x[None]).shape[1]
    if way.tuned:
        keep_freed_memory()
    if way.published:
        return lambda: published_certify(network, x, 0.25, N0, way.n, way.batch, classes)
    sampler = Sampler.prepare(network, x, device=way.device, dtype=way.dtype, backend=way.backend)
    return lambda: certify(sampler, x, 0.25, n0=N0, n=way.n)


def published_counts(network: nn.Module, x: Tensor, sigma: float, n: int, batch: int, classes: int) -> np.ndarray:
    """Class counts as the published loop makes them."""
    counts = np.zeros(classes, dtype=int)
    with torch.no_grad():
        for _ in range(math.ceil(n / batch)):
            size = min(batch, n)
            n -= size
            copies = x.repeat((size, 1, 1, 1))
            noise = torch.randn_like(copies) * sigma
            for label in network(copies + noise).argmax(1).cpu().numpy():
                counts[label] += 1
    return counts


def published_certify(network: nn.Module, x: Tensor, sigma: float, n0: int, n: int, batch: int, classes: int) -> object:
    """One certificate by the published procedure."""
    chosen = int(published_counts(network, x, sigma, n0, batch, classes).argmax())
    count = int(published_counts(network, x, sigma, n, batch, classes)[chosen])
    return certificate(chosen, lower_confidence_bound(count, n, 0.001), count, n, sigma=sigma, smoothing=L2)


def ways_to_compare(arch: str, device: str, n: int) -> tuple[list[Way], list[str]]:
    """The ways that this machine has, and why it has no others."""
    batches, left_out = BATCHES.get(arch, (50, 100, 200, 400)), []
    if arch in BATCHES and device == "cpu":
        left_out.append(f"batch {DEFAULT_BATCH}, the published default, left out: it takes tens of gigabytes")
    else:
        batches += (DEFAULT_BATCH,)
    ways = [Way(arch, device, n, batch) for batch in batches]
    ways += [Way(arch, device, n, batches[1], tuned=True)]
    low = default_dtype(torch.device(device))
    ways += [Way(arch, device, n, dtype=dtype, backend="torch") for dtype in dict.fromkeys(["float32", low])]
    others = {"cpu": "openvino", "cuda": "compile"}
    if missing := [package for package in BACKENDS[others[device]].packages if not importlib.util.find_spec(package)]:
        left_out.append(f"backend {others[device]} left out: {missing[0]} is not installed")
    else:
        ways.append(Way(arch, device, n, dtype=low, backend=others[device]))
    return ways, left_out


def measured(tasks: list[Way | Product], rounds: int) -> dict[Way | Product, float]:
    """Median seconds of each task in interleaved rounds, each task in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    pools = {task: ProcessPoolExecutor(1, mp_context=spawn) for task in tasks}
    times: dict[Way | Product, list[float]] = {task: [] for task in tasks}
    for round_ in range(rounds + 1):  # the first one only warms up
        for task, pool in pools.items():
            taken = pool.submit(task.seconds).result()
            if round_:
                times[task].append(taken)
    for pool in pools.values():
        pool.shutdown()
    return {task: statistics.median(taken) for task, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="cifar_resnet20", choices=sorted(ARCHITECTURES))
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    ways, left_out = ways_to_compare(args.arch, args.device, args.n)
    dtypes = list(dict.fromkeys(way.dtype for way in ways))
    products = [Product(args.device, dtype, size) for dtype in dtypes for size in SIZES[args.device]]
    medians = measured([*ways, *products], args.rounds)

    rate = {dtype: max(p.operations / medians[p] for p in products if p.dtype == dtype) for dtype in dtypes}
    best = min(medians[way] for way in ways if way.published and not way.tuned)
    default = next((medians[way] for way in ways if way.batch == DEFAULT_BATCH), math.nan)
    an_image = operations(args.arch)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    packages = {
        name: version for way in ways if way.backend for name, version in BACKENDS[way.backend].versions.items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in {**packages, "ddviz": ddviz.__version__}.items())
    print(f"{args.arch} ({an_image / 1e6:.1f} MFLOP), n0={N0}, n={args.n}, {args.rounds} rounds, {where}, {versions}.")
    print(f"Load of the machine at the start: {load:.1f}. Best matrix product:", end=" ")
    print(", ".join(f"{dtype} {flops / 1e9:,.0f} GFLOP/s" for dtype, flops in rate.items()), end=".\n")
    print(*left_out, sep="\n")
    print("| how | images/s | samples/s | against its default batch | against its best batch | of the matrix product |")
    print("|---|---:|---:|---:|---:|---:|")
    for way in ways:
        samples = (args.n + N0) / medians[way]
        ratios = (
            f"{default / medians[way]:.2f}x | {best / medians[way]:.2f}x | {samples * an_image / rate[way.dtype]:.0%}"
        )
        print(f"| {way} | {1 / medians[way]:.3f} | {samples:,.0f} | {ratios} |")


if __name__ == "__main__":
    main()
