"""Default networks: encoder trunks give features, decoder trunks give parameters."""

from __future__ import annotations

from multivae_core.networks.conv import MIN_SIDE, ConvConfig, ConvDecoder, ConvEncoder
from multivae_core.networks.conv1d import MIN_LENGTH, Conv1dConfig, Conv1dDecoder, Conv1dEncoder
from multivae_core.networks.mlp import MLPConfig, MLPDecoder, MLPEncoder

__all__ = [
    "Conv1dConfig",
    "Conv1dDecoder",
    "Conv1dEncoder",
    "ConvConfig",
    "ConvDecoder",
    "ConvEncoder",
    "MLPConfig",
    "MLPDecoder",
    "MLPEncoder",
    "default_network",
]


def default_network(shape: tuple[int, ...], class_axis: bool = False) -> str:
    """Name the network that suits a shape, as encoder and as decoder.

    Args:
        shape: Shape of the modality.
        class_axis: Whether the last axis holds classes (one-hot data): neighbours on it mean
            nothing, and convolutions would assume that they do.

    Returns:
        ``"conv"`` for images (C, H, W) and volumes (C, D, H, W), ``"conv1d"`` for sequences
        (C, L), ``"mlp"`` for everything else and for what is too small to be halved.
    """
    if class_axis:
        return "mlp"
    if len(shape) in (3, 4) and min(shape[1:]) >= MIN_SIDE:
        return "conv"
    if len(shape) == 2 and shape[1] >= MIN_LENGTH:
        return "conv1d"
    return "mlp"
