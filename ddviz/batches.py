"""Training images in shuffled batches, on the device, augmented there.

The order of an epoch and the augmentation of a step are named by (seed, epoch) and (seed, step) and are those of the
whole batch, of which a process takes its share: neither the number of processes nor a restart changes them.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddviz.datasets import ImageSet
from ddviz.noise import NoiseKey, Stage

_STORED_BYTES = 4 << 30  # data sets up to this size are held on the device
_CHUNK = 1000  # images packed at once, so that the host holds little more than the packed ones
_ORDER, _CROPS = 0, 1  # blocks of Stage.AUGMENT


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes trains on."""

    rank: int = 0
    world: int = 1

    def of(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor with a row for each image of the batch."""
        part = len(whole) // self.world
        return whole[self.rank * part : (self.rank + 1) * part]


class Source(Protocol):
    """Where the pixels come from; rows are places in the image set, not the images' numbers."""

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Pixels (B, C, H, W) in float32 on the device, for one tensor of rows after the other."""
        ...


def source(images: ImageSet, device: torch.device, workers: int = 0) -> Source:
    """Hold the images on the device where they fit, else read them as they are needed, `workers` batches ahead."""
    first = packed(images.image(images.indices[0]))
    if first.numel() * first.element_size() * len(images) > _STORED_BYTES:
        return Streamed(images, device, workers or os.cpu_count() or 1)
    chunks = [packed(images.images(images.indices[i : i + _CHUNK])) for i in range(0, len(images), _CHUNK)]
    if any(chunk.dtype != torch.uint8 for chunk in chunks):
        chunks = [unpacked(chunk) for chunk in chunks]
    return Stored(torch.cat(chunks).to(device))


def packed(pixels: Tensor) -> Tensor:
    """Pixels as uint8 where they are whole 255ths, in a quarter of the memory; others as they are."""
    whole = (pixels * 255).round()
    return whole.to(torch.uint8) if torch.allclose(whole / 255, pixels, rtol=0, atol=1e-6) else pixels


def unpacked(pixels: Tensor) -> Tensor:
    """Float32 pixels in [0, 1] of packed ones."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


@dataclass(frozen=True)
class Stored:
    """All images on the device, packed (N, C, H, W)."""

    pixels: Tensor

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        return (unpacked(self.pixels[chosen]) for chosen in rows)


@dataclass(frozen=True)
class Streamed:
    """Images read from their files by threads, `ahead` batches before they are needed."""

    images: ImageSet
    device: torch.device
    ahead: int

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(self.ahead) as pool:
            try:
                for chosen in rows:
                    waiting.append(pool.submit(self._read, chosen.tolist()))
                    if len(waiting) > self.ahead:
                        yield waiting.popleft().result().to(self.device)
                while waiting:
                    yield waiting.popleft().result().to(self.device)
            finally:
                pool.shutdown(cancel_futures=True)  # whoever stops early does not wait for more

    def _read(self, rows: list[int]) -> Tensor:
        return self.images.images([self.images.indices[row] for row in rows])


def epoch_order(images: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation (N,) of all rows, on the CPU."""
    return torch.randperm(images, generator=_generator(seed, epoch, _ORDER))


def augmented(x: Tensor, *, seed: int, step: int, share: Share) -> Tensor:
    """Random crops after padding by an eighth of each side, and mirror images of colour images.

    x: (B, C, H, W), the share's images of the step.
    """
    generator = _generator(seed, step, _CROPS)
    whole, sides = len(x) * share.world, x.shape[2:]
    shifts = [side // 8 for side in sides]
    starts = [share.of(torch.randint(0, 2 * shift + 1, (whole, 1), generator=generator)) for shift in shifts]
    mirrored = share.of(torch.rand(whole, 1, generator=generator) < 0.5)
    rows, columns = (start + torch.arange(side) for start, side in zip(starts, sides, strict=True))
    if x.shape[1] == 3:
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(x.device)[:, :, None], columns.to(x.device)[:, None, :]
    image = torch.arange(len(x), device=x.device)[:, None, None]
    padded = pad(x, (shifts[1], shifts[1], shifts[0], shifts[0]))
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)


def _generator(seed: int, number: int, block: int) -> torch.Generator:
    """A generator on the CPU: what it draws is small, and the same whatever the device."""
    return torch.Generator().manual_seed(NoiseKey(seed, number, Stage.AUGMENT).block_seed(block))
