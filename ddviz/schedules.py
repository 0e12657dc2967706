"""Learning rate schedules: the share of the highest rate to use at each moment of training (0 start, 1 end)."""

import math
from collections.abc import Callable


def one_cycle(progress: float) -> float:
    """Up from 4 % in a quarter of the time, then down a cosine to 0: good networks in few epochs (arXiv 1708.07120)."""
    if progress < 0.25:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.25)) / 2
    return (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2


def step(progress: float) -> float:
    """A tenth after each third of the time, as Cohen et al. train (90 epochs, each 30)."""
    return 0.1 ** int(3 * progress)


def cosine(progress: float) -> float:
    """Down a cosine from the first step: for fine-tuning."""
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {"one-cycle": one_cycle, "step": step, "cosine": cosine}
"""Schedules by name."""
