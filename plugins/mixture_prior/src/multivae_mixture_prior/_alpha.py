"""The share of a plain prior in MMVM's regulariser, and how it changes over training."""

from __future__ import annotations

import math

from multivae_core.noise import Step

__all__ = ["SHAPES", "annealed"]

SHAPES = ("linear", "cosine", "exp")
"""Ways from the first value to the last one."""

_RATE = 5.0


def annealed(first: float, last: float, steps: int, shape: str, step: Step) -> float:
    """Value at a step of training; the last one after so many steps and outside training.

    Args:
        first: Value at step 0.
        last: Value from ``steps`` on.
        steps: Optimisation steps; 0: the last value at once.
        shape: One of `SHAPES`; ``exp``: what is left falls by the same factor in every step, by
            exp(-5) in all, and is shifted to end at the last value.
        step: Where training stands.
    """
    if not step.training or step.number >= steps:
        return last
    done = step.number / steps
    left = 1.0 - done
    if shape == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    elif shape == "exp":
        left = (math.exp(-_RATE * done) - math.exp(-_RATE)) / (1.0 - math.exp(-_RATE))
    return last + (first - last) * left
