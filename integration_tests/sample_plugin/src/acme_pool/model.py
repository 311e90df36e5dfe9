"""A VAE whose posterior is the logarithmic pool of its experts.

q(z | x_A) proportional to prod_{m in A} q_m(z | x_m)^(1/|A|)
L = E_q sum_{m in A} log p(x_m | z) - beta KL(q || p)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multivae_core.config import build, component, config
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.fusion import Fusion
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior


@config
class LogPoolConfig:
    """The pool has no options."""


class LogPool(Fusion):
    """Geometric mean of Gaussians: natural parameters are averaged (Genest & Zidek 1986)."""

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """Average over the members of every group, ``(S, B, E)`` -> ``(S, B, D)``."""
        share = members.to(experts.mean.dtype) / members.sum(dim=2, keepdim=True)
        precision = (-experts.log_variance).exp()
        joint = torch.einsum("sbe,ebd->sbd", share, precision)
        pull = torch.einsum("sbe,ebd->sbd", share, precision * experts.mean)
        return Normal(pull / joint, -joint.log())


@config
class PoolVAEConfig(ModelConfig):
    """Options of the pool VAE.

    Args:
        fusion: How the experts are fused.
    """

    fusion: Any = component("fusions", default="log_pool")


class PoolVAE(MultimodalVAE):
    """A VAE with a pool of experts."""

    def __init__(self, config: PoolVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        self.fusion = build("fusions", config.fusion, len(self.modalities), config.latent_dim)

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The pool of what is present; the prior where nothing is."""
        encoded = self.run_encoders(batch)["shared"]
        experts = Normal(encoded[:, :, 0], encoded[:, :, 1])
        return FactorisedPosterior({"shared": self.fusion(experts, batch.present)})

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative ELBO in its two terms."""
        q = self.posterior(batch).parts["shared"]
        z, _ = q.draw(1, step.noise, "shared")
        log_px = self.reconstruction({"shared": z}, batch, step)[0]
        kl = kl_to_prior(q, self.shared_prior, z[0])
        return LossOutput(
            terms={"reconstruction": Term(-log_px), "kl": Term(self.beta(step) * kl)}
        )
