"""The top level of Nexus: messages up, predictions down, and beliefs about both levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multivae_core.config import build
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.networks.heads import PerModality
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import Draw, LatentPrior, Latents, Posterior
from multivae_core.priors import Prior
from multivae_hierarchical._blocks import check_network

if TYPE_CHECKING:
    from multivae_hierarchical.nexus import NexusConfig

__all__ = ["ROLES", "NexusPosterior", "NexusPrior", "TopLevel"]

ROLES = {
    "messages": "ModuleDict of modality -> module of its latent -> message",
    "top_encoder": "message -> mean and log-variance of the top latent, side by side",
    "top_decoders": "ModuleDict of modality -> module of the top latent -> its latent",
}


class TopLevel(nn.Module):
    """Networks of the top level, and the deviations of what it predicts.

    Args:
        config: The configuration.
        dims: Modality -> size of its latent.
        own: Role -> the user's own networks.
    """

    log_variances: Tensor

    def __init__(
        self, config: NexusConfig, dims: Mapping[str, int], own: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(dims)
        size, message = config.latent_dim, config.msg_dim

        def make(role: str, name: str | None, inputs: int, outputs: int) -> nn.Module:
            if role not in own:
                built: nn.Module = build("decoders", getattr(config, role), inputs, (outputs,))
                return built
            try:
                found: nn.Module = own[role] if name is None else own[role][name]
            except (KeyError, TypeError) as error:
                raise ConfigError(f"must be a {ROLES[role]}", f"networks.{role}") from error
            what = role if name is None else f"{role} of {name!r}"
            check_network(found, what, (inputs,), (outputs,))
            return found

        self.messages = PerModality({m: make("messages", m, d, message) for m, d in dims.items()})
        self.encoder = make("top_encoder", None, message, 2 * size)
        self.decoders = PerModality({m: make("top_decoders", m, size, d) for m, d in dims.items()})
        plain = config.top_likelihood == "squared_error"
        scales = [math.sqrt(0.5) if plain else config.top_scales.get(m, 1.0) for m in dims]
        # a buffer: where it is adapted it belongs to the weights
        self.register_buffer("log_variances", 2.0 * torch.tensor(scales).log())

    def posterior(self, z: Mapping[str, Tensor], batch: Batch, heard: Tensor) -> Normal:
        """q(u | messages), N(0, I) in rows without any.

        Args:
            z: Modality -> ``(n, B, d)``.
            batch: Says which rows have which modality.
            heard: ``(B, M)`` bool, the messages that are passed on.

        Returns:
            Over ``(n, B, D)``.
        """
        total: Any = 0.0
        for column, name in enumerate(self.names):
            rows = batch.rows(name)
            own = z[name] if rows is None else z[name].index_select(1, rows)
            message = _over(self.messages[name], own)
            if rows is not None:
                empty = message.new_zeros(len(message), batch.size, message.shape[2])
                message = empty.index_copy(1, rows, message)
            total = total + torch.where(heard[:, column, None], message, 0.0)
        count = heard.sum(dim=1, keepdim=True).clamp_min(1)
        mean, log_variance = _over(
            self.encoder, total / count if self.config.aggregate == "mean" else total
        ).chunk(2, dim=2)
        something = heard.any(dim=1, keepdim=True)
        return Normal(torch.where(something, mean, 0.0), torch.where(something, log_variance, 0.0))

    def predict(self, u: Tensor) -> dict[str, Tensor]:
        """f_m(u) of every modality: ``(n, B, D)`` -> ``(n, B, d)``."""
        return {name: _over(self.decoders[name], u) for name in self.names}

    def log_variance(self, name: str) -> Tensor:
        """Log s_m^2, a scalar."""
        return self.log_variances[self.names.index(name)]

    def likelihood(self, name: str, predicted: Tensor) -> Normal:
        """p(z_m | u)."""
        return Normal(predicted, self.log_variance(name).expand_as(predicted))

    def follow(self, name: str, log_variance: Tensor, momentum: float) -> None:
        """Move log s_m^2 towards that of a batch."""
        place = self.names.index(name)
        self.log_variances[place] += momentum * (log_variance - self.log_variances[place])


def _over(network: nn.Module, value: Tensor) -> Tensor:
    """Run a network over ``(n, B, D)``."""
    out: Tensor = network(value.flatten(0, 1))
    return out.view(*value.shape[:2], out.shape[1])


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
