"""Networks of a hierarchy for vectors, images and volumes, out of one description.

Level l has features F_l on the way up and on the way down, and latents Z_l on the same grid, but
for the top, which may be a vector. The first axis counts channels, the others are the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from multivae_core.errors import ConfigError

__all__ = ["Blocks", "Broadcast", "Features", "Pooled", "Shape", "check_network"]

Shape = tuple[int, ...]

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_MODES = {2: "bilinear", 3: "trilinear"}


@attrs.frozen(kw_only=True)
class Blocks:
    """Shapes of all levels, and the blocks between them.

    Args:
        rank: Axes of the grid: 0 for vectors, 2 for images, 3 for volumes.
        features: F_1 to F_(L-1), at least one.
        latents: Z_1 to Z_L.
        normalised: Whether channels are normalised within each row.
    """

    rank: int
    features: tuple[Shape, ...]
    latents: tuple[Shape, ...]
    normalised: bool

    @classmethod
    def of(
        cls,
        grid: Shape,
        channels: list[int],
        latents: list[int],
        top_is_map: bool,
        normalised: bool,
    ) -> Blocks:
        """Work out the shapes; every level halves the sides, rounded up.

        Args:
            grid: Sides of the finest level; () for vectors.
            channels: Of the features, the finest first; the last one serves for all further.
            latents: Channels of Z_1 to Z_L.
            top_is_map: Whether Z_L has a grid.
            normalised: See the class.
        """
        grids = [grid]
        for _ in latents[1:]:
            grids.append(tuple((side + 1) // 2 for side in grids[-1]))
        widths = [channels[min(i, len(channels) - 1)] for i in range(max(len(latents) - 1, 1))]
        shapes = [(c, *own) for c, own in zip(latents, grids, strict=True)]
        if not top_is_map:
            shapes[-1] = (latents[-1],)
        return cls(
            rank=len(grid),
            features=tuple((c, *own) for c, own in zip(widths, grids, strict=False)),
            latents=tuple(shapes),
            normalised=normalised,
        )

    def up(self, level: int) -> nn.Module:
        """F_level -> F_(level + 1)."""
        below, above = self.features[level - 1][0], self.features[level][0]
        return nn.Sequential(*self._layer(below, above, stride=2), *self._layer(above, above))

    def top(self) -> nn.Module:
        """The last features -> mean and log-variance of Z_L."""
        (width, *grid), shape = self.features[-1], self.latents[-1]
        if len(self.latents) == 1:
            return nn.Sequential(*self._layer(width, width), self._pointwise(width, 2 * shape[0]))
        down = self._layer(width, width, stride=2)
        if len(shape) > 1 or not grid:
            return nn.Sequential(*down, self._pointwise(width, 2 * shape[0]))
        cells = width * math.prod((side + 1) // 2 for side in grid)
        return nn.Sequential(*down, nn.Flatten(), nn.Linear(cells, 2 * shape[0]))

    def down(self, level: int) -> nn.Module:
        """Z_(level + 1) -> what prior and posterior of the level see, of the shape of F_level."""
        above, (width, *grid) = self.latents[level], self.features[level - 1]
        if not grid:
            return nn.Sequential(*self._layer(above[0], width), *self._layer(width, width))
        layers: list[nn.Module] = []
        if len(above) == 1:
            coarse = [(side + 1) // 2 for side in grid]
            layers += [nn.Linear(above[0], width * math.prod(coarse)), nn.SiLU()]
            layers.append(nn.Unflatten(1, (width, *coarse)))
        else:
            layers += self._layer(above[0], width)
        return nn.Sequential(*layers, _Resize(tuple(grid)), *self._layer(width, width))

    def prior(self, level: int) -> nn.Module:
        """What comes down -> mean and log-variance of Z_level."""
        return self._pointwise(self.features[level - 1][0], 2 * self.latents[level - 1][0])

    def posterior(self, level: int) -> nn.Module:
        """What comes down beside what comes up -> mean and log-variance of Z_level."""
        width = self.features[level - 1][0]
        last = self._pointwise(width, 2 * self.latents[level - 1][0])
        return nn.Sequential(self._pointwise(2 * width, width), nn.SiLU(), last)

    def stem(self, channels: int, stride: int) -> nn.Module:
        """An image or volume of any size -> F_1."""
        width, *grid = self.features[0]
        layers = [*self._layer(channels, width, stride), _Resize(tuple(grid))]
        return nn.Sequential(*layers, *self._layer(width, width))

    def image(self, shape: Shape) -> nn.Module:
        """Z_1, a map -> an image or volume ``shape``."""
        width = self.features[0][0]
        layers = [*self._layer(self.latents[0][0], width), _Resize(shape[1:])]
        return nn.Sequential(*layers, *self._layer(width, width), self._spatial(width, shape[0]))

    def pooled(self) -> nn.Module:
        """Z_1, a map -> features without a grid."""
        width = self.features[0][0]
        return nn.Sequential(*self._layer(self.latents[0][0], width), *self._layer(width, width))

    def _layer(self, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        layers = [self._spatial(inputs, outputs, stride)]
        if self.normalised and self.rank:
            # groups of at least two channels: one cell alone has nothing to be compared with
            layers.append(nn.GroupNorm(math.gcd(8, max(1, outputs // 2)), outputs))
        elif self.normalised:
            layers.append(nn.LayerNorm(outputs))
        return [*layers, nn.SiLU()]

    def _spatial(self, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        if not self.rank:
            return nn.Linear(inputs, outputs)
        return _CONVOLUTIONS[self.rank](inputs, outputs, 3, stride, 1)

    def _pointwise(self, inputs: int, outputs: int) -> nn.Module:
        return (
            _CONVOLUTIONS[self.rank](inputs, outputs, 1)
            if self.rank
            else nn.Linear(inputs, outputs)
        )


class _Resize(nn.Module):
    """Linear interpolation to a grid; nothing where it is that already."""

    def __init__(self, grid: Shape) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, value: Tensor) -> Tensor:
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
