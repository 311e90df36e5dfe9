"""MVAE: a product of experts, trained on the joint and on smaller subsets.

For a subset C of what a row has, with the prior as one more expert,

    q(z | x_C) = N(0, I) prod_{m in C} q_m(z | x_m) / Z
    ELBO_C     = E_q(z | x_C) sum_{m in C} log p(x_m | z) - beta KL(q(z | x_C) || N(0, I))

and the objective is ELBO of all + sum_m ELBO_m + sum over k random subsets (Wu & Goodman 2018,
eq. 5). Only the first of these is a bound on the log-likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_aggregated._subsets import draw_subsets, n_proper
from multivae_core.config import component, config, non_negative, one_of
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import gaussian_fusion
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import normal
from multivae_core.subsets import PRIOR_EXPERT, groups_of, prior_joins

__all__ = ["MVAE", "MVAEConfig"]


@config
class MVAEConfig(ModelConfig):
    """Options of MVAE beside those of every model.

    Args:
        subsampling: Whether every single modality has an ELBO of its own. Without it the
            unimodal encoders learn from rows that happen to be incomplete alone.
        n_subsets: Number k of random subsets of 2 to M-1 modalities per step.
        subset_sampling: ``uniform`` over the subsets, without replacement (up to 16 modalities,
            or 10 with ``per_row_subsets``); or ``size_uniform``: first a size, then a subset of
            that size.
        per_row_subsets: Whether every row draws subsets of its own; otherwise one draw serves
            the whole batch.
        duplicate_terms: A row with holes meets the same subset several times: it counts
            ``once``, or, as in MultiVae, every time (``count``).
        term_reduction: ``sum`` over a row's terms; ``mean`` gives rows with holes, which have
            fewer terms, the weight of the others.
        fusion: How the experts of a subset are fused; a rule that gives one Gaussian.
        prior_expert: In which subsets N(0, I) is one more expert; the paper: ``always``.
    """

    subsampling: bool = True
    n_subsets: int = attrs.field(default=0, validator=non_negative)
    subset_sampling: str = attrs.field(
        default="uniform", validator=one_of("uniform", "size_uniform")
    )
    per_row_subsets: bool = False
    duplicate_terms: str = attrs.field(default="once", validator=one_of("once", "count"))
    term_reduction: str = attrs.field(default="sum", validator=one_of("sum", "mean"))
    fusion: Any = component("fusions", default="product")
    prior_expert: str = attrs.field(default="always", validator=one_of(*PRIOR_EXPERT))


class MVAE(MultimodalVAE):
    """Multimodal VAE with a product of experts (Wu & Goodman 2018)."""

    lacks: Mapping[str, str] = {"loss_is_bound": "it adds up the ELBOs of several subsets"}

    config: MVAEConfig

    def __init__(self, config: MVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        replaced = config.subset_sampling == "size_uniform" and n_proper(count) > 0
        if config.n_subsets > n_proper(count) and not replaced:
            raise ConfigError(
                f"{count} modalities have {n_proper(count)} subsets of 2 to {count - 1}"
                f" modalities, got {config.n_subsets}; ask for fewer",
                "n_subsets",
            )
        self.fusion = gaussian_fusion(config.fusion, count, config.latent_dim, "fusion")

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The product of the prior and of what is present; the prior where nothing is."""
        q = self._fused(batch, batch.patterns[None])[0]
        return FactorisedPosterior({"shared": self.or_prior(q, batch)})

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """One term per subset: the negative ELBO of what a row has of it, 0 where nothing."""
        subsets, names = self._subsets(batch, step)
        members = groups_of(subsets, batch.patterns)
        counts = members.any(dim=2)
        if self.config.duplicate_terms == "once":
            counts = counts & ~_met_before(members)

        q = self._fused(batch, members)
        z = q.sample_once(step.noise, "shared")
        log_px = z.new_zeros(counts.shape)
        for m, name in enumerate(self.modalities):
            valid = counts & members[:, :, m]
            log_px = log_px + self.weighted_score(name, {"shared": z}, batch, step, valid)
        kl = kl_to_prior(q, self.shared_prior, z)
        elbo = torch.where(counts, log_px - self.beta(step) * kl, 0.0)
        if self.config.term_reduction == "mean":
            elbo = elbo / counts.sum(dim=0).clamp_min(1)
        return LossOutput(
            terms={name: Term(-value) for name, value in zip(names, elbo, strict=True)},
            metrics={"kl": kl[0].detach(), "reconstruction": log_px[0].detach()},
        )

    def _fused(self, batch: Batch, members: Tensor) -> Normal:
        experts = normal(self.run_encoders(batch)["shared"], 2)
        joins = prior_joins(self.config.prior_expert, members, batch.patterns)
        return self.fusion.groups(experts, members, joins)

    def _subsets(self, batch: Batch, step: Step) -> tuple[Tensor, list[str]]:
        """All subsets of a step, ``(R, M)`` or ``(R, B, M)``, the full one first."""
        count = len(self.modalities)
        fixed = torch.ones(1, count, dtype=torch.bool)
        names = ["elbo"]
        if self.config.subsampling:
            fixed = torch.cat([fixed, torch.eye(count, dtype=torch.bool)])
            names += [f"elbo:{name}" for name in self.modalities]
        fixed = fixed.to(batch.present.device)
        if not self.config.n_subsets:
            return fixed, names
        drawn = draw_subsets(
            self.config.n_subsets,
            count,
            batch.size if self.config.per_row_subsets else None,
            step.noise,
            by_size=self.config.subset_sampling == "size_uniform",
        )
        if drawn.ndim == 3:
            fixed = fixed[:, None].expand(-1, batch.size, -1)
        names += [f"elbo:random {number}" for number in range(self.config.n_subsets)]
        return torch.cat([fixed, drawn]), names


def _met_before(members: Tensor) -> Tensor:
    """Whether a row had the same subset in an earlier term, ``(R, B)`` bool."""
    same = (members[:, None] == members[None]).all(dim=3)
    earlier = torch.ones(same.shape[:2], dtype=torch.bool, device=same.device).tril(-1)
    return (same & earlier[..., None]).any(dim=1)
