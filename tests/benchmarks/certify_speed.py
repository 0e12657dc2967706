"""Images a second of `certify` against the published loop, interleaved in one run on this machine.

    python tests/benchmarks/certify_speed.py [--arch cifar_resnet20] [--n 4000] [--rounds 7] [--device cpu]

The yardstick is the published certification loop (Cohen et al. 2019) as its authors describe it: repeat the image, add
randn noise, run the network in float32, argmax, count on the host. It gets the best of several batch sizes. Weights are
random: speed does not depend on them. The table gives medians; quote the ratios, machines drift.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import ddviz
from ddviz.certify import certificate, certify
from ddviz.inference import default_dtype
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize
from ddviz.sampling import Sampler
from ddviz.smoothing import SMOOTHINGS

L2 = SMOOTHINGS["l2"]
BATCHES = (50, 100, 200, 400, 1000)


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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device(args.device)
    shape = {"digits_cnn": (1, 8, 8), "resnet50": (3, 224, 224)}.get(args.arch, (3, 32, 32))
    normalize = MEAN_STD["imagenet" if args.arch == "resnet50" else "cifar10"]
    inner = ARCHITECTURES[args.arch]()
    network = (inner if shape[0] == 1 else nn.Sequential(Normalize(*normalize), inner)).to(device).eval()
    x = torch.rand(shape, device=device)
    classes = network(x[None]).shape[1]

    runs: dict[str, Callable[[], object]] = {}
    for batch in BATCHES if args.arch != "resnet50" else (8, 16, 32):
        runs[f"published loop, float32, batch {batch}"] = lambda batch=batch: published_certify(
            network, x, 0.25, 100, args.n, batch, classes
        )
    for dtype in dict.fromkeys(["float32", default_dtype(device)]):
        sampler = Sampler.prepare(network, x, device=device, dtype=dtype)
        runs[f"ddviz, {dtype}, batch {sampler.batch}"] = lambda sampler=sampler: certify(sampler, x, 0.25, n=args.n)

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(args.rounds + 1):  # the first one only warms up
        for name, one in runs.items():
            began = time.perf_counter()
            one()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - began)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(median for name, median in medians.items() if name.startswith("published"))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, ddviz {ddviz.__version__}"
    print(f"{args.arch}, n0=100, n={args.n}, {args.rounds} rounds, {where}, {versions}")
    print("| how | images/s | samples/s | against the best published batch |\n|---|---:|---:|---:|")
    for name, median in medians.items():
        print(f"| {name} | {1 / median:.3f} | {(args.n + 100) / median:,.0f} | {best / median:.2f}x |")


if __name__ == "__main__":
    main()
