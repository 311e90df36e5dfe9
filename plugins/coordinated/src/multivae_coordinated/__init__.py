"""Multimodal VAEs whose unimodal posteriors are tied together by a loss.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = [
    "CRMVAE", "CRMVAEConfig", "DVCCA", "DVCCAConfig", "LatentTranslation",
    "LatentTranslationConfig", "MCVAE", "MCVAEConfig",
]  # fmt: skip

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multivae_coordinated.crmvae import CRMVAE, CRMVAEConfig
    from multivae_coordinated.dvcca import DVCCA, DVCCAConfig
    from multivae_coordinated.latent_translation import (
        LatentTranslation,
        LatentTranslationConfig,
    )
    from multivae_coordinated.mcvae import MCVAE, MCVAEConfig

_MODULES = {
    "CRMVAE": "crmvae",
    "DVCCA": "dvcca",
    "LatentTranslation": "latent_translation",
    "MCVAE": "mcvae",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name.removesuffix('Config')]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
