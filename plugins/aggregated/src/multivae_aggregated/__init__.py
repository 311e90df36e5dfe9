"""Multimodal VAEs whose posterior aggregates one expert per modality.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = ["MMVAE", "MVAE", "MMVAEConfig", "MVAEConfig", "MoPoE", "MoPoEConfig"]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multivae_aggregated.mmvae import MMVAE, MMVAEConfig
    from multivae_aggregated.mopoe import MoPoE, MoPoEConfig
    from multivae_aggregated.mvae import MVAE, MVAEConfig

_MODULES = {
    "MMVAE": "mmvae",
    "MVAE": "mvae",
    "MoPoE": "mopoe",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name.removesuffix('Config')]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
