"""Priors that any model can be given, and the models whose prior is a mixture.

What is here is imported when it is first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = [
    "CMVAE", "MMVM", "CMVAEConfig", "FlowPrior", "FlowPriorConfig", "GaussianMixture",
    "GaussianMixtureConfig", "MMVMConfig", "MixturePrior", "VampPrior", "VampPriorConfig",
]  # fmt: skip

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy

if TYPE_CHECKING:
    from multivae_mixture_prior.cmvae import CMVAE, CMVAEConfig
    from multivae_mixture_prior.flow import FlowPrior, FlowPriorConfig
    from multivae_mixture_prior.mixture import (
        GaussianMixture,
        GaussianMixtureConfig,
        MixturePrior,
    )
    from multivae_mixture_prior.mmvm import MMVM, MMVMConfig
    from multivae_mixture_prior.vamp import VampPrior, VampPriorConfig

_MODULES = {
    "CMVAE": "cmvae",
    "FlowPrior": "flow",
    "GaussianMixture": "mixture",
    "MMVM": "mmvm",
    "MixturePrior": "mixture",
    "VampPrior": "vamp",
}

__getattr__, __dir__ = lazy(
    __name__, {name: _MODULES[name.removesuffix("Config")] for name in __all__}
)
