"""The engine: the same counts for every batch size and worker, in bounded memory."""

import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ddviz
from ddviz.errors import InputError, ResourceError
from ddviz.inference import Fitting
from ddviz.noise import NoiseKey, Stage
from ddviz.sampling import Request, Sampler, one_thread_each
from ddviz.smoothing import SMOOTHINGS

CPU = torch.device("cpu")
KEY = NoiseKey(0, 11, Stage.ESTIMATE)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor]:
    return ddviz.models.load("digits", sigma=0.25).network, ddviz.datasets.load("digits").image(11)


def test_counts_do_not_depend_on_batch_size_or_workers(digits, smoothing):
    network, pixels = digits
    counts = [
        replace(sampler, batch=batch, workers=workers).count(pixels, 0.6, 1_000, smoothing=smoothing, key=KEY)
        for sampler in [Sampler.prepare(network, pixels)]
        for batch, workers in [(1000, 1), (64, 1), (64, 2), (7, 3), (100, 2), (2000, 1)]
    ]
    assert all(torch.equal(counts[0], other) for other in counts)
    assert counts[0].sum() == 1_000 and (counts[0] > 0).sum() > 1


def test_threads_made_afterwards_have_as_many_cores_as_before():
    """Work in the background of a notebook has a thread of its own each time."""
    code = (
        "import sys, threading, torch, ddviz\n"
        "from ddviz.noise import NoiseKey, Stage\n"
        "from ddviz.sampling import Sampler\n"
        "torch.set_num_threads(2)\n"
        "sampler = Sampler.prepare(ddviz.models.load('digits', sigma=0.25).network, torch.rand(1, 8, 8))\n"
        "count = lambda: sampler.count(torch.rand(1, 8, 8), 0.6, 200, smoothing=ddviz.Gaussian(), "
        "key=NoiseKey(0, 0, Stage.ESTIMATE))\n"
        "seen = []\n"
        "for work in (count, lambda: seen.append(torch.get_num_threads())):\n"
        "    thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "print(sampler.workers, *seen)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["2", "2"]


def test_a_run_of_fewer_samples_is_the_beginning_of_a_longer_one(digits):
    network, pixels = digits
    sampler = Sampler.prepare(network, pixels, batch=50)
    short, long = (sampler.count(pixels, 0.6, n, smoothing=SMOOTHINGS["l2"], key=KEY) for n in (130, 400))
    assert (short <= long).all()


@pytest.mark.parametrize(("batch", "workers"), [(64, 1), (50, 2), (1000, 1)])
def test_counts_of_parts_add_up_to_those_of_the_whole(digits, smoothing, batch, workers):
    network, pixels = digits
    sampler = replace(Sampler.prepare(network, pixels, batch=batch), workers=workers)
    whole = sampler.count(pixels, 0.6, 700, smoothing=smoothing, key=KEY)
    cuts = [0, 1, 128, 333, 700]
    parts = [sampler.count(pixels, 0.6, b - a, smoothing=smoothing, key=KEY, first=a) for a, b in pairwise(cuts)]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    assert [int(part.sum()) for part in parts] == [1, 127, 205, 367]


@pytest.mark.parametrize("seed", range(8))
def test_many_requests_are_counted_as_each_alone(digits, smoothing, seed):
    """Any mix of images, sample sizes and scales, in any batch, by any number of workers."""
    images, draw = ddviz.datasets.load("digits"), random.Random(seed)
    alone = Sampler.prepare(digits[0], digits[1], batch=64)
    requests = [
        Request(
            images.image(index),
            draw.uniform(0.05, 1.5),
            draw.choice([0, 1, 63, 64, 65, 100, draw.randrange(400)]),
            NoiseKey(seed, index, draw.choice(list(Stage))),
            draw.choice([0, 0, 64, draw.randrange(200)]),
        )
        for index in [draw.randrange(40) for _ in range(draw.randrange(1, 12))]
    ]
    expected = [
        alone.count(request.x, request.sigma, request.n, smoothing=smoothing, key=request.key, first=request.first)
        for request in requests
    ]
    together = replace(alone, batch=draw.choice([1, 7, 64, 100, 5000]), workers=draw.choice([1, 2, 3]))
    counts = together.count_many(requests, smoothing=smoothing)
    assert torch.equal(counts, torch.stack(expected))
    assert counts.sum(1).tolist() == [request.n for request in requests]


def test_batches_are_filled_across_requests(x):
    spy = Spy()
    requests = [Request(x, 0.1, 10, NoiseKey(0, index, Stage.CHOICE)) for index in range(20)]
    Sampler(spy, 2, CPU, "float32", 64).count_many(requests, smoothing=SMOOTHINGS["l2"])
    assert spy.sizes == [64, 64, 64, 8]


def test_an_unknown_back_end_is_named(digits):
    with pytest.raises(InputError, match="expected backend to be one of torch, compile, openvino, got 'nope'"):
        Sampler.prepare(*digits, backend="nope")


def test_no_requests_have_no_counts():
    assert Sampler(Spy(), 2, CPU, "float32", 64).count_many([], smoothing=SMOOTHINGS["l2"]).shape == (0, 2)


def test_requests_of_images_of_two_sizes_are_refused(x):
    requests = [Request(image, 0.1, 10, KEY) for image in (x, x[:, :1])]
    with pytest.raises(InputError, match=r"images of one size, got \(1, 1, 3\) and \(1, 2, 3\)"):
        Sampler(Spy(), 2, CPU, "float32", 64).count_many(requests, smoothing=SMOOTHINGS["l2"])


def test_bfloat16_counts_agree_up_to_rounding(digits):
    network, pixels = digits
    counts = [
        Sampler.prepare(network, pixels, dtype=dtype).count(pixels, 0.6, 2_000, smoothing=SMOOTHINGS["l2"], key=KEY)
        for dtype in ("float32", "bfloat16")
    ]
    assert (counts[0] - counts[1]).abs().sum() <= 40  # of 2000


class Spy(nn.Module):
    """Remembers the batches it meets."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return torch.stack([x.flatten(1).sum(1), torch.zeros(len(x))], 1)


def test_no_batch_exceeds_the_asked_one_however_many_samples(x):
    spy = Spy()
    Sampler(spy, 2, CPU, "float32", 96).count(x, 0.1, 10_000, smoothing=SMOOTHINGS["l2"], key=KEY)
    assert max(spy.sizes) == 96 and sum(spy.sizes) == 10_000


class Small(Spy):
    """Runs out of memory above 20 images; `spoils`: after it has worked in place."""

    def __init__(self, error: RuntimeError, spoils: bool = False):
        super().__init__()
        self.error, self.spoils = error, spoils

    def forward(self, x: Tensor) -> Tensor:
        if self.spoils:
            x += 1
        if len(x) > 20:
            raise self.error
        return super().forward(x)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["device", "cpu"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(x, error):
    small = Small(error)
    with pytest.warns(UserWarning, match="images at once do not fit") as told:
        sampler = Sampler(Fitting(small), 2, CPU, "float32", 96)
        counts = sampler.count(x, 0.3, 500, smoothing=SMOOTHINGS["l2"], key=KEY)
    assert len(told) == 3 and "going on with 12" in str(told[-1].message)  # 96, 48, 24: once each
    assert torch.equal(counts, replace(sampler, forward=Spy()).count(x, 0.3, 500, smoothing=SMOOTHINGS["l2"], key=KEY))
    assert max(small.sizes) == 12 and sum(small.sizes) == 500
    assert sampler.batch == 96  # what the run is named by


def test_what_is_not_for_want_of_memory_or_cannot_be_repeated_ends_the_count(x):
    for network, expected in [
        (Small(RuntimeError("shapes differ")), RuntimeError),
        (Small(OUT_OF_MEMORY[0], spoils=True), ResourceError),
    ]:
        with pytest.raises(expected):
            Sampler(Fitting(network), 2, CPU, "float32", 96).count(x, 0.3, 500, smoothing=SMOOTHINGS["l2"], key=KEY)


def test_the_image_is_not_changed(x):
    before = x.clone()
    Sampler(Spy(), 2, CPU, "float32", 64).count(x, 0.5, 200, smoothing=SMOOTHINGS["l2"], key=KEY)
    assert torch.equal(x, before)


def test_a_network_that_returns_nan_under_noise_is_named(x):
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1).sqrt(), torch.zeros(len(x))], 1)

    with pytest.raises(InputError, match=r"NaN for \d+ noisy copies of image 11 at noise scale 5"):
        Sampler.prepare(Breaks(), x).count(x, 5.0, 300, smoothing=SMOOTHINGS["l2"], key=KEY)


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    with one_thread_each(2) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(2))) == [1, 1]
    assert torch.get_num_threads() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["torch", "compile"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_estimates_the_same_probabilities(digits, dtype, backend):
    network, pixels = digits
    shares = [
        Sampler.prepare(network, pixels, device=device, dtype=dtype, backend=name).count(
            pixels, 0.6, 20_000, smoothing=SMOOTHINGS["l2"], key=KEY
        )
        / 20_000
        for device, name in (("cpu", "torch"), ("cuda", backend))
    ]
    assert (shares[0] - shares[1]).abs().max() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_the_gpu_between_batches(digits):
    network, pixels = digits
    sampler = Sampler.prepare(network, pixels, device="cuda", dtype="bfloat16", batch=100)
    requests = [Request(pixels.cuda(), 0.6, n, NoiseKey(0, n, Stage.ESTIMATE)) for n in (30, 500, 1)]
    sampler.count_many(requests, smoothing=SMOOTHINGS["l2"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = sampler._count(requests, range(0, 531, 100), SMOOTHINGS["l2"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts.sum(1).tolist() == [30, 500, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_is_freed_is_kept_and_counts_stay():
    """In a process of its own, since the setting is the process's: large blocks no longer come from fresh maps."""
    code = (
        "import resource, torch; from ddviz.sampling import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(3): torch.ones(1 << 20)\n"
        "before = faults()\n"
        "for _ in range(50): torch.ones(1 << 20)\n"
        "print(faults() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 5_000  # of 50 x 1024 pages
