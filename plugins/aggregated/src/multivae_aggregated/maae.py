"""mAAE: cross autoencoders whose codes a discriminator cannot tell from draws of the prior.

    L = 1/n^2 sum_{m, k in A} -log p(x_k | z_m) - lambda_div mean_m E log D(z_m)

with z_m = e_m(x_m), A what a row has and n its size, while the discriminator minimises

    -E_{z ~ N(0, I)} log D(z) - mean_m E log(1 - D(z_m))

(Makhzani et al. 2015, for several modalities). Where D is 1/2 everywhere the latter is 2 log 2,
however many modalities there are.
"""

from __future__ import annotations

import attrs

from multivae_aggregated._cross import CrossAutoencoder, CrossConfig
from multivae_core.config import config, one_of

__all__ = ["MAAE", "MAAEConfig"]


@config
class MAAEConfig(CrossConfig):
    """Options of mAAE beside those of `CrossConfig`.

    Args:
        divergence: ``gan``, by a discriminator, with the cross entropy of its logits
            (multi-view-AE writes 1 - log D for log(1 - D), whose gradient has no bound);
            ``gan-gp``, with a gradient penalty.
    """

    divergence: str = attrs.field(default="gan", validator=one_of("gan", "gan-gp"))


class MAAE(CrossAutoencoder):
    """Multimodal adversarial autoencoder (Makhzani et al. 2015; multi-view-AE)."""

    config: MAAEConfig
