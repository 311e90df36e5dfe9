"""MMVAE: a mixture of experts with importance-weighted bounds.

    q(z | x_A) = 1/n sum_{m in A} q_m(z | x_m)                      n = |A|, what a row has
    w(z)       = prod_{j in A} p(x_j | z) (p(z) / q(z | x_A))^beta
    looser     = 1/n sum_{m in A} E log 1/K sum_k w(z_mk),          z_mk ~ q_m
    tight      = E log 1/(nK) sum_m sum_k w(z_mk)

looser <= tight <= log p(x_A) for beta = 1 (Shi et al. 2019, section 3.2).
"""

from __future__ import annotations

from typing import Any

from multivae_core.config import config
from multivae_core.mixture_vae import MixtureVAE, MixtureVAEConfig, matching_prior

__all__ = ["MMVAE", "MMVAEConfig"]


@config
class MMVAEConfig(MixtureVAEConfig):
    """Options of MMVAE beside those of every model with a mixture of experts.

    Args:
        learn_prior: Whether the scale of the default prior is learned; its mean is 0.
        prior: Prior of the latent; by default of the same family as the experts.
    """

    learn_prior: bool = True
    prior: Any = matching_prior("learn_prior")


class MMVAE(MixtureVAE):
    """Multimodal VAE with a mixture of experts (Shi et al. 2019)."""

    config: MMVAEConfig
