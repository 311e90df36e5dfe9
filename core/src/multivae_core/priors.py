"""Priors over the shared latent."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, one_of
from multivae_core.distributions import FAMILIES, Distribution, Laplace, Normal, expert
from multivae_core.noise import NoiseSource

if TYPE_CHECKING:
    from multivae_core.model_networks import MultimodalNetworks

__all__ = [
    "OrPrior",
    "Prior",
    "ScaledConfig",
    "ScaledPrior",
    "StandardNormal",
    "StandardNormalConfig",
    "kl_to_prior",
    "standard_log_prob",
]


class Prior(nn.Module):
    """A distribution over a latent that no data have touched.

    Args:
        config: The configuration of the prior.
        latent_dim: Size D of the latent.
    """

    origin: Tensor

    def __init__(self, config: Any, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = latent_dim
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    def bind(self, model: MultimodalNetworks) -> None:
        """Learn whose prior this is; for priors made of the model's encoders (VampPrior).

        The model has its configuration, encoders and decoders by then. A prior may keep it, but
        not as a part of its own: the model is made of the prior, not the prior of the model.
        """

    @abstractmethod
    def sample(self, n: int, rows: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """Draw ``(n, B, D)`` with gradients into the prior's parameters."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, ``(..., D)`` -> ``(...)``."""

    def kl(self, posterior: Distribution) -> Tensor | None:
        """KL(posterior || prior) in closed form, ``(*batch)`` nats; None where there is none."""
        return None

    def divergence(self, posterior: Distribution, value: Tensor) -> Tensor:
        """KL(posterior || prior): in closed form, or estimated with the samples given.

        Args:
            posterior: Over ``(*batch, D)``.
            value: Samples of the posterior, ``(*batch, D)``.

        Returns:
            ``(*batch)`` nats.
        """
        closed = self.kl(posterior)
        return posterior.log_prob(value) - self.log_prob(value) if closed is None else closed

    def mean(self) -> Tensor:
        """``(D,)``; default: 0."""
        return self.origin


@config
class StandardNormalConfig:
    """The prior N(0, I); it has no options."""


class StandardNormal(Prior):
    """The prior N(0, I)."""

    def sample(self, n: int, rows: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Prior.sample`."""
        return noise.normal(name, (n, rows, self.latent_dim))

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Prior.log_prob`."""
        return standard_log_prob(value)

    def kl(self, posterior: Distribution) -> Tensor | None:
        """See `Prior.kl`."""
        return posterior.kl() if isinstance(posterior, Normal) else None


@config
class ScaledConfig:
    """A prior of mean 0 whose scale goes through the same map as the experts'.

    Args:
        family: Gaussian or Laplace, and the map from the raw parameter to the scale.
        learn: Whether the scale is learned.
    """

    family: str = attrs.field(default="normal", validator=one_of(*FAMILIES))
    learn: bool = True


class ScaledPrior(Prior):
    """A prior of mean 0 with a scale for every dimension (Shi et al. 2019, section 4)."""

    def __init__(self, config: ScaledConfig, latent_dim: int) -> None:
        super().__init__(config, latent_dim)
        self.raw_scale = nn.Parameter(torch.zeros(latent_dim), requires_grad=config.learn)

    def distribution(self) -> Normal | Laplace:
        """The prior as a distribution over ``(D,)``."""
        return expert(torch.zeros_like(self.raw_scale), self.raw_scale, self.config.family)

    def sample(self, n: int, rows: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Prior.sample`."""
        own = self.distribution()
        draw = noise.laplace if isinstance(own, Laplace) else noise.normal
        scale = own.scale if isinstance(own, Laplace) else (0.5 * own.log_variance).exp()
        return scale * draw(name, (n, rows, self.latent_dim))

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Prior.log_prob`."""
        return self.distribution().log_prob(value)

    def kl(self, posterior: Distribution) -> Tensor | None:
        """See `Prior.kl`."""
        own = self.distribution()
        if isinstance(own, Normal) and isinstance(posterior, Normal):
            return posterior.kl(own)
        if isinstance(own, Laplace) and isinstance(posterior, Laplace):
            return posterior.kl(own)
        return None


class OrPrior(Distribution):
    """A posterior in rows of which something is seen, and the prior in all others.

    Args:
        posterior: Over ``(B, D)``.
        prior: The prior.
        seen: ``(B,)`` bool.
    """

    def __init__(self, posterior: Distribution, prior: Prior, seen: Tensor) -> None:
        self.posterior, self.prior, self.seen = posterior, prior, seen

    @property
    def mean(self) -> Tensor:
        """See `Distribution.mean`."""
        own = self.posterior.mean
        return torch.where(self.seen[:, None], own, self.prior.mean().to(own))

    def draw(self, n: int, noise: NoiseSource, name: Hashable) -> tuple[Tensor, Tensor]:
        """See `Distribution.draw`."""
        value, log_q = self.posterior.draw(n, noise, name)
        other = self.prior.sample(n, len(self.seen), noise, name)
        value = torch.where(self.seen[:, None], value, other)
        return value, torch.where(self.seen, log_q, self.prior.log_prob(value))

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        return torch.where(self.seen, self.posterior.log_prob(value), self.prior.log_prob(value))

    def detach(self) -> OrPrior:
        """The same with the posterior's parameters cut from the graph."""
        return OrPrior(self.posterior.detach(), self.prior, self.seen)


def kl_to_prior(
    posterior: Distribution, prior: Prior, value: Tensor, path: bool = False
) -> Tensor:
    """KL(posterior || prior) in nats, see `Prior.divergence`.

    Args:
        posterior: Over ``(*batch, D)``.
        prior: The prior.
        value: Samples of the posterior, ``(*batch, D)``.
        path: Whether it is estimated with the samples and the score is left out of its gradient,
            which goes along the path of the samples alone (Roeder et al. 2017).
    """
    if path:
        return posterior.detach().log_prob(value) - prior.log_prob(value)
    return prior.divergence(posterior, value)


def standard_log_prob(value: Tensor) -> Tensor:
    """Log-density of N(0, I) in nats, ``(..., D)`` -> ``(...)``."""
    size = value.shape[-1] * math.log(2.0 * math.pi)
    squared: Tensor = torch.linalg.vecdot(value, value)
    return -0.5 * (squared + size)
