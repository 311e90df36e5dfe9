"""gPoE: a weighted product of experts; and the ELBO of any other rule of fusion.

With A what a row has and weights a_md >= 0 for every dimension d that sum to 1 over A,

    q(z_d | x_A) = prod_{m in A} q_m(z_d | x_m)^a_md / Z
    L = c sum_{m in A} E_q log p(x_m | z, w_m)
        - beta [ KL(q || p) + c sum_{m in A} beta_m KL(q(w_m | x_m) || N(0, I)) ]

With c = 1 and beta = 1 this bounds log p(x_A). c = 1/n, n = |A|, is the objective of multi-view-AE
(Lawry Aguila et al. 2023). Of a fusion that gives a mixture q = sum_s a_s q_s every component is
decoded, so that gradients reach its weights too:

    E_q g(z) = sum_s a_s E_{q_s} g(z),       KL(q || p) = sum_s a_s E_{q_s} [log q(z) - log p(z)]
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, one_of
from multivae_core.data import Batch
from multivae_core.distributions import Distribution, Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import build_fusion
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, LatentName, Latents
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import PrivateConfig, PrivateVAE, normal
from multivae_core.subsets import PRIOR_EXPERT

__all__ = ["GPoE", "GPoEConfig"]


@config
class GPoEConfig(PrivateConfig):
    """Options of gPoE beside those of every model.

    Args:
        fusion: How the experts are fused; any rule, mixtures too.
        likelihood_reduction: ``sum`` over the modalities of a row, or their ``mean`` (c = 1/n),
            for private divergences too. Outside training it is the sum.
        prior_expert: Where N(0, I) is one more expert; a mixture over subsets has an option of
            its own for that.
    """

    fusion: Any = component("fusions", default="weighted_product")
    likelihood_reduction: str = attrs.field(default="sum", validator=one_of("sum", "mean"))
    prior_expert: str = attrs.field(default="never", validator=one_of(*PRIOR_EXPERT))


class GPoE(PrivateVAE):
    """Multimodal VAE with a generalised product of experts (Lawry Aguila et al. 2023)."""

    config: GPoEConfig

    def __init__(self, config: GPoEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        self.fusion = build_fusion(config.fusion, count, config.latent_dim, "fusion")
        if config.likelihood_reduction == "mean":
            reason = "likelihood_reduction='mean' takes a share of the log-likelihood alone"
            self.lacks = {**self.lacks, "loss_is_bound": reason}

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The fused experts of what is present; the prior where nothing is."""
        encoded = self.run_encoders(batch)
        return self.with_private(self.or_prior(self._fused(encoded, batch), batch), encoded)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound in its terms: reconstruction and weighted divergences."""
        encoded = self.run_encoders(batch)
        q, private = self._fused(encoded, batch), self.private(encoded)
        components, weights = _components(q)
        latents: Latents = {"shared": components.sample_once(step.noise, "shared")}
        latents |= self.draw_private(private, len(weights), step.noise)

        usable = weights > 0
        valid = None if bool(usable.all()) else usable
        log_px = weights * self.reconstruction(latents, batch, step, valid)
        kl = weights * kl_to_prior(q, self.shared_prior, latents["shared"])
        log_px, kl = (torch.where(usable, part, 0.0).sum(dim=0) for part in (log_px, kl))
        beta, share = self.beta(step), self._share(batch, step)
        terms = {"reconstruction": Term(-share * log_px), "kl": Term(beta * kl)}
        terms |= self.private_terms(private, step, beta * share)
        return LossOutput(terms=terms, metrics={"kl": kl.detach()})

    def _fused(self, encoded: dict[LatentName, Tensor], batch: Batch) -> Distribution:
        # a mixture has weights for every row
        present = batch.patterns if self.fusion.gaussian else batch.present
        experts = normal(encoded["shared"], 2)
        fused: Distribution = self.fusion(experts, present, self.config.prior_expert)
        return fused

    def _share(self, batch: Batch, step: Step) -> Tensor:
        """The factor c of every row, ``(B,)``."""
        n = batch.present.sum(dim=1).clamp_min(1).to(self.dtype)
        mean = step.training and self.config.likelihood_reduction == "mean"
        return 1.0 / n if mean else torch.ones_like(n)


def _components(q: Distribution) -> tuple[Normal, Tensor]:
    """What a posterior is a mixture of, ``(S, B, D)``, and the weights ``(S, B)``."""
    if isinstance(q, Normal):
        return q[None], torch.ones_like(q.mean[None, :, 0])
    if isinstance(q, Mixture) and isinstance(q.components, Normal):
        return q.components, q.weights.T
    raise ConfigError(
        f"must give Gaussians or a mixture of Gaussians, got {type(q).__name__}; choose another"
        " rule, for example 'weighted_product'",
        "fusion",
    )
