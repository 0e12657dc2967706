"""The engine: how many noisy copies of an image fall on each class. All the time of a certificate is spent here.

The noisy image x + sigma * e is formed in float32 and only then rounded to a lower precision, so that the rounding
belongs to the base classifier and the certificate is that classifier's. Noise drawn in low precision is not Gaussian.
"""

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddviz.errors import InputError, explained_memory_errors
from ddviz.inference import Forward, compile_forward
from ddviz.noise import NoiseKey, NoiseStream
from ddviz.smoothing import Smoothing

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sampler:
    """A network made ready to count classes: on its device, in its precision, at its batch size.

    The counts of an image depend on none of batch size and workers in float32; in lower precision, up to rounding.
    """

    forward: Forward
    num_classes: int
    device: torch.device
    dtype: str
    batch: int
    workers: int = 1

    @classmethod
    def prepare(
        cls,
        network: nn.Module,
        example: Tensor,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        batch: int = 0,
        num_classes: int = 0,
    ) -> "Sampler":
        """Make a network ready for images like `example` (C, H, W); the network itself is not changed.

        batch 0 takes one that suits the device. float32 runs the network as it is; lower precisions fold
        BatchNorm and use the device's fastest layout.
        """
        device = torch.device(device)
        if device.type == "cpu":
            keep_freed_memory()
        example = example.to(device, torch.float32, copy=True)  # a network may work in place on what it is given
        forward = compile_forward(network, example, DTYPES[dtype])
        if not num_classes:
            num_classes = forward(example[None]).shape[1]
        workers = max(1, torch.get_num_threads()) if device.type == "cpu" else 1
        return cls(forward, num_classes, device, dtype, batch or default_batch(example, device), workers)

    def count(self, x: Tensor, sigma: float, n: int, *, smoothing: Smoothing, key: NoiseKey, first: int = 0) -> Tensor:
        """Classes of n noisy copies of one image: counts (num_classes,), int64, on the CPU.

        x: pixels (C, H, W) in [0, 1]. sigma: noise scale. first: where in the key's stream of noise to begin, so that
        counts of parts add up to those of the whole. Memory does not grow with n.

        Raises: InputError where the network's outputs are NaN; ResourceError where a batch does not fit.
        """
        x = x.to(self.device, torch.float32)
        end = first + n
        starts = range(first, end, self.batch)
        workers = min(self.workers, len(starts))
        with explained_memory_errors("batch", self.batch):
            if workers <= 1:
                return self._count_batches(x, sigma, end, starts, smoothing, key)
            with one_thread_each(workers) as pool:
                bounds = [len(starts) * worker // workers for worker in range(workers + 1)]
                shares = [starts[low:high] for low, high in pairwise(bounds)]
                parts = pool.map(lambda share: self._count_batches(x, sigma, end, share, smoothing, key), shares)
                return torch.stack(list(parts)).sum(0)

    def _count_batches(
        self, x: Tensor, sigma: float, end: int, starts: range, smoothing: Smoothing, key: NoiseKey
    ) -> Tensor:
        """Counts of the batches that begin at the given samples; the last one stops before `end`."""
        counts = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=self.device)
        noisy = torch.empty(min(self.batch, end - starts.start), *x.shape, device=self.device)
        noise = NoiseStream(smoothing, key, x.shape, self.device)
        with torch.no_grad():
            for start in starts:
                batch = noisy[: min(self.batch, end - start)]
                noise.fill(batch, start).mul_(sigma).add_(x)
                logits = self.forward(batch)
                classes = logits.argmax(1).masked_fill_(logits.isnan().any(1), self.num_classes)
                counts += torch.bincount(classes, minlength=self.num_classes + 1)
        if nan := int(counts[-1]):
            raise InputError(
                f"the network returned NaN for {nan} noisy copies of image {key.image} at noise scale {sigma:g}: "
                "certify with dtype=float32, or load weights that are not damaged."
            )
        return counts[:-1].cpu()


def default_batch(example: Tensor, device: torch.device) -> int:
    """A batch that keeps a CPU core's cache warm, or a GPU busy."""
    small = example.numel() <= 3 * 64 * 64
    if device.type == "cpu":
        return 64 if small else 8
    return 2048 if small else 256


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of handing it back to the system, where the C library is glibc.

    A network's activations are megabytes that come and go with every layer; by default each is mapped anew and its
    pages zeroed, which costs a small network a fifth of its time or more. Counts are not touched.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that every version accepts
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


_POOLS: dict[int, ThreadPoolExecutor] = {}


@contextmanager
def one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that each compute on one core: on small batches that beats all cores on one batch."""
    before = torch.get_num_threads()
    if workers not in _POOLS:
        _POOLS[workers] = ThreadPoolExecutor(workers, "ddviz", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield _POOLS[workers]
    finally:
        torch.set_num_threads(before)  # a worker's setting is also the default of threads made later


def side_by_side(workers: int, *calls: Callable[[], T]) -> list[T]:
    """Results of several calls, each on one core of its own where there are workers to make them.

    What runs on a notebook's thread beside others gets little of torch's own parallelism: OpenMP throttles threads that
    wait as soon as there are more of them than cores.
    """
    if workers < 2:
        return [call() for call in calls]
    with one_thread_each(workers) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
