"""Multimodal VAEs with a hierarchy of latents.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = ["MHVAE", "MHVAEConfig", "Nexus", "NexusConfig"]

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy

if TYPE_CHECKING:
    from multivae_hierarchical.mhvae import MHVAE, MHVAEConfig
    from multivae_hierarchical.nexus import Nexus, NexusConfig

_MODULES = {
    "MHVAE": "mhvae",
    "Nexus": "nexus",
}

__getattr__, __dir__ = lazy(
    __name__, {name: _MODULES[name.removesuffix("Config")] for name in __all__}
)
