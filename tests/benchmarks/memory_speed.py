"""Milliseconds for one answer of `Memory` as it grows, against the paper's listing, interleaved in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/memory_speed.py [--dataset cifar10] [--rounds 15] [--norm l2]

The yardstick is the listing of the paper's appendix C (arXiv 2012.04351): stack all stored images, the norm of all
differences, compare with all radii. (As printed it stops at its first known input and at its first overlap; only what
it does for every input is timed.) Images are those of DDVIZ_DATA and their mirror images, else random ones with the
spectrum of photographs. Radii are uniform in [0, 1], classes random. The memory is filled by answering, so that what it
holds has gone through it. Each round times the listing, then one answer, which finds the caches emptied, as after a
certificate. The table gives medians.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ddviz
from ddviz import datasets
from ddviz.errors import InputError
from ddviz.memory import Memory

ENTRIES = {"cifar10": (1_000, 10_000, 100_000), "imagenet": (200, 600, 1_800)}
SPLITS = {"cifar10": ("train", "test"), "imagenet": ("test",)}
SIDES = {"cifar10": 32, "imagenet": 224}


def natural(count: int, side: int, seed: int) -> NDArray[np.float32]:
    """Random images (count, 3, side, side) in [0, 1] whose spectrum falls as that of photographs."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) + 1 / side
    noise = np.fft.ifft2(np.fft.fft2(random.normal(size=(count, 3, side, side))) / frequency).real
    return np.clip(0.5 + 0.25 * noise / noise.std(), 0, 1).astype(np.float32)


def photographs(dataset: str, count: int) -> tuple[str, NDArray[np.uint8]]:
    """What they are, and images (count, C, H, W) in an order that is random but fixed."""
    try:
        parts = [datasets.load(dataset, split=split) for split in SPLITS[dataset]]
    except InputError:
        side = SIDES[dataset]
        made = (natural(100, side, seed) for seed in range(-(-count // 100)))
        return "random images", np.concatenate([(images * 255).round().astype(np.uint8) for images in made])[:count]
    read = np.stack([(part.image(i).numpy() * 255).round().astype(np.uint8) for part in parts for i in part.indices])
    both = np.concatenate([read, read[..., ::-1]])
    if len(both) < count:
        raise SystemExit(f"expected {count} images, {dataset} and its mirror images are {len(both)}. Lower --entries.")
    return f"{dataset} and its mirror images", both[np.random.default_rng(0).permutation(len(both))[:count]]


class Listing:
    """The paper's memory, without what stops it."""

    def __init__(self):
        self.images: list[Tensor] = []
        self.radii: list[float] = []
        self.predictions: list[int] = []

    def adjust(self, image: Tensor, radius: float, prediction: int) -> tuple[float, int]:
        """One step of the listing that finds no overlap."""
        difference = torch.norm(
            image.reshape(1, -1) - torch.stack(self.images).reshape(len(self.radii), -1),
            dim=1,
        )
        overlap = difference < (torch.tensor(self.radii) + radius)
        return (radius, prediction) if not overlap.any() else (0.0, prediction)


def timed(pixels: Iterator[NDArray[np.uint8]], memory: Memory, listing: Listing, random: np.random.Generator):
    """Seconds of one step of the listing and of one answer, on two images that neither has seen."""
    first, second = (torch.from_numpy(next(pixels).astype(np.float32) / np.float32(255)) for _ in range(2))
    radius, predict = float(random.random()), int(random.integers(10))
    began = time.perf_counter()
    listing.adjust(first, radius, predict)
    between = time.perf_counter()
    memory.answer(second, predict, radius)
    return between - began, time.perf_counter() - between


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="cifar10", choices=sorted(ENTRIES))
    parser.add_argument("--entries", type=int, nargs="+", help="sizes of the memory, ascending")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--norm", default="l2", choices=["l1", "l2"])
    args = parser.parse_args()
    entries = args.entries or ENTRIES[args.dataset]

    what, images = photographs(args.dataset, max(entries) + 2 * (args.rounds + 1) * len(entries))
    filling, unseen = iter(images[: max(entries)]), iter(images[max(entries) :])
    random, memory, listing = np.random.default_rng(1), Memory(args.norm), Listing()
    threads, numbers = torch.get_num_threads(), images[0].size
    print(f"{what}, {numbers} numbers each, {args.norm}, {args.rounds} rounds, {threads} threads, {platform.machine()}")
    print(f"torch {torch.__version__}, numpy {np.__version__}, ddviz {ddviz.__version__}\n")
    print(
        "| entries | the paper's listing (ms) | ddviz (ms) | ratio | ddviz, mean while filling (ms) |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for count in entries:
        spent, added = 0.0, count - len(listing.images)
        for pixels in (next(filling) for _ in range(added)):
            image = torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
            radius, predict = float(random.random()), int(random.integers(10))
            began = time.perf_counter()
            answer = memory.answer(image, predict, radius)
            spent += time.perf_counter() - began
            listing.images.append(image)
            listing.radii.append(answer.radius)
            listing.predictions.append(answer.predict)
        rounds = [timed(unseen, memory, listing, random) for _ in range(args.rounds + 1)][1:]  # the first warms up
        theirs, ours = (1e3 * statistics.median(each) for each in zip(*rounds, strict=True))
        print(
            f"| {count:,} | {theirs:,.2f} | {ours:.2f} | {theirs / ours:,.0f}x | {1e3 * spent / added:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
