"""Points of the plane, seen in three ways, and densities over them on a grid.

``norm`` knows how far a point is from the origin, ``lines`` how far from the vertical axis,
``direction`` which way it lies. Given all three it is known up to a small ellipse; given one or
two it is on a ring, on two lines, in a wedge, in two or four spots, on an arc.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

import multivae_core as mv

__all__ = ["FEATURES", "NAMES", "NOISE", "Grid", "World", "energy", "exact", "predictive", "world"]

NAMES = ("direction", "lines", "norm")
FEATURES, NOISE = 10, 0.3
_EDGE = 4.5  # the prior has 4e-5 of its mass further away from the origin


@attrs.frozen(kw_only=True)
class World:
    """The process that makes the data: tanh of what a modality knows, and noise.

    Args:
        slopes: Modality -> ``(inputs, features)``.
        shifts: Modality -> ``(features,)``.
    """

    slopes: dict[str, Tensor]
    shifts: dict[str, Tensor]

    def means(self, z: Tensor) -> dict[str, Tensor]:
        """Modality -> mean of its features, ``(..., 2)`` -> ``(..., features)``."""
        norm = z.norm(dim=-1, keepdim=True)
        known = {
            "norm": norm,
            "lines": z[..., :1].abs(),
            "direction": z / (0.1 + norm.square()).sqrt(),
        }
        return {m: torch.tanh(known[m] @ self.slopes[m] + self.shifts[m]) for m in NAMES}

    def draw(self, rows: int, seed: int) -> mv.IncompleteDataset:
        """Complete rows."""
        random = torch.Generator().manual_seed(seed)
        means = self.means(torch.randn(rows, 2, generator=random))
        return mv.IncompleteDataset(
            {m: x + NOISE * torch.randn(x.shape, generator=random) for m, x in means.items()}
        )

    def scores(self, z: Tensor, rows: mv.Batch) -> dict[str, Tensor]:
        """Modality -> log p(x_m | z) in nats at every point for every row, ``(B, G)``."""
        constant = FEATURES * (math.log(NOISE) + 0.5 * math.log(2.0 * math.pi))
        return {
            m: -0.5 * ((rows.values[m][:, None] - mean) / NOISE).square().sum(-1) - constant
            for m, mean in self.means(z).items()
        }


def world() -> World:
    """The same in every run."""
    random = torch.Generator().manual_seed(0)
    inputs = {"direction": 2, "lines": 1, "norm": 1}
    return World(
        slopes={m: torch.randn(n, FEATURES, generator=random) for m, n in inputs.items()},
        shifts={m: torch.randn(FEATURES, generator=random) for m in NAMES},
    )


@attrs.frozen(kw_only=True)
class Grid:
    """Points of the plane.

    Args:
        z: ``(G, 2)``.
        side: Distance between neighbours.
    """

    z: Tensor
    side: float

    @classmethod
    def of(cls, points: int) -> Grid:
        """So many points along each axis."""
        axis = torch.linspace(-_EDGE, _EDGE, points)
        z = torch.cartesian_prod(axis, axis)
        return cls(z=z, side=float(axis[1] - axis[0]))

    def picture(self, values: Tensor) -> dict[str, Any]:
        """Values at the points, ``(G,)``, as arguments of matplotlib's ``imshow``."""
        points = round(len(values) ** 0.5)
        edges = (-_EDGE, _EDGE, -_EDGE, _EDGE)
        return {"X": values.view(points, points).T, "origin": "lower", "extent": edges}

    def normalised(self, log_p: Tensor) -> Tensor:
        """Log-densities, ``(B, G)``, whose integral over the grid is 1."""
        return log_p - log_p.logsumexp(dim=1, keepdim=True) - 2.0 * math.log(self.side)

    def integral(self, log_p: Tensor, values: Tensor) -> Tensor:
        """The expectation of values under densities, ``(B,)``."""
        p = log_p.exp() * self.side**2
        return torch.where(p > 0, p * values, 0.0).sum(dim=1)

    def draw(self, log_p: Tensor, n: int, seed: int) -> Tensor:
        """Draws of densities, ``(n, B, 2)``: a point, and a place within its cell."""
        random = torch.Generator().manual_seed(seed)
        cell = torch.multinomial(log_p.softmax(dim=1), n, replacement=True, generator=random)
        within = torch.rand(n, len(log_p), 2, generator=random) - 0.5
        return self.z[cell.T] + self.side * within


def exact(grid: Grid, scores: dict[str, Tensor], seen: Sequence[str]) -> Tensor:
    """Log p(z | x_S) on the grid, ``(B, G)``."""
    log_prior = -0.5 * grid.z.square().sum(dim=1)
    return grid.normalised(log_prior + sum(scores[m] for m in seen))


def predictive(
    grid: Grid, log_p: Tensor, scores: dict[str, Tensor], rest: Sequence[str]
) -> Tensor:
    """Log p(x_T | x_S) out of p(z | x_S), nats, ``(B,)``."""
    whole = log_p + sum(scores[m] for m in rest)
    return whole.logsumexp(dim=1) + 2.0 * math.log(grid.side)


def energy(x: Tensor, y: Tensor) -> Tensor:
    """Squared energy distance of two sets of draws, ``(n, B, 2)`` each, ``(B,)``.

    Pairs of a draw with itself are left out, so that it may fall below 0 by chance.
    """
    x, y = x.movedim(0, 1), y.movedim(0, 1)
    n = x.shape[1]
    within = [torch.cdist(s, s).sum(dim=(1, 2)) / (n * (n - 1)) for s in (x, y)]
    return 2.0 * torch.cdist(x, y).mean(dim=(1, 2)) - within[0] - within[1]
