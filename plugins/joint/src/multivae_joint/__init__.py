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

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__, {name: _MODULES[name.removesuffix("Config")] for name in __all__}
)
