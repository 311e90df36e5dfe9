"""Surrogates that see an embedding of the data (Andrew, Arora, Bilmes & Livescu 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.data import Batch

__all__ = ["Embedded", "embed"]


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


class _MinMax(nn.Module):
    """Every dimension to [0, 1], by the least and the largest value that training has shown."""

    shown: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("shown", torch.zeros((), dtype=torch.bool))
        self.register_buffer("low", torch.zeros(size))
        self.register_buffer("high", torch.zeros(size))

    def forward(self, values: Tensor) -> Tensor:
        if self.training and len(values):
            low, high = values.detach().amin(dim=0), values.detach().amax(dim=0)
            self.low.copy_(torch.where(self.shown, torch.minimum(self.low, low), low))
            self.high.copy_(torch.where(self.shown, torch.maximum(self.high, high), high))
            self.shown.fill_(True)
        span = self.high - self.low
        return (values - self.low) / torch.where(span > 0, span, 1.0)


class Embedded(nn.Module):
    """The trunk of an encoder that sees an embedding of the data alone.

    Args:
        trunk: From values and element mask to features, with ``out_features``.
        size: Size of the embedding.
        hidden: Sizes of the layers between the embedding and the features.
        rescale: Whether the embedding is brought to [0, 1] in between.
    """

    def __init__(
        self, trunk: nn.Module, size: int, hidden: tuple[int, ...], rescale: bool = False
    ) -> None:
        super().__init__()
        self.embedding = _Embedding(trunk, size)
        self.after = nn.Sequential(*[_MinMax(size)] * rescale)
        self.out_features = size
        for width in hidden:
            self.after.extend([nn.Linear(self.out_features, width), nn.ReLU()])
            self.out_features = width

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features ``(R, F)``."""
        features: Tensor = self.after(self.embedding(values, observed))
        return features


def embed(encoder: Any, name: str, batch: Batch) -> Tensor:
    """The embedding that a modality's encoder makes of rows that all have it, ``(R, k)``."""
    values = batch.values[name]
    seen = values.log1p() if encoder.counts else values
    embedded: Tensor = encoder.trunk.embedding(seen, batch.observed.get(name))
    return embedded
