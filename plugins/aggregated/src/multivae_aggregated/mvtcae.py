"""MVTCAE: a product of experts and experts that are held close to it.

With A what a row has, n = |A|, and alpha between 0 and 1,

    q(z | x_A) = prod_{m in A} q_m(z | x_m) / Z
    L = (n - alpha)/n sum_{m in A} E_q log p(x_m | z)
        - beta [ (1 - alpha) KL(q || p) + alpha/n sum_{m in A} KL(q || q_m) ]

which comes from a lower bound on the total correlation of x_A and z (Hwang et al. 2021); it is
no bound on log p(x_A). A row with one modality has q = q_m, and L is (1 - alpha) times the
objective of a beta-VAE. Gradients flow into both arguments of KL(q || q_m).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, in_range, one_of
from multivae_core.data import Batch
from multivae_core.distributions import Mixture, Normal
from multivae_core.fusion import gaussian_fusion, with_prior_expert
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import normal
from multivae_core.subsets import PRIOR_EXPERT

__all__ = ["MVTCAE", "MVTCAEConfig"]

_DEFENCE = 0.1


@config
class MVTCAEConfig(ModelConfig):
    """Options of MVTCAE beside those of every model.

    Args:
        alpha: Share of the total correlation in the objective, 0 to 1; 5/6 as in the authors'
            main run. With 0 the experts are free; with 1 nothing ties q to the prior.
        normalise: What n is in a row with holes: the number of its ``available`` modalities, or
            their ``total`` number M, as in MultiVae, where a lonely modality has a divergence
            that weighs less the more modalities there are.
        fusion: How the experts are fused; a rule that gives one Gaussian.
        prior_expert: Where N(0, I) is one more expert of the product; the paper: ``never``.
        proposal: What likelihoods are estimated with: the ``product``; or ``defensive``, a
            mixture of 0.9 of it and 0.1 of N(0, I), for products that are too narrow.
    """

    alpha: float = attrs.field(default=5.0 / 6.0, validator=in_range(0.0, 1.0))
    normalise: str = attrs.field(default="available", validator=one_of("available", "total"))
    fusion: Any = component("fusions", default="product")
    prior_expert: str = attrs.field(default="never", validator=one_of(*PRIOR_EXPERT))
    proposal: str = attrs.field(default="product", validator=one_of("product", "defensive"))


class MVTCAE(MultimodalVAE):
    """Multi-view total correlation autoencoder (Hwang et al. 2021)."""

    lacks: Mapping[str, str] = {
        "loss_is_bound": "it weighs reconstructions and divergences by a total correlation"
    }

    config: MVTCAEConfig

    def __init__(self, config: MVTCAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        self.fusion = gaussian_fusion(config.fusion, count, config.latent_dim, "fusion")

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The product of the experts of what is present; the prior where nothing is."""
        q = self._product(self._experts(batch), batch)
        return FactorisedPosterior({"shared": self.or_prior(q, batch)})

    def proposal(self, batch: Batch) -> FactorisedPosterior:
        """What likelihoods are estimated with; see the option ``proposal``."""
        product = self._product(self._experts(batch), batch)
        if self.config.proposal == "product":
            return FactorisedPosterior({"shared": self.or_prior(product, batch)})
        shares = torch.tensor([1.0 - _DEFENCE, _DEFENCE], dtype=self.dtype, device=self.device)
        both = Mixture(with_prior_expert(product[None]), shares.expand(batch.size, 2))
        return FactorisedPosterior({"shared": self.or_prior(both, batch)})

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Three terms: reconstruction, divergence from the prior, divergences from the experts."""
        experts = self._experts(batch)
        q = self._product(experts, batch)
        z = q.sample(1, step.noise, "shared")
        log_px = self.reconstruction({"shared": z}, batch, step)[0]
        kl = kl_to_prior(q, self.shared_prior, z[0])
        each = torch.where(batch.present.T, q.kl(experts), 0.0)

        alpha, beta, share = self.config.alpha, self.beta(step), self._share(batch)
        return LossOutput(
            terms={
                "reconstruction": Term((alpha * share - 1.0) * log_px),
                "kl": Term(beta * (1.0 - alpha) * kl),
                "kl_experts": Term(beta * alpha * share * each.sum(dim=0)),
            },
            metrics={"kl": kl.detach()}
            | {f"kl:{m}": own.detach() for m, own in zip(self.modalities, each, strict=True)},
        )

    def _share(self, batch: Batch) -> Tensor:
        """1/n, ``(B,)``."""
        total = self.config.normalise == "total"
        counted = torch.ones_like(batch.present) if total else batch.present
        return 1.0 / counted.sum(dim=1).clamp_min(1).to(self.dtype)

    def _experts(self, batch: Batch) -> Normal:
        return normal(self.run_encoders(batch)["shared"], 2)

    def _product(self, experts: Normal, batch: Batch) -> Normal:
        return cast(Normal, self.fusion(experts, batch.patterns, self.config.prior_expert))
