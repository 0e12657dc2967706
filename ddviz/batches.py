"""Training images in shuffled batches, on the device, augmented there.

The order of an epoch and the augmentation of a step are named by (seed, epoch) and (seed, step) and are those of the
whole batch, of which a process takes its share: neither the number of processes nor a restart changes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from ddviz.datasets import ImageSet
from ddviz.noise import NoiseKey, Stage

_STORED_BYTES = 4 << 30  # data sets up to this size are held on the device
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
    """Hold the images on the device where they fit, else read them as they are needed, by `workers` processes."""
    first = images.image(images.indices[0])
    if first.numel() * len(images) <= _STORED_BYTES:
        return Stored(packed(images.images(images.indices)).to(device))
    return Streamed(images, device, workers)


def packed(pixels: Tensor) -> Tensor:
    """Pixels as uint8 where they are whole 255ths, in a quarter of the memory; others as they are."""
    bytes_ = (pixels * 255).round()
    return bytes_.to(torch.uint8) if torch.allclose(bytes_ / 255, pixels, rtol=0, atol=1e-6) else pixels


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
class Streamed(Dataset[Tensor]):
    """Images read from their files, some batches ahead."""

    images: ImageSet
    device: torch.device
    workers: int = 0

    def __getitem__(self, row: int) -> Tensor:
        return packed(self.images.image(self.images.indices[row]))

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        order = [chosen.tolist() for chosen in rows]
        loader = DataLoader(self, batch_sampler=order, num_workers=self.workers, pin_memory=self.device.type == "cuda")
        return (unpacked(pixels.to(self.device, non_blocking=True)) for pixels in loader)


def epoch_order(images: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation (N,) of all rows, on the CPU."""
    return torch.randperm(images, generator=_generator(seed, epoch, _ORDER))


def augmented(x: Tensor, *, seed: int, step: int, share: Share) -> Tensor:
    """Random crops after padding by an eighth of the side, and mirror images of colour images.

    x: (B, C, H, W), the share's images of the step.
    """
    generator = _generator(seed, step, _CROPS)
    whole, size = len(x) * share.world, x.shape[-1]
    shift = size // 8
    offsets = share.of(torch.randint(0, 2 * shift + 1, (whole, 2), generator=generator)).to(x.device)
    mirrored = share.of(torch.rand(whole, generator=generator) < 0.5).to(x.device)
    rows, columns = (offsets[:, axis, None] + torch.arange(size, device=x.device) for axis in (0, 1))
    if x.shape[1] == 3:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    cropped = pad(x, (shift,) * 4).permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def _generator(seed: int, number: int, block: int) -> torch.Generator:
    """A generator on the CPU: what it draws is small, and the same whatever the device."""
    return torch.Generator().manual_seed(NoiseKey(seed, number, Stage.AUGMENT).block_seed(block))
