"""Pieces of models that read their latent from one modality at a time."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from multivae_core.distributions import Mixture, Normal
from multivae_core.fusion import power_product
from multivae_core.posteriors import LatentName

__all__ = ["Silent", "SourceMixture", "dropout_entropy"]

_K1, _K2, _K3 = 0.63576, 1.8732, 1.48695


class SourceMixture(Mixture):
    """A mixture whose point is the geometric mean of its components."""

    __slots__ = ()

    @property
    def pool(self) -> Normal:
        """The geometric mean."""
        return power_product(cast(Normal, self.components), self.weights[None])[0]

    @property
    def mean(self) -> Tensor:
        """See `Distribution.mean`."""
        return self.pool.mean


class Silent(nn.Module):
    """The encoder of a modality that tells nothing about any latent."""

    def forward(self, values: Tensor, observed: Tensor | None = None) -> dict[LatentName, Tensor]:
        """Return nothing."""
        return {}


def dropout_entropy(log_alpha: Tensor) -> Tensor:
    """Minus the divergence from the log-uniform prior, up to a constant; a scalar, in nats."""
    clamped = log_alpha.clamp(-8.0, 8.0)
    fitted = _K1 * torch.sigmoid(_K2 + _K3 * clamped) - 0.5 * nn.functional.softplus(-clamped)
    return (fitted - _K1).sum()
