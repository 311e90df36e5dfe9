"""Many ridge regressions at once: one for every pixel of a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["features", "ridge"]

PENALTIES = torch.logspace(-3, 4, 15)


def features(sources: list[Tensor], around: int | None) -> Any:
    """What every regression sees: a slice of the P regressions -> ``(P, N, F)``."""
    pictures = torch.cat(sources, dim=1)
    if around is None:
        return lambda part: pictures.flatten(1)[None]
    padded = functional.pad(pictures, [around // 2] * 4, mode="replicate")
    squares = padded.unfold(2, around, 1).unfold(3, around, 1)
    places = squares.permute(2, 3, 0, 1, 4, 5).flatten(0, 1)  # views: copied slice by slice
    return lambda part: places[part].flatten(2)


def ridge(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """P regressions, each with the penalty that is best for a fifth of its rows.

    Args:
        x: ``(P, N, F)``.
        y: ``(P, N, T)``.
        new: ``(P, N', F)``.

    Returns:
        Predictions ``(P, N', T)``.
    """
    cut = -(-4 * x.shape[1] // 5)
    tried = _ridge(x[:, :cut], y[:, :cut], x[:, cut:], PENALTIES.expand(len(x), -1))
    errors = torch.stack([(each - y[:, cut:]).square().mean(dim=(1, 2)) for each in tried])
    best = PENALTIES[errors.argmin(dim=0)]
    return _ridge(x, y, new, best[:, None])[0]


def _ridge(x: Tensor, y: Tensor, new: Tensor, penalties: Tensor) -> list[Tensor]:
    """Predictions for each of the penalties ``(P, K)``."""
    centre, level = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    x, y, new = (x - centre).double(), (y - level).double(), (new - centre).double()
    wide = x.shape[2] > x.shape[1]  # of the two matrices of products the smaller one
    strength, axes = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    along = axes.mT @ (y if wide else x.mT @ y)
    new = new @ (x.mT @ axes if wide else axes)
    strength = strength.clamp_min(0)[:, :, None]
    return [
        (new @ (along / (strength + penalty[:, None, None]))).float() + level
        for penalty in penalties.T
    ]
