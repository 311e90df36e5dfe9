"""Multimodal VAEs whose posterior aggregates one expert per modality.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = [
    "CoDEVAE",
    "CoDEVAEConfig",
    "DMVAE",
    "DMVAEConfig",
    "GPoE",
    "GPoEConfig",
    "HelVAE",
    "HelVAEConfig",
    "MAAE",
    "MAAEConfig",
    "MMJSD",
    "MMJSDConfig",
    "MMVAE",
    "MMVAEConfig",
    "MMVAEPlus",
    "MMVAEPlusConfig",
    "MVAE",
    "MVAEConfig",
    "MVTCAE",
    "MVTCAEConfig",
    "MWAE",
    "MWAEConfig",
    "MWBVAE",
    "MWBVAEConfig",
    "MaskedVAE",
    "MaskedVAEConfig",
    "MoPoE",
    "MoPoEConfig",
]

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy

if TYPE_CHECKING:
    from multivae_aggregated.dmvae import DMVAE, DMVAEConfig
    from multivae_aggregated.gpoe import GPoE, GPoEConfig
    from multivae_aggregated.maae import MAAE, MAAEConfig
    from multivae_aggregated.masked import MaskedVAE, MaskedVAEConfig
    from multivae_aggregated.mmjsd import MMJSD, MMJSDConfig
    from multivae_aggregated.mmvae import MMVAE, MMVAEConfig
    from multivae_aggregated.mmvae_plus import MMVAEPlus, MMVAEPlusConfig
    from multivae_aggregated.mopoe import MoPoE, MoPoEConfig
    from multivae_aggregated.mvae import MVAE, MVAEConfig
    from multivae_aggregated.mvtcae import MVTCAE, MVTCAEConfig
    from multivae_aggregated.mwae import MWAE, MWAEConfig
    from multivae_aggregated.presets import (
        MWBVAE,
        CoDEVAE,
        CoDEVAEConfig,
        HelVAE,
        HelVAEConfig,
        MWBVAEConfig,
    )

_MODULES = {
    "CoDEVAE": "presets",
    "DMVAE": "dmvae",
    "GPoE": "gpoe",
    "HelVAE": "presets",
    "MAAE": "maae",
    "MMJSD": "mmjsd",
    "MMVAE": "mmvae",
    "MMVAEPlus": "mmvae_plus",
    "MVAE": "mvae",
    "MVTCAE": "mvtcae",
    "MWAE": "mwae",
    "MWBVAE": "presets",
    "MaskedVAE": "masked",
    "MoPoE": "mopoe",
}

__getattr__, __dir__ = lazy(
    __name__, {name: _MODULES[name.removesuffix("Config")] for name in __all__}
)
