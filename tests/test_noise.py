"""Noise: named, reproducible, independent of batches, and distributed as it should be."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ddviz.noise import BLOCK, NoiseKey, NoiseStream, Stage, _mix32, fill_block
from ddviz.smoothing import SMOOTHINGS

L2 = SMOOTHINGS["l2"]


KEY = NoiseKey(0, 7, Stage.ESTIMATE)


def stream(first: int, count: int, key: NoiseKey = KEY) -> torch.Tensor:
    noise = NoiseStream(L2, key, torch.Size((3, 4, 4)), torch.device("cpu"))
    return noise.fill(torch.empty(count, 3, 4, 4), first)


def test_a_sample_is_the_same_whatever_it_is_drawn_with():
    whole = stream(0, 300)
    for first, count in [(0, 1), (63, 2), (64, 64), (5, 200), (127, 130), (299, 1)]:
        assert torch.equal(stream(first, count), whole[first : first + count])


def test_seed_image_and_stage_name_different_noise():
    keys = [NoiseKey(s, i, stage) for s in (0, 1) for i in (0, 1, 2**40) for stage in Stage]
    firsts = {tuple(stream(0, 1, key).flatten().tolist()) for key in keys}
    assert len(firsts) == len(keys)


def test_no_two_blocks_of_an_image_share_the_32_bits_that_the_cpu_generator_uses():
    seeds = {NoiseKey(0, 3, stage).block_seed(b) & 0xFFFFFFFF for stage in Stage for b in range(2000)}
    assert len(seeds) == 2000 * len(Stage)


def test_the_mixing_is_a_bijection():
    rng = np.random.default_rng(0)
    values = {int(v) for v in rng.integers(0, 2**32, 100_000)}
    assert len({_mix32(v) for v in values}) == len(values)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    stream(0, 100)
    assert torch.equal(before, torch.get_rng_state())


def test_noise_has_its_distribution_within_and_across_blocks(smoothing):
    noise = torch.empty(400, BLOCK, 8)
    for block, out in enumerate(noise):
        fill_block(out, smoothing, NoiseKey(1, 0, Stage.ESTIMATE), block)
    cdf = ("norm", (0, 1)) if smoothing.norm == "l2" else ("uniform", (-1, 2))
    assert kstest(noise.flatten().numpy(), cdf[0], args=cdf[1]).pvalue > 0.001
    assert kstest(noise[:, 0, 0].numpy(), cdf[0], args=cdf[1]).pvalue > 0.001  # first numbers of neighbouring seeds
    across = np.corrcoef(noise[:-1].flatten(1).numpy().ravel(), noise[1:].flatten(1).numpy().ravel())[0, 1]
    assert abs(across) < 4 / np.sqrt(noise[:-1].numel())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_on_cuda_is_named_too():
    draw = [fill_block(torch.empty(8, 4, device="cuda"), L2, NoiseKey(0, 1, Stage.CHOICE), b) for b in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
