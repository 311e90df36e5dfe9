"""Nexus: a latent per modality at the bottom, and a shared one on top that predicts them.

    p(x, z, u) = p(u) prod_m N(z_m; f_m(u), s_m^2 I) p(x_m | z_m)
    q(z_m | x_m), and q(u | z_S) = q(u | h) with h = mean over m in S of the messages e_m(z_m)

    bottom = sum_{m in A} [ -w_m log p(x_m | z_m) + beta_m KL(q(z_m | x_m) || N(0, I)) ]
    top    = sum_{m in A} -gamma_m log N(sg z_m; f_m(u), s_m^2 I) + beta_u KL(q(u | h) || p(u))

with A what a row has, sg a stopped gradient, at the messages too: the top never shapes the bottom
(Vasco et al. 2022). In training S is a random part of A in some rows, otherwise A: forced
perceptual dropout. The sum of both is no bound: the bottom level is trained against N(0, I), which
is not what the model above says about z_m. Likelihoods are those of p(x, z, u).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import component, config, each, in_range, non_negative, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import NoiseSource, Step
from multivae_core.posteriors import LatentName, Latents
from multivae_core.priors import kl_to_prior
from multivae_core.schedules import Cyclical, Linear, schedule
from multivae_hierarchical._options import choice, share_of_rows
from multivae_hierarchical._top import ROLES, NexusPosterior, NexusPrior, TopLevel

__all__ = ["Nexus", "NexusConfig"]

_MOMENTUM = 0.1
_HIDDEN = {
    "type": "mlp",
    "hidden": [512, 512],
    "activation": "leaky_relu",
    "normalisation": "layer",
}


@config
class NexusConfig(ModelConfig):
    """Options of Nexus beside those of every model.

    ``latent_dim`` is the size of the top latent, ``beta`` and ``beta_schedule`` are about both
    levels, and ``modalities.<name>.weight`` is the weight w_m, which counts whatever else is set.

    Args:
        modality_dims: Size of single modalities' latents; those left out have ``latent_dim``.
        msg_dim: Size of the messages.
        messages: Networks that turn a modality's latent into its message.
        top_encoder: Network that turns the messages into the top posterior. By default it is
            normalised within a row; the authors' batch normalisation mixes rows.
        top_decoders: Networks that predict a modality's latent from the top one.
        aggregate: Whether the messages' ``mean`` or their ``sum`` is taken.
        dropout_rate: Share of rows with several modalities that pass on the messages of a random
            part of them, its size and then its members uniform; in training alone. Rows with
            missing modalities take part.
        bottom_betas: Weight in training of single modalities' divergences.
        top_beta: Weight in training of the top divergence.
        top_schedule: Ramp of the top divergence; None: that of ``beta_schedule``.
        gammas: Weight in training of the prediction of single modalities' latents.
        top_likelihood: How that is scored: ``gaussian``, or ``squared_error``, without 1/2 and
            constants as in the authors' code; as a density this has variance 1/2.
        top_scales: Deviations s_m under ``gaussian``; 1 for those left out. A weight gamma is no
            deviation: likelihoods see s_m alone.
        adapt_top_scale: Modalities whose s_m is the root mean square of what the top misses, over
            the rows at hand (each process has its own) and all dimensions; outside training a
            running mean of it.
        normalise: Bottom level and predictions in training: ``available_sum``: sums over what a
            row has, so that the top divergence weighs more in rows with little;
            ``mean_modality``: these times M over the number of modalities that a row has.
        decode_path: What modalities that are seen are decoded from: ``bottom``, their own
            latent, or ``top``, the prediction of it; others always from the prediction.
        sample_bottom: Whether a prediction is drawn from N(f_m(u), s_m^2 I) where it is decoded;
            otherwise it is f_m(u), as in the authors' code.
    """

    modality_dims: dict[str, int] = attrs.field(factory=dict, validator=each(positive))
    msg_dim: int = attrs.field(default=512, validator=positive)
    messages: Any = component("decoders", default={"type": "mlp", "hidden": []})
    top_encoder: Any = component("decoders", default=_HIDDEN)
    top_decoders: Any = component("decoders", default=_HIDDEN)
    aggregate: str = choice("mean", "sum")
    dropout_rate: float = attrs.field(default=0.2, validator=in_range(0.0, 1.0))
    bottom_betas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    top_beta: float = attrs.field(default=1.0, validator=non_negative)
    top_schedule: Linear | Cyclical | None = schedule()
    gammas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    top_likelihood: str = choice("gaussian", "squared_error")
    top_scales: dict[str, float] = attrs.field(factory=dict, validator=each(positive))
    adapt_top_scale: list[str] = attrs.field(factory=list)
    normalise: str = choice("available_sum", "mean_modality")
    decode_path: str = choice("bottom", "top")
    sample_bottom: bool = False

    def __attrs_post_init__(self) -> None:
        for option in ("modality_dims", "bottom_betas", "gammas", "top_scales", "adapt_top_scale"):
            for name in getattr(self, option):
                if name not in self.modalities:
                    known = ", ".join(self.modalities)
                    raise ConfigError(f"unknown modality; there is {known}", f"{option}.{name}")
        if self.top_likelihood == "squared_error" and (self.top_scales or self.adapt_top_scale):
            raise ConfigError("needs top_likelihood='gaussian'", "top_scales")


class Nexus(MultimodalVAE):
    """Hierarchy of a latent per modality and a shared one (Vasco et al. 2022)."""

    config: NexusConfig
    roles = ROLES

    def __init__(
        self, config: NexusConfig, networks: Mapping[str, nn.Module] | None = None, **own: Any
    ) -> None:
        super().__init__(config, networks=networks, **own)
        self.top = TopLevel(config, self.dims, networks or {})
        if config.adapt_top_scale:
            reason = "adapt_top_scale takes a deviation from the rows of a batch"
            self.lacks = {**self.lacks, "row_objective": reason}

    @property
    def dims(self) -> dict[str, int]:
        """Size of every modality's latent."""
        own = self.config.modality_dims
        return {name: own.get(name, self.config.latent_dim) for name in self.modalities}

    @property
    def latent_sizes(self) -> dict[LatentName, int]:
        """``"shared"``, the top latent, and ``("bottom", name)`` for every modality."""
        bottom: dict[LatentName, int] = {("bottom", m): size for m, size in self.dims.items()}
        return {"shared": self.config.latent_dim, **bottom}

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """The modality's own latent."""
        return {("bottom", name): self.dims[name]}

    def decoder_size(self, name: str) -> int:
        """Size of the modality's own latent."""
        return self.dims[name]

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """See `MultimodalNetworks.decode_one`."""
        likelihood: Likelihood = self.decoders[name](latents["bottom", name])
        return likelihood

    def posterior(self, batch: Batch) -> NexusPosterior:
        """Both levels, with predictions for what a row does not have; see ``decode_path``."""
        own = self.config
        return self._posterior(batch, own.sample_bottom, own.decode_path == "top")

    def proposal(self, batch: Batch) -> NexusPosterior:
        """Both levels under the hierarchical model, whatever is decoded."""
        return self._posterior(batch, True, False)

    def prior(self, batch: Batch) -> NexusPrior:
        """The top latent, and the modalities' given it."""
        return NexusPrior(self.top, self.shared_prior, self.config.sample_bottom)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Bottom and top in their terms."""
        bottom = self._bottom(batch)
        z = {name: q.sample(1, step.noise, ("bottom", name)) for name, q in bottom.items()}
        latents: Latents = {("bottom", name): value for name, value in z.items()}
        log_px = self.reconstruction(latents, batch, step)[0]
        kls = {name: q.kl() for name, q in bottom.items()}

        cut = {name: value.detach() for name, value in z.items()}
        heard = self._heard(batch.present, step) if step.training else batch.present
        q = self.top.posterior(cut, batch, heard)
        u = q.sample_once(step.noise, "shared")
        missed = self._missed(cut, u, batch, step)
        top_kl = torch.where(batch.something, kl_to_prior(q, self.shared_prior, u)[0], 0.0)

        own, training, beta = self.config, step.training, self.beta(step)
        betas, gammas = (own.bottom_betas, own.gammas) if training else ({}, {})
        share = share_of_rows(own, batch, step, log_px)
        terms = {
            "reconstruction": Term(-share * log_px),
            "kl_bottom": Term(share * beta * self._weighted(kls, betas)),
            "top": Term(share * self._weighted(missed, gammas)),
            "kl_top": Term(self._top_beta(step) * top_kl),
        }
        metrics = {"top_kl": top_kl.detach()}
        metrics |= {f"bottom_kl_{name}": kl.detach() for name, kl in kls.items()}
        metrics |= {f"prediction_{name}": value.detach() for name, value in missed.items()}
        return LossOutput(terms=terms, metrics=metrics)

    def _bottom(self, batch: Batch) -> dict[str, Normal]:
        """Posterior of every modality's latent; N(0, I) in rows without it."""
        encoded = self.run_encoders(batch)
        parts = {name: encoded["bottom", name] for name in self.modalities}
        return {name: Normal(part[:, 0], part[:, 1]) for name, part in parts.items()}

    def _posterior(self, batch: Batch, sampled: bool, from_top: bool) -> NexusPosterior:
        return NexusPosterior(
            self.top, self.shared_prior, self._bottom(batch), batch, sampled, from_top
        )

    def _heard(self, present: Tensor, step: Step) -> Tensor:
        """Whose messages are passed on, ``(B, M)``."""
        rate, noise = self.config.dropout_rate, step.noise
        return _some(present, rate, noise) if rate else present

    def _missed(
        self, z: Mapping[str, Tensor], u: Tensor, batch: Batch, step: Step
    ) -> dict[str, Tensor]:
        """-log N(z_m; f_m(u), s_m^2 I), or the squared error, in nats; 0 without the modality."""
        found = {}
        for name, predicted in self.top.predict(u).items():
            column = batch.column(name)[:, None]
            error = torch.where(column, (z[name] - predicted)[0].square(), 0.0)
            if self.config.top_likelihood == "squared_error":
                found[name] = error.sum(dim=1)
                continue
            log_variance = self.top.log_variance(name)
            if step.training and name in self.config.adapt_top_scale and bool(column.any()):
                mean = error.sum() / (column.sum() * error.shape[1])
                log_variance = mean.clamp_min(1e-12).log()
                self.top.follow(name, log_variance.detach(), _MOMENTUM)
            constant = log_variance + math.log(2.0 * math.pi)
            nats = 0.5 * (error * (-log_variance).exp() + constant).sum(dim=1)
            found[name] = torch.where(column[:, 0], nats, 0.0)
        return found

    def _weighted(self, values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        parts = [weights.get(name, 1.0) * value for name, value in values.items()]
        return torch.stack(parts).sum(dim=0)

    def _top_beta(self, step: Step) -> float:
        if not step.training:
            return 1.0
        ramp = self.config.top_schedule or self.config.beta_schedule
        return self.config.beta * self.config.top_beta * (1.0 if ramp is None else ramp(step))


def _some(present: Tensor, rate: float, noise: NoiseSource) -> Tensor:
    """Forced perceptual dropout: a random part of what a row has, in some rows.

    Args:
        present: ``(B, M)`` bool.
        rate: Share of the rows with several modalities.
        noise: Source of the random numbers.

    Returns:
        ``(B, M)`` bool, not empty where ``present`` is not.
    """
    rows, count = present.shape
    own = present.sum(dim=1)
    chance, size = noise.uniform("dropout", (2, rows))
    dropped = 1 + (size * (own - 1)).long().clamp_min(0)
    dropped = torch.where((chance < rate) & (own > 1), torch.minimum(dropped, own - 1), 0)
    keys = torch.where(present, noise.uniform("dropped", (1, rows, count))[0], 2.0)
    return present & (keys.argsort(dim=1).argsort(dim=1) >= dropped[:, None])
