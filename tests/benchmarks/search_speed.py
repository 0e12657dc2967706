"""Milliseconds an image to choose sigma_x, by each solver, interleaved in one run on this machine.

    python tests/benchmarks/search_speed.py [--images 32] [--rounds 3] [--dtype auto]

The yardstick is Algorithm 1 with the paper's settings (one sample a step, the network as it is). Steps cost the same
each: 900 are taken to be nine times 100. Every solver gets what a run gives it: the form of the network that suits it,
and a core for each share of the images. The network is the zoo's ResNet-20; images are random, since speed does not
depend on them. What the choices are worth: notebooks/results/README.md. The table gives medians; quote the ratios,
machines drift.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

import torch

import ddviz
from ddviz.bench import Bench, prepare
from ddviz.datasets import ImageSet
from ddviz.experiment import search
from ddviz.models import pretrained

PAPER = {"lr": 1e-4, "samples": 1, "clamp": 0.02, "keep_class": False, "keep_radius": False}
PUBLISHED = "Algorithm 1, K 100, n 1 (the paper's)"
SETTINGS = {
    PUBLISHED: {"solver": "ascent", **PAPER},
    "ascent-fast, K 100, n 1": {"solver": "ascent-fast", **PAPER},
    "ascent, K 100, n 4, promises checked": {"solver": "ascent"},
    "ascent-fast, K 100, n 4, promises checked": {"solver": "ascent-fast"},
    "grid, 200 evaluations (the paper's)": {"solver": "grid", **PAPER},
    "halving, promises checked (the default)": {},
    "halving": {"keep_class": False, "keep_radius": False},
    "halving, n 2": {"samples": 2, "keep_class": False, "keep_radius": False},
}
"""Settings of a run by the name of their row."""


def seconds(bench: Bench) -> float:
    """Time to search all images."""
    began = time.perf_counter()
    search(bench, bench.images.indices)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    pixels = torch.rand(args.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = [index % 10 for index in range(args.images)]
    images = ImageSet("random", tuple("0123456789"), labels, range(args.images), pixels.__getitem__, "memory")
    network = pretrained("cifar10-resnet20-cohen-0.25-fs").network
    config = ddviz.RunConfig(dataset="cifar10", sigma=0.25, dtype=args.dtype, device=args.device)
    first = prepare(config, network, images)
    benches = {name: replace(first, config=replace(config, **own)) for name, own in SETTINGS.items()}  # type: ignore[arg-type]
    rounds = [{name: seconds(bench) for name, bench in benches.items()} for _ in range(args.rounds + 1)]
    medians = {name: statistics.median(took[name] for took in rounds[1:]) for name in benches}  # the first warms up

    where = f"{first.sampler.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"ResNet-20, {first.sampler.dtype}, {args.images} images, {args.rounds} rounds, {where}")
    print(f"torch {torch.__version__}, ddviz {ddviz.__version__}\n")
    print("| solver | evaluations | ms an image | against K = 100 | against K = 900 |\n|---|---:|---:|---:|---:|")
    for name, took in medians.items():
        evaluations = benches[name].config.make_solver().planned
        ratio = medians[PUBLISHED] / took
        print(f"| {name} | {evaluations} | {1e3 * took / args.images:.1f} | {ratio:.1f}x | {9 * ratio:.0f}x |")


if __name__ == "__main__":
    main()
