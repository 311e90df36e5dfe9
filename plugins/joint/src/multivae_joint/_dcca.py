"""Deep canonical correlation analysis (Andrew, Arora, Bilmes & Livescu 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Embedded", "correlation"]

_RIDGE, _LEAST = 1e-3, 1e-9


class _Embedding(nn.Module):
    """A trunk and a linear layer of a given size."""

    def __init__(self, trunk: nn.Module, size: int) -> None:
        super().__init__()
        self.trunk = trunk
        features: int = trunk.out_features  # type: ignore[assignment]
        self.layer = nn.Linear(features, size)

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.layer(self.trunk(values, observed))
        return embedded


class Embedded(nn.Module):
    """The trunk of an encoder that sees an embedding of the data alone.

    Args:
        trunk: From values and element mask to features, with ``out_features``.
        size: Size of the embedding.
        hidden: Sizes of the layers between the embedding and the features.
    """

    def __init__(self, trunk: nn.Module, size: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = _Embedding(trunk, size)
        self.after = nn.Sequential()
        self.out_features = size
        for width in hidden:
            self.after.extend([nn.Linear(self.out_features, width), nn.ReLU()])
            self.out_features = width

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features ``(R, F)``."""
        features: Tensor = self.after(self.embedding(values, observed))
        return features


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Sum of the canonical correlations of two embeddings, each ``(R, k)``: at most k."""
    left, right = left - left.mean(dim=0), right - right.mean(dim=0)
    scale = 1.0 / max(len(left) - 1, 1)
    between = _whitening(left, scale) @ (scale * left.T @ right) @ _whitening(right, scale)
    total: Tensor = torch.linalg.svdvals(between).sum()
    return total


def _whitening(centred: Tensor, scale: float) -> Tensor:
    """Inverse square root of the covariance, ``(k, k)``."""
    ridge = _RIDGE * torch.eye(centred.shape[1], dtype=centred.dtype, device=centred.device)
    values, vectors = torch.linalg.eigh(scale * centred.T @ centred + ridge)
    root: Tensor = vectors @ torch.diag(values.clamp_min(_LEAST).rsqrt()) @ vectors.T
    return root
