"""Images a second of training with noise against the published loop, interleaved in one run on this machine.

    python tests/benchmarks/train_speed.py [--arch cifar_resnet20] [--steps 40] [--rounds 5] [--device cpu] [--compile]

The yardstick is the training loop of Cohen et al. 2019 as its authors describe it: a DataLoader with random crops and
mirror images in worker processes, randn noise, a float32 step of SGD. Each way has a process of its own. Images
and weights are random: speed does not depend on them. The table gives medians; quote the ratios, machines drift.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import ddviz
from ddviz.datasets import ImageSet
from ddviz.inference import default_dtype
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize

BATCH = 128


@dataclass(frozen=True)
class Way:
    """One way to train."""

    arch: str
    device: str
    steps: int
    dtype: str = "float32"
    compile: bool = False
    workers: int = -1  # of the published loop

    def __str__(self) -> str:
        if self.workers >= 0:
            return f"published loop, float32, {self.workers} workers"
        return f"ddviz, {self.dtype}{', compiled' if self.compile else ''}"


class Photos(Dataset):
    """Random images of CIFAR-10's size, augmented one by one."""

    def __init__(self, images: int):
        self.pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
        crop = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose([v2.ToPILImage(), *crop, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[index]), index % 10


def network_for(way: Way) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Normalize(*MEAN_STD["cifar10"]), ARCHITECTURES[way.arch](num_classes=10)).to(way.device)


def seconds(way: Way) -> float:
    """Time of an epoch of so many steps, after one that warms up."""
    photos = Photos(BATCH * way.steps)
    return published(way, photos) if way.workers >= 0 else ours(way, photos)


def published(way: Way, photos: Photos) -> float:
    network = network_for(way).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(photos, BATCH, shuffle=True, num_workers=way.workers, persistent_workers=way.workers > 0)
    taken = 0.0
    for _ in range(2):
        began = time.perf_counter()
        for x, y in loader:
            x, y = x.to(way.device), y.to(way.device)
            loss = cross_entropy(network(x + torch.randn_like(x) * 0.25), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        taken = time.perf_counter() - began
    return taken


def ours(way: Way, photos: Photos) -> float:
    images = ImageSet(
        "random",
        tuple("0123456789"),
        [index % 10 for index in range(len(photos))],
        range(len(photos)),
        lambda index: photos.pixels[index].float() / 255,
        "memory",
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = ddviz.Recipe(
            ds=False, epochs=2, batch=BATCH, device=way.device, dtype=way.dtype, compile=way.compile, run_root=folder
        )
        few = ImageSet(images.name, images.classes, images.labels, images.indices[:10], images.read, images.where)
        ddviz.train(
            recipe,
            network=network_for(way),
            images=images,
            test_images=few,
            on_epoch=lambda _: ends.append(time.perf_counter()),
        )
    return ends[1] - ends[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="cifar_resnet20", choices=sorted(ARCHITECTURES))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="one row more, which takes minutes to compile")
    args = parser.parse_args()

    common = (args.arch, args.device, args.steps)
    low = default_dtype(torch.device(args.device))
    ways = [Way(*common, workers=workers) for workers in (0, 2)]
    ways += [Way(*common, dtype=dtype) for dtype in dict.fromkeys(["float32", low])]
    ways += [Way(*common, dtype=low, compile=True)] if args.compile else []
    times: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:  # a process of its own each time: what one does to the allocator must not help the next
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                times[way].append(pool.submit(seconds, way).result())
    medians = {way: statistics.median(taken) for way, taken in times.items()}
    best = min(median for way, median in medians.items() if way.workers >= 0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, ddviz {ddviz.__version__}"
    print(f"{args.arch}, batch {BATCH}, {args.steps} steps, {args.rounds} rounds, {where}, {versions}\n")
    print("| how | images/s | against the best published |\n|---|---:|---:|")
    for way, median in medians.items():
        print(f"| {way} | {BATCH * args.steps / median:,.0f} | {best / median:.2f}x |")


if __name__ == "__main__":
    main()
