"""Priors that depend on what is conditioned on, divergences from them, and withheld conditions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import LatentPrior, Latents

__all__ = ["ConditionalPrior", "LearnedPrior", "free_kl", "withheld"]

_BOUND = 10.0


class LearnedPrior(nn.Module):
    """A Gaussian out of features of the conditions, N(0, I) to begin with.

    Args:
        trunk: From ``(B, F)`` to ``(B, H)``.
        size: Size F of the features.
        options: The model's: latent_dim, log_variance_limit.

    Raises:
        ConfigError: The trunk does not map two rows of zeros to two rows.
    """

    def __init__(self, trunk: nn.Module, size: int, options: Any) -> None:
        super().__init__()
        self.trunk = trunk
        limit = options.log_variance_limit
        self.limit = _BOUND if limit is None else limit
        width = getattr(trunk, "out_features", None)
        if not isinstance(width, int):
            width = _width(trunk, size)
        self.head = nn.Linear(width, 2 * options.latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Normal:
        """Return the prior, ``(B, D)``; log-variances are bounded, so that KLs stay finite."""
        mean, log_variance = self.head(self.trunk(features)).chunk(2, dim=1)
        return Normal(mean, log_variance.clamp(-self.limit, self.limit))


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


def free_kl(q: Normal, prior: Normal, least: float) -> Tensor:
    """KL(q || prior) in nats, ``(B,)``, of which every dimension counts with ``least`` at least.

    Below that a dimension has no gradient (Kingma et al. 2016, whose least holds for the mean
    over a batch, ours for every row).
    """
    if least == 0.0:
        return q.kl(prior)
    each = Normal(q.mean[..., None], q.log_variance[..., None]).kl(
        Normal(prior.mean[..., None], prior.log_variance[..., None])
    )
    return each.clamp_min(least).sum(dim=1)


def withheld(batch: Batch, names: tuple[str, ...], rate: float, noise: NoiseSource) -> Batch:
    """Take each of some modalities away with a probability, row by row.

    Args:
        batch: What is seen.
        names: The modalities.
        rate: The probability.
        noise: Source of the random numbers.
    """
    keys = noise.uniform("condition dropout", (1, *batch.present.shape))[0]
    always = torch.tensor([name not in names for name in batch.names], device=keys.device)
    return batch.restrict(batch.present & ((keys > rate) | always))


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
