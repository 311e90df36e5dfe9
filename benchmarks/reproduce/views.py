"""Three aligned views of one digit, each of another contrast, and what they are to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

import multivae_core as mv

__all__ = ["LINEAR", "NAMES", "edges", "load", "soft"]

NAMES = ("digit", "edges", "soft")
LINEAR = ("soft", "digit")
"""A target, and the source of which it is an affine function by construction."""

_BLUR = 2.0  # standard deviation in pixels
_REACH = 6
_STEEPEST = 4.0  # what a Sobel filter gives at a straight step from 0 to 1
_LEVELS = 255.0


def load(split: str, n: int) -> mv.IncompleteDataset:
    """Return ``digit``, ``edges`` and ``soft`` of the first n digits, ``(1, 28, 28)`` in 0..1."""
    data = mv.load_dataset("mnist", split=split, n=n)
    digit = data.batch().values["image"]
    return mv.IncompleteDataset(
        {"digit": digit, "edges": edges(digit), "soft": soft(digit)}, labels=data.labels
    )


def edges(digit: Tensor) -> Tensor:
    """Steepness of every pixel, the length of Sobel's gradient: ``(N, 1, h, w)`` -> the same."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    gradient = functional.conv2d(digit, kernels, padding=1)
    return _rounded((gradient.square().sum(dim=1, keepdim=True).sqrt() / _STEEPEST).clamp(max=1))


def soft(digit: Tensor) -> Tensor:
    """A blurred negative: ``(N, 1, h, w)`` -> the same."""
    place = torch.arange(-_REACH, _REACH + 1.0)
    weights = (-0.5 * (place / _BLUR).square()).exp()
    weights = weights / weights.sum()
    blurred = functional.conv2d(digit, weights.view(1, 1, -1, 1), padding=(_REACH, 0))
    return _rounded(
        1.0 - functional.conv2d(blurred, weights.view(1, 1, 1, -1), padding=(0, _REACH))
    )


def _rounded(picture: Tensor) -> Tensor:
    """Eight bits, as pictures have; without it a blur could be undone to the last digit."""
    return (picture * _LEVELS).round() / _LEVELS
