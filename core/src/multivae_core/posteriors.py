"""Posteriors over all latents of a model, and the prior over all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from multivae_core.distributions import Distribution
from multivae_core.noise import NoiseSource
from multivae_core.priors import Prior, standard_log_prob

__all__ = [
    "Draw", "FactorisedPosterior", "JointPrior", "LatentName", "LatentPrior", "Latents",
    "PointPosterior", "Posterior",
]  # fmt: skip

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


class PointPosterior(Posterior):
    """A point without a density in rows of which something is seen, the prior in all others.

    Args:
        points: Latent -> ``(B, *event)``; where nothing is seen the mean of the prior.
        seen: ``(B,)`` bool, rows of which something is seen.
        prior: What the other rows are drawn from.
    """

    def __init__(
        self, points: Mapping[LatentName, Tensor], seen: Tensor, prior: LatentPrior
    ) -> None:
        self.points = dict(points)
        self.seen = seen
        self.prior = prior

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`; the draws of a row of which something is seen are all alike."""
        latents = {name: point.expand(n, *point.shape) for name, point in self.points.items()}
        if not bool(self.seen.all()):
            drawn = self.prior.sample(n, len(self.seen), noise)
            for name, point in latents.items():
                seen = self.seen.view(-1, *(1 for _ in point.shape[2:]))
                latents[name] = torch.where(seen, point, drawn[name])
        return Draw(latents=latents)

    def mean(self) -> Latents:
        """See `Posterior.mean`."""
        return {name: point[None] for name, point in self.points.items()}


class LatentPrior(ABC):
    """A prior over all latents of a model."""

    @abstractmethod
    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """Draw every latent, ``(n, B, *event)``."""

    @abstractmethod
    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of all latents together in nats, ``(n, B)``."""


class JointPrior(LatentPrior):
    """Independent priors of all latents.

    Args:
        shared: Prior of the latent ``"shared"``.
        sizes: Size of every latent.
        others: Priors of further latents; N(0, I) where there is none.
    """

    def __init__(
        self,
        shared: Prior,
        sizes: Mapping[LatentName, int],
        others: Mapping[LatentName, Prior] | None = None,
    ) -> None:
        self.priors = {"shared": shared, **(others or {})}
        self.sizes = dict(sizes)

    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """See `LatentPrior.sample`."""
        return {
            name: self.priors[name].sample(n, rows, noise, name)
            if name in self.priors
            else noise.normal(name, (n, rows, size))
            for name, size in self.sizes.items()
        }

    def log_prob(self, latents: Latents) -> Tensor:
        """See `LatentPrior.log_prob`."""
        densities = [
            self.priors[name].log_prob(value) if name in self.priors else standard_log_prob(value)
            for name, value in latents.items()
        ]
        return sum(densities[1:], start=densities[0])
