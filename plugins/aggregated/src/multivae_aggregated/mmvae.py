"""MMVAE: a mixture of experts with importance-weighted bounds.

    q(z | x_A) = 1/n sum_{m in A} q_m(z | x_m)                      n = |A|, what a row has
    w(z)       = prod_{j in A} p(x_j | z) (p(z) / q(z | x_A))^beta
    looser     = 1/n sum_{m in A} E log 1/K sum_k w(z_mk),          z_mk ~ q_m
    tight      = E log 1/(nK) sum_m sum_k w(z_mk)

looser <= tight <= log p(x_A) for beta = 1 (Shi et al. 2019, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import FAMILIES, Laplace, Mixture, Normal, expert
from multivae_core.errors import ConfigError
from multivae_core.losses import (
    LossOutput,
    Term,
    doubly_reparameterised,
    log_mean_exp,
    scale_gradient,
)
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import ScaledPrior

__all__ = ["MMVAE", "MMVAEConfig"]

_PIECE_ROWS = 4000


def _matching_prior(options: MMVAEConfig) -> dict[str, Any]:
    return {"type": "scaled", "family": options.family, "learn": options.learn_prior}


@config
class MMVAEConfig(ModelConfig):
    """Options of MMVAE beside those of every model.

    Args:
        n_samples: Samples K per expert.
        family: Experts, and by default the prior: ``normal``, ``normal_with_softplus`` or
            ``laplace_with_softmax``, whose scales sum to D and can only be redistributed.
        learn_prior: Whether the scale of the default prior is learned; its mean is 0.
        bound: ``looser`` or ``tight``, see the module.
        estimator: ``iwae``: the plain gradient. ``dreg``: lower variance (Tucker et al. 2019);
            for a mixture with K > 1 it is biased, because the score that it drops belongs to
            the mixture and the samples to one expert. ``stl``: without the score (Roeder et al.
            2017), biased for K > 1.
        n_sources: Experts that are drawn from per row and step, without replacement; None: all.
            An unbiased estimate of the looser bound for many modalities.
        prior: Prior of the latent; by default of the same family as the experts.
    """

    n_samples: int = attrs.field(default=10, validator=positive)
    family: str = attrs.field(default="laplace_with_softmax", validator=one_of(*FAMILIES))
    learn_prior: bool = True
    bound: str = attrs.field(default="looser", validator=one_of("looser", "tight"))
    estimator: str = attrs.field(default="iwae", validator=one_of("iwae", "dreg", "stl"))
    n_sources: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )
    prior: Any = component("priors", default=attrs.Factory(_matching_prior, takes_self=True))

    def __attrs_post_init__(self) -> None:
        if self.n_sources is not None and self.bound == "tight":
            raise ConfigError(
                "drawing sources is unbiased for the looser bound alone; leave it out, or set"
                " bound='looser'",
                "n_sources",
            )


class MMVAE(MultimodalVAE):
    """Multimodal VAE with a mixture of experts (Shi et al. 2019)."""

    config: MMVAEConfig

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The uniform mixture of the experts of what is present."""
        experts = self._experts(self.run_encoders(batch)["shared"])
        if not bool(batch.something.all()):
            experts = self._prior_where_nothing(experts, batch.something[:, None])
        return FactorisedPosterior({"shared": self._mixture(experts, batch)})

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound as one term."""
        encoded, sources = self.run_encoders(batch)["shared"], self._sources(batch, step)
        standard = self._standard(sources, step)
        return self._negative_bound(encoded, sources, standard, batch, step)

    def loss_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        """The looser bound, source by source, where the decoders' work outgrows the cache.

        Every piece goes backward as far as the experts' parameters; their gradients go through
        the encoders once, at the end.
        """
        sources = self._sources(batch, step)
        rows = sources.shape[0] * self.config.n_samples * batch.size
        if self.config.bound == "tight" or rows <= _PIECE_ROWS or not torch.is_grad_enabled():
            yield self.loss(batch, step)
            return
        encoded = self.run_encoders(batch)["shared"]
        cut, standard = encoded.detach().requires_grad_(), self._standard(sources, step)
        for number in range(sources.shape[0]):
            yield self._negative_bound(cut, sources, standard, batch, step, number)
        if cut.grad is not None:
            yield LossOutput(terms={}, surrogate=(encoded * cut.grad).sum())

    def _negative_bound(
        self,
        encoded: Tensor,
        sources: Tensor,
        standard: Tensor,
        batch: Batch,
        step: Step,
        only: int | None = None,
    ) -> LossOutput:
        """The negative bound, or one source's part of it.

        Args:
            encoded: Locations and raw scales, ``(M, B, 2, D)``.
            sources: Numbers of the experts that are drawn from, ``(R, B)``; -1: none.
            standard: Draws of location 0 and scale 1, ``(R, K, B, D)``.
            batch: What is seen.
            step: Where training stands.
            only: Position of a single source; None: all of them.
        """
        share = 1.0 / (sources >= 0).sum(dim=0).clamp_min(1).to(self.dtype)
        chosen = slice(None) if only is None else slice(only, only + 1)
        sources = sources[chosen]
        usable = sources >= 0
        experts = self._experts(encoded)
        if self.config.n_sources is None:
            picked = experts[chosen]
        else:
            picked = experts.pick(sources.clamp_min(0))
        z = picked[:, None].place(standard[chosen]).flatten(0, 1)
        log_w, cell = self._log_weights(experts, z, sources, batch, step)
        log_w = log_w.unflatten(0, (sources.shape[0], self.config.n_samples))

        seen = usable.any(dim=0)
        if self.config.bound == "tight":
            # a row without any source counts in full, to keep its softmax and gradient finite
            log_w = log_w.flatten(0, 1)
            counts = (usable | ~seen).repeat_interleave(self.config.n_samples, dim=0)
            bound = torch.where(counts, log_w, -math.inf).logsumexp(dim=0)
            bound = bound + (share / self.config.n_samples).log()
        else:
            counts = None
            bound = (torch.where(usable, log_mean_exp(log_w, dim=1), 0.0) * share).sum(dim=0)
        value = bound
        if self.config.estimator == "dreg":
            value, weights = doubly_reparameterised(log_w, log_w.ndim - 2, counts)
            cell.append(weights.reshape(-1, batch.size, 1))
            if counts is None:
                value = (torch.where(usable, value, 0.0) * share).sum(dim=0)
        value, bound = torch.where(seen, value, 0.0), torch.where(seen, bound, 0.0)
        return LossOutput(terms={"bound": Term(-value)}, bound=-bound.detach())

    def _log_weights(
        self,
        experts: Normal | Laplace,
        z: Tensor,
        sources: Tensor,
        batch: Batch,
        step: Step,
    ) -> tuple[Tensor, list[Tensor]]:
        """Log importance weights ``(R * K, B)``, and a cell for the weights of "dreg"."""
        cell: list[Tensor] = []
        if self.config.estimator == "dreg":
            z = scale_gradient(z, cell)
        scored = experts if self.config.estimator == "iwae" else experts.detach()
        log_qz = self._mixture(scored, batch).log_prob(z)
        log_pz = self.shared_prior.log_prob(z)
        valid = (sources >= 0).repeat_interleave(self.config.n_samples, dim=0)
        log_px = self.reconstruction(
            {"shared": z}, batch, step, None if bool(valid.all()) else valid
        )
        return log_px + self.beta(step) * (log_pz - log_qz), cell

    def _standard(self, sources: Tensor, step: Step) -> Tensor:
        """Draws of location 0 and scale 1, ``(R, K, B, D)``, of the experts' family."""
        (count, rows), k = sources.shape, self.config.n_samples
        laplace = self.config.family == "laplace_with_softmax"
        draw = step.noise.laplace if laplace else step.noise.normal
        return draw("shared", (count * k, rows, self.config.latent_dim)).view(count, k, rows, -1)

    def _sources(self, batch: Batch, step: Step) -> Tensor:
        """Numbers of the experts that every row draws from, ``(R, B)``; -1: none."""
        everyone = torch.arange(len(self.modalities), device=batch.present.device)
        if self.config.n_sources is None or self.config.n_sources >= len(everyone):
            return torch.where(batch.present, everyone, -1).T
        keys = step.noise.uniform("sources", (1, *batch.present.shape))[0]
        order = torch.where(batch.present, keys, 2.0).argsort(dim=1)[:, : self.config.n_sources]
        return torch.where(batch.present.gather(1, order), order, -1).T

    def _prior_where_nothing(self, experts: Normal | Laplace, seen: Tensor) -> Normal | Laplace:
        """Experts that are the prior in rows without any modality, if it is of their kind."""
        prior, nothing = self.shared_prior, torch.zeros_like(experts.mean)
        own = prior.distribution() if isinstance(prior, ScaledPrior) else Normal(nothing, nothing)
        mean = torch.where(seen, experts.mean, nothing)
        if isinstance(experts, Normal) and isinstance(own, Normal):
            return Normal(mean, torch.where(seen, experts.log_variance, own.log_variance))
        if isinstance(experts, Laplace) and isinstance(own, Laplace):
            return Laplace(mean, torch.where(seen, experts.scale, own.scale))
        return experts

    def _experts(self, encoded: Tensor) -> Normal | Laplace:
        location, raw = encoded.unbind(dim=2)
        return expert(location, raw, self.config.family)

    def _mixture(self, experts: Normal | Laplace, batch: Batch) -> Mixture:
        usable = batch.present | ~batch.something[:, None]
        return Mixture(experts, usable.to(self.dtype) / usable.sum(dim=1, keepdim=True))
