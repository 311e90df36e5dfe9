"""DMVAE: a shared latent and private ones, trained from joint and from single posteriors.

Modality m has a private latent with the prior N(0, I); its decoder sees [z, w_m]. With A what a
row has, the sources are

    q_0(z | x_A) = N(0, I) prod_{m in A} q_m(z | x_m) / Z,     and q_m(z | x_m) alone, m in A

and every source c has a bound on log p(x_A) (beta = beta_m = 1), with one draw of the private
latents for all:

    ELBO_c = E sum_{m in A} log p(x_m | z_c, w_m)
             - beta KL(q_c || p) - sum_{m in A} beta_m KL(q(w_m | x_m) || N(0, I))
    L      = sum_c gamma_c ELBO_c

(Lee & Pavlovic 2021, eq. 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, each, non_negative, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Distribution, Normal, either
from multivae_core.errors import ConfigError
from multivae_core.fusion import gaussian_fusion
from multivae_core.importance import draw_sources
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import (
    PrivateConfig,
    PrivateVAE,
    check_names,
    normal,
    private_sizes,
)

__all__ = ["DMVAE", "DMVAEConfig"]


@config
class DMVAEConfig(PrivateConfig):
    """Options of DMVAE beside those of every model.

    Args:
        private_dims: Size of every modality's private latent; modalities left out have none. A
            number is the size for all. Small ones: large ones take over what is shared.
        style_betas: Weight in training of single modalities' private divergences; not multiplied
            by beta.
        joint_weight: Weight gamma of the joint posterior's bound. The authors' code keeps its
            divergence and loses its reconstruction; here they come and go together.
        source_weights: Weights gamma of single modalities' bounds; those left out have 1.
        kl_count: How often a source's shared divergence counts in training: once
            (``per_source``), or, as in the paper, once for every modality that the row has
            (``official``), which is a beta of that number and no bound.
        term_reduction: ``sum`` over a row's sources; their weighted ``mean`` gives rows with
            holes, which have fewer of them, the weight of the others.
        prior_expert: What a row with one visible modality is encoded with: its expert as it was
            trained (``joint_only``: the prior joins several), or the product with N(0, I)
            (``always``). Training has both.
        fusion: How the experts of the joint posterior are fused; a rule that gives one Gaussian.
        n_sources: Sources that are drawn per row and step, without replacement, to stand for all
            of them, for many modalities; None: all.
    """

    private_dims: dict[str, int] = private_sizes(4)
    joint_weight: float = attrs.field(default=1.0, validator=non_negative)
    source_weights: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    kl_count: str = attrs.field(default="per_source", validator=one_of("per_source", "official"))
    term_reduction: str = attrs.field(default="sum", validator=one_of("sum", "mean"))
    prior_expert: str = attrs.field(default="joint_only", validator=one_of("joint_only", "always"))
    fusion: Any = component("fusions", default="product")
    n_sources: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_names(self, "source_weights")
        own = [self.source_weights.get(name, 1.0) for name in self.modalities]
        if not any([self.joint_weight, *own]):
            raise ConfigError(
                "must be above 0 for some source, got 0 for every modality and joint_weight=0;"
                " nothing would be trained",
                "source_weights",
            )


class DMVAE(PrivateVAE):
    """Disentangled multimodal VAE (Lee & Pavlovic 2021)."""

    config: DMVAEConfig
    lacks: Mapping[str, str] = {
        "loss_is_bound": "it adds up one bound for the joint and one for every single posterior"
    }

    def __init__(self, config: DMVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        self.fusion = gaussian_fusion(
            config.fusion, len(self.modalities), config.latent_dim, "fusion"
        )

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The product of the prior and of what is present; see the option ``prior_expert``."""
        encoded = self.run_encoders(batch)
        experts = normal(encoded["shared"], 2)
        joint = self._joint(experts, batch)
        q: Distribution = joint
        if self.config.prior_expert == "joint_only":
            lone = batch.present.sum(dim=1, keepdim=True) == 1
            own = experts.pick(batch.present.long().argmax(dim=1)[None])[0]
            q = either(lone, own, joint)
        return self.with_private(self.or_prior(q, batch), encoded)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """One term per source: its weighted negative ELBO, 0 in rows that do not have it."""
        encoded = self.run_encoders(batch)
        every = self._every(normal(encoded["shared"], 2), batch)
        usable = torch.cat([batch.something[:, None], batch.present], dim=1)
        sources = draw_sources(usable, self.config.n_sources, step.noise)
        drawn = len(sources) < len(every.mean)
        q = every.pick(sources.clamp_min(0)) if drawn else every
        z, valid = q.sample_once(step.noise, "shared"), sources >= 0
        private = self.private(encoded)
        once = self.draw_private(private, 1, step.noise)
        latents = {name: w.expand(len(sources), -1, -1) for name, w in once.items()}
        log_px = self.reconstruction(
            {"shared": z, **latents}, batch, step, None if bool(valid.all()) else valid
        )

        kl = kl_to_prior(q, self.shared_prior, z)
        elbo = log_px - self.beta(step) * self._count(batch, step) * kl
        for term in self.private_terms(private, step).values():
            elbo = elbo - term.value
        weighted = torch.where(valid, self._weights(usable, sources) * elbo, 0.0)
        # back to the place of every source, of which a row may have drawn some
        empty = weighted.new_zeros(usable.T.shape)
        terms = empty.scatter_add(0, sources.clamp_min(0), weighted)
        names = ["elbo", *(f"elbo:{name}" for name in self.modalities)]
        return LossOutput(
            terms={name: Term(-value) for name, value in zip(names, terms, strict=True)},
            metrics={"kl": torch.where(valid, kl, 0.0).sum(dim=0).detach() / _total(valid)},
        )

    def _joint(self, experts: Normal, batch: Batch) -> Normal:
        fused: Normal = self.fusion(experts, batch.patterns, "always")
        return fused

    def _every(self, experts: Normal, batch: Batch) -> Normal:
        """All sources, the joint one first, ``(M + 1, B, D)``."""
        joint = self._joint(experts, batch)
        return Normal(
            torch.cat([joint.mean[None], experts.mean]),
            torch.cat([joint.log_variance[None], experts.log_variance]),
        )

    def _count(self, batch: Batch, step: Step) -> Tensor | float:
        """How often a shared divergence counts, ``(B,)`` or 1."""
        if self.config.kl_count == "per_source" or not step.training:
            return 1.0
        return batch.present.sum(dim=1).to(self.dtype)

    def _weights(self, usable: Tensor, sources: Tensor) -> Tensor:
        """Weight of every drawn source in every row, ``(R, B)``.

        Args:
            usable: The sources of every row, ``(B, M + 1)`` bool.
            sources: Numbers of those drawn, ``(R, B)``; -1: none.
        """
        own = self.config.source_weights
        listed = [self.config.joint_weight, *(own.get(name, 1.0) for name in self.modalities)]
        gamma = torch.tensor(listed, dtype=self.dtype, device=usable.device)
        weights = gamma[sources.clamp_min(0)] * usable.sum(dim=1) / _total(sources >= 0)
        if self.config.term_reduction == "mean":
            total = usable.to(self.dtype) @ gamma
            weights = weights / torch.where(total > 0, total, 1.0)
        return weights


def _total(valid: Tensor) -> Tensor:
    return valid.sum(dim=0).clamp_min(1)
