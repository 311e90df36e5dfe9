"""Networks of a hierarchy for vectors, images and volumes, out of one description.

Level l has features F_l on the way up and on the way down, and latents Z_l on the same grid, but
for the top, which may be a vector. The first axis counts channels, the others are the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from multivae_core.errors import ConfigError
from multivae_hierarchical._modules import Resize, Shape

__all__ = ["Blocks"]

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


@attrs.frozen(kw_only=True)
class Blocks:
    """Shapes of all levels, and the blocks between them.

    Args:
        rank: Axes of the grid: 0 for vectors, 2 for images, 3 for volumes.
        features: F_1 to F_(L-1), at least one.
        latents: Z_1 to Z_L.
        normalisation: None, or what is normalised within each row: ``layer``, groups of
            channels, or ``instance``, each channel.
        weight_norm: Whether the last layers of priors and posteriors have normalised weights.
    """

    rank: int
    features: tuple[Shape, ...]
    latents: tuple[Shape, ...]
    normalisation: str | None
    weight_norm: bool

    @classmethod
    def of(
        cls,
        grid: Shape,
        channels: list[int],
        latents: list[int],
        top_is_map: bool,
        normalisation: str | None,
        weight_norm: bool,
    ) -> Blocks:
        """Work out the shapes; every level halves the sides, rounded up.

        Args:
            grid: Sides of the finest level; () for vectors.
            channels: Of the features, the finest first; the last one serves for all further.
            latents: Channels of Z_1 to Z_L.
            top_is_map: Whether Z_L has a grid.
            normalisation: See the class.
            weight_norm: See the class.
        """
        grids = [grid]
        for _ in latents[1:]:
            grids.append(tuple((side + 1) // 2 for side in grids[-1]))
        if normalisation == "instance" and math.prod(grids[-1]) == 1:
            where = f"the deepest grid {grids[-1]}" if grid else "a vector"
            raise ConfigError(
                f"'instance' normalises a channel over its cells, and {where} has one cell alone;"
                " choose 'layer'",
                "normalisation",
            )
        widths = [channels[min(i, len(channels) - 1)] for i in range(max(len(latents) - 1, 1))]
        shapes = [(c, *own) for c, own in zip(latents, grids, strict=True)]
        if not top_is_map:
            shapes[-1] = (latents[-1],)
        return cls(
            rank=len(grid),
            features=tuple((c, *own) for c, own in zip(widths, grids, strict=False)),
            latents=tuple(shapes),
            normalisation=normalisation,
            weight_norm=weight_norm,
        )

    def __str__(self) -> str:
        """The shapes, a line per level."""
        lines = [f"{'level':<7}{'features F':<20}latents Z"]
        for i, latent in enumerate(self.latents):
            above = i and i == len(self.features)  # the top: there is nothing beside it
            lines.append(f"{i + 1:<7}{'-' if above else str(self.features[i]):<20}{latent}")
        return "\n".join(lines)

    def up(self, level: int) -> nn.Module:
        """F_level -> F_(level + 1)."""
        below, above = self.features[level - 1][0], self.features[level][0]
        return nn.Sequential(*self._layer(below, above, stride=2), *self._layer(above, above))

    def top(self) -> nn.Module:
        """The last features -> mean and log-variance of Z_L."""
        (width, *grid), shape = self.features[-1], self.latents[-1]
        if len(self.latents) == 1:
            return nn.Sequential(*self._layer(width, width), self._head(width, shape))
        down = self._layer(width, width, stride=2)
        if len(shape) > 1 or not grid:
            return nn.Sequential(*down, self._head(width, shape))
        cells = width * math.prod((side + 1) // 2 for side in grid)
        last = self._weighed(nn.Linear(cells, 2 * shape[0]))
        return nn.Sequential(*down, nn.Flatten(), last)

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
        return nn.Sequential(*layers, Resize(tuple(grid)), *self._layer(width, width))

    def prior(self, level: int) -> nn.Module:
        """What comes down -> mean and log-variance of Z_level."""
        return self._head(self.features[level - 1][0], self.latents[level - 1])

    def posterior(self, level: int) -> nn.Module:
        """What comes down beside what comes up -> mean and log-variance of Z_level."""
        width = self.features[level - 1][0]
        last = self._head(width, self.latents[level - 1])
        return nn.Sequential(self._pointwise(2 * width, width), nn.SiLU(), last)

    def stem(self, channels: int, stride: int) -> nn.Module:
        """An image or volume of any size -> F_1."""
        width, *grid = self.features[0]
        layers = [*self._layer(channels, width, stride), Resize(tuple(grid))]
        return nn.Sequential(*layers, *self._layer(width, width))

    def image(self, shape: Shape) -> nn.Module:
        """Z_1, a map -> an image or volume ``shape``."""
        width = self.features[0][0]
        layers = [*self._layer(self.latents[0][0], width), Resize(shape[1:])]
        return nn.Sequential(*layers, *self._layer(width, width), self._spatial(width, shape[0]))

    def pooled(self) -> nn.Module:
        """Z_1, a map -> features without a grid."""
        width = self.features[0][0]
        return nn.Sequential(*self._layer(self.latents[0][0], width), *self._layer(width, width))

    def _layer(self, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        layers = [self._spatial(inputs, outputs, stride)]
        if self.normalisation == "instance":
            layers.append(nn.GroupNorm(outputs, outputs))
        elif self.normalisation and self.rank:
            # groups of at least two channels: one cell alone has nothing to be compared with
            layers.append(nn.GroupNorm(math.gcd(8, max(1, outputs // 2)), outputs))
        elif self.normalisation:
            layers.append(nn.LayerNorm(outputs))
        return [*layers, nn.SiLU()]

    def _head(self, inputs: int, latent: Shape) -> nn.Module:
        """Mean and log-variance side by side."""
        return self._weighed(self._pointwise(inputs, 2 * latent[0]))

    def _weighed(self, layer: nn.Module) -> nn.Module:
        return weight_norm(layer) if self.weight_norm else layer

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
