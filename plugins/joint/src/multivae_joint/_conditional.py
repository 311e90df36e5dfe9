"""Priors that depend on what is conditioned on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import LatentPrior, Latents

__all__ = ["ConditionalPrior", "LearnedPrior"]

_BOUND = 10.0


class LearnedPrior(nn.Module):
    """A Gaussian out of features of the conditions, N(0, I) to begin with.

    Args:
        trunk: From ``(B, F)`` to ``(B, H)``.
        size: Size F of the features.
        latent_dim: Size D of the latent.

    Raises:
        ConfigError: The trunk does not map two rows of zeros to two rows.
    """

    def __init__(self, trunk: nn.Module, size: int, latent_dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        width = getattr(trunk, "out_features", None)
        if not isinstance(width, int):
            width = _width(trunk, size)
        self.head = nn.Linear(width, 2 * latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Normal:
        """Return the prior, ``(B, D)``; log-variances are bounded, so that KLs stay finite."""
        mean, log_variance = self.head(self.trunk(features)).chunk(2, dim=1)
        return Normal(mean, log_variance.clamp(-_BOUND, _BOUND))


class ConditionalPrior(LatentPrior):
    """A Gaussian of its own for every row.

    Args:
        own: Over ``(B, D)``.
    """

    def __init__(self, own: Normal) -> None:
        self.own = own

    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """See `LatentPrior.sample`."""
        return {"shared": self.own.sample(n, noise, "shared")}

    def log_prob(self, latents: Latents) -> Tensor:
        """See `LatentPrior.log_prob`."""
        return self.own.log_prob(latents["shared"])


def _width(trunk: nn.Module, size: int) -> int:
    like = next(trunk.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            found: Tensor = trunk(like.new_zeros(2, size))
    except (RuntimeError, TypeError, ValueError) as error:
        rule = f"it must map (rows, {size}) to (rows, features)"
        raise ConfigError(
            f"the network fails ({error}); {rule}", "networks.prior_network"
        ) from error
    return found.shape[1]
