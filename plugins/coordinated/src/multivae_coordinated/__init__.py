"""Multimodal VAEs whose unimodal posteriors are tied together by a loss.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = [
    "CRMVAE", "DCCAE", "DVCCA", "MCVAE", "CRMVAEConfig", "DCCAEConfig", "DVCCAConfig",
    "LatentTranslation", "LatentTranslationConfig", "MCVAEConfig",
]  # fmt: skip

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy

if TYPE_CHECKING:
    from multivae_coordinated.crmvae import CRMVAE, CRMVAEConfig
    from multivae_coordinated.dccae import DCCAE, DCCAEConfig
    from multivae_coordinated.dvcca import DVCCA, DVCCAConfig
    from multivae_coordinated.latent_translation import (
        LatentTranslation,
        LatentTranslationConfig,
    )
    from multivae_coordinated.mcvae import MCVAE, MCVAEConfig

_MODULES = {
    "CRMVAE": "crmvae",
    "DCCAE": "dccae",
    "DVCCA": "dvcca",
    "LatentTranslation": "latent_translation",
    "MCVAE": "mcvae",
}

__getattr__, __dir__ = lazy(
    __name__, {name: _MODULES[name.removesuffix("Config")] for name in __all__}
)
