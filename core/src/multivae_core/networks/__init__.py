"""Default networks: encoder trunks give features, decoder trunks give parameters."""

from __future__ import annotations

from multivae_core.networks.trunks import (
    Conv1dConfig,
    Conv1dDecoder,
    Conv1dEncoder,
    ConvConfig,
    ConvDecoder,
    ConvEncoder,
    MLPConfig,
    MLPDecoder,
    MLPEncoder,
    default_network,
)

__all__ = [
    "Conv1dConfig", "Conv1dDecoder", "Conv1dEncoder", "ConvConfig", "ConvDecoder",
    "ConvEncoder", "MLPConfig", "MLPDecoder", "MLPEncoder", "default_network",
]  # fmt: skip
