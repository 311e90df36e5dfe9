"""Multimodal VAEs with an encoder that sees several modalities at once.

The models are imported when they are first used: reading the table of the plugin stays light.
"""

from __future__ import annotations

__all__ = [
    "CVAE",
    "CVAEConfig",
    "JMVAE",
    "JMVAEConfig",
    "JNF",
    "JNFConfig",
    "TELBO",
    "TELBOConfig",
]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multivae_joint.cvae import CVAE, CVAEConfig
    from multivae_joint.jmvae import JMVAE, JMVAEConfig
    from multivae_joint.jnf import JNF, JNFConfig
    from multivae_joint.telbo import TELBO, TELBOConfig

_MODULES = {
    "CVAE": "cvae",
    "JMVAE": "jmvae",
    "JNF": "jnf",
    "TELBO": "telbo",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name.removesuffix('Config')]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
