"""Posteriors over all latents of a model, and the prior over all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import attrs
from torch import Tensor

from multivae_core.distributions import Distribution
from multivae_core.noise import NoiseSource
from multivae_core.priors import Prior, standard_log_prob

__all__ = ["Draw", "FactorisedPosterior", "JointPrior", "LatentName", "Latents", "Posterior"]

LatentName = str | tuple[str, str]
"""``"shared"``, ``("private", "image")``, or the name of a level of a hierarchy."""

Latents = dict[LatentName, Tensor]
"""Latent -> ``(n, B, *event)``."""


@attrs.frozen(kw_only=True)
class Draw:
    """Samples of all latents with their log-densities in nats.

    Args:
        latents: Latent -> ``(n, B, *event)``.
        log_q: ``(n, B)``, what importance weights must divide by; None: no density is known.
        log_p: ``(n, B)`` under the prior where the sweep that drew has it already; None:
            ask the prior.
    """

    latents: Latents
    log_q: Tensor | None = None
    log_p: Tensor | None = None


class Posterior(ABC):
    """What a model believes about its latents, given what is seen of every row."""

    @abstractmethod
    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """Draw ``n`` samples of every row, with gradients."""

    @abstractmethod
    def mean(self) -> Latents:
        """A point for every row, each latent ``(1, B, *event)``."""


class FactorisedPosterior(Posterior):
    """Independent latents, each with a distribution of its own.

    Args:
        parts: Latent -> distribution over ``(B, *event)``.
    """

    def __init__(self, parts: Mapping[LatentName, Distribution]) -> None:
        self.parts = dict(parts)

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`."""
        drawn = {name: part.draw(n, noise, name) for name, part in self.parts.items()}
        log_q = sum((density for _, density in drawn.values()), start=_nothing(drawn))
        return Draw(latents={name: value for name, (value, _) in drawn.items()}, log_q=log_q)

    def mean(self) -> Latents:
        """See `Posterior.mean`."""
        return {name: part.mean[None] for name, part in self.parts.items()}

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of all latents together in nats, ``(n, B)``."""
        densities = [part.log_prob(latents[name]) for name, part in self.parts.items()]
        return sum(densities[1:], start=densities[0])


def _nothing(drawn: Mapping[LatentName, tuple[Tensor, Tensor]]) -> Tensor:
    return next(iter(drawn.values()))[1].new_zeros(())


class JointPrior:
    """A prior over the shared latent and N(0, I) over every other one.

    Args:
        shared: Prior of the latent ``"shared"``.
        sizes: Size of every latent.
    """

    def __init__(self, shared: Prior, sizes: Mapping[LatentName, int]) -> None:
        self.shared = shared
        self.sizes = dict(sizes)

    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """Draw every latent, ``(n, B, D)``."""
        return {
            name: self.shared.sample(n, rows, noise, name)
            if name == "shared"
            else noise.normal(name, (n, rows, size))
            for name, size in self.sizes.items()
        }

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of all latents together in nats, ``(n, B)``."""
        densities = [
            self.shared.log_prob(value) if name == "shared" else standard_log_prob(value)
            for name, value in latents.items()
        ]
        return sum(densities[1:], start=densities[0])
