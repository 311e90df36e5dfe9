"""Masked permutation-invariant VAE: a learned fusion, trained on a subset and on the rest.

With A what a row has, S a random subset of it and R = A without S,

    L_S = E_q(z | x_S) sum_{m in S} log p(x_m | z, w_m) - beta KL(q(z | x_S) || p(z))
    L_R = E_q(z | x_A) sum_{m in R} log p(x_m | z, w_m) - beta KL(q(z | x_A) || q(z | x_S))

less beta sum_{m in A} beta_m KL(q(w_m | x_m) || N(0, I)) is maximised. For beta = 1 L_S bounds
log p(x_S), and L_R bounds log of the integral of q(z | x_S) prod_{m in R} p(x_m | z), which is
log p(x_R | x_S) only where q(z | x_S) is the posterior itself: the sum is no bound on log p(x_A).
Where S is empty q(z | x_S) is the prior, L_S = 0 and L_R is the ELBO of A; where S is A, L_R = 0
and L_S is. A private latent has no part in S beyond x_m, so that its divergence counts once.

(Hirt et al. 2024.) A step takes two fusions and one decoding per modality, however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, one_of
from multivae_core.data import Batch
from multivae_core.fusion import gaussian_fusion
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import NoiseSource, Step
from multivae_core.posteriors import FactorisedPosterior, Latents
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import PrivateConfig, PrivateVAE, normal
from multivae_core.subsets import PRIOR_EXPERT, prior_joins

__all__ = ["MaskedVAE", "MaskedVAEConfig"]


@config
class MaskedVAEConfig(PrivateConfig):
    """Options of the masked VAE beside those of every model.

    Args:
        fusion: How experts are fused; a rule that gives one Gaussian.
        mask_sampling: How S is drawn: ``coin``, a fair coin for every modality of a row, as in
            the authors' code; ``size``, with one probability per row, uniform in (0, 1), which
            makes all sizes of S equally likely.
        prior_expert: In which of S and A N(0, I) is one more expert.
    """

    fusion: Any = component("fusions", default="pooling")
    mask_sampling: str = attrs.field(default="coin", validator=one_of("coin", "size"))
    prior_expert: str = attrs.field(default="never", validator=one_of(*PRIOR_EXPERT))


class MaskedVAE(PrivateVAE):
    """Multimodal VAE with learned fusion and a masked bound (Hirt et al. 2024)."""

    lacks: Mapping[str, str] = {
        "loss_is_bound": "it takes the posterior of a subset for the prior of the rest"
    }

    config: MaskedVAEConfig

    def __init__(self, config: MaskedVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        self.fusion = gaussian_fusion(config.fusion, count, config.latent_dim, "fusion")

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The fused experts of what is present; the prior where nothing is."""
        encoded = self.run_encoders(batch)
        experts, rule = normal(encoded["shared"], 2), self.config.prior_expert
        q = self.fusion(experts, batch.patterns, rule)
        return self.with_private(self.or_prior(q, batch), encoded)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative of L_S and of L_R, and the private divergences."""
        encoded = self.run_encoders(batch)
        subset = self._subset(batch.present, step.noise)
        groups = torch.stack([subset, batch.present])
        joins = prior_joins(self.config.prior_expert, groups, batch.present)
        q = self.fusion.groups(normal(encoded["shared"], 2), groups, joins)
        private = self.private(encoded)
        latents: Latents = {"shared": q.sample_once(step.noise, "shared")}
        latents |= self.draw_private(private, 2, step.noise)

        own = torch.stack([subset, batch.present & ~subset])
        log_px = torch.zeros_like(latents["shared"][..., 0])
        for m, name in enumerate(self.modalities):
            log_px = log_px + self.weighted_score(name, latents, batch, step, own[..., m])
        to_prior = kl_to_prior(q, self.shared_prior, latents["shared"])
        some = subset.any(dim=1)
        # what S says is the prior of the rest
        kl = torch.stack([to_prior[0], torch.where(some, q[1].kl(q[0]), to_prior[1])])
        kl = torch.where(own.any(dim=2), kl, 0.0)
        bounds = log_px - self.beta(step) * kl
        terms = {"elbo:subset": Term(-bounds[0]), "elbo:rest": Term(-bounds[1])}
        terms |= self.private_terms(private, step, self.beta(step))
        return LossOutput(terms=terms, metrics={"kl": kl.sum(dim=0).detach()})

    def _subset(self, present: Tensor, noise: NoiseSource) -> Tensor:
        """A random subset of what every row has, ``(B, M)`` bool."""
        rows = len(present)
        keys = noise.uniform("mask", (1, *present.shape))[0]
        if self.config.mask_sampling == "coin":
            return present & (keys < 0.5)
        return present & (keys < noise.uniform("rate", (1, rows, 1))[0])
