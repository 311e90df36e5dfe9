"""CRMVAE: a product of experts that are reconstructed on their own as well.

With A what a row has, w_m the weight of a likelihood, and weights pi that sum to 1,

    q(z | x_A) = prod_{m in A} q_m(z | x_m) / Z
    L = -rho sum_{m in A} pi_m w_m [ E_q log p(x_m | z) + E_{q_m} log p(x_m | z) ]
        + beta [ pi_0 KL(q || p) + sum_{m in A} pi_m KL(q || q_m) ]

(Suzuki & Matsuo 2023, whose rho is 1). Gradients flow into both arguments of KL(q || q_m). A row
with one modality has q = q_m: a VAE that is reconstructed twice. L is no bound on log p(x_A).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, each, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.fusion import gaussian_fusion
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import check_names, normal
from multivae_core.subsets import PRIOR_EXPERT

__all__ = ["CRMVAE", "CRMVAEConfig"]


@config
class CRMVAEConfig(ModelConfig):
    """Options of CRMVAE beside those of every model.

    Args:
        weights: Weights pi of single modalities, in any unit; those left out have 1.
        prior_weight: Weight pi_0 of the divergence from the prior, in the same unit.
        missing_norm: What the weights are scaled to sum to 1 over: all M modalities and the
            prior (``fixed``), so that a row counts by what it shows; or those that the row has
            and the prior (``available``).
        rec_weight: rho; the paper has 1, MultiVae's code 0.5.
        cross_reconstruction: Whether every expert reconstructs all that the row has, not its own
            modality alone; an ablation.
        fusion: How the experts are fused; a rule that gives one Gaussian.
        prior_expert: Where N(0, I) is one more expert of the product; the paper: ``never``.
    """

    weights: dict[str, float] = attrs.field(factory=dict, validator=each(positive))
    prior_weight: float = attrs.field(default=1.0, validator=positive)
    missing_norm: str = attrs.field(default="fixed", validator=one_of("fixed", "available"))
    rec_weight: float = attrs.field(default=0.5, validator=positive)
    cross_reconstruction: bool = False
    fusion: Any = component("fusions", default="product")
    prior_expert: str = attrs.field(default="never", validator=one_of(*PRIOR_EXPERT))

    def __attrs_post_init__(self) -> None:
        check_names(self, "weights")


class CRMVAE(MultimodalVAE):
    """Coordinated multimodal VAE with unimodal reconstructions (Suzuki & Matsuo 2023)."""

    lacks: Mapping[str, str] = {
        "loss_is_bound": "it weighs reconstructions and divergences of several posteriors"
    }

    config: CRMVAEConfig

    def __init__(self, config: CRMVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        self.fusion = gaussian_fusion(config.fusion, count, config.latent_dim, "fusion")

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The product of the experts of what is present; the prior where nothing is."""
        experts = normal(self.run_encoders(batch)["shared"], 2)
        return FactorisedPosterior({"shared": self.or_prior(self._product(experts, batch), batch)})

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Three terms: reconstructions, divergence from the prior, and from the experts."""
        experts = normal(self.run_encoders(batch)["shared"], 2)
        joint = self._product(experts, batch)
        z_joint = joint.sample(1, step.noise, "shared")
        z_own = experts.sample_once(step.noise, "experts")
        pi, rest = self._weights(batch)

        nothing = torch.zeros_like(z_joint[0, :, 0])
        reconstruction, from_joint, from_own = nothing, nothing, nothing
        for m, name in enumerate(self.modalities):
            sources = z_own if self.config.cross_reconstruction else z_own[m : m + 1]
            z = torch.cat([z_joint, sources])
            valid = _samples_there(batch) if self.config.cross_reconstruction else None
            scores = self.weighted_score(name, {"shared": z}, batch, step, valid)
            reconstruction = reconstruction + pi[m] * scores.sum(dim=0)
            from_joint = from_joint + scores[0].detach()
            from_own = from_own + scores[1:].detach().sum(dim=0)
        kl = kl_to_prior(joint, self.shared_prior, z_joint[0])
        each_kl = torch.where(batch.present.T, joint.kl(experts), 0.0)

        beta = self.beta(step)
        return LossOutput(
            terms={
                "reconstruction": Term(-self.config.rec_weight * reconstruction),
                "kl": Term(beta * rest * kl),
                "kl_experts": Term(beta * (pi * each_kl).sum(dim=0)),
            },
            metrics={
                "kl": kl.detach(),
                "reconstruction:joint": from_joint,
                "reconstruction:experts": from_own,
            }
            | {f"kl:{m}": own.detach() for m, own in zip(self.modalities, each_kl, strict=True)},
        )

    def _product(self, experts: Normal, batch: Batch) -> Normal:
        return cast(Normal, self.fusion(experts, batch.patterns, self.config.prior_expert))

    def _weights(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weights of the modalities, ``(M, B)`` or ``(M, 1)``, and of the prior."""
        given = [self.config.weights.get(name, 1.0) for name in self.modalities]
        pi = torch.tensor(given, dtype=self.dtype, device=self.device)[:, None]
        own = pi
        if self.config.missing_norm == "available":
            own = torch.where(batch.patterns.T, pi, 0.0)
        total = own.sum(dim=0) + self.config.prior_weight
        return pi / total, self.config.prior_weight / total


def _samples_there(batch: Batch) -> Tensor:
    """Which samples are scored: the product's, and those of experts that are there."""
    return torch.cat([torch.ones_like(batch.present[:, :1]), batch.present], dim=1).T
