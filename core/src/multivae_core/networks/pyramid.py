"""Pyramids of strided convolutions in one, two or three dimensions, down and back up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from multivae_core.networks.blocks import ACTIVATIONS, dense_layers

__all__ = ["Halving", "Doubling", "PyramidConfig"]

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class PyramidConfig(Protocol):
    """The options that a pyramid reads."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Widths of the levels."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Sizes of the dense layers between the coarsest level and the features."""

    @property
    def kernel_size(self) -> int:
        """Side of the kernels, odd."""

    @property
    def max_cells(self) -> int:
        """Cells of the coarsest level, at most."""

    @property
    def activation(self) -> str:
        """Name of the activation."""

    @property
    def normalisation(self) -> str | None:
        """None or "layer"."""


class Halving(nn.Module):
    """Convolutions of stride 2, then dense layers: (R, inputs, *sides) -> (R, out_features)."""

    def __init__(self, config: PyramidConfig, inputs: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        levels, widths = halvings(sides, config.channels, config.max_cells)
        self.flat = widths[-1] * math.prod(levels[-1])
        self.out_features = config.hidden[-1] if config.hidden else self.flat
        self.convolutions = nn.Sequential(*_halving_layers(config, inputs, widths, len(sides)))
        self.dense = nn.Sequential(*_dense(config, self.flat, config.hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Compute features."""
        features: Tensor = self.dense(self.convolutions(x).reshape(x.shape[0], self.flat))
        return features


class Doubling(nn.Module):
    """Dense layers, then transposed convolutions: (R, in_features) -> (R, outputs, *sides)."""

    def __init__(
        self, config: PyramidConfig, in_features: int, outputs: int, sides: tuple[int, ...]
    ) -> None:
        super().__init__()
        levels, widths = halvings(sides, config.channels, config.max_cells)
        self.coarsest = (widths[-1], *levels[-1])
        sizes = (*reversed(config.hidden), math.prod(self.coarsest))
        self.dense = nn.Sequential(*_dense(config, in_features, sizes))
        self.convolutions = nn.Sequential(*_doubling_layers(config, levels, widths, outputs))

    def forward(self, z: Tensor, memory_format: torch.memory_format) -> Tensor:
        """Decode."""
        coarse = self.dense(z).view(z.shape[0], *self.coarsest)
        out: Tensor = self.convolutions(coarse.contiguous(memory_format=memory_format))
        return out


def halvings(
    sides: tuple[int, ...], channels: tuple[int, ...], max_cells: int
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Plan a pyramid: one level per entry of ``channels``, more at its last width if needed.

    Args:
        sides: Lengths of the spatial axes.
        channels: Widths of the levels.
        max_cells: Halving goes on until the coarsest level has at most so many cells.

    Returns:
        Sides of every level, the input first; and the width of every level after the input.
    """
    levels = [sides]
    widths: list[int] = []
    while len(widths) < len(channels) or math.prod(levels[-1]) > max_cells:
        levels.append(tuple((side + 1) // 2 for side in levels[-1]))
        widths.append(channels[min(len(widths), len(channels) - 1)])
    return levels, widths


def _halving_layers(
    config: PyramidConfig, inputs: int, widths: list[int], dims: int
) -> list[nn.Module]:
    """Convolutions of stride 2: a side n becomes (n + 1) // 2, so that any size will do."""
    layers: list[nn.Module] = []
    kernel = config.kernel_size
    for width in widths:
        layers.append(_CONVOLUTIONS[dims](inputs, width, kernel, stride=2, padding=kernel // 2))
        layers += _after(config, width)
        inputs = width
    return layers


def _doubling_layers(
    config: PyramidConfig, levels: list[tuple[int, ...]], widths: list[int], outputs: int
) -> list[nn.Module]:
    """Transposed convolutions that give back, to the cell, the sides that were halved.

    The kernel is one longer than that of the way down: it is then a multiple of the stride, and
    no checkerboard appears (Odena, Dumoulin & Olah 2016).
    """
    layers: list[nn.Module] = []
    kernel = config.kernel_size
    for depth in reversed(range(len(widths))):
        width = widths[depth - 1] if depth else outputs
        odd = [side % 2 for side in levels[depth]]
        layers.append(
            _TRANSPOSED[len(odd)](
                widths[depth],
                width,
                kernel + 1,
                stride=2,
                padding=tuple(kernel // 2 + rest for rest in odd),
                output_padding=tuple(odd),
            )
        )
        if depth:
            layers += _after(config, width)
    return layers


def _after(config: PyramidConfig, width: int) -> list[nn.Module]:
    """What follows a convolution; group normalisation never mixes rows."""
    activation = ACTIVATIONS[config.activation]()
    if config.normalisation is None:
        return [activation]
    # at least two channels per group: a group of one cell has nothing to be compared with
    return [nn.GroupNorm(math.gcd(8, max(1, width // 2)), width), activation]


def _dense(config: PyramidConfig, inputs: int, sizes: tuple[int, ...]) -> list[nn.Module]:
    return dense_layers(inputs, sizes, config.activation, 0.0, config.normalisation == "layer")
