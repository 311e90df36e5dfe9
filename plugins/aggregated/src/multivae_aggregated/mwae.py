"""mWAE: cross autoencoders whose codes follow the prior, by a kernel or a Wasserstein critic.

    L = 1/n^2 sum_{m, k in A} -log p(x_k | z_m) + lambda_div mean_m Div(codes z_m, N(0, I))

with z_m = e_m(x_m), A what a row has and n its size (Tolstikhin et al. 2018, eq. 4, for several
modalities). Div is the squared maximum mean discrepancy with inverse multiquadratic kernels, or
what a critic f sees of the Wasserstein distance, E f(prior) - E f(z_m).
"""

from __future__ import annotations

import attrs
import torch

from multivae_aggregated._cross import CrossAutoencoder, CrossConfig
from multivae_core.config import config, one_of, positive

__all__ = ["MWAE", "MWAEConfig"]


@config
class MWAEConfig(CrossConfig):
    """Options of mWAE beside those of `CrossConfig`.

    Args:
        divergence: ``mmd``, by a kernel, which needs no critic; ``wgan-gp``, a critic with a
            gradient penalty; ``wgan``, one with clipped weights, as in multi-view-AE (which sums
            the critic's loss over the modalities, so that one prior is weighed against M codes;
            here it is the mean).
        clip: Largest weight of the critic of ``wgan``, in absolute value.
    """

    divergence: str = attrs.field(default="mmd", validator=one_of("mmd", "wgan-gp", "wgan"))
    clip: float = attrs.field(default=0.01, validator=positive)


class MWAE(CrossAutoencoder):
    """Multimodal Wasserstein autoencoder (Tolstikhin et al. 2018; multi-view-AE)."""

    config: MWAEConfig

    def clip_critic(self) -> None:
        """Bring the critic's weights back into the range of ``wgan``."""
        if self.config.divergence == "wgan":
            with torch.no_grad():
                for parameter in self.critic.parameters():
                    parameter.clamp_(-self.config.clip, self.config.clip)
