"""Images a second of `certify` against the published loop, interleaved in one run on this machine.

    python tests/benchmarks/certify_speed.py [--arch cifar_resnet20] [--n 4000] [--rounds 7] [--device cpu]

The yardstick is the published certification loop (Cohen et al. 2019) as its authors describe it: repeat the image, add
randn noise, run the network in float32, argmax, count on the host. It gets the best of several batch sizes. Each
configuration has a process of its own, as it would in use: what one does to the memory allocator must not help or hurt
the others. One more row gives the published loop our setting of the allocator. Weights are random: speed does not
depend on them. The table gives medians; quote the ratios, machines drift.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import ddviz
from ddviz.certify import certificate, certify
from ddviz.inference import default_dtype
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize
from ddviz.sampling import Sampler, keep_freed_memory
from ddviz.smoothing import SMOOTHINGS

L2 = SMOOTHINGS["l2"]
BATCHES = {"resnet50": (8, 16, 32)}


@dataclass(frozen=True)
class Way:
    """One way to certify an image."""

    arch: str
    device: str
    n: int
    batch: int = 0
    dtype: str = "float32"
    published: bool = False
    tuned: bool = False

    def __str__(self) -> str:
        who = "published loop" if self.published else "ddviz"
        batch = f", batch {self.batch}" if self.batch else ""
        return f"{who}, {self.dtype}{batch}{', our allocator setting' if self.tuned else ''}"


@cache
def prepared(way: Way) -> Callable[[], object]:
    """A function that makes one certificate, ready to be timed."""
    torch.manual_seed(0)
    shape = {"digits_cnn": (1, 8, 8), "resnet50": (3, 224, 224)}.get(way.arch, (3, 32, 32))
    normalize = MEAN_STD["imagenet" if way.arch == "resnet50" else "cifar10"]
    inner = ARCHITECTURES[way.arch]()
    network = (inner if shape[0] == 1 else nn.Sequential(Normalize(*normalize), inner)).to(way.device).eval()
    x = torch.rand(shape, device=way.device)
    classes = network(x[None]).shape[1]
    if way.tuned:
        keep_freed_memory()
    if way.published:
        return lambda: published_certify(network, x, 0.25, 100, way.n, way.batch, classes)
    sampler = Sampler.prepare(network, x, device=way.device, dtype=way.dtype)
    return lambda: certify(sampler, x, 0.25, n=way.n)


def seconds(way: Way) -> float:
    """Time of one certificate, after one that warms up."""
    one = prepared(way)
    began = time.perf_counter()
    one()
    if way.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


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
    return certificate(chosen, count, n, sigma=sigma, alpha=0.001, smoothing=L2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="cifar_resnet20", choices=sorted(ARCHITECTURES))
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()

    common = (args.arch, args.device, args.n)
    batches = BATCHES.get(args.arch, (50, 100, 200, 400, 1000))
    ways = [Way(*common, batch, published=True) for batch in batches]
    ways += [Way(*common, batches[1], published=True, tuned=True)]
    ways += [
        Way(*common, dtype=dtype) for dtype in dict.fromkeys(["float32", default_dtype(torch.device(args.device))])
    ]
    spawn = multiprocessing.get_context("spawn")
    pools = {way: ProcessPoolExecutor(1, mp_context=spawn) for way in ways}
    times: dict[Way, list[float]] = {way: [] for way in ways}
    for round_ in range(args.rounds + 1):  # the first one only warms up
        for way, pool in pools.items():
            taken = pool.submit(seconds, way).result()
            if round_:
                times[way].append(taken)
    for pool in pools.values():
        pool.shutdown()

    medians = {way: statistics.median(taken) for way, taken in times.items()}
    best = min(median for way, median in medians.items() if way.published and not way.tuned)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, ddviz {ddviz.__version__}"
    print(f"{args.arch}, n0=100, n={args.n}, {args.rounds} rounds, {where}, {versions}\n")
    print("| how | images/s | samples/s | against the best published batch |\n|---|---:|---:|---:|")
    for way, median in medians.items():
        print(f"| {way} | {1 / median:.3f} | {(args.n + 100) / median:,.0f} | {best / median:.2f}x |")


if __name__ == "__main__":
    main()
