"""The engine: how many noisy copies of an image fall on each class. All the time of a certificate is spent here.

The noisy image x + sigma * e is formed in float32 and only then rounded to a lower precision, so that the rounding
belongs to the base classifier and the certificate is that classifier's. Noise drawn in low precision is not Gaussian.
"""

import ctypes
import platform
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddviz.backends import BACKENDS
from ddviz.errors import InputError, explained_memory_errors
from ddviz.inference import Fitting, Forward
from ddviz.noise import NoiseKey, NoiseStream
from ddviz.smoothing import Smoothing

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True, eq=False)
class Request:
    """Noisy copies of one image that are to be counted: samples first .. first + n - 1 of the noise that `key` names.

    x: pixels (C, H, W) in [0, 1]. sigma: noise scale.
    """

    x: Tensor
    sigma: float
    n: int
    key: NoiseKey
    first: int = 0


@dataclass(frozen=True)
class Sampler:
    """A network made ready to count classes: on its device, in its precision, at its batch size.

    The counts of an image depend on none of batch size, workers and the images counted with it in float32; in lower
    precision, up to rounding. batch: the one asked for, which names the run; what does not fit is halved on the way.
    """

    forward: Forward
    num_classes: int
    device: torch.device
    dtype: str
    batch: int
    workers: int = 1
    backend: str = "torch"

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
        backend: str = "torch",
    ) -> "Sampler":
        """Make a network ready for images like `example` (C, H, W); the network itself is not changed.

        batch 0 takes one that suits the device. backend: one of `BACKENDS`; with torch, float32 runs the network as it
        is, and lower precisions fold BatchNorm and use the device's fastest layout.

        Raises: InputError where another back end is not installed or cannot run the network.
        """
        device = torch.device(device)
        if device.type == "cpu":
            keep_freed_memory()
        example = example.to(device, torch.float32, copy=True)  # a network may work in place on what it is given
        if backend not in BACKENDS:
            raise InputError(f"expected backend to be one of {', '.join(BACKENDS)}, got {backend!r}.")
        forward = Fitting(BACKENDS[backend].prepare(network, example, dtype))
        if not num_classes:
            with torch.no_grad():
                num_classes = forward(example[None]).shape[1]
        workers = max(1, torch.get_num_threads()) if device.type == "cpu" else 1
        return cls(forward, num_classes, device, dtype, batch or default_batch(example, device), workers, backend)

    def count(self, x: Tensor, sigma: float, n: int, *, smoothing: Smoothing, key: NoiseKey, first: int = 0) -> Tensor:
        """Classes of n noisy copies of one image: counts (num_classes,), int64, on the CPU; see `count_many`."""
        return self.count_many([Request(x, sigma, n, key, first)], smoothing=smoothing)[0]

    def count_many(self, requests: Sequence[Request], *, smoothing: Smoothing) -> Tensor:
        """Classes of the noisy copies of each request: counts (requests, num_classes), int64, on the CPU.

        Batches are filled across requests, so that many small ones cost no more than one large. Memory does not
        grow with n.

        Raises: InputError where images differ in size or the network's outputs are NaN; ResourceError where not even
        the images of a batch fit.
        """
        if len(shapes := {tuple(request.x.shape) for request in requests}) > 1:
            raise InputError(f"expected images of one size, got {' and '.join(map(str, sorted(shapes)))}.")
        starts = range(0, sum(request.n for request in requests), self.batch)
        workers = max(1, min(self.workers, len(starts)))
        bounds = [len(starts) * worker // workers for worker in range(workers + 1)]
        shares = [starts[low:high] for low, high in pairwise(bounds)]
        with explained_memory_errors("batch", self.batch):
            parts = side_by_side(workers, *(partial(self._count, requests, share, smoothing) for share in shares))
        counts = torch.stack(parts).sum(0).cpu()
        for request, nan in zip(requests, counts[:, -1].tolist(), strict=True):
            if nan:
                raise InputError(
                    f"the network returned NaN for {nan} noisy copies of image {request.key.image} at noise scale "
                    f"{request.sigma:g}: certify with dtype=float32, or load weights that are not damaged."
                )
        return counts[:, :-1]

    @torch.no_grad()
    def _count(self, requests: Sequence[Request], starts: range, smoothing: Smoothing) -> Tensor:
        """Counts (requests, num_classes + 1) of the batches that begin at the given copies; NaN has the last column.

        Nothing here waits for a GPU: no size depends on what it computes.
        """
        counts = torch.zeros(len(requests), self.num_classes + 1, dtype=torch.int64, device=self.device)
        if not starts:
            return counts
        copies = _NoisyCopies(requests, smoothing, self.device)
        noisy = torch.empty(min(self.batch, copies.total), *requests[0].x.shape, device=self.device)
        ones = torch.ones(len(noisy), dtype=torch.int64, device=self.device)
        for start in starts:
            batch = noisy[: copies.total - start]
            parts = copies.fill(batch, start)
            logits = self.forward(batch)
            classes = logits.argmax(1).masked_fill_(logits.isnan().any(1), self.num_classes)
            for row, part in parts:
                counts[row].scatter_add_(0, classes[part], ones[part])
        return counts


class _NoisyCopies:
    """The noisy copies that requests ask for, laid end to end; read in order, each block of noise is drawn once."""

    def __init__(self, requests: Sequence[Request], smoothing: Smoothing, device: torch.device):
        self._requests, self._smoothing, self._device = requests, smoothing, device
        self._ends = list(accumulate(request.n for request in requests))
        self._row = -1

    @property
    def total(self) -> int:
        return self._ends[-1]

    def fill(self, out: Tensor, start: int) -> list[tuple[int, slice]]:
        """Fill `out` (m, C, H, W) with copies start .. start + m - 1; the requests they belong to, and their places."""
        parts, done, row = [], 0, bisect_right(self._ends, start)
        while done < len(out):
            request, left = self._requests[row], self._ends[row] - (start + done)
            place = slice(done, min(done + left, len(out)))
            if row != self._row:  # one image's noise at a time: memory does not grow with the requests
                self._row, self._x = row, request.x.to(self._device, torch.float32)
                self._noise = NoiseStream(self._smoothing, request.key, self._x.shape, self._device)
            first = request.first + request.n - left
            self._noise.fill(out[place], first).mul_(request.sigma).add_(self._x)
            parts.append((row, place))
            done, row = place.stop, row + 1
        return parts


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
        futures = [pool.submit(call) for call in calls]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:  # those that have not begun
                future.cancel()
            raise
