"""Models of the family under other defaults; each takes every option of its base."""

from __future__ import annotations

from typing import Any

import attrs

from multivae_aggregated.gpoe import GPoE, GPoEConfig
from multivae_aggregated.mopoe import MoPoE, MoPoEConfig
from multivae_core.config import component, config, one_of, positive
from multivae_core.subsets import PRIOR_EXPERT

__all__ = [
    "CoDEVAE", "CoDEVAEConfig", "HelVAE", "HelVAEConfig", "MWBVAE", "MWBVAEConfig",
]  # fmt: skip


def _never() -> Any:
    return attrs.field(default="never", validator=one_of(*PRIOR_EXPERT))


@config
class CoDEVAEConfig(MoPoEConfig):
    """Options of CoDE-VAE: those of MoPoE, with other defaults for some.

    Args:
        fusion: The consensus of dependent experts; its option ``rho`` is the correlation.
        prior_expert: The authors' code has no prior expert.
        subset_weights: The weights of the subsets are learned.
        n_components_per_step: All subsets are decoded.
    """

    fusion: Any = component("fusions", default="dependent_experts")
    prior_expert: str = _never()
    subset_weights: str = attrs.field(default="learned", validator=one_of("uniform", "learned"))
    n_components_per_step: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )


class CoDEVAE(MoPoE):
    """Multimodal VAE with a consensus of dependent experts (Mancisidor et al. 2025).

    With the subsets C of what a row has, pi the softmax of free logits over them, and q_C the
    consensus of the experts of C,

        L = sum_C pi_C [ E_{q_C} log p(x_A | z) - beta KL(q_C || p) ] + H(pi)

    which `MoPoE` writes with log(number of subsets) - H(pi) as a divergence from equal weights.
    """


@config
class HelVAEConfig(GPoEConfig):
    """Options of HELVAE: those of `GPoE`, with another default for one.

    Args:
        fusion: ``hellinger``, the moments of the pool; ``hellinger_mixture``, the pool itself.
    """

    fusion: Any = component("fusions", default="hellinger")


class HelVAE(GPoE):
    """Multimodal VAE with Hellinger pooling (Vo & Valera 2026).

    With A what a row has and without a prior expert,

        q(z | x_A) = the Gaussian of the moments of (sum_{m in A} q_m(z | x_m)^(1/2))^2
        L = E_q sum_{m in A} log p(x_m | z) - beta KL(q || p)
    """


@config
class MWBVAEConfig(MoPoEConfig):
    """Options of MWB-VAE: those of MoPoE, with other defaults for two.

    Args:
        fusion: The Wasserstein barycentre.
        prior_expert: The paper has no prior expert.
    """

    fusion: Any = component("fusions", default="barycentre")
    prior_expert: str = _never()


class MWBVAE(MoPoE):
    """Mixture of Wasserstein-barycentric multimodal VAE (Qiu et al. 2025).

    MoPoE's objective with q_C = argmin_q sum_{m in C} W_2(q, q_m)^2 / |C| for the product: its
    mean and its standard deviation are the means of those of the experts of C.
    """
