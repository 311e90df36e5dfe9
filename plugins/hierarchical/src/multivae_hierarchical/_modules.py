"""Modules that networks of a hierarchy are put together from, and the check of own networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from multivae_core.errors import ConfigError

__all__ = ["Broadcast", "Features", "Pooled", "Resize", "Shape", "check_network"]

Shape = tuple[int, ...]

_MODES = {2: "bilinear", 3: "trilinear"}


class Resize(nn.Module):
    """Linear interpolation to a grid; nothing where it is that already."""

    def __init__(self, grid: Shape) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, value: Tensor) -> Tensor:
        """``(R, C, *sides)`` -> ``(R, C, *grid)``."""
        if tuple(value.shape[2:]) == self.grid:
            return value
        return functional.interpolate(
            value, self.grid, mode=_MODES[len(self.grid)], align_corners=False
        )


class Features(nn.Module):
    """The encoder of one modality: its first features.

    Args:
        network: ``(R, C, *sides)`` -> ``(R, *F_1)``; or, for a trunk of the core, values and
            element mask -> ``(R, F)``.
        last: What follows the network.
        counts: Whether the network sees log(1 + x).
        mask_channels: Whether the element mask is appended to the channels here.
    """

    def __init__(
        self, network: nn.Module, last: nn.Module, counts: bool, mask_channels: bool | None
    ) -> None:
        super().__init__()
        self.network, self.last = network, last
        self.counts, self.mask_channels = counts, mask_channels

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute ``(R, *F_1)``."""
        if self.counts:
            values = values.log1p()
        if self.mask_channels is None:
            features: Tensor = self.last(self.network(values, observed))
            return features
        if self.mask_channels:
            seen = torch.ones_like(values) if observed is None else observed.to(values.dtype)
            values = torch.cat([values, seen], dim=1)
        maps: Tensor = self.last(self.network(values))
        return maps


class Broadcast(nn.Module):
    """Features of a vector on a grid, the same in every cell."""

    def __init__(self, features: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(features, shape[0])

    def forward(self, value: Tensor) -> Tensor:
        """``(R, F)`` -> ``(R, C, *grid)``."""
        cell: Tensor = self.linear(value)
        return cell.view(*cell.shape, *(1 for _ in self.shape[1:])).expand(-1, *self.shape)


class Pooled(nn.Module):
    """A map -> the mean over its cells -> a network over vectors."""

    def __init__(self, features: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.features, self.network = features, network

    def forward(self, value: Tensor) -> Tensor:
        """``(R, C, *grid)`` -> what the network makes of ``(R, C')``."""
        out: Tensor = self.network(self.features(value).flatten(2).mean(dim=2))
        return out


def check_network(network: nn.Module, what: str, inputs: Shape, outputs: Shape) -> None:
    """Try a user's own network on two rows of zeros.

    Raises:
        ConfigError: It does not map ``(2, *inputs)`` to ``(2, *outputs)``.
    """
    first: Any = next(network.parameters(), torch.zeros(()))
    zeros = torch.zeros(2, *inputs, dtype=first.dtype, device=first.device)
    training = [module for module in network.modules() if module.training]
    try:
        with torch.no_grad():
            found: Any = tuple(network.eval()(zeros).shape)
    except (RuntimeError, TypeError, ValueError) as error:
        found = error
    finally:
        for module in training:
            module.training = True
    if found != (2, *outputs):
        raise ConfigError(
            f"the network given as {what} must map (rows, {', '.join(map(str, inputs))}) to"
            f" (rows, {', '.join(map(str, outputs))}); for 2 rows it gave {found}"
        )
