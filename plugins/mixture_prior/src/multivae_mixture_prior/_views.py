"""The posterior of a model in which every modality has a latent of its own in one space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from multivae_core.distributions import Distribution, Normal
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import Draw, LatentName, LatentPrior, Latents, Posterior
from multivae_core.priors import Prior

__all__ = ["ViewPosterior", "ViewPrior", "own"]


def own(name: str) -> LatentName:
    """What a modality's latent is called; it is not private: any decoder can read it."""
    return f"own:{name}"


class ViewPosterior(Posterior):
    """``"shared"`` of all that is seen; ``"own:m"`` from q_m where m is seen.

    In rows without m, ``"own:m"`` is the draw of ``"shared"``: all that is missing in a row is
    decoded from one point.

    Args:
        shared: Over ``(B, D)``.
        views: Modality -> its posterior, over ``(B, D)``.
        seen: Modality -> ``(B,)`` bool.
    """

    def __init__(
        self, shared: Distribution, views: Mapping[str, Normal], seen: Mapping[str, Tensor]
    ) -> None:
        self.shared, self.views, self.seen = shared, dict(views), dict(seen)

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`."""
        value, log_q = self.shared.draw(n, noise, "shared")
        latents: Latents = {"shared": value}
        for name, q in self.views.items():
            seen = self.seen[name]
            drawn = q.sample(n, noise, own(name))
            latents[own(name)] = torch.where(seen[:, None], drawn, value)
            log_q = log_q + torch.where(seen, q.log_prob(drawn), 0.0)
        return Draw(latents=latents, log_q=log_q)

    def mean(self) -> Latents:
        """See `Posterior.mean`."""
        value = self.shared.mean
        latents: Latents = {"shared": value[None]}
        for name, q in self.views.items():
            latents[own(name)] = torch.where(self.seen[name][:, None], q.mean, value)[None]
        return latents

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of ``"shared"`` and the own latents of what is seen, nats, ``(n, B)``."""
        total = self.shared.log_prob(latents["shared"])
        for name, q in self.views.items():
            log_q = q.log_prob(latents[own(name)])
            total = total + torch.where(self.seen[name], log_q, 0.0)
        return total


class ViewPrior(LatentPrior):
    """One draw of the prior, from which every modality is decoded.

    Args:
        shared: The prior.
        modalities: Their names.
    """

    def __init__(self, shared: Prior, modalities: tuple[str, ...]) -> None:
        self.shared, self.modalities = shared, modalities

    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """See `LatentPrior.sample`."""
        value = self.shared.sample(n, rows, noise, "shared")
        names: list[LatentName] = ["shared", *map(own, self.modalities)]
        return dict.fromkeys(names, value)

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of ``"shared"``, of which the own latents are copies, nats, ``(n, B)``."""
        return self.shared.log_prob(latents["shared"])
