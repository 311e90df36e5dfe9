"""MMVAE+: a mixture of experts whose private latents cannot stand in for the shared one.

Modality m has a private latent with the prior p(w_m); its decoder sees [z, w_m]. With A what a row
has, n = |A|, for every source m in A: z ~ q_m(z | x_m), w_m ~ q(w_m | x_m), and w_n ~ r_n for the
other modalities n, auxiliary priors of learned scale that serve training alone:

    q(z | x_A) = 1/n sum_{m in A} q_m(z | x_m)
    log w_m    = log p(x_m | z, w_m) + sum_{n in A, n != m} log p(x_n | z, w_n)
                 + beta [ log p(z) + log p(w_m) - log q(z | x_A) - log q(w_m | x_m) ]
    L          = 1/n sum_{m in A} E log 1/K sum_k w_mk

(Palumbo et al. 2023, eq. 6). For beta = 1 it bounds the likelihood of a model whose private priors
are r_n in reconstructions across modalities, and log p(x_A) itself only where r_n = p: the gap is
on purpose, it is what makes the private latents of targets worthless as a path. Estimates of
likelihoods draw every w_m from q(w_m | x_m), weigh by p(w_m), and know nothing of r.
"""

from __future__ import annotations

from typing import Any

import attrs

from multivae_core.config import config, positive
from multivae_core.mixture_vae import matching_prior
from multivae_core.private_mixture_vae import PrivateMixtureVAE, PrivateMixtureVAEConfig

__all__ = ["MMVAEPlus", "MMVAEPlusConfig"]


@config
class MMVAEPlusConfig(PrivateMixtureVAEConfig):
    """Options of MMVAE+ beside those of every model with a mixture and private latents.

    Args:
        n_samples: Samples K per expert; the published main results have one.
        learn_prior_z: Whether the scale of the default prior is learned; its mean is 0.
        prior: Prior of the shared latent; by default of the same family as the experts.
    """

    n_samples: int = attrs.field(default=1, validator=positive)
    learn_prior_z: bool = False
    prior: Any = matching_prior("learn_prior_z")


class MMVAEPlus(PrivateMixtureVAE):
    """Mixture of experts with private latents (Palumbo, Daunhawer & Vogt 2023)."""

    config: MMVAEPlusConfig
