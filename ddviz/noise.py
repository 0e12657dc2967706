"""Noise that depends only on what it is for: (seed, image, stage, block), never on batch size or order.

Each block comes from its own freshly seeded generator, so any block can be drawn at any time, by any worker, in
any order, and a resumed run meets the same noise as an unbroken one. The global generator is never touched.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ddviz.smoothing import Smoothing

BLOCK = 64
"""Samples in one block of the sampling engine: 64 noise images of CIFAR-10 size stay in a core's cache."""

_MASK32 = 0xFFFFFFFF
_BLOCK_BITS = 29  # blocks per stage: 2^29 blocks of 64 samples


class Stage(IntEnum):
    """What noise is drawn for; samples of one stage are never used in another."""

    SEARCH = 0
    """Choosing sigma_x."""
    CHOICE = 1
    """Choosing the class to certify (n0 samples)."""
    ESTIMATE = 2
    """Estimating that class's probability (n samples)."""
    CHECK = 3
    """Checking, before any certificate, a found sigma_x against sigma_0, and the prepared network against its own."""
    PREDICT = 4
    """Predicting without a certificate."""
    TRAIN = 5
    """Training; the image's number is the step's, and the samples are those of the whole batch."""
    AUGMENT = 6
    """Random crops, mirror images and the order of training images."""
    SHOW = 7
    """Pictures and landscapes for the eye; nothing is decided by them."""


@dataclass(frozen=True)
class NoiseKey:
    """Names the noise of one image in one stage of one seeded experiment."""

    seed: int
    image: int
    stage: Stage

    def block_seed(self, block: int) -> int:
        """64-bit generator seed of a block.

        torch's CPU generator uses only the low 32 bits. They are a bijection of (stage, block) for given
        (seed, image), so that no two blocks of an image can ever be the same noise. Blocks of two different images may
        be: each certificate holds with its probability all the same, but those two are not independent.
        """
        digest = hashlib.blake2b(f"{self.seed}/{self.image}".encode(), digest_size=8).digest()
        image_key = int.from_bytes(digest, "little")
        low = _mix32((image_key ^ (self.stage << _BLOCK_BITS | block)) & _MASK32)
        return (image_key >> 32) << 32 | low


def _mix32(value: int) -> int:
    """A bijection on 32-bit integers that spreads neighbouring values (xor-shift and odd multiplications)."""
    for multiplier in (0x7FEB352D, 0x846CA68B):
        value ^= value >> 16
        value = value * multiplier & _MASK32
    return value ^ value >> 16


def fill_block(out: Tensor, smoothing: Smoothing, key: NoiseKey, block: int) -> Tensor:
    """Fill `out` in place with the standard noise of one block."""
    generator = torch.Generator(out.device)
    generator.manual_seed(key.block_seed(block))
    return smoothing.fill_(out, generator)


class NoiseStream:
    """The endless stream of one key's standard noise, its blocks one after the other, read at any place.

    shape: of one sample. A block of which only a part is wanted is kept for the next read.
    """

    def __init__(self, smoothing: Smoothing, key: NoiseKey, shape: torch.Size, device: torch.device):
        self._smoothing, self._key = smoothing, key
        self._kept = torch.empty(BLOCK, *shape, device=device)
        self._kept_block = -1

    def fill(self, out: Tensor, first: int) -> Tensor:
        """Fill `out` (m, *shape) in place with samples `first` .. `first + m - 1`."""
        done, wanted = 0, len(out)
        while done < wanted:
            block, offset = divmod(first + done, BLOCK)
            take = min(BLOCK - offset, wanted - done)
            if take == BLOCK:
                fill_block(out[done : done + BLOCK], self._smoothing, self._key, block)
            else:
                if block != self._kept_block:
                    fill_block(self._kept, self._smoothing, self._key, block)
                    self._kept_block = block
                out[done : done + take] = self._kept[offset : offset + take]
            done += take
        return out
