"""Multimodal VAEs with a hierarchy of latents.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = ["MHVAE", "MHVAEConfig", "Nexus", "NexusConfig"]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multivae_hierarchical.mhvae import MHVAE, MHVAEConfig
    from multivae_hierarchical.nexus import Nexus, NexusConfig

_MODULES = {
    "MHVAE": "mhvae",
    "Nexus": "nexus",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name.removesuffix('Config')]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
