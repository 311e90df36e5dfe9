"""Beliefs about both levels of Nexus: what is seen has a latent, all else a prediction of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import Draw, LatentPrior, Latents, Posterior
from multivae_core.priors import Prior
from multivae_hierarchical._top import TopLevel

__all__ = ["NexusPosterior", "NexusPrior"]


class NexusPosterior(Posterior):
    """Both levels given what a row has.

    Args:
        top: The top level.
        prior: Prior of the top latent.
        bottom: Modality -> posterior of its latent.
        batch: What is seen.
        sampled: Whether what a row does not have is drawn from p(z_m | u), or is its mean.
        from_top: Whether what a row has is predicted too; there is no density then.
    """

    def __init__(
        self,
        top: TopLevel,
        prior: Prior,
        bottom: Mapping[str, Normal],
        batch: Batch,
        sampled: bool,
        from_top: bool,
    ) -> None:
        self.top = top
        self.prior = prior
        self.bottom = bottom
        self.batch = batch
        self.sampled = sampled
        self.from_top = from_top

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`; latents that are predicted cancel in the two densities."""
        standard = {m: noise.normal(("bottom", m), (n, *q.mean.shape)) for m, q in self._each()}
        z = {name: q.place(standard[name]) for name, q in self._each()}
        q = self._top(z)
        u = q.place(noise.normal("shared", tuple(q.mean.shape)))
        predicted = self.top.predict(u)
        log_q, log_p = q.log_prob(u), self.prior.log_prob(u)
        for name, own in self._each():
            column = self.batch.column(name)
            p = self.top.likelihood(name, predicted[name])
            log_q = log_q + torch.where(column, own.log_prob(z[name]), 0.0)
            log_p = log_p + torch.where(column, p.log_prob(z[name]), 0.0)
            if self.sampled:
                predicted[name] = p.place(standard[name])
        latents = self._latents(u, z, predicted)
        if self.from_top:
            return Draw(latents=latents)
        return Draw(latents=latents, log_q=log_q, log_p=log_p)

    def mean(self) -> Latents:
        """See `Posterior.mean`: the top latent given the means of the modalities'."""
        z = {name: q.mean[None] for name, q in self._each()}
        u = self._top(z).mean
        return self._latents(u, z, self.top.predict(u))

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of all latents together in nats, ``(n, B)``."""
        z = {name: latents["bottom", name] for name in self.bottom}
        u = latents["shared"]
        total, predicted = self._top(z).log_prob(u), self.top.predict(u)
        for name, own in self._each():
            p = self.top.likelihood(name, predicted[name])
            total = total + torch.where(
                self.batch.column(name), own.log_prob(z[name]), p.log_prob(z[name])
            )
        return total

    def _each(self) -> Any:
        return self.bottom.items()

    def _top(self, z: Mapping[str, Tensor]) -> Normal:
        return self.top.posterior(z, self.batch, self.batch.present)

    def _latents(
        self, u: Tensor, z: Mapping[str, Tensor], predicted: Mapping[str, Tensor]
    ) -> Latents:
        found: Latents = {"shared": u}
        for name in self.bottom:
            own = self.batch.column(name)[:, None] & (not self.from_top)
            found["bottom", name] = torch.where(own, z[name], predicted[name])
        return found


class NexusPrior(LatentPrior):
    """The top latent, and the modalities' given it.

    Args:
        top: The top level.
        prior: Prior of the top latent.
        sampled: Whether a modality's latent is drawn from p(z_m | u), or is its mean.
    """

    def __init__(self, top: TopLevel, prior: Prior, sampled: bool) -> None:
        self.top = top
        self.prior = prior
        self.sampled = sampled

    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """See `LatentPrior.sample`."""
        u = self.prior.sample(n, rows, noise, "shared")
        found: Latents = {"shared": u}
        for name, predicted in self.top.predict(u).items():
            found["bottom", name] = predicted
            if self.sampled:
                standard = noise.normal(("bottom", name), tuple(predicted.shape))
                found["bottom", name] = self.top.likelihood(name, predicted).place(standard)
        return found

    def log_prob(self, latents: Latents) -> Tensor:
        """See `LatentPrior.log_prob`."""
        total = self.prior.log_prob(latents["shared"])
        for name, predicted in self.top.predict(latents["shared"]).items():
            p = self.top.likelihood(name, predicted)
            total = total + p.log_prob(latents["bottom", name])
        return total
